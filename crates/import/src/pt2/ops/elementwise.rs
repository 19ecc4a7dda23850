//! Arithmetic, comparisons and logic, with the dtypes that PyTorch's promotion gives.

use regraft_ir::ops::{BinaryFn, Compare, CompareFn, Select, UnaryFn};
use regraft_tensor::{DType, Tensor};

use crate::pt2::args::{Cx, Number, Operand, Res, ValueId, unsupported, wrong};

/// The dtype that holds values of both.
pub(super) fn promote(a: DType, b: DType) -> DType {
    use DType::{BF16, Bool, F16, F32, I8, I16, U8};
    match (a, b) {
        _ if a == b => a,
        (Bool, other) | (other, Bool) => other,
        (F16, BF16) | (BF16, F16) => F32,
        (U8, I8) | (I8, U8) => I16,
        _ => match (a.is_float(), b.is_float()) {
            (true, false) => a,
            (false, true) => b,
            _ if a.size() >= b.size() => a,
            _ => b,
        },
    }
}

/// `higher` keeps its dtype against operands of lower priority, unless they are of a higher kind.
fn combine(higher: Option<DType>, lower: Option<DType>) -> Option<DType> {
    let (Some(h), Some(l)) = (higher, lower) else { return higher.or(lower) };
    Some(if h.is_float() {
        h
    } else if h == DType::Bool || l.is_float() {
        promote(h, l)
    } else {
        h
    })
}

/// The dtype in which PyTorch computes on these operands: tensors with axes come first, then tensors without, then
/// numbers.
pub(super) fn result_type(cx: &Cx<'_, '_>, operands: &[&Operand]) -> Res<DType> {
    let (mut axes, mut none, mut numbers) = (None, None, None);
    for operand in operands {
        let (slot, dtype) = match operand {
            Operand::Tensor(v) if cx.rank(*v) > 0 => (&mut axes, cx.dtype_of(*v)),
            Operand::Tensor(v) => (&mut none, cx.dtype_of(*v)),
            Operand::Number(n) => (&mut numbers, n.dtype()),
        };
        *slot = Some(slot.map_or(dtype, |d| promote(d, dtype)));
    }
    combine(axes, combine(none, numbers)).map_or_else(|| wrong("expected operands"), Ok)
}

/// The dtype of a float result: `dtype` itself or PyTorch's default.
pub(super) fn to_float(dtype: DType) -> DType {
    if dtype.is_float() { dtype } else { DType::F32 }
}

/// An operand as a value of this dtype.
pub(super) fn value(cx: &mut Cx<'_, '_>, operand: &Operand, dtype: DType) -> Res<ValueId> {
    match operand {
        Operand::Tensor(v) => cx.cast(*v, dtype),
        Operand::Number(n) => cx.number_value(n, dtype),
    }
}

/// An operand as a value of its own dtype.
pub(super) fn value_of(cx: &mut Cx<'_, '_>, operand: &Operand) -> Res<ValueId> {
    match operand {
        Operand::Tensor(v) => Ok(*v),
        Operand::Number(n) => cx.number_value(n, n.dtype()),
    }
}

/// Whether a half-precision dtype holds the number exactly. PyTorch computes on halves in f32, literals included.
fn exact(number: &Number, dtype: DType) -> bool {
    let Some(v) = number.as_f64() else { return true };
    if !matches!(dtype, DType::F16 | DType::BF16) {
        return true;
    }
    let rounded = Tensor::from_f64(dtype, &[1], &[v]).to_f64_vec();
    v.is_nan() || rounded == [v]
}

/// `f(a, b)`, computed and given in `dtype`.
pub(super) fn apply(cx: &mut Cx<'_, '_>, f: BinaryFn, a: &Operand, b: &Operand, dtype: DType) -> Res<ValueId> {
    let inexact = [a, b].into_iter().any(|o| matches!(o, Operand::Number(n) if !exact(n, dtype)));
    let inner = if inexact { DType::F32 } else { dtype };
    let (a, b) = (value(cx, a, inner)?, value(cx, b, inner)?);
    let out = cx.binary(f, a, b)?;
    cx.cast(out, dtype)
}

/// The first two arguments, whatever they are called.
pub(super) fn two(cx: &mut Cx<'_, '_>) -> Res<(Operand, Operand)> {
    let [a, b, ..] = cx.node.inputs.as_slice() else { return wrong("expected two arguments") };
    Ok((cx.operand(&a.name)?, cx.operand(&b.name)?))
}

pub(super) fn binary(cx: &mut Cx<'_, '_>, f: BinaryFn) -> Res<ValueId> {
    let (a, b) = two(cx)?;
    let dtype = result_type(cx, &[&a, &b])?;
    apply(cx, f, &a, &b, dtype)
}

/// `a ± alpha·b`.
fn sum(cx: &mut Cx<'_, '_>, f: BinaryFn, a: Operand, b: Operand) -> Res<ValueId> {
    let dtype = result_type(cx, &[&a, &b])?;
    let alpha = cx.number_or("alpha", Number::Int(1))?;
    let b =
        if alpha.is(1.0) { b } else { Operand::Tensor(apply(cx, BinaryFn::Mul, &b, &Operand::Number(alpha), dtype)?) };
    apply(cx, f, &a, &b, dtype)
}

pub(super) fn add(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = two(cx)?;
    sum(cx, BinaryFn::Add, a, b)
}

pub(super) fn sub(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = two(cx)?;
    sum(cx, BinaryFn::Sub, a, b)
}

pub(super) fn rsub(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = two(cx)?;
    sum(cx, BinaryFn::Sub, b, a)
}

pub(super) fn div(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = two(cx)?;
    let dtype = result_type(cx, &[&a, &b])?;
    match cx.optional_text("rounding_mode")? {
        None => apply(cx, BinaryFn::Div, &a, &b, to_float(dtype)),
        Some("floor") => apply(cx, BinaryFn::FloorDiv, &a, &b, dtype),
        // PyTorch truncates the rounded quotient: what is narrower than f32 is rounded by a conversion of its own, which no
        // kernel leaves out.
        Some("trunc") if dtype.is_float() => {
            let wide = if matches!(dtype, DType::F16 | DType::BF16) { DType::F32 } else { dtype };
            let quotient = apply(cx, BinaryFn::Div, &a, &b, wide)?;
            let quotient = cx.cast(quotient, dtype)?;
            cx.unary(UnaryFn::Trunc, quotient)
        }
        Some("trunc") => apply(cx, BinaryFn::TruncDiv, &a, &b, dtype),
        Some(other) => wrong(format!("`{other}` is not a rounding mode")),
    }
}

pub(super) fn square(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let x = if cx.dtype_of(x) == DType::Bool { cx.cast(x, DType::I64)? } else { x };
    cx.binary(BinaryFn::Mul, x, x)
}

pub(super) fn pow(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = two(cx)?;
    let dtype = result_type(cx, &[&a, &b])?;
    if let (Operand::Tensor(x), Operand::Number(n)) = (&a, &b)
        && let Some(exponent) = n.as_f64()
    {
        let x = cx.cast(*x, dtype)?;
        let float = dtype.is_float();
        if !float && exponent < 0.0 {
            return wrong("an integer to a negative power");
        }
        return match exponent {
            1.0 => Ok(x),
            2.0 => cx.binary(BinaryFn::Mul, x, x),
            3.0 => {
                let square = cx.binary(BinaryFn::Mul, x, x)?;
                cx.binary(BinaryFn::Mul, square, x)
            }
            0.5 if float => cx.unary(UnaryFn::Sqrt, x),
            -0.5 if float => cx.unary(UnaryFn::Rsqrt, x),
            -1.0 if float => cx.unary(UnaryFn::Reciprocal, x),
            -2.0 if float => {
                let square = cx.binary(BinaryFn::Mul, x, x)?;
                cx.unary(UnaryFn::Reciprocal, square)
            }
            _ => apply(cx, BinaryFn::Pow, &Operand::Tensor(x), &b, dtype),
        };
    }
    apply(cx, BinaryFn::Pow, &a, &b, dtype)
}

/// `self + value·(t1 op t2)`.
fn add_product(cx: &mut Cx<'_, '_>, f: BinaryFn) -> Res<ValueId> {
    let (x, a, b) = (cx.operand("self")?, cx.operand("tensor1")?, cx.operand("tensor2")?);
    let dtype = result_type(cx, &[&x, &a, &b])?;
    let mut product = apply(cx, f, &a, &b, dtype)?;
    let factor = cx.number_or("value", Number::Int(1))?;
    if !factor.is(1.0) {
        product = apply(cx, BinaryFn::Mul, &Operand::Tensor(product), &Operand::Number(factor), dtype)?;
    }
    apply(cx, BinaryFn::Add, &x, &Operand::Tensor(product), dtype)
}

pub(super) fn addcmul(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    add_product(cx, BinaryFn::Mul)
}

pub(super) fn addcdiv(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    add_product(cx, BinaryFn::Div)
}

/// `self + weight·(end - self)`.
pub(super) fn lerp(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, end, weight) = (cx.tensor("self")?, cx.tensor("end")?, cx.operand("weight")?);
    let dtype = cx.dtype_of(x);
    let span = cx.binary(BinaryFn::Sub, end, x)?;
    let part = apply(cx, BinaryFn::Mul, &Operand::Tensor(span), &weight, dtype)?;
    cx.binary(BinaryFn::Add, x, part)
}

/// A function of one value; those of floats take integers as floats.
pub(super) fn unary(cx: &mut Cx<'_, '_>, f: UnaryFn) -> Res<ValueId> {
    let Some(first) = cx.node.inputs.first() else { return wrong("expected an argument") };
    let x = cx.tensor(&first.name)?;
    if f == UnaryFn::Round && cx.int_or("decimals", 0)? != 0 {
        return unsupported("rounding to decimals", "multiply, round and divide");
    }
    let dtype = cx.dtype_of(x);
    let whole = f.apply_i64(0).is_some() && f != UnaryFn::Not;
    match (dtype, f) {
        (DType::Bool, UnaryFn::Abs | UnaryFn::Sign) => Ok(x),
        // Integers are round already.
        (d, UnaryFn::Floor | UnaryFn::Ceil | UnaryFn::Round | UnaryFn::Trunc) if !d.is_float() => Ok(x),
        (d, _) if d.is_float() || (whole && d != DType::Bool) => cx.unary(f, x),
        _ => {
            let x = cx.cast(x, to_float(dtype))?;
            cx.unary(f, x)
        }
    }
}

/// The argument as a float.
pub(super) fn float_arg(cx: &mut Cx<'_, '_>, name: &str) -> Res<ValueId> {
    let x = cx.tensor(name)?;
    let dtype = to_float(cx.dtype_of(x));
    cx.cast(x, dtype)
}

fn scaled(cx: &mut Cx<'_, '_>, f: UnaryFn, before: f64, after: f64) -> Res<ValueId> {
    let mut x = float_arg(cx, "self")?;
    if before != 1.0 {
        x = cx.with_literal(BinaryFn::Mul, x, before)?;
    }
    x = cx.unary(f, x)?;
    if after == 1.0 { Ok(x) } else { cx.with_literal(BinaryFn::Mul, x, after) }
}

pub(super) fn exp2(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    scaled(cx, UnaryFn::Exp, std::f64::consts::LN_2, 1.0)
}

pub(super) fn log2(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    scaled(cx, UnaryFn::Log, 1.0, std::f64::consts::LOG2_E)
}

pub(super) fn log10(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    scaled(cx, UnaryFn::Log, 1.0, std::f64::consts::LOG10_E)
}

pub(super) fn frac(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let whole = cx.unary(UnaryFn::Trunc, x)?;
    cx.binary(BinaryFn::Sub, x, whole)
}

pub(super) fn logit(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut x = float_arg(cx, "self")?;
    match cx.optional_float("eps")? {
        // The bounds stand in order.
        Some(eps) if (0.0..=0.5).contains(&eps) => {
            x = cx.with_literal(BinaryFn::Max, x, eps)?;
            x = cx.with_literal(BinaryFn::Min, x, 1.0 - eps)?;
        }
        Some(eps) if eps > 0.5 => {
            // `x < low ? low : (x > high ? high : x)`, where `low` is above `high`.
            let (low, high) = (cx.float_like(eps, x)?, cx.float_like(1.0 - eps, x)?);
            let below = cx.emit(Compare { f: CompareFn::Lt }, &[x, low])?;
            let above = cx.emit(Compare { f: CompareFn::Gt }, &[x, high])?;
            let upper = cx.emit(Select {}, &[above, high, x])?;
            x = cx.emit(Select {}, &[below, low, upper])?;
        }
        _ => {}
    }
    let one = cx.float_like(1.0, x)?;
    let rest = cx.binary(BinaryFn::Sub, one, x)?;
    let odds = cx.binary(BinaryFn::Div, x, rest)?;
    cx.unary(UnaryFn::Log, odds)
}

fn all_false(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<ValueId> {
    cx.emit(Compare { f: CompareFn::Ne }, &[x, x])
}

pub(super) fn isnan(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    // Only NaN differs from itself.
    let x = cx.tensor("self")?;
    all_false(cx, x)
}

pub(super) fn isinf(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    if !cx.dtype_of(x).is_float() {
        return all_false(cx, x);
    }
    let size = cx.unary(UnaryFn::Abs, x)?;
    let infinity = cx.float_like(f64::INFINITY, x)?;
    cx.emit(Compare { f: CompareFn::Eq }, &[size, infinity])
}

pub(super) fn isfinite(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    if !cx.dtype_of(x).is_float() {
        return cx.emit(Compare { f: CompareFn::Eq }, &[x, x]);
    }
    let size = cx.unary(UnaryFn::Abs, x)?;
    let infinity = cx.float_like(f64::INFINITY, x)?;
    cx.emit(Compare { f: CompareFn::Lt }, &[size, infinity])
}

pub(super) fn nan_to_num(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let dtype = cx.dtype_of(x);
    if !dtype.is_float() {
        return Ok(x);
    }
    let greatest = greatest(dtype);
    let mut out = x;
    for (f, bound, name, default) in
        [(CompareFn::Eq, f64::INFINITY, "posinf", greatest), (CompareFn::Eq, f64::NEG_INFINITY, "neginf", -greatest)]
    {
        let bound = cx.float(bound, dtype)?;
        let hit = cx.emit(Compare { f }, &[x, bound])?;
        let with = cx.float_or(name, default)?;
        let with = cx.float(with, dtype)?;
        out = cx.emit(Select {}, &[hit, with, out])?;
    }
    let nan = cx.emit(Compare { f: CompareFn::Ne }, &[x, x])?;
    let with = cx.float_or("nan", 0.0)?;
    let with = cx.float(with, dtype)?;
    cx.emit(Select {}, &[nan, with, out])
}

/// The greatest finite value.
pub(super) fn greatest(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::MAX,
        DType::F16 => 65504.0,
        DType::BF16 => 3.389_531_389_251_535_5e38,
        _ => f64::from(f32::MAX),
    }
}

pub(super) fn compare(cx: &mut Cx<'_, '_>, f: CompareFn) -> Res<ValueId> {
    let (a, b) = two(cx)?;
    let dtype = result_type(cx, &[&a, &b])?;
    let (a, b) = (value(cx, &a, dtype)?, value(cx, &b, dtype)?);
    cx.emit(Compare { f }, &[a, b])
}

pub(super) fn logical(cx: &mut Cx<'_, '_>, f: BinaryFn) -> Res<ValueId> {
    let (a, b) = two(cx)?;
    let (a, b) = (value(cx, &a, DType::Bool)?, value(cx, &b, DType::Bool)?);
    cx.binary(f, a, b)
}

pub(super) fn logical_not(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let x = cx.cast(x, DType::Bool)?;
    cx.unary(UnaryFn::Not, x)
}

pub(super) fn bitwise_not(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    cx.unary(UnaryFn::Not, x)
}

pub(super) fn where_(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (a, b) = (cx.operand("self")?, cx.operand("other")?);
    let dtype = result_type(cx, &[&a, &b])?;
    let cond = cx.tensor("condition")?;
    let cond = cx.cast(cond, DType::Bool)?;
    let (a, b) = (value(cx, &a, dtype)?, value(cx, &b, dtype)?);
    cx.emit(Select {}, &[cond, a, b])
}

pub(super) fn masked_fill(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, mask, with) = (cx.tensor("self")?, cx.tensor("mask")?, cx.operand("value")?);
    let mask = cx.cast(mask, DType::Bool)?;
    let with = value(cx, &with, cx.dtype_of(x))?;
    cx.emit(Select {}, &[mask, with, x])
}

pub(super) fn clamp(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.operand("self")?;
    let bound = |cx: &mut Cx<'_, '_>, name: &str| if cx.has(name) { cx.operand(name).map(Some) } else { Ok(None) };
    let (min, max) = (bound(cx, "min")?, bound(cx, "max")?);
    let operands: Vec<&Operand> = [Some(&x), min.as_ref(), max.as_ref()].into_iter().flatten().collect();
    let dtype = result_type(cx, &operands)?;
    let mut out = value(cx, &x, dtype)?;
    let is = |o: &Option<Operand>, v: f64| matches!(o, Some(Operand::Number(n)) if n.is(v));
    if dtype.is_float() && is(&min, 0.0) && (max.is_none() || is(&max, 6.0)) {
        return cx.unary(if max.is_none() { UnaryFn::Relu } else { UnaryFn::Relu6 }, out);
    }
    for (f, bound) in [(BinaryFn::Max, min), (BinaryFn::Min, max)] {
        if let Some(bound) = bound {
            out = apply(cx, f, &Operand::Tensor(out), &bound, dtype)?;
        }
    }
    Ok(out)
}
