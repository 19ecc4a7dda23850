//! A device for tests: [`MockDevice`] runs the kernels and packers of a host device as a GPU would.
//!
//! Its memory has addresses that mean nothing to the host. Its queues run later, each on a thread of its own. Fences are pending
//! until then, allocations can be made to fail, and memory holds rubbish before it is written and after it was freed. Kernels
//! get copies of their operands with guard bytes around them.
//!
//! What breaks the contract of [`regraft_backend`] is collected as a [`Violation`], and a device that is dropped with any
//! panics. A use of memory conflicts with work on another queue until the host has *seen* a fence behind that work: whether the
//! work happens to be over makes no difference, so that a mistake shows every time and not in one run of a thousand.
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(unsafe_code)]

mod device;
mod kernel;
mod memory;
mod packer;
mod queue;
mod shared;
mod violation;

pub use self::{
    device::{Failing, MockDevice},
    shared::Order,
    violation::Violation,
};
