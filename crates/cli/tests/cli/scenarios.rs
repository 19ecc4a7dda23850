//! Scenarios of `docs/scenarios.md`, driven through the command line: every step is a process of its own.

use std::fs;

use serde_json::Value;

use crate::support::{Array, Arrays, Fixture, Sandbox, assert_close};

const MODELS: [&str; 5] = ["conv_bn", "linear", "embedding", "tiny_bert", "tiny_resnet"];

#[test]
fn r_1_a_refit_equals_a_build_with_the_new_weights() {
    for name in MODELS {
        let (fixture, sandbox) = (Fixture::new(name), Sandbox::new());
        let inputs = fixture.list("input");
        sandbox.weights("b.safetensors", &fixture.b());
        sandbox.compile(&fixture, "a.rgf", "refittable");
        sandbox.compile(&fixture, "stripped.rgf", "stripped");
        assert_close(&sandbox.run("a.rgf", &inputs), &fixture.list("expected"));

        sandbox.ok(&["refit", "a.rgf", "--weights", "b.safetensors", "-o", "b.rgf"]);
        sandbox.ok(&["bind", "stripped.rgf", "--weights", "b.safetensors", "-o", "built_with_b.rgf"]);
        let refitted = sandbox.run("b.rgf", &inputs);
        assert_close(&refitted, &fixture.list("expected_b"));
        assert_eq!(refitted, sandbox.run("built_with_b.rgf", &inputs), "{name}");
    }
}

#[test]
fn r_2_there_and_back_gives_the_first_bytes() {
    let (fixture, sandbox) = (Fixture::new("conv_bn_relu_residual"), Sandbox::new());
    let inputs = fixture.list("input");
    let mut other = fixture.b();
    for array in other.values_mut().filter(|a| a.shape.len() > 1) {
        array.data.reverse();
        let halved: Vec<f32> = (0..array.data.len() / 4).map(|i| (i % 7) as f32 / 8.0).collect();
        *array = Array::f32(&array.shape, &halved);
    }
    sandbox.weights("b.safetensors", &fixture.b());
    sandbox.weights("other.safetensors", &other);
    sandbox.compile(&fixture, "a.rgf", "refittable");
    sandbox.ok(&["refit", "a.rgf", "--weights", "b.safetensors", "-o", "first.rgf"]);
    sandbox.ok(&["refit", "first.rgf", "--weights", "other.safetensors", "-o", "there.rgf"]);
    sandbox.ok(&["refit", "there.rgf", "--weights", "b.safetensors", "-o", "back.rgf"]);
    assert_ne!(sandbox.run("there.rgf", &inputs), sandbox.run("first.rgf", &inputs));
    assert_eq!(sandbox.run("back.rgf", &inputs), sandbox.run("first.rgf", &inputs));
}

#[test]
fn r_3_only_slots_of_changed_tensors_are_recomputed() {
    const WORDS: &str = "embeddings.word_embeddings.weight";
    let (fixture, sandbox) = (Fixture::new("tiny_bert"), Sandbox::new());
    sandbox.weights("b.safetensors", &fixture.b());
    sandbox.compile(&fixture, "a.rgf", "refittable");
    sandbox.ok(&["refit", "a.rgf", "--weights", "b.safetensors", "-o", "b.rgf"]);

    let mut changed = fixture.b();
    let words = changed.get_mut(WORDS).unwrap();
    *words = Array::f32(&words.shape, &vec![0.25; words.data.len() / 4]);
    sandbox.weights("c.safetensors", &changed);
    sandbox.ok(&["refit", "b.rgf", "--weights", "c.safetensors", "-o", "c.rgf", "--report", "report.json"]);
    let report: Value = serde_json::from_slice(&fs::read(sandbox.path("report.json")).unwrap()).unwrap();
    assert_eq!(report["applied"], serde_json::json!([WORDS]));
    let slots = report["recomputed_slots"].as_array().unwrap();
    assert!(!slots.is_empty());
    for slot in slots {
        assert!(slot["sources"].as_array().unwrap().contains(&WORDS.into()), "{slot}");
    }
    assert!(report["shared_slots"].as_array().unwrap().len() > slots.len());
}

#[test]
fn r_10_a_partial_refit_changes_only_its_keys() {
    let (fixture, sandbox) = (Fixture::new("linear"), Sandbox::new());
    let inputs = fixture.list("input");
    let b = fixture.b();
    let bias: Arrays = b.iter().filter(|(n, _)| *n == "bias").map(|(n, a)| (n.clone(), a.clone())).collect();
    let weight: Arrays = b.iter().filter(|(n, _)| *n != "bias").map(|(n, a)| (n.clone(), a.clone())).collect();
    sandbox.weights("b.safetensors", &b);
    sandbox.weights("bias.safetensors", &bias);
    sandbox.weights("weight.safetensors", &weight);
    sandbox.compile(&fixture, "a.rgf", "refittable");

    let error = sandbox.fails(&["refit", "a.rgf", "--weights", "bias.safetensors", "-o", "x.rgf"], 1);
    assert!(error.contains("weight  missing in bias.safetensors") && error.contains("help: --partial"), "{error}");
    assert!(!sandbox.path("x.rgf").exists());

    let args = ["refit", "a.rgf", "--weights", "bias.safetensors", "--partial", "-o", "half.rgf"];
    let facts = sandbox.json(&args);
    assert_eq!(facts["report"]["applied"], serde_json::json!(["bias"]));
    assert_eq!(facts["report"]["kept"], serde_json::json!(["weight"]));
    sandbox.ok(&["refit", "half.rgf", "--weights", "weight.safetensors", "--partial", "-o", "whole.rgf"]);
    sandbox.ok(&["refit", "a.rgf", "--weights", "b.safetensors", "-o", "b.rgf"]);
    assert_ne!(sandbox.run("half.rgf", &inputs), sandbox.run("a.rgf", &inputs));
    assert_eq!(sandbox.run("whole.rgf", &inputs), sandbox.run("b.rgf", &inputs));
}

#[test]
fn r_11_all_problems_are_listed_and_nothing_is_changed() {
    let (fixture, sandbox) = (Fixture::new("conv_bn"), Sandbox::new());
    let mut bad = fixture.b();
    let weight = bad.remove("conv.weight").unwrap();
    bad.insert("conv.wieght".into(), weight);
    bad.insert("bn.bias".into(), Array::f32(&[7], &[0.0; 7]));
    let count = bad.get("bn.running_var").unwrap().shape[0];
    let ints = Array { dtype: safetensors::Dtype::I64, shape: vec![count], data: vec![0; 8 * count] };
    bad.insert("bn.running_var".into(), ints);
    sandbox.weights("bad.safetensors", &bad);
    sandbox.compile(&fixture, "a.rgf", "refittable");
    sandbox.write("out.rgf", b"precious");
    let before = sandbox.files();

    let args = ["refit", "a.rgf", "--weights", "bad.safetensors", "-o", "out.rgf", "--report", "report.json"];
    let error = sandbox.fails(&args, 1);
    for part in [
        "3 of 6 sources do not fit, 1 name is unknown",
        "nothing was changed",
        "conv.weight     missing in bad.safetensors",
        "conv.wieght     unknown; did you mean conv.weight?",
        "bn.bias         expected f32[6], found f32[7]",
        "bn.running_var  expected f32[6], found i64[6]",
    ] {
        assert!(error.contains(part), "`{part}` is not in {error}");
    }
    assert_eq!(fs::read(sandbox.path("out.rgf")).unwrap(), b"precious");
    assert_eq!(sandbox.files(), before, "no file appeared");

    let output = sandbox.call(&[&args[..], &["--json"]].concat());
    let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(facts["problems"].as_array().unwrap().len(), 4);
    assert!(facts["error"].as_str().unwrap().contains("do not fit"));
}

#[test]
fn r_11_a_frozen_engine_takes_no_weights() {
    let (fixture, sandbox) = (Fixture::new("linear"), Sandbox::new());
    sandbox.weights("b.safetensors", &fixture.b());
    sandbox.compile(&fixture, "frozen.rgf", "frozen");
    sandbox.compile(&fixture, "full.rgf", "refittable");
    let inputs = fixture.list("input");
    assert_eq!(sandbox.run("frozen.rgf", &inputs), sandbox.run("full.rgf", &inputs));
    let error = sandbox.fails(&["refit", "frozen.rgf", "--weights", "b.safetensors", "-o", "x.rgf"], 1);
    assert!(error.contains("frozen.rgf: the engine is frozen") && error.contains("--mode refittable"), "{error}");
    let error = sandbox.fails(&["bind", "frozen.rgf", "--weights", "b.safetensors", "-o", "x.rgf"], 1);
    assert!(error.contains("has its weights already"), "{error}");
}

#[test]
fn r_11_a_stripped_engine_does_not_run_before_it_is_bound() {
    let (fixture, sandbox) = (Fixture::new("linear"), Sandbox::new());
    sandbox.compile(&fixture, "stripped.rgf", "stripped");
    sandbox.write("x.npy", &fixture.list("input")[0].npy());
    sandbox.weights("b.safetensors", &fixture.b());
    for args in [
        &["run", "stripped.rgf", "--input", "x.npy", "--output-dir", "out"][..],
        &["bench", "stripped.rgf"],
        &["refit", "stripped.rgf", "--weights", "b.safetensors", "-o", "x.rgf"],
    ] {
        let error = sandbox.fails(args, 1);
        assert!(error.contains("stripped") && error.contains("regraft bind"), "{error}");
    }
    assert!(!sandbox.path("out").exists() && !sandbox.path("x.rgf").exists());
}

#[test]
fn r_11_values_that_are_not_finite_are_refused_on_demand() {
    let (fixture, sandbox) = (Fixture::new("linear"), Sandbox::new());
    let mut weights = fixture.b();
    weights.insert("bias".into(), Array::f32(&[7], &[f32::NAN, 0.0, f32::INFINITY, 0.0, 0.0, 0.0, 0.0]));
    sandbox.weights("nan.safetensors", &weights);
    sandbox.compile(&fixture, "a.rgf", "refittable");
    let args = ["refit", "a.rgf", "--weights", "nan.safetensors", "-o", "x.rgf"];
    let error = sandbox.fails(&[&args[..], &["--reject-non-finite"]].concat(), 1);
    assert!(error.contains("bias  2 values are infinite or not a number"), "{error}");
    sandbox.ok(&args);
}

#[test]
fn r_12_the_original_engine_keeps_its_outputs() {
    let (fixture, sandbox) = (Fixture::new("conv_bn"), Sandbox::new());
    let inputs = fixture.list("input");
    sandbox.weights("b.safetensors", &fixture.b());
    sandbox.compile(&fixture, "a.rgf", "refittable");
    let (bytes, outputs) = (fs::read(sandbox.path("a.rgf")).unwrap(), sandbox.run("a.rgf", &inputs));
    sandbox.ok(&["refit", "a.rgf", "--weights", "b.safetensors", "-o", "b.rgf"]);
    assert_eq!(fs::read(sandbox.path("a.rgf")).unwrap(), bytes);
    assert_eq!(sandbox.run("a.rgf", &inputs), outputs);

    fs::copy(sandbox.path("a.rgf"), sandbox.path("in_place.rgf")).unwrap();
    sandbox.ok(&["refit", "in_place.rgf", "--weights", "b.safetensors", "-o", "in_place.rgf"]);
    assert_eq!(sandbox.run("in_place.rgf", &inputs), sandbox.run("b.rgf", &inputs));
}

#[test]
fn r_14_every_shape_in_range_before_and_after() {
    for name in ["conv_bn", "tiny_bert"] {
        let (fixture, sandbox) = (Fixture::new(name), Sandbox::new());
        sandbox.weights("b.safetensors", &fixture.b());
        sandbox.compile(&fixture, "a.rgf", "refittable");
        sandbox.ok(&["refit", "a.rgf", "--weights", "b.safetensors", "-o", "b.rgf"]);
        for (engine, suffix) in [("a.rgf", ""), ("b.rgf", "_b")] {
            for number in ["", "2"] {
                let outputs = sandbox.run(engine, &fixture.list(&format!("input{number}")));
                assert_close(&outputs, &fixture.list(&format!("expected{number}{suffix}")));
            }
        }
    }
}

#[test]
fn r_15_engines_are_refitted_by_one_process_after_another() {
    let (fixture, sandbox) = (Fixture::new("tiny_resnet"), Sandbox::new());
    let inputs = fixture.list("input");
    sandbox.weights("b.safetensors", &fixture.b());
    sandbox.compile(&fixture, "0.rgf", "refittable");
    sandbox.ok(&["refit", "0.rgf", "--weights", "b.safetensors", "-o", "1.rgf"]);
    let facts = sandbox.json(&["refit", "1.rgf", "--weights", "b.safetensors", "-o", "2.rgf"]);
    assert_eq!(facts["report"]["applied"], serde_json::json!([]), "the same weights again change nothing");
    assert_eq!(fs::read(sandbox.path("1.rgf")).unwrap(), fs::read(sandbox.path("2.rgf")).unwrap());
    assert_close(&sandbox.run("2.rgf", &inputs), &fixture.list("expected_b"));
}

#[test]
fn s_1_full_and_stripped_give_the_same_outputs_once_bound() {
    let (fixture, sandbox) = (Fixture::new("conv_bn"), Sandbox::new());
    let inputs = fixture.list("input");
    sandbox.weights("b.safetensors", &fixture.b());
    sandbox.compile(&fixture, "full.rgf", "refittable");
    sandbox.compile(&fixture, "stripped.rgf", "stripped");
    assert_eq!(sandbox.json(&["inspect", "stripped.rgf"])["held_source_bytes"], 0);
    sandbox.ok(&["refit", "full.rgf", "--weights", "b.safetensors", "-o", "full_b.rgf"]);
    for mode in ["refittable", "frozen"] {
        sandbox.ok(&["bind", "stripped.rgf", "--weights", "b.safetensors", "-o", "bound.rgf", "--mode", mode]);
        assert_eq!(sandbox.json(&["inspect", "bound.rgf"])["mode"], mode);
        assert_eq!(sandbox.run("bound.rgf", &inputs), sandbox.run("full_b.rgf", &inputs));
    }
}

#[test]
fn s_2_binding_needs_the_engine_and_the_weights_only() {
    let (fixture, sandbox, elsewhere) = (Fixture::new("constants"), Sandbox::new(), Sandbox::new());
    sandbox.compile(&fixture, "stripped.rgf", "stripped");
    elsewhere.write("stripped.rgf", &fs::read(sandbox.path("stripped.rgf")).unwrap());
    drop(sandbox);
    elsewhere.weights("b.safetensors", &fixture.b());
    elsewhere.ok(&["bind", "stripped.rgf", "--weights", "b.safetensors", "-o", "bound.rgf"]);
    assert_close(&elsewhere.run("bound.rgf", &fixture.list("input")), &fixture.list("expected_b"));
}

#[test]
fn s_3_identical_engines_refuse_other_weights_by_name() {
    let (fixture, sandbox) = (Fixture::new("linear"), Sandbox::new());
    let program = fixture.program.to_str().unwrap();
    sandbox.weights("b.safetensors", &fixture.b());
    sandbox.ok(&["compile", program, "-o", "stripped.rgf", "--mode", "stripped", "--identical"]);
    assert_eq!(sandbox.json(&["inspect", "stripped.rgf"])["identical"], true);
    let error = sandbox.fails(&["bind", "stripped.rgf", "--weights", "b.safetensors", "-o", "x.rgf"], 1);
    for name in ["weight", "bias"] {
        assert!(error.contains(&format!("  {name}")), "{error}");
    }
    assert!(error.contains("differs from the weights that the engine was built with"), "{error}");
}

#[test]
fn s_4_one_stripped_engine_is_bound_twice() {
    let (fixture, sandbox) = (Fixture::new("conv_bn"), Sandbox::new());
    let mut other = fixture.b();
    other.insert("bn.bias".into(), Array::f32(&[6], &[1.0; 6]));
    sandbox.weights("b.safetensors", &fixture.b());
    sandbox.weights("other.safetensors", &other);
    sandbox.compile(&fixture, "stripped.rgf", "stripped");
    sandbox.ok(&["bind", "stripped.rgf", "--weights", "b.safetensors", "-o", "one.rgf"]);
    sandbox.ok(&["bind", "stripped.rgf", "--weights", "other.safetensors", "-o", "two.rgf"]);
    for (inputs, expected) in [("input", "expected_b"), ("input2", "expected2_b")] {
        let inputs = fixture.list(inputs);
        let one = sandbox.run("one.rgf", &inputs);
        assert_close(&one, &fixture.list(expected));
        assert_ne!(one, sandbox.run("two.rgf", &inputs));
    }
}
