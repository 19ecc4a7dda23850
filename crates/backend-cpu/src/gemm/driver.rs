//! Tiling: which task computes which part of `C`, and in which order a task walks through it.

use std::ops::Range;

use super::{
    Epilogue, Operand, Rows,
    micro::{Job, Kernel},
    operand::{KBlock, gathered_bytes, k_blocks},
};
use crate::{
    Isa, Scratch, Threads,
    pack::panel_bytes,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats},
    threads::{TileGrid, TileMut},
};

/// Elements of `A` that a task goes through again and again, panel after panel: about half a second-level cache.
const A_BLOCK: usize = 64 * 1024;

/// Floats of sums that a task keeps between runs of `k` where `C` itself cannot hold them.
const SUMS: usize = 64 * 1024;

/// Bytes of panels that stay in cache, a quarter of a second-level one, while a task goes through its rows: it then finishes some rows
/// after others, and writes `C` as it lies in memory.
const B_BLOCK: usize = 128 * 1024;

/// Panels that must be waiting before it pays to copy rows that collide in cache.
const GATHER_FROM: usize = 4;

/// Tasks for each thread, so that a thread that falls behind does not hold up the others.
const TASKS_PER_THREAD: usize = 4;

/// Below this many multiply-adds another thread is not worth waking.
const SERIAL_BELOW: usize = 1 << 17;

/// A product `C = epilogue(A · B)`.
#[derive(Debug)]
pub struct GemmArgs<'a, C = f32> {
    /// Rows of `A` and `C`.
    pub m: usize,
    /// Columns of `B` and `C`.
    pub n: usize,
    /// Contiguous elements in a tap of `A`.
    pub k_tap: usize,
    /// Taps in a row of `A`; the `k` of the product is `taps * k_tap`.
    pub taps: usize,
    /// The storage of `A`.
    pub a: Floats<'a>,
    /// Where the rows of `A` are.
    pub rows: Rows<'a>,
    /// `B[k, n]` in panels of `nr` columns.
    pub b: Floats<'a>,
    /// Columns of a panel of `B`: one of [`panel_widths_of`](super::panel_widths_of) its type.
    pub nr: usize,
    /// `C`; element `(i, j)` is `c[i * ldc + j]`.
    pub c: &'a mut [C],
    /// Distance between rows of `C`.
    pub ldc: usize,
    /// What is done to the product before it is stored.
    pub epilogue: Epilogue<'a>,
}

/// What the scratch of a product depends on.
#[derive(Clone, Copy, Debug)]
pub struct GemmShape {
    /// Rows of `A` and `C`.
    pub m: usize,
    /// Columns of `B` and `C`.
    pub n: usize,
    /// Contiguous elements in a tap of `A`.
    pub k_tap: usize,
    /// Taps in a row of `A`.
    pub taps: usize,
    /// Columns of a panel of `B`.
    pub nr: usize,
    /// Element type of `A`.
    pub a: FloatType,
    /// Element type of `B`.
    pub b: FloatType,
    /// Element type of `C`.
    pub c: FloatType,
}

impl GemmShape {
    fn k(&self) -> usize {
        self.taps * self.k_tap
    }

    fn kernel(&self, isa: Isa) -> Kernel {
        Kernel::of(isa, self.a, self.b, self.nr)
    }

    /// Bytes of scratch that [`gemm`] needs.
    pub fn scratch(&self, isa: Isa, threads: &Threads) -> usize {
        let (rows, cols) = self.block(isa, threads.count());
        let (a, sums) = self.workspace(isa, rows, cols);
        threads.count() * (bytes_of::<u8>(a) + bytes_of::<f32>(sums))
    }

    /// Bytes of copied rows and floats of sums that a task for a block of so many rows and columns needs.
    pub(super) fn workspace(&self, isa: Isa, rows: usize, cols: usize) -> (usize, usize) {
        let sums = match (self.c, self.k() > self.kernel(isa).cut().most) {
            (FloatType::F32, _) => 0,
            (_, true) => rows * cols,
            (_, false) => rows * self.nr,
        };
        (gathered_bytes(rows, self.taps, self.k_tap), sums)
    }

    /// Rows and columns of the part of `C` that one task computes.
    pub(super) fn block(&self, isa: Isa, threads: usize) -> (usize, usize) {
        let (kernel, k) = (self.kernel(isa), self.k());
        let (mr, run) = (kernel.mr, kernel.cut().most);
        let least = if kernel.tiles { 2 } else { 4 };
        let rows = (A_BLOCK / k.clamp(1, run)).next_multiple_of(mr).clamp(least * mr, 32 * mr);
        let rows = rows.min(self.m.max(1));
        let panels = self.n.div_ceil(kernel.nr).max(1);
        let most = if self.c != FloatType::F32 && k > run { (SUMS / rows / kernel.nr).max(1) } else { panels };
        if threads == 1 || self.m * self.n * k < SERIAL_BELOW {
            return (rows, if most < panels { most * kernel.nr } else { self.n.max(1) });
        }
        let across = (TASKS_PER_THREAD * threads).div_ceil(self.m.div_ceil(rows)).min(panels);
        (rows, panels.div_ceil(across).min(most) * kernel.nr)
    }
}

/// Memory of one task.
#[derive(Debug)]
pub(crate) struct Workspace<'a> {
    /// Rows of `A` next to each other.
    pub(crate) a: &'a mut [u8],
    /// Sums of a `C` that is narrower.
    pub(crate) sums: &'a mut [f32],
}

impl<'a> Workspace<'a> {
    /// One for each of `count` workers.
    pub(crate) fn parts(scratch: &mut Scratch<'a>, count: usize, (a, sums): (usize, usize)) -> Vec<Self> {
        (0..count).map(|_| Workspace { a: scratch.take(a), sums: scratch.take(sums) }).collect()
    }
}

/// Computes `C = epilogue(A · B)`.
///
/// # Panics
///
/// If a slice is too short for its shape, `isa` is not available or has no kernel for panels of `nr` columns, or the scratch is
/// shorter than [`GemmShape::scratch`].
pub fn gemm<C: Float>(threads: &Threads, isa: Isa, args: GemmArgs<'_, C>, scratch: &mut Scratch<'_>) {
    let GemmArgs { m, n, k_tap, taps, a, rows, b, nr, c, ldc, epilogue } = args;
    let shape = GemmShape { m, n, k_tap, taps, nr, a: a.ty(), b: b.ty(), c: C::TYPE };
    let a = Operand::new(a, rows, m, taps, k_tap);
    let b = Panels::new(nr, b, taps * k_tap, n);
    epilogue.check(m, n);
    let (tile_rows, tile_cols) = shape.block(isa, threads.count());
    let mut scratch = scratch.again();
    let mut workers = Workspace::parts(&mut scratch, threads.count(), shape.workspace(isa, tile_rows, tile_cols));
    let grid = TileGrid { outer: &[], rows: m, cols: n, row_stride: ldc, tile_rows, tile_cols };
    threads.for_each_tile_with(&mut workers, c, &grid, |work, at, tile| {
        multiply_block(isa, &a, at.row, &b, at.col, tile, &epilogue, work);
    });
}

/// `B` in panels, perhaps only the first `k` steps of each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels<'a> {
    data: &'a [u8],
    ty: FloatType,
    k: usize,
    nr: usize,
    panel_stride: usize,
}

impl<'a> Panels<'a> {
    /// Panels of `[k, n]`.
    pub(crate) fn new(nr: usize, data: Floats<'a>, k: usize, n: usize) -> Self {
        let (bytes, ty) = (data.bytes(), data.ty());
        let panel_stride = panel_bytes(ty, k, nr);
        assert!(n.div_ceil(nr) * panel_stride <= bytes.len(), "B is too short for {n} columns of {k}");
        Panels { data: bytes, ty, k, nr, panel_stride }
    }

    /// The first `k` rows.
    pub(crate) fn first(self, k: usize) -> Self {
        assert!(k <= self.k);
        Panels { k, ..self }
    }

    /// The steps of `block` of panel `i`.
    fn panel(&self, i: usize, block: &KBlock) -> &'a [u8] {
        let start = i * self.panel_stride + block.first * self.nr * self.ty.size();
        &self.data[start..][..panel_bytes(self.ty, block.len(), self.nr)]
    }
}

/// Sets `c`, whose first element is `(row, col)` of the product, to its part of `epilogue(A · B)`. `col` is the first column of a
/// panel. A run of `k` of one panel is used by all rows before the next, so that it stays in cache, unless all panels do ([`B_BLOCK`]).
#[expect(clippy::too_many_arguments, reason = "a product has three matrices with a place in each")]
pub(crate) fn multiply_block<C: Float>(
    isa: Isa,
    a: &Operand<'_>,
    row: usize,
    b: &Panels<'_>,
    col: usize,
    mut c: TileMut<'_, C>,
    epilogue: &Epilogue<'_>,
    work: &mut Workspace<'_>,
) {
    let kernel = Kernel::of(isa, a.ty(), b.ty, b.nr);
    assert!(col.is_multiple_of(kernel.nr) && a.taps() * a.k_tap() == b.k);
    let (rows, cols, pairs) = (c.rows(), c.cols(), b.ty == FloatType::Bf16);
    let straddles = pairs && a.taps() > 1 && !a.k_tap().is_multiple_of(2);
    let collides = cols >= GATHER_FROM * kernel.nr && a.rows_collide();
    let gather = kernel.a != a.ty() || straddles || collides || !kernel.reaches(a);
    let several = a.taps() * a.k_tap() > kernel.cut().most;
    let Workspace { a: gathered, sums } = work;
    #[cfg(target_arch = "x86_64")]
    let _configured = kernel.tiles.then(super::tiles::configure);
    for block in k_blocks(a.taps(), a.k_tap(), kernel.cut()) {
        let stays = !kernel.tiles && panel_bytes(b.ty, block.len(), cols.next_multiple_of(kernel.nr)) <= B_BLOCK;
        let mut walk = |a: &Operand<'_>, row_in_a: usize, steps: &KBlock| {
            let last = block.first + block.len() == b.k;
            for (group, first) in order(&kernel, rows, cols, stays) {
                let columns = first..cols.min(first + kernel.nr);
                let width = columns.len();
                let panel = b.panel((col + first) / kernel.nr, &block);
                let follows = !stays && first + kernel.nr < cols;
                let next = if follows { b.panel((col + first) / kernel.nr + 1, &block) } else { &[] };
                let accumulate = block.first > 0;
                let job = Job { a, row: row_in_a + group.start, block: steps, panel, accumulate, next };
                let row = row + group.start;
                let mut part = c.part(group.clone(), columns);
                if let Some(mut strip) = part.cast::<f32>() {
                    multiply_strip(&kernel, job, &mut strip, |r, mut tile| {
                        if last {
                            epilogue.apply(isa, row + r.start, col + first, &mut tile);
                        }
                    });
                    continue;
                }
                let (from, ld) = if several { (group.start * cols + first, cols) } else { (0, kernel.nr) };
                let mut strip = TileMut::new(&mut sums[from..], group.len(), width, ld);
                multiply_strip(&kernel, job, &mut strip, |r, mut tile| {
                    if last {
                        epilogue.apply(isa, row + r.start, col + first, &mut tile);
                        r.enumerate().for_each(|(i, r)| C::narrow(isa, tile.row(i), part.row(r)));
                    }
                });
            }
        };
        if gather {
            let a = a.gather(isa, row..row + rows, &block, kernel.a, kernel.least_rows(), gathered);
            walk(&a, 0, &a.whole());
        } else {
            walk(a, row, &block);
        }
    }
}

/// Which rows of which panel, given by its first column, are multiplied one after the other: all rows of a panel, or where all panels
/// stay in cache a tile's rows of each.
fn order(kernel: &Kernel, rows: usize, cols: usize, stays: bool) -> impl Iterator<Item = (Range<usize>, usize)> + '_ {
    let groups = (!stays).then_some(0..rows).into_iter().chain(stays.then(|| kernel.parts(rows)).into_iter().flatten());
    let nr = kernel.nr;
    groups.flat_map(move |group| (0..cols).step_by(nr).map(move |first| (group.clone(), first)))
}

/// Runs `job` tile by tile over all rows of `strip`, one panel wide; `done` gets the rows of each tile, still in cache. Each tile has
/// a share of the next panel fetched.
fn multiply_strip(
    kernel: &Kernel,
    job: Job<'_>,
    strip: &mut TileMut<'_, f32>,
    mut done: impl FnMut(Range<usize>, TileMut<'_, f32>),
) {
    let (rows, cols) = (strip.rows(), strip.cols());
    let share = job.next.len().div_ceil(rows.div_ceil(kernel.mr).max(1)).max(1);
    let mut shares = job.next.chunks(share);
    for part in kernel.parts(rows) {
        let tile = Job { row: job.row + part.start, next: shares.next().unwrap_or(&[]), ..job };
        (kernel.run)(&tile, strip.part(part.clone(), 0..cols));
        done(part.clone(), strip.part(part, 0..cols));
    }
}
