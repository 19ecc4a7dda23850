//! Spectra, and windows over signals.

use std::f64::consts::PI;

use regraft_ir::ops::BinaryFn;
use regraft_tensor::{DType, Dim, Tensor};

use crate::{
    build::{product, taps},
    onnx::args::{Cx, Res, ValueId, unsupported, wrong},
};

/// The longest transform, whose matrix has the square of that many elements.
const LONGEST: usize = 4096;

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
    cx.t.computed(Tensor::from_f64(dtype, &[size], &values), "window")
}

/// A transform of `rows` elements of a period of `n` into `columns`.
struct Transform {
    rows: usize,
    columns: usize,
    n: usize,
    /// Of the angle: -1 for a spectrum, 1 back from one.
    sign: f64,
    /// Whether the rows are one half of a spectrum whose other half mirrors it.
    half: bool,
}

impl Transform {
    fn matrix(&self, cx: &mut Cx<'_, '_>, f: fn(f64) -> f64, dtype: DType, name: &str) -> Res<ValueId> {
        let Transform { rows, columns, n, sign, half } = *self;
        let value = |i: usize| {
            let (row, column) = (i / columns, i % columns);
            let twice = if half && row > 0 && 2 * row < n { 2.0 } else { 1.0 };
            let scale = if sign > 0.0 { twice / n as f64 } else { 1.0 };
            scale * f(sign * 2.0 * PI * (row * column % n) as f64 / n as f64)
        };
        let values: Vec<f64> = (0..rows * columns).map(value).collect();
        cx.t.computed(Tensor::from_f64(dtype, &[rows, columns], &values), name)
    }

    /// The transform along the last axis: real and imaginary parts.
    fn of(&self, cx: &mut Cx<'_, '_>, re: ValueId, im: Option<ValueId>) -> Res<(ValueId, ValueId)> {
        let dtype = cx.dtype_of(re);
        let (cos, sin) = (self.matrix(cx, f64::cos, dtype, "dft_cos")?, self.matrix(cx, f64::sin, dtype, "dft_sin")?);
        let (mut out_re, mut out_im) = (product(cx, re, cos)?, product(cx, re, sin)?);
        if let Some(im) = im {
            let (c, s) = (product(cx, im, cos)?, product(cx, im, sin)?);
            out_re = cx.binary(BinaryFn::Sub, out_re, s)?;
            out_im = cx.binary(BinaryFn::Add, out_im, c)?;
        }
        Ok((out_re, out_im))
    }
}

/// Part `i` of pairs in the last axis.
fn part(cx: &mut Cx<'_, '_>, x: ValueId, i: usize) -> Res<ValueId> {
    let last = cx.rank(x).saturating_sub(1);
    let part = cx.slice(x, last, Dim::from(i), Dim::from(i + 1))?;
    cx.squeeze(part, last)
}

/// The real and, of pairs, the imaginary part of a signal.
fn parts(cx: &mut Cx<'_, '_>, x: ValueId) -> Res<(ValueId, Option<ValueId>)> {
    let last = cx.rank(x).saturating_sub(1);
    match cx.size(x, last)? {
        1 => Ok((part(cx, x, 0)?, None)),
        2 => Ok((part(cx, x, 0)?, Some(part(cx, x, 1)?))),
        other => wrong(format!("expected one or two parts of each number, found {other}")),
    }
}

/// The discrete Fourier transform along an axis of pairs of numbers, or of single ones, which are real.
pub(super) fn dft(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    let axis = if cx.version >= 20 {
        cx.ignore("axis");
        if cx.has(2) { cx.int(2)? } else { -2 }
    } else {
        cx.int_attr("axis", 1)?
    };
    let axis = cx.axis_of(axis, rank)?;
    if axis + 1 >= rank {
        return wrong("the parts of numbers are not axis of a signal");
    }
    let (inverse, one_sided) = (cx.flag("inverse", false)?, cx.flag("onesided", false)?);
    let have = cx.size(x, axis)?;
    // Half a spectrum back gives a real signal.
    let real = inverse && one_sided;
    let whole = if real { 2 * have.saturating_sub(1) } else { have };
    let n = if cx.has(1) { cx.int(1)? } else { whole as i64 };
    let Some(n) = usize::try_from(n).ok().filter(|n| (1..=LONGEST).contains(n)) else {
        return unsupported(format!("a transform of {n} elements"), format!("use 1 to {LONGEST}"));
    };
    let columns = if one_sided && !inverse { n / 2 + 1 } else { n };
    let rows = have.min(if real { n / 2 + 1 } else { n });
    let transform = Transform { rows, columns, n, sign: if inverse { 1.0 } else { -1.0 }, half: real };
    let mut perm: Vec<usize> = (0..rank - 1).filter(|i| *i != axis).collect();
    perm.push(axis);
    let (re, im) = parts(cx, x)?;
    let mut turned = |x: ValueId| -> Res<ValueId> {
        let x = cx.slice(x, axis, Dim::new(0), Dim::from(rows))?;
        cx.permute(x, perm.clone())
    };
    let (re, im) = (turned(re)?, im.map(turned).transpose()?);
    let (out_re, out_im) = transform.of(cx, re, im)?;
    // Back to where the axis was, with the parts behind.
    let mut back: Vec<usize> = (0..rank.saturating_sub(2)).collect();
    back.insert(axis, rank - 2);
    let mut pairs = Vec::new();
    for out in [Some(out_re), (!real).then_some(out_im)].into_iter().flatten() {
        let out = cx.permute(out, back.clone())?;
        pairs.push(cx.unsqueeze(out, rank - 1)?);
    }
    cx.concat(&pairs, rank - 1)
}

/// The spectra of windows that step over a signal: `[batch, windows, frequencies, 2]`.
pub(super) fn stft(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let shape = cx.shape(x);
    let [_, length, _] = shape.as_slice() else { return wrong("expected a signal of three axes") };
    let step = cx.int(1)?;
    let window = cx.optional(2)?;
    let frame = match (cx.optional_ints(3)?.as_deref(), window) {
        (Some([frame]), _) => usize::try_from(*frame).ok(),
        (Some(_), _) => None,
        (None, Some(window)) => Some(cx.size(window, 0)?),
        (None, None) => length.as_usize(),
    };
    let (Some(n), Some(step)) =
        (frame.filter(|n| (1..=LONGEST).contains(n)), usize::try_from(step).ok().filter(|s| (1..1 << 20).contains(s)))
    else {
        return unsupported(format!("windows of {frame:?} elements, {step} apart,"), format!("use 1 to {LONGEST}"));
    };
    if window.is_some_and(|w| cx.ty(w).shape != [Dim::from(n)]) || cx.bounds(length).min < n as i64 {
        return wrong(format!("windows of {n} elements do not fit"));
    }
    let one_sided = cx.flag("onesided", true)?;
    let windows = &(length - &Dim::from(n)).floor_div(&Dim::from(step)) + &Dim::new(1);
    let at = taps(cx, windows, n, step, 1)?;
    let frames = cx.take(x, 1, at)?;
    let (re, im) = parts(cx, frames)?;
    if one_sided && im.is_some() {
        return wrong("half a spectrum of a signal that is not real");
    }
    let mut weighted = |x: ValueId| match window {
        Some(window) => cx.binary(BinaryFn::Mul, x, window),
        None => Ok(x),
    };
    let (re, im) = (weighted(re)?, im.map(weighted).transpose()?);
    let columns = if one_sided { n / 2 + 1 } else { n };
    let transform = Transform { rows: n, columns, n, sign: -1.0, half: false };
    let (re, im) = transform.of(cx, re, im)?;
    let (re, im) = (cx.unsqueeze(re, 3)?, cx.unsqueeze(im, 3)?);
    cx.concat(&[re, im], 3)
}

/// Triangles over the frequencies of a spectrum, evenly apart on the mel scale: `[frequencies, bins]`.
pub(super) fn mel_weights(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (bins, length, rate) = (cx.int(0)?, cx.int(1)?, cx.int(2)?);
    let (low, high) = (cx.floats(3)?, cx.floats(4)?);
    let ([low], [high]) = (low.as_slice(), high.as_slice()) else { return wrong("expected numbers") };
    let dtype = cx.dtype_attr("output_datatype")?.unwrap_or(DType::F32);
    let sizes = (usize::try_from(bins), usize::try_from(length));
    let (Ok(bins @ 1..=4096), Ok(length @ 1..=0x10_0000)) = sizes else {
        return unsupported(format!("{bins} bins of spectra of {length} elements"), "use 1 to 4096 bins");
    };
    let rows = length / 2 + 1;
    if rows.saturating_mul(bins) > 1 << 24 {
        return unsupported(format!("a matrix of {rows}x{bins} weights"), "use fewer");
    }
    let mel = |hertz: f64| 2595.0 * (hertz / 700.0).ln_1p() / 10f64.ln();
    let step = (mel(*high) - mel(*low)) / (bins + 2) as f64;
    let edge = |i: usize| {
        let hertz = 700.0 * ((i as f64 * step + mel(*low)) / 2595.0 * 10f64.ln()).exp_m1();
        ((length + 1) as f64 * hertz / rate as f64).floor()
    };
    let edges: Vec<f64> = (0..bins + 2).map(edge).collect();
    if edges.iter().any(|e| !(0.0..rows as f64).contains(e)) {
        return wrong(format!("frequencies from {low} to {high} Hz are not all of a spectrum at {rate} Hz"));
    }
    let edges: Vec<usize> = edges.into_iter().map(|e| e as usize).collect();
    let mut weights = vec![0.0; rows * bins];
    for (bin, edges) in edges.windows(3).enumerate() {
        let &[left, center, right] = edges else { continue };
        let mut put = |row: usize, weight: f64| {
            if let Some(slot) = weights.get_mut(row * bins + bin) {
                *slot = weight;
            }
        };
        if left == center {
            put(center, 1.0);
        }
        for row in left..=center {
            if center > left {
                put(row, (row - left) as f64 / (center - left) as f64);
            }
        }
        for row in center..right {
            put(row, (right - row) as f64 / (right - center) as f64);
        }
    }
    cx.t.computed(Tensor::from_f64(dtype, &[rows, bins], &weights), "mel")
}
