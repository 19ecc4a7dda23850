//! Data types, symbolic dimensions and host tensors: what every other crate speaks, and no graph.
//!
//! - [`DType`] and [`Element`]: the element types and their Rust counterparts;
//! - [`Dim`]: a dimension that is a constant, a symbol or an expression over symbols;
//! - [`Buffer`]: immutable bytes, owned (64-byte aligned) or mapped from a file;
//! - [`Tensor`]: a dense, row-major host tensor over a [`Buffer`].
#![deny(unsafe_op_in_unsafe_fn)]

mod buffer;
mod dim;
mod dim_parse;
mod dtype;
mod error;
mod mapped;
mod strides;
mod tensor;

pub use buffer::{AlignedVec, Buffer};
pub use dim::{Atom, Dim, Range, Symbol};
pub use dtype::{DType, Element};
pub use error::{ErrorKind, TensorError};
pub use mapped::MappedFile;
pub use strides::{contiguous_strides, for_each_index, gather_strided, numel};
pub use tensor::Tensor;
