//! Histograms: how many elements, or how much weight, lies between edges.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, CompareFn, IndexPut, PutFn, ReduceFn},
};
use regraft_tensor::{DType, Dim};

use crate::pt2::args::{Cx, Res, ValueId, unsupported, wrong};

/// More bins than this are refused.
const MOST: usize = 1 << 20;

fn bins_of(count: i64) -> Res<usize> {
    match usize::try_from(count) {
        Ok(bins) if (1..=MOST).contains(&bins) => Ok(bins),
        _ => wrong(format!("{count} bins")),
    }
}

/// The edges of bins of equal width from the least to the greatest element, or between given bounds.
fn even_edges(cx: &mut Cx<'_, '_>, x: ValueId, bins: usize, range: Option<[f64; 2]>) -> Res<ValueId> {
    let dtype = cx.dtype_of(x);
    let (low, high) = match range {
        Some([low, high]) => (cx.float(low, dtype)?, cx.float(high, dtype)?),
        None if cx.ty(x).numel().is(0) => (cx.float(0.0, dtype)?, cx.float(0.0, dtype)?),
        None => (cx.reduce(ReduceFn::Min, x, &[0], false)?, cx.reduce(ReduceFn::Max, x, &[0], false)?),
    };
    let (low, high) = (cx.cast(low, DType::F64)?, cx.cast(high, DType::F64)?);
    // One value alone stands in the middle of a bin of width 1; of none there are bins from 0 to 1.
    let same = cx.compare(CompareFn::Eq, low, high)?;
    let same = cx.cast(same, DType::F64)?;
    let empty = range.is_none() && cx.ty(x).numel().is(0);
    let half = cx.with_literal(BinaryFn::Mul, same, if empty { 0.0 } else { 0.5 })?;
    let low = cx.binary(BinaryFn::Sub, low, half)?;
    let more = cx.with_literal(BinaryFn::Mul, same, if empty { 1.0 } else { 0.5 })?;
    let high = cx.binary(BinaryFn::Add, high, more)?;
    let span = cx.binary(BinaryFn::Sub, high, low)?;
    let step = cx.with_literal(BinaryFn::Div, span, bins as f64)?;
    let at = cx.iota(Dim::from(bins + 1), 0, 1)?;
    let at = cx.cast(at, DType::F64)?;
    let moved = cx.binary(BinaryFn::Mul, at, step)?;
    let edges = cx.binary(BinaryFn::Add, low, moved)?;
    // The last edge is the bound itself.
    let last = cx.compare_with(CompareFn::Eq, at, bins as f64)?;
    let edges = cx.select(last, high, edges)?;
    cx.cast(edges, dtype)
}

/// The bin of each element of a vector, and whether there is one: the last has both of its edges.
fn places(cx: &mut Cx<'_, '_>, x: ValueId, edges: ValueId) -> Res<(ValueId, ValueId)> {
    let Some(count) = cx.shape(edges).pop() else { return wrong("expected edges") };
    let end = &count - &Dim::new(1);
    let column = cx.unsqueeze(x, 1)?;
    let reached = cx.compare(CompareFn::Ge, column, edges)?;
    let reached = cx.cast(reached, DType::I64)?;
    let passed = cx.reduce(ReduceFn::Sum, reached, &[1], false)?;
    let (low, high) = (cx.slice(edges, 0, Dim::new(0), Dim::new(1))?, cx.slice(edges, 0, end.clone(), count)?);
    let (above, below) = (cx.compare(CompareFn::Ge, x, low)?, cx.compare(CompareFn::Le, x, high)?);
    let inside = cx.binary(BinaryFn::And, above, below)?;
    let one = cx.literal(Scalar::Int(1), DType::I64)?;
    let place = cx.binary(BinaryFn::Sub, passed, one)?;
    let last = cx.dim_value(&(&end - &Dim::new(1)), DType::I64)?;
    let place = cx.binary(BinaryFn::Min, place, last)?;
    let zero = cx.literal(Scalar::Int(0), DType::I64)?;
    Ok((cx.select(inside, place, zero)?, inside))
}

/// Weights added up by bin: of elements without one it is 0.
fn counted(cx: &mut Cx<'_, '_>, bins: usize, place: ValueId, inside: ValueId, dtype: DType) -> Res<ValueId> {
    let weight = match cx.optional_tensor("weight")? {
        Some(weight) => cx.flat(weight)?,
        None => cx.float(1.0, dtype)?,
    };
    let zero = cx.float_like(0.0, weight)?;
    let weight = cx.select(inside, weight, zero)?;
    let empty = cx.expand(zero, vec![Dim::from(bins)])?;
    cx.emit(IndexPut { axis: 0, f: PutFn::Add }, &[empty, weight, place])
}

/// Widths of bins.
fn widths(cx: &mut Cx<'_, '_>, edges: ValueId) -> Res<ValueId> {
    let Some(count) = cx.shape(edges).pop() else { return wrong("expected edges") };
    let low = cx.slice(edges, 0, Dim::new(0), &count - &Dim::new(1))?;
    let high = cx.slice(edges, 0, Dim::new(1), count)?;
    cx.binary(BinaryFn::Sub, high, low)
}

/// `torch.histogram` with a number of bins, or with edges.
pub(super) fn histogram(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = cx.tensor("self")?;
    let dtype = cx.dtype_of(x);
    let x = cx.flat(x)?;
    let edges = if cx.node.target.ends_with("bins_tensor") {
        cx.tensor("bins")?
    } else {
        let range = match cx.floats("range")?.as_slice() {
            [] => None,
            [low, high] => Some([*low, *high]),
            other => return wrong(format!("a range of {} numbers", other.len())),
        };
        let bins = bins_of(cx.int_or("bins", 100)?)?;
        even_edges(cx, x, bins, range)?
    };
    let bins = cx.size(edges, 0)?.saturating_sub(1);
    if bins == 0 {
        return wrong("expected two edges");
    }
    let (place, inside) = places(cx, x, edges)?;
    let mut out = counted(cx, bins, place, inside, dtype)?;
    if cx.bool_or("density", false)? {
        let total = cx.reduce(ReduceFn::Sum, out, &[0], false)?;
        out = cx.binary(BinaryFn::Div, out, total)?;
        let widths = widths(cx, edges)?;
        out = cx.binary(BinaryFn::Div, out, widths)?;
    }
    Ok(vec![Some(out), Some(edges)])
}

/// `torch.histogramdd` with numbers of bins: the last axis has the coordinates of points.
pub(super) fn histogramdd(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = cx.tensor("self")?;
    let (dtype, mut shape) = (cx.dtype_of(x), cx.shape(x));
    let Some(axes) = shape.pop() else { return wrong("expected points") };
    let points = shape.iter().product::<Dim>();
    if points.is(0) {
        return unsupported("a histogram of no points", "give it points");
    }
    let x = cx.reshape(x, vec![points, axes])?;
    let bins = cx.ints("bins")?.into_iter().map(bins_of).collect::<Res<Vec<_>>>()?;
    if bins.len() != cx.size(x, 1)? || bins.is_empty() {
        return wrong(format!("{} numbers of bins for {}", bins.len(), cx.ty(x)));
    }
    let all = bins.iter().try_fold(1usize, |n, b| n.checked_mul(*b).filter(|n| *n <= MOST));
    let Some(all) = all else { return wrong("too many bins") };
    let ranges = cx.floats("range")?;
    let (mut place, mut inside, mut edges) = (None, None, Vec::new());
    for (axis, count) in bins.iter().enumerate() {
        let column = cx.slice(x, 1, Dim::from(axis), Dim::from(axis + 1))?;
        let column = cx.squeeze(column, 1)?;
        let range = match (ranges.get(2 * axis), ranges.get(2 * axis + 1)) {
            (Some(low), Some(high)) => Some([*low, *high]),
            _ => None,
        };
        let own = even_edges(cx, column, *count, range)?;
        let (at, within) = places(cx, column, own)?;
        place = Some(match place {
            Some(before) => {
                let count = cx.literal(Scalar::Int(*count as i64), DType::I64)?;
                let before = cx.binary(BinaryFn::Mul, before, count)?;
                cx.binary(BinaryFn::Add, before, at)?
            }
            None => at,
        });
        inside = Some(match inside {
            Some(before) => cx.binary(BinaryFn::And, before, within)?,
            None => within,
        });
        edges.push(own);
    }
    let (Some(place), Some(inside)) = (place, inside) else { return wrong("expected axes") };
    let mut out = counted(cx, all, place, inside, dtype)?;
    let density = cx.bool_or("density", false)?;
    if density {
        let total = cx.reduce(ReduceFn::Sum, out, &[0], false)?;
        out = cx.binary(BinaryFn::Div, out, total)?;
    }
    out = cx.reshape(out, bins.iter().map(|b| Dim::from(*b)).collect())?;
    for (axis, own) in edges.iter().enumerate().filter(|_| density) {
        let widths = widths(cx, *own)?;
        let widths = cx.along(widths, bins.len(), axis)?;
        out = cx.binary(BinaryFn::Div, out, widths)?;
    }
    Ok([vec![out], edges].concat().into_iter().map(Some).collect())
}
