//! The interface of the micro-kernels: one tile of `C` from some rows of `A` and one panel of `B`.

use std::ops::Range;

use half::bf16;

use super::{
    epilogue::Rounding,
    micro_portable,
    operand::{Cut, KBlock, Operand},
};
use crate::{
    Isa,
    pack::panel_bytes,
    simd::{FloatType, prefetch, prefetch_second},
    threads::TileMut,
};

/// A kernel for one instruction set, one width of panels and one pair of element types.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// The most rows of a tile.
    pub(super) mr: usize,
    /// Columns of a panel.
    pub(super) nr: usize,
    /// Columns that are computed at once: of a last panel as many times these as hold those that are there.
    pub(super) lanes: usize,
    /// Element type of `A`.
    pub(super) a: FloatType,
    /// Element type of the panels.
    pub(super) b: FloatType,
    /// Whether it multiplies tiles, which the thread must have configured. Then it takes rows at one distance, 16 of them or more.
    pub(super) tiles: bool,
    /// Whether it does what [`Job::end`] says.
    pub(super) ends: bool,
    /// Adds the product of `job` to `c`.
    pub(super) run: fn(job: &Job<'_>, c: TileMut<'_, f32>),
    /// Rounds what `run` would leave after the last steps of `k`, if it can do that.
    pub(super) rounds: Option<Rounds>,
}

/// Adds the product of `job` to the sums of the steps before, if there were any, and rounds to `c` what becomes of them.
pub(super) type Rounds = fn(job: &Job<'_>, end: Rounding<'_>, before: Option<TileMut<'_, f32>>, c: TileMut<'_, bf16>);

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
    pub(super) panel: &'a [u8],
    /// What is multiplied next but one: brought into the second-level cache on the way.
    pub(super) next: &'a [u8],
    /// Whether the tile holds the sum of the steps before (or garbage, to be overwritten).
    pub(super) accumulate: bool,
    /// What is done to the sums before they are stored, by kernels that do.
    pub(super) end: Option<End<'a>>,
}

/// What is done to sums while they are in registers: `clamp(x + bias)`, and a residual is added before that or after it.
#[derive(Clone, Copy)]
pub(super) struct End<'a> {
    /// An addend for each column of the panel, `-0.0` where there is none.
    pub(super) bias: &'a [f32],
    /// The bounds, if there are any.
    pub(super) clamp: Option<[f32; 2]>,
    /// An addend for each element of the tile, with the distance between rows.
    pub(super) residual: Option<(&'a [f32], usize)>,
    /// Whether the residual is added to what is within the bounds.
    pub(super) clamp_first: bool,
}

impl<'a> End<'a> {
    /// The same without the first rows of the tile.
    pub(super) fn after_rows(self, rows: usize) -> Self {
        End { residual: self.residual.map(|(data, ld)| (&data[rows * ld..], ld)), ..self }
    }

    /// Whether it is there for all of a tile of so many rows and columns.
    fn covers(&self, rows: usize, cols: usize) -> bool {
        let reach = |ld: usize| rows.saturating_sub(1).checked_mul(ld)?.checked_add(cols);
        let covers = |(data, ld): (&[f32], usize)| reach(ld).is_some_and(|reach| reach <= data.len());
        self.bias.len() >= cols && self.residual.is_none_or(covers)
    }
}

impl Kernel {
    /// The kernels for `isa`, the one for general use first among those of the same types.
    fn all(isa: Isa) -> &'static [&'static [Kernel]] {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => &[super::micro_avx512::KERNELS, super::micro_amx::KERNELS],
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => &[super::micro_avx512::KERNELS, super::micro_bf16::KERNELS],
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &[super::micro_avx512::KERNELS],
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &[super::micro_avx2::KERNELS],
            _ => &[micro_portable::KERNELS],
        }
    }

    /// The kernel for `isa`, which this processor must have, rows of `a` and panels of `nr` columns of `b`. It takes rows of
    /// `a` if there is one that does, otherwise rows of f32.
    ///
    /// # Panics
    /// When `nr` is not one of [`panel_widths`].
    pub(super) fn of(isa: Isa, a: FloatType, b: FloatType, nr: usize) -> Kernel {
        let all = || Kernel::all(isa.verified()).iter().flat_map(|some| some.iter()).filter(|k| k.nr == nr && k.b == b);
        let found = all().find(|k| k.a == a).or_else(|| all().find(|k| k.a == FloatType::F32));
        *found.unwrap_or_else(|| panic!("no kernel of {isa} takes panels of {nr} columns"))
    }

    /// Those that take rows of f32 and panels of `b`, the one for general use first.
    fn general(isa: Isa, b: FloatType) -> impl Iterator<Item = Kernel> {
        Kernel::all(isa)[0].iter().filter(move |k| k.b == b && k.a == FloatType::F32).copied()
    }

    /// About how long a row of `n` columns takes, in eighths of the time of a column among several vectors.
    fn cost(&self, n: usize) -> usize {
        // With a single vector each multiplication fetches an element of `A`, which takes a little longer.
        let cost = |columns: usize| match columns.div_ceil(self.lanes) {
            1 => 9 * self.lanes,
            vectors => 8 * self.lanes * vectors,
        };
        n / self.nr * cost(self.nr) + cost(n % self.nr)
    }

    /// How many times [`CHUNK`] steps a tile takes; the steps of kernels that multiply pairs are pairs.
    pub(super) fn chunks(&self, block: &KBlock) -> usize {
        let at_once = if self.a == FloatType::Bf16 { 2 } else { 1 };
        block.taps.len() * block.k.len().div_ceil(at_once * CHUNK)
    }

    /// How it wants `k` to be cut.
    pub(super) fn cut(&self) -> Cut {
        match (self.tiles, self.b) {
            (true, _) => Cut::TILES,
            (false, FloatType::Bf16) => Cut::PAIRS,
            (false, _) => Cut::ANYWHERE,
        }
    }

    /// The fewest rows that `A` must have.
    pub(super) fn least_rows(&self) -> usize {
        if self.tiles { TILE_ROWS } else { 0 }
    }

    /// Whether it finds its rows where those of `a` are.
    pub(super) fn reaches(&self, a: &Operand<'_>) -> bool {
        !self.tiles || (a.m() >= TILE_ROWS && a.stride().is_some())
    }

    /// Cuts `0..len` rows into as few parts as possible, all about equally long. A part that is multiplied in tiles takes as long as one
    /// of whole tiles.
    pub(super) fn parts(&self, len: usize) -> impl Iterator<Item = Range<usize>> {
        parts(len, self.mr, self.least_rows().max(1))
    }

    /// The same in groups that are multiplied by one panel after another, with `k` elements in a row: those of a group stay in a
    /// first-level cache beside the panels.
    pub(super) fn groups(&self, len: usize, k: usize) -> impl Iterator<Item = Range<usize>> {
        let elements = GROUP * FloatType::F32.size() / self.a.size();
        // Tiles take one panel at a time.
        let together = if self.tiles { usize::MAX } else { (elements / k.max(1) / self.mr).max(1) };
        let mut parts = self.parts(len);
        std::iter::from_fn(move || {
            let first = parts.next()?;
            let end = parts.by_ref().take(together - 1).last().map_or(first.end, |last| last.end);
            Some(first.start..end)
        })
    }
}

/// Elements of `A` of a group of parts.
const GROUP: usize = 2 * 1024;

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Steps of `k` between two prefetches.
pub(super) const CHUNK: usize = 4;

/// The `nr` of the panels of `b` that [`gemm`](super::gemm()) takes on `isa`, the one for general use first. Results are the same,
/// bit for bit, whichever is used.
pub fn panel_widths_of(isa: Isa, b: FloatType) -> impl Iterator<Item = usize> {
    Kernel::general(isa, b).map(|k| k.nr)
}

/// As [`panel_widths_of`], for a matrix of `n` columns: what takes the least time first, among equals what has the fewest columns that are not
/// there, and then what comes first in general.
pub fn panel_widths_for(isa: Isa, b: FloatType, n: usize) -> Vec<usize> {
    let mut kernels: Vec<Kernel> = Kernel::general(isa, b).collect();
    kernels.sort_by_key(|kernel| (kernel.cost(n), n.next_multiple_of(kernel.nr)));
    kernels.into_iter().map(|kernel| kernel.nr).collect()
}

/// The `nr` of panels of f32, the one for general use first.
pub fn panel_widths(isa: Isa) -> impl Iterator<Item = usize> {
    panel_widths_of(isa, FloatType::F32)
}

/// The `nr` of panels for general use on `isa`, whatever their type.
pub fn panel_width(isa: Isa) -> usize {
    Kernel::all(isa)[0][0].nr
}

impl<'a> Job<'a> {
    /// The same without the first rows.
    #[inline]
    pub(super) fn after_rows(&self, rows: usize) -> Self {
        Job { row: self.row + rows, end: self.end.map(|end| end.after_rows(rows)), ..*self }
    }

    /// Fetches the residual of a tile, which is read behind all of its steps: no row of it lies beside the next.
    #[inline]
    pub(super) fn fetch_residual(&self, rows: usize, cols: usize) {
        if let Some((data, ld)) = self.end.and_then(|end| end.residual) {
            data.chunks(ld.max(1)).take(rows).for_each(|row| prefetch(&row[..cols.min(row.len())]));
        }
    }

    /// Panics unless the rows of `c` lie within the operand and the panel: what a kernel's unsafe code relies on.
    #[inline]
    pub(super) fn check<C>(&self, kernel: &Kernel, c: &TileMut<'_, C>) {
        assert!(c.cols() <= kernel.nr);
        assert!(self.a.ty() == kernel.a && self.row + c.rows() <= self.a.m());
        assert!(self.block.taps.end <= self.a.taps() && self.block.k.end <= self.a.k_tap());
        assert!(panel_bytes(kernel.b, self.block.len(), kernel.nr) <= self.panel.len());
        assert!(self.end.is_none_or(|end| end.covers(c.rows(), c.cols().next_multiple_of(kernel.lanes))));
        assert!(self.end.is_none_or(|end| end.residual.is_none() || c.cols().is_multiple_of(kernel.lanes)));
        // Pairs of bfloat16 may not straddle taps.
        assert!(kernel.b != FloatType::Bf16 || self.block.taps.len() <= 1 || self.block.k.len().is_multiple_of(2));
    }
}

/// Cuts `0..len` rows into as few parts of at most `most` as possible, all about equally long and of whole grains but the last: two tiles
/// of 8 rows keep the arithmetic units busier than one of 12 and one of 4.
pub(super) fn parts(len: usize, most: usize, grain: usize) -> impl Iterator<Item = Range<usize>> {
    let grains = len.div_ceil(grain);
    let parts = grains.div_ceil(most / grain);
    let (each, longer) = (grains.checked_div(parts).unwrap_or(0), grains.checked_rem(parts).unwrap_or(0));
    (0..parts).scan(0, move |start, i| {
        let part = *start..len.min(*start + grain * (each + usize::from(i >= parts - longer)));
        *start = part.end;
        Some(part)
    })
}

/// What a tile fetches while it multiplies.
#[derive(Clone, Copy)]
pub(super) struct Fetch {
    next: *const u8,
    /// Cache lines of a tile.
    share: usize,
    /// Those that it did not fetch yet.
    left: usize,
    /// Those that are fetched with every [`CHUNK`] of steps.
    lines: usize,
}

impl Fetch {
    /// For the first of so many tiles, which together fetch all of `next`, each in so many chunks of steps.
    #[inline]
    pub(super) fn new(next: &[u8], tiles: usize, chunks: usize) -> Self {
        let per = |lines: usize, parts: usize| if lines == 0 { 0 } else { lines.div_ceil(parts.max(1)) };
        let share = per(next.len().div_ceil(LINE), tiles);
        Fetch { next: next.as_ptr(), share, left: share, lines: per(share, chunks) }
    }

    /// For the next tile.
    #[inline]
    pub(super) fn next_tile(self) -> Self {
        Fetch { next: self.next.wrapping_add(self.share * LINE), ..self }
    }

    /// Fetches what comes with the next chunk.
    #[inline(always)]
    pub(super) fn chunk(&mut self) {
        let lines = self.lines.min(self.left);
        self.left -= lines;
        for _ in 0..lines {
            prefetch_second(self.next);
            self.next = self.next.wrapping_add(LINE);
        }
    }
}

/// What each of so many tiles fetches of the panels that come next.
pub(super) fn shares(next: &[u8], tiles: usize) -> std::slice::Chunks<'_, u8> {
    next.chunks(next.len().div_ceil(tiles.max(1)).max(1))
}

/// The kernel of `$tile` for panels of `$vectors` vectors of `$lanes` numbers. For each number of vectors that a panel may have, in order,
/// the rows of its tiles are listed: `1 2 3 ...`. Of a last panel only the vectors are multiplied that hold columns of `C`, in tiles for
/// as many. `$tile` takes as parameters what stands in brackets before it, the vectors and the rows. It needs the instruction set `$isa`,
/// `ROWS` rows and no more columns than its vectors hold in its tile, and what [`Job::check`] asserts.
macro_rules! kernel {
    (
        $isa:expr, $a:ident, $b:ident, ends: $ends:literal, $kind:tt $tile:ident, $lanes:literal, $vectors:literal,
        {$($v:literal: [$($rows:literal)*])*}
    ) => {{
        /// The most rows of a tile, for each number of vectors.
        const ROWS: &[usize] = &[$([$($rows),*].len()),*];
        const KERNEL: Kernel = Kernel {
            mr: ROWS[$vectors - 1],
            nr: $lanes * $vectors,
            lanes: $lanes,
            a: FloatType::$a,
            b: FloatType::$b,
            tiles: false,
            ends: $ends,
            run,
            rounds: None,
        };
        fn run(job: &Job<'_>, mut c: TileMut<'_, f32>) {
            job.check(&KERNEL, &c);
            $isa.verified();
            let (cols, vectors) = (c.cols(), c.cols().div_ceil($lanes).max(1));
            let mr = ROWS[vectors - 1];
            let tiles = c.rows().div_ceil(mr);
            let mut fetch = $crate::gemm::micro::Fetch::new(job.next, tiles, KERNEL.chunks(job.block));
            for part in $crate::gemm::micro::parts(c.rows(), mr, 1) {
                let (tile_job, rows, now) = (job.after_rows(part.start), part.len(), fetch);
                tile_job.fetch_residual(rows, cols);
                fetch = fetch.next_tile();
                let (tile_job, c) = (&tile_job, c.part(part, 0..cols));
                // SAFETY: `verified` has found the instruction set here; `check` has found what the tile wants.
                unsafe {
                    match (vectors, rows) {
                        $($(($v, $rows) => $crate::gemm::micro::kernel!(@call $kind $tile $v $rows tile_job KERNEL now c),)*)*
                        _ => unreachable!("a tile of {rows} rows and {vectors} vectors"),
                    }
                }
            }
        }
        KERNEL
    }};
    (@call [] $tile:ident $vectors:literal $rows:literal $job:ident $kernel:ident $fetch:ident $c:ident) => {
        $tile::<$vectors, $rows>($job, $kernel.nr, $fetch, $c)
    };
    (@call [$kind:expr] $tile:ident $vectors:literal $rows:literal $job:ident $kernel:ident $fetch:ident $c:ident) => {
        $tile::<{ $kind }, $vectors, $rows>($job, $kernel.nr, $fetch, $c)
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use kernel;

/// Does what an [`End`] says to the `MR` rows of `VECTORS` sums of a tile, by the intrinsics listed. A macro, because a call that is not
/// inlined would keep the sums of the tile's loop in memory.
macro_rules! finish {
    ($end:expr, $acc:ident, [$set1:ident $loadu:ident $add:ident $min:ident $max:ident]) => {{
        let end: &$crate::gemm::micro::End<'_> = $end;
        for v in 0..VECTORS {
            // SAFETY: the end covers whole vectors.
            let bias = unsafe { $loadu(end.bias.as_ptr().add(LANES * v)) };
            for r in 0..MR {
                $acc[r][v] = $add($acc[r][v], bias);
            }
        }
        if let (Some(residual), false) = (end.residual, end.clamp_first) {
            $crate::gemm::micro::finish!(@add residual, $acc, $loadu $add);
        }
        // Where a sum is not a number, the second one is the result.
        if let Some([low, high]) = end.clamp {
            let bound = $set1(low);
            for r in 0..MR {
                for v in 0..VECTORS {
                    $acc[r][v] = $max(bound, $acc[r][v]);
                }
            }
            if high < f32::INFINITY {
                let bound = $set1(high);
                for r in 0..MR {
                    for v in 0..VECTORS {
                        $acc[r][v] = $min(bound, $acc[r][v]);
                    }
                }
            }
        }
        if let (Some(residual), true) = (end.residual, end.clamp_first) {
            $crate::gemm::micro::finish!(@add residual, $acc, $loadu $add);
        }
    }};
    (@add $residual:ident, $acc:ident, $loadu:ident $add:ident) => {{
        let (data, ld) = $residual;
        for r in 0..MR {
            for v in 0..VECTORS {
                // SAFETY: the end covers all rows of the tile.
                let x = unsafe { $loadu(data.as_ptr().add(r * ld + LANES * v)) };
                $acc[r][v] = $add($acc[r][v], x);
            }
        }
    }};
}
#[cfg(target_arch = "x86_64")]
pub(super) use finish;
