//! Elements at computed positions: rows of a table, gathers, index tensors.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, OperandType};
use regraft_ir::{Op, TensorType};
use regraft_tensor::{DType, contiguous_strides};

use super::{
    CpuKernel, Cx, Family,
    points::Points,
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

enum Kind {
    /// Runs of elements by index: `[outer, group, inner]`, and the indices that number a group's runs.
    Rows {
        sizes: [usize; 3],
        points: Points,
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
            let points = Points::new(node, 1, operand(node, 1)?.shape, &x.shape[..1], false)?;
            Kind::Rows { sizes: around(x.shape, 0), points }
        }
        Op::Index(op) => {
            let end = op.axis + node.inputs.len() - 1;
            let out = node.outputs[0].shape;
            let points = &out[op.axis..out.len() - (x.shape.len() - end)];
            let points = Points::new(node, 1, points, &x.shape[op.axis..end], true)?;
            let product = |sizes: &[usize]| sizes.iter().product();
            let sizes = [product(&x.shape[..op.axis]), product(&x.shape[op.axis..end]), product(&x.shape[end..])];
            Kind::Rows { sizes, points }
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

fn indices(dtype: DType, bytes: &[u8]) -> Indices<'_> {
    if dtype == DType::I32 { Indices::I32(elements(bytes)) } else { Indices::I64(elements(bytes)) }
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        match &self.kind {
            Kind::Rows { points, .. } => bytes_of::<usize>(points.count()),
            Kind::Gather { .. } => 0,
        }
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (threads, isa, x, out) = (&self.cx.threads, self.cx.isa, read(inputs, 0), &mut *outputs[0]);
        match &self.kind {
            Kind::Rows { sizes, points } => {
                let rows = Scratch::new(scratch).take::<usize>(points.count());
                points.rows(isa, &inputs[1..], 0, rows)?;
                with_size!(self.size, T => take_rows::<T>(threads, elements(x), *sizes, rows, elements_mut(out)));
            }
            Kind::Gather { dtype, shape, strides, axis, size } => {
                let plan = GatherShape { shape, strides, axis: *axis, size: *size };
                let count = shape.iter().product();
                let index = indices(*dtype, read(inputs, 1)).first(count);
                let done = with_size!(self.size, T => {
                    gather::<T>(threads, isa, plan, elements(x), index, elements_mut(out))
                });
                done.map_err(|index| DataError::Index { index, size: *size })?;
            }
        }
        Ok(())
    }
}
