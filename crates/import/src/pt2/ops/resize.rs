//! Spatial resampling.

use regraft_ir::ops::{Resize, ResizeMode, SpatialLayout};
use regraft_tensor::Dim;

use crate::pt2::args::{Cx, Res, ValueId, unsupported, wrong};

fn resize(cx: &mut Cx<'_, '_>, mode: ResizeMode) -> Res<ValueId> {
    // The overloads of interpolate() call it `input`, the others `self`.
    let name = if cx.has("input") { "input" } else { "self" };
    let x = cx.tensor(name)?;
    let Some(spatial) = cx.rank(x).checked_sub(2).filter(|s| (1..=3).contains(s)) else {
        return wrong(format!("a tensor with {} axes", cx.rank(x)));
    };
    let mut scales = cx.floats("scale_factors")?;
    if scales.is_empty() {
        let names: &[&str] = match spatial {
            1 => &["scales"],
            2 => &["scales_h", "scales_w"],
            _ => &["scales_d", "scales_h", "scales_w"],
        };
        for name in names {
            scales.extend(cx.optional_float(name)?);
        }
    }
    let scales = match scales.as_slice() {
        [one] if spatial > 1 => Some(vec![*one; spatial]),
        [] => None,
        _ if scales.len() == spatial => Some(scales),
        _ => return wrong(format!("expected {spatial} scale factors, found {scales:?}")),
    };
    let size = cx.dims("output_size")?;
    let size = if size.len() == spatial {
        size
    } else {
        // `floor(size · scale)`, which the program's type of the result spells out.
        match (cx.result(0), &scales) {
            (Some(result), _) if result.rank() == spatial + 2 => result.shape.get(2..).unwrap_or(&[]).to_vec(),
            (_, Some(scales)) => {
                let have = cx.shape(x);
                let mut size = Vec::new();
                for (scale, dim) in scales.iter().zip(have.iter().skip(2)) {
                    match dim.as_const() {
                        Some(d) => size.push(Dim::new((d as f64 * scale).floor() as i64)),
                        None => return unsupported("resampling of a dynamic size", "give the size of the result"),
                    }
                }
                size
            }
            _ => return wrong("expected a size or scale factors"),
        }
    };
    let align_corners = cx.bool_or("align_corners", false)?;
    let op = Resize { mode, size, align_corners, scales, layout: SpatialLayout::Nchw };
    cx.emit(op, &[x])
}

pub(super) fn nearest(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    resize(cx, ResizeMode::Nearest)
}

pub(super) fn linear(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    resize(cx, ResizeMode::Linear)
}

pub(super) fn cubic(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    resize(cx, ResizeMode::Cubic)
}

/// The leading axes, and channels, height and width of an image.
fn image(cx: &Cx<'_, '_>, x: ValueId) -> Res<(Vec<Dim>, Dim, Dim, Dim)> {
    match cx.ty(x).shape.as_slice() {
        [lead @ .., c, h, w] => Ok((lead.to_vec(), c.clone(), h.clone(), w.clone())),
        shape => wrong(format!("expected an image, found a tensor with {} axes", shape.len())),
    }
}

fn shuffled(
    cx: &mut Cx<'_, '_>,
    x: ValueId,
    lead: &[Dim],
    from: Vec<Dim>,
    perm: &[usize],
    to: Vec<Dim>,
) -> Res<ValueId> {
    let split = cx.reshape(x, [lead, &from[..]].concat())?;
    let n = lead.len();
    let moved = cx.permute(split, (0..n).chain(perm.iter().map(|p| p + n)).collect())?;
    cx.reshape(moved, [lead, &to[..]].concat())
}

pub(super) fn pixel_shuffle(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let r = Dim::new(cx.int("upscale_factor")?);
    let (lead, c, h, w) = image(cx, x)?;
    if r.as_const().is_none_or(|r| r <= 0) {
        return wrong("a factor that is not positive");
    }
    let out = c.floor_div(&(&r * &r));
    let to = vec![out.clone(), &h * &r, &w * &r];
    shuffled(cx, x, &lead, vec![out, r.clone(), r, h, w], &[0, 3, 1, 4, 2], to)
}

pub(super) fn pixel_unshuffle(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let r = Dim::new(cx.int("downscale_factor")?);
    let (lead, c, h, w) = image(cx, x)?;
    if r.as_const().is_none_or(|r| r <= 0) {
        return wrong("a factor that is not positive");
    }
    let (h, w) = (h.floor_div(&r), w.floor_div(&r));
    let to = vec![&c * &(&r * &r), h.clone(), w.clone()];
    shuffled(cx, x, &lead, vec![c, h, r.clone(), w, r], &[0, 2, 4, 1, 3], to)
}

pub(super) fn channel_shuffle(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let groups = cx.int("groups")?;
    let shape = cx.shape(x);
    let [batch, channels, rest @ ..] = shape.as_slice() else { return wrong("expected a tensor with channels") };
    if groups < 1 {
        return wrong(format!("{groups} groups"));
    }
    let per = channels.floor_div(&Dim::new(groups));
    let split = [&[batch.clone(), Dim::new(groups), per][..], rest].concat();
    let perm = [0, 2, 1].into_iter().chain(3..split.len()).collect();
    let x = cx.reshape(x, split)?;
    let x = cx.permute(x, perm)?;
    cx.reshape(x, shape)
}
