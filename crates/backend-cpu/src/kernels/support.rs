//! What kernel files share.

use bytemuck::Pod;
use regraft_backend::{BackendError, FormatId, NodeSpec, Operand, OperandType, SlotLayout};
use regraft_tensor::DType;

use crate::{Isa, format::Panels, gemm::panel_widths};

pub(super) fn unsupported(node: &NodeSpec<'_>, why: impl Into<String>) -> BackendError {
    BackendError::Unsupported { kernel: node.kernel.clone(), op: node.op.name(), why: why.into() }
}

/// Whether all operands that are there have this dtype.
pub(super) fn all_are(inputs: &[Option<OperandType<'_>>], dtype: DType) -> bool {
    inputs.iter().flatten().all(|o| o.ty.dtype == dtype)
}

/// The required operand at `index`.
pub(super) fn operand<'a>(node: &NodeSpec<'a>, index: usize) -> Result<Operand<'a>, BackendError> {
    node.inputs.get(index).copied().flatten().ok_or_else(|| unsupported(node, format!("operand {index} is missing")))
}

/// The optional operand at `index`.
pub(super) fn optional<'a>(node: &NodeSpec<'a>, index: usize) -> Option<Operand<'a>> {
    node.inputs.get(index).copied().flatten()
}

/// Refuses when an operand in `plain` is a slot that does not lie as the op sees it.
pub(super) fn expect_plain(node: &NodeSpec<'_>, plain: impl IntoIterator<Item = usize>) -> Result<(), BackendError> {
    for index in plain {
        let packed = |o: Operand<'_>| o.slot.is_some_and(|s| !s.format.is_plain() || s.shape != o.shape);
        if optional(node, index).is_some_and(packed) {
            return Err(unsupported(node, format!("operand {index} is packed")));
        }
    }
    Ok(())
}

/// Refuses when an operand that is there, or a result, is not f32: what routines of f32 are told must be true.
pub(super) fn expect_f32(node: &NodeSpec<'_>, operands: impl IntoIterator<Item = usize>) -> Result<(), BackendError> {
    let other = |i: usize| optional(node, i).is_some_and(|o| o.dtype != DType::F32);
    if operands.into_iter().any(other) || node.outputs.iter().any(|o| o.dtype != DType::F32) {
        return Err(unsupported(node, "it computes in f32"));
    }
    Ok(())
}

/// Refuses when operand `index` is no slot with this format and shape.
pub(super) fn expect_packed(
    node: &NodeSpec<'_>,
    index: usize,
    format: &FormatId,
    shape: &[usize],
) -> Result<(), BackendError> {
    match operand(node, index)?.slot {
        Some(slot) if slot.format == *format && slot.shape == shape => Ok(()),
        slot => Err(packed_otherwise(node, index, &format!("{format}{shape:?}"), slot)),
    }
}

/// The panel width of operand `index`. Refuses when that is no slot of this shape in panels of a width that `isa` has a
/// kernel for.
pub(super) fn expect_panels(
    node: &NodeSpec<'_>,
    isa: Isa,
    index: usize,
    shape: &[usize],
) -> Result<usize, BackendError> {
    let slot = operand(node, index)?.slot;
    let panels = slot.filter(|slot| slot.shape == shape).and_then(|slot| Panels::parse(&slot.format));
    match panels.filter(|panels| panel_widths(isa).any(|width| width == panels.nr)) {
        Some(panels) => Ok(panels.nr),
        None => {
            let widths: Vec<String> = panel_widths(isa).map(|nr| format!("n{nr}")).collect();
            let wanted = format!("panels_f32<{}>{shape:?}", widths.join(" or "));
            Err(packed_otherwise(node, index, &wanted, slot))
        }
    }
}

fn packed_otherwise(node: &NodeSpec<'_>, index: usize, wanted: &str, slot: Option<&SlotLayout>) -> BackendError {
    match slot {
        Some(slot) => {
            let found = format!("{}{:?}", slot.format, slot.shape);
            unsupported(node, format!("operand {index} must be {wanted}, found {found}"))
        }
        None => unsupported(node, format!("operand {index} is no slot")),
    }
}

/// The rows of an operand over its last axis: how many, and the one distance between them; `None` when the last axis is
/// not contiguous or the rows are not equally far apart.
pub(super) fn uniform_rows(operand: &Operand<'_>) -> Option<(usize, usize)> {
    let (&len, lead) = operand.shape.split_last()?;
    let (&inner, lead_strides) = operand.strides.split_last()?;
    if inner != 1 && len > 1 {
        return None;
    }
    let rows: usize = lead.iter().product();
    // From the innermost leading axis outwards each must step over all inside it.
    let mut expected = None;
    for (&size, &stride) in lead.iter().zip(lead_strides).rev().filter(|(size, _)| **size != 1) {
        match expected {
            Some((_, next)) if stride != next => return None,
            Some((step, next)) => expected = Some((step, next * size)),
            None => expected = Some((stride, stride * size)),
        }
    }
    let step = expected.map_or(len, |(step, _)| step);
    (rows <= 1 || step >= len).then_some((rows, step))
}

/// Bytes as elements. Buffers start on cache lines and views at whole elements, so they are aligned.
pub(super) fn elements<T: Pod>(bytes: &[u8]) -> &[T] {
    let whole = bytes.len() / size_of::<T>() * size_of::<T>();
    // What is empty may lie anywhere.
    if whole == 0 { &[] } else { bytemuck::cast_slice(&bytes[..whole]) }
}

/// As [`elements`], to be written.
pub(super) fn elements_mut<T: Pod>(bytes: &mut [u8]) -> &mut [T] {
    if bytes.is_empty() { &mut [] } else { bytemuck::cast_slice_mut(bytes) }
}

/// The bytes of an operand that must be there.
pub(super) fn read<'a>(inputs: &[Option<&'a [u8]>], index: usize) -> &'a [u8] {
    inputs[index].expect("a prepared kernel is given the operands it was prepared for")
}

/// The f32 elements of an operand that may be absent.
pub(super) fn optional_f32<'a>(inputs: &[Option<&'a [u8]>], index: usize) -> Option<&'a [f32]> {
    inputs.get(index).copied().flatten().map(elements)
}
