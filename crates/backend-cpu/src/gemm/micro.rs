//! The interface of the micro-kernels: one tile of `C` from some rows of `A` and one panel of `B`.

use super::{
    micro_portable,
    operand::{KBlock, Operand},
};
use crate::{Isa, threads::TileMut};

/// A kernel for one instruction set and one width of panels.
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
    /// The kernels for `isa`, the one for general use first.
    fn all(isa: Isa) -> &'static [Kernel] {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => super::micro_avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => super::micro_avx2::KERNELS,
            _ => micro_portable::KERNELS,
        }
    }

    /// The kernel for `isa`, which this processor must have, and panels of `nr` columns.
    ///
    /// # Panics
    /// When `nr` is not one of [`panel_widths`].
    pub(super) fn of(isa: Isa, nr: usize) -> Kernel {
        let found = Kernel::all(isa.verified()).iter().find(|k| k.nr == nr);
        *found.unwrap_or_else(|| panic!("no kernel of {isa} takes panels of {nr} columns"))
    }
}

/// Floats in a cache line.
pub(super) const LINE: usize = 16;

/// Steps of `k` between two prefetches.
pub(super) const CHUNK: usize = 4;

/// The `nr` of the panels that [`gemm`](super::gemm()) takes on `isa`, the one for general use first. Results are the same,
/// bit for bit, whichever is used.
pub fn panel_widths(isa: Isa) -> impl Iterator<Item = usize> {
    Kernel::all(isa).iter().map(|k| k.nr)
}

/// The `nr` of panels for general use on `isa`.
pub fn panel_width(isa: Isa) -> usize {
    Kernel::all(isa)[0].nr
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

/// The kernel of `$tile::<VECTORS, ROWS>` for panels of `$vectors` vectors of `$lanes` floats and as many rows as are listed:
/// `1 2 3 ...`. `$tile` needs the instruction set `$isa`, `ROWS` rows in its tile and what [`Job::check`] asserts.
macro_rules! kernel {
    ($isa:expr, $tile:ident, $lanes:literal, $vectors:literal, [$($rows:literal)*]) => {{
        const KERNEL: Kernel = Kernel { mr: [$($rows),*].len(), nr: $lanes * $vectors, run };
        fn run(job: &Job<'_>, c: TileMut<'_, f32>) {
            job.check(&KERNEL, &c);
            $isa.verified();
            // SAFETY: `verified` has found the instruction set here; `check` has found what the tile wants.
            unsafe {
                match c.rows() {
                    0 => {}
                    $($rows => $tile::<$vectors, $rows>(job, c),)*
                    rows => unreachable!("a tile of {rows} rows"),
                }
            }
        }
        KERNEL
    }};
}
#[cfg(target_arch = "x86_64")]
pub(super) use kernel;
