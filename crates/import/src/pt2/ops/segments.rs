//! Reductions of consecutive rows.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, CompareFn, Cumsum, ReduceFn},
};
use regraft_tensor::{DType, Dim};

use crate::pt2::args::{Cx, Res, ValueId, unsupported, wrong};

/// Where each segment begins and ends.
fn bounds(cx: &mut Cx<'_, '_>) -> Res<(ValueId, ValueId)> {
    let vector = |cx: &Cx<'_, '_>, v: ValueId| match cx.rank(v) {
        1 => Ok(()),
        _ => unsupported("segments of several tensors at once", "reduce them one by one"),
    };
    if let Some(lengths) = cx.optional_tensor("lengths")? {
        vector(cx, lengths)?;
        let lengths = cx.cast(lengths, DType::I64)?;
        let ends = cx.emit(Cumsum { axis: 0 }, &[lengths])?;
        return Ok((cx.binary(BinaryFn::Sub, ends, lengths)?, ends));
    }
    let Some(offsets) = cx.optional_tensor("offsets")? else { return wrong("expected lengths or offsets") };
    vector(cx, offsets)?;
    let offsets = cx.cast(offsets, DType::I64)?;
    let Some(count) = cx.shape(offsets).pop() else { return wrong("expected offsets") };
    let starts = cx.slice(offsets, 0, Dim::new(0), &count - &Dim::new(1))?;
    Ok((starts, cx.slice(offsets, 0, Dim::new(1), count)?))
}

/// `torch.segment_reduce` along the first axis.
pub(super) fn segment_reduce(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let data = cx.tensor("data")?;
    let rank = cx.rank(data);
    if cx.axis_arg("axis", Some(0), rank)? != 0 || rank == 0 {
        return unsupported("segments along another axis than the first", "move it to the front");
    }
    let (f, neutral) = match cx.optional_text("reduce")?.unwrap_or_default() {
        "sum" | "mean" => (ReduceFn::Sum, 0.0),
        "max" => (ReduceFn::Max, f64::NEG_INFINITY),
        "min" => (ReduceFn::Min, f64::INFINITY),
        "prod" => (ReduceFn::Prod, 1.0),
        other => return wrong(format!("`{other}` is not a reduction")),
    };
    let (starts, ends) = bounds(cx)?;
    let Some(rows) = cx.shape(data).into_iter().next() else { return wrong("expected rows") };
    let row = cx.iota(rows, 0, 1)?;
    let (start, end) = (cx.unsqueeze(starts, 1)?, cx.unsqueeze(ends, 1)?);
    let behind = cx.compare(CompareFn::Ge, row, start)?;
    let before = cx.compare(CompareFn::Lt, row, end)?;
    let mut inside = cx.binary(BinaryFn::And, behind, before)?;
    for axis in 1..rank {
        inside = cx.unsqueeze(inside, axis + 1)?;
    }
    // An initial value is one element more of each segment; without rows nothing else is left.
    let initial = cx.optional_float("initial")?;
    let whole = cx.unsqueeze(data, 0)?;
    let other = cx.float_like(neutral, data)?;
    let chosen = cx.select(inside, whole, other)?;
    let one_more = cx.float_like(initial.unwrap_or(neutral), data)?;
    let mut shape = cx.shape(chosen);
    if let Some(slot) = shape.get_mut(1) {
        *slot = Dim::new(1);
    }
    let one_more = cx.expand(one_more, shape)?;
    let chosen = cx.concat(&[chosen, one_more], 1)?;
    let out = cx.reduce(f, chosen, &[1], false)?;
    if cx.optional_text("reduce")? != Some("mean") {
        return Ok(out);
    }
    let mut count = cx.binary(BinaryFn::Sub, ends, starts)?;
    for axis in 1..rank {
        count = cx.unsqueeze(count, axis)?;
    }
    if initial.is_some() {
        let one = cx.literal(Scalar::Int(1), DType::I64)?;
        count = cx.binary(BinaryFn::Max, count, one)?;
    }
    let count = cx.cast_like(count, out)?;
    cx.binary(BinaryFn::Div, out, count)
}
