//! Windows that step over spatial axes: convolutions and pooling.

use regraft_ir::{
    Scalar,
    ops::{
        Activation, AdaptiveAvgPool, AvgPool, BinaryFn, Conv, ConvTranspose, MaxPool, PadMode, ReduceFn, Slice,
        SpatialLayout, UnaryFn, pool_out_size,
    },
};
use regraft_tensor::{DType, Dim};

use super::shape::{filled, padded};
use crate::{
    build::{greatest, pool_taps, seen},
    onnx::args::{Cx, Res, ValueId, unsupported, wrong},
};

/// How windows lie over the spatial axes.
pub(super) struct Windows {
    kernel: Vec<usize>,
    stride: Vec<usize>,
    dilation: Vec<usize>,
    before: Vec<usize>,
    after: Vec<usize>,
}

impl Windows {
    /// From the attributes of a node; `shape` are the spatial sizes of the operand.
    fn of(cx: &Cx<'_, '_>, kernel: Vec<usize>, shape: &[Dim]) -> Res<Windows> {
        let n = kernel.len();
        let (stride, dilation) = (cx.naturals("strides", n, 1)?, cx.naturals("dilations", n, 1)?);
        let pads = cx.naturals("pads", 2 * n, 0)?;
        let (before, after) = pads.split_at(n);
        let mut w = Windows { kernel, stride, dilation, before: before.to_vec(), after: after.to_vec() };
        if w.stride.contains(&0) || w.dilation.contains(&0) || w.kernel.contains(&0) {
            return wrong("a window, step or dilation of 0");
        }
        match cx.text("auto_pad", "NOTSET")? {
            "NOTSET" => {}
            "VALID" => (w.before, w.after) = (vec![0; n], vec![0; n]),
            mode @ ("SAME_UPPER" | "SAME_LOWER") => {
                for i in 0..n {
                    let (Some(k), Some(s), Some(d)) = (w.kernel.get(i), w.stride.get(i), w.dilation.get(i)) else {
                        return wrong("expected sizes of windows");
                    };
                    let span = (k - 1).saturating_mul(*d) + 1;
                    let total = match shape.get(i).and_then(Dim::as_usize) {
                        Some(size) => {
                            (size.div_ceil(*s).saturating_sub(1).saturating_mul(*s) + span).saturating_sub(size)
                        }
                        // Whatever the size, when every element has a window.
                        None if *s == 1 => span - 1,
                        None => return unsupported("`auto_pad` of a dynamic size", "export the model with `pads`"),
                    };
                    let small = total / 2;
                    let (b, a) = if mode == "SAME_UPPER" { (small, total - small) } else { (total - small, small) };
                    if let (Some(before), Some(after)) = (w.before.get_mut(i), w.after.get_mut(i)) {
                        (*before, *after) = (b, a);
                    }
                }
            }
            other => return wrong(format!("`{other}` is not a padding")),
        }
        Ok(w)
    }

    /// The paddings of all axes, those of batch and channels first.
    fn pads(&self) -> (Vec<i64>, Vec<i64>) {
        let all = |list: &[usize]| [0, 0].into_iter().chain(list.iter().map(|p| *p as i64)).collect();
        (all(&self.before), all(&self.after))
    }

    /// Whether padding of both sides is the same.
    fn even(&self) -> bool {
        self.before == self.after
    }

    /// Whether pooling pads by itself: the same on both sides, by half a window at most.
    fn pools(&self) -> bool {
        let half = |((k, d), p): ((&usize, &usize), &usize)| 2 * p <= (k - 1).saturating_mul(*d) + 1;
        self.even() && self.kernel.iter().zip(&self.dilation).zip(&self.before).all(half)
    }

    fn none(&self) -> Vec<usize> {
        vec![0; self.kernel.len()]
    }
}

/// The spatial sizes of images, and how many axes these are.
fn spatial(cx: &Cx<'_, '_>, x: ValueId) -> Res<Vec<Dim>> {
    match cx.ty(x).shape.get(2..) {
        Some(sizes) if (1..=3).contains(&sizes.len()) => Ok(sizes.to_vec()),
        _ => unsupported(format!("a tensor with {} axes as an image", cx.rank(x)), "use one to three spatial axes"),
    }
}

/// The sizes of the windows of a weight, which an attribute may say again.
fn kernel(cx: &Cx<'_, '_>, weight: ValueId, n: usize) -> Res<Vec<usize>> {
    let sizes = (0..n).map(|i| cx.size(weight, i + 2)).collect::<Res<Vec<_>>>()?;
    let said = cx.naturals("kernel_shape", n, 0)?;
    if cx.optional_ints_attr("kernel_shape")?.is_some() && said != sizes {
        return wrong(format!("`kernel_shape` is {said:?}, the weight has {sizes:?}"));
    }
    Ok(sizes)
}

pub(super) fn conv(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, weight, bias) = (cx.input(0)?, cx.input(1)?, cx.optional(2)?);
    conv_of(cx, x, weight, bias)
}

pub(super) fn conv_of(cx: &mut Cx<'_, '_>, x: ValueId, weight: ValueId, bias: Option<ValueId>) -> Res<ValueId> {
    let sizes = spatial(cx, x)?;
    let kernel = kernel(cx, weight, sizes.len())?;
    let w = Windows::of(cx, kernel, &sizes)?;
    let groups = cx.natural("group", 1)?;
    let (mut x, mut padding) = (x, w.before.clone());
    if !w.even() {
        let (before, after) = w.pads();
        x = padded(cx, x, before, after)?;
        padding = w.none();
    }
    let op = Conv {
        stride: w.stride,
        padding,
        dilation: w.dilation,
        groups,
        layout: SpatialLayout::Nchw,
        act: Activation::None,
        act_first: false,
    };
    cx.emit_opt(op, vec![Some(x), Some(weight), bias])
}

/// A convolution of whole numbers, each less its zero point. Computed in f64, which holds all sums that fit.
pub(super) fn conv_integer(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut operands = [cx.input(0)?, cx.input(1)?];
    for (i, x) in operands.iter_mut().enumerate() {
        *x = cx.cast(*x, DType::F64)?;
        if let Some(zero) = cx.optional(i + 2)? {
            let mut zero = cx.cast(zero, DType::F64)?;
            if i == 1 && cx.rank(zero) == 1 {
                let rank = cx.rank(*x);
                zero = cx.along(zero, rank, 0)?;
            }
            *x = cx.binary(BinaryFn::Sub, *x, zero)?;
        }
    }
    let [x, weight] = operands;
    let out = conv_of(cx, x, weight, None)?;
    cx.cast(out, DType::I32)
}

pub(super) fn conv_transpose(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, weight, bias) = (cx.input(0)?, cx.input(1)?, cx.optional(2)?);
    let sizes = spatial(cx, x)?;
    let n = sizes.len();
    let kernel = kernel(cx, weight, n)?;
    let (stride, dilation) = (cx.naturals("strides", n, 1)?, cx.naturals("dilations", n, 1)?);
    let mut extra = cx.naturals("output_padding", n, 0)?;
    let groups = cx.natural("group", 1)?;
    let mut pads = cx.naturals("pads", 2 * n, 0)?;
    let auto = cx.text("auto_pad", "NOTSET")?;
    let wanted = cx.optional_ints_attr("output_shape")?;
    if auto == "VALID" {
        pads = vec![0; 2 * n];
    } else if auto != "NOTSET" || wanted.is_some() {
        // What is cut off follows from the size of the result.
        for i in 0..n {
            let (Some(size), Some(k), Some(s), Some(d), Some(e)) =
                (sizes.get(i).and_then(Dim::as_usize), kernel.get(i), stride.get(i), dilation.get(i), extra.get(i))
            else {
                return unsupported("`output_shape` or `auto_pad` of a dynamic size", "export the model with `pads`");
            };
            let full = size.saturating_sub(1).saturating_mul(*s) + e + (k - 1).saturating_mul(*d) + 1;
            let out = match &wanted {
                Some(list) => match list.get(list.len().saturating_sub(n) + i).and_then(|v| usize::try_from(*v).ok()) {
                    Some(out) => out,
                    None => return wrong(format!("expected {n} sizes as `output_shape`")),
                },
                None => size.saturating_mul(*s),
            };
            // What lies beyond all windows is padded behind.
            let total = full.saturating_sub(out);
            let beyond = e + out.saturating_sub(full);
            if let Some(extra) = extra.get_mut(i) {
                *extra = beyond;
            }
            let small = total / 2;
            let (b, a) = if auto == "SAME_UPPER" { (small, total - small) } else { (total - small, small) };
            if let Some(before) = pads.get_mut(i) {
                *before = b;
            }
            if let Some(after) = pads.get_mut(n + i) {
                *after = a;
            }
        }
    }
    let (before, after) = pads.split_at(n);
    let fits = before == after && extra.iter().zip(&stride).zip(&dilation).all(|((e, s), d)| e < s || e < d);
    let (padding, output_padding) = if fits { (before.to_vec(), extra.clone()) } else { (vec![0; n], vec![0; n]) };
    let op = ConvTranspose { stride, padding, output_padding, dilation, groups };
    let inputs = vec![Some(x), Some(weight), if fits { bias } else { None }];
    let mut out = cx.emit_opt(op, inputs)?;
    if fits {
        return Ok(out);
    }
    let ends: Vec<i64> = after.iter().zip(&extra).map(|(a, e)| *e as i64 - *a as i64).collect();
    let all = |list: &mut dyn Iterator<Item = i64>| [0, 0].into_iter().chain(list).collect::<Vec<i64>>();
    let (first, last) = (all(&mut before.iter().map(|b| -(*b as i64))), all(&mut ends.into_iter()));
    out = padded(cx, out, first, last)?;
    match bias {
        Some(bias) => {
            let bias = cx.along(bias, n + 2, 1)?;
            cx.binary(BinaryFn::Add, out, bias)
        }
        None => Ok(out),
    }
}

// ---- pooling ----

/// The operand of a pool as floats, which hold all 8-bit numbers, and the dtype of the result.
fn pooled(cx: &mut Cx<'_, '_>) -> Res<(ValueId, DType)> {
    let x = cx.input(0)?;
    let dtype = cx.dtype_of(x);
    match dtype {
        DType::I8 | DType::U8 | DType::I16 => Ok((cx.cast(x, DType::F32)?, dtype)),
        _ => Ok((x, dtype)),
    }
}

fn windows(cx: &Cx<'_, '_>, x: ValueId) -> Res<(Windows, bool)> {
    let sizes = spatial(cx, x)?;
    let kernel = cx.naturals("kernel_shape", sizes.len(), 0)?;
    Ok((Windows::of(cx, kernel, &sizes)?, cx.flag("ceil_mode", false)?))
}

pub(super) fn max_pool(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let (mut x, dtype) = pooled(cx)?;
    let (w, ceil) = windows(cx, x)?;
    let first_fastest = cx.flag("storage_order", false)?;
    let places = if cx.wants(1) { Some(pool_places(cx, x, &w, ceil, first_fastest)?) } else { None };
    let padding = if w.pools() {
        w.before.clone()
    } else {
        let (before, after) = w.pads();
        x = filled(cx, x, before, after, Scalar::Float(f64::NEG_INFINITY), PadMode::Constant)?;
        w.none()
    };
    let layout = SpatialLayout::Nchw;
    let op = MaxPool { kernel: w.kernel, stride: w.stride, padding, dilation: w.dilation, ceil, layout };
    let out = cx.emit(op, &[x])?;
    Ok(vec![Some(cx.cast(out, dtype)?), places])
}

/// Where the greatest element of each window stands among all elements of the tensor.
fn pool_places(cx: &mut Cx<'_, '_>, x: ValueId, w: &Windows, ceil: bool, first_fastest: bool) -> Res<ValueId> {
    const MOST: usize = 1 << 20;
    if ceil && !w.even() {
        return unsupported("positions of a pool with `ceil_mode` and uneven padding", "use even padding");
    }
    let shape = cx.shape(x);
    let (front, spatial) = shape.split_at(shape.len().min(2));
    let mut taps = Vec::new();
    for (i, size) in spatial.iter().enumerate() {
        let at = |list: &[usize]| list.get(i).copied().unwrap_or(0);
        let [k, s, d, before, after] = [&w.kernel, &w.stride, &w.dilation, &w.before, &w.after].map(|list| at(list));
        if [k, s, d, before, after].iter().any(|v| *v > MOST) || before > (k - 1) * d {
            return unsupported("positions of a pool whose windows are large, or see nothing,", "use others");
        }
        let windows = if before == after {
            pool_out_size(size, k, s, before, d, ceil)
        } else {
            let room = &(size + &Dim::from(before + after)) - &Dim::from((k - 1) * d + 1);
            &room.floor_div(&Dim::from(s)) + &Dim::new(1)
        };
        taps.push(pool_taps(cx, size, windows, [k, s, before, d])?);
    }
    let seen = seen(cx, x, &taps, first_fastest)?;
    let (_, place) = greatest(cx, &seen)?;
    // Each image begins where the one before it ends.
    let product = |list: &[Dim]| list.iter().product::<Dim>();
    let rank = shape.len();
    let image = cx.iota(product(front), 0, 1)?;
    let ones = vec![Dim::new(1); rank.saturating_sub(front.len())];
    let image = cx.reshape(image, [front, &ones[..]].concat())?;
    let size = cx.dim_value(&product(spatial), DType::I64)?;
    let start = cx.binary(BinaryFn::Mul, image, size)?;
    cx.binary(BinaryFn::Add, start, place)
}

pub(super) fn avg_pool(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let (w, ceil) = windows(cx, x)?;
    let include = cx.flag("count_include_pad", false)?;
    average(cx, x, &w, ceil, include)
}

fn average(cx: &mut Cx<'_, '_>, x: ValueId, w: &Windows, ceil: bool, include: bool) -> Res<ValueId> {
    if w.dilation.iter().any(|d| *d != 1) {
        return dilated(cx, x, w, ceil, include);
    }
    let (kernel, stride, layout) = (w.kernel.clone(), w.stride.clone(), SpatialLayout::Nchw);
    let op = AvgPool { kernel, stride, padding: w.none(), ceil, count_include_pad: include, divisor: None, layout };
    if w.pools() {
        return cx.emit(AvgPool { padding: w.before.clone(), ..op }, &[x]);
    }
    let (before, after) = w.pads();
    let wide = padded(cx, x, before.clone(), after.clone())?;
    let mean = cx.emit(op.clone(), &[wide])?;
    if include {
        return Ok(mean);
    }
    // The part of each window that is not a padding.
    let one = cx.float_like(1.0, x)?;
    let shape = cx.shape(x);
    let ones = cx.expand(one, shape)?;
    let ones = padded(cx, ones, before, after)?;
    let part = cx.emit(op, &[ones])?;
    cx.binary(BinaryFn::Div, mean, part)
}

/// The mean over dilated windows: sums of what stands at each tap, over how many there are.
fn dilated(cx: &mut Cx<'_, '_>, x: ValueId, w: &Windows, ceil: bool, include: bool) -> Res<ValueId> {
    let sizes = spatial(cx, x)?;
    let Some(sizes) = sizes.iter().map(Dim::as_usize).collect::<Option<Vec<usize>>>() else {
        return unsupported("an average over dilated windows of a dynamic size", "make it static");
    };
    let (mut counts, mut beyond) = (Vec::new(), vec![0i64; 2]);
    for (i, size) in sizes.iter().enumerate() {
        let (Some(k), Some(s), Some(d)) = (w.kernel.get(i), w.stride.get(i), w.dilation.get(i)) else {
            return wrong("expected sizes of windows");
        };
        let (Some(before), Some(after)) = (w.before.get(i), w.after.get(i)) else { return wrong("expected padding") };
        let (span, padded) = ((k - 1).saturating_mul(*d) + 1, size + before + after);
        let Some(room) = padded.checked_sub(span) else { return wrong("a window that does not fit") };
        let mut count = if ceil { room.div_ceil(*s) } else { room / s } + 1;
        // A last window must begin in the image or in the padding before it.
        if ceil && (count - 1).saturating_mul(*s) >= size + before {
            count -= 1;
        }
        counts.push(count);
        beyond.push(((count - 1).saturating_mul(*s) + span).saturating_sub(padded) as i64);
    }
    let one = cx.float_like(1.0, x)?;
    let shape = cx.shape(x);
    let ones = cx.expand(one, shape)?;
    let (before, after) = w.pads();
    let edge = Scalar::Float(if include { 1.0 } else { 0.0 });
    let ones = filled(cx, ones, before.clone(), after.clone(), edge, PadMode::Constant)?;
    let ones = padded(cx, ones, vec![0; beyond.len()], beyond.clone())?;
    let wide = padded(cx, x, before, after)?;
    let wide = padded(cx, wide, vec![0; beyond.len()], beyond)?;
    let (sum, part) = (over_taps(cx, wide, w, &counts)?, over_taps(cx, ones, w, &counts)?);
    cx.binary(BinaryFn::Div, sum, part)
}

/// The sum over the taps of each window.
fn over_taps(cx: &mut Cx<'_, '_>, x: ValueId, w: &Windows, counts: &[usize]) -> Res<ValueId> {
    let mut out = x;
    // Windows are products of those of each axis.
    for (i, count) in counts.iter().enumerate() {
        let (Some(k), Some(s), Some(d)) = (w.kernel.get(i), w.stride.get(i), w.dilation.get(i)) else {
            return wrong("expected sizes of windows");
        };
        let mut sum: Option<ValueId> = None;
        for tap in 0..*k {
            let start = tap.saturating_mul(*d);
            let end = start + (count - 1).saturating_mul(*s) + 1;
            let op = Slice { axis: i + 2, start: Dim::from(start), end: Dim::from(end), step: *s };
            let part = cx.emit(op, &[out])?;
            sum = Some(match sum {
                Some(sum) => cx.binary(BinaryFn::Add, sum, part)?,
                None => part,
            });
        }
        out = sum.map_or_else(|| wrong("a window without taps"), Ok)?;
    }
    Ok(out)
}

pub(super) fn lp_pool(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let (w, ceil) = windows(cx, x)?;
    let p = cx.float_attr("p", 2.0)?;
    let size = cx.unary(UnaryFn::Abs, x)?;
    let power = cx.with_literal(BinaryFn::Pow, size, p)?;
    if ceil && !w.pools() {
        return unsupported("`ceil_mode` with uneven padding", "use even padding");
    }
    let count: usize = w.kernel.iter().product();
    let mean = average(cx, power, &w, ceil, true)?;
    let sum = cx.with_literal(BinaryFn::Mul, mean, count as f64)?;
    cx.with_literal(BinaryFn::Pow, sum, 1.0 / p)
}

pub(super) fn global(cx: &mut Cx<'_, '_>, f: ReduceFn) -> Res<ValueId> {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    if f == ReduceFn::Mean && (3..=5).contains(&rank) {
        return cx.emit(AdaptiveAvgPool { size: vec![1; rank - 2], layout: SpatialLayout::Nchw }, &[x]);
    }
    cx.reduce(f, x, &(2..rank).collect::<Vec<_>>(), true)
}

pub(super) fn global_lp(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let p = cx.float_attr("p", 2.0)?;
    let size = cx.unary(UnaryFn::Abs, x)?;
    let power = cx.with_literal(BinaryFn::Pow, size, p)?;
    let rank = cx.rank(x);
    let sum = cx.reduce(ReduceFn::Sum, power, &(2..rank).collect::<Vec<_>>(), true)?;
    cx.with_literal(BinaryFn::Pow, sum, 1.0 / p)
}
