//! Sampling at given points, spectra and windows.

use std::f64::consts::PI;

use regraft_ir::ops::{BinaryFn, PutFn};
use regraft_tensor::{DType, Dim, Tensor};

use crate::{
    build::{Outside, Sampling, grid_sample, product, put},
    onnx::args::{Cx, Res, ValueId, unsupported, wrong},
};

/// The longest transform, whose matrix has the square of that many elements.
const LONGEST: usize = 4096;

pub(super) fn grid(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (image, grid) = (cx.input(0)?, cx.input(1)?);
    let corners = cx.flag("align_corners", false)?;
    let sampling = match cx.text("mode", "linear")? {
        "linear" | "bilinear" => Sampling::Linear,
        "nearest" => Sampling::Nearest,
        "cubic" | "bicubic" => Sampling::Cubic,
        other => return wrong(format!("`{other}` is no mode of sampling")),
    };
    let outside = match cx.text("padding_mode", "zeros")? {
        "zeros" => Outside::Zeros,
        "border" => Outside::Border,
        "reflection" => Outside::Reflection,
        other => return wrong(format!("`{other}` is no padding mode")),
    };
    grid_sample(cx, image, grid, sampling, outside, corners)
}

/// The points of an image under an affine map of each example.
pub(super) fn affine_grid(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let theta = cx.input(0)?;
    let size = cx.ints(1)?;
    let corners = cx.flag("align_corners", false)?;
    let sizes: Option<Vec<usize>> = size.iter().skip(2).map(|s| usize::try_from(*s).ok()).collect();
    let Some(sizes) = sizes.filter(|s| (2..=3).contains(&s.len())) else { return wrong("expected sizes of an image") };
    let count: usize = sizes.iter().try_fold(1usize, |n, s| n.checked_mul(*s)).unwrap_or(usize::MAX);
    if count > 1 << 22 {
        return unsupported(format!("a grid of {count} points"), "use fewer");
    }
    let columns = sizes.len() + 1;
    let mut points = Vec::with_capacity(count * columns);
    for i in 0..count {
        let mut rest = i;
        // The last axis is x, which comes first.
        for n in sizes.iter().rev() {
            let (at, n) = ((rest % n) as f64, *n as f64);
            rest /= n as usize;
            points.push(match corners {
                true if n > 1.0 => -1.0 + 2.0 * at / (n - 1.0),
                true => -1.0,
                false => (2.0 * at + 1.0) / n - 1.0,
            });
        }
        points.push(1.0);
    }
    let dtype = cx.dtype_of(theta);
    let points = cx.t.literal_tensor(Tensor::from_f64(dtype, &[count, columns], &points), "grid")?;
    let turned = cx.permute(theta, vec![0, 2, 1])?;
    let out = product(cx, points, turned)?;
    let batch = cx.ty(theta).shape.first().cloned().unwrap_or(Dim::new(1));
    let shape = [batch].into_iter().chain(sizes.iter().map(|s| Dim::from(*s))).chain([Dim::from(sizes.len())]);
    let shape = shape.collect();
    cx.reshape(out, shape)
}

/// Cosine windows; `weights` are those of the cosines of 0, 1, 2 periods, with their signs.
pub(super) fn window(cx: &mut Cx<'_, '_>, weights: &[f64]) -> Res<ValueId> {
    let size = cx.int(0)?;
    let Some(size) = usize::try_from(size).ok().filter(|s| *s <= 1 << 20) else {
        return wrong(format!("{size} elements"));
    };
    let dtype = cx.dtype_attr("output_datatype")?.unwrap_or(DType::F32);
    let period = if cx.flag("periodic", true)? { size as f64 } else { size as f64 - 1.0 };
    let value = |i: usize| {
        let angle = 2.0 * PI * i as f64 / period;
        weights.iter().enumerate().map(|(k, w)| w * (k as f64 * angle).cos()).sum()
    };
    let values: Vec<f64> = (0..size).map(value).collect();
    cx.t.literal_tensor(Tensor::from_f64(dtype, &[size], &values), "window")
}

/// The discrete Fourier transform along an axis of pairs of numbers, or of single ones, which are real.
pub(super) fn dft(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    let Some(last) = rank.checked_sub(1) else { return wrong("expected a signal") };
    let axis = if cx.version >= 20 {
        cx.ignore("axis");
        if cx.has(2) { cx.int(2)? } else { -2 }
    } else {
        cx.int_attr("axis", 1)?
    };
    let axis = cx.axis_of(axis, rank)?;
    let (inverse, one_sided) = (cx.flag("inverse", false)?, cx.flag("onesided", false)?);
    let have = cx.size(x, axis)?;
    let real = cx.size(x, last)? == 1;
    let n = if cx.has(1) { cx.int(1)? } else { have as i64 };
    let n = usize::try_from(n).ok().filter(|n| (1..=LONGEST).contains(n));
    let Some(n) = n.filter(|_| axis < last && !(inverse && one_sided)) else {
        return unsupported("this transform", format!("use one of at most {LONGEST} elements, of whole spectra back"));
    };
    let keep = if one_sided { n / 2 + 1 } else { n };
    let rows = have.min(n);
    let dtype = cx.dtype_of(x);
    let sign = if inverse { 1.0 } else { -1.0 };
    let scale = if inverse { 1.0 / n as f64 } else { 1.0 };
    let matrix = |cx: &mut Cx<'_, '_>, f: fn(f64) -> f64, name: &str| {
        let value = |i: usize| {
            let turns = (i / keep) * (i % keep) % n;
            scale * f(sign * 2.0 * PI * turns as f64 / n as f64)
        };
        let values: Vec<f64> = (0..rows * keep).map(value).collect();
        cx.t.literal_tensor(Tensor::from_f64(dtype, &[rows, keep], &values), name)
    };
    let (cos, sin) = (matrix(cx, f64::cos, "dft_cos")?, matrix(cx, f64::sin, "dft_sin")?);
    let mut perm: Vec<usize> = (0..last).filter(|i| *i != axis).collect();
    perm.push(axis);
    let part = |cx: &mut Cx<'_, '_>, i: usize| -> Res<ValueId> {
        let part = cx.slice(x, last, Dim::from(i), Dim::from(i + 1))?;
        let part = cx.squeeze(part, last)?;
        let part = cx.slice(part, axis, Dim::new(0), Dim::from(rows))?;
        cx.permute(part, perm.clone())
    };
    let re = part(cx, 0)?;
    let (mut out_re, mut out_im) = (product(cx, re, cos)?, product(cx, re, sin)?);
    if !real {
        let im = part(cx, 1)?;
        let (c, s) = (product(cx, im, cos)?, product(cx, im, sin)?);
        out_re = cx.binary(BinaryFn::Sub, out_re, s)?;
        out_im = cx.binary(BinaryFn::Add, out_im, c)?;
    }
    // Back to where the axis was, with the parts behind.
    let mut back: Vec<usize> = (0..last.saturating_sub(1)).collect();
    back.insert(axis, last - 1);
    let mut pairs = Vec::new();
    for out in [out_re, out_im] {
        let out = cx.permute(out, back.clone())?;
        pairs.push(cx.unsqueeze(out, last)?);
    }
    cx.concat(&pairs, last)
}

/// Rows written into a cache of each example, from a position on.
pub(super) fn tensor_scatter(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (cache, update) = (cx.input(0)?, cx.input(1)?);
    let axis = cx.axis_attr("axis", -2, cx.rank(cache))?;
    let circular = match cx.text("mode", "linear")? {
        "linear" => false,
        "circular" => true,
        other => return wrong(format!("`{other}` is no mode of writing")),
    };
    if axis == 0 {
        return wrong("the axis of examples cannot be written to");
    }
    let shape = cx.shape(update);
    let mut at = Vec::new();
    for i in 0..=axis {
        let len = shape.get(i).cloned().unwrap_or(Dim::new(1));
        at.push(cx.position(axis + 1, i, len)?);
    }
    if cx.has(2) {
        let first = cx.plain(2)?;
        let first = cx.cast(first, DType::I64)?;
        let first = cx.along(first, axis + 1, 0)?;
        if let Some(last) = at.last_mut() {
            *last = cx.binary(BinaryFn::Add, *last, first)?;
            if circular {
                let size = cx.ty(cache).shape.get(axis).cloned().unwrap_or(Dim::new(1));
                let size = cx.dim_value(&size, DType::I64)?;
                *last = cx.binary(BinaryFn::Rem, *last, size)?;
            }
        }
    }
    put(cx, PutFn::Set, cache, update, 0, &at)
}
