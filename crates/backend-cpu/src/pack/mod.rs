//! Packed weight formats and the one-pass packing into them.
//!
//! **`panels_f32<nr>`.** A logical matrix `B[K, N]` is stored as `ceil(N / nr)` panels. Panel `p` holds columns
//! `p * nr .. (p + 1) * nr` as `K` rows of `nr` floats; columns beyond `N` are zero. A micro-kernel therefore reads one panel
//! from start to end. `nr` is a multiple of 16, so every panel starts on a cache line if the buffer does.

mod overlay;
mod panels;
mod view;

pub(crate) use overlay::{fill_norms, merge};
pub(crate) use panels::LANES;
pub use panels::{pack_panels, panels_len};
pub(crate) use view::for_float;
pub use view::{MatrixView, SourceElement};
