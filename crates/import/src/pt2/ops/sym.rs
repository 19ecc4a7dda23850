//! Arithmetic on sizes.

use regraft_tensor::Dim;

use crate::pt2::args::{Cx, Res, unsupported, wrong};

pub(super) fn size(cx: &mut Cx<'_, '_>) -> Res<Dim> {
    let x = cx.tensor("self")?;
    let axis = cx.axis_arg("dim", None, cx.rank(x))?;
    match cx.ty(x).shape.get(axis) {
        Some(dim) => Ok(dim.clone()),
        None => wrong("a number has no axes"),
    }
}

pub(super) fn numel(cx: &mut Cx<'_, '_>) -> Res<Dim> {
    let x = cx.tensor("self")?;
    Ok(cx.ty(x).numel())
}

fn two(cx: &Cx<'_, '_>) -> Res<(Dim, Dim)> {
    // `_operator` functions name their arguments a and b, others do not.
    let [a, b] = cx.node.inputs.as_slice() else { return wrong("expected two arguments") };
    Ok((cx.dim(&a.name)?, cx.dim(&b.name)?))
}

pub(super) fn add(cx: &mut Cx<'_, '_>) -> Res<Dim> {
    two(cx).map(|(a, b)| &a + &b)
}

pub(super) fn sub(cx: &mut Cx<'_, '_>) -> Res<Dim> {
    two(cx).map(|(a, b)| &a - &b)
}

pub(super) fn mul(cx: &mut Cx<'_, '_>) -> Res<Dim> {
    two(cx).map(|(a, b)| &a * &b)
}

pub(super) fn floordiv(cx: &mut Cx<'_, '_>) -> Res<Dim> {
    let (a, b) = two(cx)?;
    if b.is(0) { wrong("it divides by zero") } else { Ok(a.floor_div(&b)) }
}

pub(super) fn modulo(cx: &mut Cx<'_, '_>) -> Res<Dim> {
    let (a, b) = two(cx)?;
    if b.is(0) { wrong("it divides by zero") } else { Ok(a.modulo(&b)) }
}

pub(super) fn neg(cx: &mut Cx<'_, '_>) -> Res<Dim> {
    let [a] = cx.node.inputs.as_slice() else { return wrong("expected one argument") };
    Ok(-&cx.dim(&a.name)?)
}

pub(super) fn max(cx: &mut Cx<'_, '_>) -> Res<Dim> {
    two(cx).map(|(a, b)| a.max_of(&b))
}

pub(super) fn min(cx: &mut Cx<'_, '_>) -> Res<Dim> {
    two(cx).map(|(a, b)| a.min_of(&b))
}

/// What only the program's own expression of the result tells.
pub(super) fn unknown(_: &mut Cx<'_, '_>) -> Res<Dim> {
    unsupported("this arithmetic on sizes", "make the dimension static")
}
