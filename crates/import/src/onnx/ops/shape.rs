//! Operators that move elements and compute nothing, and those on shapes.

use regraft_ir::{
    Scalar,
    ops::{CompareFn, Flip, Iota, Pad, PadMode, Slice, infer_reshape},
};
use regraft_tensor::{DType, Dim};

use crate::{
    build::Problem,
    onnx::args::{Cx, Res, ValueId, unsupported, wrong},
};

/// `INT64_MAX` and its like: what slices use for "to the end".
const FAR: i64 = i64::MAX / 4;

fn size(cx: &Cx<'_, '_>, x: ValueId, axis: usize) -> Dim {
    cx.ty(x).shape.get(axis).cloned().unwrap_or(Dim::new(1))
}

// ---- other shapes ----

pub(super) fn reshape(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let mut shape = match cx.optional_ints_attr("shape")? {
        Some(shape) => shape.into_iter().map(Dim::new).collect(),
        None => cx.dims(1)?,
    };
    let from = cx.shape(x);
    if !cx.flag("allowzero", false)? {
        for (i, dim) in shape.iter_mut().enumerate().filter(|(_, d)| d.is(0)) {
            match from.get(i) {
                Some(same) => dim.clone_from(same),
                None => return wrong(format!("axis {i} is to be kept, which {} axes do not have", from.len())),
            }
        }
    }
    let shape = infer_reshape(&from, &shape).map_err(|e| Problem::Wrong(e.to_string()))?;
    cx.reshape(x, shape)
}

pub(super) fn flatten(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let shape = cx.shape(x);
    let axis = match cx.int_attr("axis", 1)? {
        axis if usize::try_from(axis) == Ok(shape.len()) => shape.len(),
        axis => cx.axis_of(axis, shape.len())?,
    };
    let (before, after) = shape.split_at(axis.min(shape.len()));
    let product = |dims: &[Dim]| dims.iter().product::<Dim>();
    cx.reshape(x, vec![product(before), product(after)])
}

pub(super) fn transpose(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    let perm = match cx.optional_ints_attr("perm")? {
        Some(perm) => perm.into_iter().map(|a| cx.axis_of(a, rank)).collect::<Res<Vec<_>>>()?,
        None => (0..rank).rev().collect(),
    };
    cx.permute(x, perm)
}

pub(super) fn squeeze(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let shape = cx.shape(x);
    let axes = match cx.axes(1, shape.len())? {
        Some(axes) => axes,
        None => shape.iter().enumerate().filter(|(_, d)| d.is(1)).map(|(i, _)| i).collect(),
    };
    if let Some(axis) = axes.iter().find(|a| shape.get(**a).is_some_and(|d| d.as_const().is_some_and(|d| d != 1))) {
        return wrong(format!("axis {axis} has size {}, which is not 1", size(cx, x, *axis)));
    }
    let shape = shape.into_iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d).collect();
    cx.reshape(x, shape)
}

pub(super) fn unsqueeze(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let axes = match cx.optional_ints_attr("axes")? {
        Some(axes) => axes,
        None => cx.ints(1)?,
    };
    let rank = cx.rank(x) + axes.len();
    let axes = axes.into_iter().map(|a| cx.axis_of(a, rank)).collect::<Res<Vec<_>>>()?;
    let mut old = cx.shape(x).into_iter();
    let shape = (0..rank).map(|i| if axes.contains(&i) { Dim::new(1) } else { old.next().unwrap_or(Dim::new(1)) });
    let shape = shape.collect();
    cx.reshape(x, shape)
}

pub(super) fn expand(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let wanted = cx.dims(1)?;
    let shape = regraft_ir::ops::broadcast(&cx.shape(x), &wanted).map_err(|e| Problem::Wrong(e.to_string()))?;
    cx.expand(x, shape)
}

// ---- shapes ----

pub(super) fn shape_of(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let shape = cx.shape(x);
    let rank = shape.len() as i64;
    let bound = |v: i64| if v < 0 { (v + rank).max(0) } else { v.min(rank) } as usize;
    let start = bound(cx.int_attr("start", 0)?.max(-FAR));
    let end = bound(cx.int_attr("end", rank)?.max(-FAR));
    let part = shape.get(start..end.max(start)).unwrap_or(&[]).to_vec();
    cx.int_vector(&part)
}

pub(super) fn size_of(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let n = cx.ty(x).numel();
    cx.dim_value(&n, DType::I64)
}

// ---- parts and joins ----

pub(super) fn concat(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let list = cx.inputs()?;
    let Some(first) = list.first() else { return wrong("expected tensors") };
    let rank = cx.rank(*first);
    let Some(axis) = cx.optional_int_attr("axis")? else { return wrong("expected an axis") };
    let axis = cx.axis_of(axis, rank)?;
    cx.concat(&list, axis)
}

pub(super) fn split(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let x = cx.input(0)?;
    let axis = cx.axis_attr("axis", 0, cx.rank(x))?;
    let total = size(cx, x, axis);
    let lengths = match cx.optional_ints_attr("split")? {
        Some(lengths) => Some(lengths.into_iter().map(Dim::new).collect()),
        None => cx.optional_dims(1)?,
    };
    let count = cx.node.outputs.len();
    let lengths = match lengths {
        Some(lengths) => lengths,
        None => {
            let parts = cx.natural("num_outputs", count)?;
            if parts != count || count == 0 {
                return wrong(format!("a split into {parts} parts with {count} results"));
            }
            let per = (&total + &Dim::from(parts - 1)).floor_div(&Dim::from(parts));
            let mut lengths = vec![per.clone(); parts - 1];
            lengths.push(&total - &(&per * &Dim::from(parts - 1)));
            lengths
        }
    };
    if lengths.len() != count {
        return wrong(format!("a split into {} parts with {count} results", lengths.len()));
    }
    let sum = lengths.iter().fold(Dim::new(0), |n, d| &n + d);
    if matches!((sum.as_const(), total.as_const()), (Some(a), Some(b)) if a != b) {
        return wrong(format!("parts of {sum} elements of an axis of {total}"));
    }
    parts(cx, x, axis, &lengths)
}

fn parts(cx: &mut Cx<'_, '_>, x: ValueId, axis: usize, lengths: &[Dim]) -> Res<Vec<Option<ValueId>>> {
    let mut start = Dim::new(0);
    let mut out = Vec::new();
    for length in lengths {
        let end = &start + length;
        out.push(Some(cx.slice(x, axis, start, end.clone())?));
        start = end;
    }
    Ok(out)
}

pub(super) fn slice(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut x = cx.input(0)?;
    let rank = cx.rank(x);
    let numbers = |list: Vec<i64>| list.into_iter().map(Dim::new).collect::<Vec<_>>();
    let (starts, ends) = match (cx.optional_ints_attr("starts")?, cx.optional_ints_attr("ends")?) {
        (Some(starts), Some(ends)) => (numbers(starts), numbers(ends)),
        _ => (cx.dims(1)?, cx.dims(2)?),
    };
    let axes = match cx.optional_ints_attr("axes")? {
        Some(axes) => axes,
        None => cx.optional_ints(3)?.unwrap_or_else(|| (0..starts.len() as i64).collect()),
    };
    let steps = cx.optional_ints(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return wrong("expected as many starts, ends, axes and steps");
    }
    for (((start, end), axis), step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let axis = cx.axis_of(*axis, rank)?;
        x = range(cx, x, axis, start, end, *step)?;
    }
    Ok(x)
}

/// `x[start:end:step]` along an axis, with bounds as Python takes them.
fn range(cx: &mut Cx<'_, '_>, x: ValueId, axis: usize, start: &Dim, end: &Dim, step: i64) -> Res<ValueId> {
    let total = size(cx, x, axis);
    let Some(step) = usize::try_from(step).ok().filter(|s| *s > 0) else {
        return backwards(cx, x, axis, start, end, step);
    };
    let start = cx.clamp_index(start, &total);
    let mut end = cx.clamp_index(end, &total);
    if !cx.surely_le(&start, &end) {
        end = if cx.surely_le(&end, &start) { start.clone() } else { end.max_of(&start) };
    }
    if start.is(0) && end == total && step == 1 {
        return Ok(x);
    }
    cx.emit(Slice { axis, start, end, step }, &[x])
}

/// A slice with a negative step: a slice of the reversed axis.
fn backwards(cx: &mut Cx<'_, '_>, x: ValueId, axis: usize, start: &Dim, end: &Dim, step: i64) -> Res<ValueId> {
    let Some(stride) = step.checked_neg().and_then(|s| usize::try_from(s).ok()).filter(|s| *s > 0) else {
        return wrong(format!("a slice with step {step}"));
    };
    let total = size(cx, x, axis);
    let turned = |cx: &Cx<'_, '_>, index: &Dim| -> Res<Dim> {
        match (index.as_const(), total.as_const()) {
            (Some(index), Some(n)) => {
                let at = if index < 0 { index.saturating_add(n).max(-1) } else { index.min(n - 1) };
                Ok(Dim::new(n - 1 - at))
            }
            (Some(-1), None) => Ok(Dim::new(0)),
            (Some(index), None) if index >= FAR => Ok(Dim::new(0)),
            (Some(index), None) if index <= -FAR => Ok(total.clone()),
            (Some(index), None) if index >= 0 && cx.bounds(&total).min > index => Ok(&total - &Dim::new(index + 1)),
            _ => unsupported("a slice backwards between sizes", "make these sizes static"),
        }
    };
    let (start, end) = (turned(cx, start)?, turned(cx, end)?);
    let end = if cx.surely_le(&start, &end) { end } else { end.max_of(&start) };
    let reversed = cx.emit(Flip { axes: vec![axis] }, &[x])?;
    cx.emit(Slice { axis, start, end, step: stride }, &[reversed])
}

pub(super) fn tile(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let times = cx.dims(1)?;
    let shape = cx.shape(x);
    if times.len() != shape.len() {
        return wrong(format!("expected {} repeats, found {}", shape.len(), times.len()));
    }
    let (x, joined) = cx.repeated(x, &shape, &times)?;
    cx.reshape(x, joined)
}

// ---- borders ----

/// `x` with zeros around it.
pub(super) fn padded(cx: &mut Cx<'_, '_>, x: ValueId, before: Vec<i64>, after: Vec<i64>) -> Res<ValueId> {
    filled(cx, x, before, after, Scalar::Float(0.0), PadMode::Constant)
}

pub(super) fn filled(
    cx: &mut Cx<'_, '_>,
    x: ValueId,
    before: Vec<i64>,
    after: Vec<i64>,
    value: Scalar,
    mode: PadMode,
) -> Res<ValueId> {
    if before.iter().chain(&after).all(|p| *p == 0) {
        return Ok(x);
    }
    cx.emit(Pad { before, after, value, mode }, &[x])
}

pub(super) fn pad(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    let mode = cx.text("mode", "constant")?;
    let list = match cx.optional_ints_attr("pads")? {
        Some(pads) => pads,
        None => cx.ints(1)?,
    };
    let axes = match cx.optional_ints(3)? {
        Some(axes) => axes.into_iter().map(|a| cx.axis_of(a, rank)).collect::<Res<Vec<_>>>()?,
        None => (0..rank).collect(),
    };
    let (first, last) = list.split_at(list.len() / 2);
    if list.len() != 2 * axes.len() {
        return wrong(format!("{} paddings for {} axes", list.len(), axes.len()));
    }
    let (mut before, mut after) = (vec![0; rank], vec![0; rank]);
    for ((axis, b), a) in axes.iter().zip(first).zip(last) {
        if let (Some(slot_b), Some(slot_a)) = (before.get_mut(*axis), after.get_mut(*axis)) {
            (*slot_b, *slot_a) = (*b, *a);
        }
    }
    let attribute = cx.optional_float_attr("value")?;
    let mode = match mode {
        "constant" => PadMode::Constant,
        "reflect" => PadMode::Reflect,
        "edge" => PadMode::Replicate,
        "wrap" => return wrapped(cx, x, &before, &after),
        other => return wrong(format!("`{other}` is not a padding mode")),
    };
    if !cx.has(2) || mode != PadMode::Constant {
        if cx.has(2) {
            cx.plain(2)?;
        }
        return filled(cx, x, before, after, Scalar::Float(attribute.unwrap_or(0.0)), mode);
    }
    let value = cx.plain(2)?;
    let dtype = cx.dtype_of(x);
    match cx.known(value).and_then(|k| k.tensor()) {
        Some(number) if dtype.is_float() => {
            let value = number.to_f64_vec().first().copied().unwrap_or_default();
            filled(cx, x, before, after, Scalar::Float(value), mode)
        }
        Some(number) => {
            let value = number.to_i64_vec().first().copied().unwrap_or_default();
            filled(cx, x, before, after, Scalar::Int(value), mode)
        }
        None => {
            // A number that is computed stands where padding says so.
            let shape = cx.shape(x);
            let inside = cx.literal(Scalar::Int(1), DType::Bool)?;
            let inside = cx.expand(inside, shape)?;
            let inside = filled(cx, inside, before.clone(), after.clone(), Scalar::Int(0), mode)?;
            let wide = filled(cx, x, before, after, Scalar::Float(0.0), mode)?;
            cx.select(inside, wide, value)
        }
    }
}

/// Padding with what stands at the other end.
fn wrapped(cx: &mut Cx<'_, '_>, x: ValueId, before: &[i64], after: &[i64]) -> Res<ValueId> {
    let mut out = x;
    for (axis, (before, after)) in before.iter().zip(after).enumerate() {
        if *before == 0 && *after == 0 {
            continue;
        }
        let total = size(cx, out, axis);
        let Some(n) = total.as_const().filter(|n| (0..=*n).contains(before) && (0..=*n).contains(after)) else {
            return unsupported(
                "padding by more than there is, or of a dynamic size",
                "make the axis static and longer",
            );
        };
        let mut parts = Vec::new();
        if *before > 0 {
            parts.push(cx.slice(out, axis, Dim::new(n - before), total.clone())?);
        }
        parts.push(out);
        if *after > 0 {
            parts.push(cx.slice(out, axis, Dim::new(0), Dim::new(*after))?);
        }
        out = cx.concat(&parts, axis)?;
    }
    Ok(out)
}

/// The middle of an axis, or the axis with zeros on both sides, to a given size.
pub(super) fn center_crop_pad(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut x = cx.input(0)?;
    let rank = cx.rank(x);
    let wanted = cx.ints(1)?;
    let axes = match cx.optional_ints_attr("axes")? {
        Some(axes) => axes.into_iter().map(|a| cx.axis_of(a, rank)).collect::<Res<Vec<_>>>()?,
        None => (0..rank).collect(),
    };
    let (mut before, mut after) = (vec![0i64; rank], vec![0i64; rank]);
    for (axis, wanted) in axes.into_iter().zip(wanted) {
        let have = cx.size(x, axis)? as i64;
        if wanted < have {
            let start = (have - wanted) / 2;
            x = cx.slice(x, axis, Dim::new(start), Dim::new(start + wanted))?;
        } else if let (Some(b), Some(a)) = (before.get_mut(axis), after.get_mut(axis)) {
            *b = (wanted - have) / 2;
            *a = wanted - have - *b;
        }
    }
    padded(cx, x, before, after)
}

// ---- from nothing ----

pub(super) fn constant(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    if let Some(stored) = cx.tensor_attr("value")? {
        return cx.t.constant(stored.place.start);
    }
    if let Some(at) = cx.numbers_at() {
        return cx.t.constant(at);
    }
    // Those of a call of the function that the node stands in are attributes like others.
    if let Some(value) = cx.optional_float_attr("value_float")? {
        return cx.float(value, DType::F32);
    }
    if let Some(value) = cx.optional_int_attr("value_int")? {
        return cx.literal(Scalar::Int(value), DType::I64);
    }
    if let Some(list) = cx.optional_ints_attr("value_ints")? {
        let list: Vec<Dim> = list.into_iter().map(Dim::new).collect();
        return cx.int_vector(&list);
    }
    if let Some(list) = cx.optional_floats_attr("value_floats")? {
        let mut numbers = Vec::with_capacity(list.len());
        for value in list {
            let number = cx.float(value, DType::F32)?;
            numbers.push(cx.unsqueeze(number, 0)?);
        }
        return cx.concat(&numbers, 0);
    }
    unsupported("a constant of texts or a sparse one", "use dense numbers")
}

pub(super) fn constant_of_shape(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let shape = cx.dims(0)?;
    let value = match cx.tensor_attr("value")? {
        Some(stored) => {
            let value = cx.t.filling(stored.place.start)?;
            cx.reshape(value, vec![])?
        }
        None => cx.float(0.0, DType::F32)?,
    };
    cx.expand(value, shape)
}

pub(super) fn arange(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let first = cx.plain(0)?;
    let dtype = cx.dtype_of(first);
    if dtype.is_float() {
        let (start, limit, step) = (cx.floats(0)?, cx.floats(1)?, cx.floats(2)?);
        let ([start], [limit], [step]) = (start.as_slice(), limit.as_slice(), step.as_slice()) else {
            return wrong("expected numbers");
        };
        let len = ((limit - start) / step).ceil().max(0.0);
        if len.is_nan() || len >= 1e9 {
            return wrong(format!("a range from {start} to {limit} by {step}"));
        }
        let places = cx.iota(Dim::new(len as i64), 0, 1)?;
        let places = cx.cast(places, dtype)?;
        let scaled = cx.with_literal(regraft_ir::ops::BinaryFn::Mul, places, *step)?;
        return cx.with_literal(regraft_ir::ops::BinaryFn::Add, scaled, *start);
    }
    let (start, limit, step) = (cx.dims(0)?, cx.dims(1)?, cx.int(2)?);
    let ([start], [limit]) = (start.as_slice(), limit.as_slice()) else { return wrong("expected numbers") };
    let span = if step > 0 { limit - start } else { start - limit };
    let Some(by) = step.checked_abs().filter(|s| *s > 0) else { return wrong(format!("a range by {step}")) };
    let len = (&span + &Dim::new(by - 1)).floor_div(&Dim::new(by));
    let len = if cx.bounds(&len).min >= 0 { len } else { len.max_of(&Dim::new(0)) };
    let out = cx.emit(Iota { len, start: start.clone(), step: Dim::new(step), dtype: DType::I64 }, &[])?;
    cx.cast(out, dtype)
}

/// One where the column is `k` behind the row.
pub(super) fn eye_like(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let shape = cx.shape(x);
    let [rows, columns] = shape.as_slice() else { return wrong("expected a matrix") };
    let k = cx.int_attr("k", 0)?;
    let dtype = cx.dtype_attr("dtype")?.unwrap_or(cx.dtype_of(x));
    cx.ones_on_diagonal(rows, columns, k, dtype)
}

pub(super) fn trilu(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let k = if cx.has(1) { cx.int(1)? } else { 0 };
    let f = if cx.flag("upper", true)? { CompareFn::Ge } else { CompareFn::Le };
    cx.triangle(x, f, k)
}

// ---- blocks ----

/// Batch, channels and the two axes of images.
fn image(cx: &Cx<'_, '_>, x: ValueId) -> Res<[Dim; 4]> {
    match cx.ty(x).shape.as_slice() {
        [n, c, h, w] => Ok([n.clone(), c.clone(), h.clone(), w.clone()]),
        shape => wrong(format!("expected images, found a tensor with {} axes", shape.len())),
    }
}

pub(super) fn depth_to_space(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let block = Dim::from(cx.natural("blocksize", 1)?.max(1));
    let [n, c, h, w] = image(cx, x)?;
    let out = c.floor_div(&(&block * &block));
    let (split, perm) = match cx.text("mode", "DCR")? {
        "DCR" => ([n.clone(), block.clone(), block.clone(), out.clone(), h.clone(), w.clone()], vec![0, 3, 4, 1, 5, 2]),
        "CRD" => ([n.clone(), out.clone(), block.clone(), block.clone(), h.clone(), w.clone()], vec![0, 1, 4, 2, 5, 3]),
        other => return wrong(format!("`{other}` is not an order of channels")),
    };
    let x = cx.reshape(x, split.to_vec())?;
    let x = cx.permute(x, perm)?;
    cx.reshape(x, vec![n, out, &h * &block, &w * &block])
}

pub(super) fn space_to_depth(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let block = Dim::from(cx.natural("blocksize", 1)?.max(1));
    let [n, c, h, w] = image(cx, x)?;
    let (oh, ow) = (h.floor_div(&block), w.floor_div(&block));
    let split = vec![n.clone(), c.clone(), oh.clone(), block.clone(), ow.clone(), block.clone()];
    let x = cx.reshape(x, split)?;
    let x = cx.permute(x, vec![0, 3, 5, 1, 2, 4])?;
    cx.reshape(x, vec![n, &c * &(&block * &block), oh, ow])
}
