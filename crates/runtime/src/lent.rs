//! Runs over memory that another library lends, in the order of its queue: nothing is copied through the host, and the host
//! waits for nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use regraft_backend::{DataError, Fence, ForeignQueue, Lent, RunErrorKind};
use regraft_tensor::{DType, Tensor};

use crate::{Generation, Model, RuntimeError, RuntimeErrorKind};

/// What a run reads.
///
/// ```
/// use regraft_runtime::Input;
/// use regraft_tensor::Tensor;
///
/// let input = Input::Host(Tensor::from_slice(&[3], &[0.1f32, 0.2, 0.3]));
/// ```
#[derive(Debug)]
pub enum Input {
    /// A tensor of the host, which is copied.
    Host(Tensor),
    /// A row-major tensor in memory of the model's device.
    Lent {
        /// Element type.
        dtype: DType,
        /// Sizes.
        shape: Vec<usize>,
        /// The memory.
        memory: Lent,
    },
}

impl Input {
    pub(crate) fn ty(&self) -> (DType, &[usize]) {
        match self {
            Input::Host(tensor) => (tensor.dtype(), tensor.shape()),
            Input::Lent { dtype, shape, .. } => (*dtype, shape),
        }
    }
}

impl Model {
    /// Types of the outputs that a run with inputs of these types has.
    ///
    /// # Errors
    /// When an input has the wrong type.
    pub fn output_types(&self, inputs: &[Input]) -> Result<Vec<(DType, Vec<usize>)>, RuntimeError> {
        let types: Vec<_> = inputs.iter().map(Input::ty).collect();
        let bound = self.bound_to(&types)?;
        Ok(bound.outputs.iter().map(|output| (output.dtype, output.shape.clone())).collect())
    }

    /// As [`Model::run`], over memory that is lent: see [`Session::run_lent`](crate::Session::run_lent).
    ///
    /// ```no_run
    /// use regraft_backend::{ForeignQueue, Lent};
    /// use regraft_runtime::{Input, Model, RuntimeError};
    /// use regraft_tensor::DType;
    ///
    /// /// Runs a model of a GPU on 8 rows of 32 floats at `x`, and writes 8 floats to `y`, all in the order of `stream`.
    /// ///
    /// /// # Safety
    /// /// `x` and `y` are memory of that GPU and `stream` is a stream of it, as [`Lent::new`] and [`ForeignQueue::new`] ask.
    /// unsafe fn run(model: &Model, x: u64, y: u64, stream: u64) -> Result<(), RuntimeError> {
    ///     // SAFETY: the caller's.
    ///     let (x, y, stream) = unsafe { (Lent::new(x, 8 * 32 * 4), Lent::new(y, 8 * 4), ForeignQueue::new(stream)) };
    ///     let x = Input::Lent { dtype: DType::F32, shape: vec![8, 32], memory: x };
    ///     model.run_lent(&[x], &mut [y], stream)
    /// }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn run_lent(&self, inputs: &[Input], outputs: &mut [Lent], queue: ForeignQueue) -> Result<(), RuntimeError> {
        let mut session = self.session_in_lane();
        let done = session.run_lent(inputs, outputs, queue);
        self.keep_lane(session);
        done
    }
}

/// Memory for outputs that is not as large as they are.
pub(crate) fn misfit(expected: usize, found: usize) -> RuntimeError {
    let why = format!("memory for outputs: expected {expected} bytes, found {found}");
    RuntimeErrorKind::Run(RunErrorKind::Data(DataError::Eval(why))).into()
}

/// Generations that runs hold which nobody waits for, until these are over.
#[derive(Default)]
pub(crate) struct InFlight(Mutex<Vec<(Fence, Arc<Generation>)>>);

impl InFlight {
    /// Runs that may be on their way at once; then the first one is waited for.
    const LIMIT: usize = 64;

    /// Holds a generation until the fence is done.
    pub(crate) fn hold(&self, fence: Fence, generation: Arc<Generation>) {
        self.prune();
        let mut held = self.lock();
        let first = if held.len() >= Self::LIMIT { Some(held.remove(0)) } else { None };
        held.push((fence, generation));
        drop(held);
        if let Some((fence, _generation)) = first {
            // An error of a device shows in all work that follows.
            let _ = fence.wait();
        }
    }

    /// Releases what is over.
    pub(crate) fn prune(&self) {
        let over: Vec<_> = {
            let mut held = self.lock();
            let (over, rest) = std::mem::take(&mut *held).into_iter().partition(|(fence, _)| fence.is_done());
            *held = rest;
            over
        };
        // Outside of the lock: dropping the last one gives memory back.
        drop(over);
    }

    /// Waits for all of them.
    pub(crate) fn settle(&self) {
        let all = std::mem::take(&mut *self.lock());
        all.iter().for_each(|(fence, _)| _ = fence.wait());
    }

    /// A list that is pushed to and taken from is whole after any panic.
    fn lock(&self) -> MutexGuard<'_, Vec<(Fence, Arc<Generation>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
