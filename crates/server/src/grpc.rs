//! The open inference protocol over gRPC, on the same port: unary calls, spelled out over HTTP/2.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hyper::{
    HeaderMap, Response,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    http::request::Parts,
};
use prost::Message;
use regraft::{AlignedVec, DType, Tensor};
use serde_json::{Map, Value};

use crate::{
    auth::Right,
    body::{self, Need, Pieces},
    dtype,
    error::{Kind, Refusal},
    http,
    proto::{
        Choice, Empty, InferInputTensor, InferOutputTensor, InferParameter, InferTensorContents, ModelIndex,
        ModelInferRequest, ModelInferResponse, ModelMetadataResponse, ModelRequest, RAW_OUTPUT_CONTENTS,
        RepositoryIndexResponse, ServerMetadataResponse, TensorMetadata, Yes,
    },
    reply::{self, Reply},
    request::{complete, dtype_of, from_bytes, port_index, shape_of, with_parameters},
    run::Answer,
    served::{InferRequest, Served, VERSION},
    server::Shared,
    signature::{Port, Signature},
};

/// Flag and length before a message.
const PREFIX: usize = 5;
/// Contents of so many bytes are copied to what stands before them: less work than a frame of their own.
const COPIED: usize = 8 << 10;

/// Whether a request is one of gRPC.
pub(crate) fn is_one(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    content_type
        .is_some_and(|value| value.starts_with(b"application/grpc") && !value.starts_with(b"application/grpc-web"))
}

/// Answers a call.
pub(crate) async fn answer(shared: &Arc<Shared>, head: &Parts, body: Incoming) -> Reply {
    let outcome = dispatch(shared, head, body).await;
    outcome.unwrap_or_else(|refusal| refused(&refusal))
}

async fn dispatch(shared: &Arc<Shared>, head: &Parts, body: Incoming) -> Result<Reply, Refusal> {
    let begin = Instant::now();
    let path = head.uri.path().strip_prefix("/inference.GRPCInferenceService/");
    let method = path.ok_or_else(|| Refusal::new(Kind::Method, "only inference.GRPCInferenceService is served"))?;
    match method {
        "ServerLive" | "ServerReady" => {}
        "ModelInfer" => http::check(shared, head, Right::Infer)?,
        _ => http::check(shared, head, Right::Any)?,
    }
    // Numbers that are sent one by one may take a byte each there, and 8 here.
    let need = Need { per_byte: 10, more: 0 };
    let (body, _reserved) =
        body::read_within(body, shared.options.max_body, &shared.budget, need, shared.options.body_patience).await?;
    let message = unframed(body)?;
    match method {
        "ServerLive" => Ok(done(&Yes { yes: true })),
        "ServerReady" => Ok(done(&Yes { yes: shared.is_ready() })),
        "ServerMetadata" => {
            decoded::<Empty>(message)?;
            Ok(done(&ServerMetadataResponse {
                name: "regraft".into(),
                version: env!("CARGO_PKG_VERSION").into(),
                extensions: http::EXTENSIONS.map(str::to_owned).into(),
            }))
        }
        "ModelReady" => {
            let served = model(shared, &decoded::<ModelRequest>(message)?)?;
            Ok(done(&Yes { yes: served.is_ready() && !shared.is_stopping() }))
        }
        "ModelMetadata" => Ok(done(&metadata(model(shared, &decoded::<ModelRequest>(message)?)?))),
        "RepositoryIndex" => {
            let model = |m: &Arc<Served>| {
                let (name, version) = (m.name.clone(), VERSION.into());
                let state = if m.is_ready() { "READY" } else { "UNAVAILABLE" };
                ModelIndex { name, version, state: state.into(), reason: String::new() }
            };
            Ok(done(&RepositoryIndexResponse { models: shared.models().map(model).collect() }))
        }
        "ModelInfer" => {
            let request: ModelInferRequest = decoded(message)?;
            let named = ModelRequest { name: request.model_name.clone(), version: request.model_version.clone() };
            let served = model(shared, &named)?;
            let limit =
                timeout(&head.headers).map_or(shared.options.timeout, |asked| asked.min(shared.options.timeout));
            let outcome = infer(served, request, begin, limit).await;
            served.metrics.ended(begin.elapsed(), outcome.as_ref().map(|_| ()).map_err(|refusal| refusal.kind));
            shared.traces.request(&head.headers, &served.name, "grpc", begin, outcome.as_ref());
            outcome
        }
        _ => Err(Refusal::new(Kind::Method, format!("the method {method} is not served"))),
    }
}

fn model<'s>(shared: &'s Shared, request: &ModelRequest) -> Result<&'s Arc<Served>, Refusal> {
    if !["", VERSION].contains(&request.version.as_str()) {
        return Err(Refusal::new(Kind::NotFound, format!("there is no version `{}`", request.version))
            .help("each model has the version 1; its weights have generations"));
    }
    shared.model(&request.name)
}

fn metadata(served: &Served) -> ModelMetadataResponse {
    let port = |port: &Port| TensorMetadata {
        name: port.name.clone(),
        datatype: dtype::name_of(port.dtype()).into(),
        shape: port.shape(),
    };
    ModelMetadataResponse {
        name: served.name.clone(),
        versions: vec![VERSION.into()],
        platform: "regraft_rgf".into(),
        inputs: served.signature.inputs.iter().map(port).collect(),
        outputs: served.signature.outputs.iter().map(port).collect(),
    }
}

async fn infer(
    served: &Arc<Served>,
    request: ModelInferRequest,
    begin: Instant,
    limit: Duration,
) -> Result<Reply, Refusal> {
    let (parsed, asked) = read(&request, &served.signature)?;
    let answer = served.infer(parsed, begin, limit).await?;
    let message = response(served, request.id, &asked, &answer)?;
    let mut reply = done_with(&message, asked.iter().map(|&index| &answer.outputs[index].bytes));
    reply::label(&mut reply, &answer.label);
    reply.extensions_mut().insert(answer.timing);
    Ok(reply)
}

/// What a message asks for: the run, and which of the outputs.
pub(crate) fn read(request: &ModelInferRequest, signature: &Signature) -> Result<(InferRequest, Vec<usize>), Refusal> {
    let inputs = inputs(request, signature)?;
    let names = signature.outputs.iter().map(|port| port.name.as_str());
    let mut asked: Vec<usize> = Vec::new();
    for output in &request.outputs {
        let index = port_index(&output.name, names.clone(), "output")?;
        if output.parameters.contains_key("classification") {
            return Err(Refusal::bad("classifications are not served; ask for the output itself"));
        }
        if asked.contains(&index) {
            return Err(Refusal::bad(format!("output `{}` is asked for twice", output.name)));
        }
        asked.push(index);
    }
    if asked.is_empty() {
        asked = (0..signature.outputs.len()).collect();
    }
    let parameters: Map<String, Value> = request.parameters.iter().filter_map(parameter).collect();
    Ok((with_parameters(inputs, &parameters)?, asked))
}

fn response(served: &Served, id: String, asked: &[usize], answer: &Answer) -> Result<ModelInferResponse, Refusal> {
    let output = |&index: &usize| {
        let output = &answer.outputs[index];
        let shape = output.shape.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect();
        let name = served.signature.outputs[index].name.clone();
        InferOutputTensor { name, datatype: dtype::name_of(output.dtype).into(), shape }
    };
    let value = |choice| InferParameter { choice: Some(choice) };
    let number = i64::try_from(answer.label.number).unwrap_or(i64::MAX);
    let bytes: usize = asked.iter().map(|&index| answer.outputs[index].bytes.len()).sum();
    if u32::try_from(bytes.saturating_add(1 << 20)).is_err() {
        return Err(Refusal::new(Kind::TooLarge, "the outputs do not fit into a message of gRPC; ask over HTTP"));
    }
    Ok(ModelInferResponse {
        model_name: served.name.clone(),
        model_version: VERSION.into(),
        id,
        parameters: [
            ("generation".to_owned(), value(Choice::Int64(number))),
            ("weights".to_owned(), value(Choice::String(answer.label.digest.to_string()))),
        ]
        .into(),
        outputs: asked.iter().map(output).collect(),
    })
}

fn parameter((name, parameter): (&String, &InferParameter)) -> Option<(String, Value)> {
    let value = match parameter.choice.as_ref()? {
        Choice::Bool(value) => (*value).into(),
        Choice::Int64(value) => (*value).into(),
        Choice::String(value) => value.as_str().into(),
        Choice::Double(value) => (*value).into(),
        Choice::Uint64(value) => (*value).into(),
    };
    Some((name.clone(), value))
}

/// The inputs in the program's order: all as bytes, or all as numbers.
fn inputs(request: &ModelInferRequest, signature: &Signature) -> Result<Vec<Tensor>, Refusal> {
    let raw = &request.raw_input_contents;
    if !raw.is_empty() && raw.len() != request.inputs.len() {
        let why = format!("there are {} inputs and {} raw_input_contents", request.inputs.len(), raw.len());
        return Err(Refusal::bad(why));
    }
    let mut inputs: Vec<Option<Tensor>> = vec![None; signature.inputs.len()];
    for (position, input) in request.inputs.iter().enumerate() {
        let index = port_index(&input.name, signature.inputs.iter().map(|port| port.name.as_str()), "input")?;
        if inputs[index].is_some() {
            return Err(Refusal::bad(format!("input `{}` is given twice", input.name)));
        }
        inputs[index] = Some(tensor(input, raw.get(position))?);
    }
    complete(inputs, signature)
}

fn tensor(input: &InferInputTensor, raw: Option<&Bytes>) -> Result<Tensor, Refusal> {
    let name = &input.name;
    let (dtype, shape) = (dtype_of(name, &input.datatype)?, shape_of(name, &input.shape)?);
    match (raw, &input.contents) {
        (Some(bytes), None) => from_bytes(name, dtype, shape, bytes),
        (None, Some(contents)) => from_bytes(name, dtype, shape, numbers(name, dtype, contents)?.bytes()),
        (Some(_), Some(_)) => Err(Refusal::bad(format!("input `{name}` has both contents and raw_input_contents"))),
        (None, None) => Err(Refusal::bad(format!("input `{name}` has neither contents nor raw_input_contents"))),
    }
}

/// The bytes of numbers that were sent one by one.
fn numbers(name: &str, dtype: DType, contents: &InferTensorContents) -> Result<AlignedVec, Refusal> {
    let outside = || Refusal::bad(format!("input `{name}` has a number that is not a valid {}", dtype::name_of(dtype)));
    macro_rules! narrow {
        ($values:expr, $t:ty) => {{
            let all = $values.iter().map(|&value| <$t>::try_from(value).map_err(|_| outside()));
            AlignedVec::from_slice(&all.collect::<Result<Vec<$t>, _>>()?)
        }};
    }
    Ok(match dtype {
        DType::Bool => AlignedVec::from_slice(&contents.bools.iter().map(|&value| u8::from(value)).collect::<Vec<_>>()),
        DType::I8 => narrow!(contents.ints, i8),
        DType::I16 => narrow!(contents.ints, i16),
        DType::I32 => AlignedVec::from_slice(&contents.ints),
        DType::I64 => AlignedVec::from_slice(&contents.int64s),
        DType::U8 => narrow!(contents.uints, u8),
        DType::U16 => narrow!(contents.uints, u16),
        DType::U32 => AlignedVec::from_slice(&contents.uints),
        DType::U64 => AlignedVec::from_slice(&contents.uint64s),
        DType::F32 => AlignedVec::from_slice(&contents.fp32s),
        DType::F64 => AlignedVec::from_slice(&contents.fp64s),
        DType::F16 | DType::BF16 => {
            let why = format!("input `{name}`: {} is sent in raw_input_contents", dtype::name_of(dtype));
            return Err(Refusal::bad(why));
        }
    })
}

/// The message in the body of a unary call.
pub(crate) fn unframed(mut body: Bytes) -> Result<Bytes, Refusal> {
    if body.len() < PREFIX {
        return Err(Refusal::bad("the call has no message"));
    }
    let compressed = body.get_u8();
    let len = body.get_u32() as usize;
    if compressed != 0 {
        return Err(Refusal::new(Kind::MediaType, "compressed messages are not taken"));
    }
    if len != body.len() {
        return Err(Refusal::bad(format!("the message has {} bytes, and says {len}", body.len())));
    }
    Ok(body)
}

pub(crate) fn decoded<M: Message + Default>(message: Bytes) -> Result<M, Refusal> {
    M::decode(message).map_err(|error| Refusal::bad(format!("the message cannot be read: {error}")))
}

/// `100m` is 100 milliseconds.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok().filter(|_| number.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

fn reply_with(pieces: Pieces) -> Reply {
    let mut reply = Response::new(pieces);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    reply
}

/// An answer, and that all went well after it.
fn done(message: &impl Message) -> Reply {
    done_with(message, [].iter())
}

/// An answer whose last field is the contents of tensors.
fn done_with<'b>(message: &impl Message, contents: impl Iterator<Item = &'b Bytes> + Clone) -> Reply {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    reply_with(Pieces::new(framed(message, contents)).with_trailers(trailers))
}

/// A message with its frame. Long contents are pieces of their own, not copied.
fn framed<'b>(message: &impl Message, contents: impl Iterator<Item = &'b Bytes> + Clone) -> Vec<Bytes> {
    let field = |content: &Bytes| 1 + prost::length_delimiter_len(content.len()) + content.len();
    let len = message.encoded_len() + contents.clone().map(field).sum::<usize>();
    let mut bytes = BytesMut::with_capacity((PREFIX + len).min(2 * COPIED));
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    message.encode(&mut bytes).expect("a BytesMut grows");
    let mut pieces = Vec::new();
    for content in contents {
        bytes.put_u8(RAW_OUTPUT_CONTENTS);
        prost::encode_length_delimiter(content.len(), &mut bytes).expect("a BytesMut grows");
        if content.len() <= COPIED {
            bytes.extend_from_slice(content);
        } else {
            pieces.extend([bytes.split().freeze(), content.clone()]);
        }
    }
    pieces.push(bytes.freeze());
    pieces
}

/// No answer, and why.
fn refused(refusal: &Refusal) -> Reply {
    let code: u16 = match refusal.kind {
        Kind::BadRequest | Kind::Misfit => 3,
        Kind::Deadline | Kind::SlowBody => 4,
        Kind::NotFound => 5,
        Kind::Forbidden => 7,
        Kind::TooLarge | Kind::Memory => 8,
        Kind::Conflict => 9,
        Kind::Method | Kind::MediaType => 12,
        Kind::Internal => 13,
        Kind::Overloaded | Kind::Unavailable => 14,
        Kind::Unauthorized => 16,
    };
    let mut reply = reply_with(Pieces::default());
    let headers = reply.headers_mut();
    headers.insert("grpc-status", code.into());
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(&refusal.to_line())) {
        headers.insert("grpc-message", message);
    }
    if let Some(time) = refusal.retry_after {
        let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).clamp(1, 600_000);
        headers.insert("grpc-retry-pushback-ms", milliseconds.into());
    }
    reply
}

/// As much of a text as goes into a header.
fn percent_encoded(text: &str) -> String {
    const LONGEST: usize = 4000;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes().take(LONGEST) {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_framed() {
        let framed = Bytes::from_static(b"\0\0\0\0\x02ab");
        assert_eq!(unframed(framed).unwrap(), "ab");
        for body in [&b"\0\0\0\0"[..], b"\x01\0\0\0\x02ab", b"\0\0\0\0\x03ab", b"\0\xff\xff\xff\xffab"] {
            assert!(unframed(Bytes::from_static(body)).is_err(), "{body:?}");
        }
    }

    #[test]
    fn contents_stand_behind_their_message() {
        /// As clients read it.
        #[derive(Clone, PartialEq, Message)]
        struct Read {
            #[prost(string, tag = "3")]
            id: String,
            #[prost(bytes = "bytes", repeated, tag = "6")]
            raw_output_contents: Vec<Bytes>,
        }
        let message = ModelInferResponse { id: "7".into(), ..ModelInferResponse::default() };
        let contents = [0, 1, COPIED, COPIED + 1, 300_000].map(|len| Bytes::from(vec![len as u8; len]));
        let pieces = framed(&message, contents.iter());
        let is_shared = |content: &Bytes| pieces.iter().any(|piece| piece.as_ptr() == content.as_ptr());
        assert_eq!(contents.each_ref().map(is_shared), [false, false, false, true, true]);
        let read: Read = decoded(unframed(Bytes::from(pieces.concat())).unwrap()).unwrap();
        assert_eq!(read, Read { id: "7".into(), raw_output_contents: contents.to_vec() });
    }

    #[test]
    fn timeouts_have_units() {
        let of =
            |text: &str| timeout(&[("grpc-timeout".parse().unwrap(), text.parse().unwrap())].into_iter().collect());
        assert_eq!(of("100m"), Some(Duration::from_millis(100)));
        assert_eq!(of("2S"), Some(Duration::from_secs(2)));
        for text in ["", "m", "100", "999999999S", "1x"] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn texts_become_headers() {
        assert_eq!(percent_encoded("50 % é\n"), "50 %25 %C3%A9%0A");
    }
}
