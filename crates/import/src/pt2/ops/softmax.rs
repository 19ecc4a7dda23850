//! Softmax and its relatives.

use regraft_ir::ops::{BinaryFn, Compare, CompareFn, Reduce, ReduceFn, Select, Softmax, UnaryFn};

use crate::pt2::args::{Cx, Res, ValueId};

fn of(cx: &mut Cx<'_, '_>, log: bool) -> Res<ValueId> {
    let mut x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    // `half_to_float` gives f32, as the program's type of the result says.
    let dtype = match cx.dtype("dtype")? {
        Some(dtype) => Some(dtype),
        None if cx.bool_or("half_to_float", false)? => cx.result_dtype(),
        None => None,
    };
    if let Some(dtype) = dtype {
        x = cx.cast(x, dtype)?;
    }
    if cx.rank(x) == 0 {
        let row = cx.unsqueeze(x, 0)?;
        let row = cx.emit(Softmax { axis: 0, log }, &[row])?;
        return cx.squeeze(row, 0);
    }
    cx.emit(Softmax { axis, log }, &[x])
}

pub(super) fn softmax(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    of(cx, false)
}

pub(super) fn log_softmax(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    of(cx, true)
}

/// Softmax that gives zeros where a row has nothing but -inf.
pub(super) fn safe_softmax(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let out = of(cx, false)?;
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    let least = cx.float_like(f64::NEG_INFINITY, x)?;
    let empty = cx.emit(Compare { f: CompareFn::Eq }, &[x, least])?;
    let empty = cx.emit(Reduce { f: ReduceFn::All, axes: vec![axis], keep: true }, &[empty])?;
    let zero = cx.float_like(0.0, out)?;
    cx.emit(Select {}, &[empty, zero, out])
}

pub(super) fn logsumexp(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = super::elementwise::float_arg(cx, "self")?;
    let axes = cx.axes("dim", cx.rank(x))?;
    let keep = cx.bool_or("keepdim", false)?;
    log_sum_exp(cx, x, &axes, keep)
}

/// `log(Σ e^x)` over some axes, also for large `x`.
pub(super) fn log_sum_exp(cx: &mut Cx<'_, '_>, x: ValueId, axes: &[usize], keep: bool) -> Res<ValueId> {
    let reduce = |f, keep| Reduce { f, axes: axes.to_vec(), keep };
    let max = cx.emit(reduce(ReduceFn::Max, true), &[x])?;
    // A greatest value that is infinite must not be subtracted from itself.
    let size = cx.unary(UnaryFn::Abs, max)?;
    let infinity = cx.float_like(f64::INFINITY, x)?;
    let infinite = cx.emit(Compare { f: CompareFn::Eq }, &[size, infinity])?;
    let zero = cx.float_like(0.0, x)?;
    let shift = cx.emit(Select {}, &[infinite, zero, max])?;
    let shifted = cx.binary(BinaryFn::Sub, x, shift)?;
    let powers = cx.unary(UnaryFn::Exp, shifted)?;
    let sum = cx.emit(reduce(ReduceFn::Sum, true), &[powers])?;
    let log = cx.unary(UnaryFn::Log, sum)?;
    let out = cx.binary(BinaryFn::Add, log, shift)?;
    if keep {
        return Ok(out);
    }
    let mut shape = cx.shape(out);
    for axis in axes.iter().rev() {
        if *axis < shape.len() {
            shape.remove(*axis);
        }
    }
    cx.reshape(out, shape)
}
