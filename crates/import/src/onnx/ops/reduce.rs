//! Reductions, softmax, running sums and orders.

use regraft_ir::{
    Scalar,
    ops::{
        ArgReduce, ArgReduceFn, BinaryFn, CompareFn, Cumsum, Cumulate, CumulateFn, Flip, ReduceFn, Softmax, UnaryFn,
    },
};
use regraft_tensor::{DType, Dim};

use crate::{
    build::sorted,
    onnx::args::{Cx, Res, ValueId, unsupported, wrong},
};

/// The operand, the axes, which may be none, and whether they stay.
fn operands(cx: &mut Cx<'_, '_>) -> Res<(ValueId, Vec<usize>, bool)> {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    let keep = cx.flag("keepdims", true)?;
    let nothing = cx.flag("noop_with_empty_axes", false)?;
    let axes = match cx.axes(1, rank)?.filter(|axes| !axes.is_empty()) {
        Some(axes) => axes,
        None if nothing => vec![],
        None => (0..rank).collect(),
    };
    Ok((x, axes, keep))
}

/// A reduction over `axes`; of nothing what the function begins with.
fn over(cx: &mut Cx<'_, '_>, f: ReduceFn, x: ValueId, axes: &[usize], keep: bool) -> Res<ValueId> {
    let dtype = cx.dtype_of(x);
    let sizes = cx.ty(x).shape.clone();
    let nothing = axes.iter().any(|a| sizes.get(*a).is_some_and(|d| d.is(0)));
    if nothing && matches!(f, ReduceFn::Max | ReduceFn::Min) {
        let value = match (f, dtype) {
            (ReduceFn::Max, DType::Bool) => Scalar::Int(0),
            (_, DType::Bool) => Scalar::Int(1),
            (ReduceFn::Max, dtype) if dtype.is_float() => Scalar::Float(f64::NEG_INFINITY),
            (_, dtype) if dtype.is_float() => Scalar::Float(f64::INFINITY),
            _ => return unsupported("an extremum of no elements", "reduce an axis that has elements"),
        };
        let kept = |(i, d): (usize, &Dim)| match axes.contains(&i) {
            true => keep.then(|| Dim::new(1)),
            false => Some(d.clone()),
        };
        let shape = sizes.iter().enumerate().filter_map(kept).collect();
        let value = cx.literal(value, dtype)?;
        return cx.expand(value, shape);
    }
    if dtype == DType::Bool && matches!(f, ReduceFn::Max | ReduceFn::Min) {
        let f = if f == ReduceFn::Max { ReduceFn::Any } else { ReduceFn::All };
        return cx.reduce(f, x, axes, keep);
    }
    cx.reduce(f, x, axes, keep)
}

pub(super) fn plain(cx: &mut Cx<'_, '_>, f: ReduceFn) -> Res<ValueId> {
    let (x, axes, keep) = operands(cx)?;
    if f == ReduceFn::Mean && !cx.dtype_of(x).is_float() {
        let dtype = cx.dtype_of(x);
        let wide = cx.cast(x, DType::F64)?;
        let mean = over(cx, f, wide, &axes, keep)?;
        return cx.cast(mean, dtype);
    }
    over(cx, f, x, &axes, keep)
}

/// The sum of a function of each element, and a function of it.
pub(super) fn sum_of(cx: &mut Cx<'_, '_>, before: Option<UnaryFn>, after: Option<UnaryFn>) -> Res<ValueId> {
    let (x, axes, keep) = operands(cx)?;
    let dtype = cx.dtype_of(x);
    let float = dtype.is_float();
    let each = match before {
        Some(f) => cx.unary(f, x)?,
        None => cx.binary(BinaryFn::Mul, x, x)?,
    };
    let sum = cx.reduce(ReduceFn::Sum, each, &axes, keep)?;
    match after {
        None => Ok(sum),
        Some(f) if float => cx.unary(f, sum),
        Some(f) => {
            let wide = cx.cast(sum, DType::F64)?;
            let out = cx.unary(f, wide)?;
            cx.cast(out, dtype)
        }
    }
}

pub(super) fn log_sum(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, axes, keep) = operands(cx)?;
    let sum = cx.reduce(ReduceFn::Sum, x, &axes, keep)?;
    cx.unary(UnaryFn::Log, sum)
}

pub(super) fn log_sum_exp(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, axes, keep) = operands(cx)?;
    let max = over(cx, ReduceFn::Max, x, &axes, true)?;
    // A greatest value that is infinite must not be subtracted from itself.
    let size = cx.unary(UnaryFn::Abs, max)?;
    let infinite = cx.compare_with(CompareFn::Eq, size, f64::INFINITY)?;
    let zero = cx.float_like(0.0, x)?;
    let shift = cx.select(infinite, zero, max)?;
    let moved = cx.binary(BinaryFn::Sub, x, shift)?;
    let powers = cx.unary(UnaryFn::Exp, moved)?;
    let sum = cx.reduce(ReduceFn::Sum, powers, &axes, true)?;
    let log = cx.unary(UnaryFn::Log, sum)?;
    let out = cx.binary(BinaryFn::Add, log, shift)?;
    if keep {
        return Ok(out);
    }
    let shape = cx.shape(out).into_iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d).collect();
    cx.reshape(out, shape)
}

pub(super) fn arg_extreme(cx: &mut Cx<'_, '_>, f: ArgReduceFn) -> Res<ValueId> {
    let x = cx.input(0)?;
    let axis = cx.axis_attr("axis", 0, cx.rank(x))?;
    let keep = cx.flag("keepdims", true)?;
    if !cx.flag("select_last_index", false)? {
        return cx.emit(ArgReduce { f, axis, keep }, &[x]);
    }
    let turned = cx.emit(Flip { axes: vec![axis] }, &[x])?;
    let at = cx.emit(ArgReduce { f, axis, keep }, &[turned])?;
    let size = cx.ty(x).shape.get(axis).cloned().unwrap_or(Dim::new(1));
    let last = cx.dim_value(&(&size - &Dim::new(1)), DType::I64)?;
    cx.binary(BinaryFn::Sub, last, at)
}

/// The operand and axis of a softmax, and the shape of its result: before opset 13 all axes from `axis` on are one.
pub(super) fn softmax_operand(cx: &mut Cx<'_, '_>) -> Res<(ValueId, usize, Vec<Dim>)> {
    let x = cx.input(0)?;
    let shape = cx.shape(x);
    let old = cx.version < 13;
    let axis = cx.axis_attr("axis", if old { 1 } else { -1 }, cx.rank(x))?;
    if !old {
        return Ok((x, axis, shape));
    }
    let product = |dims: Option<&[Dim]>| dims.unwrap_or(&[]).iter().product::<Dim>();
    let two = vec![product(shape.get(..axis)), product(shape.get(axis..))];
    Ok((cx.reshape(x, two)?, 1, shape))
}

pub(super) fn softmax(cx: &mut Cx<'_, '_>, log: bool) -> Res<ValueId> {
    let (x, axis, shape) = softmax_operand(cx)?;
    let out = cx.emit(Softmax { axis, log }, &[x])?;
    cx.reshape(out, shape)
}

fn running(
    cx: &mut Cx<'_, '_>,
    begin: f64,
    f: impl Fn(&mut Cx<'_, '_>, ValueId, usize) -> Res<ValueId>,
) -> Res<ValueId> {
    let mut x = cx.input(0)?;
    let axis = cx.int(1)?;
    let axis = cx.axis_of(axis, cx.rank(x))?;
    let (exclusive, reverse) = (cx.flag("exclusive", false)?, cx.flag("reverse", false)?);
    if reverse {
        x = cx.emit(Flip { axes: vec![axis] }, &[x])?;
    }
    let mut out = f(cx, x, axis)?;
    if exclusive {
        // One step later, from what the function begins with.
        let mut first = cx.shape(out);
        let Some(slot) = first.get_mut(axis) else { return wrong("expected an axis") };
        let last = &*slot - &Dim::new(1);
        *slot = Dim::new(1);
        let begin = cx.float_like(begin, out)?;
        let begin = cx.expand(begin, first)?;
        let rest = cx.slice(out, axis, Dim::new(0), last)?;
        out = cx.concat(&[begin, rest], axis)?;
    }
    if reverse { cx.emit(Flip { axes: vec![axis] }, &[out]) } else { Ok(out) }
}

pub(super) fn cumsum(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    running(cx, 0.0, |cx, x, axis| cx.emit(Cumsum { axis }, &[x]))
}

pub(super) fn cumprod(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    running(cx, 1.0, |cx, x, axis| cx.emit(Cumulate { f: CumulateFn::Prod, axis }, &[x]))
}

pub(super) fn topk(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = cx.input(0)?;
    let axis = cx.axis_attr("axis", -1, cx.rank(x))?;
    let k = match cx.optional_int_attr("k")? {
        Some(k) => Dim::new(k),
        None => match cx.dims(1)?.as_slice() {
            [k] => k.clone(),
            _ => return wrong("expected one number as `k`"),
        },
    };
    let largest = cx.flag("largest", true)?;
    // In order is one of the orders that `sorted = 0` allows.
    cx.ignore("sorted");
    let (values, positions) = sorted(cx, x, axis, largest)?;
    let values = cx.slice(values, axis, Dim::new(0), k.clone())?;
    let positions = cx.slice(positions, axis, Dim::new(0), k)?;
    Ok(vec![Some(values), Some(positions)])
}

/// Each vector along an axis over its norm.
pub(super) fn lp_normalization(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let axis = cx.axis_attr("axis", -1, cx.rank(x))?;
    let norm = match cx.int_attr("p", 2)? {
        1 => {
            let size = cx.unary(UnaryFn::Abs, x)?;
            cx.reduce(ReduceFn::Sum, size, &[axis], true)?
        }
        2 => {
            let square = cx.binary(BinaryFn::Mul, x, x)?;
            let sum = cx.reduce(ReduceFn::Sum, square, &[axis], true)?;
            cx.unary(UnaryFn::Sqrt, sum)?
        }
        p => return wrong(format!("a norm of order {p}")),
    };
    // Nothing but zeros stays that.
    let zero = cx.compare_with(CompareFn::Eq, norm, 0.0)?;
    let one = cx.float_like(1.0, x)?;
    let norm = cx.select(zero, one, norm)?;
    cx.binary(BinaryFn::Div, x, norm)
}
