//! Conversions, copies, and operators that do nothing in inference.

use crate::pt2::{
    args::{Cx, Res, ValueId, unsupported, wrong},
    schema::{Argument, Layout},
};

/// `to` another dtype, device or memory format, of which only the dtype matters here.
pub(super) fn to(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("self")?;
    if let Some(Argument::Layout(layout)) = cx.arg("layout")
        && *layout != Layout::Strided
    {
        return unsupported(format!("the layout {layout:?}"), "keep tensors dense");
    }
    match cx.dtype("dtype")? {
        Some(dtype) => cx.cast(x, dtype),
        None => Ok(x),
    }
}

pub(super) fn to_other(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, other) = (cx.tensor("self")?, cx.tensor("other")?);
    cx.cast_like(x, other)
}

pub(super) fn prims_convert(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let x = cx.tensor("a")?;
    match cx.dtype("dtype")? {
        Some(dtype) => cx.cast(x, dtype),
        None => wrong("expected a dtype"),
    }
}

pub(super) fn same(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let Some(first) = cx.node.inputs.first() else { return wrong("expected an argument") };
    cx.tensor(&first.name)
}

/// The second argument in the shape and dtype of the first.
pub(super) fn copy(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let (x, src) = (cx.tensor("self")?, cx.tensor("src")?);
    let (dtype, shape) = (cx.dtype_of(x), cx.shape(x));
    let src = cx.cast(src, dtype)?;
    cx.expand(src, shape)
}

pub(super) fn dropout(cx: &mut Cx<'_, '_>) -> Res<ValueId> {
    let p = cx.float_or("p", 0.5)?;
    // `native_dropout` trains unless told otherwise.
    let train = cx.bool_or("train", true)?;
    if train && p != 0.0 {
        return unsupported("dropout in training mode", "call model.eval() before exporting");
    }
    same(cx)
}
