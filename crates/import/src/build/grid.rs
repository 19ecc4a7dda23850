//! Sampling images at given points.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, CompareFn, Index, UnaryFn},
};
use regraft_tensor::{DType, Dim};

use super::{Builder, Res, ValueId, unsupported, wrong};

/// What stands outside of the image.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Outside {
    Zeros,
    Border,
    Reflection,
}

/// One coordinate of all points, in elements of the image along one axis.
struct Axis {
    at: ValueId,
    size: Dim,
}

/// `-1..1` as positions: with `corners` the ends are the middles of the outermost elements, otherwise their outer edges.
fn unnormalized(g: &mut Builder, at: ValueId, size: &Dim, corners: bool) -> Res<ValueId> {
    let n = g.dim_value(size, g.dtype_of(at))?;
    let moved = g.with_literal(BinaryFn::Add, at, 1.0)?;
    if corners {
        let last = g.with_literal(BinaryFn::Sub, n, 1.0)?;
        let scaled = g.binary(BinaryFn::Mul, moved, last)?;
        return g.with_literal(BinaryFn::Mul, scaled, 0.5);
    }
    let scaled = g.binary(BinaryFn::Mul, moved, n)?;
    let scaled = g.with_literal(BinaryFn::Sub, scaled, 1.0)?;
    g.with_literal(BinaryFn::Mul, scaled, 0.5)
}

/// Reflected at both ends until it lies between them.
fn reflected(g: &mut Builder, at: ValueId, size: &Dim, corners: bool) -> Res<ValueId> {
    let n = g.dim_value(size, g.dtype_of(at))?;
    let (low, span) = if corners { (0.0, g.with_literal(BinaryFn::Sub, n, 1.0)?) } else { (-0.5, n) };
    let span = g.with_literal(BinaryFn::Max, span, f64::from(f32::MIN_POSITIVE))?;
    let moved = g.with_literal(BinaryFn::Sub, at, low)?;
    let moved = g.unary(UnaryFn::Abs, moved)?;
    let rest = g.binary(BinaryFn::Fmod, moved, span)?;
    let turns = g.binary(BinaryFn::Div, moved, span)?;
    let turns = g.unary(UnaryFn::Floor, turns)?;
    let two = g.float(2.0, g.dtype_of(at))?;
    let odd = g.binary(BinaryFn::Fmod, turns, two)?;
    let even = g.compare_with(CompareFn::Eq, odd, 0.0)?;
    let back = g.binary(BinaryFn::Sub, span, rest)?;
    let inside = g.select(even, rest, back)?;
    let inside = g.with_literal(BinaryFn::Add, inside, low)?;
    if !corners && !size.is(1) {
        return Ok(inside);
    }
    // An axis of one element has one position.
    if size.is(1) { g.with_literal(BinaryFn::Mul, inside, 0.0) } else { Ok(inside) }
}

/// A position of an element kept in the image, or for zeros left as it is.
fn kept(g: &mut Builder, at: ValueId, size: &Dim, outside: Outside, corners: bool) -> Res<ValueId> {
    let at = match outside {
        Outside::Zeros => return Ok(at),
        Outside::Border => at,
        Outside::Reflection => reflected(g, at, size, corners)?,
    };
    let low = g.with_literal(BinaryFn::Max, at, 0.0)?;
    let last = g.dim_value(&(size - &Dim::new(1)), g.dtype_of(at))?;
    g.binary(BinaryFn::Min, low, last)
}

/// The image at whole positions (as floats), zero outside of it: `[n, c, points..]`.
fn pixel(g: &mut Builder, image: ValueId, at: &[Axis]) -> Res<ValueId> {
    let Some(batch) = g.ty(image).shape.first().cloned() else { return wrong("expected an image") };
    let rank = at.first().map_or(0, |a| g.rank(a.at));
    let mut operands = vec![image, g.position(rank, 0, batch)?];
    let mut inside: Option<ValueId> = None;
    for axis in at {
        let low = g.compare_with(CompareFn::Ge, axis.at, 0.0)?;
        let last = g.dim_value(&(&axis.size - &Dim::new(1)), g.dtype_of(axis.at))?;
        let high = g.compare(CompareFn::Le, axis.at, last)?;
        let both = g.binary(BinaryFn::And, low, high)?;
        inside = Some(match inside {
            Some(other) => g.binary(BinaryFn::And, other, both)?,
            None => both,
        });
        let zero = g.float(0.0, g.dtype_of(axis.at))?;
        let safe = g.select(both, axis.at, zero)?;
        operands.push(g.cast(safe, DType::I64)?);
    }
    // Channels go behind, so that the batch and the positions stand side by side.
    let mut perm: Vec<usize> = (0..g.rank(image)).filter(|i| *i != 1).collect();
    perm.push(1);
    let image = g.permute(image, perm)?;
    if let Some(slot) = operands.first_mut() {
        *slot = image;
    }
    let values = g.emit(Index { axis: 0 }, &operands)?;
    let mut perm: Vec<usize> = (0..=rank).collect();
    if let Some(channels) = perm.pop() {
        perm.insert(1, channels);
    }
    let values = g.permute(values, perm)?;
    let Some(inside) = inside else { return Ok(values) };
    let inside = g.unsqueeze(inside, 1)?;
    let zero = g.literal(Scalar::Float(0.0), g.dtype_of(values))?;
    g.select(inside, values, zero)
}

/// The sum over the corners of the cell that a point lies in, by its distance from each.
fn linear(g: &mut Builder, image: ValueId, at: &[Axis]) -> Res<ValueId> {
    let mut floors = Vec::new();
    for axis in at {
        floors.push(g.unary(UnaryFn::Floor, axis.at)?);
    }
    let mut sum: Option<ValueId> = None;
    for corner in 0..1usize << at.len() {
        let (mut places, mut weight): (Vec<Axis>, Option<ValueId>) = (Vec::new(), None);
        for (i, (axis, floor)) in at.iter().zip(&floors).enumerate() {
            let part = g.binary(BinaryFn::Sub, axis.at, *floor)?;
            let (place, part) = if corner >> i & 1 == 1 {
                (g.with_literal(BinaryFn::Add, *floor, 1.0)?, part)
            } else {
                let one = g.float(1.0, g.dtype_of(part))?;
                (*floor, g.binary(BinaryFn::Sub, one, part)?)
            };
            weight = Some(match weight {
                Some(w) => g.binary(BinaryFn::Mul, w, part)?,
                None => part,
            });
            places.push(Axis { at: place, size: axis.size.clone() });
        }
        let value = pixel(g, image, &places)?;
        let Some(weight) = weight else { return wrong("expected coordinates") };
        sum = Some(with_weighted(g, sum, value, weight)?);
    }
    sum.map_or_else(|| wrong("expected coordinates"), Ok)
}

/// `sum` and `value` times `weight`, which is one number for all channels.
fn with_weighted(g: &mut Builder, sum: Option<ValueId>, value: ValueId, weight: ValueId) -> Res<ValueId> {
    let weight = g.unsqueeze(weight, 1)?;
    let part = g.binary(BinaryFn::Mul, value, weight)?;
    match sum {
        Some(sum) => g.binary(BinaryFn::Add, sum, part),
        None => Ok(part),
    }
}

/// The image between its elements at points, of which `at` has the coordinate along each axis: `[n, c, points..]`, where the first
/// axis of the points is that of the batch. Outside of the image are zeros.
pub(crate) fn sampled(g: &mut Builder, image: ValueId, at: &[ValueId]) -> Res<ValueId> {
    let sizes = g.shape(image).into_iter().skip(2);
    let axes: Vec<Axis> = at.iter().zip(sizes).map(|(at, size)| Axis { at: *at, size }).collect();
    linear(g, image, &axes)
}

/// Weights of the four neighbors of a cubic convolution with the coefficient `a`, of which PyTorch's is -0.75.
fn cubic_weights(g: &mut Builder, t: ValueId, a: f64) -> Res<[ValueId; 4]> {
    let polynomial = |g: &mut Builder, x: ValueId, c: [f64; 4]| -> Res<ValueId> {
        let mut out = g.with_literal(BinaryFn::Mul, x, c[0])?;
        for (i, coefficient) in c.iter().enumerate().skip(1) {
            out = g.with_literal(BinaryFn::Add, out, *coefficient)?;
            if i < 3 {
                out = g.binary(BinaryFn::Mul, out, x)?;
            }
        }
        Ok(out)
    };
    let near = [a + 2.0, -(a + 3.0), 0.0, 1.0];
    let far = [a, -5.0 * a, 8.0 * a, -4.0 * a];
    let one = g.float(1.0, g.dtype_of(t))?;
    let rest = g.binary(BinaryFn::Sub, one, t)?;
    let (behind, before) = (g.with_literal(BinaryFn::Add, t, 1.0)?, g.with_literal(BinaryFn::Add, rest, 1.0)?);
    Ok([polynomial(g, behind, far)?, polynomial(g, t, near)?, polynomial(g, rest, near)?, polynomial(g, before, far)?])
}

fn cubic(g: &mut Builder, image: ValueId, at: &[Axis], outside: Outside, corners: bool) -> Res<ValueId> {
    let [y, x] = at else { return unsupported("cubic sampling of volumes", "use bilinear or nearest") };
    let (fy, fx) = (g.unary(UnaryFn::Floor, y.at)?, g.unary(UnaryFn::Floor, x.at)?);
    let (ty, tx) = (g.binary(BinaryFn::Sub, y.at, fy)?, g.binary(BinaryFn::Sub, x.at, fx)?);
    let (wy, wx) = (cubic_weights(g, ty, -0.75)?, cubic_weights(g, tx, -0.75)?);
    let mut sum: Option<ValueId> = None;
    for (i, wy) in wy.into_iter().enumerate() {
        for (j, wx) in wx.into_iter().enumerate() {
            let place = |g: &mut Builder, floor: ValueId, axis: &Axis, k: usize| -> Res<Axis> {
                let at = g.with_literal(BinaryFn::Add, floor, k as f64 - 1.0)?;
                let at = kept(g, at, &axis.size, outside, corners)?;
                Ok(Axis { at, size: axis.size.clone() })
            };
            let places = [place(g, fy, y, i)?, place(g, fx, x, j)?];
            let value = pixel(g, image, &places)?;
            let weight = g.binary(BinaryFn::Mul, wy, wx)?;
            sum = Some(with_weighted(g, sum, value, weight)?);
        }
    }
    sum.map_or_else(|| wrong("expected coordinates"), Ok)
}

/// How an image is sampled between its elements.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Sampling {
    Linear,
    Nearest,
    Cubic,
}

/// `torch.nn.functional.grid_sample` in two and three dimensions.
pub(crate) fn grid_sample(
    g: &mut Builder,
    image: ValueId,
    grid: ValueId,
    sampling: Sampling,
    outside: Outside,
    corners: bool,
) -> Res<ValueId> {
    let Some(n) = g.rank(image).checked_sub(2).filter(|n| (2..=3).contains(n)) else {
        return wrong("expected an image or a volume");
    };
    let shape = g.shape(image);
    let last = g.rank(grid).saturating_sub(1);
    let mut at = Vec::new();
    for i in 0..n {
        // The grid names x first, the image has it last.
        let place = Dim::from(n - 1 - i);
        let column = g.slice(grid, last, place.clone(), &place + &Dim::new(1))?;
        let column = g.squeeze(column, last)?;
        let Some(size) = shape.get(2 + i).cloned() else { return wrong("expected an image") };
        let place = unnormalized(g, column, &size, corners)?;
        let place = if sampling == Sampling::Cubic { place } else { kept(g, place, &size, outside, corners)? };
        at.push(Axis { at: place, size });
    }
    match sampling {
        Sampling::Linear => linear(g, image, &at),
        Sampling::Nearest => {
            let mut near = Vec::new();
            for axis in at {
                near.push(Axis { at: g.unary(UnaryFn::Round, axis.at)?, size: axis.size });
            }
            pixel(g, image, &near)
        }
        Sampling::Cubic => cubic(g, image, &at, outside, corners),
    }
}
