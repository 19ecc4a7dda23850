use std::ops::Range;

/// Something that the contract of devices forbids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Memory is used on one queue before the host has seen a fence behind the work of another that uses it, and one of the
    /// two writes.
    #[error(
        "queue {queue} {} bytes {range:?} of memory {memory:#x} while work of queue {other} that {} them is in flight: wait \
         for a fence behind that work first",
        verb(*.writes), verb(*.other_writes)
    )]
    BeforeFence {
        /// Address of the memory.
        memory: u64,
        /// The bytes.
        range: Range<usize>,
        /// The queue that uses it now.
        queue: u64,
        /// Whether it writes.
        writes: bool,
        /// The queue whose work is in flight.
        other: u64,
        /// Whether that work writes.
        other_writes: bool,
    },
    /// Memory was freed before the host has seen a fence behind work that uses it.
    #[error("{bytes} bytes of memory {memory:#x} were freed while work of queue {queue} that uses them is in flight")]
    FreedInFlight {
        /// Address of the memory.
        memory: u64,
        /// Its bytes.
        bytes: usize,
        /// The queue whose work is in flight.
        queue: u64,
    },
    /// Memory is used after it was freed.
    #[error("{bytes} bytes at {address:#x} are used after they were freed")]
    Freed {
        /// The address.
        address: u64,
        /// Bytes.
        bytes: usize,
    },
    /// Something is used that is not memory of the device, such as memory of the host.
    #[error("{bytes} bytes at {address:#x} are not memory of this device")]
    NotOfDevice {
        /// The address.
        address: u64,
        /// Bytes.
        bytes: usize,
    },
    /// Something was written outside of what was given to be written.
    #[error("{what} wrote outside of the {bytes} bytes that it was given")]
    Outside {
        /// What wrote, and to which of its regions.
        what: String,
        /// Bytes of the region.
        bytes: usize,
    },
    /// Work of this device was put on a queue of another.
    #[error("a kernel of this device was launched on a queue of another")]
    ForeignQueue,
    /// Work panicked.
    #[error("work on queue {queue} panicked: {what}")]
    Panicked {
        /// The queue.
        queue: u64,
        /// What it said.
        what: String,
    },
}

fn verb(writes: bool) -> &'static str {
    if writes { "writes" } else { "reads" }
}
