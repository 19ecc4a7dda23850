//! Elements at computed positions: rows of a table, gathers, index tensors.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, OperandType};
use regraft_ir::{Op, TensorType};
use regraft_tensor::{DType, contiguous_strides, for_each_index};

use super::{
    CpuKernel, Cx, Family,
    support::{
        Seen, Why, around, elements, elements_mut, expect_plain, never_strided, operand, plain, read, unsupported,
        with_size,
    },
};
use crate::{
    Isa, Scratch,
    nn::moves::{GatherShape, Indices, gather, take_rows},
    scratch::bytes_of,
};

const ROWS: &str = "embedding.rows";
const GATHER: &str = "gather.axis";
const INDEX: &str = "index.rows";

pub(super) const FAMILY: Family =
    Family { ids: &[ROWS, GATHER, INDEX], candidates, reads_strided: never_strided, prepare };

fn accept(node: &Seen<'_>) -> Result<&'static str, Why> {
    match node.op {
        Op::Embedding(_) => Ok(ROWS),
        Op::Gather(_) => Ok(GATHER),
        Op::Index(_) => Ok(INDEX),
        _ => Err(Why("it indexes nothing")),
    }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)))
}

/// An index operand, broadcast to the shape of the points.
pub(super) struct IndexOperand {
    dtype: DType,
    /// Where each point finds its index.
    places: Vec<u32>,
    /// Size of the axis that it indexes.
    size: usize,
}

enum Kind {
    /// Runs of elements by index: `[outer, group, inner]`, and the indices that number a group's runs.
    Rows {
        sizes: [usize; 3],
        wrap: bool,
        indices: Vec<IndexOperand>,
        points: usize,
    },
    Gather {
        dtype: DType,
        shape: Vec<usize>,
        strides: Vec<usize>,
        axis: usize,
        size: usize,
    },
}

struct Prepared {
    cx: Cx,
    /// Bytes of an element.
    size: usize,
    kind: Kind,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, 0..node.inputs.len())?;
    let x = operand(node, 0)?;
    let kind = match node.op {
        Op::Embedding(_) => {
            let points = operand(node, 1)?.shape.iter().product();
            let indices = vec![index_operand(node, 1, operand(node, 1)?.shape, x.shape[0])?];
            Kind::Rows { sizes: around(x.shape, 0), wrap: false, indices, points }
        }
        Op::Index(op) => {
            let end = op.axis + node.inputs.len() - 1;
            let out = node.outputs[0].shape;
            let points = &out[op.axis..out.len() - (x.shape.len() - end)];
            let indices = (op.axis..end).map(|axis| index_operand(node, axis - op.axis + 1, points, x.shape[axis]));
            let product = |sizes: &[usize]| sizes.iter().product();
            let sizes = [product(&x.shape[..op.axis]), product(&x.shape[op.axis..end]), product(&x.shape[end..])];
            Kind::Rows { sizes, wrap: true, indices: indices.collect::<Result<_, _>>()?, points: product(points) }
        }
        Op::Gather(op) => {
            let index = operand(node, 1)?;
            let beyond = |(i, (of, x)): (usize, (&usize, &usize))| i != op.axis && of > x;
            if index.shape.iter().zip(x.shape).enumerate().any(beyond) {
                return Err(unsupported(node, "the index is larger than what it indexes"));
            }
            let (shape, strides) = (index.shape.to_vec(), contiguous_strides(x.shape));
            Kind::Gather { dtype: index.dtype, shape, strides, axis: op.axis, size: x.shape[op.axis] }
        }
        _ => return Err(unsupported(node, "it indexes nothing")),
    };
    Ok(Box::new(Prepared { cx: cx.clone(), size: x.dtype.size(), kind }))
}

/// Operand `index` as indices of an axis of `size` elements, broadcast to `points`.
pub(super) fn index_operand(
    node: &NodeSpec<'_>,
    index: usize,
    points: &[usize],
    size: usize,
) -> Result<IndexOperand, BackendError> {
    let o = operand(node, index)?;
    if !matches!(o.dtype, DType::I64 | DType::I32) || o.shape.len() > points.len() {
        return Err(unsupported(node, "indices are i64 or i32, and broadcast"));
    }
    let mut strides = vec![0; points.len() - o.shape.len()];
    let own = contiguous_strides(o.shape);
    strides.extend(o.shape.iter().zip(own).map(|(&size, stride)| if size == 1 { 0 } else { stride }));
    let (mut places, mut fits) = (Vec::new(), true);
    for_each_index(points, &strides, |at| match u32::try_from(at) {
        Ok(at) => places.push(at),
        Err(_) => fits = false,
    });
    if fits { Ok(IndexOperand { dtype: o.dtype, places, size }) } else { Err(unsupported(node, "too many indices")) }
}

/// The row that each point names: its indices, as one number. Negative ones count from the end if `wrap`.
pub(super) fn rows_of(
    operands: &[IndexOperand],
    wrap: bool,
    inputs: &[Option<&[u8]>],
    rows: &mut [usize],
) -> Result<(), DataError> {
    rows.fill(0);
    for (i, operand) in operands.iter().enumerate() {
        let indices = indices(operand.dtype, read(inputs, i));
        for (row, place) in rows.iter_mut().zip(&operand.places) {
            let at = indices.checked(*place as usize, operand.size, wrap);
            let at = at.map_err(|index| DataError::Index { index, size: operand.size })?;
            *row = *row * operand.size + at;
        }
    }
    Ok(())
}

fn indices(dtype: DType, bytes: &[u8]) -> Indices<'_> {
    if dtype == DType::I32 { Indices::I32(elements(bytes)) } else { Indices::I64(elements(bytes)) }
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        match &self.kind {
            Kind::Rows { points, .. } => bytes_of::<usize>(*points),
            Kind::Gather { .. } => 0,
        }
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (threads, x, out) = (&self.cx.threads, read(inputs, 0), &mut *outputs[0]);
        match &self.kind {
            Kind::Rows { sizes, wrap, indices: operands, points } => {
                let rows = Scratch::new(scratch).take::<usize>(*points);
                rows_of(operands, *wrap, &inputs[1..], rows)?;
                with_size!(self.size, T => take_rows::<T>(threads, elements(x), *sizes, rows, elements_mut(out)));
            }
            Kind::Gather { dtype, shape, strides, axis, size } => {
                let plan = GatherShape { shape, strides, axis: *axis, size: *size };
                let count = shape.iter().product();
                let index = indices(*dtype, read(inputs, 1)).first(count);
                let done = with_size!(self.size, T => {
                    gather::<T>(threads, plan, elements(x), index, elements_mut(out))
                });
                done.map_err(|index| DataError::Index { index, size: *size })?;
            }
        }
        Ok(())
    }
}
