//! Models by file, and tensors by name.

use std::path::{Path, PathBuf};

use regraft::{Compiler, Error, Mode, Model, ModelExt as _, RefitOptions, StateDict, Tensor, Threads, TuneMode};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/fixtures").join(name)
}

fn compiled() -> Model {
    let compiler = Compiler::new().mode(Mode::Refittable).tune(TuneMode::Off).threads(Threads::Count(1));
    compiler.compile(fixture("mlp_gelu.pt2")).expect("a program").into_model().expect("a model")
}

fn inputs(model: &Model) -> Vec<Tensor> {
    regraft::random_inputs(&model.plan().graph, &[], 1, 0).expect("fixed sizes")
}

#[test]
fn a_model_is_saved_and_loaded() {
    let (model, folder) = (compiled(), tempfile::tempdir().expect("a folder"));
    let path = folder.path().join("model.rgf");
    assert_eq!(model.save(&path).expect("it is written"), path.metadata().expect("a file").len());
    let again = Model::load_on(&path, regraft::cpu(Threads::Count(1))).expect("an engine");
    let inputs = inputs(&model);
    let (found, expected) = (again.run(&inputs).expect("a run"), model.run(&inputs).expect("a run"));
    assert!(found.iter().zip(&expected).all(|(a, b)| a.bit_equal(b)));
}

#[test]
fn inputs_and_outputs_have_names() {
    let model = compiled();
    let (inputs, names) = (inputs(&model), model.input_names());
    let by_name = || names.iter().copied().zip(inputs.iter().cloned());
    let outputs = model.run_named(by_name()).expect("a run");
    let expected = model.run(&inputs).expect("a run");
    assert_eq!(outputs.len(), expected.len());
    for (name, expected) in model.output_names().into_iter().zip(&expected) {
        assert!(outputs[name].bit_equal(expected), "{name}");
    }
    assert!(outputs.get("nothing").is_none());

    let wrong = by_name().chain([(names[0], inputs[0].clone()), ("y", inputs[0].clone())]);
    let error = model.run_named(wrong).expect_err("refused");
    assert!(matches!(error, Error::Inputs(_)));
    let text = error.to_string();
    assert!(text.contains("given twice") && text.contains("`y` is unknown"), "{text}");
    let text = model.run_named([]).expect_err("refused").to_string();
    assert!(text.contains(&format!("`{}` is missing", names[0])), "{text}");
}

#[test]
fn a_report_is_a_line_and_weights_are_iterated() {
    let model = compiled();
    let weights = regraft::open_weights(fixture("mlp_gelu.pt2")).expect("weights");
    let doubled = |(name, tensor): (&str, &Tensor)| {
        let values: Vec<f64> = tensor.to_f64_vec().into_iter().map(|v| v * 2.0).collect();
        (name.to_owned(), Tensor::from_f64(tensor.dtype(), tensor.shape(), &values))
    };
    let mut new: StateDict = (&weights).into_iter().map(doubled).collect();
    new.extend([("unknown", Tensor::from_slice(&[1], &[0f32]))]);
    let options = RefitOptions::new().ignore_unknown(true);
    let report = model.refit(&new, &options).expect("it fits").to_string();
    let count = weights.into_iter().count();
    assert!(report.starts_with(&format!("{count} of {count} sources changed, ")), "{report}");
    assert!(report.contains(" slots rebuilt, ") && report.ends_with(" ms"), "{report}");
}
