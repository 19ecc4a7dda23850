//! Clients that mean no good, or too much: refused, in bounded memory and time.

use std::{
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use regraft_server::{ModelOptions, ServeError, Server, ServerOptions, Tokens};
use serde_json::json;

use crate::support::{Fixture, Running};

fn local() -> ServerOptions {
    ServerOptions { address: ([127, 0, 0, 1], 0).into(), ..ServerOptions::default() }
}

fn linear() -> regraft::Model {
    Fixture::new("linear").model()
}

#[test]
fn bodies_are_bounded() {
    let options = ServerOptions { max_body: 1000, ..local() };
    let running = Running::with(options, linear(), ModelOptions { max_upload: Some(1000), ..ModelOptions::default() });
    for path in ["/v2/models/m/infer", "/v2/models/m/weights/stage"] {
        running.call("POST", path, &[], &[b' '; 1001]).error(413);
        // In chunks, nothing is announced.
        let mut client = running.connect();
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n");
        let chunk = format!("190\r\n{}\r\n", "x".repeat(400));
        client.send(format!("{head}{}0\r\n\r\n", chunk.repeat(5)).as_bytes());
        client.receive().error(413);
    }
    // What is announced and does not fit into the budget takes no memory.
    let options = ServerOptions { max_memory: 8192, max_body: 1 << 20, ..local() };
    let running = Running::with(options, linear(), ModelOptions::default());
    let answer = running.call("POST", "/v2/models/m/infer", &[], &[b' '; 10_000]);
    answer.error(429);
    assert_eq!(answer.headers["retry-after"], "1");
}

#[test]
fn nonsense_is_refused() {
    let running = Running::new(linear(), ModelOptions::default());
    let deep = "[".repeat(100_000);
    for body in [
        &b"\xff\xfe"[..],
        b"{",
        b"[]",
        b"{\"inputs\": 1}",
        b"{\"inputs\": [{\"name\": \"\xff\"}]}",
        deep.as_bytes(),
        br#"{"inputs": [{"name": "input", "shape": [18446744073709551615, 18446744073709551615], "datatype": "FP32", "data": []}]}"#,
    ] {
        let answer = running.call("POST", "/v2/models/m/infer", &[], body);
        assert_eq!(answer.status, 400, "{}", String::from_utf8_lossy(&body[..body.len().min(80)]));
    }
    for len in ["-1", "x", "99999999999999999999", "1000"] {
        running.call("POST", "/v2/models/m/infer", &[("inference-header-content-length", len)], b"{}").error(400);
    }
    running.call("POST", "/v2/models/m/infer", &[("content-encoding", "gzip")], b"{}").error(415);
    // No HTTP at all: the connection is closed, and others go on.
    let mut client = running.connect();
    client.send(b"\x16\x03\x01 not http\r\n\r\n");
    while client.more() {}
    let mut half = running.connect();
    half.send(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{");
    drop(half);
    assert_eq!(running.get("/v2/health/ready").status, 200);
}

#[test]
fn rights_need_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let (runs, weights) = (dir.path().join("runs"), dir.path().join("weights"));
    fs::write(&runs, "token-to-run-models\n").unwrap();
    fs::write(&weights, "token-to-change-weights\n").unwrap();
    let mut tokens = Tokens::default();
    tokens.infer_file(&runs).unwrap();
    tokens.weights_file(&weights).unwrap();
    let running = Running::with(ServerOptions { tokens, ..local() }, linear(), ModelOptions::default());
    let status = "/v2/models/m/weights/status";
    let call = |path: &str, token: &str| running.call("GET", path, &[("authorization", token)], b"").status;
    assert_eq!(running.get("/v2/health/ready").status, 200);
    assert_eq!(running.get(status).headers["www-authenticate"], "Bearer");
    assert_eq!(running.get("/metrics").status, 401);
    assert_eq!(call(status, "Bearer token-to-run-models"), 403);
    assert_eq!(call(status, "Bearer token-to-change-weights"), 200);
    assert_eq!(call("/metrics", "Bearer token-to-run-models"), 200);
    let infer = |token: &str| running.call("POST", "/v2/models/m/infer", &[("authorization", token)], b"{}").status;
    assert_eq!((infer("Bearer token-to-change-weights"), infer("Bearer token-to-run-models")), (403, 400));
    // Others reach it, and anyone could.
    let open = ServerOptions { address: ([0, 0, 0, 0], 0).into(), ..ServerOptions::default() };
    assert!(matches!(Server::new(open), Err(ServeError::OpenToAll(_))));
}

#[test]
fn pages_of_other_sites_reach_nothing() {
    let running = Running::new(linear(), ModelOptions::default());
    let stage = "/v2/models/m/weights/stage";
    running.call("POST", stage, &[("origin", "https://evil.example"), ("content-type", "text/plain")], b"x").error(403);
}

#[test]
fn a_full_queue_asks_to_come_back_and_deadlines_hold() {
    let options = ModelOptions {
        queue: 1,
        max_batch: 8,
        // The first waits for others as long as they are too few.
        batch_wait: Duration::from_millis(400),
        ..ModelOptions::default()
    };
    let running = Arc::new(Running::new(linear(), options));
    let name = running.get("/v2/models/m").ok()["inputs"][0]["name"].clone();
    // Of another width of batch: it cannot join, and waits behind.
    let body = move |timeout: u64| {
        let input = json!({"name": name, "shape": [5, 10], "datatype": "FP32", "data": vec![0; 50]});
        json!({"parameters": {"timeout": timeout}, "inputs": [input]})
    };
    let post = |timeout: u64| {
        let (running, body) = (running.clone(), body(timeout));
        thread::spawn(move || running.post("/v2/models/m/infer", &body))
    };
    let first = post(0);
    thread::sleep(Duration::from_millis(100));
    let second = post(50_000);
    thread::sleep(Duration::from_millis(20));
    let third = running.post("/v2/models/m/infer", &body(0));
    third.error(429);
    assert!(third.headers["retry-after"].parse::<u64>().unwrap() >= 1);
    second.join().unwrap().error(504);
    first.join().unwrap().ok();
}

#[test]
fn a_stopped_server_answers_what_is_under_way() {
    let options = ModelOptions { max_batch: 8, batch_wait: Duration::from_millis(300), ..ModelOptions::default() };
    let mut running = Running::new(linear(), options);
    let name = running.get("/v2/models/m").ok()["inputs"][0]["name"].clone();
    let input = json!({"name": name, "shape": [1, 10], "datatype": "FP32", "data": vec![0; 10]});
    let body = json!({"inputs": [input]}).to_string();
    let mut client = running.connect();
    let head = format!("POST /v2/models/m/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    client.send(format!("{head}{body}").as_bytes());
    thread::sleep(Duration::from_millis(50));
    running.ask_to_stop();
    assert_eq!(client.receive().status, 200);
    let begin = Instant::now();
    running.stop();
    assert!(begin.elapsed() < Duration::from_secs(5));
}
