//! Kernels of the host device, run later over copies of what they work on.

use std::sync::Arc;

use regraft_backend::{Kernel, Launch, Queue, Region, RegionMut, RunError};

use crate::{
    Violation,
    memory::{Guarded, Span},
    queue::{MockQueue, Worker, failed, read, written},
    shared::{Access, Shared},
};

pub(crate) struct MockKernel {
    shared: Arc<Shared>,
    inner: Arc<dyn Kernel>,
}

impl MockKernel {
    pub(crate) fn new(shared: Arc<Shared>, inner: Box<dyn Kernel>) -> Self {
        MockKernel { shared, inner: inner.into() }
    }
}

impl Kernel for MockKernel {
    fn scratch(&self) -> usize {
        self.inner.scratch()
    }

    fn in_place(&self) -> Option<usize> {
        self.inner.in_place()
    }

    fn launch(&self, queue: &dyn Queue, launch: Launch<'_, '_>) {
        let node = launch.node;
        let Some(queue) = queue.as_any().downcast_ref::<MockQueue>() else {
            self.shared.violate(Violation::ForeignQueue);
            return queue.report(failed(Some(node), Violation::ForeignQueue.to_string()));
        };
        let mut accesses: Vec<Access> = launch.inputs.iter().flatten().map(read).collect();
        accesses.extend(launch.outputs.iter().map(written));
        accesses.push(written(&launch.scratch));
        let is_there: Vec<bool> = launch.inputs.iter().map(Option::is_some).collect();
        let in_place = self.inner.in_place().is_some_and(|i| is_there.get(i) == Some(&false));
        let late = LateLaunch { shared: self.shared.clone(), kernel: self.inner.clone(), node, is_there, in_place };
        queue.work(&accesses, Some(node), move |worker, spans| late.run(worker, &spans));
    }
}

/// A launch that waits for its turn.
struct LateLaunch {
    shared: Arc<Shared>,
    kernel: Arc<dyn Kernel>,
    node: usize,
    /// For each operand, whether it is there.
    is_there: Vec<bool>,
    /// Whether result 0 holds an operand.
    in_place: bool,
}

impl LateLaunch {
    fn run(&self, worker: &Worker, spans: &[Span]) -> Result<(), RunError> {
        let operands = self.is_there.iter().filter(|there| **there).count();
        let (operands, results) = spans.split_at(operands);
        let [results @ .., scratch] = results else { return Ok(()) };
        let copies: Vec<_> = operands.iter().map(Span::copy).collect();
        let mut given = copies.iter().map(|copy| Region::of_host(copy.bytes()));
        let inputs: Vec<_> = self.is_there.iter().map(|there| if *there { given.next() } else { None }).collect();
        let result = |(i, span): (usize, &Span)| match i == 0 && self.in_place {
            true => Guarded::copy_of(span),
            false => Guarded::new(span.range().len()),
        };
        let mut outputs: Vec<Guarded> = results.iter().enumerate().map(result).collect();
        let mut working = Guarded::new(scratch.range().len());
        {
            let mut outputs: Vec<RegionMut<'_>> = outputs.iter_mut().map(Guarded::region_mut).collect();
            let scratch = working.region_mut();
            let launch = Launch { node: self.node, inputs: &inputs, outputs: &mut outputs, scratch };
            self.kernel.launch(&*worker.host, launch);
        }
        worker.host.fence().wait()?;
        for (i, (span, output)) in results.iter().zip(&outputs).enumerate() {
            self.check(output, &format!("the kernel of node {} at result {i}", self.node), span);
            span.store(output.bytes());
        }
        self.check(&working, &format!("the kernel of node {} at its scratch memory", self.node), scratch);
        scratch.store(Guarded::new(scratch.range().len()).bytes());
        Ok(())
    }

    fn check(&self, copy: &Guarded, what: &str, span: &Span) {
        if !copy.is_intact() {
            self.shared.violate(Violation::Outside { what: what.into(), bytes: span.range().len() });
        }
    }
}
