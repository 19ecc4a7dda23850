//! Spans, as a collector gets them.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::mpsc,
    thread::{self, JoinHandle},
};

use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span};
use prost::Message;
use regraft_server::{ModelOptions, ServeError, Server, ServerOptions, TraceOptions};
use serde_json::json;

use crate::support::{Fixture, Running};

/// Takes batches of spans until one says that it is the last.
fn collector() -> (SocketAddr, JoinHandle<Vec<Span>>, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = mpsc::channel();
    let thread = thread::spawn(move || {
        let mut spans = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            if stopped.try_recv().is_ok() {
                return spans;
            }
            let mut bytes = Vec::new();
            let mut part = [0; 65536];
            let body = loop {
                let len = stream.read(&mut part).unwrap();
                bytes.extend_from_slice(&part[..len]);
                let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
                let head = String::from_utf8_lossy(&bytes[..at]).to_lowercase();
                assert!(head.starts_with("post /v1/traces http/1.1"), "{head}");
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                let end = at + 4 + length.parse::<usize>().unwrap();
                if bytes.len() >= end {
                    break bytes[at + 4..end].to_vec();
                }
            };
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
            spans.extend(request.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans));
        }
    });
    (address, thread, stop)
}

fn options(collector: String, sample: f64) -> ServerOptions {
    let traces = Some(TraceOptions { collector, sample });
    ServerOptions { address: ([127, 0, 0, 1], 0).into(), traces, ..ServerOptions::default() }
}

#[test]
fn a_collector_gets_requests_and_refits_below_their_callers() {
    let fixture = Fixture::new("linear");
    let (address, thread, stop) = collector();
    // Nothing is traced but what a caller traces.
    let options = options(format!("http://{address}/"), 0.0);
    let running = Running::with(options, fixture.model(), ModelOptions::default());
    let name = running.get("/v2/models/m").ok()["inputs"][0]["name"].clone();
    let body =
        |name: &str| json!({"inputs": [{"name": name, "shape": [1, 10], "datatype": "FP32", "data": vec![0; 10]}]});
    let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let caller = format!("00-{trace}-{span}-01");
    let post = |path: &str, content_type: &str, body: &[u8]| {
        let headers = [("content-type", content_type), ("traceparent", caller.as_str())];
        running.call("POST", path, &headers, body)
    };
    let sound = body(name.as_str().unwrap()).to_string();
    running.post("/v2/models/m/infer", &body("other")).error(400);
    post("/v2/models/m/infer", "application/json", sound.as_bytes()).ok();
    post("/v2/models/m/infer", "application/json", body("other").to_string().as_bytes()).error(400);
    post("/v2/models/m/weights/stage", "application/octet-stream", &fixture.weights(|_, _| ())).ok();
    post("/v2/models/m/weights/publish", "application/json", b"").ok();
    running.stop();
    stop.send(()).unwrap();
    drop(std::net::TcpStream::connect(address).unwrap());
    let spans = thread.join().unwrap();
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert!(spans.iter().all(|one| hex(&one.trace_id) == trace && one.start_time_unix_nano <= one.end_time_unix_nano));
    let [answered, refused] = named("infer m")[..] else { panic!("{spans:?}") };
    assert_eq!([&answered.parent_span_id, &refused.parent_span_id].map(|id| hex(id)), [span, span]);
    assert!(answered.attributes.iter().any(|a| a.key == "regraft.weights"));
    assert!(refused.status.as_ref().unwrap().message.contains("no input `other`"));
    for name in ["queue", "run"] {
        assert_eq!(named(name)[0].parent_span_id, answered.span_id, "{name}");
    }
    for (name, phase) in [("stage m", "compare"), ("publish m", "publish")] {
        assert_eq!(named(phase)[0].parent_span_id, named(name)[0].span_id, "{phase}");
    }
    assert_eq!(named("stage").len(), 1);
}

#[test]
fn requests_do_not_wait_for_a_collector() {
    // Nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = options(format!("http://{free}"), 1.0);
    let running = Running::with(options, Fixture::new("linear").model(), ModelOptions::default());
    running.post("/v2/models/m/infer", &json!({})).error(400);
    running.stop();
}

#[test]
fn a_collector_is_an_address() {
    for collector in ["localhost:4318", "https://localhost:4318", "http://localhost:4318/v1/traces", "", "http://"] {
        let mut server = Server::new(options(collector.to_owned(), 1.0)).unwrap();
        server.add("m", Fixture::new("linear").model(), ModelOptions::default()).unwrap();
        let outcome = server.run(|_, _| (), async {});
        assert!(matches!(outcome, Err(ServeError::Collector { .. })), "{collector}: {outcome:?}");
    }
}
