//! Attention and rotary embeddings, of ONNX and of ONNX Runtime.

use regraft_ir::{
    Scalar,
    ops::{Attention, BinaryFn, CompareFn, HeadsLayout, Matmul, Pad, PadMode, ReduceFn, Slice, Softmax, UnaryFn},
};
use regraft_tensor::{DType, Dim};

use crate::{
    build::product,
    onnx::args::{Cx, Res, ValueId, unsupported, wrong},
};

/// What attention is computed from: queries, keys and values as `[batch, heads, length, size]`.
struct Operands {
    q: ValueId,
    k: ValueId,
    v: ValueId,
    scale: f64,
    softcap: f64,
    /// Added to the scores, or `bool` where they count; of a shape that broadcasts.
    mask: Option<ValueId>,
}

/// `[batch, length, heads·size]` as `[batch, heads, length, size]`.
fn heads(cx: &mut Cx<'_, '_>, x: ValueId, count: usize) -> Res<ValueId> {
    let shape = cx.shape(x);
    let [batch, length, all] = shape.as_slice() else { return wrong("expected batch, length and heads") };
    if count == 0 {
        return wrong("expected a number of heads");
    }
    let size = all.floor_div(&Dim::from(count));
    let x = cx.reshape(x, vec![batch.clone(), length.clone(), Dim::from(count), size])?;
    cx.permute(x, vec![0, 2, 1, 3])
}

/// The other way round.
fn joined(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<ValueId> {
    let shape = cx.shape(x);
    let [batch, heads, length, size] = shape.as_slice() else { return wrong("expected heads") };
    let x = cx.permute(x, vec![0, 2, 1, 3])?;
    cx.reshape(x, vec![batch.clone(), length.clone(), heads * size])
}

fn size(cx: &Cx<'_, '_>, x: ValueId, axis: usize) -> Dim {
    cx.ty(x).shape.get(axis).cloned().unwrap_or(Dim::new(1))
}

/// A mask with four axes.
fn four(cx: &mut Cx<'_, '_>, mut mask: ValueId) -> Res<ValueId> {
    while cx.rank(mask) < 4 {
        mask = cx.unsqueeze(mask, 0)?;
    }
    Ok(mask)
}

/// Both masks at once; `allowed` is `bool`.
fn both(cx: &mut Cx<'_, '_>, mask: Option<ValueId>, allowed: ValueId) -> Res<ValueId> {
    let Some(mask) = mask else { return Ok(allowed) };
    if cx.dtype_of(mask) == DType::Bool {
        return cx.binary(BinaryFn::And, mask, allowed);
    }
    let never = cx.float_like(f64::NEG_INFINITY, mask)?;
    cx.select(allowed, mask, never)
}

/// Where key `j` is at most query `i` plus an offset: `[1 or batch, 1, queries, keys]`.
fn up_to(cx: &mut Cx<'_, '_>, queries: Dim, keys: Dim, offset: ValueId) -> Res<ValueId> {
    let (i, j) = (cx.position(4, 2, queries)?, cx.position(4, 3, keys)?);
    let offset = four_last(cx, offset)?;
    let last = cx.binary(BinaryFn::Add, i, offset)?;
    cx.compare(CompareFn::Le, j, last)
}

/// A number, or one for each batch, that broadcasts to four axes.
fn four_last(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<ValueId> {
    match cx.rank(x) {
        0 => Ok(x),
        _ => {
            let flat = cx.flat(x)?;
            cx.along(flat, 4, 0)
        }
    }
}

/// The op, where the scores are not an output.
fn attend(cx: &mut Cx<'_, '_>, o: &Operands, causal: bool) -> Res<ValueId> {
    let mask = match o.mask {
        Some(mask) if cx.dtype_of(mask) != DType::Bool => Some(cx.cast(mask, DType::F32)?),
        mask => mask,
    };
    let op = Attention { scale: o.scale, causal, out: HeadsLayout::Bhsd };
    cx.emit_opt(op, vec![Some(o.q), Some(o.k), Some(o.v), mask])
}

/// Step by step: the result, and the scores after 0 the product, 1 the cap, 2 the mask, 3 the softmax.
fn in_steps(cx: &mut Cx<'_, '_>, o: &Operands, wanted: i64) -> Res<(ValueId, ValueId)> {
    let (mut k, mut v) = (o.k, o.v);
    let (many, few) = (size(cx, o.q, 1), size(cx, o.k, 1));
    if many != few {
        let (Some(many), Some(few)) = (many.as_usize(), few.as_usize().filter(|n| *n > 0)) else {
            return unsupported("a dynamic number of heads", "make it static");
        };
        for x in [&mut k, &mut v] {
            let mut shape = cx.shape(*x);
            let wide = cx.unsqueeze(*x, 2)?;
            shape.insert(2, Dim::from(many / few));
            let wide = cx.expand(wide, shape.clone())?;
            shape.remove(2);
            if let Some(slot) = shape.get_mut(1) {
                *slot = Dim::from(many);
            }
            *x = cx.reshape(wide, shape)?;
        }
    }
    let scores = cx.emit(Matmul { transpose_b: true }, &[o.q, k])?;
    let raw = cx.with_literal(BinaryFn::Mul, scores, o.scale)?;
    let capped = if o.softcap > 0.0 {
        let x = cx.with_literal(BinaryFn::Div, raw, o.softcap)?;
        let x = cx.unary(UnaryFn::Tanh, x)?;
        cx.with_literal(BinaryFn::Mul, x, o.softcap)?
    } else {
        raw
    };
    let (masked, empty) = match o.mask {
        None => (capped, None),
        Some(mask) => {
            let bias = if cx.dtype_of(mask) == DType::Bool {
                let (zero, never) = (cx.float_like(0.0, capped)?, cx.float_like(f64::NEG_INFINITY, capped)?);
                cx.select(mask, zero, never)?
            } else {
                cx.cast_like(mask, capped)?
            };
            let last = cx.rank(bias).saturating_sub(1);
            let most = cx.reduce(ReduceFn::Max, bias, &[last], true)?;
            let empty = cx.compare_with(CompareFn::Eq, most, f64::NEG_INFINITY)?;
            (cx.binary(BinaryFn::Add, capped, bias)?, Some(empty))
        }
    };
    let mut shares = cx.emit(Softmax { axis: 3, log: false }, &[masked])?;
    if let Some(empty) = empty {
        // A query that nothing is left of gives zeros.
        let zero = cx.float_like(0.0, shares)?;
        shares = cx.select(empty, zero, shares)?;
    }
    let out = cx.emit(Matmul { transpose_b: false }, &[shares, v])?;
    let shown = match wanted {
        0 => raw,
        1 => capped,
        2 => masked,
        3 => shares,
        other => return wrong(format!("{other} is not a kind of scores")),
    };
    Ok((out, shown))
}

/// `Attention` of opset 23 and 24.
pub(super) fn attention(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let (mut q, mut k, mut v) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let flat = cx.rank(q) == 3;
    let (of_q, of_k) = (cx.natural("q_num_heads", 0)?, cx.natural("kv_num_heads", 0)?);
    if flat {
        (q, k, v) = (heads(cx, q, of_q)?, heads(cx, k, of_k)?, heads(cx, v, of_k)?);
    }
    let past = cx.optional(4)?;
    let before = past.map_or(Dim::new(0), |p| size(cx, p, 2));
    if let Some(past) = past {
        k = cx.concat(&[past, k], 2)?;
    }
    if let Some(past) = cx.optional(5)? {
        v = cx.concat(&[past, v], 2)?;
    }
    let (queries, keys) = (size(cx, q, 2), size(cx, k, 2));
    let mask = match cx.optional(3)? {
        None => None,
        Some(mask) => Some(widened(cx, mask, &keys)?),
    };
    let head = cx.size(q, 3)?;
    let scale = cx.optional_float_attr("scale")?.unwrap_or(1.0 / (head as f64).sqrt());
    let softcap = cx.float_attr("softcap", 0.0)?;
    // Computed in f32 at least.
    cx.ignore("softmax_precision");
    let mut causal = cx.flag("is_causal", false)?;
    let mut o = Operands { q, k, v, scale, softcap, mask };
    let filled = if cx.has(6) { Some(cx.plain(6)?) } else { None };
    let steps = softcap > 0.0 || cx.wants(3);
    if causal && (steps || filled.is_some() || !before.is(0)) {
        let offset = match filled {
            Some(filled) if past.is_none() => {
                let queries = cx.dim_value(&queries, DType::I64)?;
                cx.binary(BinaryFn::Sub, filled, queries)?
            }
            _ => cx.dim_value(&before, DType::I64)?,
        };
        let allowed = up_to(cx, queries, keys.clone(), offset)?;
        o.mask = Some(both(cx, o.mask, allowed)?);
        causal = false;
    }
    if let Some(filled) = filled {
        let (at, filled) = (cx.position(4, 3, keys)?, four_last(cx, filled)?);
        let allowed = cx.compare(CompareFn::Lt, at, filled)?;
        o.mask = Some(both(cx, o.mask, allowed)?);
    }
    let mode = cx.int_attr("qk_matmul_output_mode", 0)?;
    if cx.wants(3) && mode == 0 && softcap > 0.0 {
        return unsupported("the scores before their cap", "ask for those after it (qk_matmul_output_mode = 1)");
    }
    let (out, scores) = if steps {
        let (out, scores) = in_steps(cx, &o, mode)?;
        (out, Some(scores))
    } else {
        (attend(cx, &o, causal)?, None)
    };
    let out = if flat { joined(cx, out)? } else { out };
    Ok(vec![Some(out), Some(k), Some(v), scores])
}

/// A mask with four axes, and behind its last keys nothing that counts.
fn widened(cx: &mut Cx<'_, '_>, mask: ValueId, keys: &Dim) -> Res<ValueId> {
    let mask = four(cx, mask)?;
    let have = size(cx, mask, 3);
    let missing = match (have.as_const(), keys.as_const()) {
        (Some(have), Some(keys)) if have < keys && have != 1 => keys - have,
        _ => return Ok(mask),
    };
    let value = if cx.dtype_of(mask) == DType::Bool { Scalar::Int(0) } else { Scalar::Float(f64::NEG_INFINITY) };
    cx.emit(Pad { before: vec![0; 4], after: vec![0, 0, 0, missing], value, mode: PadMode::Constant }, &[mask])
}

// ---- rotary embeddings ----

/// The first part of each head rotated by its position; `x` is `[batch, a, b, size]`, with heads along axis `along`.
fn rotated(
    cx: &mut Cx<'_, '_>,
    x: ValueId,
    turns: (ValueId, ValueId),
    along: usize,
    interleaved: bool,
) -> Res<ValueId> {
    let half = size(cx, turns.0, cx.rank(turns.0).saturating_sub(1));
    let wide = |cx: &mut Cx<'_, '_>, v: ValueId| {
        let v = if cx.rank(v) == 2 { cx.unsqueeze(v, 0)? } else { v };
        cx.unsqueeze(v, along)
    };
    let (cos, sin) = (wide(cx, turns.0)?, wide(cx, turns.1)?);
    let (all, whole) = (size(cx, x, 3), &half * &Dim::new(2));
    let turned = cx.slice(x, 3, Dim::new(0), whole.clone())?;
    let (a, b) = if interleaved {
        let every = |start: i64| Slice { axis: 3, start: Dim::new(start), end: whole.clone(), step: 2 };
        (cx.emit(every(0), &[turned])?, cx.emit(every(1), &[turned])?)
    } else {
        (cx.slice(turned, 3, Dim::new(0), half.clone())?, cx.slice(turned, 3, half.clone(), whole.clone())?)
    };
    let sum = |cx: &mut Cx<'_, '_>, f: BinaryFn, (x, s): (ValueId, ValueId), (y, t): (ValueId, ValueId)| {
        let (left, right) = (cx.binary(BinaryFn::Mul, x, s)?, cx.binary(BinaryFn::Mul, y, t)?);
        cx.binary(f, left, right)
    };
    let real = sum(cx, BinaryFn::Sub, (a, cos), (b, sin))?;
    let imaginary = sum(cx, BinaryFn::Add, (a, sin), (b, cos))?;
    let shape = cx.shape(turned);
    let turned = if interleaved {
        let (real, imaginary) = (cx.unsqueeze(real, 4)?, cx.unsqueeze(imaginary, 4)?);
        let pairs = cx.concat(&[real, imaginary], 4)?;
        cx.reshape(pairs, shape)?
    } else {
        cx.concat(&[real, imaginary], 3)?
    };
    if all == whole {
        return Ok(turned);
    }
    let rest = cx.slice(x, 3, whole, all)?;
    cx.concat(&[turned, rest], 3)
}

/// `[batch, length, heads·size]` or `[batch, heads, length, size]`, rotated by the rows of tables.
fn rotary_of(cx: &mut Cx<'_, '_>, x: ValueId, turns: (ValueId, ValueId), interleaved: bool) -> Res<ValueId> {
    if cx.rank(x) == 4 {
        cx.ignore("num_heads");
        return rotated(cx, x, turns, 1, interleaved);
    }
    let count = cx.natural("num_heads", 0)?;
    let shape = cx.shape(x);
    let [batch, length, all] = shape.as_slice() else { return wrong("expected batch, length and heads") };
    let count = match count {
        // As many as the tables make.
        0 => match (all.as_usize(), size(cx, turns.0, cx.rank(turns.0).saturating_sub(1)).as_usize()) {
            (Some(all), Some(half)) if half > 0 => all / (2 * half),
            _ => return wrong("expected a number of heads"),
        },
        count => count,
    };
    let each = all.floor_div(&Dim::from(count.max(1)));
    let x = cx.reshape(x, vec![batch.clone(), length.clone(), Dim::from(count), each])?;
    let out = rotated(cx, x, turns, 2, interleaved)?;
    cx.reshape(out, shape)
}

pub(super) fn rotary(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, mut cos, mut sin) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    if cx.has(3) {
        let at = cx.plain(3)?;
        let at = cx.cast(at, DType::I64)?;
        (cos, sin) = (cx.take(cos, 0, at)?, cx.take(sin, 0, at)?);
    }
    // The tables say it.
    cx.ignore("rotary_embedding_dim");
    let interleaved = cx.flag("interleaved", false)?;
    rotary_of(cx, x, (cos, sin), interleaved)
}

/// The form of ONNX Runtime: tables by position, which may be one offset for all.
pub(super) fn rotary_microsoft(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, at, cos, sin) = (cx.input(0)?, cx.plain(1)?, cx.input(2)?, cx.input(3)?);
    cx.ignore("rotary_embedding_dim");
    if cx.float_attr("scale", 1.0)? != 1.0 || cx.flag("is_packed_batching", false)? {
        return unsupported("a scaled or packed rotary embedding", "export the model without this fusion");
    }
    let mut at = cx.cast(at, DType::I64)?;
    if cx.rank(at) == 1 {
        let length = size(cx, x, if cx.rank(x) == 4 { 2 } else { 1 });
        let places = cx.position(2, 1, length)?;
        let first = cx.reshape(at, vec![Dim::new(1), Dim::new(1)])?;
        at = cx.binary(BinaryFn::Add, places, first)?;
    }
    let (cos, sin) = (cx.take(cos, 0, at)?, cx.take(sin, 0, at)?);
    let interleaved = cx.flag("interleaved", false)?;
    rotary_of(cx, x, (cos, sin), interleaved)
}

// ---- the forms of ONNX Runtime ----

/// A mask of keys, `[batch]` lengths or `[batch, keys]` of zeros and ones, as what is added to the scores.
fn key_mask(cx: &mut Cx<'_, '_>, mask: ValueId, keys: Dim) -> Res<ValueId> {
    let value = cx.float_attr("mask_filter_value", -10000.0)?;
    let mask = cx.cast(mask, DType::I64)?;
    let allowed = match cx.rank(mask) {
        1 => {
            let (at, length) = (cx.position(4, 3, keys)?, cx.along(mask, 4, 0)?);
            cx.compare(CompareFn::Lt, at, length)?
        }
        2 => {
            let on = cx.cast(mask, DType::Bool)?;
            let on = cx.unsqueeze(on, 1)?;
            cx.unsqueeze(on, 1)?
        }
        n => return unsupported(format!("a mask with {n} axes"), "export the model without this fusion"),
    };
    let (zero, low) = (cx.float(0.0, DType::F32)?, cx.float(value, DType::F32)?);
    cx.select(allowed, zero, low)
}

fn added(cx: &mut Cx<'_, '_>, a: Option<ValueId>, b: Option<ValueId>) -> Res<Option<ValueId>> {
    match (a, b) {
        (Some(a), Some(b)) => {
            let b = cx.cast_like(b, a)?;
            cx.binary(BinaryFn::Add, a, b).map(Some)
        }
        (a, b) => Ok(a.or(b)),
    }
}

/// `MultiHeadAttention`, with separate queries, keys and values.
pub(super) fn multi_head(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let count = cx.natural("num_heads", 0)?;
    let (mut q, mut k, mut v) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    if cx.rank(q) != 3 || cx.rank(k) != 3 || cx.rank(v) != 3 {
        return unsupported("packed or past operands of MultiHeadAttention", "export the model without this fusion");
    }
    if let Some(bias) = cx.optional(3)? {
        let mut start = Dim::new(0);
        for x in [&mut q, &mut k, &mut v] {
            let end = &start + &size(cx, *x, 2);
            let part = cx.slice(bias, 0, start, end.clone())?;
            *x = cx.binary(BinaryFn::Add, *x, part)?;
            start = end;
        }
    }
    (q, k, v) = (heads(cx, q, count)?, heads(cx, k, count)?, heads(cx, v, count)?);
    for (x, i) in [(&mut k, 6), (&mut v, 7)] {
        if let Some(past) = cx.optional(i)? {
            *x = cx.concat(&[past, *x], 2)?;
        }
    }
    let keys = size(cx, k, 2);
    let mask = if cx.has(4) { Some(cx.plain(4)?) } else { None };
    let mask = mask.map(|mask| key_mask(cx, mask, keys.clone())).transpose()?;
    cx.ignore("mask_filter_value");
    let bias = cx.optional(5)?;
    let mask = added(cx, mask, bias)?;
    let causal = cx.flag("unidirectional", false)?;
    finish(cx, (q, k, v), mask, causal)
}

/// `Attention`: one product makes queries, keys and values.
pub(super) fn packed(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let count = cx.natural("num_heads", 0)?;
    let (x, weight) = (cx.input(0)?, cx.input(1)?);
    if cx.flag("do_rotary", false)? || cx.has(4) || cx.has(6) {
        return unsupported("Attention with rotary embeddings or a past", "export the model without this fusion");
    }
    let mut all = product(cx, x, weight)?;
    if let Some(bias) = cx.optional(2)? {
        all = cx.binary(BinaryFn::Add, all, bias)?;
    }
    let total = cx.size(all, 2)?;
    let sizes = match cx.optional_ints_attr("qkv_hidden_sizes")? {
        Some(sizes) => sizes,
        None => vec![(total / 3) as i64; 3],
    };
    let mut parts = Vec::new();
    let mut start = 0;
    for size in sizes {
        let part = cx.slice(all, 2, Dim::new(start), Dim::new(start + size))?;
        parts.push(heads(cx, part, count)?);
        start += size;
    }
    let [q, k, v] = parts.as_slice() else { return wrong("expected sizes of queries, keys and values") };
    let keys = size(cx, *k, 2);
    let mask = if cx.has(3) { Some(cx.plain(3)?) } else { None };
    let mask = mask.map(|mask| key_mask(cx, mask, keys)).transpose()?;
    cx.ignore("mask_filter_value");
    let bias = cx.optional(5)?;
    let mask = added(cx, mask, bias)?;
    let causal = cx.flag("unidirectional", false)?;
    Ok(finish(cx, (*q, *k, *v), mask, causal)?.into_iter().take(1).collect())
}

fn finish(
    cx: &mut Cx<'_, '_>,
    (q, k, v): (ValueId, ValueId, ValueId),
    mut mask: Option<ValueId>,
    causal: bool,
) -> Res<Vec<Option<ValueId>>> {
    let head = cx.size(q, 3)?;
    // Zero stands for the default.
    let scale = match cx.float_attr("scale", 0.0)? {
        0.0 => 1.0 / (head as f64).sqrt(),
        scale => scale,
    };
    let (queries, keys) = (size(cx, q, 2), size(cx, k, 2));
    let mut plain = causal;
    if causal && queries != keys {
        let offset = cx.dim_value(&(&keys - &queries), DType::I64)?;
        let allowed = up_to(cx, queries, keys, offset)?;
        mask = Some(both(cx, mask, allowed)?);
        plain = false;
    }
    let out = attend(cx, &Operands { q, k, v, scale, softcap: 0.0, mask }, plain)?;
    let out = joined(cx, out)?;
    Ok(vec![Some(out), Some(k), Some(v)])
}
