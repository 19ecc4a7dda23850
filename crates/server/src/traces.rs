//! Spans for a collector of OpenTelemetry: of requests that run models, with waiting and running, and of changes of weights, with
//! the phases of the refit. They are made once all is over, and sent by a thread of their own: no request waits for them.

use std::{
    borrow::Cow,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    HeaderMap, Request, Response, Uri,
    client::conn::http1,
    header::{HOST, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use opentelemetry::{
    Context, KeyValue, Value as Attribute,
    trace::{
        Span, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
        TracerProvider,
    },
};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use regraft::PhaseTimes;
use serde_json::Value;
use tokio::{net::TcpStream, runtime::Handle, time::timeout};

use crate::{
    ServeError, TraceOptions,
    error::Refusal,
    reply::{self, Reply},
    run::Timing,
};

/// How long a collector may take for a batch of spans.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of its answer is read.
const ANSWER: usize = 64 << 10;

/// Where spans go, if anywhere.
pub(crate) struct Traces(Option<Running>);

struct Running {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// How long each phase of a refit took, for the span of the request that asked for it.
#[derive(Clone, Debug)]
pub(crate) struct Phases(Vec<(&'static str, Duration)>);

impl Phases {
    /// Those in the report of an answer. A publication's report has the phases of staging too, which are long over.
    pub(crate) fn of(answer: &Value) -> Option<Phases> {
        let report = answer.get("report")?.get("phases_ms")?;
        let is_publication = answer.get("serving").is_some();
        let phases = PhaseTimes::default().named().map(|(name, _)| name);
        let own = phases.into_iter().filter(|name| ["publish", "retire"].contains(name) == is_publication);
        let time = |name| report.get(name).and_then(Value::as_f64).map(|ms| Duration::from_secs_f64(ms.max(0.0) / 1e3));
        Some(Phases(own.filter_map(|name| Some((name, time(name)?))).collect()))
    }
}

impl Traces {
    pub(crate) fn start(options: Option<&TraceOptions>, runtime: &Handle) -> Result<Traces, ServeError> {
        let Some(TraceOptions { collector, sample }) = options else { return Ok(Traces(None)) };
        let failed = |why: String| ServeError::Collector { collector: collector.clone(), why };
        let address: Uri = collector.parse().map_err(|error| failed(format!("{error}")))?;
        if address.scheme_str() != Some("http") || address.host().is_none() || !["", "/"].contains(&address.path()) {
            return Err(failed("it is not of the form `http://HOST:PORT`".to_owned()));
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", collector.trim_end_matches('/')))
            .with_http_client(Collector { runtime: runtime.clone() })
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("regraft");
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(*sample))))
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer("regraft");
        Ok(Traces(Some(Running { provider, tracer })))
    }

    /// Sends what was not sent yet.
    pub(crate) fn stop(&self) {
        if let Some(running) = &self.0 {
            // A missing collector is not an error of the request.
            let _ = running.provider.shutdown_with_timeout(Duration::from_secs(2));
        }
    }

    /// A request to run a model was answered or refused.
    pub(crate) fn request(
        &self,
        headers: &HeaderMap,
        model: &str,
        protocol: &'static str,
        begin: Instant,
        outcome: Result<&Reply, &Refusal>,
    ) {
        let Some(running) = &self.0 else { return };
        let mut span = running.begin(headers, format!("infer {model}"), begin, outcome);
        span.set_attribute(KeyValue::new("regraft.model", model.to_owned()));
        span.set_attribute(KeyValue::new("network.protocol.name", protocol));
        let timing = outcome.ok().and_then(|reply| reply.extensions().get::<Timing>().copied());
        let Some(timing) = timing else { return span.end() };
        span.set_attribute(KeyValue::new("regraft.rows", i64::try_from(timing.rows).unwrap_or(i64::MAX)));
        let parent = Context::new().with_remote_span_context(span.span_context().clone());
        running.child(&parent, "queue", timing.queued, timing.began);
        running.child(&parent, "run", timing.began, timing.ended);
        span.end();
    }

    /// Weights were staged, published or rolled back, or this was refused.
    pub(crate) fn weights(
        &self,
        headers: &HeaderMap,
        model: &str,
        what: &str,
        begin: Instant,
        outcome: Result<&Reply, &Refusal>,
    ) {
        let Some(running) = &self.0 else { return };
        let mut span = running.begin(headers, format!("{what} {model}"), begin, outcome);
        span.set_attribute(KeyValue::new("regraft.model", model.to_owned()));
        let phases = outcome.ok().and_then(|reply| reply.extensions().get::<Phases>());
        if let Some(Phases(phases)) = phases {
            let parent = Context::new().with_remote_span_context(span.span_context().clone());
            // One follows the other, and the last ends with the work.
            let all: Duration = phases.iter().map(|(_, time)| *time).sum();
            let mut at = Instant::now().checked_sub(all).unwrap_or(begin).max(begin);
            for (name, time) in phases {
                running.child(&parent, name, at, at + *time);
                at += *time;
            }
        }
        span.end();
    }
}

impl Running {
    /// A span that began at `begin`, below the caller's where it says which that is.
    fn begin(
        &self,
        headers: &HeaderMap,
        name: String,
        begin: Instant,
        outcome: Result<&Reply, &Refusal>,
    ) -> <SdkTracer as Tracer>::Span {
        let parent = match caller(headers) {
            Some(caller) => Context::new().with_remote_span_context(caller),
            None => Context::new(),
        };
        let builder = self.tracer.span_builder(name).with_kind(SpanKind::Server).with_start_time(at(begin));
        let mut span = self.tracer.build_with_context(builder, &parent);
        match outcome {
            Ok(reply) => {
                let told = |name: HeaderName| reply.headers().get(name).and_then(|value| value.to_str().ok());
                if let Some(number) = told(reply::GENERATION).and_then(|text| text.parse::<i64>().ok()) {
                    span.set_attribute(KeyValue::new("regraft.generation", number));
                }
                if let Some(digest) = told(reply::WEIGHTS) {
                    span.set_attribute(KeyValue::new("regraft.weights", Attribute::from(digest.to_owned())));
                }
            }
            Err(refusal) => {
                span.set_attribute(KeyValue::new("error.type", format!("{:?}", refusal.kind)));
                span.set_status(Status::error(refusal.to_line()));
            }
        }
        span
    }

    fn child(&self, parent: &Context, name: &'static str, begin: Instant, end: Instant) {
        let builder = self.tracer.span_builder(Cow::Borrowed(name)).with_start_time(at(begin));
        self.tracer.build_with_context(builder, parent).end_with_timestamp(at(end));
    }
}

/// The time of day at that moment.
fn at(moment: Instant) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(moment.elapsed()).unwrap_or(now)
}

/// The span that a request belongs to, from its header `traceparent`.
fn caller(headers: &HeaderMap) -> Option<SpanContext> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str, len: usize| {
        text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    if !is_hex(version, 2) || version == "ff" || !is_hex(trace, 32) || !is_hex(span, 16) || !is_hex(flags, 2) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & TraceFlags::SAMPLED.to_u8());
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    Some(SpanContext::new(trace, span, flags, true, TraceState::default())).filter(SpanContext::is_valid)
}

/// Sends requests to the collector, each on a connection of its own: a batch of spans comes every few seconds.
#[derive(Debug)]
struct Collector {
    runtime: Handle,
}

#[async_trait::async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // The exporter's thread is not one of the runtime's, so not even a clock is made here.
        self.runtime.spawn(async { timeout(PATIENCE, post(request)).await }).await??
    }
}

async fn post(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (mut head, body) = request.into_parts();
    let host = head.uri.host().ok_or("the collector's address has no host")?.to_owned();
    let port = head.uri.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    head.headers.insert(HOST, HeaderValue::from_str(&format!("{host}:{port}"))?);
    head.uri = head.uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
    let answer = sender.send_request(Request::from_parts(head, Full::new(body))).await?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
    connection.abort();
    Ok(Response::from_parts(head, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_told_as_the_standard_says() {
        let of = |text: &str| caller(&[("traceparent".parse().unwrap(), text.parse().unwrap())].into_iter().collect());
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let found = of(&format!("00-{trace}-{span}-01")).unwrap();
        assert_eq!((found.trace_id().to_string().as_str(), found.is_sampled()), (trace, true));
        assert!(!of(&format!("00-{trace}-{span}-00")).unwrap().is_sampled());
        // A later version may have more parts.
        assert!(of(&format!("01-{trace}-{span}-01-x")).is_some());
        for text in [
            String::new(),
            format!("ff-{trace}-{span}-01"),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-1"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{}-{span}-01", trace.to_uppercase()),
        ] {
            assert!(of(&text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_publication_has_phases_of_its_own() {
        let report = serde_json::json!({"phases_ms": {"stage": 2.0, "publish": 1.0, "check": 0.5}});
        let names = |answer: &Value| Phases::of(answer).unwrap().0.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        assert_eq!(names(&serde_json::json!({"staged": {}, "report": report})), ["check", "stage"]);
        assert_eq!(names(&serde_json::json!({"serving": {}, "report": report})), ["publish"]);
        assert!(Phases::of(&serde_json::json!({"serving": {}, "already": true})).is_none());
    }
}
