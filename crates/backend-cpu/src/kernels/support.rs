//! What kernel files share.

use std::ops::Range;

use bytemuck::Pod;
use regraft_backend::{BackendError, Candidate, FormatId, NodeSpec, Operand, OperandType, SlotLayout};
use regraft_ir::Op;
use regraft_tensor::{DType, Dim};

use crate::{
    Isa,
    format::Panels,
    gemm::panel_widths_of,
    simd::{FloatType, Floats},
};

pub(super) fn unsupported(node: &NodeSpec<'_>, why: impl Into<String>) -> BackendError {
    BackendError::Unsupported { kernel: node.kernel.clone(), op: node.op.name(), why: why.into() }
}

/// Why a family does not take a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Why(pub(super) &'static str);

/// What is known of a node when its kernel is chosen and when it is prepared alike: what a family's `accept` looks at.
#[derive(Clone, Debug)]
pub(super) struct Seen<'a> {
    pub(super) op: &'a Op,
    operands: Vec<Option<SeenOperand<'a>>>,
}

/// What is known of an operand.
#[derive(Clone, Copy, Debug)]
struct SeenOperand<'a> {
    dtype: DType,
    shape: SeenShape<'a>,
    /// Whether it is known from sources, and so a slot.
    known: bool,
}

/// Sizes that may be known only when the node is prepared.
#[derive(Clone, Copy, Debug)]
enum SeenShape<'a> {
    Dims(&'a [Dim]),
    Sizes(&'a [usize]),
}

impl<'a> Seen<'a> {
    pub(super) fn of_types(op: &'a Op, inputs: &[Option<OperandType<'a>>]) -> Self {
        let seen =
            |o: OperandType<'a>| SeenOperand { dtype: o.ty.dtype, shape: SeenShape::Dims(&o.ty.shape), known: o.known };
        Seen { op, operands: inputs.iter().map(|o| o.map(seen)).collect() }
    }

    pub(super) fn of_node(node: &NodeSpec<'a>) -> Self {
        let seen =
            |o: Operand<'a>| SeenOperand { dtype: o.dtype, shape: SeenShape::Sizes(o.shape), known: o.slot.is_some() };
        Seen { op: node.op, operands: node.inputs.iter().map(|o| o.map(seen)).collect() }
    }

    fn operand(&self, index: usize) -> Option<&SeenOperand<'a>> {
        self.operands.get(index).and_then(Option::as_ref)
    }

    /// That all operands are floats that routines take.
    pub(super) fn all_floats(&self) -> Result<(), Why> {
        self.floats(0..self.operands.len())
    }

    /// That those of these operands that are there are floats that routines take.
    pub(super) fn floats(&self, operands: impl IntoIterator<Item = usize>) -> Result<(), Why> {
        let floats = operands.into_iter().filter_map(|i| self.dtype(i)).all(|dtype| FloatType::of(dtype).is_some());
        if floats { Ok(()) } else { Err(Why("operands must be f32, f16 or bf16")) }
    }

    /// The type of an operand that must be floats that are known from sources: a weight.
    pub(super) fn known_floats(&self, index: usize) -> Result<FloatType, Why> {
        let known = self.operand(index).filter(|o| o.known).ok_or(Why("its weight is computed"))?;
        FloatType::of(known.dtype).ok_or(Why("its weight must be f32, f16 or bf16"))
    }

    /// The type and the sizes of a weight of floats, which must be fixed.
    pub(super) fn weight(&self, index: usize) -> Result<(FloatType, Vec<usize>), Why> {
        let ty = self.known_floats(index)?;
        let sizes = self.operand(index).and_then(|o| match o.shape {
            SeenShape::Dims(dims) => dims.iter().map(Dim::as_usize).collect(),
            SeenShape::Sizes(sizes) => Some(sizes.to_vec()),
        });
        Ok((ty, sizes.ok_or(Why("the sizes of its weight are not fixed"))?))
    }

    /// Whether an operand is there.
    pub(super) fn has(&self, index: usize) -> bool {
        self.operand(index).is_some()
    }

    /// The element type of an operand, if it is there.
    pub(super) fn dtype(&self, index: usize) -> Option<DType> {
        self.operand(index).map(|o| o.dtype)
    }

    /// The element types of the operands that are there.
    pub(super) fn dtypes(&self) -> Vec<DType> {
        self.operands.iter().flatten().map(|o| o.dtype).collect()
    }

    /// Axes of an operand that must be there.
    pub(super) fn rank(&self, index: usize) -> usize {
        self.operand(index).map_or(0, |o| match o.shape {
            SeenShape::Dims(dims) => dims.len(),
            SeenShape::Sizes(sizes) => sizes.len(),
        })
    }
}

/// The candidate of an accepted node, all operands as the op sees them.
pub(super) fn plain(accepted: Result<&'static str, Why>) -> Vec<Candidate> {
    accepted.map_or_else(|_| Vec::new(), |id| vec![Candidate::plain(id)])
}

/// Of a family whose operands lie in one piece.
pub(super) fn never_strided(_: &Op, _: usize, _: &Operand<'_>) -> bool {
    false
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

/// Element types of operands and of the results of a kernel that takes any floats that routines take.
#[derive(Clone, Debug)]
pub(super) struct Types {
    operands: Vec<Option<FloatType>>,
    out: FloatType,
}

impl Types {
    /// Refuses when an operand in `operands` that is there, or a result, is of another type: what routines are told must be true.
    pub(super) fn expect(node: &NodeSpec<'_>, operands: Range<usize>) -> Result<Types, BackendError> {
        let refuse = |what: String| unsupported(node, format!("{what} is not f32, f16 or bf16"));
        let of = |index: usize| match node.inputs.get(index).copied().flatten() {
            Some(o) if operands.contains(&index) => {
                FloatType::of(o.dtype).map(Some).ok_or_else(|| refuse(format!("operand {index}, a {},", o.dtype)))
            }
            _ => Ok(None),
        };
        let types = (0..operands.end).map(of).collect::<Result<_, _>>()?;
        let mut outs = node.outputs.iter().map(|o| FloatType::of(o.dtype));
        match outs.next().flatten() {
            Some(out) if outs.all(|other| other == Some(out)) => Ok(Types { operands: types, out }),
            _ => Err(refuse("a result".to_owned())),
        }
    }

    /// The type of the results.
    pub(super) fn out(&self) -> FloatType {
        self.out
    }

    /// The type of an operand that must be there.
    pub(super) fn of(&self, index: usize) -> FloatType {
        self.operands[index].expect("a prepared kernel has the operands it was prepared for")
    }

    /// The elements of an operand that must be there.
    pub(super) fn read<'a>(&self, inputs: &[Option<&'a [u8]>], index: usize) -> Floats<'a> {
        Floats::of_bytes(self.of(index), read(inputs, index))
    }

    /// The elements of an operand that may be absent.
    pub(super) fn optional<'a>(&self, inputs: &[Option<&'a [u8]>], index: usize) -> Option<Floats<'a>> {
        let ty = self.operands.get(index).copied().flatten()?;
        inputs.get(index).copied().flatten().map(|bytes| Floats::of_bytes(ty, bytes))
    }
}

/// Refuses when operand `index` is not a slot with this format and shape.
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

/// The panels of operand `index`. Refuses when that is not a slot of this shape in panels of its own type, of a width that `isa` has a
/// kernel for.
pub(super) fn expect_panels(
    node: &NodeSpec<'_>,
    isa: Isa,
    index: usize,
    shape: &[usize],
) -> Result<Panels, BackendError> {
    let operand = operand(node, index)?;
    let Some(ty) = FloatType::of(operand.dtype) else {
        return Err(unsupported(node, format!("operand {index} is a {}", operand.dtype)));
    };
    let slot = operand.slot;
    let panels = slot.filter(|slot| slot.shape == shape).and_then(|slot| Panels::parse(&slot.format));
    match panels.filter(|panels| panels.ty == ty && panel_widths_of(isa, ty).any(|width| width == panels.nr)) {
        Some(panels) => Ok(panels),
        None => {
            let formats: Vec<String> = panel_widths_of(isa, ty).map(|nr| Panels { ty, nr }.id().to_string()).collect();
            Err(packed_otherwise(node, index, &format!("{}{shape:?}", formats.join(" or ")), slot))
        }
    }
}

fn packed_otherwise(node: &NodeSpec<'_>, index: usize, wanted: &str, slot: Option<&SlotLayout>) -> BackendError {
    match slot {
        Some(slot) => {
            let found = format!("{}{:?}", slot.format, slot.shape);
            unsupported(node, format!("operand {index} must be {wanted}, found {found}"))
        }
        None => unsupported(node, format!("operand {index} is not a slot")),
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

/// Values of one to three spatial axes; an axis that is not there has `unit`.
pub(super) fn three(values: &[usize], unit: usize) -> [usize; 3] {
    let mut all = [unit; 3];
    all[3 - values.len()..].copy_from_slice(values);
    all
}

/// Sizes before, of and after an axis.
pub(super) fn around(shape: &[usize], axis: usize) -> [usize; 3] {
    let product = |sizes: &[usize]| sizes.iter().product();
    [product(&shape[..axis]), shape[axis], product(&shape[axis + 1..])]
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

/// Runs `$body` with `$T` as the Rust type of the elements of a dtype; `bool` is `u8`.
macro_rules! with_elements {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            regraft_tensor::DType::F64 => {
                type $T = f64;
                $body
            }
            regraft_tensor::DType::F32 => {
                type $T = f32;
                $body
            }
            regraft_tensor::DType::F16 => {
                type $T = half::f16;
                $body
            }
            regraft_tensor::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            regraft_tensor::DType::I64 => {
                type $T = i64;
                $body
            }
            regraft_tensor::DType::I32 => {
                type $T = i32;
                $body
            }
            regraft_tensor::DType::I16 => {
                type $T = i16;
                $body
            }
            regraft_tensor::DType::I8 => {
                type $T = i8;
                $body
            }
            regraft_tensor::DType::U8 | regraft_tensor::DType::Bool => {
                type $T = u8;
                $body
            }
            regraft_tensor::DType::U16 => {
                type $T = u16;
                $body
            }
            regraft_tensor::DType::U32 => {
                type $T = u32;
                $body
            }
            regraft_tensor::DType::U64 => {
                type $T = u64;
                $body
            }
        }
    };
}
pub(super) use with_elements;

/// Runs `$body` with `$T` as an unsigned integer of a number of bytes, for what only moves elements.
macro_rules! with_size {
    ($size:expr, $T:ident => $body:expr) => {
        match $size {
            8 => {
                type $T = u64;
                $body
            }
            4 => {
                type $T = u32;
                $body
            }
            2 => {
                type $T = u16;
                $body
            }
            _ => {
                type $T = u8;
                $body
            }
        }
    };
}
pub(super) use with_size;
