//! Requests of the open inference protocol.

use std::{sync::Arc, thread, time::Duration};

use regraft::{DType, Tensor};
use regraft_server::{ModelOptions, Server, ServerOptions};
use serde_json::{Value, json};

use crate::support::{Answer, Client, Fixture, Running, outputs_of};

const INFER: &str = "/v2/models/m/infer";

pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

pub(crate) fn tensor(shape: &[usize], bytes: &[u8]) -> Tensor {
    Tensor::from_slice(shape, &floats(bytes))
}

/// The name of the first port of the metadata.
fn port(running: &Running, which: &str) -> String {
    running.get("/v2/models/m").ok()[which][0]["name"].as_str().unwrap().to_owned()
}

/// A request with one input as bytes, and the output as bytes.
fn binary(client: &mut Client, name: &str, shape: &[usize], bytes: &[u8], parameters: Value) -> Answer {
    let mut parameters = parameters;
    parameters["binary_data_output"] = true.into();
    let json = json!({"id": "7", "parameters": parameters, "inputs": [{
        "name": name, "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": bytes.len()}}]});
    let mut body = json.to_string().into_bytes();
    let len = body.len().to_string();
    body.extend_from_slice(bytes);
    client.call("POST", INFER, &[("inference-header-content-length", &len)], &body)
}

/// The bytes of the one output.
fn output(answer: &Answer) -> Vec<u8> {
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    let len: usize = answer.headers["inference-header-content-length"].parse().unwrap();
    let json: Value = serde_json::from_slice(&answer.body[..len]).unwrap();
    assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], answer.body.len() - len);
    answer.body[len..].to_vec()
}

#[test]
fn json_and_bytes_give_what_the_model_gives() {
    let fixture = Fixture::new("linear");
    let running = Running::new(fixture.model(), ModelOptions::default());
    let (shape, bytes) = fixture.input();
    let expected = outputs_of(&fixture, None, &tensor(&shape, &bytes));
    let name = port(&running, "inputs");
    let mut client = running.connect();
    let answer = binary(&mut client, &name, &shape, &bytes, json!({}));
    assert_eq!(output(&answer), expected);
    assert_eq!(answer.headers["regraft-generation"], "0");
    // The same connection, and numbers in JSON, flat and nested.
    let flat = floats(&bytes);
    let nested: Vec<&[f32]> = flat.chunks(*shape.last().unwrap()).collect();
    let data = if shape.len() == 2 { vec![json!(flat), json!(nested)] } else { vec![json!(flat)] };
    for data in data {
        let body = json!({"id": "a", "inputs": [{"name": name, "shape": shape, "datatype": "FP32", "data": data}]})
            .to_string();
        let answer = client.call("POST", INFER, &[], body.as_bytes());
        let answer = answer.ok();
        assert_eq!((&answer["id"], &answer["model_name"]), (&json!("a"), &json!("m")));
        let found: Vec<f32> = serde_json::from_value(answer["outputs"][0]["data"].clone()).unwrap();
        assert_eq!(found, floats(&expected));
    }
}

#[test]
fn metadata_and_health() {
    let running = Running::new(Fixture::new("linear").model(), ModelOptions::default());
    for path in ["/v2/health/live", "/v2/health/ready", "/v2/models/m/ready", "/v2/models/m/versions/1/ready"] {
        let told = running.get(path).ok();
        let word = if path.ends_with("live") { "live" } else { "ready" };
        assert_eq!(told[word], true, "{path}");
    }
    assert_eq!(running.get("/v2").ok()["name"], "regraft");
    let about = running.get("/v2/models/m").ok();
    assert_eq!((&about["versions"], &about["inputs"][0]["datatype"]), (&json!(["1"]), &json!("FP32")));
    assert_eq!(about["inputs"][0]["shape"][0], -1);
    assert_eq!(running.post("/v2/repository/index", &json!({})).ok()[0]["state"], "READY");
    let metrics = String::from_utf8(running.get("/metrics").body).unwrap();
    assert!(metrics.contains("regraft_queue_length{model=\"m\"} 0"), "{metrics}");
    assert_eq!(running.get("/openapi.json").ok()["openapi"], "3.1.0");
    assert!(running.get("/inspector").body.starts_with(b"<!doctype html>"));
    assert_eq!(running.get("/inspector/state").ok()["models"][0]["model"], "m");
}

#[test]
fn requests_that_do_not_fit_say_why() {
    let running = Running::new(Fixture::new("linear").model(), ModelOptions::default());
    let name = port(&running, "inputs");
    let (shape, bytes) = Fixture::new("linear").input();
    let input = |shape: Value, datatype: &str, data: Value| json!({"inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": data}]});
    let width = *shape.last().unwrap();
    let row = json!(vec![0.5; width]);
    for (body, expected) in [
        (json!({}), "not a request of the inference protocol"),
        (json!({"inputs": []}), "inputs are missing"),
        (
            json!({"inputs": [{"name": "other", "shape": [1], "datatype": "FP32", "data": [1]}]}),
            "there is no input `other`",
        ),
        (input(json!([1, width]), "INT64", json!(vec![1; width])), "expected FP32"),
        (input(json!([1, width + 1]), "FP32", json!(vec![1; width + 1])), "expected FP32"),
        (input(json!([width]), "FP32", row.clone()), "expected FP32"),
        (input(json!([9, width]), "FP32", json!(vec![0.5; 9 * width])), "input"),
        (input(json!([2, width]), "FP32", row.clone()), "elements"),
        (input(json!([-1, width]), "FP32", row.clone()), "not a request"),
        (input(json!([1, width]), "BYTES", row.clone()), "datatype BYTES is not served"),
        (json!({"inputs": [{"name": name, "shape": [1, width], "datatype": "FP32"}]}), "neither"),
    ] {
        let error = running.post(INFER, &body).error(400);
        assert!(error.contains(expected), "{error} for {body}");
    }
    let mut right = input(json!([1, width]), "FP32", row);
    running.post(INFER, &right).ok();
    right["parameters"] = json!({"adaptor": "style"});
    assert!(running.post(INFER, &right).error(400).contains("`adaptor` is not known"));
    right["parameters"] = json!({"adapter": "style"});
    running.post(INFER, &right).error(400);
    right["parameters"] = json!({});
    right["outputs"] = json!([{"name": "none"}]);
    assert!(running.post(INFER, &right).error(400).contains("there is no output `none`"));
    let mut client = running.connect();
    for (declared, sent, expected) in
        [(bytes.len() + 4, &bytes[..], "bytes are left"), (bytes.len() - 4, &bytes, "has")]
    {
        let json = json!({"inputs": [{"name": name, "shape": shape, "datatype": "FP32",
            "parameters": {"binary_data_size": declared}}]});
        let mut body = json.to_string().into_bytes();
        let len = body.len().to_string();
        body.extend_from_slice(sent);
        let error = client.call("POST", INFER, &[("inference-header-content-length", &len)], &body).error(400);
        assert!(error.contains(expected), "{error}");
    }
    assert!(running.post("/v2/models/none/infer", &right).error(404).contains("there are m"));
    running.get("/v2/none").error(404);
    running.get(INFER).error(405);
}

#[test]
fn requests_that_run_together_get_what_they_get_alone() {
    let fixture = Fixture::new("linear");
    let options = ModelOptions { max_batch: 8, batch_wait: Duration::from_millis(20), ..ModelOptions::default() };
    let running = Arc::new(Running::new(fixture.model(), options));
    let (shape, bytes) = fixture.input();
    let (name, width) = (port(&running, "inputs"), *shape.last().unwrap());
    let row_bytes = width * DType::F32.size();
    let rows: Vec<Vec<u8>> =
        (0..8usize).map(|seed| (0..row_bytes).map(|at| bytes[(at + seed * 4) % bytes.len()]).collect()).collect();
    let threads: Vec<_> = (rows.into_iter().enumerate())
        .map(|(index, row)| {
            let (running, name) = (running.clone(), name.clone());
            thread::spawn(move || {
                let count = 1 + index % 3;
                let input = row.repeat(count);
                let answer = binary(&mut running.connect(), &name, &[count, width], &input, json!({}));
                (count, input, output(&answer))
            })
        })
        .collect();
    for thread in threads {
        let (count, input, found) = thread.join().unwrap();
        assert_eq!(found, outputs_of(&fixture, None, &tensor(&[count, width], &input)));
    }
    let metrics = running.get("/inspector/state").ok()["models"][0]["metrics"].clone();
    assert!(metrics["run_seconds"]["count"].as_u64() < metrics["requests"]["ok"].as_u64(), "{metrics}");
    let status = running.get("/v2/models/m/weights/status").ok();
    assert_eq!(status["batching"], json!({"rows": 8, "bit_equal": true}));
}

#[test]
fn a_program_of_fixed_sizes_is_not_run_together() {
    let server = ServerOptions { address: ([127, 0, 0, 1], 0).into(), ..ServerOptions::default() };
    let mut server = Server::new(server).unwrap();
    let options = ModelOptions { max_batch: 4, ..ModelOptions::default() };
    server.add("m", Fixture::new("mlp_gelu").model(), options).unwrap();
    let error = server.run(|_, _| {}, async {}).unwrap_err().to_string();
    assert!(error.contains("cannot run requests together"), "{error}");
}
