//! Functions of one value.

use regraft_tensor::DType;

use super::{bessel, special};
use crate::word_enum;

word_enum! {
    /// A function of one value. Integers take only `neg`, `abs`, `sign`, `not` and the roundings; `bool` only `not`.
    pub enum UnaryFn {
        /// `-x`
        Neg = "neg",
        /// `|x|`
        Abs = "abs",
        /// -1, 0 or 1; 0 for NaN, as in PyTorch
        Sign = "sign",
        /// Logical not of a `bool`, bitwise not of an integer
        Not = "not",
        /// `e^x`
        Exp = "exp",
        /// Natural logarithm
        Log = "log",
        /// `log(1 + x)`
        Log1p = "log1p",
        /// `e^x - 1`
        Expm1 = "expm1",
        /// Square root
        Sqrt = "sqrt",
        /// `1/sqrt(x)`
        Rsqrt = "rsqrt",
        /// `1/x`
        Reciprocal = "reciprocal",
        /// Sine
        Sin = "sin",
        /// Cosine
        Cos = "cos",
        /// Tangent
        Tan = "tan",
        /// Inverse sine
        Asin = "asin",
        /// Inverse cosine
        Acos = "acos",
        /// Inverse tangent
        Atan = "atan",
        /// Hyperbolic sine
        Sinh = "sinh",
        /// Hyperbolic cosine
        Cosh = "cosh",
        /// Hyperbolic tangent
        Tanh = "tanh",
        /// Inverse hyperbolic sine
        Asinh = "asinh",
        /// Inverse hyperbolic cosine
        Acosh = "acosh",
        /// Inverse hyperbolic tangent
        Atanh = "atanh",
        /// Error function
        Erf = "erf",
        /// `1 - erf(x)`, without cancellation
        Erfc = "erfc",
        /// `e^(x²)·erfc(x)`, which does not underflow
        Erfcx = "erfcx",
        /// Inverse of the normal distribution function
        Ndtri = "ndtri",
        /// Inverse of the error function
        Erfinv = "erfinv",
        /// Logarithm of the absolute value of the gamma function
        Lgamma = "lgamma",
        /// Derivative of the logarithm of the gamma function
        Digamma = "digamma",
        /// Modified Bessel function of the first kind, order 0
        BesselI0 = "bessel_i0",
        /// Modified Bessel function of the first kind, order 1
        BesselI1 = "bessel_i1",
        /// Bessel function of the first kind, order 0
        BesselJ0 = "bessel_j0",
        /// Bessel function of the first kind, order 1
        BesselJ1 = "bessel_j1",
        /// Airy function of the first kind
        AiryAi = "airy_ai",
        /// Bessel function of the second kind, order 0
        BesselY0 = "bessel_y0",
        /// Bessel function of the second kind, order 1
        BesselY1 = "bessel_y1",
        /// `e^x` times the modified Bessel function of the second kind, order 0
        BesselK0e = "bessel_k0e",
        /// `e^x` times the modified Bessel function of the second kind, order 1
        BesselK1e = "bessel_k1e",
        /// `1/(1 + e^-x)`
        Sigmoid = "sigmoid",
        /// `log(1 + e^x)`, `torch.nn.functional.softplus` with beta 1 and threshold 20
        Softplus = "softplus",
        /// `max(x, 0)`
        Relu = "relu",
        /// `min(max(x, 0), 6)`
        Relu6 = "relu6",
        /// `x·Φ(x)`, `torch.nn.functional.gelu`
        Gelu = "gelu",
        /// GELU by its tanh approximation, `gelu(approximate="tanh")`
        GeluTanh = "gelu_tanh",
        /// `x·sigmoid(x)`
        Silu = "silu",
        /// `x·relu6(x + 3)/6`
        Hardswish = "hardswish",
        /// `relu6(x + 3)/6`
        Hardsigmoid = "hardsigmoid",
        /// Rounded towards negative infinity
        Floor = "floor",
        /// Rounded towards positive infinity
        Ceil = "ceil",
        /// Rounded to nearest, ties to even
        Round = "round",
        /// Rounded towards zero
        Trunc = "trunc",
    }
}

impl UnaryFn {
    /// The value at `x`, in f64.
    pub fn apply_f64(self, x: f64) -> f64 {
        match self {
            UnaryFn::Neg => -x,
            UnaryFn::Abs => x.abs(),
            UnaryFn::Sign => {
                if x == 0.0 || x.is_nan() {
                    0.0
                } else {
                    x.signum()
                }
            }
            UnaryFn::Not => f64::from(x == 0.0),
            UnaryFn::Exp => x.exp(),
            UnaryFn::Log => x.ln(),
            UnaryFn::Log1p => x.ln_1p(),
            UnaryFn::Expm1 => x.exp_m1(),
            UnaryFn::Sqrt => x.sqrt(),
            UnaryFn::Rsqrt => 1.0 / x.sqrt(),
            UnaryFn::Reciprocal => 1.0 / x,
            UnaryFn::Sin => x.sin(),
            UnaryFn::Cos => x.cos(),
            UnaryFn::Tan => x.tan(),
            UnaryFn::Asin => x.asin(),
            UnaryFn::Acos => x.acos(),
            UnaryFn::Atan => x.atan(),
            UnaryFn::Sinh => x.sinh(),
            UnaryFn::Cosh => x.cosh(),
            UnaryFn::Tanh => x.tanh(),
            UnaryFn::Asinh => x.asinh(),
            UnaryFn::Acosh => x.acosh(),
            UnaryFn::Atanh => x.atanh(),
            UnaryFn::Erf => special::erf(x),
            UnaryFn::Erfc => special::erfc(x),
            UnaryFn::Erfcx => special::erfcx(x),
            UnaryFn::Ndtri => special::erfinv(2.0 * x - 1.0) * std::f64::consts::SQRT_2,
            UnaryFn::Erfinv => special::erfinv(x),
            UnaryFn::Lgamma => special::lgamma(x),
            UnaryFn::Digamma => special::digamma(x),
            UnaryFn::BesselI0 => special::bessel_i(0, x),
            UnaryFn::BesselI1 => special::bessel_i(1, x),
            UnaryFn::BesselJ0 => bessel::bessel_j(0, x),
            UnaryFn::BesselJ1 => bessel::bessel_j(1, x),
            UnaryFn::AiryAi => bessel::airy_ai(x),
            UnaryFn::BesselY0 => bessel::bessel_y(0, x),
            UnaryFn::BesselY1 => bessel::bessel_y(1, x),
            UnaryFn::BesselK0e => bessel::scaled_bessel_k(0, x),
            UnaryFn::BesselK1e => bessel::scaled_bessel_k(1, x),
            UnaryFn::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            UnaryFn::Softplus => {
                if x > 20.0 {
                    x
                } else {
                    x.exp().ln_1p()
                }
            }
            UnaryFn::Relu => {
                if x.is_nan() {
                    x
                } else {
                    x.max(0.0)
                }
            }
            UnaryFn::Relu6 => {
                if x.is_nan() {
                    x
                } else {
                    x.clamp(0.0, 6.0)
                }
            }
            UnaryFn::Gelu => 0.5 * x * (1.0 + special::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            UnaryFn::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            UnaryFn::Silu => x / (1.0 + (-x).exp()),
            UnaryFn::Hardswish => x * UnaryFn::Relu6.apply_f64(x + 3.0) / 6.0,
            UnaryFn::Hardsigmoid => UnaryFn::Relu6.apply_f64(x + 3.0) / 6.0,
            UnaryFn::Floor => x.floor(),
            UnaryFn::Ceil => x.ceil(),
            UnaryFn::Round => x.round_ties_even(),
            UnaryFn::Trunc => x.trunc(),
        }
    }

    /// The value at the integer `x`; `None` for functions that integers do not take.
    pub fn apply_i64(self, x: i64) -> Option<i64> {
        Some(match self {
            UnaryFn::Neg => x.wrapping_neg(),
            UnaryFn::Abs => x.wrapping_abs(),
            UnaryFn::Sign => x.signum(),
            UnaryFn::Not => !x,
            UnaryFn::Relu => x.max(0),
            UnaryFn::Floor | UnaryFn::Ceil | UnaryFn::Round | UnaryFn::Trunc => x,
            _ => return None,
        })
    }

    /// The value at an integer of `dtype`, which is given and taken as [`regraft_tensor::Tensor::to_i64_vec`] has it.
    pub fn apply_int(self, dtype: DType, x: i64) -> Option<i64> {
        match self {
            UnaryFn::Abs | UnaryFn::Relu if dtype == DType::U64 => Some(x),
            UnaryFn::Sign if dtype == DType::U64 => Some(i64::from(x != 0)),
            f => f.apply_i64(x),
        }
    }

    pub(super) fn takes(self, dtype: DType) -> bool {
        match dtype {
            DType::Bool => self == UnaryFn::Not,
            d if d.is_float() => self != UnaryFn::Not,
            _ => self.apply_i64(0).is_some(),
        }
    }
}
