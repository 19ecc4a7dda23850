//! Convolutions and mean pools of integers, exact, as sums over the elements of windows.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, Flip, Matmul, Pad, PadMode, ReduceFn, conv_out_size, pool_out_size},
};
use regraft_tensor::{DType, Dim};

use super::windows::{MOST, bordered};
use crate::{
    build::{taps, window_elements},
    pt2::args::{Cx, Res, ValueId, wrong},
};

/// Windows of a convolution, per spatial axis.
pub(super) struct Windows {
    pub(super) stride: Vec<usize>,
    pub(super) padding: Vec<usize>,
    pub(super) dilation: Vec<usize>,
    pub(super) groups: usize,
}

fn sound(lists: &[(&[usize], usize)]) -> Res<()> {
    if lists.iter().all(|(list, least)| list.iter().all(|v| (*least..=MOST).contains(v))) {
        return Ok(());
    }
    wrong("expected windows with elements")
}

fn at(list: &[usize], i: usize) -> usize {
    list.get(i).copied().unwrap_or(1)
}

/// `conv(x, weight) + bias` for `x: [n, c, ..]` and `weight: [out, c/groups, ..]`.
pub(super) fn conv(
    cx: &mut Cx<'_, '_>,
    x: ValueId,
    weight: ValueId,
    bias: Option<ValueId>,
    w: &Windows,
) -> Res<ValueId> {
    sound(&[(&w.stride, 1), (&w.padding, 0), (&w.dilation, 1), (&[w.groups], 1)])?;
    let (shape, kernel) = (cx.shape(x), cx.shape(weight));
    let ([n, channels, sizes @ ..], [out, inner, taps_of @ ..]) = (shape.as_slice(), kernel.as_slice()) else {
        return wrong("expected images and a kernel");
    };
    let padded = bordered(cx, x, &w.padding, Scalar::Int(0))?;
    let (mut positions, mut windows) = (Vec::new(), Vec::new());
    for (i, size) in sizes.iter().enumerate() {
        let kernel = cx.size(weight, i + 2)?;
        let padding = w.padding.get(i).copied().unwrap_or(0);
        let count = conv_out_size(size, kernel, at(&w.stride, i), padding, at(&w.dilation, i));
        if kernel == 0 || kernel > MOST || count.as_const().is_some_and(|n| n < 1) {
            return wrong("a window larger than the image");
        }
        positions.push(taps(cx, count.clone(), kernel, at(&w.stride, i), at(&w.dilation, i))?);
        windows.push(count);
    }
    let groups = Dim::from(w.groups);
    let (all, taps_of): (Dim, Dim) = (windows.iter().product(), taps_of.iter().product());
    let (of_out, depth) = (out.floor_div(&groups), inner * &taps_of);
    if channels.as_const() != (inner * &groups).as_const() || out.as_const() != (&of_out * &groups).as_const() {
        return wrong(format!("{} in {groups} groups, weight {}", cx.ty(x), cx.ty(weight)));
    }
    let seen = window_elements(cx, padded, &positions)?;
    let seen = cx.reshape(seen, vec![n.clone(), groups.clone(), inner.clone(), all.clone(), taps_of])?;
    let seen = cx.permute(seen, vec![0, 1, 3, 2, 4])?;
    let seen = cx.reshape(seen, vec![n.clone(), groups.clone(), all, depth.clone()])?;
    let kernel = cx.reshape(weight, vec![groups, of_out, depth])?;
    let sums = cx.emit(Matmul { transpose_b: true }, &[seen, kernel])?;
    let sums = cx.permute(sums, vec![0, 1, 3, 2])?;
    let mut whole = vec![n.clone(), out.clone()];
    whole.extend(windows);
    let rank = whole.len();
    let sums = cx.reshape(sums, whole)?;
    let Some(bias) = bias else { return Ok(sums) };
    let bias = cx.along(bias, rank, 1)?;
    cx.binary(BinaryFn::Add, sums, bias)
}

/// `x` with as many zeros between neighbors of the spatial axes as the step leaves.
fn spread(cx: &mut Cx<'_, '_>, x: ValueId, stride: &[usize]) -> Res<ValueId> {
    let mut x = x;
    for (i, step) in stride.iter().enumerate().filter(|(_, step)| **step > 1) {
        let axis = i + 2;
        let mut shape = cx.shape(x);
        let Some(size) = shape.get(axis).cloned() else { return wrong("expected an image") };
        x = cx.unsqueeze(x, axis + 1)?;
        let before = vec![0; shape.len() + 1];
        let mut after = before.clone();
        if let (Some(slot), Some(size)) = (after.get_mut(axis + 1), shape.get_mut(axis)) {
            *slot = (*step - 1) as i64;
            *size = &*size * &Dim::from(*step);
        }
        x = cx.emit(Pad { before, after, value: Scalar::Int(0), mode: PadMode::Constant }, &[x])?;
        x = cx.reshape(x, shape)?;
        let end = &(&(&size - &Dim::new(1)) * &Dim::from(*step)) + &Dim::new(1);
        x = cx.slice(x, axis, Dim::new(0), end)?;
    }
    Ok(x)
}

/// A transposed convolution: the plain one of an image with zeros between its elements, with the kernel reversed.
pub(super) fn conv_transpose(
    cx: &mut Cx<'_, '_>,
    x: ValueId,
    weight: ValueId,
    bias: Option<ValueId>,
    w: &Windows,
    output_padding: &[usize],
) -> Res<ValueId> {
    sound(&[(&w.stride, 1), (&w.padding, 0), (&w.dilation, 1), (output_padding, 0), (&[w.groups], 1)])?;
    let kernel = cx.shape(weight);
    let [channels, of_out, taps_of @ ..] = kernel.as_slice() else { return wrong("expected a kernel") };
    let groups = Dim::from(w.groups);
    let spatial = taps_of.len();
    let split = [&[groups.clone(), channels.floor_div(&groups), of_out.clone()][..], taps_of].concat();
    let turned = cx.reshape(weight, split)?;
    let turned = cx.permute(turned, [0, 2, 1].into_iter().chain(3..spatial + 3).collect())?;
    let joined = [&[&groups * of_out, channels.floor_div(&groups)][..], taps_of].concat();
    let turned = cx.reshape(turned, joined)?;
    let turned = cx.emit(Flip { axes: (2..spatial + 2).collect() }, &[turned])?;
    let x = spread(cx, x, &w.stride)?;
    let (mut before, mut after) = (vec![0i64; 2], vec![0i64; 2]);
    for i in 0..spatial {
        let reach = at(&w.dilation, i).saturating_mul(cx.size(weight, i + 2)?.saturating_sub(1)) as i64;
        let around = reach.saturating_sub(w.padding.get(i).copied().unwrap_or(0) as i64);
        before.push(around);
        after.push(around.saturating_add(output_padding.get(i).copied().unwrap_or(0) as i64));
    }
    let x = cx.emit(Pad { before, after, value: Scalar::Int(0), mode: PadMode::Constant }, &[x])?;
    let plain =
        Windows { stride: vec![1; spatial], padding: vec![0; spatial], dilation: w.dilation.clone(), groups: w.groups };
    conv(cx, x, turned, bias, &plain)
}

/// The windows of a mean pool.
pub(super) struct Pool {
    pub(super) kernel: Vec<usize>,
    pub(super) stride: Vec<usize>,
    pub(super) padding: Vec<usize>,
    pub(super) ceil: bool,
    pub(super) count_include_pad: bool,
    pub(super) divisor: Option<usize>,
}

/// Sums over windows, divided by the number of elements and rounded towards zero.
pub(super) fn avg_pool(cx: &mut Cx<'_, '_>, x: ValueId, pool: &Pool) -> Res<ValueId> {
    sound(&[(&pool.kernel, 1), (&pool.stride, 1), (&pool.padding, 0)])?;
    let (shape, rank) = (cx.shape(x), cx.rank(x));
    let (mut positions, mut counts) = (Vec::new(), None);
    let (mut before, mut after) = (vec![0i64; 2], vec![0i64; 2]);
    for (i, size) in shape.iter().enumerate().skip(2) {
        let (kernel, stride) = (at(&pool.kernel, i - 2), at(&pool.stride, i - 2));
        let padding = pool.padding.get(i - 2).copied().unwrap_or(0);
        let windows = pool_out_size(size, kernel, stride, padding, 1, pool.ceil);
        positions.push(taps(cx, windows.clone(), kernel, stride, 1)?);
        before.push(padding as i64);
        // The last window may reach beyond the padding, by less than a step.
        after.push((padding + stride) as i64);
        let count = window_sizes(cx, &windows, size, [kernel, stride, padding], pool.count_include_pad)?;
        let count = cx.along(count, rank, i)?;
        counts = Some(match counts {
            Some(before) => cx.binary(BinaryFn::Mul, before, count)?,
            None => count,
        });
    }
    let x = cx.emit(Pad { before, after, value: Scalar::Int(0), mode: PadMode::Constant }, &[x])?;
    let seen = window_elements(cx, x, &positions)?;
    let sums = cx.reduce(ReduceFn::Sum, seen, &[rank], false)?;
    let divisor = match (pool.divisor, counts) {
        (Some(divisor), _) => cx.literal(Scalar::Int(divisor as i64), DType::I64)?,
        (None, Some(counts)) => counts,
        (None, None) => return wrong("expected an image"),
    };
    let divisor = cx.cast_like(divisor, sums)?;
    cx.binary(BinaryFn::TruncDiv, sums, divisor)
}

/// How many elements each window along an axis has, with or without the padding.
fn window_sizes(cx: &mut Cx<'_, '_>, windows: &Dim, size: &Dim, k: [usize; 3], with_padding: bool) -> Res<ValueId> {
    let [kernel, stride, padding] = k;
    let start = cx.iota(windows.clone(), -(padding as i64), stride as i64)?;
    let length = cx.literal(Scalar::Int(kernel as i64), DType::I64)?;
    let end = cx.binary(BinaryFn::Add, start, length)?;
    let limit = if with_padding { size + &Dim::from(padding) } else { size.clone() };
    let limit = cx.dim_value(&limit, DType::I64)?;
    let end = cx.binary(BinaryFn::Min, end, limit)?;
    let zero = cx.literal(Scalar::Int(0), DType::I64)?;
    let start = if with_padding { start } else { cx.binary(BinaryFn::Max, start, zero)? };
    let count = cx.binary(BinaryFn::Sub, end, start)?;
    cx.binary(BinaryFn::Max, count, zero)
}
