//! Reading elements at computed positions.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, Compare, CompareFn, Embedding, Gather, Index, IndexPut, Iota, PutFn, Reduce, ReduceFn, Select},
};
use regraft_tensor::{DType, Dim};

use crate::pt2::args::{Cx, Number, Res, ValueId, unsupported, wrong};

pub(super) fn embedding(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (weight, ids) = (cx.tensor("weight")?, cx.tensor("indices")?);
    cx.emit(Embedding {}, &[weight, ids])
}

/// Rows of a table by bags of ids: the sum, mean or maximum of each, weighted, or without those of one id.
pub(super) fn embedding_bag(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    const HELP: &str = "give the ids as a matrix with one bag per row";
    let (weight, ids) = (cx.tensor("weight")?, cx.tensor("indices")?);
    let factors = cx.optional_tensor("per_sample_weights")?;
    let padding = cx.int_or("padding_idx", -1)?;
    let f = match cx.int_or("mode", 0)? {
        0 => ReduceFn::Sum,
        1 => ReduceFn::Mean,
        2 => ReduceFn::Max,
        other => return wrong(format!("{other} is not a mode of embedding_bag")),
    };
    // The matrix form has become a flat list of ids with offsets `arange(0, n·k, k)`.
    let (flat, bags) = match (cx.ty(ids).shape.as_slice(), cx.result(0)) {
        ([n], Some(result)) => (n.clone(), result.shape.first().cloned()),
        _ => return unsupported("this form of embedding_bag", HELP),
    };
    let Some(bags) = bags else { return unsupported("this form of embedding_bag", HELP) };
    let offsets = cx.tensor("offsets")?;
    let per = flat.exact_div(&bags).filter(|_| regular(cx, offsets, &flat, &bags));
    let Some(per) = per.filter(|_| padding < 0 && factors.is_none()) else {
        return Ok(vec![Some(uneven_bags(cx, weight, ids, offsets, &bags, f)?), None, None, None]);
    };
    let rows = cx.reshape(ids, vec![bags, per])?;
    let rows = cx.emit(Embedding {}, &[weight, rows])?;
    let out = cx.emit(Reduce { f, axes: vec![1], keep: false }, &[rows])?;
    Ok(vec![Some(out), None, None, None])
}

/// Bags that begin where `offsets` says: each row is added to its bag.
fn uneven_bags(
    cx: &mut Cx<'_, '_>,
    weight: ValueId,
    ids: ValueId,
    offsets: ValueId,
    bags: &Dim,
    f: ReduceFn,
) -> Res<ValueId> {
    let (given, padding) = (cx.dtype_of(weight), cx.int_or("padding_idx", -1)?);
    // Halves are joined in f32.
    let dtype = if given == DType::F64 { given } else { DType::F32 };
    let rows = cx.emit(Embedding {}, &[weight, ids])?;
    let mut rows = cx.cast(rows, dtype)?;
    if let Some(factors) = cx.optional_tensor("per_sample_weights")? {
        let factors = cx.cast(factors, dtype)?;
        let factors = cx.unsqueeze(factors, 1)?;
        rows = cx.binary(BinaryFn::Mul, rows, factors)?;
    }
    let start = cx.slice(offsets, 0, Dim::new(0), bags.clone())?;
    let start = cx.cast(start, DType::I64)?;
    let Some(count) = cx.ty(ids).shape.first().cloned() else { return wrong("expected ids") };
    let at = cx.iota(count, 0, 1)?;
    let at = cx.unsqueeze(at, 1)?;
    let begun = cx.compare(CompareFn::Le, start, at)?;
    let begun = cx.cast(begun, DType::I64)?;
    let begun = cx.reduce(ReduceFn::Sum, begun, &[1], false)?;
    let one = cx.literal(Scalar::Int(1), DType::I64)?;
    let bag = cx.binary(BinaryFn::Sub, begun, one)?;
    let (add, neutral) = match f {
        ReduceFn::Max => (PutFn::Max, f64::NEG_INFINITY),
        _ => (PutFn::Add, 0.0),
    };
    let neutral = cx.float(neutral, dtype)?;
    let ids = cx.cast(ids, DType::I64)?;
    let skipped = cx.literal(Scalar::Int(padding), DType::I64)?;
    let counts = cx.compare(CompareFn::Ne, ids, skipped)?;
    let counts = cx.unsqueeze(counts, 1)?;
    rows = cx.select(counts, rows, neutral)?;
    let Some(width) = cx.ty(weight).shape.get(1).cloned() else { return wrong("expected a table") };
    let empty = cx.expand(neutral, vec![bags.clone(), width])?;
    let sum = cx.emit(IndexPut { axis: 0, f: add }, &[empty, rows, bag])?;
    if f == ReduceFn::Sum {
        return cx.cast(sum, given);
    }
    let zero = cx.float(0.0, dtype)?;
    let none = cx.expand(zero, vec![bags.clone(), Dim::new(1)])?;
    let counts = cx.cast(counts, dtype)?;
    let number = cx.emit(IndexPut { axis: 0, f: PutFn::Add }, &[none, counts, bag])?;
    if f == ReduceFn::Max {
        let some = cx.compare(CompareFn::Gt, number, zero)?;
        let out = cx.select(some, sum, zero)?;
        return cx.cast(out, given);
    }
    let number = cx.with_literal(BinaryFn::Max, number, 1.0)?;
    let out = cx.binary(BinaryFn::Div, sum, number)?;
    cx.cast(out, given)
}

/// Whether `offsets` is `0, k, 2k, ..` for equal bags.
fn regular(cx: &Cx<'_, '_>, offsets: ValueId, flat: &Dim, bags: &Dim) -> bool {
    let Some(id) = cx.graph.producer(offsets) else { return false };
    match &cx.graph.node(id).op {
        regraft_ir::Op::Iota(iota) => iota.start.is(0) && flat.exact_div(bags).is_some_and(|per| per == iota.step),
        _ => false,
    }
}

pub(super) fn gather(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, index) = (cx.tensor("self")?, cx.tensor("index")?);
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    let alone = cx.rank(index) == 0;
    let (x, index) = (cx.with_axis(x)?, cx.with_axis(index)?);
    let index = if cx.dtype_of(index) == DType::U8 { cx.cast(index, DType::I64)? } else { index };
    let out = cx.emit(Gather { axis }, &[x, index])?;
    if alone { cx.squeeze(out, 0) } else { Ok(out) }
}

pub(super) fn take_along_dim(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (mut x, mut index) = (cx.tensor("self")?, cx.tensor("indices")?);
    let Some(dim) = cx.optional_int("dim")? else {
        let n = cx.ty(x).numel();
        x = cx.reshape(x, vec![n])?;
        let n = cx.ty(index).numel();
        index = cx.reshape(index, vec![n])?;
        return cx.emit(Gather { axis: 0 }, &[x, index]);
    };
    let rank = cx.rank(x);
    let axis = cx.axis(dim, rank)?;
    if cx.rank(index) != rank {
        return wrong("take_along_dim with indices of another number of axes");
    }
    let (mut to, mut of) = (cx.shape(x), cx.shape(index));
    for i in (0..rank).filter(|i| *i != axis) {
        if let (Some(a), Some(b)) = (to.get_mut(i), of.get_mut(i)) {
            if a.is(1) { a.clone_from(b) } else { b.clone_from(a) }
        }
    }
    let index = from_the_front(cx, index, &cx.ty(x).shape.get(axis).cloned().unwrap_or(Dim::new(1)))?;
    let x = cx.expand(x, to)?;
    let index = cx.expand(index, of)?;
    cx.emit(Gather { axis }, &[x, index])
}

/// Indices that count from the end where they are negative, as ones that count from the front.
pub(super) fn from_the_front(cx: &mut Cx<'_, '_>, index: ValueId, size: &Dim) -> Res<ValueId> {
    let index = cx.cast(index, DType::I64)?;
    if is_natural(cx, index) {
        return Ok(index);
    }
    let zero = cx.literal(Scalar::Int(0), DType::I64)?;
    let size = cx.number_value(&Number::Dim(size.clone()), DType::I64)?;
    let negative = cx.emit(Compare { f: CompareFn::Lt }, &[index, zero])?;
    let wrapped = cx.binary(BinaryFn::Add, index, size)?;
    cx.emit(Select {}, &[negative, wrapped, index])
}

pub(super) fn index_select(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, index) = (cx.tensor("self")?, cx.tensor("index")?);
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    let index = cx.with_axis(index)?;
    if cx.rank(x) == 0 {
        let row = cx.unsqueeze(x, 0)?;
        let out = cx.emit(Embedding {}, &[row, index])?;
        return cx.squeeze(out, 0);
    }
    if axis == 0 {
        return cx.emit(Embedding {}, &[x, index]);
    }
    let index = cx.cast(index, DType::I64)?;
    cx.emit(Index { axis }, &[x, index])
}

/// `x[i, j]`, `x[:, i]`, `x[i, :, j]`: index tensors on any axes.
pub(super) fn index(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let indices = cx.optional_tensors("indices")?;
    indexed(cx, x, indices)
}

/// `x[indices]` where a mask is true, `fill` elsewhere; indices outside are taken for the nearest inside.
pub(super) fn masked_index(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, mask) = (cx.tensor("self")?, cx.tensor("mask")?);
    let fill = cx.number("fill")?;
    let indices = cx.optional_tensors("indices")?;
    let indices = clamped(cx, x, indices, false)?;
    let found = indexed(cx, x, indices)?;
    let fill = cx.number_like(&fill, x)?;
    let mask = cx.cast(mask, DType::Bool)?;
    cx.select(mask, found, fill)
}

/// Indices within the axes of `x`, of which those from the end may stay.
pub(super) fn clamped(
    cx: &mut Cx<'_, '_>,
    x: ValueId,
    indices: Vec<Option<ValueId>>,
    from_the_end: bool,
) -> Res<Vec<Option<ValueId>>> {
    let shape = cx.shape(x);
    let mut out = Vec::with_capacity(indices.len());
    for (index, size) in indices.into_iter().zip(shape.iter().chain(std::iter::repeat(&Dim::new(1)))) {
        let Some(index) = index else {
            out.push(None);
            continue;
        };
        let index = cx.cast(index, DType::I64)?;
        let last = cx.dim_value(&(size - &Dim::new(1)), DType::I64)?;
        let first = if from_the_end { &Dim::new(0) - size } else { Dim::new(0) };
        let first = cx.dim_value(&first, DType::I64)?;
        let index = cx.binary(BinaryFn::Max, index, first)?;
        out.push(Some(cx.binary(BinaryFn::Min, index, last)?));
    }
    Ok(out)
}

pub(super) fn indexed(cx: &mut Cx<'_, '_>, mut x: ValueId, indices: Vec<Option<ValueId>>) -> Res<ValueId> {
    let axes: Vec<usize> = (0..indices.len()).filter(|&i| indices.get(i).is_some_and(Option::is_some)).collect();
    let mut given = Vec::new();
    for v in indices.into_iter().flatten() {
        if matches!(cx.dtype_of(v), DType::Bool | DType::U8) {
            return unsupported(
                "indexing by a condition, whose result depends on the values of a tensor",
                "use where() with a value for the other elements",
            );
        }
        given.push(cx.cast(v, DType::I64)?);
    }
    let (Some(&first), Some(&last)) = (axes.first(), axes.last()) else { return Ok(x) };
    if last >= cx.rank(x) {
        return wrong("more indices than axes");
    }
    let mut axis = first;
    if last - first + 1 != axes.len() {
        // Indices that are apart move to the front, and so does what they give.
        let mut perm = axes.clone();
        perm.extend((0..cx.rank(x)).filter(|i| !axes.contains(i)));
        x = cx.permute(x, perm)?;
        axis = 0;
    }
    // A row index over one axis is a table look-up.
    if let ([only], 0) = (given.as_slice(), axis)
        && cx.is_constant(x)
        && is_natural(cx, *only)
    {
        return cx.emit(Embedding {}, &[x, *only]);
    }
    cx.emit_all(Index { axis }, std::iter::once(x).chain(given).map(Some).collect())?
        .first()
        .copied()
        .map_or_else(|| wrong("the operator has no result"), Ok)
}

/// Whether an index is seen to count from the front.
fn is_natural(cx: &Cx<'_, '_>, v: ValueId) -> bool {
    let Some(id) = cx.graph.producer(v) else { return false };
    matches!(&cx.graph.node(id).op, regraft_ir::Op::Iota(i) if i.start.is(0) && i.step.as_const().is_some_and(|s| s >= 0))
}

pub(super) fn one_hot(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let ids = cx.tensor("self")?;
    let classes = cx.int_or("num_classes", -1)?;
    if classes < 0 {
        return unsupported("one_hot() without a number of classes", "give num_classes");
    }
    let row =
        cx.emit(Iota { len: Dim::new(classes), start: Dim::new(0), step: Dim::new(1), dtype: DType::I64 }, &[])?;
    let ids = cx.cast(ids, DType::I64)?;
    let rank = cx.rank(ids);
    let ids = cx.unsqueeze(ids, rank)?;
    let hot = cx.emit(Compare { f: CompareFn::Eq }, &[ids, row])?;
    cx.cast(hot, DType::I64)
}
