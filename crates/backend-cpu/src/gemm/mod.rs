//! Matrix products over packed panels: `C[m, n] = epilogue(A[m, k] · B[k, n])`.
//!
//! All operands and `C` may be f32, f16 or bf16, each as it likes; products and sums are f32, and `C` is rounded once. Where the
//! processor multiplies bfloat16 (`avx512+bf16`, or tiles of them, `avx512+amx`) and both `A` and `B` are, it does. Otherwise panels of
//! `B` are widened in registers and rows of `A` on the way to scratch, once for all panels.
//!
//! `B` is in panels (see [`pack`](crate::pack)) with `nr` one of [`panel_widths_of`] its type. `A` is not packed: its rows are reached
//! through [`Rows`], either a stride or one offset for each row and *tap*. A tap is a stretch of contiguous elements, so the same
//! kernels serve linear layers (one tap), 1 x 1 convolutions (one tap, strided or not) and k x k convolutions over channels-last
//! images (one tap for each kernel position; taps in the padding read zeros). The indirection is that of XNNPACK's `igemm`.
//!
//! Every element of `C` is one chain of multiply-adds over `k` (or over pairs of `k`, or over runs of 32) in ascending order, whatever the
//! tiling. Results therefore depend neither on the number of threads nor on `m` nor on `nr`: a row gets the same bits alone and in a
//! batch. They do depend on the instruction set, and the two that read the same panels of bfloat16 differ in the last bits of a sum.

pub(crate) mod conv;
mod driver;
mod epilogue;
mod int4;
mod int8;
#[cfg(target_arch = "x86_64")]
mod int8_amx;
mod matmul;
mod micro;
#[cfg(target_arch = "x86_64")]
mod micro_amx;
#[cfg(target_arch = "x86_64")]
mod micro_avx2;
#[cfg(target_arch = "x86_64")]
mod micro_avx512;
#[cfg(target_arch = "x86_64")]
mod micro_bf16;
mod micro_portable;
mod operand;
#[cfg(target_arch = "x86_64")]
mod tiles;

pub use conv::{ConvPart, ConvRows, Window3};
pub use driver::{GemmArgs, GemmShape, gemm};
pub(crate) use driver::{PanelProduct, Panels, Workspace, multiply_block};
pub use epilogue::{Epilogue, Residual};
pub use int4::{INT4_WIDTH, Int4Args, int4_product, int4_scratch};
pub use int8::{INT8_STEPS, INT8_WIDTH, Int8Args, int8_product, int8_scratch};
pub use matmul::{DynamicB, MatmulArgs, MatmulShape, matmul};
pub(crate) use matmul::{dynamic_scratch, dynamic_width, pack_dynamic};
pub(crate) use micro::TILE_ROWS;
pub use micro::{panel_width, panel_widths, panel_widths_for, panel_widths_of};
pub use operand::Rows;
pub(crate) use operand::{Operand, gathered_bytes};

#[cfg(test)]
mod tests;
