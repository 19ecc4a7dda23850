//! `torch.gradient`: slopes by differences of neighbors, at the ends by one side.

use regraft_ir::ops::BinaryFn;
use regraft_tensor::{DType, Dim};

use super::elementwise::to_float;
use crate::pt2::{
    args::{Cx, Res, ValueId, wrong},
    schema::Argument,
};

/// How far points are apart along an axis.
enum Spacing {
    Equal(f64),
    /// The position of each point.
    Points(ValueId),
}

/// The spacings of so many axes.
fn spacings(cx: &mut Cx<'_, '_>, axes: usize, dtype: DType) -> Res<Vec<Spacing>> {
    let list = match cx.arg("spacing") {
        None => vec![1.0; axes],
        Some(Argument::Tensors(_)) => {
            let points = cx.tensors("spacing")?;
            return points.into_iter().map(|v| cx.cast(v, dtype).map(Spacing::Points)).collect();
        }
        Some(Argument::Floats(_) | Argument::Ints(_)) => cx.floats("spacing")?,
        Some(_) => vec![cx.float_or("spacing", 1.0)?; axes],
    };
    Ok(list.into_iter().map(Spacing::Equal).collect())
}

pub(super) fn gradient(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = cx.tensor("self")?;
    let dtype = to_float(cx.dtype_of(x));
    let (x, rank) = (cx.cast(x, dtype)?, cx.rank(x));
    let dims = cx.ints("dim")?;
    let axes = if dims.is_empty() {
        (0..rank).collect()
    } else {
        dims.iter().map(|d| cx.axis(*d, rank)).collect::<Res<Vec<_>>>()?
    };
    let spacings = spacings(cx, axes.len(), dtype)?;
    if spacings.len() != axes.len() || rank == 0 {
        return wrong(format!("{} spacings for {} axes", spacings.len(), axes.len()));
    }
    let second = match cx.int_or("edge_order", 1)? {
        1 => false,
        2 => true,
        order => return wrong(format!("ends of order {order}")),
    };
    let mut out = Vec::new();
    for (axis, spacing) in axes.into_iter().zip(spacings) {
        out.push(Some(along(cx, x, axis, &spacing, second)?));
    }
    Ok(out)
}

/// The weighted sum of three neighbors, each times its weight.
fn weighted(cx: &mut Cx<'_, '_>, terms: [(ValueId, ValueId); 3]) -> Res<ValueId> {
    let mut sum = None;
    for (value, weight) in terms {
        let product = cx.binary(BinaryFn::Mul, value, weight)?;
        sum = Some(match sum {
            Some(sum) => cx.binary(BinaryFn::Add, sum, product)?,
            None => product,
        });
    }
    sum.map_or_else(|| wrong("expected three terms"), Ok)
}

fn along(cx: &mut Cx<'_, '_>, x: ValueId, axis: usize, spacing: &Spacing, second: bool) -> Res<ValueId> {
    let (rank, size) = (cx.rank(x), cx.size(x, axis)?);
    if size < 2 + usize::from(second) {
        return wrong(format!("a gradient along an axis of {size} elements"));
    }
    // `x[start..size - end]` along the axis.
    let part = |cx: &mut Cx<'_, '_>, v: ValueId, axis: usize, start: usize, end: usize| {
        let size = cx.size(v, axis)?;
        cx.slice(v, axis, Dim::from(start), Dim::from(size.saturating_sub(end).max(start)))
    };
    // Steps between neighbors, in a shape that broadcasts.
    let steps = match spacing {
        Spacing::Equal(step) => {
            let step = cx.float_like(*step, x)?;
            cx.expand(step, vec![Dim::from(size - 1)])?
        }
        Spacing::Points(points) => {
            let (before, after) = (part(cx, *points, 0, 0, 1)?, part(cx, *points, 0, 1, 0)?);
            cx.binary(BinaryFn::Sub, after, before)?
        }
    };
    let steps = cx.along(steps, rank, axis)?;
    let (left, right) = (part(cx, steps, axis, 0, 1)?, part(cx, steps, axis, 1, 0)?);
    let middle = {
        let both = cx.binary(BinaryFn::Add, left, right)?;
        let apart = cx.binary(BinaryFn::Sub, right, left)?;
        let minus = cx.unary(regraft_ir::ops::UnaryFn::Neg, right)?;
        let (low, high) = (cx.binary(BinaryFn::Mul, left, both)?, cx.binary(BinaryFn::Mul, right, both)?);
        let (first, last) = (cx.binary(BinaryFn::Div, minus, low)?, cx.binary(BinaryFn::Div, left, high)?);
        let product = cx.binary(BinaryFn::Mul, left, right)?;
        let own = cx.binary(BinaryFn::Div, apart, product)?;
        let (a, b, c) = (part(cx, x, axis, 0, 2)?, part(cx, x, axis, 1, 1)?, part(cx, x, axis, 2, 0)?);
        weighted(cx, [(a, first), (b, own), (c, last)])?
    };
    let (first, last) = if second {
        (end_of_second_order(cx, x, steps, axis, false)?, end_of_second_order(cx, x, steps, axis, true)?)
    } else {
        let mut ends = Vec::new();
        for at in [0, size - 2] {
            let one = |cx: &mut Cx<'_, '_>, v, at: usize| cx.slice(v, axis, Dim::from(at), Dim::from(at + 1));
            let (low, high, step) = (one(cx, x, at)?, one(cx, x, at + 1)?, one(cx, steps, at)?);
            let apart = cx.binary(BinaryFn::Sub, high, low)?;
            ends.push(cx.binary(BinaryFn::Div, apart, step)?);
        }
        match ends.as_slice() {
            [first, last] => (*first, *last),
            _ => return wrong("expected two ends"),
        }
    };
    cx.concat(&[first, middle, last], axis)
}

/// The slope at an end by the parabola through the three points there.
fn end_of_second_order(cx: &mut Cx<'_, '_>, x: ValueId, steps: ValueId, axis: usize, last: bool) -> Res<ValueId> {
    let one = |cx: &mut Cx<'_, '_>, v: ValueId, from_end: usize| {
        let size = cx.size(v, axis)?;
        let at = if last { size.saturating_sub(from_end + 1) } else { from_end };
        cx.slice(v, axis, Dim::from(at), Dim::from(at + 1))
    };
    // From the end on: points f0, f1, f2 with steps h and k between them.
    let (f0, f1, f2) = (one(cx, x, 0)?, one(cx, x, 1)?, one(cx, x, 2)?);
    let (h, k) = (one(cx, steps, 0)?, one(cx, steps, 1)?);
    let sum = cx.binary(BinaryFn::Add, h, k)?;
    let far = cx.binary(BinaryFn::Add, sum, h)?;
    let product = cx.binary(BinaryFn::Mul, h, sum)?;
    let a = cx.binary(BinaryFn::Div, far, product)?;
    let product = cx.binary(BinaryFn::Mul, h, k)?;
    let b = cx.binary(BinaryFn::Div, sum, product)?;
    let product = cx.binary(BinaryFn::Mul, k, sum)?;
    let c = cx.binary(BinaryFn::Div, h, product)?;
    // The parabola falls towards smaller positions at the last point, and rises from the first.
    let (a, b, c) = {
        let minus = |cx: &mut Cx<'_, '_>, v| cx.unary(regraft_ir::ops::UnaryFn::Neg, v);
        if last { (a, minus(cx, b)?, c) } else { (minus(cx, a)?, b, minus(cx, c)?) }
    };
    weighted(cx, [(f0, a), (f1, b), (f2, c)])
}
