//! Kernels: how each is written, launched, and for which problems.
//!
//! A function here takes sizes, strides and element types, and returns a [`Spec`]: the complete source and what a launch
//! needs, as plain data. So sources are tested, and compiled for every architecture, without a device.

pub mod attention;
pub mod conv;
pub mod elementwise;
pub mod index;
pub mod movement;
pub mod norm;
pub mod pack;
pub mod pool;
pub mod reduce;
pub mod rotary;
mod select;
mod spec;

pub use select::{Node, reads_strided, specs};
pub use spec::{Param, Spec, Why};

use regraft_tensor::DType;

/// What every source begins with.
const PRELUDE: &str = include_str!("prelude.cu");

/// The type of stored elements in sources.
pub(crate) const fn c_type(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "f64",
        DType::F32 => "f32",
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        DType::I64 => "i64",
        DType::I32 => "i32",
        DType::I16 => "i16",
        DType::I8 => "i8",
        DType::U8 => "u8",
        DType::Bool => "b8",
        DType::U16 => "u16",
        DType::U32 => "u32",
        DType::U64 => "u64",
    }
}

/// The unsigned integer with the size of an element.
pub(crate) const fn bits_type(dtype: DType) -> &'static str {
    match dtype.size() {
        1 => "u8",
        2 => "u16",
        4 => "u32",
        _ => "u64",
    }
}

/// Whether kernels compute it in f32.
pub(crate) const fn is_small_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}
