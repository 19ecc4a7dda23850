//! Packed weight formats and the one-pass packing into them.
//!
//! **`panels_f32<nr>`.** A logical matrix `B[K, N]` is stored as `ceil(N / nr)` panels. Panel `p` holds columns
//! `p * nr .. (p + 1) * nr` as `K` rows of `nr` floats; columns beyond `N` are zero. A micro-kernel therefore reads one panel
//! from start to end. `nr` is a multiple of 16, so every panel starts on a cache line if the buffer does.
//!
//! **`panels_f16<nr>`.** The same of f16.
//!
//! **`panels_bf16<nr>`.** The same of bf16, two steps of `K` woven into one line of `nr` pairs: row `2 i` of column `j` is followed by row
//! `2 i + 1`. Instructions that multiply pairs read it as it is; where there are none a shift and a mask widen a pair. The last
//! line of an odd `K` has zeros for the row that is not there.

mod half;
mod overlay;
mod panels;
mod view;

pub use self::half::{HalfElement, Place, pack_half_panels, pack_scratch, panel_elements, panel_place};
pub(crate) use self::half::{panel_bytes, widen_panel};
pub(crate) use overlay::{fill_norms, merge};
pub(crate) use panels::LANES;
pub use panels::{pack_panels, panels_len};
pub(crate) use view::for_float;
pub use view::{MatrixView, SourceElement};
