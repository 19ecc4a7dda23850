//! The loops of the register machine.

use bytemuck::Pod;
use half::{bf16, f16};
use regraft_ir::ops::{Activation, BinaryFn, CompareFn, FusedFn, UnaryFn};
use regraft_tensor::DType;

use crate::{
    Isa,
    simd::{activation, math, simd_fn, to_bf16},
};

simd_fn! {
    /// Writes `f` of each element.
    pub(super) fn map<F, T: Copy, U: Copy>(x: &[T], out: &mut [U], f: impl Fn(T) -> U) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = f(x);
        }
    }
}

#[inline(always)]
fn zip<T: Copy, U>(a: &[T], b: &[T], out: &mut [U], f: impl Fn(T, T) -> U) {
    for (out, (&a, &b)) in out.iter_mut().zip(a.iter().zip(b)) {
        *out = f(a, b);
    }
}

/// Numbers whose functions are those of the ops' definition.
pub(super) trait Number: Pod + PartialOrd {
    fn unary(f: UnaryFn, x: Self) -> Self;
    fn binary(f: BinaryFn, a: Self, b: Self) -> Self;
    /// `a + b`, `a - b`, `a · b`, for loops of their own.
    fn add(a: Self, b: Self) -> Self;
    fn sub(a: Self, b: Self) -> Self;
    fn mul(a: Self, b: Self) -> Self;
}

impl Number for f64 {
    fn unary(f: UnaryFn, x: f64) -> f64 {
        f.apply_f64(x)
    }
    fn binary(f: BinaryFn, a: f64, b: f64) -> f64 {
        f.apply_f64(a, b)
    }
    fn add(a: f64, b: f64) -> f64 {
        a + b
    }
    fn sub(a: f64, b: f64) -> f64 {
        a - b
    }
    fn mul(a: f64, b: f64) -> f64 {
        a * b
    }
}

macro_rules! integer {
    ($($t:ty),*) => {$(
        impl Number for $t {
            fn unary(f: UnaryFn, x: $t) -> $t {
                f.apply_i64(i64::from(x)).map_or(x, |y| y as $t)
            }
            fn binary(f: BinaryFn, a: $t, b: $t) -> $t {
                f.apply_i64(i64::from(a), i64::from(b)) as $t
            }
            fn add(a: $t, b: $t) -> $t {
                a.wrapping_add(b)
            }
            fn sub(a: $t, b: $t) -> $t {
                a.wrapping_sub(b)
            }
            fn mul(a: $t, b: $t) -> $t {
                a.wrapping_mul(b)
            }
        }
    )*};
}
integer!(i64, i32);

simd_fn! {
    pub(super) fn unary<F, T: Number>(f: UnaryFn, x: &[T], out: &mut [T]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = T::unary(f, x);
        }
    }
}

simd_fn! {
    pub(super) fn binary<F, T: Number>(f: BinaryFn, a: &[T], b: &[T], out: &mut [T]) {
        match f {
            BinaryFn::Add => zip(a, b, out, T::add),
            BinaryFn::Sub => zip(a, b, out, T::sub),
            BinaryFn::Mul => zip(a, b, out, T::mul),
            // Each function has a loop of its own, which the compiler may turn into vectors.
            BinaryFn::Max => zip(a, b, out, |a, b| T::binary(BinaryFn::Max, a, b)),
            BinaryFn::Min => zip(a, b, out, |a, b| T::binary(BinaryFn::Min, a, b)),
            BinaryFn::And => zip(a, b, out, |a, b| T::binary(BinaryFn::And, a, b)),
            BinaryFn::Or => zip(a, b, out, |a, b| T::binary(BinaryFn::Or, a, b)),
            BinaryFn::Xor => zip(a, b, out, |a, b| T::binary(BinaryFn::Xor, a, b)),
            f => zip(a, b, out, |a, b| T::binary(f, a, b)),
        }
    }
}

simd_fn! {
    pub(super) fn binary_bool<F>(f: BinaryFn, a: &[u8], b: &[u8], out: &mut [u8]) {
        match f {
            BinaryFn::And | BinaryFn::Mul | BinaryFn::Min => zip(a, b, out, |a, b| a & b),
            BinaryFn::Or | BinaryFn::Add | BinaryFn::Max => zip(a, b, out, |a, b| a | b),
            BinaryFn::Xor => zip(a, b, out, |a, b| a ^ b),
            f => zip(a, b, out, |a, b| u8::from(f.apply_i64(i64::from(a), i64::from(b)) != 0)),
        }
    }
}

simd_fn! {
    pub(super) fn unary_f32<F>(f: UnaryFn, x: &[f32], out: &mut [f32]) {
        #[inline(always)]
        fn each(x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
            for (out, x) in out.iter_mut().zip(x) {
                *out = f(*x);
            }
        }
        /// Sine or cosine; arguments that need more digits of pi go to the library.
        #[inline(always)]
        fn trigonometric(x: &[f32], out: &mut [f32], near: impl Fn(f32) -> f32, far: impl Fn(f64) -> f64) {
            each(x, out, near);
            if x.iter().fold(0u32, |any, x| any | u32::from(x.abs() > math::TRIGONOMETRIC_LIMIT)) != 0 {
                for (out, x) in out.iter_mut().zip(x).filter(|(_, x)| x.abs() > math::TRIGONOMETRIC_LIMIT) {
                    *out = far(f64::from(*x)) as f32;
                }
            }
        }
        match f {
            UnaryFn::Neg => each(x, out, |x| -x),
            UnaryFn::Abs => each(x, out, f32::abs),
            UnaryFn::Sign => each(x, out, |x| if x > 0.0 { 1.0 } else if x < 0.0 { -1.0 } else { 0.0 }),
            UnaryFn::Not => each(x, out, |x| if x == 0.0 { 1.0 } else { 0.0 }),
            UnaryFn::Exp => each(x, out, math::exp::<F>),
            UnaryFn::Log => each(x, out, math::log::<F>),
            UnaryFn::Log1p => each(x, out, math::log1p::<F>),
            UnaryFn::Expm1 => each(x, out, math::expm1::<F>),
            UnaryFn::Softplus => each(x, out, math::softplus::<F>),
            UnaryFn::Sqrt => each(x, out, f32::sqrt),
            UnaryFn::Rsqrt => each(x, out, |x| 1.0 / x.sqrt()),
            UnaryFn::Reciprocal => each(x, out, |x| 1.0 / x),
            UnaryFn::Sin => trigonometric(x, out, math::sin, f64::sin),
            UnaryFn::Cos => trigonometric(x, out, math::cos, f64::cos),
            UnaryFn::Erf => each(x, out, math::erf::<F>),
            UnaryFn::Tanh
            | UnaryFn::Sigmoid
            | UnaryFn::Relu
            | UnaryFn::Relu6
            | UnaryFn::Gelu
            | UnaryFn::GeluTanh
            | UnaryFn::Silu
            | UnaryFn::Hardswish
            | UnaryFn::Hardsigmoid => {
                let act = Activation::from_function(f).expect("these functions are activations");
                activation::each::<F>(act, x.iter().copied().zip(out));
            }
            UnaryFn::Floor => each(x, out, f32::floor),
            UnaryFn::Ceil => each(x, out, f32::ceil),
            UnaryFn::Round => each(x, out, f32::round_ties_even),
            UnaryFn::Trunc => each(x, out, f32::trunc),
            UnaryFn::Tan => trigonometric(x, out, |x| math::sin(x) / math::cos(x), f64::tan),
            // Rare enough for one lane at a time, in f64.
            UnaryFn::Asin
            | UnaryFn::Acos
            | UnaryFn::Atan
            | UnaryFn::Sinh
            | UnaryFn::Cosh
            | UnaryFn::Asinh
            | UnaryFn::Acosh
            | UnaryFn::Atanh
            | UnaryFn::Erfc
            | UnaryFn::Erfcx
            | UnaryFn::Ndtri
            | UnaryFn::Erfinv
            | UnaryFn::Lgamma
            | UnaryFn::Digamma
            | UnaryFn::BesselI0
            | UnaryFn::BesselI1
            | UnaryFn::BesselJ0
            | UnaryFn::BesselJ1
            | UnaryFn::AiryAi
            | UnaryFn::BesselY0
            | UnaryFn::BesselY1
            | UnaryFn::BesselK0e
            | UnaryFn::BesselK1e => each(x, out, |x| f.apply_f64(f64::from(x)) as f32),
        }
    }
}

simd_fn! {
    pub(super) fn binary_f32<F>(f: BinaryFn, a: &[f32], b: &[f32], out: &mut [f32]) {
        match f {
            BinaryFn::Add => zip(a, b, out, |a, b| a + b),
            BinaryFn::Sub => zip(a, b, out, |a, b| a - b),
            BinaryFn::Mul => zip(a, b, out, |a, b| a * b),
            BinaryFn::Div => zip(a, b, out, |a, b| a / b),
            BinaryFn::Max => zip(a, b, out, |a, b| if a > b || a.is_nan() { a } else { b }),
            BinaryFn::Min => zip(a, b, out, |a, b| if a < b || a.is_nan() { a } else { b }),
            BinaryFn::Pow if b.iter().all(|b| *b == 2.0) => zip(a, b, out, |a, _| a * a),
            BinaryFn::FloorDiv
            | BinaryFn::TruncDiv
            | BinaryFn::Rem
            | BinaryFn::Fmod
            | BinaryFn::Pow
            | BinaryFn::Atan2
            | BinaryFn::Hypot
            | BinaryFn::Copysign
            | BinaryFn::Zeta
            | BinaryFn::GammaP
            | BinaryFn::GammaQ
            | BinaryFn::HermiteH
            | BinaryFn::HermiteHe
            | BinaryFn::Laguerre
            | BinaryFn::Legendre
            | BinaryFn::Shl
            | BinaryFn::Shr
            | BinaryFn::Gcd
            | BinaryFn::And
            | BinaryFn::Or
            | BinaryFn::Xor => zip(a, b, out, |a, b| f.apply_f64(f64::from(a), f64::from(b)) as f32),
        }
    }
}

/// What [`pair_f32`] and [`halves`] have loops for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Sub,
    Mul,
}

impl Arithmetic {
    pub(super) fn of(f: FusedFn) -> Option<Arithmetic> {
        match f {
            FusedFn::Binary(BinaryFn::Add) => Some(Arithmetic::Add),
            FusedFn::Binary(BinaryFn::Sub) => Some(Arithmetic::Sub),
            FusedFn::Binary(BinaryFn::Mul) => Some(Arithmetic::Mul),
            _ => None,
        }
    }
}

simd_fn! {
    /// `g` of `f(a, b)` and `c`, or of `c` and that if `turned`; each is rounded. One loop, since two, of which one reads memory and the
    /// other writes it, would not overlap.
    pub(super) fn pair_f32<F>(
        f: Arithmetic,
        g: Arithmetic,
        turned: bool,
        a: &[f32],
        b: &[f32],
        c: &[f32],
        out: &mut [f32],
    ) {
        #[inline(always)]
        fn each(abc: [&[f32]; 3], out: &mut [f32], f: impl Fn(f32, f32, f32) -> f32) {
            let [a, b, c] = abc;
            for (out, ((&a, &b), &c)) in out.iter_mut().zip(a.iter().zip(b).zip(c)) {
                *out = f(a, b, c);
            }
        }
        #[inline(always)]
        fn then(g: Arithmetic, turned: bool, abc: [&[f32]; 3], out: &mut [f32], f: impl Fn(f32, f32) -> f32) {
            match g {
                Arithmetic::Add => each(abc, out, |a, b, c| f(a, b) + c),
                Arithmetic::Sub if turned => each(abc, out, |a, b, c| c - f(a, b)),
                Arithmetic::Sub => each(abc, out, |a, b, c| f(a, b) - c),
                Arithmetic::Mul => each(abc, out, |a, b, c| f(a, b) * c),
            }
        }
        match f {
            Arithmetic::Add => then(g, turned, [a, b, c], out, |a, b| a + b),
            Arithmetic::Sub => then(g, turned, [a, b, c], out, |a, b| a - b),
            Arithmetic::Mul => then(g, turned, [a, b, c], out, |a, b| a * b),
        }
    }
}

simd_fn! {
    /// `f` of each pair of elements, rounded to bf16.
    pub(super) fn halves<F>(f: Arithmetic, a: &[bf16], b: &[bf16], out: &mut [bf16]) {
        #[inline(always)]
        fn each(a: &[bf16], b: &[bf16], out: &mut [bf16], f: impl Fn(f32, f32) -> f32) {
            let wide = |x: bf16| math::bf16_to_f32(x.to_bits());
            zip(a, b, out, |a, b| bf16::from_bits(to_bf16(f(wide(a), wide(b)))));
        }
        match f {
            Arithmetic::Add => each(a, b, out, |a, b| a + b),
            Arithmetic::Sub => each(a, b, out, |a, b| a - b),
            Arithmetic::Mul => each(a, b, out, |a, b| a * b),
        }
    }
}

simd_fn! {
    pub(super) fn compare<F, T: PartialOrd>(f: CompareFn, a: &[T], b: &[T], out: &mut [u8]) {
        #[inline(always)]
        fn each<T>(a: &[T], b: &[T], out: &mut [u8], f: impl Fn(&T, &T) -> bool) {
            for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
                *out = u8::from(f(a, b));
            }
        }
        match f {
            CompareFn::Eq => each(a, b, out, T::eq),
            CompareFn::Ne => each(a, b, out, T::ne),
            CompareFn::Lt => each(a, b, out, T::lt),
            CompareFn::Le => each(a, b, out, T::le),
            CompareFn::Gt => each(a, b, out, T::gt),
            CompareFn::Ge => each(a, b, out, T::ge),
        }
    }
}

simd_fn! {
    pub(super) fn select<F, T: Copy>(cond: &[u8], a: &[T], b: &[T], out: &mut [T]) {
        for ((out, &cond), (&a, &b)) in out.iter_mut().zip(cond).zip(a.iter().zip(b)) {
            *out = if cond != 0 { a } else { b };
        }
    }
}

/// Rounds to what `dtype` holds.
pub(super) fn round(isa: Isa, dtype: DType, xs: &mut [f32]) {
    match dtype {
        DType::BF16 => round_bf16(isa, xs),
        DType::F16 => xs.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
        _ => {}
    }
}

simd_fn! {
    fn round_bf16<F>(xs: &mut [f32]) {
        xs.iter_mut().for_each(|x| *x = bf16::from_bits(to_bf16(*x)).to_f32());
    }
}
