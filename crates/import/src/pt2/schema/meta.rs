//! What is known of a tensor: its dtype, shape, layout and device.

use regraft_tensor::DType;
use serde::Deserialize;

use super::{SymInt, union::int_enum};

/// Dtype, shape and layout of a tensor.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct TensorMeta {
    /// Element type.
    pub dtype: ScalarType,
    /// Shape.
    pub sizes: Vec<SymInt>,
    /// Strides in elements.
    #[serde(default)]
    pub strides: Vec<SymInt>,
    /// First element in the storage.
    #[serde(default)]
    pub storage_offset: SymInt,
    /// Dense or one of the sparse layouts.
    #[serde(default = "strided")]
    pub layout: Layout,
    /// Where it lives.
    pub device: Device,
    /// Whether it is trained.
    #[serde(default)]
    pub requires_grad: bool,
}

/// A device such as `cpu` or `cuda:0`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Device {
    /// `cpu`, `cuda`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// Which of several.
    #[serde(default)]
    pub index: Option<i64>,
}

int_enum! {
    /// How elements are arranged.
    Layout {
        /// A sparse layout.
        1 => SparseCoo,
        /// A sparse layout.
        2 => SparseCsr,
        /// A sparse layout.
        3 => SparseCsc,
        /// A sparse layout.
        4 => SparseBsr,
        /// A sparse layout.
        5 => SparseBsc,
        /// A layout of oneDNN.
        6 => Mkldnn,
        /// Dense, by strides.
        7 => Strided,
    }
    /// The order of axes in memory.
    MemoryFormat {
        /// Row-major.
        1 => Contiguous,
        /// NHWC.
        2 => ChannelsLast,
        /// NDHWC.
        3 => ChannelsLast3d,
        /// As the input.
        4 => Preserve,
    }
    /// An element type of PyTorch.
    ScalarType {
        /// `uint8`.
        1 => Byte,
        /// `int8`.
        2 => Char,
        /// `int16`.
        3 => Short,
        /// `int32`.
        4 => Int,
        /// `int64`.
        5 => Long,
        /// `float16`.
        6 => Half,
        /// `float32`.
        7 => Float,
        /// `float64`.
        8 => Double,
        /// `complex32`.
        9 => ComplexHalf,
        /// `complex64`.
        10 => ComplexFloat,
        /// `complex128`.
        11 => ComplexDouble,
        /// `bool`.
        12 => Bool,
        /// `bfloat16`.
        13 => BFloat16,
        /// `uint16`.
        28 => UInt16,
        /// `float8_e4m3fn`.
        29 => Float8E4M3Fn,
        /// `float8_e5m2`.
        30 => Float8E5M2,
        /// `float8_e4m3fnuz`.
        31 => Float8E4M3Fnuz,
        /// `float8_e5m2fnuz`.
        32 => Float8E5M2Fnuz,
        /// `float8_e8m0fnu`.
        33 => Float8E8M0Fnu,
        /// `uint32`.
        34 => UInt32,
        /// `uint64`.
        35 => UInt64,
    }
}

fn strided() -> Layout {
    Layout::Strided
}

impl ScalarType {
    /// The data type of the parts of a complex one.
    pub fn part(self) -> Option<DType> {
        match self {
            ScalarType::ComplexHalf => Some(DType::F16),
            ScalarType::ComplexFloat => Some(DType::F32),
            ScalarType::ComplexDouble => Some(DType::F64),
            _ => None,
        }
    }

    /// The data type, when Regraft has it.
    pub fn dtype(self) -> Option<DType> {
        Some(match self {
            ScalarType::Byte => DType::U8,
            ScalarType::Char => DType::I8,
            ScalarType::Short => DType::I16,
            ScalarType::Int => DType::I32,
            ScalarType::Long => DType::I64,
            ScalarType::Half => DType::F16,
            ScalarType::Float => DType::F32,
            ScalarType::Double => DType::F64,
            ScalarType::Bool => DType::Bool,
            ScalarType::BFloat16 => DType::BF16,
            ScalarType::ComplexHalf
            | ScalarType::ComplexFloat
            | ScalarType::ComplexDouble
            | ScalarType::UInt16
            | ScalarType::UInt32
            | ScalarType::UInt64
            | ScalarType::Float8E4M3Fn
            | ScalarType::Float8E5M2
            | ScalarType::Float8E4M3Fnuz
            | ScalarType::Float8E5M2Fnuz
            | ScalarType::Float8E8M0Fnu
            | ScalarType::Unknown(_) => return None,
        })
    }
}
