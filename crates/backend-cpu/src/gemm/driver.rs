//! Tiling: which task computes which part of `C`, and in which order a task walks through it.

use std::{cell::RefCell, ops::Range};

use super::{
    Epilogue, Operand, Rows,
    micro::{Job, Kernel},
    operand::KBlock,
};
use crate::{
    Isa, Threads,
    pack::panels_len,
    threads::{TileGrid, TileMut},
};

/// Floats of `A` that a task goes through again and again, panel after panel: about half a second-level cache.
const A_BLOCK: usize = 64 * 1024;

/// Steps of `k` before the next panel's turn: what is read of `A` and of the panel then fits into the second-level cache.
const K_BLOCK: usize = 1024;

/// Panels that must be waiting before it pays to copy rows that collide in cache.
const GATHER_FROM: usize = 4;

thread_local! {
    /// Where rows that collide are copied to; at most about `A_BLOCK` floats.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Tasks for each thread, so that a thread that falls behind does not hold up the others.
const TASKS_PER_THREAD: usize = 4;

/// Below this many multiply-adds another thread is not worth waking.
const SERIAL_BELOW: usize = 1 << 17;

/// A product `C = epilogue(A · B)`.
#[derive(Debug)]
pub struct GemmArgs<'a> {
    /// Rows of `A` and `C`.
    pub m: usize,
    /// Columns of `B` and `C`.
    pub n: usize,
    /// Contiguous floats in a tap of `A`.
    pub k_tap: usize,
    /// Taps in a row of `A`; the `k` of the product is `taps * k_tap`.
    pub taps: usize,
    /// The storage of `A`.
    pub a: &'a [f32],
    /// Where the rows of `A` are.
    pub rows: Rows<'a>,
    /// `B[k, n]` as `panels_f32<nr>`.
    pub b: &'a [f32],
    /// Columns of a panel of `B`: one of [`panel_widths`](super::panel_widths).
    pub nr: usize,
    /// `C`; element `(i, j)` is `c[i * ldc + j]`.
    pub c: &'a mut [f32],
    /// Distance between rows of `C`.
    pub ldc: usize,
    /// What is done to the product before it is stored.
    pub epilogue: Epilogue<'a>,
}

/// Computes `C = epilogue(A · B)`.
///
/// # Panics
///
/// If a slice is too short for its shape, `isa` is not available or has no kernel for panels of `nr` columns.
pub fn gemm(threads: &Threads, isa: Isa, args: GemmArgs<'_>) {
    let GemmArgs { m, n, k_tap, taps, a, rows, b, nr, c, ldc, epilogue } = args;
    let a = Operand::new(a, rows, m, taps, k_tap);
    let b = Panels::new(nr, b, taps * k_tap, n);
    epilogue.check(m, n);
    let (tile_rows, tile_cols) = block_shape(&Kernel::of(isa, nr), threads.count(), m, n, taps * k_tap);
    let grid = TileGrid { outer: &[], rows: m, cols: n, row_stride: ldc, tile_rows, tile_cols };
    threads.for_each_tile(c, &grid, |at, tile| multiply_block(isa, &a, at.row, &b, at.col, tile, &epilogue));
}

/// Rows and columns of the part of `C` that one task computes.
pub(super) fn block_shape(kernel: &Kernel, threads: usize, m: usize, n: usize, k: usize) -> (usize, usize) {
    let rows =
        (A_BLOCK / k.clamp(1, K_BLOCK)).next_multiple_of(kernel.mr).clamp(4 * kernel.mr, 32 * kernel.mr).min(m.max(1));
    let panels = n.div_ceil(kernel.nr).max(1);
    if threads == 1 || m * n * k < SERIAL_BELOW {
        return (rows, n.max(1));
    }
    let across = (TASKS_PER_THREAD * threads).div_ceil(m.div_ceil(rows)).min(panels);
    (rows, panels.div_ceil(across) * kernel.nr)
}

/// `B` in panels, perhaps only the first `k` steps of each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels<'a> {
    data: &'a [f32],
    k: usize,
    nr: usize,
    panel_stride: usize,
}

impl<'a> Panels<'a> {
    /// `panels_f32<nr>[k, n]`.
    pub(crate) fn new(nr: usize, data: &'a [f32], k: usize, n: usize) -> Self {
        assert!(panels_len(k, n, nr) <= data.len(), "B is too short for {n} columns of {k}");
        Panels { data, k, nr, panel_stride: k * nr }
    }

    /// The first `k` rows.
    pub(crate) fn first(self, k: usize) -> Self {
        assert!(k <= self.k);
        Panels { k, ..self }
    }

    /// The steps of `block` of panel `i`.
    fn panel(&self, i: usize, block: &KBlock) -> &'a [f32] {
        &self.data[i * self.panel_stride + block.first * self.nr..][..block.len() * self.nr]
    }
}

/// Sets `c`, whose first element is `(row, col)` of the product, to its part of `epilogue(A · B)`. `col` is the first column of a
/// panel. A run of `k` of one panel is used by all rows before the next, so that it stays in cache.
pub(crate) fn multiply_block(
    isa: Isa,
    a: &Operand<'_>,
    row: usize,
    b: &Panels<'_>,
    col: usize,
    mut c: TileMut<'_, f32>,
    epilogue: &Epilogue<'_>,
) {
    let kernel = Kernel::of(isa, b.nr);
    assert!(col.is_multiple_of(kernel.nr) && a.taps() * a.k_tap() == b.k);
    let (rows, cols) = (c.rows(), c.cols());
    let gather = cols >= GATHER_FROM * kernel.nr && a.rows_collide();
    for block in a.k_blocks(K_BLOCK) {
        let mut walk = |a: &Operand<'_>, row_in_a: usize, steps: &KBlock| {
            for first in (0..cols).step_by(kernel.nr) {
                let columns = first..cols.min(first + kernel.nr);
                let mut strip = c.part(0..rows, columns);
                let panel = b.panel((col + first) / kernel.nr, &block);
                let next = if first + kernel.nr < cols { b.panel((col + first) / kernel.nr + 1, &block) } else { &[] };
                let job = Job { a, row: row_in_a, block: steps, panel, accumulate: block.first > 0, next };
                multiply_strip(&kernel, job, &mut strip);
                if block.first + block.len() == b.k {
                    epilogue.apply(isa, row, col + first, strip);
                }
            }
        };
        if gather {
            SCRATCH.with_borrow_mut(|scratch| {
                let a = a.gather(row..row + rows, &block, scratch);
                walk(&a, 0, &a.whole());
            });
        } else {
            walk(a, row, &block);
        }
    }
}

/// Runs `job` tile by tile over all rows of `strip`, one panel wide. Each tile has a share of the next panel fetched.
fn multiply_strip(kernel: &Kernel, job: Job<'_>, strip: &mut TileMut<'_, f32>) {
    let (rows, cols) = (strip.rows(), strip.cols());
    let share = job.next.len().div_ceil(rows.div_ceil(kernel.mr).max(1)).max(1);
    let mut shares = job.next.chunks(share);
    for part in even_parts(rows, kernel.mr) {
        let tile = Job { row: job.row + part.start, next: shares.next().unwrap_or(&[]), ..job };
        (kernel.run)(&tile, strip.part(part, 0..cols));
    }
}

/// Cuts `0..len` into as few parts of at most `most` as possible, all about equally long: two tiles of 8 rows keep the arithmetic
/// units busier than one of 12 and one of 4.
fn even_parts(len: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = len.div_ceil(most);
    (0..parts).map(move |i| len * i / parts..len * (i + 1) / parts)
}
