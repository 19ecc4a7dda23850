//! Values made from nothing but attributes.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, OperandType};
use regraft_ir::{Op, Scalar, TensorType};
use regraft_tensor::{DType, Element, Tensor};

use super::{
    CpuKernel, Cx, Family,
    support::{Seen, Why, elements_mut, never_strided, plain, unsupported, with_elements, with_size},
};
use crate::Isa;

const FULL: &str = "full.fill";
const IOTA: &str = "iota.fill";
const SIZE: &str = "size_of.value";

/// Elements that a task writes.
const TASK: usize = 64 << 10;

pub(super) const FAMILY: Family =
    Family { ids: &[FULL, IOTA, SIZE], candidates, reads_strided: never_strided, prepare };

fn accept(node: &Seen<'_>) -> Result<&'static str, Why> {
    match node.op {
        Op::Full(_) => Ok(FULL),
        Op::Iota(_) => Ok(IOTA),
        Op::SizeOf(_) => Ok(SIZE),
        _ => Err(Why("it has operands")),
    }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)))
}

enum Kind {
    /// The same bits in each element.
    Same(u64),
    Steps {
        start: i64,
        step: i64,
    },
}

struct Prepared {
    cx: Cx,
    dtype: DType,
    kind: Kind,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    let unbound = |e: regraft_tensor::TensorError| unsupported(node, e.to_string());
    let dtype = node.outputs[0].dtype;
    let kind = match node.op {
        Op::Full(op) => Kind::Same(bits(op.value, dtype)),
        Op::Iota(op) => {
            Kind::Steps { start: op.start.eval(&[]).map_err(unbound)?, step: op.step.eval(&[]).map_err(unbound)? }
        }
        Op::SizeOf(op) => Kind::Same(op.value.eval(&[]).map_err(unbound)? as u64),
        _ => return Err(unsupported(node, "it has operands")),
    };
    Ok(Box::new(Prepared { cx: cx.clone(), dtype, kind }))
}

/// The bits of a literal.
pub(super) fn bits(value: Scalar, dtype: DType) -> u64 {
    let mut bytes = [0; 8];
    let one = match value {
        Scalar::Float(v) => Tensor::from_f64(dtype, &[1], &[v]),
        Scalar::Int(v) => Tensor::from_i64(dtype, &[1], &[v]),
    };
    bytes[..dtype.size()].copy_from_slice(one.bytes());
    u64::from_le_bytes(bytes)
}

impl CpuKernel for Prepared {
    fn run(&self, _: &[Option<&[u8]>], outputs: &mut [&mut [u8]], _: &mut [u8]) -> Result<(), DataError> {
        let (threads, out) = (&self.cx.threads, &mut *outputs[0]);
        match self.kind {
            Kind::Same(bits) => with_size!(self.dtype.size(), T => {
                threads.for_each_chunk(elements_mut::<T>(out), TASK, |_, out| out.fill(bits as T));
            }),
            Kind::Steps { start, step } => with_elements!(self.dtype, T => {
                threads.for_each_chunk(elements_mut::<T>(out), TASK, |task, out| {
                    let first = start.wrapping_add(step.wrapping_mul((task * TASK) as i64));
                    for (i, y) in out.iter_mut().enumerate() {
                        *y = T::from_i64(first.wrapping_add(step.wrapping_mul(i as i64)));
                    }
                });
            }),
        }
        Ok(())
    }
}
