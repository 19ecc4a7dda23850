//! The interface of the micro-kernels: one tile of `C` from some rows of `A` and one panel of `B`.

use super::{
    micro_portable,
    operand::{KBlock, Operand},
};
use crate::{Isa, threads::TileMut};

/// A kernel for one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// The most rows of a tile.
    pub(super) mr: usize,
    /// Columns of a panel.
    pub(super) nr: usize,
    /// Adds the product of `job` to `c`.
    pub(super) run: fn(job: &Job<'_>, c: TileMut<'_, f32>),
}

/// What a kernel multiplies: some rows of `A` and one panel of `B`, over a run of `k`.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    /// The left operand.
    pub(super) a: &'a Operand<'a>,
    /// The first row; the tile says how many.
    pub(super) row: usize,
    /// The steps of `k`.
    pub(super) block: &'a KBlock,
    /// These steps of a panel.
    pub(super) panel: &'a [f32],
    /// What is multiplied next but one: brought into the second-level cache on the way.
    pub(super) next: &'a [f32],
    /// Whether the tile holds the sum of the steps before (or garbage, to be overwritten).
    pub(super) accumulate: bool,
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

/// Floats in a cache line.
pub(super) const LINE: usize = 16;

/// Steps of `k` between two prefetches.
pub(super) const CHUNK: usize = 4;

/// The `nr` of the panels that [`gemm`](super::gemm()) wants on `isa`.
pub fn panel_width(isa: Isa) -> usize {
    if isa == Isa::Avx512 { 32 } else { 16 }
}

impl Job<'_> {
    /// How many cache lines of `next` to fetch with every [`CHUNK`] steps.
    #[inline]
    pub(super) fn lines_per_chunk(&self) -> usize {
        self.next.len().div_ceil(LINE).div_ceil(self.block.len().div_ceil(CHUNK).max(1))
    }

    /// Panics unless the tile lies within the operand and the panel: what a kernel's unsafe code relies on.
    #[inline]
    pub(super) fn check(&self, kernel: &Kernel, c: &TileMut<'_, f32>) {
        assert!(c.rows() <= kernel.mr && c.cols() <= kernel.nr);
        assert!(self.row + c.rows() <= self.a.m());
        assert!(self.block.taps.end <= self.a.taps() && self.block.k.end <= self.a.k_tap());
        assert!(self.block.len() * kernel.nr <= self.panel.len());
    }
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
