//! Convolutions over one to three spatial axes.

use regraft_ir::Scalar;
use regraft_ir::ops::{Activation, Conv, ConvTranspose, Pad, PadMode, SpatialLayout};

use super::whole::{self, Windows};
use crate::pt2::{
    args::{Cx, Res, ValueId, wrong},
    schema::Argument,
};

/// The attributes that all forms share.
fn windows(cx: &Cx<'_, '_>, spatial: usize) -> Res<Windows> {
    let groups = cx.int_or("groups", 1)?;
    let Ok(groups) = usize::try_from(groups) else { return wrong(format!("{groups} groups")) };
    let padding = match cx.arg("padding") {
        Some(Argument::String(_)) => vec![0; spatial],
        _ => cx.windows("padding", spatial, &vec![0; spatial])?,
    };
    Ok(Windows {
        stride: cx.windows("stride", spatial, &vec![1; spatial])?,
        padding,
        dilation: cx.windows("dilation", spatial, &vec![1; spatial])?,
        groups,
    })
}

/// Operands, with a batch axis added where there is none, and whether it was.
fn operands(cx: &mut Cx<'_, '_>) -> Res<(ValueId, ValueId, Option<ValueId>, usize, bool)> {
    let (x, weight, bias) = (cx.tensor("input")?, cx.tensor("weight")?, cx.optional_tensor("bias")?);
    let rank = cx.rank(weight);
    let Some(spatial) = rank.checked_sub(2).filter(|s| (1..=3).contains(s)) else {
        return wrong(format!("a convolution with a weight of {rank} axes"));
    };
    let alone = cx.rank(x) + 1 == rank;
    let x = if alone { cx.unsqueeze(x, 0)? } else { x };
    Ok((x, weight, bias, spatial, alone))
}

fn plain(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (mut x, weight, bias, spatial, alone) = operands(cx)?;
    let mut w = windows(cx, spatial)?;
    match cx.arg("padding") {
        Some(Argument::String(mode)) if mode == "same" => {
            // What is odd goes behind, as in PyTorch.
            let (mut before, mut after) = (vec![0i64; 2], vec![0i64; 2]);
            for (i, dilation) in w.dilation.iter().enumerate() {
                let total = (cx.size(weight, i + 2)?.saturating_sub(1)).saturating_mul(*dilation);
                before.push((total / 2) as i64);
                after.push((total - total / 2) as i64);
            }
            if before == after {
                w.padding = before.iter().skip(2).map(|&p| p as usize).collect();
            } else {
                let zero = if cx.dtype_of(x).is_float() { Scalar::Float(0.0) } else { Scalar::Int(0) };
                let pad = Pad { before, after, value: zero, mode: PadMode::Constant };
                x = cx.emit(pad, &[x])?;
            }
        }
        Some(Argument::String(mode)) if mode != "valid" => return wrong(format!("`{mode}` is not a padding")),
        _ => {}
    }
    if !cx.dtype_of(x).is_float() {
        let out = whole::conv(cx, x, weight, bias, &w)?;
        return if alone { cx.squeeze(out, 0) } else { Ok(out) };
    }
    let op = Conv {
        stride: w.stride,
        padding: w.padding,
        dilation: w.dilation,
        groups: w.groups,
        layout: SpatialLayout::Nchw,
        act: Activation::None,
        act_first: false,
    };
    let out = cx.emit_opt(op, vec![Some(x), Some(weight), bias])?;
    if alone { cx.squeeze(out, 0) } else { Ok(out) }
}

fn transposed(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, weight, bias, spatial, alone) = operands(cx)?;
    let w = windows(cx, spatial)?;
    let output_padding = cx.windows("output_padding", spatial, &vec![0; spatial])?;
    if !cx.dtype_of(x).is_float() {
        let out = whole::conv_transpose(cx, x, weight, bias, &w, &output_padding)?;
        return if alone { cx.squeeze(out, 0) } else { Ok(out) };
    }
    let op =
        ConvTranspose { stride: w.stride, padding: w.padding, output_padding, dilation: w.dilation, groups: w.groups };
    let out = cx.emit_opt(op, vec![Some(x), Some(weight), bias])?;
    if alone { cx.squeeze(out, 0) } else { Ok(out) }
}

pub(super) fn conv(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    plain(cx)
}

pub(super) fn conv_transpose(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    transposed(cx)
}

pub(super) fn convolution(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    if cx.bool_or("transposed", false)? { transposed(cx) } else { plain(cx) }
}
