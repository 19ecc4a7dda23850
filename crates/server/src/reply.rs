//! Answers as HTTP has them.

use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    body::Pieces,
    dtype,
    error::{Kind, Refusal},
    generations::Label,
    numbers,
    request::Asked,
    run::Answer,
    served::{Served, VERSION},
};

/// Number and digest of the generation that an answer was computed from.
pub(crate) const GENERATION: HeaderName = HeaderName::from_static("regraft-generation");
pub(crate) const WEIGHTS: HeaderName = HeaderName::from_static("regraft-weights");
/// Length of the JSON before the bytes of tensors.
pub(crate) const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

pub(crate) type Reply = Response<Pieces>;

/// A body of this type.
pub(crate) fn content(status: StatusCode, content_type: &'static str, body: impl Into<Pieces>) -> Reply {
    let mut reply = Response::new(body.into());
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    reply
}

pub(crate) fn json(value: &Value) -> Reply {
    content(StatusCode::OK, "application/json", value.to_string())
}

/// The error object of the protocol.
pub(crate) fn refusal(refusal: &Refusal) -> Reply {
    let mut reply = content(refusal.kind.status(), "application/json", refusal.to_json().to_string());
    if let Some(time) = refusal.retry_after {
        let seconds = (time.as_secs_f64().ceil() as u64).clamp(1, 600);
        reply.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    match refusal.kind {
        Kind::Unauthorized => _ = reply.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
        Kind::Method => _ = reply.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST")),
        _ => {}
    }
    reply
}

/// Says which generation an answer is of.
pub(crate) fn label(reply: &mut Reply, label: &Label) {
    reply.headers_mut().insert(GENERATION, label.number.into());
    if let Ok(digest) = HeaderValue::from_str(&label.digest.to_string()) {
        reply.headers_mut().insert(WEIGHTS, digest);
    }
}

/// The object of an answer, without its outputs.
#[derive(Serialize)]
struct Head<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    parameters: HeadParameters<'a>,
}

#[derive(Serialize)]
struct HeadParameters<'a> {
    generation: u64,
    weights: &'a str,
}

/// The object of an output, without its data.
#[derive(Serialize)]
struct About<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<OutputParameters>,
}

#[derive(Serialize)]
struct OutputParameters {
    binary_data_size: usize,
}

fn written(value: &impl Serialize, text: &mut Vec<u8>) {
    serde_json::to_writer(text, value).expect("names and numbers are JSON, and memory takes them");
}

/// The outputs that were asked for, as JSON or as bytes after it.
pub(crate) fn inferred(served: &Served, id: Option<&str>, asked: &[Asked], answer: &Answer) -> Result<Reply, Refusal> {
    let mut pieces: Vec<Bytes> = Vec::new();
    let weights = answer.label.digest.to_string();
    let parameters = HeadParameters { generation: answer.label.number, weights: &weights };
    let mut text = Vec::with_capacity(512);
    written(&Head { model_name: &served.name, model_version: VERSION, id, parameters }, &mut text);
    // The outputs go into the same object: their numbers are written as they are read, not as values one by one.
    text.pop();
    text.extend_from_slice(b",\"outputs\":[");
    for (position, asked) in asked.iter().enumerate() {
        let output = &answer.outputs[asked.index];
        let name = &served.signature.outputs[asked.index].name;
        let parameters = asked.binary.then(|| OutputParameters { binary_data_size: output.bytes.len() });
        text.extend_from_slice(if position > 0 { b"," } else { b"" });
        written(&About { name, datatype: dtype::name_of(output.dtype), shape: &output.shape, parameters }, &mut text);
        if asked.binary {
            pieces.push(output.bytes.clone());
            continue;
        }
        text.pop();
        text.extend_from_slice(b",\"data\":");
        numbers::write(&output.bytes, output.dtype, &mut text).map_err(|()| {
            Refusal::bad(format!("output `{name}` has values that are infinite or not numbers, which JSON cannot hold"))
                .help("ask for it with the parameter `binary_data`")
        })?;
        text.push(b'}');
    }
    text.extend_from_slice(b"]}");
    let json_len = text.len();
    let is_binary = asked.iter().any(|asked| asked.binary);
    let content_type = if is_binary { "application/octet-stream" } else { "application/json" };
    pieces.insert(0, text.into());
    let mut reply = content(StatusCode::OK, content_type, Pieces::new(pieces));
    if is_binary {
        reply.headers_mut().insert(JSON_LENGTH, json_len.into());
    }
    label(&mut reply, &answer.label);
    Ok(reply)
}
