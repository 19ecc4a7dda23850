//! Errors of backends.

use std::fmt;

use regraft_weights::FormatId;

use crate::{KernelId, MemoryKind};

/// A device does not have the memory.
///
/// ```
/// use regraft_backend::{MemoryKind, OutOfMemory};
///
/// let error = OutOfMemory { device: "cuda:0".into(), bytes: 4096, kind: MemoryKind::Slot, free: Some(512) };
/// assert_eq!(error.to_string(), "cuda:0 has no 4096 bytes of memory for slots (512 are free)");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{device} has no {bytes} bytes of memory for {}{}", name(.kind), available(.free))]
pub struct OutOfMemory {
    /// The device.
    pub device: String,
    /// Bytes asked for.
    pub bytes: usize,
    /// What they were for.
    pub kind: MemoryKind,
    /// Bytes that are free there, where the device says so.
    pub free: Option<usize>,
}

fn name(kind: &MemoryKind) -> &'static str {
    match kind {
        MemoryKind::Slot => "slots",
        MemoryKind::Arena => "a run",
    }
}

fn available(free: &Option<usize>) -> String {
    free.map_or_else(String::new, |free| format!(" ({free} are free)"))
}

/// A value that an op does not accept during a run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// An index lies outside of its axis.
    #[error("index {index} is out of range for an axis of size {size}")]
    Index {
        /// The index found.
        index: i64,
        /// Size of the axis.
        size: usize,
    },
    /// The reference evaluator refused.
    #[error("{0}")]
    Eval(String),
}

/// Work on a queue that failed; the work behind it was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunError {
    /// Number of the node, where it is known.
    pub node: Option<usize>,
    /// What happened.
    pub kind: RunErrorKind,
}

/// What happened to work on a queue.
///
/// ```
/// use regraft_backend::{DataError, RunErrorKind};
///
/// let error = RunErrorKind::from(DataError::Index { index: 9, size: 4 });
/// assert_eq!(error.to_string(), "index 9 is out of range for an axis of size 4");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunErrorKind {
    /// A value is out of range.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The device failed.
    #[error("{device} failed: {why}")]
    Device {
        /// The device.
        device: String,
        /// What it says.
        why: String,
    },
    /// Memory ran out on the way.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl std::error::Error for RunError {}

/// An error of a backend about a node or a slot.
///
/// ```
/// use regraft_backend::{BackendError, KernelId};
///
/// let error = BackendError::UnknownKernel(KernelId("linear.old".into()));
/// assert_eq!(error.to_string(), "there is no kernel `linear.old` in this version");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// There is no such kernel in this version.
    #[error("there is no kernel `{0}` in this version")]
    UnknownKernel(KernelId),
    /// The kernel does not take this node.
    #[error("kernel `{kernel}` does not take this {op}: {why}")]
    Unsupported {
        /// The kernel.
        kernel: KernelId,
        /// The op.
        op: &'static str,
        /// What does not fit.
        why: String,
    },
    /// A slot does not lie in a format of this target.
    #[error("{format} does not take a slot of {ty}")]
    Format {
        /// The format.
        format: FormatId,
        /// Type of the slot.
        ty: String,
    },
    /// The device does not have the memory.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// The device failed.
    #[error("{device} failed: {why}")]
    Device {
        /// The device.
        device: String,
        /// What it says.
        why: String,
    },
}
