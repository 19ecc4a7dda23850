//! Requests to run a model, in the JSON and the binary form of the open inference protocol.

use std::time::Duration;

use regraft::{AlignedVec, DType, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use crate::{dtype, error::Refusal, numbers, served::InferRequest, signature::Signature};

/// What a request asks for of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Which of the program's outputs.
    pub(crate) index: usize,
    /// Whether its bytes come after the JSON.
    pub(crate) binary: bool,
}

/// A request, and how its answer is to be written.
pub(crate) struct Parsed {
    pub(crate) id: Option<String>,
    pub(crate) request: InferRequest,
    pub(crate) outputs: Vec<Asked>,
}

#[derive(Deserialize)]
struct Body<'a> {
    id: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    #[serde(borrow)]
    inputs: Vec<Input<'a>>,
    outputs: Option<Vec<Output>>,
}

#[derive(Deserialize)]
struct Input<'a> {
    name: String,
    shape: Vec<u64>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// Takes a body apart. `json_len` is the value of `Inference-Header-Content-Length`: what comes after is the bytes of inputs.
pub(crate) fn parse(body: &[u8], json_len: Option<usize>, signature: &Signature) -> Result<Parsed, Refusal> {
    let (json, mut bytes) = match json_len {
        None => (body, &[][..]),
        Some(len) => body.split_at_checked(len).ok_or_else(|| {
            Refusal::bad(format!("Inference-Header-Content-Length is {len}, and the body has {} bytes", body.len()))
        })?,
    };
    let parsed: Body<'_> = serde_json::from_slice(json)
        .map_err(|error| Refusal::bad(format!("the body is not a request of the inference protocol: {error}")))?;
    let mut inputs: Vec<Option<Tensor>> = vec![None; signature.inputs.len()];
    for input in &parsed.inputs {
        let index = port_index(&input.name, signature.inputs.iter().map(|port| port.name.as_str()), "input")?;
        if inputs[index].is_some() {
            return Err(Refusal::bad(format!("input `{}` is given twice", input.name)));
        }
        inputs[index] = Some(tensor(input, &mut bytes)?);
    }
    if !bytes.is_empty() {
        return Err(Refusal::bad(format!("{} bytes follow those of the last input", bytes.len())));
    }
    let inputs = complete(inputs, signature)?;
    let all_binary = flag(&parsed.parameters, "binary_data_output")?.unwrap_or(false);
    let outputs = outputs(parsed.outputs, all_binary, signature)?;
    let request = with_parameters(inputs, &parsed.parameters)?;
    Ok(Parsed { id: parsed.id, request, outputs })
}

/// The index of the port that a request names.
pub(crate) fn port_index<'n>(
    name: &str,
    mut names: impl Iterator<Item = &'n str> + Clone,
    what: &str,
) -> Result<usize, Refusal> {
    let known = names.clone();
    names.position(|known| known == name).ok_or_else(|| {
        let known: Vec<&str> = known.collect();
        Refusal::bad(format!("there is no {what} `{name}`; there are {}", known.join(", ")))
    })
}

/// All inputs in the program's order.
pub(crate) fn complete(inputs: Vec<Option<Tensor>>, signature: &Signature) -> Result<Vec<Tensor>, Refusal> {
    let missing: Vec<&str> = (inputs.iter().zip(&signature.inputs))
        .filter(|(tensor, _)| tensor.is_none())
        .map(|(_, port)| port.name.as_str())
        .collect();
    if !missing.is_empty() {
        return Err(Refusal::bad(format!("inputs are missing: {}", missing.join(", "))));
    }
    for (tensor, port) in inputs.iter().flatten().zip(&signature.inputs) {
        check(tensor, port)?;
    }
    Ok(inputs.into_iter().flatten().collect())
}

/// What can be told of an input alone; how sizes belong together is checked by the run.
fn check(tensor: &Tensor, port: &crate::signature::Port) -> Result<(), Refusal> {
    let fits = |(dim, size): (i64, &usize)| dim < 0 || dim as u64 == *size as u64;
    let same_rank = port.ty.shape.len() == tensor.shape().len();
    if tensor.dtype() == port.dtype() && same_rank && port.shape().into_iter().zip(tensor.shape()).all(fits) {
        return Ok(());
    }
    let found = format!("{}{:?}", dtype::name_of(tensor.dtype()), tensor.shape());
    let expected = format!("{} {}", dtype::name_of(port.dtype()), port.ty);
    Err(Refusal::bad(format!("input `{}`: expected {expected}, found {found}", port.name)))
}

/// A request with its parameters. Unknown ones are refused: a misspelled one would have no effect.
pub(crate) fn with_parameters(inputs: Vec<Tensor>, parameters: &Map<String, Value>) -> Result<InferRequest, Refusal> {
    const KNOWN: [&str; 5] = ["adapter", "scale", "timeout", "binary_data_output", "priority"];
    if let Some(name) = parameters.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        let why = format!("the parameter `{name}` is not known; there are {}", KNOWN.join(", "));
        return Err(Refusal::bad(why));
    }
    let timeout = match parameters.get("timeout") {
        None => None,
        Some(value) => match value.as_u64().or_else(|| value.as_str()?.parse().ok()) {
            // As in other servers, none.
            Some(0) => None,
            Some(microseconds) => Some(Duration::from_micros(microseconds)),
            None => return Err(Refusal::bad("the parameter `timeout` is a number of microseconds")),
        },
    };
    let adapter = match (parameters.get("adapter"), parameters.get("scale")) {
        (None, None) => None,
        (Some(Value::String(name)), scale) => {
            let scale = scale.map_or(Some(1.0), number).filter(|scale| scale.is_finite());
            let scale = scale.ok_or_else(|| Refusal::bad("the parameter `scale` is a finite number"))?;
            Some((name.clone(), scale))
        }
        (Some(_), _) => return Err(Refusal::bad("the parameter `adapter` is the name of an adapter")),
        (None, Some(_)) => return Err(Refusal::bad("the parameter `scale` belongs to `adapter`, which is not there")),
    };
    Ok(InferRequest { inputs, timeout, adapter })
}

/// A number; clients whose parameters have no fractions send text.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

fn flag(parameters: &Map<String, Value>, name: &str) -> Result<Option<bool>, Refusal> {
    match parameters.get(name) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(Refusal::bad(format!("the parameter `{name}` is true or false"))),
    }
}

fn outputs(asked: Option<Vec<Output>>, all_binary: bool, signature: &Signature) -> Result<Vec<Asked>, Refusal> {
    let Some(asked) = asked.filter(|asked| !asked.is_empty()) else {
        return Ok((0..signature.outputs.len()).map(|index| Asked { index, binary: all_binary }).collect());
    };
    let names = signature.outputs.iter().map(|port| port.name.as_str());
    let mut outputs: Vec<Asked> = Vec::with_capacity(asked.len());
    for output in asked {
        let index = port_index(&output.name, names.clone(), "output")?;
        if outputs.iter().any(|other| other.index == index) {
            return Err(Refusal::bad(format!("output `{}` is asked for twice", output.name)));
        }
        if output.parameters.contains_key("classification") {
            return Err(Refusal::bad("classifications are not served; ask for the output itself"));
        }
        outputs.push(Asked { index, binary: flag(&output.parameters, "binary_data")?.unwrap_or(all_binary) });
    }
    Ok(outputs)
}

/// The tensor of an input: its numbers in JSON, or the next of `bytes`.
fn tensor(input: &Input<'_>, bytes: &mut &[u8]) -> Result<Tensor, Refusal> {
    let name = &input.name;
    let dtype = dtype_of(name, &input.datatype)?;
    let shape = shape_of(name, &input.shape)?;
    let binary = match input.parameters.get("binary_data_size") {
        None => None,
        Some(size) => {
            let size = size.as_u64().and_then(|size| usize::try_from(size).ok());
            Some(size.ok_or_else(|| Refusal::bad(format!("input `{name}`: binary_data_size is a number of bytes")))?)
        }
    };
    match (binary, input.data) {
        (Some(_), Some(_)) => Err(Refusal::bad(format!("input `{name}` has both `data` and `binary_data_size`"))),
        (None, None) => Err(Refusal::bad(format!("input `{name}` has neither `data` nor `binary_data_size`"))),
        (None, Some(data)) => {
            numbers::read(data.get(), dtype, &shape).map_err(|why| Refusal::bad(format!("input `{name}`: {why}")))
        }
        (Some(size), None) => {
            let found = bytes.len();
            let (own, rest) = bytes.split_at_checked(size).ok_or_else(|| {
                Refusal::bad(format!("input `{name}`: binary_data_size is {size}, and {found} bytes are left"))
            })?;
            *bytes = rest;
            from_bytes(name, dtype, shape, own)
        }
    }
}

/// The type that a request gives an input.
pub(crate) fn dtype_of(name: &str, datatype: &str) -> Result<DType, Refusal> {
    dtype::of_name(datatype).ok_or_else(|| Refusal::bad(format!("input `{name}`: datatype {datatype} is not served")))
}

/// The sizes that a request gives an input.
pub(crate) fn shape_of<T: Copy + TryInto<usize>>(name: &str, shape: &[T]) -> Result<Vec<usize>, Refusal> {
    let sizes: Option<Vec<usize>> = shape.iter().map(|&size| size.try_into().ok()).collect();
    sizes.ok_or_else(|| Refusal::bad(format!("input `{name}`: sizes are whole numbers, 0 or more")))
}

/// A tensor of these bytes, little-endian and row by row.
pub(crate) fn from_bytes(name: &str, dtype: DType, shape: Vec<usize>, bytes: &[u8]) -> Result<Tensor, Refusal> {
    let expected = Tensor::byte_len(dtype, &shape).map_err(|e| Refusal::bad(format!("input `{name}`: {e}")))?;
    if bytes.len() != expected {
        let text = format!("{}{shape:?}", dtype::name_of(dtype));
        return Err(Refusal::bad(format!("input `{name}`: {text} has {expected} bytes, found {}", bytes.len())));
    }
    if dtype == DType::Bool && bytes.iter().any(|byte| *byte > 1) {
        return Err(Refusal::bad(format!("input `{name}`: bytes of BOOL are 0 or 1")));
    }
    let data = AlignedVec::try_copy_of(bytes).map_err(|e| Refusal::bad(format!("input `{name}`: {e}")))?;
    Tensor::new(dtype, shape, data.into()).map_err(|e| Refusal::bad(format!("input `{name}`: {e}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::signature::Signature;

    fn signature() -> Signature {
        let program = "program \"p\" {
            dims   s0 in 1..=8 (opt 4)
            input  %0 : f32[s0, 2] = \"x\"
            output %0 = \"y\"
        }";
        Signature::of_graph(&regraft::ir::text::parse(program).unwrap())
    }

    const SOUND: &str = r#"{"id":"1","parameters":{"timeout":5},"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32",
        "parameters":{"binary_data_size":8}}],"outputs":[{"name":"y","parameters":{"binary_data":true}}]}01234567"#;

    #[test]
    fn a_sound_request_is_read() {
        let parsed = parse(SOUND.as_bytes(), Some(SOUND.len() - 8), &signature()).unwrap();
        assert_eq!(parsed.request.inputs[0].bytes(), b"01234567");
        assert_eq!(parsed.outputs, [Asked { index: 0, binary: true }]);
        assert_eq!(parsed.request.timeout, Some(Duration::from_micros(5)));
    }

    proptest! {
        #[test]
        fn damaged_requests_are_refused_or_read(
            edits in proptest::collection::vec((0..SOUND.len(), any::<u8>()), 0..6),
            cut in 0..SOUND.len(),
            json_len in proptest::option::of(0usize..400),
        ) {
            let mut body = SOUND.as_bytes().to_vec();
            edits.iter().for_each(|&(at, byte)| body[at] = byte);
            _ = parse(&body[..body.len() - cut / 4], json_len, &signature());
        }
    }
}
