//! The operators that tensors with counted sizes may go through, see `import/counted.rs`.

use std::borrow::Cow;

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, Cumsum, Embedding, PutFn, ReduceFn},
};
use regraft_tensor::{DType, Dim};

use super::{attention, index, parts, tables};
use crate::{
    build::put,
    pt2::{
        args::{Cx, Number, Res, ValueId},
        import::CountedAxis,
        schema::{Argument, OptionalTensorArgument},
    },
};

const ROWS: &str = "a result whose size depends on the values of a tensor";
const CHOSEN: &str = "indexing by a condition, whose result depends on the values of a tensor";

/// How an operator takes counted sizes. What says no has the program refused.
#[derive(Clone, Copy)]
pub(crate) enum Counted {
    /// By the handler for known sizes, where elements that do not count stay apart from the others.
    If(fn(&Cx<'_, '_>) -> Res<bool>),
    /// By a handler of its own.
    Own(fn(&mut Cx<'_, '_>) -> Res<Option<Vec<ValueId>>>),
}

use Counted::{If, Own};

/// Operators that count the true elements of a mask; `index.Tensor` does, too.
pub(crate) const COUNTING: &[&str] =
    &["nonzero.default", "argwhere.default", "nonzero_numpy.default", "where.default", "masked_select.default"];

const TABLE: &[(&str, Counted)] = &[
    ("nonzero.default", Own(nonzero)),
    ("argwhere.default", Own(nonzero)),
    ("nonzero_numpy.default", Own(|cx| nonzero_columns(cx, "self"))),
    ("where.default", Own(|cx| nonzero_columns(cx, "condition"))),
    ("masked_select.default", Own(masked_select)),
    ("index.Tensor", Own(indexed)),
    ("index_select.default", Own(index_select)),
    ("embedding.default", Own(embedding)),
    ("index_put.default", If(puts_rows)),
    ("cat.default", If(joins)),
    ("pad.default", Own(padded)),
    ("constant_pad_nd.default", Own(padded)),
    ("scaled_dot_product_attention.default", Own(attend)),
    // Other shapes and orders.
    ("view.default", If(stays_whole)),
    ("_unsafe_view.default", If(stays_whole)),
    ("reshape.default", If(stays_whole)),
    ("flatten.using_ints", If(stays_whole)),
    ("unflatten.int", If(stays_whole)),
    ("unsqueeze.default", If(stays_whole)),
    ("squeeze.dim", If(stays_whole)),
    ("squeeze.dims", If(stays_whole)),
    ("permute.default", If(moves)),
    ("transpose.int", If(moves)),
    ("movedim.int", If(moves)),
    ("t.default", If(moves)),
    // Parts.
    ("slice.Tensor", If(cuts_part)),
    ("narrow.default", If(cuts_part)),
    ("select.int", If(cuts_elsewhere)),
    ("unbind.int", If(cuts_elsewhere)),
    ("chunk.default", If(cuts_elsewhere)),
    ("split.Tensor", If(cuts_elsewhere)),
    ("split_with_sizes.default", If(cuts_parts)),
    // Each element, or row, for itself.
    ("expand.default", If(each)),
    ("clone.default", If(each)),
    ("contiguous.default", If(each)),
    ("detach.default", If(each)),
    ("alias.default", If(each)),
    ("dropout.default", If(each)),
    ("to.dtype", If(each)),
    ("to.dtype_layout", If(each)),
    ("to.device", If(each)),
    ("_to_copy.default", If(each)),
    ("full.default", If(each)),
    ("zeros.default", If(each)),
    ("ones.default", If(each)),
    ("zeros_like.default", If(each)),
    ("ones_like.default", If(each)),
    ("linear.default", If(|cx| rows(cx, "input", 1))),
    ("layer_norm.default", If(|cx| rows(cx, "input", cx.ints("normalized_shape")?.len()))),
    ("rms_norm.default", If(|cx| rows(cx, "input", cx.ints("normalized_shape")?.len()))),
    ("softmax.int", If(cuts_elsewhere)),
    ("_softmax.default", If(cuts_elsewhere)),
    ("sum.dim_IntList", If(reduces)),
    ("mean.dim", If(reduces)),
    ("amax.default", If(reduces)),
];

/// Elementwise functions that do more than broadcast.
const NOT_EACH: &[&str] = &[
    "glu.default",
    "prelu.default",
    "_prelu_kernel.default",
    "frexp.Tensor",
    "log_sigmoid_forward.default",
    "rrelu_with_noise_functional.default",
];

/// An operator of ATen without its namespace, and without the mark of its form in place.
pub(crate) fn name(target: &str, in_place: bool) -> Option<Cow<'_, str>> {
    let name = target.strip_prefix("torch.ops.aten.")?;
    if !in_place {
        return Some(Cow::Borrowed(name));
    }
    let (base, overload) = name.split_once('.')?;
    Some(Cow::Owned(format!("{}.{overload}", base.strip_suffix('_')?)))
}

pub(crate) fn find(name: &str) -> Option<Counted> {
    let listed = TABLE.iter().find(|(known, _)| *known == name).map(|(_, how)| *how);
    listed.or_else(|| (tables::is_elementwise(name) && !NOT_EACH.contains(&name)).then_some(If(each)))
}

// ---- what counts ----

/// The positions of the true elements of `x` in order, one vector for each axis with room for all, and how many there are. What
/// is behind is 0.
fn places(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<(Vec<ValueId>, Dim, ValueId)> {
    let (shape, most) = (cx.shape(x), cx.ty(x).numel());
    let mask = cx.cast(x, DType::Bool)?;
    let mask = cx.flat(mask)?;
    let ones = cx.cast(mask, DType::I64)?;
    let upto = cx.emit(Cumsum { axis: 0 }, &[ones])?;
    let place = cx.binary(BinaryFn::Sub, upto, ones)?;
    let count = cx.reduce(ReduceFn::Sum, ones, &[0], false)?;
    // What is false goes to one place behind the last, which is cut off.
    let end = cx.dim_value(&most, DType::I64)?;
    let place = cx.select(mask, place, end)?;
    let zero = cx.literal(Scalar::Int(0), DType::I64)?;
    let empty = cx.expand(zero, vec![&most + &Dim::new(1)])?;
    let mut at = cx.iota(most.clone(), 0, 1)?;
    let mut columns = Vec::new();
    for (i, dim) in shape.iter().enumerate().rev() {
        let column = if i == 0 {
            at
        } else {
            let n = cx.dim_value(dim, DType::I64)?;
            let column = cx.binary(BinaryFn::Rem, at, n)?;
            at = cx.binary(BinaryFn::FloorDiv, at, n)?;
            column
        };
        let row = put(cx, PutFn::Set, empty, column, 0, &[place])?;
        columns.push(cx.slice(row, 0, Dim::new(0), most.clone())?);
    }
    columns.reverse();
    Ok((columns, most, count))
}

fn nonzero(cx: &mut Cx<'_, '_>) -> Res<Option<Vec<ValueId>>> {
    let x = cx.tensor("self")?;
    if cx.counted("self")?.is_some() || cx.rank(x) == 0 {
        return Ok(None);
    }
    let (columns, most, count) = places(cx, x)?;
    cx.count(0, most, count, ROWS)?;
    let columns = columns.into_iter().map(|column| cx.unsqueeze(column, 1)).collect::<Res<Vec<_>>>()?;
    Ok(Some(vec![cx.concat(&columns, 1)?]))
}

/// One vector of positions for each axis.
fn nonzero_columns(cx: &mut Cx<'_, '_>, name: &str) -> Res<Option<Vec<ValueId>>> {
    let x = cx.tensor(name)?;
    if cx.counted(name)?.is_some() || cx.rank(x) == 0 {
        return Ok(None);
    }
    let (columns, most, count) = places(cx, x)?;
    cx.count(0, most, count, ROWS)?;
    Ok(Some(columns))
}

fn masked_select(cx: &mut Cx<'_, '_>) -> Res<Option<Vec<ValueId>>> {
    let (x, mask) = (cx.tensor("self")?, cx.tensor("mask")?);
    if cx.counted("self")?.is_some() || cx.counted("mask")?.is_some() {
        return Ok(None);
    }
    let types = [cx.ty(x).clone(), cx.ty(mask).clone()];
    let Ok(shape) = regraft_ir::ops::broadcast_types(types.iter()) else { return Ok(None) };
    let (x, mask) = (cx.expand(x, shape.clone())?, cx.expand(mask, shape)?);
    let (x, mask) = (cx.flat(x)?, cx.flat(mask)?);
    let (columns, most, count) = places(cx, mask)?;
    cx.count(0, most, count, CHOSEN)?;
    let [places] = columns.as_slice() else { return Ok(None) };
    Ok(Some(vec![cx.take(x, 0, *places)?]))
}

/// `x[mask]`, and `x[positions]` with positions that were counted.
fn indexed(cx: &mut Cx<'_, '_>) -> Res<Option<Vec<ValueId>>> {
    let x = cx.tensor("self")?;
    let given = cx.optional_tensors("indices")?;
    let Some(axis) = given.iter().position(Option::is_some) else { return Ok(None) };
    if cx.counted("self")?.is_some() {
        return Ok(None);
    }
    let alone = given.iter().flatten().count() == 1;
    let mask = given.iter().flatten().find(|v| matches!(cx.dtype_of(**v), DType::Bool | DType::U8)).copied();
    let names = index_names(cx);
    let mut indices = vec![None; axis];
    if let Some(mask) = mask {
        if !alone || cx.rank(mask) == 0 || cx.counted_axis(names.first().copied().unwrap_or_default())?.is_some() {
            return Ok(None);
        }
        let (columns, most, count) = places(cx, mask)?;
        cx.count(axis, most, count, CHOSEN)?;
        indices.extend(columns.into_iter().map(Some));
    } else {
        for (v, name) in given.iter().flatten().zip(&names) {
            let fits = keeps(cx, name)?;
            if !fits || (!alone && cx.rank(*v) != 1) {
                return Ok(None);
            }
        }
        indices.clear();
        let mut names = names.into_iter();
        for v in given {
            indices.push(match v {
                Some(v) => Some(within(cx, v, names.next().unwrap_or_default())?),
                None => None,
            });
        }
    }
    Ok(Some(vec![index::indexed(cx, x, indices)?]))
}

/// Whether a tensor has a counted axis that is kept.
fn keeps(cx: &Cx<'_, '_>, name: &str) -> Res<bool> {
    Ok(cx.counted_axis(name)?.map(|axis| cx.keeps(&axis)).transpose()?.unwrap_or(false))
}

/// The names of the tensors that are given as indices.
fn index_names<'p>(cx: &Cx<'_, 'p>) -> Vec<&'p str> {
    match cx.arg("indices") {
        Some(Argument::Tensors(list)) => list.iter().map(|t| t.name.as_str()).collect(),
        Some(Argument::OptionalTensors(list)) => list
            .iter()
            .filter_map(|t| match t {
                OptionalTensorArgument::Tensor(t) => Some(t.name.as_str()),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Positions, 0 where they do not count: what was computed of them may lie outside.
fn within(cx: &mut Cx<'_, '_>, v: ValueId, name: &str) -> Res<ValueId> {
    let v = cx.cast(v, DType::I64)?;
    match cx.counted_axis(name)? {
        Some(axis) => cleared(cx, v, &axis, &Number::Int(0)),
        None => Ok(v),
    }
}

/// `v` with `number` for the elements that do not count.
fn cleared(cx: &mut Cx<'_, '_>, v: ValueId, axis: &CountedAxis, number: &Number) -> Res<ValueId> {
    let valid = cx.valid(axis, axis.shape.len(), axis.at)?;
    let number = cx.number_like(number, v)?;
    cx.select(valid, v, number)
}

fn index_select(cx: &mut Cx<'_, '_>) -> Res<Option<Vec<ValueId>>> {
    let (x, at) = (cx.tensor("self")?, cx.tensor("index")?);
    let Some(name) = cx.arg("index").and_then(Argument::first_name) else { return Ok(None) };
    if !keeps(cx, name)? || cx.counted("self")?.is_some() || cx.rank(x) == 0 {
        return Ok(None);
    }
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    let at = within(cx, at, name)?;
    Ok(Some(vec![cx.take(x, axis, at)?]))
}

fn embedding(cx: &mut Cx<'_, '_>) -> Res<Option<Vec<ValueId>>> {
    let (weight, ids) = (cx.tensor("weight")?, cx.tensor("indices")?);
    let Some(name) = cx.arg("indices").and_then(Argument::first_name) else { return Ok(None) };
    if !keeps(cx, name)? || cx.counted("weight")?.is_some() {
        return Ok(None);
    }
    let ids = within(cx, ids, name)?;
    Ok(Some(vec![cx.emit(Embedding {}, &[weight, ids])?]))
}

/// `x[mask] = rows` with rows that were counted.
fn puts_rows(cx: &Cx<'_, '_>) -> Res<bool> {
    let mut known = cx.counted("self")?.is_none();
    let names = index_names(cx);
    for name in &names {
        known &= cx.counted_axis(name)?.is_none();
    }
    Ok(known && names.len() == 1 && cx.count_of("values")?.is_some())
}

// ---- what leaves elements where they are ----

/// Every operand broadcasts to the result: along its counted axis all have the same size, or one.
fn each(cx: &Cx<'_, '_>) -> Res<bool> {
    let Some(result) = cx.counted_result(0)? else { return Ok(false) };
    let mut names = Vec::new();
    for input in &cx.node.inputs {
        match &input.arg {
            Argument::Tensor(t) | Argument::OptionalTensor(OptionalTensorArgument::Tensor(t)) => names.push(&t.name),
            Argument::Tensors(_) | Argument::OptionalTensors(_) | Argument::NestedTensors(_) => return Ok(false),
            _ => {}
        }
    }
    for name in names {
        let shape = cx.declared_shape(name)?;
        let there = shape.len().checked_sub(result.places_from_end()).and_then(|i| shape.get(i));
        let fits = match cx.counted_axis(name)? {
            Some(axis) => axis.places_from_end() == result.places_from_end() && axis.size() == result.size(),
            None => there.is_none_or(|d| d.is(1)),
        };
        if !fits {
            return Ok(false);
        }
    }
    // A size in the place of a number would be taken for the most that it may be.
    Ok(!cx.counted_number())
}

/// Another shape of the same elements in which the counted axis is an axis still.
fn stays_whole(cx: &Cx<'_, '_>) -> Res<bool> {
    let (Some(from), Some(to)) = (cx.counted("self")?, cx.counted_result(0)?) else { return Ok(false) };
    Ok(from.size() == to.size() && from.around() == to.around())
}

/// Another order of the axes.
fn moves(cx: &Cx<'_, '_>) -> Res<bool> {
    let (Some(from), Some(to)) = (cx.counted("self")?, cx.counted_result(0)?) else { return Ok(false) };
    Ok(from.size() == to.size() && from.shape.len() == to.shape.len())
}

/// The axis that an operator works along is another one than the counted one.
fn cuts_elsewhere(cx: &Cx<'_, '_>) -> Res<bool> {
    let Some(axis) = cx.counted("self")? else { return Ok(false) };
    Ok(cx.axis_arg("dim", Some(0), axis.shape.len())? != axis.at && cx.keeps(&axis)? && !cx.counted_number())
}

/// A range of another axis; of the counted one what lies in front, or all from some place in front on.
fn cuts_part(cx: &Cx<'_, '_>) -> Res<bool> {
    let Some(axis) = cx.counted("self")? else { return Ok(false) };
    if cx.axis_arg("dim", Some(0), axis.shape.len())? != axis.at {
        return Ok(cx.keeps(&axis)? && !cx.counted_number());
    }
    if cx.node.target.contains("narrow") || cx.int_or("step", 1)? != 1 {
        return Ok(false);
    }
    let start = cx.optional_dim("start")?.unwrap_or(Dim::new(0));
    let in_front = |d: &Dim| cx.bounds(d).min >= 0 && cx.surely_le(d, &axis.front);
    Ok(in_front(&start)
        && match cx.counted_result(0)? {
            Some(rest) => *rest.size() == axis.size() - &start,
            None => cx.optional_dim("end")?.is_some_and(|end| in_front(&end)),
        })
}

/// Parts of another axis; of the counted one some of what lies in front, and then the rest.
fn cuts_parts(cx: &Cx<'_, '_>) -> Res<bool> {
    let Some(axis) = cx.counted("self")? else { return Ok(false) };
    if cx.axis_arg("dim", Some(0), axis.shape.len())? != axis.at {
        return cx.keeps(&axis);
    }
    let Some(last) = cx.results.len().checked_sub(1) else { return Ok(false) };
    for i in 0..last {
        if cx.counted_result(i)?.is_some() {
            return Ok(false);
        }
    }
    Ok(cx.counted_result(last)?.is_some())
}

/// Joined along another axis; along the counted one only what is behind all others has a counted size.
fn joins(cx: &Cx<'_, '_>) -> Res<bool> {
    let Some(Argument::Tensors(list)) = cx.arg("tensors") else { return Ok(false) };
    let axes = list.iter().map(|t| cx.counted_axis(&t.name)).collect::<Res<Vec<_>>>()?;
    let Some(result) = cx.counted_result(0)? else { return Ok(false) };
    let Some((last, others)) = axes.split_last() else { return Ok(false) };
    if cx.axis_arg("dim", Some(0), result.shape.len())? == result.at {
        return Ok(others.iter().all(Option::is_none) && last.as_ref().is_some_and(|axis| axis.at == result.at));
    }
    let same =
        |axis: &Option<_>| axis.as_ref().is_some_and(|a: &CountedAxis| a.at == result.at && a.size() == result.size());
    Ok(axes.iter().all(same))
}

/// What reads the last `inner` axes only.
fn rows(cx: &Cx<'_, '_>, name: &str, inner: usize) -> Res<bool> {
    let Some(axis) = cx.counted(name)? else { return Ok(false) };
    let others = ["weight", "bias"].map(|name| cx.counted(name));
    for other in others {
        if other?.is_some() {
            return Ok(false);
        }
    }
    Ok(axis.places_from_end() > inner && cx.keeps(&axis)?)
}

/// A reduction of other axes.
fn reduces(cx: &Cx<'_, '_>) -> Res<bool> {
    let Some(axis) = cx.counted("self")? else { return Ok(false) };
    Ok(!cx.axes("dim", axis.shape.len())?.contains(&axis.at) && cx.keeps(&axis)?)
}

// ---- what looks at all elements of the axis ----

/// Padding behind the counted axis up to a known size: what does not count becomes padding.
fn padded(cx: &mut Cx<'_, '_>) -> Res<Option<Vec<ValueId>>> {
    let Some(axis) = cx.counted("self")? else { return Ok(None) };
    if cx.optional_text("mode")?.is_some_and(|mode| mode != "constant") {
        return Ok(None);
    }
    let mut pads = cx.as_said(|cx| cx.dims("pad"))?;
    let value = cx.number_or("value", Number::Float(0.0))?;
    if cx.counted_number() {
        return Ok(None);
    }
    let mut own = [Dim::new(0), Dim::new(0)];
    // Pairs stand from the last axis on.
    let pair = 2 * (axis.places_from_end() - 1);
    if let Some(found) = pads.get_mut(pair..pair + 2) {
        own.swap_with_slice(found);
    }
    let [before, after] = own;
    let size = axis.size() + &after;
    if !before.is(0) || pads.iter().any(|p| !p.is(0)) || cx.at_most_of(&size) != size {
        return Ok(None);
    }
    let x = cx.tensor("self")?;
    let x = cleared(cx, x, &axis, &value)?;
    let most = cx.at_most_of(axis.size());
    if cx.surely_le(&size, &most) {
        return Ok(Some(vec![cx.slice(x, axis.at, Dim::new(0), size)?]));
    }
    if !cx.surely_le(&most, &size) {
        return Ok(None);
    }
    let mut shape = cx.shape(x);
    if let Some(slot) = shape.get_mut(axis.at) {
        *slot = &size - &most;
    }
    let value = cx.number_like(&value, x)?;
    let rest = cx.expand(value, shape)?;
    Ok(Some(vec![parts::join(cx, vec![x, rest], axis.at)?]))
}

/// Attention in which keys that do not count are not seen; queries that do not count give what does not count.
fn attend(cx: &mut Cx<'_, '_>) -> Res<Option<Vec<ValueId>>> {
    let [query, key, value] = [cx.counted("query")?, cx.counted("key")?, cx.counted("value")?];
    let mask = cx.counted("attn_mask")?;
    let (has_mask, causal) = (cx.has("attn_mask"), cx.bool_or("is_causal", false)?);
    let row = |axis: &CountedAxis| axis.places_from_end() == 2;
    if let Some(query) = &query
        && !cx.keeps(query)?
    {
        return Ok(None);
    }
    match (query, key, value) {
        // Each of a batch for itself.
        (Some(q), Some(k), Some(v)) if !row(&q) => {
            let same = [&k, &v].iter().all(|a| a.places_from_end() == q.places_from_end() && a.size() == q.size());
            let fits = match mask {
                Some(mask) => mask.places_from_end() == q.places_from_end() && mask.size() == q.size(),
                None => cx.broadcasts("attn_mask", q.places_from_end())?,
            };
            Ok(if same && fits && q.places_from_end() > 3 { Some(vec![attention::sdpa(cx)?]) } else { None })
        }
        // Each query for itself.
        (Some(q), None, None) if row(&q) && !has_mask => Ok(Some(vec![attention::sdpa(cx)?])),
        (q, Some(k), Some(v)) if row(&k) && row(&v) && k.size() == v.size() && !has_mask && !causal => {
            if q.is_some_and(|q| !row(&q)) {
                return Ok(None);
            }
            let (q, keys, values) = (cx.tensor("query")?, cx.tensor("key")?, cx.tensor("value")?);
            let zero = Number::Int(0);
            let (keys, values) = (cleared(cx, keys, &k, &zero)?, cleared(cx, values, &v, &zero)?);
            let seen = cx.valid(&k, 2, 1)?;
            Ok(Some(vec![attention::attention(cx, q, keys, values, Some(seen))?]))
        }
        _ => Ok(None),
    }
}
