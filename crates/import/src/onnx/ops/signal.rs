//! Reading and writing at given points.

use regraft_ir::ops::{BinaryFn, PutFn};
use regraft_tensor::{DType, Dim, Tensor};

use crate::{
    build::{Outside, Sampling, grid_sample, product, put},
    onnx::args::{Cx, Res, ValueId, unsupported, wrong},
};

pub(super) fn grid(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (image, grid) = (cx.input(0)?, cx.input(1)?);
    let corners = cx.flag("align_corners", false)?;
    let sampling = match cx.text("mode", "linear")? {
        "linear" | "bilinear" => Sampling::Linear,
        "nearest" => Sampling::Nearest,
        "cubic" | "bicubic" => Sampling::Cubic,
        other => return wrong(format!("`{other}` is not a mode of sampling")),
    };
    let outside = match cx.text("padding_mode", "zeros")? {
        "zeros" => Outside::Zeros,
        "border" => Outside::Border,
        "reflection" => Outside::Reflection,
        other => return wrong(format!("`{other}` is not a padding mode")),
    };
    grid_sample(cx, image, grid, sampling, outside, corners)
}

/// The points of an image under an affine map of each example.
pub(super) fn affine_grid(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let theta = cx.input(0)?;
    let size = cx.ints(1)?;
    let corners = cx.flag("align_corners", false)?;
    let sizes: Option<Vec<usize>> = size.iter().skip(2).map(|s| usize::try_from(*s).ok()).collect();
    let Some(sizes) = sizes.filter(|s| (2..=3).contains(&s.len())) else { return wrong("expected sizes of an image") };
    let count: usize = sizes.iter().try_fold(1usize, |n, s| n.checked_mul(*s)).unwrap_or(usize::MAX);
    if count > 1 << 22 {
        return unsupported(format!("a grid of {count} points"), "use fewer");
    }
    let columns = sizes.len() + 1;
    let mut points = Vec::with_capacity(count * columns);
    for i in 0..count {
        let mut rest = i;
        // The last axis is x, which comes first.
        for n in sizes.iter().rev() {
            let (at, n) = ((rest % n) as f64, *n as f64);
            rest /= n as usize;
            points.push(match corners {
                true if n > 1.0 => -1.0 + 2.0 * at / (n - 1.0),
                true => -1.0,
                false => (2.0 * at + 1.0) / n - 1.0,
            });
        }
        points.push(1.0);
    }
    let dtype = cx.dtype_of(theta);
    let points = cx.t.computed(Tensor::from_f64(dtype, &[count, columns], &points), "grid")?;
    let turned = cx.permute(theta, vec![0, 2, 1])?;
    let out = product(cx, points, turned)?;
    let batch = cx.ty(theta).shape.first().cloned().unwrap_or(Dim::new(1));
    let shape = [batch].into_iter().chain(sizes.iter().map(|s| Dim::from(*s))).chain([Dim::from(sizes.len())]);
    let shape = shape.collect();
    cx.reshape(out, shape)
}

/// Rows written into a cache of each example, from a position on.
pub(super) fn tensor_scatter(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (cache, update) = (cx.input(0)?, cx.input(1)?);
    let axis = cx.axis_attr("axis", -2, cx.rank(cache))?;
    let circular = match cx.text("mode", "linear")? {
        "linear" => false,
        "circular" => true,
        other => return wrong(format!("`{other}` is not a mode of writing")),
    };
    if axis == 0 {
        return wrong("the axis of examples cannot be written to");
    }
    let shape = cx.shape(update);
    let mut at = Vec::new();
    for i in 0..=axis {
        let len = shape.get(i).cloned().unwrap_or(Dim::new(1));
        at.push(cx.position(axis + 1, i, len)?);
    }
    if cx.has(2) {
        let first = cx.plain(2)?;
        let first = cx.cast(first, DType::I64)?;
        let first = cx.along(first, axis + 1, 0)?;
        if let Some(last) = at.last_mut() {
            *last = cx.binary(BinaryFn::Add, *last, first)?;
            if circular {
                let size = cx.ty(cache).shape.get(axis).cloned().unwrap_or(Dim::new(1));
                let size = cx.dim_value(&size, DType::I64)?;
                *last = cx.binary(BinaryFn::Rem, *last, size)?;
            }
        }
    }
    put(cx, PutFn::Set, cache, update, 0, &at)
}
