//! A thin safe layer over the driver: context, streams, events, memory, modules, graphs.
//!
//! Every function makes the context current on its thread first, so that objects may be used from any thread. Device memory
//! is addressed by [`Region`]s, which hold the buffer that they lie in; the caller who launches work holds its regions, and memory of
//! the host that it reads or writes, until the work is over, which a [`Event`] tells.

mod context;
mod event;
mod ffi;
mod graph;
mod memory;
mod module;
mod stream;

pub use context::{Context, Driver, Info};
pub use event::Event;
pub use graph::{Executable, Graph, Updated};
pub use memory::{Buffer, Pinned, Region, Span};
pub use module::{Args, Function, Launch, Module};
pub use stream::{Priority, Stream};
