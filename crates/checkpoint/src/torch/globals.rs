use regraft_tensor::DType;

use super::value::Global;

/// The global called `module.name`, if a state dict may name it. Everything else that a pickle names is refused: in
/// Python it would be imported and called.
pub(super) fn find(module: &str, name: &str) -> Option<Global> {
    match module {
        "collections" if name == "OrderedDict" => Some(Global::OrderedDict),
        "torch._utils" => rebuild(name),
        "torch.storage" if name == "UntypedStorage" => Some(Global::Storage(Err("unknown"))),
        "torch" if name == "Size" => Some(Global::Size),
        "torch" => match name.strip_suffix("Storage") {
            Some(class) => storage(class),
            None => FOREIGN.iter().find(|known| **known == name).copied().map(Global::Foreign),
        },
        _ => None,
    }
}

fn rebuild(name: &str) -> Option<Global> {
    Some(match name {
        "_rebuild_tensor_v2" => Global::Tensor,
        "_rebuild_parameter" => Global::Parameter,
        // What torch.save uses for dtypes without a class of storages of their own, and for quantized ones.
        "_rebuild_tensor_v3" | "_rebuild_qtensor" => Global::ForeignTensor,
        _ => return None,
    })
}

/// The class of storages called `{class}Storage`.
fn storage(class: &str) -> Option<Global> {
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
        _ => return None,
    }))
}

/// Dtypes and quantization schemes that pickles of state dicts name and Regraft has not.
const FOREIGN: &[&str] = &[
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
    "uint16",
    "uint32",
    "uint64",
    "per_tensor_affine",
    "per_channel_affine",
    "per_channel_affine_float_qparams",
];
