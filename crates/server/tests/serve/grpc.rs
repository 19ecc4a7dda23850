//! Calls of gRPC, message by message.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use regraft_server::ModelOptions;
use tokio::net::TcpStream;

use crate::{
    infer::{floats, tensor},
    support::{Fixture, Running, outputs_of},
};

/// A field of a message whose content has a length.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2][..], &varint(content.len() as u64), content].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A call: its headers, its message, and the trailers where there are.
fn call(running: &Running, method: &str, message: &[u8]) -> (HeaderMap, Vec<u8>, HeaderMap) {
    let framed = [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat();
    call_framed(running, method, framed)
}

fn call_framed(running: &Running, method: &str, framed: Vec<u8>) -> (HeaderMap, Vec<u8>, HeaderMap) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = TcpStream::connect(running.address).await.unwrap();
        let opened = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let (mut sender, connection): (http2::SendRequest<Full<Bytes>>, _) = opened;
        tokio::spawn(connection);
        let target = format!("http://localhost/inference.GRPCInferenceService/{method}");
        let request = Request::post(target).header("content-type", "application/grpc").header("te", "trailers");
        let answer = sender.send_request(request.body(Full::from(framed)).unwrap()).await.unwrap();
        let headers = answer.headers().clone();
        let body = answer.into_body().collect().await.unwrap();
        let trailers = body.trailers().cloned().unwrap_or_default();
        (headers, body.to_bytes().to_vec(), trailers)
    })
}

fn status(running: &Running, method: &str, message: &[u8]) -> String {
    let (headers, _, trailers) = call(running, method, message);
    let status = headers.get("grpc-status").or(trailers.get("grpc-status")).unwrap();
    status.to_str().unwrap().to_owned()
}

#[test]
fn a_call_gives_what_the_model_gives() {
    let fixture = Fixture::new("linear");
    let running = Running::new(fixture.model(), ModelOptions::default());
    let (shape, bytes) = fixture.input();
    let expected = outputs_of(&fixture, None, &tensor(&shape, &bytes));
    let name = running.get("/v2/models/m").ok()["inputs"][0]["name"].as_str().unwrap().to_owned();
    let sizes: Vec<u8> = shape.iter().flat_map(|&size| varint(size as u64)).collect();
    let input =
        |contents: &[u8]| [field(1, name.as_bytes()), field(2, b"FP32"), field(3, &sizes), contents.to_vec()].concat();
    let raw = [field(1, b"m"), field(3, b"id-7"), field(5, &input(b"")), field(7, &bytes)].concat();
    let numbers = field(5, &field(6, &floats(&bytes).iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()));
    let one_by_one = [field(1, b"m"), field(3, b"id-7"), field(5, &input(&numbers))].concat();
    for message in [&raw, &one_by_one] {
        let (headers, body, trailers) = call(&running, "ModelInfer", message);
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(
            (headers["content-type"].as_bytes(), headers["regraft-generation"].as_bytes()),
            (&b"application/grpc"[..], &b"0"[..])
        );
        assert!(body.windows(expected.len()).any(|part| part == expected));
        assert!(body.windows(4).any(|part| part == b"id-7"));
    }
    let [both, neither] = [[raw.clone(), field(7, &bytes)].concat(), [field(1, b"m"), field(5, &input(b""))].concat()];
    let short = [field(1, b"m"), field(5, &input(b"")), field(7, &bytes[4..])].concat();
    // A name that is not UTF-8, a length beyond the end, sizes that overflow together.
    let bad_utf_8 = [field(1, b"\xff\xfe"), field(5, &input(b""))].concat();
    let beyond = [&[5 << 3 | 2][..], &varint(u64::MAX)].concat();
    let huge: Vec<u8> = [i64::MAX as u64, i64::MAX as u64].into_iter().flat_map(varint).collect();
    let huge = [field(1, name.as_bytes()), field(2, b"FP32"), field(3, &huge)].concat();
    let huge = [field(1, b"m"), field(5, &huge), field(7, &bytes)].concat();
    for message in [&both, &neither, &short, &field(1, b"m"), &vec![0xff; 40], &bad_utf_8, &beyond, &huge] {
        assert_eq!(status(&running, "ModelInfer", message), "3");
    }
    assert_eq!(status(&running, "ModelInfer", &field(1, b"none")), "5");
    assert_eq!(status(&running, "ModelInfer", &[field(1, b"m"), field(2, b"2")].concat()), "5");
}

#[test]
fn health_metadata_and_refusals() {
    let running = Running::new(Fixture::new("linear").model(), ModelOptions::default());
    for method in ["ServerLive", "ServerReady"] {
        assert_eq!(call(&running, method, b"").1, [0, 0, 0, 0, 2, 8, 1], "{method}");
    }
    assert_eq!(call(&running, "ModelReady", &field(1, b"m")).1, [0, 0, 0, 0, 2, 8, 1]);
    let about = call(&running, "ModelMetadata", &field(1, b"m")).1;
    assert!(about.windows(4).any(|part| part == b"FP32"));
    assert_eq!(status(&running, "ServerMetadata", b""), "0");
    assert_eq!(status(&running, "RepositoryIndex", b""), "0");
    assert_eq!(status(&running, "ModelReady", &field(1, b"none")), "5");
    assert_eq!(status(&running, "ModelStreamInfer", b""), "12");
    for framed in [vec![], vec![1, 0, 0, 0, 0], vec![0, 0, 0, 0, 9, 1]] {
        let (headers, ..) = call_framed(&running, "ModelInfer", framed);
        assert_ne!(headers["grpc-status"], "0");
    }
}
