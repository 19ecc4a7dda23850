//! Operators of torchvision on parts of images.

use regraft_tensor::{DType, Dim};

use crate::{
    build::{Deform, Rois, deform_conv, roi_align},
    pt2::args::{Cx, Res, ValueId, wrong},
};

fn natural(cx: &Cx<'_, '_>, name: &str) -> Res<usize> {
    let value = cx.int(name)?;
    usize::try_from(value).or_else(|_| wrong(format!("expected a natural number as `{name}`, found {value}")))
}

/// `torchvision.ops.roi_align`, whose boxes have the number of their image in front.
pub(super) fn rois(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (image, all) = (cx.tensor("input")?, cx.tensor("rois")?);
    let how = Rois {
        size: [natural(cx, "pooled_height")?, natural(cx, "pooled_width")?],
        samples: usize::try_from(cx.int_or("sampling_ratio", -1)?).unwrap_or(0),
        scale: cx.float_or("spatial_scale", 1.0)?,
        aligned: cx.bool_or("aligned", false)?,
        greatest: false,
    };
    let batch = cx.slice(all, 1, Dim::new(0), Dim::new(1))?;
    let batch = cx.squeeze(batch, 1)?;
    let batch = cx.cast(batch, DType::I64)?;
    let boxes = cx.slice(all, 1, Dim::new(1), Dim::new(5))?;
    roi_align(cx, &how, image, boxes, batch)
}

/// `torchvision.ops.deform_conv2d`.
pub(super) fn deformed(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, weight, offset) = (cx.tensor("input")?, cx.tensor("weight")?, cx.tensor("offset")?);
    let (mask, bias) = (cx.optional_tensor("mask")?, cx.tensor("bias")?);
    let how = Deform {
        stride: [natural(cx, "stride_h")?, natural(cx, "stride_w")?],
        padding: [natural(cx, "pad_h")?, natural(cx, "pad_w")?],
        dilation: [natural(cx, "dilation_h")?, natural(cx, "dilation_w")?],
        groups: natural(cx, "groups")?,
        offset_groups: natural(cx, "offset_groups")?,
    };
    let used = cx.bool_or("use_mask", true)?;
    deform_conv(cx, &how, [x, weight, offset], mask.filter(|_| used), Some(bias))
}
