//! Sampling images at given points.

use crate::{
    build::{Outside, Sampling, grid_sample},
    pt2::args::{Cx, Res, ValueId, wrong},
};

/// `torch.nn.functional.grid_sample` in two and three dimensions.
pub(super) fn grid_sampler(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (image, grid) = (cx.tensor("input")?, cx.tensor("grid")?);
    let corners = cx.bool_or("align_corners", false)?;
    let outside = match cx.int_or("padding_mode", 0)? {
        0 => Outside::Zeros,
        1 => Outside::Border,
        2 => Outside::Reflection,
        other => return wrong(format!("{other} is not a padding mode")),
    };
    let sampling = match cx.int_or("interpolation_mode", 0)? {
        0 => Sampling::Linear,
        1 => Sampling::Nearest,
        2 => Sampling::Cubic,
        other => return wrong(format!("{other} is not an interpolation mode")),
    };
    grid_sample(cx, image, grid, sampling, outside, corners)
}
