//! Resampling. What PyTorch's `interpolate` computes is one op; everything else is a product with a matrix, or a choice of
//! elements, for each axis.

use regraft_ir::ops::{Resize, ResizeMode, SpatialLayout};
use regraft_tensor::{DType, Dim, Tensor};

use crate::{
    build::product,
    onnx::args::{Cx, Res, ValueId, unsupported, wrong},
};

/// More elements than a matrix of weights has.
const MOST: usize = 1 << 24;

/// The coefficient of cubic convolutions that PyTorch has, and ONNX unless a node names another.
const PYTORCH_CUBIC: f64 = -0.75;

/// How a node resamples.
struct How<'p> {
    mode: &'p str,
    positions: &'p str,
    nearest: &'p str,
    cubic: f64,
    exclude: bool,
    antialias: bool,
    outside: f64,
}

/// An axis: its size, that of the result, the scale, and the part of the axis that is resampled.
struct Axis {
    axis: usize,
    from: Dim,
    to: Dim,
    scale: Option<f64>,
    part: (f64, f64),
}

/// Before opset 11 there are scales alone, and each position is rounded down.
fn how<'p>(cx: &Cx<'_, 'p>, old: bool) -> Res<How<'p>> {
    Ok(How {
        mode: match cx.text("mode", "nearest")? {
            "bilinear" | "trilinear" => "linear",
            mode => mode,
        },
        positions: cx.text("coordinate_transformation_mode", if old { "asymmetric" } else { "half_pixel" })?,
        nearest: cx.text("nearest_mode", if old { "floor" } else { "round_prefer_floor" })?,
        cubic: cx.float_attr("cubic_coeff_a", PYTORCH_CUBIC)?,
        exclude: cx.flag("exclude_outside", false)?,
        antialias: cx.flag("antialias", false)?,
        outside: cx.float_attr("extrapolation_value", 0.0)?,
    })
}

pub(super) fn upsample(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.input(0)?;
    let how = how(cx, true)?;
    let scales = match cx.optional_floats_attr("scales")? {
        Some(scales) => scales,
        None => cx.floats(1)?,
    };
    let axes = (0..cx.rank(x)).collect();
    let axes = scaled(cx, x, axes, &scales)?;
    resampled(cx, x, &how, axes)
}

pub(super) fn resize(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    if cx.version < 11 {
        return upsample(cx);
    }
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    let how = how(cx, false)?;
    let axes = match cx.optional_ints_attr("axes")? {
        Some(axes) => axes.into_iter().map(|a| cx.axis_of(a, rank)).collect::<Res<Vec<_>>>()?,
        None => (0..rank).collect(),
    };
    let roi = if cx.has(1) { cx.floats(1)? } else { Vec::new() };
    let policy = cx.text("keep_aspect_ratio_policy", "stretch")?;
    let scales = if cx.has(2) { cx.floats(2)? } else { Vec::new() };
    let mut list = if scales.is_empty() {
        let sizes = cx.dims(3)?;
        sized(cx, x, axes, sizes, policy)?
    } else {
        if cx.has(3) {
            cx.plain(3)?;
        }
        scaled(cx, x, axes, &scales)?
    };
    if how.positions == "tf_crop_and_resize" {
        let n = list.len();
        for (i, axis) in list.iter_mut().enumerate() {
            let (Some(start), Some(end)) = (roi.get(i), roi.get(n + i)) else {
                return wrong("expected a part as `roi`");
            };
            axis.part = (*start, *end);
        }
    }
    resampled(cx, x, &how, list)
}

fn scaled(cx: &Cx<'_, '_>, x: ValueId, axes: Vec<usize>, scales: &[f64]) -> Res<Vec<Axis>> {
    if axes.len() != scales.len() || scales.iter().any(|s| !(*s > 0.0 && *s < 1e6)) {
        return wrong(format!("scales {scales:?} for {} axes", axes.len()));
    }
    let shape = cx.shape(x);
    let mut list = Vec::new();
    for (axis, scale) in axes.into_iter().zip(scales) {
        let from = shape.get(axis).cloned().unwrap_or(Dim::new(1));
        let to = match from.as_const() {
            Some(n) => Dim::new((n as f64 * scale).floor() as i64),
            None if scale.fract() == 0.0 => &from * &Dim::new(*scale as i64),
            None if (1.0 / scale).fract() == 0.0 => from.floor_div(&Dim::new((1.0 / scale) as i64)),
            None => return unsupported(format!("a dynamic size times {scale}"), "give `sizes`, or make it static"),
        };
        list.push(Axis { axis, from, to, scale: Some(*scale), part: (0.0, 1.0) });
    }
    Ok(list)
}

fn sized(cx: &Cx<'_, '_>, x: ValueId, axes: Vec<usize>, sizes: Vec<Dim>, policy: &str) -> Res<Vec<Axis>> {
    if axes.len() != sizes.len() {
        return wrong(format!("{} sizes for {} axes", sizes.len(), axes.len()));
    }
    let shape = cx.shape(x);
    let from = |axis: usize| shape.get(axis).cloned().unwrap_or(Dim::new(1));
    if policy == "stretch" {
        let axis = |(axis, to): (usize, Dim)| Axis { axis, from: from(axis), to, scale: None, part: (0.0, 1.0) };
        return Ok(axes.into_iter().zip(sizes).map(axis).collect());
    }
    let ratio = |(axis, to): (&usize, &Dim)| Some(to.as_const()? as f64 / from(*axis).as_const()? as f64);
    let Some(ratios) = axes.iter().zip(&sizes).map(ratio).collect::<Option<Vec<f64>>>() else {
        return unsupported("an aspect ratio of dynamic sizes", "make them static");
    };
    let scale = match policy {
        "not_larger" => ratios.into_iter().fold(f64::INFINITY, f64::min),
        "not_smaller" => ratios.into_iter().fold(0.0, f64::max),
        other => return wrong(format!("`{other}` is not a policy of aspect ratios")),
    };
    let axis = |axis: usize| {
        let size = from(axis);
        let to = (size.as_const().unwrap_or(1) as f64 * scale + 0.5).floor();
        Axis { axis, from: size, to: Dim::new(to as i64), scale: Some(scale), part: (0.0, 1.0) }
    };
    Ok(axes.into_iter().map(axis).collect())
}

fn resampled(cx: &mut Cx<'_, '_>, x: ValueId, how: &How<'_>, axes: Vec<Axis>) -> Res<ValueId> {
    let crops = how.positions == "tf_crop_and_resize";
    let changes = |a: &Axis| a.from != a.to || a.scale.is_some_and(|s| s != 1.0) || (crops && a.part != (0.0, 1.0));
    let axes: Vec<Axis> = axes.into_iter().filter(changes).collect();
    if axes.is_empty() {
        return Ok(x);
    }
    // Runtimes and ONNX's own answers differ about where the last element then lies.
    let uneven = |a: &Axis| match (a.scale, a.from.as_const()) {
        (Some(scale), Some(from)) => (from as f64 * scale).fract() != 0.0,
        (Some(scale), None) => scale.fract() != 0.0,
        (None, _) => false,
    };
    if how.positions == "align_corners" && how.mode != "nearest" && axes.iter().any(uneven) {
        return unsupported(
            "`align_corners` with a scale that gives no whole size",
            "give `sizes` in place of `scales`",
        );
    }
    if let Some(op) = interpolate(cx, x, how, &axes) {
        return cx.emit(op, &[x]);
    }
    if how.mode != "nearest" && !cx.dtype_of(x).is_float() {
        return unsupported("interpolation of whole numbers", "cast to a float before");
    }
    let mut out = x;
    let mut outside: Option<ValueId> = None;
    for axis in &axes {
        let (Some(from), Some(to)) = (axis.from.as_usize(), axis.to.as_usize()) else {
            return unsupported(
                format!("resampling of a dynamic size with `{}` and `{}`", how.mode, how.positions),
                "make the size static, or use what PyTorch's interpolate() does",
            );
        };
        if from == 0 || from.checked_mul(to).is_none_or(|n| n > MOST) {
            return unsupported(format!("resampling from {from} to {to} elements"), "use fewer");
        }
        let taps = how.taps(axis, from, to)?;
        if crops {
            let hidden: Vec<i64> = taps.iter().map(|t| i64::from(t.is_empty())).collect();
            if hidden.contains(&1) {
                let mask = cx.t.computed(Tensor::from_i64(DType::Bool, &[to], &hidden), "outside")?;
                let rank = cx.rank(x);
                let mask = cx.along(mask, rank, axis.axis)?;
                outside = Some(match outside {
                    Some(other) => cx.binary(regraft_ir::ops::BinaryFn::Or, other, mask)?,
                    None => mask,
                });
            }
        }
        out = along(cx, out, axis.axis, from, &taps, how.mode == "nearest")?;
    }
    match outside {
        Some(mask) => {
            let value = cx.float_like(how.outside, out)?;
            cx.select(mask, value, out)
        }
        None => Ok(out),
    }
}

/// The op that computes this, when PyTorch does.
fn interpolate(cx: &Cx<'_, '_>, x: ValueId, how: &How<'_>, axes: &[Axis]) -> Option<Resize> {
    let spatial = cx.rank(x).checked_sub(2).filter(|s| (1..=3).contains(s))?;
    if how.antialias || axes.iter().any(|a| a.axis < 2) {
        return None;
    }
    let (mode, align_corners) = match (how.mode, how.positions) {
        ("nearest", "asymmetric") if how.nearest == "floor" => (ResizeMode::Nearest, false),
        ("linear", "half_pixel") if !how.exclude => (ResizeMode::Linear, false),
        ("linear", "pytorch_half_pixel") if !how.exclude && axes.iter().all(|a| cx.bounds(&a.to).min > 1) => {
            (ResizeMode::Linear, false)
        }
        ("linear", "align_corners") if !how.exclude => (ResizeMode::Linear, true),
        ("cubic", "half_pixel") if !how.exclude && how.cubic == PYTORCH_CUBIC => (ResizeMode::Cubic, false),
        ("cubic", "align_corners") if !how.exclude && how.cubic == PYTORCH_CUBIC => (ResizeMode::Cubic, true),
        _ => return None,
    };
    if mode != ResizeMode::Nearest && !cx.dtype_of(x).is_float() {
        return None;
    }
    let mut size = cx.shape(x).split_off(2);
    let mut scales = vec![1.0; spatial];
    let mut given = 0;
    for axis in axes {
        size.get_mut(axis.axis - 2)?.clone_from(&axis.to);
        if let Some(scale) = axis.scale {
            *scales.get_mut(axis.axis - 2)? = scale;
            given += 1;
        }
    }
    let scales = match given {
        0 => None,
        n if n == axes.len() => Some(scales),
        _ => return None,
    };
    Some(Resize { mode, size, align_corners, scales, layout: SpatialLayout::Nchw })
}

/// Each element along an axis as a sum of others; of `nearest` as one other.
fn along(
    cx: &mut Cx<'_, '_>,
    x: ValueId,
    axis: usize,
    from: usize,
    taps: &[Vec<(usize, f64)>],
    nearest: bool,
) -> Res<ValueId> {
    if nearest {
        let places: Vec<i64> = taps.iter().map(|t| t.first().map_or(0, |t| t.0 as i64)).collect();
        let places = cx.t.computed(Tensor::from_i64(DType::I64, &[taps.len()], &places), "nearest")?;
        let places = cx.reshape(places, vec![Dim::from(taps.len())])?;
        return cx.take(x, axis, places);
    }
    let mut weights = vec![0.0; from * taps.len()];
    for (column, list) in taps.iter().enumerate() {
        for (row, weight) in list {
            if let Some(slot) = weights.get_mut(row * taps.len() + column) {
                *slot += weight;
            }
        }
    }
    let matrix = Tensor::from_f64(cx.dtype_of(x), &[from, taps.len()], &weights);
    let matrix = cx.t.computed(matrix, "resampling")?;
    let last = cx.rank(x).saturating_sub(1);
    let mut perm: Vec<usize> = (0..=last).collect();
    perm.swap(axis, last);
    let turned = cx.permute(x, perm.clone())?;
    let out = product(cx, turned, matrix)?;
    cx.permute(out, perm)
}

impl How<'_> {
    /// The elements that each element of the result is made of, with their weights; none where it lies outside.
    fn taps(&self, axis: &Axis, from: usize, to: usize) -> Res<Vec<Vec<(usize, f64)>>> {
        let scale = axis.scale.unwrap_or(to as f64 / from as f64);
        let mut list = Vec::with_capacity(to);
        for i in 0..to {
            let at = self.position(i, axis, from, to, scale)?;
            let crops = self.positions == "tf_crop_and_resize";
            if crops && !(0.0..=(from - 1) as f64).contains(&at) {
                list.push(Vec::new());
                continue;
            }
            let (first, weights) = self.weights(at, scale)?;
            let inside = |k: i64| (0..from as i64).contains(&k);
            let mut taps: Vec<(usize, f64)> = Vec::new();
            for (k, weight) in (first..).zip(weights) {
                if !self.exclude || inside(k) {
                    taps.push((k.clamp(0, from as i64 - 1) as usize, weight));
                }
            }
            if self.exclude {
                let sum: f64 = taps.iter().map(|t| t.1).sum();
                taps.iter_mut().for_each(|t| t.1 /= sum);
            }
            list.push(taps);
        }
        Ok(list)
    }

    fn position(&self, i: usize, axis: &Axis, from: usize, to: usize, scale: f64) -> Res<f64> {
        let (x, n, m) = (i as f64, from as f64, to as f64);
        Ok(match self.positions {
            "half_pixel" => (x + 0.5) / scale - 0.5,
            "pytorch_half_pixel" if to == 1 => -0.5,
            "pytorch_half_pixel" => (x + 0.5) / scale - 0.5,
            "asymmetric" => x / scale,
            "align_corners" if to == 1 => 0.0,
            "align_corners" => x * (n - 1.0) / (m - 1.0),
            "half_pixel_symmetric" => {
                let adjustment = m / (scale * n);
                n / 2.0 * (1.0 - adjustment) + (x + 0.5) / scale - 0.5
            }
            "tf_crop_and_resize" => {
                let (start, end) = axis.part;
                match to {
                    1 => 0.5 * (start + end) * (n - 1.0),
                    _ => start * (n - 1.0) + x * (end - start) * (n - 1.0) / (m - 1.0),
                }
            }
            other => return wrong(format!("`{other}` is not a transformation of coordinates")),
        })
    }

    /// The first element, and the weights of those from it on.
    fn weights(&self, at: f64, scale: f64) -> Res<(i64, Vec<f64>)> {
        let floor = at.floor();
        let part = at - floor;
        let first = floor as i64;
        let linear = |d: f64| (1.0 - d.abs()).max(0.0);
        let cubic = |d: f64| {
            let (d, a) = (d.abs(), self.cubic);
            match d {
                d if d < 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
                d if d < 2.0 => ((d - 5.0) * d + 8.0) * d * a - 4.0 * a,
                _ => 0.0,
            }
        };
        let spread = |reach: f64, f: &dyn Fn(f64) -> f64| {
            // Wider where there are fewer elements in the result.
            let scale = if self.antialias { scale.min(1.0) } else { 1.0 };
            let start = (-reach / scale).floor() as i64 + 1;
            let count = 2 - 2 * start;
            let mut weights: Vec<f64> = (start..start + count).map(|k| f((k as f64 - part) * scale)).collect();
            let sum: f64 = weights.iter().sum();
            weights.iter_mut().for_each(|w| *w /= sum);
            (first + start, weights)
        };
        Ok(match self.mode {
            "nearest" => {
                let near = match self.nearest {
                    "floor" => floor,
                    "ceil" => at.ceil(),
                    "round_prefer_floor" => (at - 0.5).ceil(),
                    "round_prefer_ceil" => (at + 0.5).floor(),
                    other => return wrong(format!("`{other}` is not a way to round")),
                };
                (near as i64, vec![1.0])
            }
            "linear" => spread(1.0, &linear),
            "cubic" => spread(2.0, &cubic),
            other => return wrong(format!("`{other}` is not a mode of resampling")),
        })
    }
}
