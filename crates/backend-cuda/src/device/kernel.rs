//! Kernels of the contract: launches of our own, products, convolutions.

use regraft_backend::{Kernel, Launch, Queue, RunError, RunErrorKind};

use super::{Cx, product::Products, queue::CudaQueue};
use crate::{CudaError, Memory, Step, cudnn::ConvPlan, driver::Span, driver::Stream};

/// One piece of a node's work.
pub(super) enum Work {
    /// A kernel of our own.
    Own(Step),
    /// Products by cuBLASLt.
    Products(Products),
    /// A convolution by cuDNN, and the kernel for operands that begin where cuDNN does not take them.
    Conv(ConvPlan, Step),
}

/// A node that is ready to be launched.
pub(super) struct CudaKernel {
    pub(super) cx: Cx,
    pub(super) work: Vec<Work>,
    pub(super) scratch: usize,
    /// The operand that elementwise work may overwrite.
    pub(super) in_place: Option<usize>,
}

impl Kernel for CudaKernel {
    fn scratch(&self) -> usize {
        self.scratch
    }

    fn in_place(&self) -> Option<usize> {
        self.in_place
    }

    fn launch(&self, queue: &dyn Queue, launch: Launch<'_, '_>) {
        let Some(cuda) = queue.as_any().downcast_ref::<CudaQueue>() else {
            let kind =
                RunErrorKind::Device { device: self.cx.name.to_string(), why: "a queue of another device".into() };
            return queue.report(RunError { node: Some(launch.node), kind });
        };
        if cuda.has_failed() {
            return;
        }
        let outputs: Vec<Span> = launch.outputs.iter().map(Span::from).collect();
        let mut inputs: Vec<Option<Span>> = launch.inputs.iter().map(|region| region.map(Span::from)).collect();
        if let Some(operand) = self.in_place
            && let Some(missing) = inputs.get_mut(operand).filter(|input| input.is_none())
        {
            *missing = outputs.first().copied();
        }
        let scratch = Span::from(&launch.scratch);
        let report = cuda.report_for(launch.node);
        let memory = Memory { inputs: &inputs, outputs: &outputs, scratch: Some(scratch), report: Some(report) };
        for work in &self.work {
            if let Err(error) = work.launch(cuda.stream(), &memory) {
                return cuda.fail(Some(launch.node), &error);
            }
        }
    }
}

impl Work {
    fn launch(&self, stream: &Stream, memory: &Memory<'_>) -> Result<(), CudaError> {
        match self {
            Work::Own(step) => step.launch(stream, memory),
            Work::Products(products) => products.launch(stream, memory),
            Work::Conv(plan, own) => {
                let operands = [0, 1, 2, 3].map(|i| memory.inputs.get(i).copied().flatten());
                let out = memory.outputs.first().copied().ok_or(CudaError::Region { found: 0, needed: 1 })?;
                let aligned = operands.iter().flatten().chain([&out]).all(|span| span.address() % 16 == 0);
                if aligned { plan.launch(stream, operands, out, memory.scratch) } else { own.launch(stream, memory) }
            }
        }
    }
}
