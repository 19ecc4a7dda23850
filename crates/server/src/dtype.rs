//! Names of element types in the open inference protocol.

use regraft::DType;

const NAMES: [(DType, &str); 13] = [
    (DType::F64, "FP64"),
    (DType::F32, "FP32"),
    (DType::F16, "FP16"),
    (DType::BF16, "BF16"),
    (DType::I64, "INT64"),
    (DType::I32, "INT32"),
    (DType::I16, "INT16"),
    (DType::I8, "INT8"),
    (DType::U8, "UINT8"),
    (DType::Bool, "BOOL"),
    (DType::U16, "UINT16"),
    (DType::U32, "UINT32"),
    (DType::U64, "UINT64"),
];

/// The protocol's name of `dtype`.
pub(crate) fn name_of(dtype: DType) -> &'static str {
    NAMES.iter().find(|(known, _)| *known == dtype).map_or("", |(_, name)| name)
}

/// The element type that the protocol calls `name`.
pub(crate) fn of_name(name: &str) -> Option<DType> {
    NAMES.iter().find(|(_, known)| *known == name).map(|(dtype, _)| *dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_name() {
        for dtype in DType::ALL {
            assert_eq!(of_name(name_of(dtype)), Some(dtype));
        }
        assert_eq!(of_name("BYTES"), None);
    }
}
