//! Sampling images at given points.

use regraft_ir::{
    Scalar,
    ops::{BinaryFn, CompareFn, Index, UnaryFn},
};
use regraft_tensor::{DType, Dim};

use crate::pt2::args::{Cx, Res, ValueId, unsupported, wrong};

/// What stands outside of the image.
#[derive(Clone, Copy, PartialEq)]
enum Outside {
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
fn unnormalized(cx: &mut Cx<'_, '_>, at: ValueId, size: &Dim, corners: bool) -> Res<ValueId> {
    let n = cx.dim_value(size, cx.dtype_of(at))?;
    let moved = cx.with_literal(BinaryFn::Add, at, 1.0)?;
    if corners {
        let last = cx.with_literal(BinaryFn::Sub, n, 1.0)?;
        let scaled = cx.binary(BinaryFn::Mul, moved, last)?;
        return cx.with_literal(BinaryFn::Mul, scaled, 0.5);
    }
    let scaled = cx.binary(BinaryFn::Mul, moved, n)?;
    let scaled = cx.with_literal(BinaryFn::Sub, scaled, 1.0)?;
    cx.with_literal(BinaryFn::Mul, scaled, 0.5)
}

/// Reflected at both ends until it lies between them.
fn reflected(cx: &mut Cx<'_, '_>, at: ValueId, size: &Dim, corners: bool) -> Res<ValueId> {
    let n = cx.dim_value(size, cx.dtype_of(at))?;
    let (low, span) = if corners { (0.0, cx.with_literal(BinaryFn::Sub, n, 1.0)?) } else { (-0.5, n) };
    let span = cx.with_literal(BinaryFn::Max, span, f64::from(f32::MIN_POSITIVE))?;
    let moved = cx.with_literal(BinaryFn::Sub, at, low)?;
    let moved = cx.unary(UnaryFn::Abs, moved)?;
    let rest = cx.binary(BinaryFn::Fmod, moved, span)?;
    let turns = cx.binary(BinaryFn::Div, moved, span)?;
    let turns = cx.unary(UnaryFn::Floor, turns)?;
    let two = cx.float(2.0, cx.dtype_of(at))?;
    let odd = cx.binary(BinaryFn::Fmod, turns, two)?;
    let even = cx.compare_with(CompareFn::Eq, odd, 0.0)?;
    let back = cx.binary(BinaryFn::Sub, span, rest)?;
    let inside = cx.select(even, rest, back)?;
    let inside = cx.with_literal(BinaryFn::Add, inside, low)?;
    if !corners && !size.is(1) {
        return Ok(inside);
    }
    // An axis of one element has one position.
    if size.is(1) { cx.with_literal(BinaryFn::Mul, inside, 0.0) } else { Ok(inside) }
}

/// A position of an element kept in the image, or for zeros left as it is.
fn kept(cx: &mut Cx<'_, '_>, at: ValueId, size: &Dim, outside: Outside, corners: bool) -> Res<ValueId> {
    let at = match outside {
        Outside::Zeros => return Ok(at),
        Outside::Border => at,
        Outside::Reflection => reflected(cx, at, size, corners)?,
    };
    let low = cx.with_literal(BinaryFn::Max, at, 0.0)?;
    let last = cx.dim_value(&(size - &Dim::new(1)), cx.dtype_of(at))?;
    cx.binary(BinaryFn::Min, low, last)
}

/// The image at whole positions (as floats), zero outside of it: `[n, c, points..]`.
fn pixel(cx: &mut Cx<'_, '_>, image: ValueId, at: &[Axis]) -> Res<ValueId> {
    let Some(batch) = cx.ty(image).shape.first().cloned() else { return wrong("expected an image") };
    let rank = at.first().map_or(0, |a| cx.rank(a.at));
    let mut operands = vec![image, cx.position(rank, 0, batch)?];
    let mut inside: Option<ValueId> = None;
    for axis in at {
        let low = cx.compare_with(CompareFn::Ge, axis.at, 0.0)?;
        let last = cx.dim_value(&(&axis.size - &Dim::new(1)), cx.dtype_of(axis.at))?;
        let high = cx.compare(CompareFn::Le, axis.at, last)?;
        let both = cx.binary(BinaryFn::And, low, high)?;
        inside = Some(match inside {
            Some(other) => cx.binary(BinaryFn::And, other, both)?,
            None => both,
        });
        let zero = cx.float(0.0, cx.dtype_of(axis.at))?;
        let safe = cx.select(both, axis.at, zero)?;
        operands.push(cx.cast(safe, DType::I64)?);
    }
    // Channels go behind, so that the batch and the positions stand side by side.
    let mut perm: Vec<usize> = (0..cx.rank(image)).filter(|i| *i != 1).collect();
    perm.push(1);
    let image = cx.permute(image, perm)?;
    if let Some(slot) = operands.first_mut() {
        *slot = image;
    }
    let values = cx.emit(Index { axis: 0 }, &operands)?;
    let mut perm: Vec<usize> = (0..=rank).collect();
    if let Some(channels) = perm.pop() {
        perm.insert(1, channels);
    }
    let values = cx.permute(values, perm)?;
    let Some(inside) = inside else { return Ok(values) };
    let inside = cx.unsqueeze(inside, 1)?;
    let zero = cx.literal(Scalar::Float(0.0), cx.dtype_of(values))?;
    cx.select(inside, values, zero)
}

/// The sum over the corners of the cell that a point lies in, by its distance from each.
fn linear(cx: &mut Cx<'_, '_>, image: ValueId, at: &[Axis]) -> Res<ValueId> {
    let mut floors = Vec::new();
    for axis in at {
        floors.push(cx.unary(UnaryFn::Floor, axis.at)?);
    }
    let mut sum: Option<ValueId> = None;
    for corner in 0..1usize << at.len() {
        let (mut places, mut weight): (Vec<Axis>, Option<ValueId>) = (Vec::new(), None);
        for (i, (axis, floor)) in at.iter().zip(&floors).enumerate() {
            let part = cx.binary(BinaryFn::Sub, axis.at, *floor)?;
            let (place, part) = if corner >> i & 1 == 1 {
                (cx.with_literal(BinaryFn::Add, *floor, 1.0)?, part)
            } else {
                let one = cx.float(1.0, cx.dtype_of(part))?;
                (*floor, cx.binary(BinaryFn::Sub, one, part)?)
            };
            weight = Some(match weight {
                Some(w) => cx.binary(BinaryFn::Mul, w, part)?,
                None => part,
            });
            places.push(Axis { at: place, size: axis.size.clone() });
        }
        let value = pixel(cx, image, &places)?;
        let Some(weight) = weight else { return wrong("expected coordinates") };
        let weight = cx.unsqueeze(weight, 1)?;
        let part = cx.binary(BinaryFn::Mul, value, weight)?;
        sum = Some(match sum {
            Some(s) => cx.binary(BinaryFn::Add, s, part)?,
            None => part,
        });
    }
    sum.map_or_else(|| wrong("expected coordinates"), Ok)
}

/// Weights of the four neighbours of a cubic convolution with A = -0.75.
pub(super) fn cubic_weights(cx: &mut Cx<'_, '_>, t: ValueId) -> Res<[ValueId; 4]> {
    const A: f64 = -0.75;
    let polynomial = |cx: &mut Cx<'_, '_>, x: ValueId, c: [f64; 4]| -> Res<ValueId> {
        let mut out = cx.with_literal(BinaryFn::Mul, x, c[0])?;
        for (i, coefficient) in c.iter().enumerate().skip(1) {
            out = cx.with_literal(BinaryFn::Add, out, *coefficient)?;
            if i < 3 {
                out = cx.binary(BinaryFn::Mul, out, x)?;
            }
        }
        Ok(out)
    };
    let near = [A + 2.0, -(A + 3.0), 0.0, 1.0];
    let far = [A, -5.0 * A, 8.0 * A, -4.0 * A];
    let one = cx.float(1.0, cx.dtype_of(t))?;
    let rest = cx.binary(BinaryFn::Sub, one, t)?;
    let (behind, before) = (cx.with_literal(BinaryFn::Add, t, 1.0)?, cx.with_literal(BinaryFn::Add, rest, 1.0)?);
    Ok([
        polynomial(cx, behind, far)?,
        polynomial(cx, t, near)?,
        polynomial(cx, rest, near)?,
        polynomial(cx, before, far)?,
    ])
}

fn cubic(cx: &mut Cx<'_, '_>, image: ValueId, at: &[Axis], outside: Outside, corners: bool) -> Res<ValueId> {
    let [y, x] = at else { return unsupported("cubic sampling of volumes", "use bilinear or nearest") };
    let (fy, fx) = (cx.unary(UnaryFn::Floor, y.at)?, cx.unary(UnaryFn::Floor, x.at)?);
    let (ty, tx) = (cx.binary(BinaryFn::Sub, y.at, fy)?, cx.binary(BinaryFn::Sub, x.at, fx)?);
    let (wy, wx) = (cubic_weights(cx, ty)?, cubic_weights(cx, tx)?);
    let mut sum: Option<ValueId> = None;
    for (i, wy) in wy.into_iter().enumerate() {
        for (j, wx) in wx.into_iter().enumerate() {
            let place = |cx: &mut Cx<'_, '_>, floor: ValueId, axis: &Axis, k: usize| -> Res<Axis> {
                let at = cx.with_literal(BinaryFn::Add, floor, k as f64 - 1.0)?;
                let at = kept(cx, at, &axis.size, outside, corners)?;
                Ok(Axis { at, size: axis.size.clone() })
            };
            let places = [place(cx, fy, y, i)?, place(cx, fx, x, j)?];
            let value = pixel(cx, image, &places)?;
            let weight = cx.binary(BinaryFn::Mul, wy, wx)?;
            let weight = cx.unsqueeze(weight, 1)?;
            let part = cx.binary(BinaryFn::Mul, value, weight)?;
            sum = Some(match sum {
                Some(s) => cx.binary(BinaryFn::Add, s, part)?,
                None => part,
            });
        }
    }
    sum.map_or_else(|| wrong("expected coordinates"), Ok)
}

/// `torch.nn.functional.grid_sample` in two and three dimensions.
pub(super) fn grid_sampler(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (image, grid) = (cx.tensor("input")?, cx.tensor("grid")?);
    let Some(n) = cx.rank(image).checked_sub(2).filter(|n| (2..=3).contains(n)) else {
        return wrong("expected an image or a volume");
    };
    let corners = cx.bool_or("align_corners", false)?;
    let outside = match cx.int_or("padding_mode", 0)? {
        0 => Outside::Zeros,
        1 => Outside::Border,
        2 => Outside::Reflection,
        other => return wrong(format!("{other} is no padding mode")),
    };
    let mode = cx.int_or("interpolation_mode", 0)?;
    let shape = cx.shape(image);
    let last = cx.rank(grid).saturating_sub(1);
    let mut at = Vec::new();
    for i in 0..n {
        // The grid names x first, the image has it last.
        let place = Dim::from(n - 1 - i);
        let column = cx.slice(grid, last, place.clone(), &place + &Dim::new(1))?;
        let column = cx.squeeze(column, last)?;
        let Some(size) = shape.get(2 + i).cloned() else { return wrong("expected an image") };
        let place = unnormalized(cx, column, &size, corners)?;
        let place = if mode == 2 { place } else { kept(cx, place, &size, outside, corners)? };
        at.push(Axis { at: place, size });
    }
    match mode {
        0 => linear(cx, image, &at),
        1 => {
            let mut near = Vec::new();
            for axis in at {
                near.push(Axis { at: cx.unary(UnaryFn::Round, axis.at)?, size: axis.size });
            }
            pixel(cx, image, &near)
        }
        2 => cubic(cx, image, &at, outside, corners),
        other => wrong(format!("{other} is no interpolation mode")),
    }
}
