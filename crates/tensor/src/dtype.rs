use std::fmt;

use bytemuck::Pod;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// The element type of a tensor.
///
/// Written in text as its short name: `f32`, `bf16`, `i64`, `bool`.
///
/// ```
/// use regraft_tensor::DType;
///
/// assert_eq!(DType::BF16.size(), 2);
/// assert_eq!(DType::BF16.to_string(), "bf16");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DType {
    /// IEEE binary64.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 16-bit signed integer.
    I16,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// One byte that is 0 or 1.
    Bool,
    /// 16-bit unsigned integer.
    U16,
    /// 32-bit unsigned integer.
    U32,
    /// 64-bit unsigned integer.
    U64,
}

impl DType {
    /// All data types.
    pub const ALL: [DType; 13] = [
        DType::F64,
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::I64,
        DType::I32,
        DType::I16,
        DType::I8,
        DType::U8,
        DType::Bool,
        DType::U16,
        DType::U32,
        DType::U64,
    ];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 | DType::I64 | DType::U64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 | DType::I16 | DType::U16 => 2,
            DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// The short name, such as `f32`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::I16 => "i16",
            DType::I8 => "i8",
            DType::U8 => "u8",
            DType::Bool => "bool",
            DType::U16 => "u16",
            DType::U32 => "u32",
            DType::U64 => "u64",
        }
    }

    /// The data type with this short name.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Whether this is a floating-point type.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }

    /// Whether this is an integer type; `bool` is not.
    pub const fn is_int(self) -> bool {
        !self.is_float() && !matches!(self, DType::Bool)
    }

    /// Whether this is an unsigned integer of more than 8 bits. Programs carry these; few kernels compute them.
    pub const fn is_wide_unsigned(self) -> bool {
        matches!(self, DType::U16 | DType::U32 | DType::U64)
    }

    /// Whether values of `self` may stand in for `other` in a state dict: floats for floats, otherwise the same type.
    pub fn same_class(self, other: DType) -> bool {
        self == other || (self.is_float() && other.is_float())
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that is the element of a tensor.
///
/// `bool` tensors are stored as `u8` with the values 0 and 1, so they are read through [`Element`] as `u8`.
///
/// ```
/// use regraft_tensor::{DType, Element};
///
/// fn sum<E: Element>(values: &[E]) -> f64 {
///     values.iter().map(|value| value.to_f64()).sum()
/// }
///
/// assert_eq!(<f32 as Element>::DTYPE, DType::F32);
/// assert_eq!(sum(&[1i64, 2, 3]), 6.0);
/// ```
pub trait Element: Pod + PartialEq + Send + Sync + fmt::Debug + 'static {
    /// The data type whose elements have this representation.
    const DTYPE: DType;
    /// Whether a tensor of `dtype` can be read as a slice of `Self`.
    fn reads(dtype: DType) -> bool {
        dtype == Self::DTYPE
    }
    /// The value as f64; i64 beyond 2^53 is rounded.
    fn to_f64(self) -> f64;
    /// The value nearest to `v`, as PyTorch's `to(dtype)` converts: integers truncate.
    fn from_f64(v: f64) -> Self;
    /// The value as i64; floats truncate, and u64 keeps its bits.
    fn to_i64(self) -> i64;
    /// The value of an integer; wraps in narrower types.
    fn from_i64(v: i64) -> Self;
}

macro_rules! int_element {
    ($($t:ty => $d:ident),*) => {$(
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            fn to_f64(self) -> f64 { self as f64 }
            fn from_f64(v: f64) -> Self { v as i64 as $t }
            fn to_i64(self) -> i64 { self as i64 }
            fn from_i64(v: i64) -> Self { v as $t }
        }
    )*};
}
int_element!(i64 => I64, i32 => I32, i16 => I16, i8 => I8, u16 => U16, u32 => U32);

impl Element for u64 {
    const DTYPE: DType = DType::U64;
    fn to_f64(self) -> f64 {
        self as f64
    }
    fn from_f64(v: f64) -> Self {
        if v < 0.0 { v as i64 as u64 } else { v as u64 }
    }
    fn to_i64(self) -> i64 {
        self as i64
    }
    fn from_i64(v: i64) -> Self {
        v as u64
    }
}

impl Element for u8 {
    const DTYPE: DType = DType::U8;
    fn reads(dtype: DType) -> bool {
        matches!(dtype, DType::U8 | DType::Bool)
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn from_f64(v: f64) -> Self {
        v as i64 as u8
    }
    fn to_i64(self) -> i64 {
        i64::from(self)
    }
    fn from_i64(v: i64) -> Self {
        v as u8
    }
}

macro_rules! float_element {
    ($($t:ty => $d:ident, $from:expr, $to:expr);*) => {$(
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            fn to_f64(self) -> f64 { $to(self) }
            fn from_f64(v: f64) -> Self { $from(v) }
            fn to_i64(self) -> i64 { $to(self) as i64 }
            fn from_i64(v: i64) -> Self { $from(v as f64) }
        }
    )*};
}
// PyTorch goes to half types through f32; two roundings can differ from one.
float_element!(
    f64 => F64, |v| v, |v| v;
    f32 => F32, |v: f64| v as f32, f64::from;
    f16 => F16, |v: f64| f16::from_f32(v as f32), |v: f16| v.to_f64();
    bf16 => BF16, |v: f64| bf16::from_f32(v as f32), |v: bf16| v.to_f64()
);
