//! Queues of work, and fences to wait for it.

use std::{any::Any, fmt, sync::Arc};

use crate::{Region, RegionMut, RunError};

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueueClass {
    /// Runs.
    Run,
    /// Staging of slots: must not slow down runs more than its pace allows.
    Stage,
}

/// How much work is about to be launched, for devices that spread small work over fewer threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Launches.
    pub steps: usize,
    /// Bytes that they touch.
    pub bytes: usize,
}

/// A queue of another library on the same device, by the handle that its maker gave it: a `CUstream` of PyTorch.
///
/// ```
/// use regraft_backend::ForeignQueue;
///
/// // SAFETY: 0 is CUDA's default stream, which every device has.
/// let stream = unsafe { ForeignQueue::new(0) };
/// assert_eq!(stream.handle(), 0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignQueue(u64);

impl ForeignQueue {
    /// The queue with this handle.
    ///
    /// # Safety
    /// It is a queue of the device that this is given to, and stays one as long as calls are given it.
    #[allow(unsafe_code)]
    pub unsafe fn new(handle: u64) -> ForeignQueue {
        ForeignQueue(handle)
    }

    /// The handle.
    pub fn handle(self) -> u64 {
        self.0
    }
}

/// Work in order: each piece starts when the one before is done. Dropping a queue does not stop its work.
///
/// Memory that is given to a queue must stay, and not be given to another, until a fence behind the work is done.
pub trait Queue: Send + Sync {
    /// The implementation, for kernels of the same backend.
    fn as_any(&self) -> &dyn Any;

    /// Launches what `work` launches. Sequences are launched inside, so that a device can prepare for many launches at once.
    fn submit(&self, extent: Extent, work: &mut (dyn FnMut() + Send));

    /// Copies bytes of the host to the device. They have been read when this returns.
    fn write(&self, from: &[u8], to: RegionMut<'_>);

    /// Copies within the device; `to` has as many bytes as `from`.
    fn copy(&self, from: Region<'_>, to: RegionMut<'_>);

    /// Waits for the work so far, and copies bytes to the host.
    ///
    /// # Errors
    /// When that work failed.
    fn read(&self, from: Region<'_>, to: &mut [u8]) -> Result<(), RunError>;

    /// What comes after here waits, on the device, for what is on the other queue now. Nothing to do where work is done at
    /// once. What goes wrong is [reported](Queue::report).
    fn wait_for(&self, _other: ForeignQueue) {}

    /// What comes after on the other queue waits, on the device, for the work so far here.
    fn release(&self, _other: ForeignQueue) {}

    /// Says that work failed. The work behind it is not done, and the next fence says so.
    fn report(&self, error: RunError);

    /// Done when the work so far is done. A fence that fails makes the queue usable again.
    fn fence(&self) -> Fence;
}

/// The end of some work.
#[derive(Clone, Default)]
pub struct Fence(State);

#[derive(Clone, Default)]
enum State {
    #[default]
    Done,
    Failed(Arc<RunError>),
    Pending(Arc<dyn PendingFence>),
}

/// The end of work that may still be going on.
pub trait PendingFence: Send + Sync {
    /// Whether it is over.
    fn is_done(&self) -> bool;

    /// Whether the work may still turn out to be wrong for the values that it reads, such as an index out of range: then
    /// nobody should be given its results before it was waited for.
    fn may_refuse(&self) -> bool {
        true
    }

    /// Waits until it is over.
    ///
    /// # Errors
    /// When the work failed.
    fn wait(&self) -> Result<(), RunError>;
}

impl Fence {
    /// Of work that is over.
    pub fn done() -> Fence {
        Fence(State::Done)
    }

    /// Of work that failed.
    pub fn failed(error: RunError) -> Fence {
        Fence(State::Failed(Arc::new(error)))
    }

    /// Of work that may still be going on.
    pub fn pending(fence: Arc<dyn PendingFence>) -> Fence {
        Fence(State::Pending(fence))
    }

    /// Whether the work is over.
    pub fn is_done(&self) -> bool {
        match &self.0 {
            State::Done | State::Failed(_) => true,
            State::Pending(fence) => fence.is_done(),
        }
    }

    /// Whether the outcome must be known before results are given away: the work failed, or [may
    /// refuse](PendingFence::may_refuse) what it reads.
    pub fn may_refuse(&self) -> bool {
        match &self.0 {
            State::Done => false,
            State::Failed(_) => true,
            State::Pending(fence) => fence.may_refuse(),
        }
    }

    /// Waits until the work is over.
    ///
    /// # Errors
    /// When it failed.
    pub fn wait(&self) -> Result<(), RunError> {
        match &self.0 {
            State::Done => Ok(()),
            State::Failed(error) => Err(RunError::clone(error)),
            State::Pending(fence) => fence.wait(),
        }
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            State::Done => "Fence(done)",
            State::Failed(_) => "Fence(failed)",
            State::Pending(fence) if fence.is_done() => "Fence(done)",
            State::Pending(_) => "Fence(pending)",
        })
    }
}
