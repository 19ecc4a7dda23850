//! Weights that change while a model serves.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use regraft::Tensor;
use regraft_server::ModelOptions;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use crate::support::{Answer, Fixture, Running, outputs_of};

const STAGE: &str = "/v2/models/m/weights/stage";
const PUBLISH: &str = "/v2/models/m/weights/publish";
const ROLLBACK: &str = "/v2/models/m/weights/rollback";
const STATUS: &str = "/v2/models/m/weights/status";

fn send(running: &Running, query: &str, body: &[u8]) -> Answer {
    running.call("POST", &format!("{STAGE}{query}"), &[("content-type", "application/octet-stream")], body)
}

/// The weights B, with the first element of the bias being `value`.
fn marked(fixture: &Fixture, value: f32) -> Vec<u8> {
    fixture.weights(|name, data| {
        if name == "bias" {
            data[..4].copy_from_slice(&value.to_le_bytes());
        }
    })
}

/// One row of zeros gives the bias.
fn ask(running: &Running, parameters: &Value) -> (Answer, Vec<f32>) {
    let name = running.get("/v2/models/m").ok()["inputs"][0]["name"].clone();
    let input = json!({"name": name, "shape": [1, 10], "datatype": "FP32", "data": vec![0; 10]});
    let answer = running.post("/v2/models/m/infer", &json!({"parameters": parameters, "inputs": [input]}));
    let data = answer.ok()["outputs"][0]["data"].clone();
    (answer, serde_json::from_value(data).unwrap())
}

#[test]
fn v_3_stage_publish_and_roll_back() {
    let fixture = Fixture::new("linear");
    let running = Running::new(fixture.model(), ModelOptions::default());
    let zeros = Tensor::from_slice(&[1, 10], &[0f32; 10]);
    let (_, before) = ask(&running, &json!({}));
    let new = marked(&fixture, 41.0);

    let staged = send(&running, "", &new).ok();
    assert_eq!((&staged["already"], &staged["staged"]["generation"]), (&json!(false), &json!(1)));
    assert_eq!(staged["report"]["applied"].as_array().unwrap().len(), 2);
    let digest = staged["staged"]["digest"].as_str().unwrap().to_owned();
    assert_eq!(ask(&running, &json!({})).1, before, "what is staged does not serve");

    // The same again is not a second stage.
    let again = send(&running, "", &new).ok();
    assert_eq!((&again["already"], &again["staged"]["digest"]), (&json!(true), &json!(digest)));

    running.post(PUBLISH, &json!({"digest": "0"})).error(409);
    let published = running.post(PUBLISH, &json!({"digest": digest})).ok();
    assert_eq!((&published["serving"]["generation"], &published["already"]), (&json!(1), &json!(false)));
    let again = running.post(PUBLISH, &json!({"digest": digest})).ok();
    assert_eq!(again["already"], true);
    running.post(PUBLISH, &json!({})).error(409);

    let (answer, after) = ask(&running, &json!({}));
    assert_eq!((answer.headers["regraft-generation"].as_str(), &answer.headers["regraft-weights"]), ("1", &digest));
    let expected = outputs_of(&fixture, Some(&new), &zeros);
    assert_eq!(after.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>(), expected);
    assert_eq!(after[0], 41.0);

    let back = running.post(ROLLBACK, &json!({})).ok();
    assert_eq!(back["serving"]["generation"], 0);
    assert_eq!(ask(&running, &json!({})).1, before);
    let status = running.get(STATUS).ok();
    assert_eq!((&status["serving"]["generation"], &status["staged"]), (&json!(0), &Value::Null));
    let done: Vec<&str> = status["history"].as_array().unwrap().iter().map(|e| e["what"].as_str().unwrap()).collect();
    assert_eq!(done, ["rolled back", "published", "staged"]);
}

#[test]
fn weights_that_do_not_fit_list_every_problem() {
    let fixture = Fixture::new("linear");
    let running = Running::new(fixture.model(), ModelOptions::default());
    let floats = [0u8; 40];
    let views = [
        ("weight", TensorView::new(Dtype::F32, vec![10], &floats).unwrap()),
        ("wieght", TensorView::new(Dtype::F32, vec![10], &floats).unwrap()),
    ];
    let answer = send(&running, "", &safetensors::serialize(views, None).unwrap());
    let error = answer.error(422);
    assert!(error.contains("nothing was changed"), "{error}");
    let problems = answer.json()["problems"].clone();
    let names: Vec<&str> = problems.as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert!(["bias", "weight", "wieght"].iter().all(|name| names.contains(name)), "{problems}");
    assert_eq!(running.get(STATUS).ok()["staged"], Value::Null);

    let only_bias = [("bias", TensorView::new(Dtype::F32, vec![7], &floats[..28]).unwrap())];
    let only_bias = safetensors::serialize(only_bias, None).unwrap();
    let refused = send(&running, "", &only_bias);
    refused.error(422);
    assert!(refused.json()["help"].as_str().unwrap().contains("`partial`"));
    assert_eq!(send(&running, "?partial=true", &only_bias).ok()["report"]["kept"], json!(["weight"]));
    running.call("DELETE", STAGE, &[], b"").ok();
    running.post(PUBLISH, &json!({})).error(409);

    for body in [&b"not weights"[..], b"", b"PK\x03\x04........", &[0xff; 64]] {
        send(&running, "", body).error(422);
    }
    send(&running, "?file=x", b"").error(400);
    send(&running, "?digest=00", &marked(&fixture, 1.0)).error(422);
}

#[test]
fn files_are_those_below_the_root() {
    let fixture = Fixture::new("linear");
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("root")).unwrap();
    fs::write(dir.path().join("root/b.safetensors"), marked(&fixture, 5.0)).unwrap();
    fs::write(dir.path().join("secret.safetensors"), marked(&fixture, 6.0)).unwrap();
    let options = ModelOptions { weights_root: Some(dir.path().join("root")), ..ModelOptions::default() };
    let running = Running::new(fixture.model(), options);
    running.post(STAGE, &json!({"file": "b.safetensors"})).ok();
    running.post(PUBLISH, &json!({})).ok();
    assert_eq!(ask(&running, &json!({})).1[0], 5.0);
    running.post(STAGE, &json!({"file": "../secret.safetensors"})).error(400);
    running.post(STAGE, &json!({"file": "none.safetensors"})).error(404);
    running.post(STAGE, &json!({"flie": "b.safetensors"})).error(400);
    running.post(STAGE, &json!({})).error(400);
    let without = Running::new(fixture.model(), ModelOptions::default());
    without.post(STAGE, &json!({"file": "b.safetensors"})).error(403);
}

/// A LoRA of the last layer of `mlp_gelu`, of rank 1, that adds `value` to each weight.
fn lora(value: f32) -> Vec<u8> {
    let up: Vec<u8> = [value; 5].iter().flat_map(|v| v.to_le_bytes()).collect();
    let down: Vec<u8> = [1f32; 12].iter().flat_map(|v| v.to_le_bytes()).collect();
    let views = [
        ("4.lora_A.weight", TensorView::new(Dtype::F32, vec![1, 12], &down).unwrap()),
        ("4.lora_B.weight", TensorView::new(Dtype::F32, vec![5, 1], &up).unwrap()),
    ];
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn no_answer_mixes_generations() {
    let fixture = Fixture::new("linear");
    let options = ModelOptions { max_batch: 4, ..ModelOptions::default() };
    let running = Arc::new(Running::new(fixture.model(), options));
    let values: Mutex<BTreeMap<String, f32>> = Mutex::default();
    let (_, before) = ask(&running, &json!({}));
    let first = running.get(STATUS).ok()["serving"]["digest"].as_str().unwrap().to_owned();
    values.lock().unwrap().insert(first, before[0]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let (answer, data) = ask(&running, &json!({}));
                        seen.push((answer.headers["regraft-weights"].clone(), data[0]));
                    }
                    seen
                })
            })
            .collect();
        for round in 0..30 {
            let value = 100.0 + round as f32;
            let staged = send(&running, "", &marked(&fixture, value)).ok();
            let digest = staged["staged"]["digest"].as_str().unwrap().to_owned();
            values.lock().unwrap().insert(digest.clone(), value);
            running.post(PUBLISH, &json!({"digest": digest})).ok();
            // Who asks after the answer to the publication gets the new weights.
            assert_eq!(ask(&running, &json!({})).1[0], value);
        }
        stop.store(true, Ordering::Relaxed);
        let values = values.lock().unwrap();
        for (digest, value) in clients.into_iter().flat_map(|client| client.join().unwrap()) {
            assert_eq!(values[&digest], value, "{digest}");
        }
    });
}

#[test]
fn requests_name_adapters() {
    let fixture = Fixture::new("mlp_gelu");
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in [("one", 1.0), ("two", 2.0)] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("adapter_model.safetensors"), lora(value)).unwrap();
        let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1.0});
        fs::write(dir.path().join(name).join("adapter_config.json"), config.to_string()).unwrap();
    }
    let options = ModelOptions { adapters: Some(dir.path().to_owned()), ..ModelOptions::default() };
    let running = Running::new(fixture.model(), options);
    assert_eq!(running.get(STATUS).ok()["adapters"], json!(["one", "two"]));
    let name = running.get("/v2/models/m").ok()["inputs"][0]["name"].clone();
    let run = |parameters: Value| {
        let input = json!({"name": name, "shape": [3, 10], "datatype": "FP32", "data": vec![1; 30]});
        running.post("/v2/models/m/infer", &json!({"parameters": parameters, "inputs": [input]}))
    };
    let value = |answer: &Answer| answer.ok()["outputs"][0]["data"][0].as_f64().unwrap();
    let is = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-4, "{found}, expected {expected}");
    let plain = value(&run(json!({})));
    let added = value(&run(json!({"adapter": "one"}))) - plain;
    assert!(added.abs() > 0.1, "{added}");
    for (adapter, scale, times) in [("two", 0.5, 1.0), ("two", 1.0, 2.0), ("one", 1.0, 1.0)] {
        is(value(&run(json!({"adapter": adapter, "scale": scale}))), plain + times * added);
    }
    assert_eq!(value(&run(json!({}))), plain);
    assert_eq!(running.get(STATUS).ok()["variants"].as_array().unwrap().len(), 3);
    assert!(run(json!({"adapter": "three"})).error(400).contains("no adapter `three`"));
    run(json!({"adapter": "../one"})).error(400);

    // New weights take the place of those under the adapters, too, and what was asked for is made before it is asked for again.
    send(&running, "", &fixture.weights(|_, _| {})).ok();
    let published = running.post(PUBLISH, &json!({})).ok();
    let variants = |published: &Value, count: usize| {
        let newest = published["serving"]["generation"].as_u64().unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let status = running.get(STATUS).ok();
            let variants = status["variants"].as_array().unwrap();
            assert!(variants.iter().all(|one| one["generation"].as_u64().unwrap() > newest), "{status}");
            if variants.len() == count {
                return variants.clone();
            }
            assert!(Instant::now() < end, "{status}");
            thread::sleep(Duration::from_millis(1));
        }
    };
    variants(&published, 3);
    let plain = value(&run(json!({})));
    let added = value(&run(json!({"adapter": "one"}))) - plain;
    assert!(added.abs() > 0.1, "{added}");

    // Served by default, from the folder or from a body.
    running.post(STAGE, &json!({"adapters": [{"name": "two", "scale": 0.25}]})).ok();
    let published = running.post(PUBLISH, &json!({})).ok();
    assert_eq!(published["serving"]["adapters"][0]["name"], "two");
    // What nobody asked for since the publication before is not made again.
    assert_eq!(variants(&published, 1)[0]["adapter"], "one");
    is(value(&run(json!({}))), plain + 0.5 * added);
    send(&running, "?kind=adapter&name=own&scale=3&alpha=1", &lora(1.0)).ok();
    running.post(PUBLISH, &json!({})).ok();
    is(value(&run(json!({}))), plain + 3.0 * added);
    // And a request's adapter alone.
    is(value(&run(json!({"adapter": "one"}))), plain + added);
}

#[test]
fn a_delta_is_for_its_exact_base() {
    let fixture = Fixture::new("linear");
    let running = Running::new(fixture.model(), ModelOptions::default());
    let open = |bytes: &[u8]| {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("w.safetensors"), bytes).unwrap();
        regraft::open_weights(dir.path().join("w.safetensors")).unwrap()
    };
    let (base, new) = (marked(&fixture, 1.0), marked(&fixture, 2.0));
    let mut delta = Vec::new();
    regraft::delta::write(&open(&base), &open(&new), &mut delta).unwrap();
    // What serves is something else.
    let refused = send(&running, "?kind=delta", &delta);
    assert!(refused.error(422).contains("other weights"));
    let problems = refused.json()["problems"].clone();
    assert_eq!(problems.as_array().unwrap().len(), 2, "{problems}");

    send(&running, "", &base).ok();
    running.post(PUBLISH, &json!({})).ok();
    let staged = send(&running, "?kind=delta", &delta).ok();
    assert_eq!((&staged["report"]["applied"], &staged["report"]["kept"]), (&json!(["bias"]), &json!(["weight"])));
    running.post(PUBLISH, &json!({})).ok();
    assert_eq!(ask(&running, &json!({})).1[0], 2.0);
    // The digest is that of the whole weights, however they came, and the same delta again changes nothing.
    let serving = running.get(STATUS).ok()["serving"]["digest"].clone();
    assert_eq!(staged["staged"]["digest"], serving);
    assert_eq!(send(&running, "", &new).ok()["staged"]["digest"], serving);
    assert_eq!(send(&running, "?kind=delta", &delta).ok()["staged"]["digest"], serving);
    delta.truncate(delta.len() - 1);
    send(&running, "?kind=delta", &delta).error(422);
    send(&running, "?kind=delta", b"nonsense").error(422);
}

#[test]
fn adapters_that_differ_in_their_configuration_only_are_told_apart() {
    let fixture = Fixture::new("mlp_gelu");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("style.safetensors"), lora(1.0)).unwrap();
    let config = |alpha: f64| {
        let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": alpha});
        fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    };
    config(16.0);
    let running = Running::new(
        fixture.model(),
        ModelOptions { adapters: Some(dir.path().to_owned()), ..ModelOptions::default() },
    );
    // Staged from a body.
    let stage = |alpha: u32| send(&running, &format!("?kind=adapter&name=own&alpha={alpha}"), &lora(1.0)).ok();
    let [one, again, two] = [stage(1), stage(1), stage(2)];
    assert_eq!([&one["already"], &again["already"], &two["already"]], [false, true, false]);
    assert_ne!(one["staged"]["digest"], two["staged"]["digest"]);
    // Named by a request, with the configuration that lies beside its file.
    let name = running.get("/v2/models/m").ok()["inputs"][0]["name"].clone();
    let run = || {
        let input = json!({"name": name, "shape": [3, 10], "datatype": "FP32", "data": vec![1; 30]});
        let body = json!({"parameters": {"adapter": "style"}, "inputs": [input]});
        let answer = running.post("/v2/models/m/infer", &body);
        let data = answer.ok()["outputs"][0]["data"].clone();
        (answer.headers["regraft-weights"].clone(), data)
    };
    let before = run();
    assert_eq!(before, run());
    config(2.0);
    let after = run();
    assert!(before.0 != after.0 && before.1 != after.1, "{before:?} {after:?}");
}
