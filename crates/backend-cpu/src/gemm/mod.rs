//! Matrix products over packed panels: `C[m, n] = epilogue(A[m, k] · B[k, n])`.
//!
//! `B` is `panels_f32<nr>` (see [`pack`](crate::pack)) with `nr` one of [`panel_widths`]. `A` is not packed: its rows are reached
//! through [`Rows`], either a stride or one offset for each row and *tap*. A tap is a stretch of contiguous floats, so the same
//! kernels serve linear layers (one tap), 1 x 1 convolutions (one tap, strided or not) and k x k convolutions over channels-last
//! images (one tap for each kernel position; taps in the padding read zeros). The indirection is that of XNNPACK's `igemm`.
//!
//! Every element of `C` is one chain of multiply-adds over `k` in ascending order, whatever the tiling. Results therefore depend
//! neither on the number of threads nor on `m` nor on `nr`: a row gets the same bits alone and in a batch.

mod conv;
mod driver;
mod epilogue;
mod matmul;
mod micro;
#[cfg(target_arch = "x86_64")]
mod micro_avx2;
#[cfg(target_arch = "x86_64")]
mod micro_avx512;
mod micro_portable;
mod operand;

pub use conv::{Conv2d, conv2d_offsets};
pub use driver::{GemmArgs, gemm};
pub(crate) use driver::{Panels, multiply_block};
pub use epilogue::{Epilogue, Residual};
pub use matmul::{DynamicB, MatmulArgs, matmul};
pub use micro::{panel_width, panel_widths};
pub(crate) use operand::Operand;
pub use operand::Rows;

#[cfg(test)]
mod tests;
