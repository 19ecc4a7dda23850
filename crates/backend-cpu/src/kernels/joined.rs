//! Functions that join two numbers of any type.

use half::{bf16, f16};
use regraft_tensor::Element;

/// What numbers of one type are joined by. Integers wrap, NaN wins.
pub(super) trait Joined: Element {
    /// No number is less.
    const LEAST: Self;
    /// No number is greater.
    const GREATEST: Self;
    fn plus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    fn greater(self, other: Self) -> Self;
    fn lesser(self, other: Self) -> Self;
}

macro_rules! joined {
    ($($t:ty),*) => {$(
        impl Joined for $t {
            const LEAST: $t = <$t>::MIN;
            const GREATEST: $t = <$t>::MAX;
            #[inline]
            fn plus(self, other: $t) -> $t { self.wrapping_add(other) }
            #[inline]
            fn times(self, other: $t) -> $t { self.wrapping_mul(other) }
            #[inline]
            fn greater(self, other: $t) -> $t { Ord::max(self, other) }
            #[inline]
            fn lesser(self, other: $t) -> $t { Ord::min(self, other) }
        }
    )*};
}
joined!(i64, i32, i16, i8, u8, u16, u32, u64);

macro_rules! joined_floats {
    ($($t:ty),*) => {$(
        impl Joined for $t {
            const LEAST: $t = <$t>::NEG_INFINITY;
            const GREATEST: $t = <$t>::INFINITY;
            #[inline]
            fn plus(self, other: $t) -> $t { self + other }
            #[inline]
            fn times(self, other: $t) -> $t { self * other }
            #[inline]
            fn greater(self, other: $t) -> $t { if other > self || other.is_nan() { other } else { self } }
            #[inline]
            fn lesser(self, other: $t) -> $t { if other < self || other.is_nan() { other } else { self } }
        }
    )*};
}
joined_floats!(f64, f32, f16, bf16);
