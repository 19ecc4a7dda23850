//! The interface of the micro-kernels: one tile of `C` from some rows of `A` and one panel of `B`.

use super::{micro_portable, operand::Operand};
use crate::{Isa, threads::TileMut};

/// A kernel for one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// The most rows of a tile.
    pub(super) mr: usize,
    /// Columns of a panel.
    pub(super) nr: usize,
    /// Sets `c` to the product of rows `first_row ..` of `a` and the first columns of the panel.
    pub(super) run: fn(a: &Operand<'_>, first_row: usize, panel: &[f32], c: TileMut<'_, f32>),
}

impl Kernel {
    /// The kernel for `isa`, which this processor must have.
    pub(super) fn of(isa: Isa) -> Kernel {
        match isa.verified() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => super::micro_avx512::KERNEL,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => super::micro_avx2::KERNEL,
            _ => micro_portable::KERNEL,
        }
    }
}

/// The `nr` of the panels that [`gemm`](super::gemm()) wants on `isa`.
pub fn panel_width(isa: Isa) -> usize {
    if isa == Isa::Avx512 { 32 } else { 16 }
}

/// Panics unless the tile lies within the operand and the panel: what a kernel's unsafe code relies on.
#[inline]
pub(super) fn check_tile(kernel: &Kernel, a: &Operand<'_>, first_row: usize, panel: &[f32], c: &TileMut<'_, f32>) {
    assert!(c.rows() <= kernel.mr && c.cols() <= kernel.nr);
    assert!(first_row + c.rows() <= a.m());
    assert!(a.taps() * a.k_tap() * kernel.nr <= panel.len());
}

/// Calls `$tile::<ROWS>` for the number of rows at hand.
macro_rules! for_rows {
    ($rows:expr, $tile:ident $args:tt, [$($n:literal)*]) => {
        match $rows {
            0 => {}
            $($n => $tile::<$n> $args,)*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(super) use for_rows;
