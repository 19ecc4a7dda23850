//! Requests of HTTP: rights, bodies, and what answers them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{
    HeaderMap, Request, StatusCode,
    body::{Body, Incoming},
    header::{CONTENT_ENCODING, CONTENT_TYPE},
    http::{request::Parts, uri::Authority},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    auth::Right,
    body::{self, Need, Reserved},
    error::{Kind, Refusal},
    grpc, metrics,
    reply::{self, Reply},
    request,
    route::{Route, query},
    served::{Served, VERSION},
    server::Shared,
    traces::Phases,
    upload::{Upload, too_large},
    weights::{BodyKind, StageRequest, blocking},
};

const OPENAPI: &str = include_str!("openapi.json");
const INSPECTOR: &str = include_str!("inspector.html");

/// What the server does beside the protocol itself.
pub(crate) const EXTENSIONS: [&str; 4] =
    ["binary_tensor_data", "model_repository", "regraft_weights", "regraft_adapters"];

/// JSON of more bytes is taken apart on a thread of its own.
const LONG: usize = 64 << 10;
/// Bodies that say what to do, and hold no tensors.
const SHORT: usize = 64 << 10;

/// Answers a request.
pub(crate) async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Reply {
    let outcome = dispatch(&shared, request).await;
    outcome.unwrap_or_else(|refusal| reply::refusal(&refusal))
}

async fn dispatch(shared: &Arc<Shared>, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let begin = Instant::now();
    let (head, body) = request.into_parts();
    if grpc::is_one(&head.headers) {
        return Ok(grpc::answer(shared, &head, body).await);
    }
    let route = Route::of(&head.method, head.uri.path())?;
    let right = match route {
        Route::Live | Route::Ready | Route::OpenApi | Route::Inspector => None,
        Route::Server | Route::Index | Route::Metrics | Route::Overview => Some(Right::Any),
        Route::Model(_) | Route::ModelReady(_) => Some(Right::Any),
        Route::Infer(_) => Some(Right::Infer),
        Route::Status(_) | Route::Stage(_) | Route::Discard(_) | Route::Publish(_) | Route::RollBack(_) => {
            Some(Right::Weights)
        }
    };
    if let Some(right) = right {
        check(shared, &head, right)?;
    }
    if head.headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(Refusal::new(Kind::MediaType, "compressed bodies are not taken; send the body as it is"));
    }
    let headers = &head.headers;
    match route {
        Route::Live => Ok(reply::json(&json!({"live": true}))),
        Route::Ready => Ok(health(json!({"ready": shared.is_ready()}))),
        Route::Server => Ok(reply::json(&about_server())),
        Route::Index => Ok(reply::json(&index(shared))),
        Route::Model(name) => Ok(reply::json(&shared.model(name)?.metadata())),
        Route::ModelReady(name) => {
            let is_ready = shared.model(name)?.is_ready() && !shared.is_stopping();
            Ok(health(json!({"name": name, "ready": is_ready})))
        }
        Route::Infer(name) => {
            let served = shared.model(name)?;
            let outcome = infer(shared, served, headers, body, begin).await;
            served.metrics.ended(begin.elapsed(), outcome.as_ref().map(|_| ()).map_err(|refusal| refusal.kind));
            shared.traces.request(headers, name, "http", begin, outcome.as_ref());
            outcome
        }
        Route::Status(name) => Ok(reply::json(&shared.model(name)?.status())),
        Route::Stage(name) => {
            let outcome = stage(shared, name, headers, head.uri.query().unwrap_or_default(), body).await;
            shared.traces.weights(headers, name, "stage", begin, outcome.as_ref());
            outcome
        }
        Route::Discard(name) => Ok(reply::json(&shared.model(name)?.discard())),
        Route::Publish(name) => {
            let outcome = publish(shared, name, body).await;
            shared.traces.weights(headers, name, "publish", begin, outcome.as_ref());
            outcome
        }
        Route::RollBack(name) => {
            let outcome = rollback(shared, name, body).await;
            shared.traces.weights(headers, name, "rollback", begin, outcome.as_ref());
            outcome
        }
        Route::Metrics => {
            let models: Vec<_> = shared.models().map(|m| (m.name.as_str(), &m.metrics, m.now())).collect();
            let text = metrics::prometheus(&models);
            Ok(reply::content(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text))
        }
        Route::OpenApi => Ok(reply::content(StatusCode::OK, "application/json", OPENAPI)),
        Route::Inspector => Ok(inspector()),
        Route::Overview => Ok(reply::json(&shared.overview())),
    }
}

/// Checks that a request has a right.
pub(crate) fn check(shared: &Shared, head: &Parts, right: Right) -> Result<(), Refusal> {
    shared.guard.check(&head.headers, head.uri.authority().map(Authority::as_str), right)
}

/// The page of the inspector: it may load nothing, and talk to this server only.
fn inspector() -> Reply {
    let mut reply = reply::content(StatusCode::OK, "text/html; charset=utf-8", INSPECTOR);
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    if let Ok(policy) = policy.parse() {
        reply.headers_mut().insert("content-security-policy", policy);
    }
    reply
}

/// The status says it, and the body again: KServe's client reads that.
fn health(about: Value) -> Reply {
    let is_ready = about["ready"] == true;
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    reply::content(status, "application/json", about.to_string())
}

/// What the protocol calls the metadata of a server.
fn about_server() -> Value {
    json!({"name": "regraft", "version": env!("CARGO_PKG_VERSION"), "extensions": EXTENSIONS})
}

fn index(shared: &Shared) -> Value {
    let one = |m: &Arc<Served>| {
        let (state, reason) = if m.is_ready() { ("READY", "") } else { ("UNAVAILABLE", "it has no weights") };
        json!({"name": m.name, "version": VERSION, "state": state, "reason": reason})
    };
    shared.models().map(one).collect()
}

async fn publish(shared: &Shared, name: &str, body: Incoming) -> Result<Reply, Refusal> {
    let served = shared.model(name)?;
    let expected = expected(body, shared.options.body_patience).await?;
    done(served, served.publish(expected).await?)
}

async fn rollback(shared: &Shared, name: &str, body: Incoming) -> Result<Reply, Refusal> {
    let served = shared.model(name)?;
    let expected = expected(body, shared.options.body_patience).await?;
    done(served, served.rollback(expected).await?)
}

fn done(served: &Served, value: Value) -> Result<Reply, Refusal> {
    let mut reply = reply::json(&value);
    if let Some(phases) = Phases::of(&value) {
        reply.extensions_mut().insert(phases);
    }
    if let Some(label) = served.serving() {
        reply::label(&mut reply, &label);
    }
    Ok(reply)
}

/// Runs a model.
async fn infer(
    shared: &Shared,
    served: &Arc<Served>,
    headers: &HeaderMap,
    body: Incoming,
    begin: Instant,
) -> Result<Reply, Refusal> {
    let json_len = match headers.get(reply::JSON_LENGTH) {
        None => None,
        Some(value) => {
            let len = value.to_str().ok().and_then(|text| text.parse::<usize>().ok());
            Some(len.ok_or_else(|| Refusal::bad("Inference-Header-Content-Length is a number of bytes"))?)
        }
    };
    let (bytes, _reserved) = read(shared, body, json_len).await?;
    let json_bytes = json_len.unwrap_or(bytes.len());
    let parsed = match json_bytes > LONG {
        true => {
            let (served, bytes) = (served.clone(), bytes.clone());
            blocking(move || request::parse(&bytes, json_len, &served.signature)).await?
        }
        false => request::parse(&bytes, json_len, &served.signature)?,
    };
    let answer = served.infer(parsed.request, begin, shared.options.timeout).await?;
    let (id, outputs, timing) = (parsed.id, parsed.outputs, answer.timing);
    let in_json = outputs.iter().filter(|o| !o.binary).map(|o| answer.outputs[o.index].bytes.len()).sum::<usize>();
    let mut reply = match in_json > LONG {
        true => {
            let served = served.clone();
            blocking(move || reply::inferred(&served, id.as_deref(), &outputs, &answer)).await?
        }
        false => reply::inferred(served, id.as_deref(), &outputs, &answer)?,
    };
    reply.extensions_mut().insert(timing);
    Ok(reply)
}

/// Reads the body of a request to run a model, with memory set aside for it and for the tensors that are made of it: as much
/// again for bytes, and 4 times as much for numbers in JSON.
async fn read(shared: &Shared, body: Incoming, json_len: Option<usize>) -> Result<(bytes::Bytes, Reserved), Refusal> {
    let limit = shared.options.max_body;
    let need = match json_len {
        None => Need { per_byte: 5, more: 0 },
        Some(len) => Need { per_byte: 2, more: len.min(limit).saturating_mul(3) },
    };
    body::read_within(body, limit, &shared.budget, need, shared.options.body_patience).await
}

/// Stages what a request brings: JSON that names files and adapters, or a body of tensors with what is to be done in the query.
async fn stage(shared: &Shared, name: &str, headers: &HeaderMap, text: &str, body: Incoming) -> Result<Reply, Refusal> {
    let (served, patience) = (shared.model(name)?, shared.options.body_patience);
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_json = content_type.split(';').next().is_some_and(|kind| kind.trim() == "application/json");
    let (request, upload, turn) = if is_json {
        let bytes = body::read(body, SHORT, patience).await?;
        let request: StageRequest =
            serde_json::from_slice(&bytes).map_err(|error| Refusal::bad(format!("the body: {error}")))?;
        (request, None, served.turn().await)
    } else {
        let request = of_query(text)?;
        if body.size_hint().lower() > served.max_upload {
            return Err(too_large(served.max_upload));
        }
        let turn = served.turn().await;
        let upload = Upload::create(&served.options.uploads, served.max_upload)?;
        (request, Some(body::read_to(body, upload, patience).await?), turn)
    };
    done(served, served.stage(turn, request, upload).await?)
}

/// A request to stage a body, from the query of its URL.
pub(crate) fn of_query(text: &str) -> Result<StageRequest, Refusal> {
    let mut request = StageRequest::default();
    for (name, value) in query(text) {
        let wrong = |expected: &str| Refusal::bad(format!("`{name}` in the query is {expected}, found `{value}`"));
        let flag = || value.parse::<bool>().map_err(|_| wrong("true or false"));
        let number = || value.parse::<f64>().map_err(|_| wrong("a number"));
        match name {
            "kind" => {
                request.kind = match value {
                    "weights" => BodyKind::Weights,
                    "adapter" => BodyKind::Adapter,
                    "delta" => BodyKind::Delta,
                    _ => return Err(wrong("weights, adapter or delta")),
                }
            }
            "partial" => request.partial = flag()?,
            "ignore_unknown" => request.ignore_unknown = flag()?,
            "reject_non_finite" => request.reject_non_finite = flag()?,
            "name" => request.name = Some(value.to_owned()),
            "digest" => request.digest = Some(value.to_owned()),
            "scale" => request.scale = Some(number()?),
            "alpha" => request.alpha = Some(number()?),
            _ => return Err(Refusal::bad(format!("`{name}` in the query is not known"))),
        }
    }
    Ok(request)
}

/// The digest that a request to publish or to roll back expects: `{"digest": "..."}`, or nothing.
async fn expected(body: Incoming, patience: Duration) -> Result<Option<String>, Refusal> {
    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Expected {
        digest: Option<String>,
    }
    let bytes = body::read(body, SHORT, patience).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let expected: Expected = serde_json::from_slice(&bytes)
        .map_err(|error| Refusal::bad(format!("the body is {{\"digest\": \"...\"}} or empty: {error}")))?;
    Ok(expected.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_say_what_a_body_is() {
        let request = of_query("kind=adapter&name=style&scale=0.5&partial").unwrap();
        assert_eq!((request.kind, request.scale, request.partial), (BodyKind::Adapter, Some(0.5), true));
        for text in ["kind=delta2", "scale=x", "partial=1", "file=x"] {
            assert!(of_query(text).is_err(), "{text}");
        }
    }
}
