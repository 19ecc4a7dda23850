//! Convolutions whose windows read where they are told to.

use regraft_ir::ops::{Activation, BinaryFn, Conv, SpatialLayout};
use regraft_tensor::Dim;

use super::{Builder, Res, ValueId, sampled, unsupported, wrong};

/// How windows of a deformable convolution lie over an image, rows first.
pub(crate) struct Deform {
    pub(crate) stride: [usize; 2],
    /// What is added before the image.
    pub(crate) padding: [usize; 2],
    pub(crate) dilation: [usize; 2],
    pub(crate) groups: usize,
    /// Groups of channels that have offsets of their own.
    pub(crate) offset_groups: usize,
}

/// The largest step, and the most taps of a window.
const MOST: usize = 1 << 12;

/// `torchvision.ops.deform_conv2d`: each tap of a window reads the image beside its place, by what `offset` has for it in
/// `[n, groups·taps·2, rows, columns]`, and is weighted by `mask` in `[n, groups·taps, rows, columns]`.
pub(crate) fn deform_conv(
    g: &mut Builder,
    how: &Deform,
    [x, weight, offset]: [ValueId; 3],
    mask: Option<ValueId>,
    bias: Option<ValueId>,
) -> Res<ValueId> {
    let (image, offsets) = (g.shape(x), g.shape(offset));
    let ([n, _, _, _], [_, _, rows, columns], 4) = (image.as_slice(), offsets.as_slice(), g.rank(weight)) else {
        return unsupported("a deformable convolution of something else than images", "use two spatial axes");
    };
    let (kh, kw, channels) = (g.size(weight, 2)?, g.size(weight, 3)?, g.size(x, 1)?);
    let taps = kh.saturating_mul(kw);
    let steps = [how.stride, how.padding, how.dilation];
    if taps == 0 || taps > MOST || steps.iter().flatten().any(|v| *v > MOST) || how.offset_groups > channels {
        return unsupported(format!("a deformable convolution with windows of {kh}x{kw}"), "use smaller ones");
    }
    if how.offset_groups == 0 || !channels.is_multiple_of(how.offset_groups) {
        return wrong(format!("{} groups of offsets for {channels} channels", how.offset_groups));
    }
    let each = channels / how.offset_groups;
    let points = [n.clone(), Dim::from(taps), rows.clone(), columns.clone()];
    let base = [places(g, offset, taps, (0, kw), how, rows)?, places(g, offset, taps, (1, kw), how, columns)?];
    let mut parts = Vec::new();
    for group in 0..how.offset_groups {
        let (first, last) = (group * taps, (group + 1) * taps);
        let moved = g.slice(offset, 1, Dim::from(2 * first), Dim::from(2 * last))?;
        let split = vec![n.clone(), Dim::from(taps), Dim::new(2), rows.clone(), columns.clone()];
        let moved = g.reshape(moved, split)?;
        let mut at = Vec::new();
        for (i, base) in base.iter().enumerate() {
            let by = g.slice(moved, 2, Dim::from(i), Dim::from(i + 1))?;
            let by = g.squeeze(by, 2)?;
            at.push(g.binary(BinaryFn::Add, by, *base)?);
        }
        let part = g.slice(x, 1, Dim::from(group * each), Dim::from((group + 1) * each))?;
        let mut values = sampled(g, part, &at)?;
        if let Some(mask) = mask {
            let weights = g.slice(mask, 1, Dim::from(first), Dim::from(last))?;
            let weights = g.reshape(weights, points.to_vec())?;
            let weights = g.unsqueeze(weights, 1)?;
            values = g.binary(BinaryFn::Mul, values, weights)?;
        }
        parts.push(values);
    }
    let values = g.concat(&parts, 1)?;
    let joined = vec![n.clone(), Dim::from(channels * taps), rows.clone(), columns.clone()];
    let values = g.reshape(values, joined)?;
    let outputs = g.ty(weight).shape.first().cloned().unwrap_or(Dim::new(1));
    let inputs = g.size(weight, 1)?.saturating_mul(taps);
    let weight = g.reshape(weight, vec![outputs, Dim::from(inputs), Dim::new(1), Dim::new(1)])?;
    let op = Conv {
        stride: vec![1, 1],
        padding: vec![0, 0],
        dilation: vec![1, 1],
        groups: how.groups,
        layout: SpatialLayout::Nchw,
        act: Activation::None,
        act_first: false,
    };
    g.emit_opt(op, vec![Some(values), Some(weight), bias])
}

/// Where the taps of all windows stand along an axis without offsets: `[1, taps, rows, 1]`, or with columns last.
fn places(
    g: &mut Builder,
    like: ValueId,
    taps: usize,
    (axis, width): (usize, usize),
    how: &Deform,
    windows: &Dim,
) -> Res<ValueId> {
    let pick = |list: [usize; 2]| list.get(axis).copied().unwrap_or_default() as i64;
    let start = g.iota(windows.clone(), -pick(how.padding), pick(how.stride))?;
    let start = g.along(start, 4, 2 + axis)?;
    let tap = |t: usize| if axis == 0 { t / width } else { t % width };
    let list: Vec<Dim> = (0..taps).map(|t| Dim::new(tap(t) as i64 * pick(how.dilation))).collect();
    let tap = g.int_vector(&list)?;
    let tap = g.along(tap, 4, 1)?;
    let at = g.binary(BinaryFn::Add, start, tap)?;
    g.cast_like(at, like)
}
