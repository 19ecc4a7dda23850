//! Windows over the axes of an image: where their taps stand, and what they see.

use regraft_ir::{
    Scalar,
    ops::{ArgReduce, ArgReduceFn, BinaryFn, CompareFn, Gather},
};
use regraft_tensor::{DType, Dim};

use super::{Builder, Res, ValueId, wrong};

/// Positions of the taps of each window along one axis: `[windows, taps]`.
pub(crate) fn taps(g: &mut Builder, windows: Dim, kernel: usize, stride: usize, dilation: usize) -> Res<ValueId> {
    let start = g.iota(windows, 0, stride as i64)?;
    let start = g.unsqueeze(start, 1)?;
    let tap = g.iota(Dim::from(kernel), 0, dilation as i64)?;
    g.binary(BinaryFn::Add, start, tap)
}

/// The elements that each window sees, spread over axes `[.., windows.., taps]`, and where each stands in the image.
pub(crate) struct Seen {
    values: ValueId,
    /// The position among all elements of the image, in the shape `[windows.., taps]`.
    positions: ValueId,
    axis: usize,
}

/// The elements `[n, c, windows.., taps]` of `x`, the order of the windows' and taps' axes, and the sizes in front of the taps and of
/// all taps.
fn elements(g: &mut Builder, x: ValueId, taps: &[ValueId]) -> Res<(ValueId, Vec<usize>, Vec<Dim>, Dim)> {
    let n = taps.len();
    let mut values = x;
    for (i, at) in taps.iter().enumerate() {
        values = g.take(values, 2 + 2 * i, *at)?;
    }
    // [n, c, w0, t0, w1, t1, ..] -> [n, c, w0, w1, .., t0·t1·..]
    let order: Vec<usize> = (0..n).map(|i| 2 * i).chain((0..n).map(|i| 2 * i + 1)).collect();
    let perm: Vec<usize> = [0, 1].into_iter().chain(order.iter().map(|i| i + 2)).collect();
    let values = g.permute(values, perm)?;
    let shape = g.shape(values);
    let (front, behind) = shape.split_at(2 + n);
    let joined = behind.iter().product::<Dim>();
    let mut flat = front.to_vec();
    flat.push(joined.clone());
    Ok((g.reshape(values, flat)?, order, front.to_vec(), joined))
}

/// The elements that each window sees as the last axis, `[n, c, windows.., taps]`.
pub(crate) fn window_elements(g: &mut Builder, x: ValueId, taps: &[ValueId]) -> Res<ValueId> {
    Ok(elements(g, x, taps)?.0)
}

/// Reads windows by the positions of their taps along each axis, `[windows, taps]` each, all within the image. Positions count the last axis
/// fastest, or the first.
pub(crate) fn seen(g: &mut Builder, x: ValueId, taps: &[ValueId], first_fastest: bool) -> Res<Seen> {
    let n = taps.len();
    let sizes: Vec<Dim> = g.shape(x).into_iter().skip(2).collect();
    let (values, order, front, joined) = elements(g, x, taps)?;
    let mut positions = None;
    let mut axes: Vec<(usize, &ValueId)> = taps.iter().enumerate().collect();
    if first_fastest {
        axes.reverse();
    }
    for (i, at) in axes {
        let mut axes = vec![Dim::new(1); 2 * n];
        for (axis, from) in [(2 * i, 0), (2 * i + 1, 1)] {
            if let (Some(slot), Some(d)) = (axes.get_mut(axis), g.ty(*at).shape.get(from).cloned()) {
                *slot = d;
            }
        }
        let place = g.reshape(*at, axes)?;
        positions = Some(match positions {
            None => place,
            Some(before) => {
                let Some(size) = sizes.get(i) else { return wrong("expected an axis for each window") };
                let size = g.dim_value(size, DType::I64)?;
                let before = g.binary(BinaryFn::Mul, before, size)?;
                g.binary(BinaryFn::Add, before, place)?
            }
        });
    }
    let Some(positions) = positions else { return wrong("expected windows") };
    let mut perm = order;
    perm.truncate(2 * n);
    let positions = g.permute(positions, perm)?;
    let mut flat = front.get(2..).unwrap_or_default().to_vec();
    flat.push(joined);
    let positions = g.reshape(positions, flat)?;
    Ok(Seen { values, positions, axis: 2 + n })
}

/// The greatest element of each window and its position in the image.
pub(crate) fn greatest(g: &mut Builder, seen: &Seen) -> Res<(ValueId, ValueId)> {
    let axis = seen.axis;
    let which = g.emit(ArgReduce { f: ArgReduceFn::Max, axis, keep: true }, &[seen.values])?;
    let value = g.emit(Gather { axis }, &[seen.values, which])?;
    let shape = g.shape(seen.values);
    let positions = g.expand(seen.positions, shape)?;
    let position = g.emit(Gather { axis }, &[positions, which])?;
    Ok((g.squeeze(value, axis)?, g.squeeze(position, axis)?))
}

/// Positions where windows begin along an axis, kept within it: what lies outside repeats an element of the window.
pub(crate) fn pool_taps(g: &mut Builder, size: &Dim, windows: Dim, k: [usize; 4]) -> Res<ValueId> {
    let [kernel, stride, padding, dilation] = k;
    let start = g.iota(windows, -(padding as i64), stride as i64)?;
    let start = g.unsqueeze(start, 1)?;
    let tap = g.iota(Dim::from(kernel), 0, dilation as i64)?;
    let at = g.binary(BinaryFn::Add, start, tap)?;
    // The first tap of a window that is inside, by steps of the dilation.
    let zero = g.literal(Scalar::Int(0), DType::I64)?;
    let step = g.literal(Scalar::Int(dilation as i64), DType::I64)?;
    let wrapped = g.binary(BinaryFn::Rem, at, step)?;
    let before = g.compare(CompareFn::Lt, at, zero)?;
    let at = g.select(before, wrapped, at)?;
    // The last tap that is inside.
    let size = g.dim_value(size, DType::I64)?;
    let over = g.binary(BinaryFn::Sub, at, size)?;
    let over = g.binary(BinaryFn::FloorDiv, over, step)?;
    let one = g.literal(Scalar::Int(1), DType::I64)?;
    let back = g.binary(BinaryFn::Add, over, one)?;
    let back = g.binary(BinaryFn::Mul, back, step)?;
    let back = g.binary(BinaryFn::Max, back, zero)?;
    g.binary(BinaryFn::Sub, at, back)
}
