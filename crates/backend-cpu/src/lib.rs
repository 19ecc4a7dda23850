//! The CPU backend: [`CpuCodegen`] chooses kernels, and [`CpuDevice`] binds nodes of the IR (`kernels/`) and recipes (`packer/`)
//! to routines for vector mathematics, weight packing, matrix products and neural-network layers.
//!
//! The routines know no graph. One takes slices, strides and a small parameter struct, runs on the [`Threads`] it is given
//! with the instruction set [`Isa`] it is given, and allocates nothing per element.
//!
//! - [`simd`]: instruction sets, run-time dispatch, elementary functions, activations;
//! - [`threads`]: a thread budget and disjoint mutable output;
//! - [`pack`]: the weight format `panels_f32` and the one-pass packing into it;
//! - [`gemm`]: matrix products and convolutions over packed panels;
//! - [`nn`]: everything else a network needs (norms, softmax, attention, pooling, ...).
//!
//! Every output element is computed by one task in a fixed order, so results never depend on the number of
//! threads. `unsafe` is confined to [`simd`], [`threads`], `memory` and the micro-kernels of [`gemm`].
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(unsafe_code)]

mod codegen;
mod device;
mod format;
pub mod gemm;
mod kernels;
mod memory;
pub mod nn;
pub mod pack;
mod packer;
mod queue;
pub mod scratch;
pub mod simd;
pub mod threads;

pub use codegen::CpuCodegen;
pub use device::CpuDevice;
pub use format::{BytePanels, Panels};
pub use scratch::Scratch;
pub use simd::Isa;
pub use threads::Threads;
