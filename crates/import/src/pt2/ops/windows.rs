//! Sliding windows: taken apart, put together, and pools that say where their elements come from.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, IndexPut, Pad, PadMode, PutFn, pool_out_size},
};
use regraft_tensor::{DType, Dim};

use super::pool::{done, input, sizes, spatial};
use crate::{
    build::{greatest, pool_taps, seen, taps},
    pt2::args::{Cx, Res, ValueId, unsupported, wrong},
};

/// The largest size of a window, a step or an image along one axis; sums and products of two stay far from overflow.
pub(super) const MOST: usize = 1 << 20;

/// `x.unfold(dim, size, step)`: windows along an axis, their elements as a new last axis.
pub(super) fn unfold(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    let rank = cx.rank(x);
    let axis = cx.axis_arg("dimension", None, rank)?;
    let natural = |v: i64| usize::try_from(v).ok().filter(|v| *v <= MOST);
    let (Some(size), Some(step)) = (natural(cx.int("size")?), natural(cx.int("step")?)) else {
        return wrong("expected natural numbers");
    };
    if rank == 0 {
        let row = cx.unsqueeze(x, 0)?;
        return cx.slice(row, 0, Dim::new(0), Dim::from(size));
    }
    let Some(n) = cx.ty(x).shape.get(axis).cloned() else { return wrong("expected an axis") };
    if step == 0 {
        return wrong("windows with step 0");
    }
    let windows = &(&n - &Dim::from(size)).floor_div(&Dim::from(step)) + &Dim::new(1);
    let at = taps(cx, windows, size, step, 1)?;
    let out = cx.take(x, axis, at)?;
    let mut perm: Vec<usize> = (0..=rank).filter(|i| *i != axis + 1).collect();
    perm.push(axis + 1);
    cx.permute(out, perm)
}

/// Windows of a 2-D image.
struct Image {
    kernel: Vec<usize>,
    stride: Vec<usize>,
    padding: Vec<usize>,
    dilation: Vec<usize>,
}

fn image(cx: &Cx<'_, '_>) -> Res<Image> {
    let image = Image {
        kernel: cx.windows("kernel_size", 2, &[])?,
        stride: cx.windows("stride", 2, &[1, 1])?,
        padding: cx.windows("padding", 2, &[0, 0])?,
        dilation: cx.windows("dilation", 2, &[1, 1])?,
    };
    let positive = |list: &[usize]| list.iter().all(|v| (1..=MOST).contains(v));
    let sound = positive(&image.kernel) && positive(&image.stride) && positive(&image.dilation);
    if sound && image.padding.iter().all(|p| *p <= MOST) { Ok(image) } else { wrong("expected windows with elements") }
}

impl Image {
    /// How many windows stand along spatial axis `i` of `size` elements, padding not counted.
    fn count(&self, i: usize, size: &Dim) -> Res<Dim> {
        let at = |list: &[usize]| list.get(i).copied().unwrap_or(1);
        let reach = at(&self.dilation) * (at(&self.kernel) - 1) + 1;
        let room = &(size + &Dim::from(2 * self.padding.get(i).copied().unwrap_or(0))) - &Dim::from(reach);
        let count = &room.floor_div(&Dim::from(at(&self.stride))) + &Dim::new(1);
        if count.as_const().is_some_and(|n| n < 1) { wrong("a window larger than the image") } else { Ok(count) }
    }

    /// Positions of the taps along spatial axis `i`.
    fn taps(&self, cx: &mut Cx<'_, '_>, i: usize, windows: Dim) -> Res<ValueId> {
        let at = |list: &[usize]| list.get(i).copied().unwrap_or(1);
        taps(cx, windows, at(&self.kernel), at(&self.stride), at(&self.dilation))
    }
}

/// `x` with `value` around its spatial axes, the last `padding.len()`.
pub(super) fn bordered(cx: &mut Cx<'_, '_>, x: ValueId, padding: &[usize], value: Scalar) -> Res<ValueId> {
    if padding.iter().all(|p| *p == 0) {
        return Ok(x);
    }
    let mut around = vec![0; cx.rank(x).saturating_sub(padding.len())];
    around.extend(padding.iter().map(|p| *p as i64));
    cx.emit(Pad { before: around.clone(), after: around, value, mode: PadMode::Constant }, &[x])
}

/// `torch.nn.functional.unfold`: the elements of each window as a column.
pub(super) fn im2col(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, alone) = input(cx, 2)?;
    let image = image(cx)?;
    let shape = cx.shape(x);
    let [n, c, h, w] = shape.as_slice() else { return wrong("expected an image") };
    let (rows, columns) = (image.count(0, h)?, image.count(1, w)?);
    let zero = if cx.dtype_of(x).is_float() { Scalar::Float(0.0) } else { Scalar::Int(0) };
    let x = bordered(cx, x, &image.padding, zero)?;
    let at = image.taps(cx, 0, rows.clone())?;
    let x = cx.take(x, 2, at)?;
    let at = image.taps(cx, 1, columns.clone())?;
    // [n, c, rows, kh, columns, kw]
    let x = cx.take(x, 4, at)?;
    let x = cx.permute(x, vec![0, 1, 3, 5, 2, 4])?;
    let taps = Dim::from(image.kernel.iter().product::<usize>());
    let out = cx.reshape(x, vec![n.clone(), c * &taps, &rows * &columns])?;
    done(cx, out, alone)
}

/// `torch.nn.functional.fold`: columns of windows added up in the image.
pub(super) fn col2im(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let mut x = cx.tensor("self")?;
    let alone = cx.rank(x) == 2;
    if alone {
        x = cx.unsqueeze(x, 0)?;
    }
    let image = image(cx)?;
    let (size, shape) = (cx.dims("output_size")?, cx.shape(x));
    let ([h, w], [n, channels, _], [kh, kw], [ph, pw]) =
        (size.as_slice(), shape.as_slice(), image.kernel.as_slice(), image.padding.as_slice())
    else {
        return wrong("expected columns of windows, and the size of an image");
    };
    let (rows, columns) = (image.count(0, h)?, image.count(1, w)?);
    let c = channels.floor_div(&Dim::from(kh * kw));
    let x = cx.reshape(x, vec![n.clone(), c.clone(), Dim::from(*kh), Dim::from(*kw), rows.clone(), columns.clone()])?;
    // [n, c, rows, kh, columns, kw], as the positions are.
    let x = cx.permute(x, vec![0, 1, 4, 2, 5, 3])?;
    let at_rows = image.taps(cx, 0, rows)?;
    let at_rows = cx.unsqueeze(at_rows, 2)?;
    let at_rows = cx.unsqueeze(at_rows, 3)?;
    let at_columns = image.taps(cx, 1, columns)?;
    let zero = cx.literal_like(Scalar::Int(0), x)?;
    let (tall, wide) = (h + &Dim::from(2 * ph), w + &Dim::from(2 * pw));
    let empty = cx.expand(zero, vec![n.clone(), c, tall, wide])?;
    let out = cx.emit(IndexPut { axis: 2, f: PutFn::Add }, &[empty, x, at_rows, at_columns])?;
    let out = cx.slice(out, 2, Dim::from(*ph), &Dim::from(*ph) + h)?;
    let out = cx.slice(out, 3, Dim::from(*pw), &Dim::from(*pw) + w)?;
    if alone { cx.squeeze(out, 0) } else { Ok(out) }
}

pub(super) fn max_pool_with_indices(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let n = spatial(cx)?;
    let (x, alone) = input(cx, n)?;
    let kernel = cx.windows("kernel_size", n, &[])?;
    let (stride, padding) = (cx.windows("stride", n, &kernel)?, cx.windows("padding", n, &vec![0; n])?);
    let (dilation, ceil) = (cx.windows("dilation", n, &vec![1; n])?, cx.bool_or("ceil_mode", false)?);
    let shape = cx.shape(x);
    let mut taps = Vec::new();
    for (i, size) in shape.iter().skip(2).enumerate() {
        let at = |list: &[usize]| list.get(i).copied().unwrap_or(1);
        let k = [at(&kernel), at(&stride), padding.get(i).copied().unwrap_or(0), at(&dilation)];
        if k[0] == 0 || k[1] == 0 || k[3] == 0 || k.iter().any(|v| *v > MOST) {
            return wrong("expected windows with elements");
        }
        let windows = pool_out_size(size, k[0], k[1], k[2], k[3], ceil);
        taps.push(pool_taps(cx, size, windows, k)?);
    }
    let seen = seen(cx, x, &taps, false)?;
    let (value, position) = greatest(cx, &seen)?;
    // Who does not read the positions gets the pool alone: unused nodes go.
    let value = if cx.dtype_of(x).is_float() { super::pool::max_pool(cx)? } else { done(cx, value, alone)? };
    Ok(vec![Some(value), Some(done(cx, position, alone)?)])
}

/// Windows that cover an axis evenly: positions of their taps, the last of which repeats in shorter windows.
fn adaptive_taps(cx: &mut Cx<'_, '_>, size: usize, windows: usize) -> Res<ValueId> {
    let longest = (0..windows)
        .map(|i| regraft_ir::ops::adaptive_window(i, windows, size))
        .map(|(start, end)| end - start)
        .max()
        .unwrap_or(0);
    let count = Dim::from(windows);
    let divisor = cx.literal(Scalar::Int(windows as i64), DType::I64)?;
    let start = cx.iota(count.clone(), 0, size as i64)?;
    let start = cx.binary(BinaryFn::FloorDiv, start, divisor)?;
    // The last element is one before `ceil((i + 1)·size/windows)`.
    let end = cx.iota(count, (size + windows - 1) as i64, size as i64)?;
    let end = cx.binary(BinaryFn::FloorDiv, end, divisor)?;
    let one = cx.literal(Scalar::Int(1), DType::I64)?;
    let last = cx.binary(BinaryFn::Sub, end, one)?;
    let (start, last) = (cx.unsqueeze(start, 1)?, cx.unsqueeze(last, 1)?);
    let tap = cx.iota(Dim::from(longest), 0, 1)?;
    let at = cx.binary(BinaryFn::Add, start, tap)?;
    cx.binary(BinaryFn::Min, at, last)
}

pub(super) fn adaptive_max_pool(cx: &mut Cx<'_, '_>) -> Res<Vec<Option<ValueId>>> {
    let n = spatial(cx)?;
    let (x, alone) = input(cx, n)?;
    let wanted = sizes(cx, n)?;
    let have: Vec<Dim> = cx.shape(x).into_iter().skip(2).collect();
    let mut taps = Vec::new();
    for (w, h) in wanted.iter().zip(&have) {
        taps.push(match (w.as_usize(), h.as_usize()) {
            (Some(w), Some(h)) if (1..=MOST).contains(&w) && (1..=MOST).contains(&h) => adaptive_taps(cx, h, w)?,
            _ if w.is(1) => {
                let all = cx.iota(h.clone(), 0, 1)?;
                cx.unsqueeze(all, 0)?
            }
            _ => {
                return unsupported(
                    format!("adaptive_max_pool from {h} to {w}"),
                    "export this dimension as a static one",
                );
            }
        });
    }
    let seen = seen(cx, x, &taps, false)?;
    let (value, position) = greatest(cx, &seen)?;
    // Windows that divide are a pool of their own, which is faster.
    let value = match super::pool::even_max_pool(cx, x, &wanted, &have)? {
        Some(out) => out,
        None => value,
    };
    Ok(vec![Some(done(cx, value, alone)?), Some(done(cx, position, alone)?)])
}

/// Elements put where a pool took them from, zeros elsewhere.
pub(super) fn max_unpool(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, index) = (cx.tensor("self")?, cx.tensor("indices")?);
    let size = cx.dims("output_size")?;
    let n = size.len();
    let Some(front) = cx.rank(x).checked_sub(n) else { return wrong("expected an image") };
    let mut out_shape: Vec<Dim> = cx.shape(x).into_iter().take(front).collect();
    let product = |list: &[Dim]| list.iter().product::<Dim>();
    let (rows, pixels, taken) = (product(&out_shape), product(&size), product(cx.shape(x).get(front..).unwrap_or(&[])));
    let (values, index) =
        (cx.reshape(x, vec![rows.clone(), taken.clone()])?, cx.reshape(index, vec![rows.clone(), taken])?);
    let zero = cx.literal_like(Scalar::Int(0), x)?;
    let empty = cx.expand(zero, vec![rows.clone(), pixels])?;
    let row = cx.position(2, 0, rows)?;
    let out = cx.emit(IndexPut { axis: 0, f: PutFn::Set }, &[empty, values, row, index])?;
    out_shape.extend(size);
    cx.reshape(out, out_shape)
}
