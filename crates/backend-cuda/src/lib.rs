//! The CUDA backend: NVIDIA's libraries, found and opened at run time, and kernels that are compiled at run time.
//!
//! - [`library`]: where libraries are found;
//! - [`driver`]: a thin safe layer over the driver;
//! - [`nvrtc`]: the compiler of kernels, and the folder of what it made;
//! - [`kernels`]: sources and launches, as plain data;
//! - [`gemm`]: matrix products by cuBLASLt;
//! - [`cudnn`]: convolutions by cuDNN;
//! - [`CudaDevice`] and [`CudaCodegen`]: the two halves of the contract of `regraft-backend`.
//!
//! Nothing here needs a GPU, or any library of NVIDIA, to be built or to start. `unsafe` is confined to [`driver`] and to the
//! bindings of libraries.
#![deny(unsafe_op_in_unsafe_fn)]

pub mod cudnn;
mod device;
pub mod driver;
mod error;
pub mod found;
pub mod gemm;
pub mod kernels;
mod launcher;
pub mod library;
pub mod nvrtc;

pub use device::{CudaCodegen, CudaDevice, CudaOptions};
pub use error::CudaError;
pub use launcher::{Kernels, Memory, Step};
