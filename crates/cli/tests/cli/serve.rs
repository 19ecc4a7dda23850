//! A server as a user starts it, asks it and stops it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Stdio},
};

use serde_json::Value;

use crate::support::{Array, Arrays, Fixture, Sandbox};

/// A server that is killed when a test fails.
struct Serving {
    child: Child,
    address: String,
}

impl Serving {
    fn start(sandbox: &Sandbox, args: &[&str]) -> Serving {
        let args = [&["serve", "--address", "127.0.0.1:0", "--json"], args].concat();
        let mut child = sandbox.command().args(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let address = told["listening"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
        Serving { child, address }
    }

    fn call(&self, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_default())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(unix)]
#[test]
fn serves_until_it_is_asked_to_stop() {
    let (fixture, sandbox) = (Fixture::new("linear"), Sandbox::new());
    sandbox.compile(&fixture, "model.rgf", "stripped");
    let weights = sandbox.weights("b.safetensors", &fixture.b());
    let mut serving =
        Serving::start(&sandbox, &["model.rgf", "--name", "m", "--weights", "b.safetensors", "--batch", "4"]);
    assert_eq!(serving.call("GET", "/v2/health/ready", b"").0, 200);
    let about = serving.call("GET", "/v2/models/m", b"").1;
    let input = &fixture.list("input")[0];
    let body = serde_json::json!({"inputs": [{
        "name": about["inputs"][0]["name"], "shape": input.shape, "datatype": "FP32", "data": input.floats()}]});
    let (status, answer) = serving.call("POST", "/v2/models/m/infer", body.to_string().as_bytes());
    assert_eq!(status, 200, "{answer}");
    let found: Vec<f32> = serde_json::from_value(answer["outputs"][0]["data"].clone()).unwrap();
    let expected = fixture.list("expected_b")[0].floats();
    assert!(found.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4), "{found:?}");

    let bytes = std::fs::read(weights).unwrap();
    assert_eq!(serving.call("POST", "/v2/models/m/weights/stage", &bytes).0, 200);
    let wrong: Arrays = [("none".to_owned(), Array::f32(&[1], &[0.0]))].into();
    let wrong = std::fs::read(sandbox.weights("wrong.safetensors", &wrong)).unwrap();
    let (status, error) = serving.call("POST", "/v2/models/m/weights/stage", &wrong);
    assert!(status == 422 && error["problems"].as_array().is_some_and(|all| all.len() > 1), "{error}");

    let pid = serving.child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(serving.child.wait().unwrap().success());
}

#[test]
fn what_cannot_be_served_is_said() {
    let (fixture, sandbox) = (Fixture::new("mlp_gelu"), Sandbox::new());
    sandbox.compile(&fixture, "model.rgf", "refittable");
    let error = sandbox.fails(&["serve", "model.rgf", "--address", "0.0.0.0:0"], 1);
    assert!(error.contains("no token is set") && error.contains("--infer-tokens"), "{error}");
    let error = sandbox.fails(&["serve", "model.rgf", "--address", "127.0.0.1:0", "--batch", "4"], 1);
    assert!(error.contains("cannot run requests together") && error.contains("without --batch"), "{error}");
    let error = sandbox.fails(&["serve", "model.rgf", "model.rgf"], 1);
    assert!(error.contains("two models are called `model`") && error.contains("NAME="), "{error}");
    assert!(sandbox.fails(&["serve", "a=model.rgf", "--weights", "b=w.safetensors"], 2).contains("for no engine"));
}
