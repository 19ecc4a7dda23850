//! Functions applied element by element, with NumPy broadcasting.

use regraft_tensor::{DType, Tensor};

use super::{
    OpDef, Operands,
    support::{broadcast_f64, broadcast_i64, broadcast_types, input, sizes},
};
use crate::{EvalError, OpError, TensorType, attrs, word_enum};

word_enum! {
    /// A function of one value. Integers take only `neg`, `abs`, `sign`, `not` and the roundings; `bool` only `not`.
    pub enum UnaryFn {
        /// `-x`
        Neg = "neg",
        /// `|x|`
        Abs = "abs",
        /// -1, 0 or 1
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
        /// Hyperbolic tangent
        Tanh = "tanh",
        /// Error function
        Erf = "erf",
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
                    x
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
            UnaryFn::Tanh => x.tanh(),
            UnaryFn::Erf => erf(x),
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
            UnaryFn::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
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

    fn takes(self, dtype: DType) -> bool {
        match dtype {
            DType::Bool => self == UnaryFn::Not,
            d if d.is_float() => self != UnaryFn::Not,
            _ => self.apply_i64(0).is_some(),
        }
    }
}

/// The error function to f64 accuracy (about 1e-15): the Maclaurin series near zero, otherwise the continued fraction
/// of `erfc` (Abramowitz and Stegun 7.1.5, 7.1.14).
fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a.is_nan() || a > 6.0 {
        return if a.is_nan() { x } else { x.signum() };
    }
    if a < 3.0 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term.abs() > 1e-17 * sum {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
        }
        return x.signum() * sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let mut fraction = 0.0;
    for k in (1..=60).rev() {
        fraction = f64::from(k) / 2.0 / (a + fraction);
    }
    let erfc = (-a * a).exp() / (a + fraction) * 0.5 * std::f64::consts::FRAC_2_SQRT_PI;
    x.signum() * (1.0 - erfc)
}

word_enum! {
    /// A function of two values of one dtype.
    pub enum BinaryFn {
        /// `a + b`
        Add = "add",
        /// `a - b`
        Sub = "sub",
        /// `a · b`
        Mul = "mul",
        /// `a / b`, floats only
        Div = "div",
        /// `a / b` rounded towards negative infinity
        FloorDiv = "floor_div",
        /// `a / b` rounded towards zero
        TruncDiv = "trunc_div",
        /// Remainder with the sign of `b`, `torch.remainder`
        Rem = "rem",
        /// `a^b`
        Pow = "pow",
        /// The greater; NaN if either is
        Max = "max",
        /// The lesser; NaN if either is
        Min = "min",
        /// Logical or bitwise and
        And = "and",
        /// Logical or bitwise or
        Or = "or",
        /// Logical or bitwise exclusive or
        Xor = "xor",
    }
}

impl BinaryFn {
    /// The value at `(a, b)`, in f64.
    pub fn apply_f64(self, a: f64, b: f64) -> f64 {
        match self {
            BinaryFn::Add => a + b,
            BinaryFn::Sub => a - b,
            BinaryFn::Mul => a * b,
            BinaryFn::Div => a / b,
            BinaryFn::FloorDiv => (a / b).floor(),
            BinaryFn::TruncDiv => (a / b).trunc(),
            BinaryFn::Rem => {
                let r = a % b;
                if r != 0.0 && (r < 0.0) != (b < 0.0) { r + b } else { r }
            }
            BinaryFn::Pow => a.powf(b),
            BinaryFn::Max => {
                if a.is_nan() || b.is_nan() {
                    f64::NAN
                } else {
                    a.max(b)
                }
            }
            BinaryFn::Min => {
                if a.is_nan() || b.is_nan() {
                    f64::NAN
                } else {
                    a.min(b)
                }
            }
            BinaryFn::And => f64::from(a != 0.0 && b != 0.0),
            BinaryFn::Or => f64::from(a != 0.0 || b != 0.0),
            BinaryFn::Xor => f64::from((a != 0.0) != (b != 0.0)),
        }
    }

    /// The value at integers; wraps on overflow. Division by zero gives 0 where PyTorch raises.
    pub fn apply_i64(self, a: i64, b: i64) -> i64 {
        match self {
            BinaryFn::Add => a.wrapping_add(b),
            BinaryFn::Sub => a.wrapping_sub(b),
            BinaryFn::Mul => a.wrapping_mul(b),
            BinaryFn::Div | BinaryFn::TruncDiv => {
                if b == 0 {
                    0
                } else {
                    a.wrapping_div(b)
                }
            }
            BinaryFn::FloorDiv => {
                if b == 0 {
                    return 0;
                }
                let q = a.wrapping_div(b);
                if a.wrapping_rem(b) != 0 && (a < 0) != (b < 0) { q - 1 } else { q }
            }
            BinaryFn::Rem => {
                if b == 0 {
                    return 0;
                }
                let r = a.wrapping_rem(b);
                if r != 0 && (r < 0) != (b < 0) { r + b } else { r }
            }
            BinaryFn::Pow => u32::try_from(b).map_or(0, |b| a.wrapping_pow(b)),
            BinaryFn::Max => a.max(b),
            BinaryFn::Min => a.min(b),
            BinaryFn::And => a & b,
            BinaryFn::Or => a | b,
            BinaryFn::Xor => a ^ b,
        }
    }

    fn takes(self, dtype: DType) -> bool {
        use BinaryFn::{Add, And, Div, Max, Min, Mul, Or, Xor};
        match dtype {
            DType::Bool => matches!(self, And | Or | Xor | Max | Min | Mul | Add),
            d if d.is_float() => !matches!(self, And | Or | Xor),
            _ => self != Div,
        }
    }
}

word_enum! {
    /// A comparison of two values of one dtype.
    pub enum CompareFn {
        /// `a == b`
        Eq = "eq",
        /// `a != b`
        Ne = "ne",
        /// `a < b`
        Lt = "lt",
        /// `a <= b`
        Le = "le",
        /// `a > b`
        Gt = "gt",
        /// `a >= b`
        Ge = "ge",
    }
}

impl CompareFn {
    /// The truth of the comparison.
    pub fn apply<T: PartialOrd>(self, a: T, b: T) -> bool {
        match self {
            CompareFn::Eq => a == b,
            CompareFn::Ne => a != b,
            CompareFn::Lt => a < b,
            CompareFn::Le => a <= b,
            CompareFn::Gt => a > b,
            CompareFn::Ge => a >= b,
        }
    }
}

attrs! {
    /// `f(x)`.
    pub struct Unary {
        /// The function.
        pub f: UnaryFn,
    }
}

attrs! {
    /// `f(a, b)` on operands of one dtype.
    pub struct Binary {
        /// The function.
        pub f: BinaryFn,
    }
}

attrs! {
    /// `a ? b` as `bool`, on operands of one dtype.
    pub struct Compare {
        /// The comparison.
        pub f: CompareFn,
    }
}

attrs! {
    /// `cond ? a : b`, `torch.where`.
    pub struct Select {}
}

attrs! {
    /// Conversion as PyTorch's `Tensor.to(dtype)`: floats truncate to integers, anything non-zero is true.
    pub struct Cast {
        /// The dtype of the result.
        pub dtype: DType,
    }
}

impl OpDef for Unary {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_dtype(0, |d| self.f.takes(d), &format!("a dtype that `{}` takes", self.f.name()))?;
        Ok(vec![operands.get(0).clone()])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let x = input(inputs, 0);
        let (dtype, shape) = (types[0].dtype, x.shape());
        Ok(vec![if dtype == DType::Bool {
            Tensor::from_i64(dtype, shape, &x.to_i64_vec().iter().map(|&v| i64::from(v == 0)).collect::<Vec<_>>())
        } else if dtype.is_float() {
            let values: Vec<_> = x.to_f64_vec().iter().map(|&v| self.f.apply_f64(v)).collect();
            Tensor::from_f64(dtype, shape, &values)
        } else {
            let apply = |&v: &i64| self.f.apply_i64(v).expect("inference checked the dtype");
            Tensor::from_i64(dtype, shape, &x.to_i64_vec().iter().map(apply).collect::<Vec<_>>())
        }])
    }
}

impl OpDef for Binary {
    const OPERANDS: &'static [&'static str] = &["a", "b"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_dtype(0, |d| self.f.takes(d), &format!("a dtype that `{}` takes", self.f.name()))?;
        operands.expect_same_dtype([1])?;
        Ok(vec![TensorType::new(operands.get(0).dtype, broadcast_types(operands.all())?)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (a, b) = (input(inputs, 0), input(inputs, 1));
        let (dtype, shape) = (types[0].dtype, sizes(&types[0]));
        Ok(vec![if dtype.is_float() {
            let pairs = broadcast_f64(a, &shape).into_iter().zip(broadcast_f64(b, &shape));
            Tensor::from_f64(dtype, &shape, &pairs.map(|(a, b)| self.f.apply_f64(a, b)).collect::<Vec<_>>())
        } else {
            let pairs = broadcast_i64(a, &shape).into_iter().zip(broadcast_i64(b, &shape));
            Tensor::from_i64(dtype, &shape, &pairs.map(|(a, b)| self.f.apply_i64(a, b)).collect::<Vec<_>>())
        }])
    }
}

impl OpDef for Compare {
    const OPERANDS: &'static [&'static str] = &["a", "b"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_same_dtype([1])?;
        Ok(vec![TensorType::new(DType::Bool, broadcast_types(operands.all())?)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (a, b, shape) = (input(inputs, 0), input(inputs, 1), sizes(&types[0]));
        let values: Vec<bool> = if a.dtype().is_float() {
            let pairs = broadcast_f64(a, &shape).into_iter().zip(broadcast_f64(b, &shape));
            pairs.map(|(a, b)| self.f.apply(a, b)).collect()
        } else {
            let pairs = broadcast_i64(a, &shape).into_iter().zip(broadcast_i64(b, &shape));
            pairs.map(|(a, b)| self.f.apply(a, b)).collect()
        };
        Ok(vec![Tensor::from_bools(&shape, &values)])
    }
}

impl OpDef for Select {
    const OPERANDS: &'static [&'static str] = &["cond", "a", "b"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_dtype(0, |d| d == DType::Bool, "bool")?;
        let (a, b) = (operands.get(1), operands.get(2));
        operands.expect_dtype(2, |d| d == a.dtype, a.dtype.name())?;
        Ok(vec![TensorType::new(a.dtype, broadcast_types([operands.get(0), a, b])?)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (dtype, shape) = (types[0].dtype, sizes(&types[0]));
        let cond = broadcast_i64(input(inputs, 0), &shape);
        let choose = |i: usize| input(inputs, i);
        Ok(vec![if dtype.is_float() {
            let (a, b) = (broadcast_f64(choose(1), &shape), broadcast_f64(choose(2), &shape));
            let values: Vec<_> = (0..cond.len()).map(|i| if cond[i] != 0 { a[i] } else { b[i] }).collect();
            Tensor::from_f64(dtype, &shape, &values)
        } else {
            let (a, b) = (broadcast_i64(choose(1), &shape), broadcast_i64(choose(2), &shape));
            let values: Vec<_> = (0..cond.len()).map(|i| if cond[i] != 0 { a[i] } else { b[i] }).collect();
            Tensor::from_i64(dtype, &shape, &values)
        }])
    }
}

impl OpDef for Cast {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        Ok(vec![TensorType::new(self.dtype, operands.get(0).shape.clone())])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], _: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        Ok(vec![input(inputs, 0).cast(self.dtype)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_accurate() {
        // Values of erf to 16 digits.
        for (x, y) in [(0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (3.5, 0.9999992569016276)] {
            assert!((erf(x) - y).abs() < 1e-15 && (erf(-x) + y).abs() < 1e-15, "erf({x})");
        }
    }

    #[test]
    fn remainder_has_the_sign_of_the_divisor() {
        assert_eq!(BinaryFn::Rem.apply_i64(-7, 3), 2);
        assert_eq!(BinaryFn::Rem.apply_f64(7.0, -3.0), -2.0);
        assert_eq!(BinaryFn::FloorDiv.apply_i64(-7, 3), -3);
    }
}
