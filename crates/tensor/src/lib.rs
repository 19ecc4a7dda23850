//! Data types, symbolic dimensions and host tensors, which all other crates use; no graph.
//!
//! - [`DType`] and [`Element`]: the element types and their Rust counterparts;
//! - [`Dim`]: a dimension that is a constant, a symbol or an expression over symbols;
//! - [`Buffer`]: immutable bytes, owned (64-byte aligned), mapped from a file, or borrowed for a call, here or on a
//!   device;
//! - [`Tensor`]: a dense, row-major host tensor over a [`Buffer`];
//! - [`Shelf`]: memory that is used again once nobody holds it;
//! - [`Explanation`]: an error in parts;
//! - [`PerProcess`]: what a forked child must have of its own.
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(unsafe_code)]

mod borrowed;
mod buffer;
mod dim;
mod dim_parse;
mod dtype;
mod error;
mod explanation;
mod mapped;
mod per_process;
mod remote;
mod shelf;
mod strides;
mod tensor;

pub use borrowed::BorrowedBytes;
pub use buffer::{AlignedVec, Buffer};
pub use dim::{Atom, Dim, Range, Symbol};
pub use dtype::{DType, Element};
pub use error::{ErrorKind, TensorError};
pub use explanation::Explanation;
pub use mapped::{MappedFile, MappedFiles};
pub use per_process::PerProcess;
pub use remote::RemoteBytes;
pub use shelf::Shelf;
pub use strides::{broadcast_shape, contiguous_strides, for_each_index, gather_strided, numel};
pub use tensor::Tensor;
