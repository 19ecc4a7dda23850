//! Adapters, verification and comparison of engines, driven through the command line.

use serde_json::{Value, json};

use crate::support::{Array, Arrays, Fixture, Sandbox};

/// The first matrix of a state dict: its module, rows and columns.
fn matrix(weights: &Arrays) -> (String, usize, usize) {
    let first = weights.iter().find(|(name, array)| name.ends_with(".weight") && array.shape.len() == 2).unwrap();
    (first.0.strip_suffix(".weight").unwrap().to_owned(), first.1.shape[0], first.1.shape[1])
}

/// A LoRA of rank 1 on the first matrix, and the weights with it merged in; all sums are exact but the last.
fn lora(weights: &Arrays, prefix: &str, scale: f32) -> (Arrays, Arrays) {
    let (module, rows, cols) = matrix(weights);
    let up: Vec<f32> = (0..rows).map(|i| (i % 5) as f32 - 2.0).collect();
    let down: Vec<f32> = (0..cols).map(|j| (j % 3) as f32 * 0.25 - 0.5).collect();
    let names = if prefix.is_empty() { ["lora_down", "lora_up"] } else { ["lora_A", "lora_B"] };
    let adapter = [
        (format!("{prefix}{module}.{}.weight", names[0]), Array::f32(&[1, cols], &down)),
        (format!("{prefix}{module}.{}.weight", names[1]), Array::f32(&[rows, 1], &up)),
    ];
    let mut merged = weights.clone();
    let weight = merged.get_mut(&format!("{module}.weight")).unwrap();
    let values = weight.data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).enumerate();
    let values: Vec<f32> = values.map(|(e, w)| w + scale * up[e / cols] * down[e % cols]).collect();
    *weight = Array::f32(&weight.shape, &values);
    (adapter.into_iter().collect(), merged)
}

/// Engine `b.rgf` with weights B, and a LoRA `style.safetensors` for it.
fn prepared(name: &str) -> (Fixture, Sandbox) {
    let (fixture, sandbox) = (Fixture::new(name), Sandbox::new());
    sandbox.weights("b.safetensors", &fixture.b());
    sandbox.compile(&fixture, "a.rgf", "refittable");
    sandbox.ok(&["refit", "a.rgf", "--weights", "b.safetensors", "-o", "b.rgf"]);
    sandbox.weights("style.safetensors", &lora(&fixture.b(), "", 0.5).0);
    (fixture, sandbox)
}

#[test]
fn a_1_an_adapter_gives_what_merged_weights_give() {
    for name in ["mlp_gelu", "tiny_bert"] {
        let (fixture, sandbox) = prepared(name);
        sandbox.weights("merged.safetensors", &lora(&fixture.b(), "", 0.5).1);
        sandbox.ok(&["refit", "a.rgf", "--weights", "merged.safetensors", "-o", "merged.rgf"]);
        let told = sandbox.ok(&["refit", "b.rgf", "--adapter", "style.safetensors:0.5", "-o", "styled.rgf"]);
        assert!(told.contains("style ×0.5"), "{told}");
        // New weights and an adapter in one step.
        sandbox.ok(&["refit", "a.rgf", "-w", "b.safetensors", "-a", "style.safetensors:0.5", "-o", "once.rgf"]);
        for styled in ["styled.rgf", "once.rgf"] {
            assert_eq!(sandbox.json(&["diff", "merged.rgf", styled])["same"], json!(true), "{name}, {styled}");
        }
        let differ = sandbox.json(&["diff", "b.rgf", "styled.rgf"]);
        let named = &differ["sources"]["differing"][0]["name"];
        assert_eq!(*named, json!(format!("{}.weight", matrix(&fixture.b()).0)));
        assert_eq!((&differ["sources"]["differing"][1], &differ["same"]), (&Value::Null, &json!(false)));
        assert_eq!(differ["slots"]["differing"].as_array().unwrap().len(), 1);
    }
}

/// What is part of the weights of a file is told, until other weights take its place; another adapter is added to it.
#[test]
fn a_4_adapters_that_became_part_of_the_weights_are_listed() {
    let (fixture, sandbox) = prepared("mlp_gelu");
    sandbox.weights("detail.safetensors", &lora(&fixture.b(), "", 0.25).0);
    sandbox.ok(&["refit", "b.rgf", "-a", "style.safetensors:0.5", "-o", "styled.rgf"]);
    let baked = |engine: &str| sandbox.json(&["inspect", engine])["adapters"].clone();
    let source = format!("{}.weight", matrix(&fixture.b()).0);
    assert_eq!(baked("b.rgf"), json!([]));
    assert_eq!(baked("styled.rgf"), json!([{"name": "style", "scale": 0.5, "sources": [source]}]));
    assert!(sandbox.ok(&["inspect", "styled.rgf"]).contains("style ×0.5 in 1 source, part of the weights"));
    let told = sandbox.ok(&["refit", "styled.rgf", "-a", "detail.safetensors", "-o", "both.rgf"]);
    assert!(told.contains("style ×0.5 in 1 source; those that were given are added to that"), "{told}");
    assert_eq!(baked("both.rgf").as_array().unwrap().len(), 2);
    // A stripped engine has no weights.
    sandbox.ok(&["strip", "both.rgf", "-o", "stripped.rgf"]);
    assert_eq!(baked("stripped.rgf"), json!([]));
    let mut one = Arrays::new();
    one.insert(source.clone(), fixture.b()[&source].clone());
    sandbox.weights("one.safetensors", &one);
    sandbox.ok(&["refit", "both.rgf", "-w", "one.safetensors", "--partial", "-o", "plain.rgf"]);
    assert_eq!(baked("plain.rgf"), json!([]));
}

#[test]
fn values_of_adapters_that_are_no_numbers_are_told_or_refused() {
    let (fixture, sandbox) = prepared("mlp_gelu");
    let (mut adapter, _) = lora(&fixture.b(), "", 1.0);
    let up = adapter.iter_mut().find(|(name, _)| name.ends_with("lora_up.weight")).unwrap().1;
    *up = Array::f32(&up.shape.clone(), &vec![f32::NAN; up.shape[0]]);
    sandbox.weights("wild.safetensors", &adapter);
    let report = sandbox.json(&["refit", "b.rgf", "-a", "wild.safetensors", "-o", "wild.rgf"])["report"].clone();
    let rows = matrix(&fixture.b()).1;
    assert_eq!(report["adapters"][0]["non_finite"], json!(rows));
    let refused = ["refit", "b.rgf", "-a", "wild.safetensors", "--reject-non-finite", "-o", "refused.rgf"];
    let error = sandbox.fails(&refused, 1);
    assert!(error.contains("(adapter wild)") && error.contains("infinite or not a number"), "{error}");
    assert!(!sandbox.files().iter().any(|file| file == "refused.rgf"));
}

#[test]
fn a_3_the_order_of_adapters_on_the_command_line_does_not_matter() {
    let (fixture, sandbox) = prepared("mlp_gelu");
    sandbox.weights("detail.safetensors", &lora(&fixture.b(), "base_model.model.", 1.0).0);
    let (style, detail) = ("--adapter=style.safetensors:0.7", "--adapter=detail.safetensors:0.3");
    // One of them does not say its scale.
    let error = sandbox.fails(&["refit", "b.rgf", style, detail, "-o", "one.rgf"], 1);
    assert!(error.contains("nothing says its scale") && error.contains("--adapter-alpha"), "{error}");
    sandbox.write("config.json", br#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1}"#);
    let alpha = "--adapter-config=config.json";
    sandbox.ok(&["refit", "b.rgf", style, detail, alpha, "-o", "one.rgf"]);
    sandbox.ok(&["refit", "b.rgf", detail, style, "--adapter-alpha=1", "-o", "other.rgf"]);
    assert_eq!(sandbox.json(&["diff", "one.rgf", "other.rgf"])["same"], json!(true));
}

#[test]
fn a_5_unmatched_keys_are_listed_and_nothing_is_written() {
    let (fixture, sandbox) = prepared("mlp_gelu");
    let (mut adapter, _) = lora(&fixture.b(), "", 1.0);
    adapter.insert("nowhere.lora_down.weight".into(), Array::f32(&[1, 2], &[1.0, 2.0]));
    sandbox.weights("wrong.safetensors", &adapter);
    let files = sandbox.files();
    let error = sandbox.fails(&["refit", "b.rgf", "--adapter", "wrong.safetensors", "-o", "new.rgf"], 1);
    assert!(error.contains("wrong: 1 of 3 keys does not fit; nothing was changed"), "{error}");
    assert!(error.contains("nowhere.lora_down.weight  matches no source"), "{error}");
    assert_eq!(sandbox.files(), files);
    let error = sandbox.fails(&["refit", "b.rgf", "--adapter", "style.safetensors:nan", "-o", "new.rgf"], 2);
    assert!(error.contains("a scale must be a finite number"), "{error}");
}

#[test]
fn r_11_frozen_and_stripped_engines_take_no_adapters() {
    let (fixture, sandbox) = prepared("mlp_gelu");
    for (mode, advice) in [("frozen", "--mode refittable"), ("stripped", "regraft bind")] {
        sandbox.compile(&fixture, "other.rgf", mode);
        let error = sandbox.fails(&["refit", "other.rgf", "--adapter", "style.safetensors", "-o", "new.rgf"], 1);
        assert!(error.contains(mode) && error.contains(advice), "{error}");
    }
}

#[test]
fn r_16_a_refit_is_verified_on_sample_inputs() {
    let (fixture, sandbox) = prepared("mlp_gelu");
    let input = &fixture.list("input")[0];
    let mut archive = zip::ZipWriter::new(std::fs::File::create(sandbox.path("inputs.npz")).unwrap());
    archive.start_file("arr_0.npy", zip::write::SimpleFileOptions::default()).unwrap();
    std::io::Write::write_all(&mut archive, &input.npy()).unwrap();
    archive.finish().unwrap();
    let call = ["refit", "b.rgf", "-a", "style.safetensors", "--verify", "inputs.npz", "-o", "new.rgf"];
    let told = sandbox.ok(&call);
    assert!(told.contains("verified"), "{told}");
    let facts = sandbox.json(&call);
    assert!(facts["verification"]["largest_difference"].as_f64().unwrap() <= 1e-4, "{facts}");
    sandbox.write("no.npz", b"PK\x03\x04");
    let error = sandbox.fails(&["refit", "b.rgf", "-a", "style.safetensors", "--verify", "no.npz", "-o", "x.rgf"], 1);
    assert!(error.contains("no.npz") && error.contains("numpy.savez"), "{error}");
}

#[test]
fn diff_compares_stripped_engines_by_type() {
    let (fixture, sandbox) = prepared("mlp_gelu");
    sandbox.compile(&fixture, "stripped.rgf", "stripped");
    let told = sandbox.ok(&["diff", "stripped.rgf", "stripped.rgf"]);
    assert!(told.contains("not compared: a stripped engine has none"), "{told}");
}
