//! What each step of a run takes.

use std::time::{Duration, Instant};

use regraft_backend::{Bindings, Queue, Sequence};

/// What one step of a run took.
///
/// ```
/// # use regraft_runtime::{Model, RuntimeError};
/// # use regraft_tensor::Tensor;
/// # fn f(model: &Model, inputs: &[Tensor]) -> Result<(), RuntimeError> {
/// let (_, times) = model.session().run_timed(inputs)?;
/// for step in times {
///     println!("node {}: {:?}, {} bytes", step.node, step.time, step.bytes);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepTime {
    /// Number of the node in the plan's graph that it belongs to.
    pub node: usize,
    /// From the end of the step before to its end.
    pub time: Duration,
    /// Bytes of its operands and results.
    pub bytes: usize,
}

/// Takes the time of each step of a run.
#[derive(Default)]
pub(crate) struct Watch {
    /// Of the steps of the last run, in their order.
    pub(crate) times: Vec<StepTime>,
}

impl Watch {
    /// Launches all steps, each when the one before is done.
    pub(crate) fn launch(&mut self, sequence: &Sequence, queue: &dyn Queue, memory: &mut Bindings<'_>) {
        self.times.clear();
        self.times.reserve(sequence.steps().len());
        let mut start = Instant::now();
        sequence.launch_each(queue, memory, |step| {
            // The error is reported at the end of the run; no work behind it is done.
            if let Err(error) = queue.fence().wait() {
                queue.report(error);
            }
            let end = Instant::now();
            self.times.push(StepTime { node: step.node, time: end - start, bytes: step.bytes() });
            start = end;
        });
    }
}
