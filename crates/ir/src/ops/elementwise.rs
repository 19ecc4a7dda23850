//! Functions applied element by element, with NumPy broadcasting.

use regraft_tensor::{DType, Tensor};

use super::{
    OpDef, Operands,
    arithmetic::{floor_div, gcd, natural_power, power},
    orthogonal, special,
    support::{broadcast_f64, broadcast_i64, broadcast_types, input, ordered, sizes},
    unary::UnaryFn,
};
use crate::{EvalError, OpError, TensorType, attrs, word_enum};

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
        /// Remainder with the sign of `a`, `torch.fmod`
        Fmod = "fmod",
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
        /// The angle of the point `(b, a)`, floats only
        Atan2 = "atan2",
        /// `sqrt(a² + b²)`, floats only
        Hypot = "hypot",
        /// `|a|` with the sign of `b`, floats only
        Copysign = "copysign",
        /// `a·2^b`, integers only
        Shl = "shl",
        /// `a/2^b` rounded towards negative infinity, integers only
        Shr = "shr",
        /// Hurwitz' zeta function `Σ (b + k)^-a`, floats only
        Zeta = "zeta",
        /// Regularized lower incomplete gamma function `P(a, b)`, floats only
        GammaP = "gamma_p",
        /// Regularized upper incomplete gamma function `Q(a, b)`, floats only
        GammaQ = "gamma_q",
        /// Hermite's polynomial of degree `b` at `a`, as physicists have it, floats only
        HermiteH = "hermite_h",
        /// Hermite's polynomial of degree `b` at `a`, as in probability theory, floats only
        HermiteHe = "hermite_he",
        /// Laguerre's polynomial of degree `b` at `a`, floats only
        Laguerre = "laguerre",
        /// Legendre's polynomial of degree `b` at `a`, floats only
        Legendre = "legendre",
        /// Greatest common divisor, integers only
        Gcd = "gcd",
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
            BinaryFn::FloorDiv => floor_div(a, b),
            BinaryFn::TruncDiv => (a / b).trunc(),
            BinaryFn::Rem => {
                let r = a % b;
                if r != 0.0 && (r < 0.0) != (b < 0.0) { r + b } else { r }
            }
            BinaryFn::Fmod => a % b,
            BinaryFn::Pow => a.powf(b),
            BinaryFn::Atan2 => a.atan2(b),
            BinaryFn::Hypot => a.hypot(b),
            BinaryFn::Copysign => a.copysign(b),
            BinaryFn::Zeta => special::zeta(a, b),
            BinaryFn::GammaP => special::incomplete_gamma(a, b).0,
            BinaryFn::GammaQ => special::incomplete_gamma(a, b).1,
            BinaryFn::HermiteH => orthogonal::hermite_h(a, b),
            BinaryFn::HermiteHe => orthogonal::hermite_he(a, b),
            BinaryFn::Laguerre => orthogonal::laguerre(a, b),
            BinaryFn::Legendre => orthogonal::legendre(a, b),
            // Floats do not take them.
            BinaryFn::Shl | BinaryFn::Shr | BinaryFn::Gcd => f64::NAN,
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
            BinaryFn::Fmod => {
                if b == 0 {
                    0
                } else {
                    a.wrapping_rem(b)
                }
            }
            BinaryFn::Pow => power(a, b),
            BinaryFn::Max => a.max(b),
            BinaryFn::Min => a.min(b),
            BinaryFn::And => a & b,
            BinaryFn::Or => a | b,
            BinaryFn::Xor => a ^ b,
            BinaryFn::Shl => u32::try_from(b).ok().and_then(|b| a.checked_shl(b)).unwrap_or(0),
            BinaryFn::Shr => a >> u32::try_from(b).map_or(63, |b| b.min(63)),
            BinaryFn::Gcd => gcd(a.unsigned_abs(), b.unsigned_abs()) as i64,
            // Integers do not take them.
            BinaryFn::Atan2
            | BinaryFn::Hypot
            | BinaryFn::Copysign
            | BinaryFn::Zeta
            | BinaryFn::GammaP
            | BinaryFn::GammaQ
            | BinaryFn::HermiteH
            | BinaryFn::HermiteHe
            | BinaryFn::Laguerre
            | BinaryFn::Legendre => 0,
        }
    }

    /// The value at integers of `dtype`, each as [`Tensor::to_i64_vec`] gives it.
    pub fn apply_int(self, dtype: DType, a: i64, b: i64) -> i64 {
        if dtype == DType::U64 { self.apply_u64(a as u64, b as u64) as i64 } else { self.apply_i64(a, b) }
    }

    fn apply_u64(self, a: u64, b: u64) -> u64 {
        match self {
            BinaryFn::Div | BinaryFn::TruncDiv | BinaryFn::FloorDiv => a.checked_div(b).unwrap_or(0),
            BinaryFn::Rem | BinaryFn::Fmod => a.checked_rem(b).unwrap_or(0),
            BinaryFn::Pow => natural_power(a as i64, b) as u64,
            BinaryFn::Max => a.max(b),
            BinaryFn::Min => a.min(b),
            BinaryFn::Shr => u32::try_from(b).ok().and_then(|b| a.checked_shr(b)).unwrap_or(0),
            BinaryFn::Gcd => gcd(a, b),
            // Of these the sign of an operand changes no bit.
            BinaryFn::Add
            | BinaryFn::Sub
            | BinaryFn::Mul
            | BinaryFn::And
            | BinaryFn::Or
            | BinaryFn::Xor
            | BinaryFn::Shl
            | BinaryFn::Atan2
            | BinaryFn::Hypot
            | BinaryFn::Copysign
            | BinaryFn::Zeta
            | BinaryFn::GammaP
            | BinaryFn::GammaQ
            | BinaryFn::HermiteH
            | BinaryFn::HermiteHe
            | BinaryFn::Laguerre
            | BinaryFn::Legendre => self.apply_i64(a as i64, b as i64) as u64,
        }
    }

    /// Whether it is a function of real numbers, which integers do not take.
    pub fn is_special(self) -> bool {
        use BinaryFn::{Atan2, Copysign, GammaP, GammaQ, HermiteH, HermiteHe, Hypot, Laguerre, Legendre, Zeta};
        matches!(self, Atan2 | Hypot | Copysign | Zeta | GammaP | GammaQ | HermiteH | HermiteHe | Laguerre | Legendre)
    }

    fn takes(self, dtype: DType) -> bool {
        use BinaryFn::{Add, And, Div, Gcd, Max, Min, Mul, Or, Shl, Shr, Xor};
        match dtype {
            DType::Bool => matches!(self, And | Or | Xor | Max | Min | Mul | Add),
            d if d.is_float() => !matches!(self, And | Or | Xor | Shl | Shr | Gcd),
            _ => self != Div && !self.is_special(),
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
            let apply = |&v: &i64| self.f.apply_int(dtype, v).expect("inference checked the dtype");
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
            Tensor::from_i64(dtype, &shape, &pairs.map(|(a, b)| self.f.apply_int(dtype, a, b)).collect::<Vec<_>>())
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
            let order = |v: i64| ordered(a.dtype(), v);
            pairs.map(|(a, b)| self.f.apply(order(a), order(b))).collect()
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
    fn remainder_has_the_sign_of_the_divisor() {
        assert_eq!(BinaryFn::Rem.apply_i64(-7, 3), 2);
        assert_eq!(BinaryFn::Rem.apply_f64(7.0, -3.0), -2.0);
        assert_eq!(BinaryFn::FloorDiv.apply_i64(-7, 3), -3);
        assert_eq!((BinaryFn::Fmod.apply_i64(-7, 3), BinaryFn::Fmod.apply_f64(-7.0, 3.0)), (-1, -1.0));
    }

    #[test]
    fn floor_division_has_pytorchs_values() {
        // torch.div(a, b, rounding_mode="floor")
        let floor = |a: f64, b: f64| BinaryFn::FloorDiv.apply_f64(a, b);
        assert_eq!([floor(1.0, 0.1), floor(-7.0, 2.0), floor(-1.0, 0.0)], [9.0, -4.0, f64::NEG_INFINITY]);
        assert!(floor(f64::INFINITY, 2.0).is_nan());
    }

    #[test]
    fn powers_of_integers_have_pytorchs_values() {
        // torch.pow(a, b)
        let cases =
            [(1, -3, 1), (-1, -3, -1), (-1, -2, 1), (2, -1, 0), (0, -2, 0), (-3, -2, 0), (2, 70, 0), (-3, 3, -27)];
        for (a, b, power) in cases {
            assert_eq!(BinaryFn::Pow.apply_i64(a, b), power, "{a}^{b}");
        }
        assert_eq!(BinaryFn::Pow.apply_i64(-1, i64::MAX), -1);
    }

    #[test]
    fn large_unsigned_integers_are_no_negative_ones() {
        let binary = |f: BinaryFn, a: u64, b: u64| f.apply_int(DType::U64, a as i64, b as i64) as u64;
        let (most, half) = (u64::MAX, 1 << 63);
        assert_eq!([binary(BinaryFn::Add, most, 2), binary(BinaryFn::Sub, 0, 1)], [1, most]);
        assert_eq!([binary(BinaryFn::TruncDiv, most, 2), binary(BinaryFn::Rem, most, 10)], [half - 1, 5]);
        assert_eq!([binary(BinaryFn::Max, most, 1), binary(BinaryFn::Min, half, 1)], [most, 1]);
        assert_eq!([binary(BinaryFn::Shr, most, 63), binary(BinaryFn::Shr, most, 64)], [1, 0]);
        assert_eq!([binary(BinaryFn::Pow, 3, 2), binary(BinaryFn::TruncDiv, 5, 0)], [9, 0]);
        let unary = |f: UnaryFn, x: u64| f.apply_int(DType::U64, x as i64).map(|v| v as u64);
        assert_eq!([unary(UnaryFn::Abs, most), unary(UnaryFn::Sign, most)], [Some(most), Some(1)]);
        let (a, b) = (Tensor::from_slice(&[1], &[most]), Tensor::from_slice(&[1], &[1u64]));
        let less = crate::Op::from(Compare { f: CompareFn::Lt }).eval(&[Some(&a), Some(&b)]).expect("same dtype");
        assert_eq!(less[0].to_i64_vec(), [0]);
    }

    #[test]
    fn shifts_beyond_the_width_leave_the_sign() {
        assert_eq!((BinaryFn::Shl.apply_i64(3, 64), BinaryFn::Shr.apply_i64(-3, 64)), (0, -1));
        assert_eq!((BinaryFn::Shl.apply_i64(3, 2), BinaryFn::Shr.apply_i64(-5, 1)), (12, -3));
        assert_eq!((BinaryFn::Gcd.apply_i64(-12, 18), BinaryFn::Gcd.apply_i64(0, 5)), (6, 5));
    }
}
