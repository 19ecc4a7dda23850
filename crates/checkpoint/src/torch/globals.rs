use regraft_tensor::DType;

use super::value::Global;

/// The meaning of the global called `module.name`. None is imported or called, as Python would; those that are not known make
/// something that is left out.
pub(super) fn find<'a>(module: &'a str, name: &'a str) -> Global<'a> {
    known(module, name).unwrap_or(Global::Unknown { module, name })
}

fn known(module: &str, name: &str) -> Option<Global<'static>> {
    Some(match (module, name) {
        ("collections", "OrderedDict" | "defaultdict" | "Counter") | ("builtins" | "__builtin__", "dict") => {
            Global::Dict
        }
        ("builtins" | "__builtin__", "set" | "frozenset") => Global::Set,
        ("builtins" | "__builtin__", "complex") => Global::Known("a complex number"),
        ("builtins" | "__builtin__", "bytearray" | "bytes") | ("_codecs", "encode") => Global::Known("bytes"),
        ("torch", "device") => Global::Known("a device"),
        ("torch.serialization", "_get_layout") => Global::Known("a layout"),
        ("torch", "Size") => Global::Size,
        ("torch", "Tensor") | ("torch.nn.parameter", "Parameter" | "Buffer") => Global::TensorClass,
        ("torch._tensor", "_rebuild_from_type_v2") => Global::FromType,
        ("torch._utils", _) => return rebuild(name),
        ("torch.storage", "UntypedStorage") => Global::Storage(Err("an unknown dtype")),
        ("torch" | "torch.cuda", _) => match name.strip_suffix("Storage") {
            Some(class) => return storage(class),
            None => Global::DType(DTYPES.iter().find(|known| **known == name).copied()?),
        },
        _ => return None,
    })
}

fn rebuild(name: &str) -> Option<Global<'static>> {
    Some(match name {
        "_rebuild_tensor" | "_rebuild_tensor_v2" => Global::Tensor,
        // Devices whose tensors are saved as those of the CPU that they were copied to.
        "_rebuild_parameter" | "_rebuild_parameter_with_state" | "_rebuild_device_tensor_from_cpu_tensor" => {
            Global::Parameter
        }
        // What torch.save uses for dtypes without a class of storages of their own, and for quantized ones.
        "_rebuild_tensor_v3" | "_rebuild_qtensor" => Global::ForeignTensor,
        "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor" => Global::Known("a sparse tensor"),
        "_rebuild_nested_tensor" => Global::Known("a nested tensor"),
        "_rebuild_meta_tensor_no_storage" => Global::Known("a tensor without values"),
        "_rebuild_device_tensor_from_numpy" | "_rebuild_xla_tensor" => {
            Global::Known("a tensor of another kind of device")
        }
        "_rebuild_wrapper_subclass" => Global::Known("a tensor of a subclass"),
        _ => return None,
    })
}

/// The class of storages called `{class}Storage`.
fn storage(class: &str) -> Option<Global<'static>> {
    Some(Global::Storage(match class {
        "Double" => Ok(DType::F64),
        "Float" => Ok(DType::F32),
        "Half" => Ok(DType::F16),
        "BFloat16" => Ok(DType::BF16),
        "Long" => Ok(DType::I64),
        "Int" => Ok(DType::I32),
        "Short" => Ok(DType::I16),
        "Char" => Ok(DType::I8),
        "Byte" => Ok(DType::U8),
        "Bool" => Ok(DType::Bool),
        "ComplexFloat" => Err("complex64"),
        "ComplexDouble" => Err("complex128"),
        "QInt8" => Err("qint8"),
        "QUInt8" => Err("quint8"),
        "QInt32" => Err("qint32"),
        "QUInt4x2" => Err("quint4x2"),
        "QUInt2x4" => Err("quint2x4"),
        "Untyped" => Err("an unknown dtype"),
        _ => return None,
    }))
}

/// Dtypes, quantization schemes and layouts that pickles name.
const DTYPES: &[&str] = &[
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex32",
    "complex64",
    "complex128",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
    "uint16",
    "uint32",
    "uint64",
    "qint8",
    "quint8",
    "qint32",
    "per_tensor_affine",
    "per_channel_affine",
    "per_channel_affine_float_qparams",
    "strided",
    "sparse_coo",
];
