//! The kernel for ops that the backend has none for: the reference evaluator.

use regraft_backend::{Kernel, KernelError, Problem};
use regraft_ir::{EvalError, Op};
use regraft_tensor::{AlignedVec, DType, Tensor};

pub(super) struct ReferenceKernel {
    op: Op,
    inputs: Vec<Option<(DType, Vec<usize>)>>,
}

impl ReferenceKernel {
    pub(super) fn new(problem: &Problem<'_>) -> Self {
        let inputs = problem.inputs.iter().map(|o| o.map(|o| (o.dtype, o.shape.to_vec()))).collect();
        ReferenceKernel { op: problem.op.clone(), inputs }
    }
}

impl Kernel for ReferenceKernel {
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]]) -> Result<(), KernelError> {
        let mut tensors = Vec::with_capacity(inputs.len());
        for (bytes, ty) in inputs.iter().zip(&self.inputs) {
            tensors.push(match (bytes, ty) {
                (Some(bytes), Some((dtype, shape))) => {
                    let len = Tensor::byte_len(*dtype, shape).map_err(EvalError::from)?;
                    let data = AlignedVec::copy_of(&bytes[..len]).into();
                    Some(Tensor::new(*dtype, shape.clone(), data).map_err(EvalError::from)?)
                }
                _ => None,
            });
        }
        let results = self.op.eval(&tensors.iter().map(Option::as_ref).collect::<Vec<_>>())?;
        for (result, out) in results.iter().zip(outputs) {
            out.copy_from_slice(result.bytes());
        }
        Ok(())
    }
}
