//! Tiling: which task computes which part of `C`, and in which order a task walks through it.

use std::ops::Range;

use half::bf16;
use regraft_ir::ops::Activation;

use super::{
    Epilogue, Operand, Rows,
    epilogue::{Left, MAX_WIDTH, activate},
    micro::{End, Job, Kernel, shares},
    operand::{KBlock, gathered_bytes, k_blocks},
};
use crate::{
    Isa, Scratch, Threads,
    pack::panel_bytes,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats},
    threads::{TASKS_PER_THREAD, TileGrid, TileMut},
};

/// Elements of `A` that a task goes through again and again, panel after panel: about half a second-level cache.
const A_BLOCK: usize = 64 * 1024;

/// Floats of sums that a task keeps between runs of `k` where `C` itself cannot hold them.
const SUMS: usize = 64 * 1024;

/// Bytes of panels that stay in a first-level cache while a task goes through its rows: it then finishes some rows after others, and
/// writes `C` as it lies in memory.
const B_BLOCK: usize = 24 * 1024;

/// Panels that must be waiting before it pays to copy rows that collide in cache.
const GATHER_FROM: usize = 4;

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
        let (rows, cols) = self.block(isa, threads);
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
    pub(super) fn block(&self, isa: Isa, threads: &Threads) -> (usize, usize) {
        let (kernel, k) = (self.kernel(isa), self.k());
        let (mr, run) = (kernel.mr, kernel.cut().most);
        let least = if kernel.tiles { 2 } else { 4 };
        let rows = (A_BLOCK / k.clamp(1, run)).next_multiple_of(mr).clamp(least * mr, 32 * mr);
        // Blocks of about the same size: of a short one all panels would be fetched for few rows.
        let rows = self.m.div_ceil(self.m.div_ceil(rows).max(1)).next_multiple_of(mr).min(self.m.max(1));
        let panels = self.n.div_ceil(kernel.nr).max(1);
        let most = if self.c != FloatType::F32 && k > run { (SUMS / rows / kernel.nr).max(1) } else { panels };
        let count = threads.count();
        if count == 1 || self.m * self.n * k < SERIAL_BELOW {
            return (rows, if most < panels { most * kernel.nr } else { self.n.max(1) });
        }
        if self.m < self.n {
            return (rows, threads.per_task(panels, 1).min(most) * kernel.nr);
        }
        // Each thread has rows of its own, which it made itself in the node before, if that was as large.
        let (blocks, tasks) = (self.m.div_ceil(rows), TASKS_PER_THREAD * count);
        let (blocks, rows) = if self.m >= least * mr * count && blocks < tasks {
            let even = blocks.next_multiple_of(count);
            (even, self.m.div_ceil(even))
        } else {
            (blocks, rows)
        };
        (rows, panels.div_ceil(tasks.div_ceil(blocks)).clamp(1, most) * kernel.nr)
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
    let (tile_rows, tile_cols) = shape.block(isa, threads);
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

    /// The steps of `block` of some panels, if these lie in a row, and of the first of them otherwise.
    fn panels(&self, panels: Range<usize>, block: &KBlock) -> &'a [u8] {
        if panels.is_empty() {
            return &[];
        }
        if block.len() == self.k {
            return &self.data[panels.start * self.panel_stride..panels.end * self.panel_stride];
        }
        self.panel(panels.start, block)
    }

    /// The steps of `block` of panel `i`.
    fn panel(&self, i: usize, block: &KBlock) -> &'a [u8] {
        let start = i * self.panel_stride + block.first * self.nr * self.ty.size();
        &self.data[start..][..panel_bytes(self.ty, block.len(), self.nr)]
    }
}

/// Products of f32 with one panel at a time, for work that makes many of them of few rows.
pub(crate) struct PanelProduct {
    kernel: Kernel,
}

impl PanelProduct {
    /// For panels of `nr` columns.
    pub(crate) fn new(isa: Isa, nr: usize) -> Self {
        PanelProduct { kernel: Kernel::of(isa, FloatType::F32, FloatType::F32, nr) }
    }

    /// Sets `c` to the product of `a` and a panel of `b`, as wide as the panel. The same panel of `next` is fetched meanwhile.
    pub(crate) fn run(
        &self,
        a: &Operand<'_>,
        b: &Panels<'_>,
        panel: usize,
        next: Option<&Panels<'_>>,
        mut c: TileMut<'_, f32>,
    ) {
        for block in k_blocks(a.taps(), a.k_tap(), self.kernel.cut()) {
            let next = next.map_or(&[][..], |next| next.panel(panel, &block));
            let (panel, accumulate) = (b.panel(panel, &block), block.first > 0);
            let job = Job { a, row: 0, block: &block, panel, accumulate, next, end: None };
            (self.kernel.run)(&job, c.again());
        }
    }
}

/// A panel, and what becomes of its products.
struct Strip<'a> {
    panel: &'a [u8],
    /// Its columns of the part of `C`.
    columns: Range<usize>,
    /// What the kernel does to the sums, and what is done to what it stored.
    end: Option<End<'a>>,
    left: Left,
}

/// Takes the activation out of what is left of each strip, if that is all that is left of any: long rows of several strips take less
/// time than short ones of each.
fn take_activation(strips: &mut [Strip<'_>]) -> Option<Activation> {
    let Some(Strip { left: Left::Activation(activation), .. }) = strips.first() else { return None };
    let activation = *activation;
    if !strips.iter().all(|strip| matches!(strip.left, Left::Activation(_))) {
        return None;
    }
    strips.iter_mut().for_each(|strip| strip.left = Left::Nothing);
    Some(activation)
}

/// Sets `c`, whose first element is `(row, col)` of the product, to its part of `epilogue(A · B)`. `col` is the first column of a
/// panel. A run of `k` of some panels ([`B_BLOCK`]), or of one, is used by all rows before the next, so that it stays in cache. The next
/// panels are fetched meanwhile.
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
    let nr = kernel.nr;
    assert!(col.is_multiple_of(nr) && a.taps() * a.k_tap() == b.k);
    let (rows, cols, pairs) = (c.rows(), c.cols(), b.ty == FloatType::Bf16);
    let straddles = pairs && a.taps() > 1 && !a.k_tap().is_multiple_of(2);
    let collides = cols >= GATHER_FROM * nr && a.rows_collide();
    let gather = kernel.a != a.ty() || straddles || collides || !kernel.reaches(a);
    let several = a.taps() * a.k_tap() > kernel.cut().most;
    let Workspace { a: gathered, sums } = work;
    #[cfg(target_arch = "x86_64")]
    let _configured = kernel.tiles.then(super::tiles::configure);
    let (mut buffer, mut widened) = ([0f32; MAX_WIDTH], Vec::new());
    let rounding = match C::TYPE {
        FloatType::Bf16 => {
            widened.resize(cols, 0.0);
            epilogue.rounding(isa, [row, col], &mut widened)
        }
        _ => None,
    };
    let bias_of_last = epilogue.bias_of_last(col + cols / nr * nr..col + cols, &mut buffer);
    let mut strips: Vec<Strip<'_>> = Vec::new();
    for block in k_blocks(a.taps(), a.k_tap(), kernel.cut()) {
        let (accumulate, last) = (block.first > 0, block.first + block.len() == b.k);
        let gathered = gather.then(|| a.gather(isa, row..row + rows, &block, kernel.a, kernel.least_rows(), gathered));
        let whole = gathered.as_ref().map(Operand::whole);
        let (a, row_in_a, steps) = match (&gathered, &whole) {
            (Some(a), Some(steps)) => (a, 0, steps),
            _ => (a, row, &block),
        };
        let together = if kernel.tiles { 1 } else { (B_BLOCK / panel_bytes(b.ty, block.len(), nr).max(1)).max(1) };
        for first in (0..cols).step_by(together * nr) {
            let after = cols.min(first + together * nr);
            strips.clear();
            strips.extend((first..after).step_by(nr).map(|at| {
                let (columns, panel) = (at..cols.min(at + nr), b.panel((col + at) / nr, &block));
                let (end, left) = match last {
                    false => (None, Left::Nothing),
                    true if kernel.ends => {
                        epilogue.split(row, col + at, [columns.len(), nr, kernel.lanes], bias_of_last)
                    }
                    true => (None, Left::Epilogue),
                };
                Strip { panel, columns, end, left }
            }));
            let following = (col + after).div_ceil(nr)..(col + cols.min(after + together * nr)).div_ceil(nr);
            let next = b.panels(following, &block);
            let mut shares = shares(next, kernel.groups(rows, block.len()).count() * strips.len());
            let activation = if C::TYPE == FloatType::F32 { take_activation(&mut strips) } else { None };
            for part in kernel.groups(rows, block.len()) {
                for strip in &strips {
                    let (next, end) = (shares.next().unwrap_or(&[]), strip.end.map(|end| end.after_rows(part.start)));
                    let at = row_in_a + part.start;
                    let job = Job { a, row: at, block: steps, panel: strip.panel, accumulate, next, end };
                    let mut to = c.part(part.clone(), strip.columns.clone());
                    let at = [row + part.start, col + strip.columns.start];
                    if let Some(mut tile) = to.cast::<f32>() {
                        (kernel.run)(&job, tile.again());
                        strip.left.finish(isa, epilogue, at, &mut tile);
                        continue;
                    }
                    // Sums of one panel have room for all its columns: whole vectors take less time.
                    let width = strip.columns.len();
                    let (from, width, ld) = match several {
                        true => (part.start * cols + strip.columns.start, width, cols),
                        false => (0, width.next_multiple_of(kernel.lanes), nr),
                    };
                    let mut tile = TileMut::new(&mut sums[from..], part.len(), width, ld);
                    let rounding = rounding.filter(|_| last).map(|all| all.part(part.start, strip.columns.start));
                    let finished = 0..strip.columns.len();
                    if let (Some(end), Some(rounds), Some(to)) = (rounding, kernel.rounds, to.cast::<bf16>()) {
                        rounds(&job, end, accumulate.then(|| tile.part(0..part.len(), finished)), to);
                        continue;
                    }
                    (kernel.run)(&job, tile.again());
                    if !last {
                        continue;
                    }
                    let mut tile = tile.part(0..part.len(), finished);
                    if let (Some(end), Some(mut to)) = (rounding, to.cast::<bf16>()) {
                        end.left(strip.left).run(&mut tile, &mut to);
                    } else {
                        strip.left.finish(isa, epilogue, at, &mut tile);
                        (0..to.rows()).for_each(|r| C::narrow(isa, tile.row(r), to.row(r)));
                    }
                }
                if let (Some(activation), Some(mut tile)) = (activation, c.part(part, first..after).cast::<f32>()) {
                    activate(isa, activation, &mut tile);
                }
            }
        }
    }
}
