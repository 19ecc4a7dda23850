//! The kernel for ops that the backend has none for: the reference evaluator, on the host.

use regraft_backend::{DataError, Kernel, Launch, NodeSpec, Queue, Region, RunError, RunErrorKind};
use regraft_ir::{EvalError, Op};
use regraft_tensor::{AlignedVec, DType, Tensor};

pub(super) struct ReferenceKernel {
    op: Op,
    inputs: Vec<Option<(DType, Vec<usize>)>>,
}

impl ReferenceKernel {
    pub(super) fn new(node: &NodeSpec<'_>) -> Self {
        let inputs = node.inputs.iter().map(|o| o.map(|o| (o.dtype, o.shape.to_vec()))).collect();
        ReferenceKernel { op: node.op.clone(), inputs }
    }

    /// The results of node `node`, or the error of that node or of one before it on the queue.
    fn results(&self, queue: &dyn Queue, node: usize, inputs: &[Option<Region<'_>>]) -> Result<Vec<Tensor>, RunError> {
        let evaluated = |error| RunError { node: Some(node), kind: evaluated(error) };
        let mut tensors = Vec::with_capacity(inputs.len());
        for (region, ty) in inputs.iter().zip(&self.inputs) {
            tensors.push(match (region, ty) {
                (Some(region), Some((dtype, shape))) => {
                    let len = Tensor::byte_len(*dtype, shape).map_err(|e| evaluated(e.into()))?;
                    let mut data = AlignedVec::try_zeroed(len).map_err(|e| evaluated(e.into()))?;
                    queue.read(region.part(0..len), data.bytes_mut())?;
                    let tensor = Tensor::new(*dtype, shape.clone(), data.into());
                    Some(tensor.map_err(|e| evaluated(e.into()))?)
                }
                _ => None,
            });
        }
        self.op.eval(&tensors.iter().map(Option::as_ref).collect::<Vec<_>>()).map_err(evaluated)
    }
}

fn evaluated(error: EvalError) -> RunErrorKind {
    match error {
        EvalError::Index { index, size } => DataError::Index { index, size },
        error => DataError::Eval(error.to_string()),
    }
    .into()
}

impl Kernel for ReferenceKernel {
    fn is_host_step(&self) -> bool {
        true
    }

    fn launch(&self, queue: &dyn Queue, launch: Launch<'_, '_>) {
        match self.results(queue, launch.node, launch.inputs) {
            Ok(results) => {
                for (result, out) in results.iter().zip(launch.outputs) {
                    queue.write(result.bytes(), out.reborrow());
                }
            }
            Err(error) => queue.report(error),
        }
    }
}
