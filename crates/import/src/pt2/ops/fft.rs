//! Spectra of static length: products with the matrices of the discrete Fourier transform.

use std::f64::consts::PI;

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, Pad, PadMode, UnaryFn},
};
use regraft_tensor::{DType, Dim};

use super::complex::{joined, parts};
use crate::pt2::args::{Cx, Res, ValueId, unsupported, wrong};

/// The longest transform, whose matrix has the square of that many elements.
const LONGEST: usize = 4096;

/// A spectrum or signal: its real part, and its imaginary part unless that is zero.
#[derive(Clone, Copy)]
struct Signal {
    re: ValueId,
    im: Option<ValueId>,
}

/// The input as a signal.
fn signal(cx: &mut Cx<'_, '_>, name: &str) -> Res<Signal> {
    let v = cx.tensor(name)?;
    if cx.is_complex(name) {
        let (re, im) = parts(cx, v)?;
        return Ok(Signal { re, im: Some(im) });
    }
    let dtype = if cx.dtype_of(v).is_float() { cx.dtype_of(v) } else { DType::F32 };
    Ok(Signal { re: cx.cast(v, dtype)?, im: None })
}

fn each(cx: &mut Cx<'_, '_>, s: Signal, f: impl Fn(&mut Cx<'_, '_>, ValueId) -> Res<ValueId>) -> Res<Signal> {
    Ok(Signal { re: f(cx, s.re)?, im: s.im.map(|im| f(cx, im)).transpose()? })
}

/// Cosines and sines of `2π·row·column/n`: `[rows, columns]`.
fn matrix(cx: &mut Cx<'_, '_>, rows: usize, columns: usize, n: usize, dtype: DType) -> Res<(ValueId, ValueId)> {
    let row = cx.iota(Dim::from(rows), 0, 1)?;
    let row = cx.unsqueeze(row, 1)?;
    let column = cx.iota(Dim::from(columns), 0, 1)?;
    let product = cx.binary(BinaryFn::Mul, row, column)?;
    // Whole turns are left out while the numbers are whole.
    let whole = cx.literal(Scalar::Int(n as i64), DType::I64)?;
    let turn = cx.binary(BinaryFn::Rem, product, whole)?;
    let turn = cx.cast(turn, DType::F64)?;
    let angle = cx.with_literal(BinaryFn::Mul, turn, 2.0 * PI / n as f64)?;
    let (cos, sin) = (cx.unary(UnaryFn::Cos, angle)?, cx.unary(UnaryFn::Sin, angle)?);
    Ok((cx.cast(cos, dtype)?, cx.cast(sin, dtype)?))
}

/// `x` with `n` elements along an axis: cut off, or zeros behind.
fn resized(cx: &mut Cx<'_, '_>, x: ValueId, axis: usize, n: usize) -> Res<ValueId> {
    let size = cx.size(x, axis)?;
    if size >= n {
        return cx.slice(x, axis, Dim::new(0), Dim::from(n));
    }
    let mut after = vec![0; cx.rank(x)];
    if let Some(slot) = after.get_mut(axis) {
        *slot = (n - size) as i64;
    }
    let before = vec![0; cx.rank(x)];
    cx.emit(Pad { before, after, value: Scalar::Float(0.0), mode: PadMode::Constant }, &[x])
}

/// The axis moved behind, and back.
fn turned(cx: &mut Cx<'_, '_>, x: ValueId, axis: usize, back: bool) -> Res<ValueId> {
    let rank = cx.rank(x);
    let mut perm: Vec<usize> = (0..rank).collect();
    if back {
        if let Some(last) = perm.pop() {
            perm.insert(axis, last);
        }
    } else if axis < rank {
        perm.remove(axis);
        perm.push(axis);
    }
    cx.permute(x, perm)
}

fn checked(n: usize) -> Res<usize> {
    if (1..=LONGEST).contains(&n) {
        return Ok(n);
    }
    unsupported(format!("a Fourier transform of length {n}"), format!("use a length from 1 to {LONGEST}"))
}

/// The transform along an axis of `n` elements, of which `keep` frequencies are wanted: `Σ x[k]·e^(∓2πi·jk/n)`.
fn dft(cx: &mut Cx<'_, '_>, s: Signal, axis: usize, n: usize, keep: usize, inverse: bool) -> Res<Signal> {
    let n = checked(n)?;
    let s = each(cx, s, |cx, v| {
        let v = resized(cx, v, axis, n)?;
        turned(cx, v, axis, false)
    })?;
    let (cos, sin) = matrix(cx, n, keep, n, cx.dtype_of(s.re))?;
    let sin = if inverse { sin } else { cx.unary(UnaryFn::Neg, sin)? };
    let (mut re, mut im) = (crate::build::product(cx, s.re, cos)?, crate::build::product(cx, s.re, sin)?);
    if let Some(part) = s.im {
        let (a, b) = (crate::build::product(cx, part, sin)?, crate::build::product(cx, part, cos)?);
        re = cx.binary(BinaryFn::Sub, re, a)?;
        im = cx.binary(BinaryFn::Add, im, b)?;
    }
    Ok(Signal { re: turned(cx, re, axis, true)?, im: Some(turned(cx, im, axis, true)?) })
}

/// The real signal of `n` elements that has this half of a spectrum.
fn real_signal(cx: &mut Cx<'_, '_>, s: Signal, axis: usize, n: usize, inverse: bool) -> Res<ValueId> {
    let n = checked(n)?;
    let half = n / 2 + 1;
    let s = each(cx, s, |cx, v| {
        let v = resized(cx, v, axis, half)?;
        turned(cx, v, axis, false)
    })?;
    let dtype = cx.dtype_of(s.re);
    let (cos, sin) = matrix(cx, half, n, n, dtype)?;
    // All but the first frequency, and the last of an even number, stand for two.
    let twice = |k: usize| k > 0 && !(n.is_multiple_of(2) && k == n / 2);
    let mut weights = Vec::new();
    for (from, to) in [(0, 1), (1, half.saturating_sub(1).max(1)), (half.saturating_sub(1).max(1), half)] {
        if to > from {
            let weight = cx.float(if twice(from) { 2.0 } else { 1.0 }, dtype)?;
            weights.push(cx.expand(weight, vec![Dim::from(to - from), Dim::new(1)])?);
        }
    }
    let weights = cx.concat(&weights, 0)?;
    let (cos, sin) = (cx.binary(BinaryFn::Mul, cos, weights)?, cx.binary(BinaryFn::Mul, sin, weights)?);
    let mut out = crate::build::product(cx, s.re, cos)?;
    if let Some(im) = s.im {
        let part = crate::build::product(cx, im, sin)?;
        out = cx.binary(if inverse { BinaryFn::Sub } else { BinaryFn::Add }, out, part)?;
    }
    turned(cx, out, axis, true)
}

/// The factor that `norm` asks for, for transforms of `n` elements in all.
fn scale(cx: &Cx<'_, '_>, n: usize, inverse: bool) -> Res<f64> {
    let n = n as f64;
    Ok(match (cx.optional_text("norm")?.unwrap_or("backward"), inverse) {
        ("ortho", _) => 1.0 / n.sqrt(),
        ("backward", true) | ("forward", false) => 1.0 / n,
        ("backward", false) | ("forward", true) => 1.0,
        (other, _) => return wrong(format!("`{other}` is not a normalization")),
    })
}

fn scaled(cx: &mut Cx<'_, '_>, v: ValueId, factor: f64) -> Res<ValueId> {
    if factor == 1.0 { Ok(v) } else { cx.with_literal(BinaryFn::Mul, v, factor) }
}

fn finished(cx: &mut Cx<'_, '_>, s: Signal, factor: f64) -> Res<ValueId> {
    let s = each(cx, s, |cx, v| scaled(cx, v, factor))?;
    match s.im {
        Some(im) => joined(cx, s.re, im),
        None => {
            let zero = cx.float_like(0.0, s.re)?;
            joined(cx, s.re, zero)
        }
    }
}

/// The axes of a transform, each with the number of elements it is given; `None` for those of the input.
fn plan(cx: &Cx<'_, '_>, x: ValueId, dims: usize) -> Res<Vec<(usize, Option<usize>)>> {
    let rank = cx.rank(x);
    let length = |n: i64| usize::try_from(n).ok();
    if dims == 1 {
        let axis = cx.axis_arg("dim", Some(-1), rank)?;
        return Ok(vec![(axis, cx.optional_int("n")?.and_then(length))]);
    }
    let sizes = cx.ints("s")?;
    let mut axes = cx.ints("dim")?.into_iter().map(|d| cx.axis(d, rank)).collect::<Res<Vec<_>>>()?;
    if axes.is_empty() {
        let count = if dims > 0 {
            dims
        } else if sizes.is_empty() {
            rank
        } else {
            sizes.len()
        };
        let Some(first) = rank.checked_sub(count) else { return wrong("more sizes than axes") };
        axes = (first..rank).collect();
    }
    if !sizes.is_empty() && sizes.len() != axes.len() {
        return wrong("expected a size for each axis");
    }
    let given = |i: usize| sizes.get(i).copied().and_then(length);
    Ok(axes.into_iter().enumerate().map(|(i, axis)| (axis, given(i))).collect())
}

fn sized(cx: &Cx<'_, '_>, x: ValueId, (axis, n): (usize, Option<usize>)) -> Res<usize> {
    n.map_or_else(|| cx.size(x, axis), Ok)
}

/// `fft` and `ifft` over one axis, two, or (0) any.
pub(super) fn transform(cx: &mut Cx<'_, '_>, inverse: bool, dims: usize) -> Res<ValueId> {
    let mut s = signal(cx, "self")?;
    let mut total = 1usize;
    for axis in plan(cx, s.re, dims)? {
        let n = sized(cx, s.re, axis)?;
        s = dft(cx, s, axis.0, n, n, inverse)?;
        total = total.saturating_mul(n);
    }
    let factor = scale(cx, total, inverse)?;
    finished(cx, s, factor)
}

/// `rfft`, and with `inverse` `ihfft`: half the spectrum of a real signal along the last axis, all of it along the others.
pub(super) fn of_real(cx: &mut Cx<'_, '_>, inverse: bool, dims: usize) -> Res<ValueId> {
    let mut s = signal(cx, "self")?;
    let mut axes = plan(cx, s.re, dims)?;
    let Some(last) = axes.pop() else { return wrong("expected an axis") };
    let n = sized(cx, s.re, last)?;
    let mut total = n;
    s = dft(cx, s, last.0, n, n / 2 + 1, inverse)?;
    for axis in axes {
        let n = sized(cx, s.re, axis)?;
        s = dft(cx, s, axis.0, n, n, inverse)?;
        total = total.saturating_mul(n);
    }
    let factor = scale(cx, total, inverse)?;
    finished(cx, s, factor)
}

/// `irfft`, and without `inverse` `hfft`: the real signal of half a spectrum.
pub(super) fn to_real(cx: &mut Cx<'_, '_>, inverse: bool, dims: usize) -> Res<ValueId> {
    let mut s = signal(cx, "self")?;
    let mut axes = plan(cx, s.re, dims)?;
    let Some(last) = axes.pop() else { return wrong("expected an axis") };
    let n = match last.1 {
        Some(n) => n,
        None => 2 * cx.size(s.re, last.0)?.saturating_sub(1),
    };
    let mut total = n;
    for axis in axes {
        let n = sized(cx, s.re, axis)?;
        s = dft(cx, s, axis.0, n, n, inverse)?;
        total = total.saturating_mul(n);
    }
    let out = real_signal(cx, s, last.0, n, inverse)?;
    let factor = scale(cx, total, inverse)?;
    scaled(cx, out, factor)
}

/// The factor of the operators that the transforms decompose into: by 0 none, by 1 the root, by 2 the number of elements.
fn core_scale(cx: &Cx<'_, '_>, n: usize) -> Res<f64> {
    Ok(match cx.int_or("normalization", 0)? {
        0 => 1.0,
        1 => 1.0 / (n as f64).sqrt(),
        2 => 1.0 / n as f64,
        other => return wrong(format!("{other} is not a normalization")),
    })
}

fn core_axes(cx: &Cx<'_, '_>, x: ValueId) -> Res<Vec<usize>> {
    let rank = cx.rank(x);
    cx.ints("dim")?.into_iter().map(|d| cx.axis(d, rank)).collect()
}

pub(super) fn core(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut s = signal(cx, "self")?;
    let inverse = !cx.bool_or("forward", true)?;
    let mut total = 1usize;
    for axis in core_axes(cx, s.re)? {
        let n = cx.size(s.re, axis)?;
        s = dft(cx, s, axis, n, n, inverse)?;
        total = total.saturating_mul(n);
    }
    let factor = core_scale(cx, total)?;
    finished(cx, s, factor)
}

pub(super) fn core_of_real(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut s = signal(cx, "self")?;
    let mut axes = core_axes(cx, s.re)?;
    let Some(last) = axes.pop() else { return wrong("expected an axis") };
    let n = cx.size(s.re, last)?;
    let keep = if cx.bool_or("onesided", true)? { n / 2 + 1 } else { n };
    let mut total = n;
    s = dft(cx, s, last, n, keep, false)?;
    for axis in axes {
        let n = cx.size(s.re, axis)?;
        s = dft(cx, s, axis, n, n, false)?;
        total = total.saturating_mul(n);
    }
    let factor = core_scale(cx, total)?;
    finished(cx, s, factor)
}

pub(super) fn core_to_real(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut s = signal(cx, "self")?;
    let mut axes = core_axes(cx, s.re)?;
    let Some(last) = axes.pop() else { return wrong("expected an axis") };
    let Ok(n) = usize::try_from(cx.int("last_dim_size")?) else { return wrong("expected a size") };
    let mut total = n;
    for axis in axes {
        let n = cx.size(s.re, axis)?;
        s = dft(cx, s, axis, n, n, true)?;
        total = total.saturating_mul(n);
    }
    let out = real_signal(cx, s, last, n, true)?;
    let factor = core_scale(cx, total)?;
    scaled(cx, out, factor)
}

/// The spectra of windows of a signal: `[.., frequencies, windows]`.
pub(super) fn stft(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    if cx.is_complex("self") {
        return unsupported("stft() of complex numbers", "transform their parts");
    }
    let Ok(n) = usize::try_from(cx.int("n_fft")?) else { return wrong("expected a length") };
    let n = checked(n)?;
    let natural = |v: i64| usize::try_from(v).ok().filter(|v| (1..=1 << 20).contains(v));
    let hop = natural(cx.int_or("hop_length", (n / 4).max(1) as i64)?);
    let length = natural(cx.int_or("win_length", n as i64)?).filter(|l| *l <= n);
    let (Some(hop), Some(length)) = (hop, length) else { return wrong("expected natural numbers up to n_fft") };
    if cx.optional_int("align_to_window")?.is_some_and(|v| v != 0) {
        return unsupported("stft(align_to_window=True)", "leave it out");
    }
    let Some(axis) = cx.rank(x).checked_sub(1) else { return wrong("expected a signal") };
    let Some(size) = cx.ty(x).shape.last().cloned() else { return wrong("expected a signal") };
    let count = &(&size - &Dim::from(n)).floor_div(&Dim::from(hop)) + &Dim::new(1);
    let start = cx.iota(count, 0, hop as i64)?;
    let start = cx.unsqueeze(start, 1)?;
    let tap = cx.iota(Dim::from(n), 0, 1)?;
    let at = cx.binary(BinaryFn::Add, start, tap)?;
    let mut frames = cx.take(x, axis, at)?;
    let dtype = cx.dtype_of(x);
    let window = match cx.optional_tensor("window")? {
        Some(window) => Some(cx.cast(window, dtype)?),
        None if length == n => None,
        None => {
            let one = cx.float(1.0, dtype)?;
            Some(cx.expand(one, vec![Dim::from(length)])?)
        }
    };
    if let Some(window) = window {
        let left = (n - length) / 2;
        let (before, after) = (vec![left as i64], vec![(n - length - left) as i64]);
        let pad = Pad { before, after, value: Scalar::Float(0.0), mode: PadMode::Constant };
        let window = if length == n { window } else { cx.emit(pad, &[window])? };
        frames = cx.binary(BinaryFn::Mul, frames, window)?;
    }
    let keep = if cx.bool_or("onesided", true)? { n / 2 + 1 } else { n };
    let s = dft(cx, Signal { re: frames, im: None }, axis + 1, n, keep, false)?;
    let s = each(cx, s, |cx, v| turned(cx, v, axis, false))?;
    let factor = if cx.bool_or("normalized", false)? { 1.0 / (n as f64).sqrt() } else { 1.0 };
    finished(cx, s, factor)
}

/// `a - b·cos`: the windows of Hann and Hamming.
pub(super) fn cosine_window(cx: &mut Cx<'_, '_>, a: f64, b: f64) -> Res<ValueId> {
    let length = cx.int("window_length")?;
    if !(0..=1 << 24).contains(&length) {
        return wrong(format!("a window of {length} elements"));
    }
    let (a, b) = (cx.float_or("alpha", a)?, cx.float_or("beta", b)?);
    let dtype = cx.result_dtype().unwrap_or(DType::F32);
    let period = if cx.bool_or("periodic", true)? { length } else { length - 1 };
    let at = cx.iota(Dim::new(length), 0, 1)?;
    let at = cx.cast(at, DType::F64)?;
    if length <= 1 {
        let ones = cx.with_literal(BinaryFn::Add, at, 1.0)?;
        return cx.cast(ones, dtype);
    }
    let angle = cx.with_literal(BinaryFn::Mul, at, 2.0 * PI / period as f64)?;
    let cos = cx.unary(UnaryFn::Cos, angle)?;
    let part = cx.with_literal(BinaryFn::Mul, cos, -b)?;
    let out = cx.with_literal(BinaryFn::Add, part, a)?;
    cx.cast(out, dtype)
}
