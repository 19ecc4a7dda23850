//! Products with a matrix of half bytes: two neighboring steps of `k` in a byte, each plus 8, and a scale for each 32 steps and column.
//! Few rows are multiplied as the bytes come from memory, which is what takes the time then; for many a panel is widened once.

use super::{Epilogue, Operand, Panels, Rows, Workspace, gathered_bytes, multiply_block, panel_width};
use crate::{
    Isa, Scratch, Threads,
    nn::workers,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, simd_fn},
    threads::{TileGrid, TileMut},
};

/// Columns of a panel.
pub const INT4_WIDTH: usize = 64;

/// Steps of `k` that have one scale.
const RUN: usize = 32;

/// From so many rows on, panels are widened.
const WIDEN_FROM: usize = 6;

/// Rows of a task, where panels are widened.
const TASK_ROWS: usize = 96;

/// A product with a matrix of half bytes.
#[derive(Clone, Copy, Debug)]
pub struct Int4Args<'a> {
    /// Rows of `A` and `C`.
    pub m: usize,
    /// Columns of `B` and `C`.
    pub n: usize,
    /// Columns of `A`, rows of `B`: a multiple of 32.
    pub k: usize,
    /// `A`, row-major.
    pub a: Floats<'a>,
    /// Distance between rows of `A`.
    pub lda: usize,
    /// Bytes of `B[k / 2, n]` in panels of [`INT4_WIDTH`] columns.
    pub b: &'a [u8],
    /// Scales, `[k / 32, n]`.
    pub scales: &'a [f32],
    /// What is done to the product before it is stored.
    pub epilogue: Epilogue<'a>,
}

/// Bytes of scratch that [`int4_product`] needs for rows of this type.
pub fn int4_scratch(isa: Isa, threads: &Threads, [m, k]: [usize; 2], a: FloatType) -> usize {
    let wide = if a == FloatType::F32 { 0 } else { m * k };
    let worker = match m < WIDEN_FROM {
        true => 0,
        false => {
            let rows = TASK_ROWS.min(m);
            bytes_of::<f32>(k * INT4_WIDTH.max(panel_width(isa)))
                + bytes_of::<u8>(gathered_bytes(rows, 1, k))
                + bytes_of::<f32>(rows * INT4_WIDTH)
        }
    };
    bytes_of::<f32>(wide) + workers(threads) * worker
}

/// Computes `C`, row-major without gaps.
///
/// # Panics
///
/// If a slice is too short for its shape, or the scratch is shorter than [`int4_scratch`].
pub fn int4_product<C: Float>(
    threads: &Threads,
    isa: Isa,
    args: &Int4Args<'_>,
    c: &mut [C],
    scratch: &mut Scratch<'_>,
) {
    let Int4Args { m, n, k, a, mut lda, b, scales, .. } = *args;
    let panel = k / 2 * INT4_WIDTH;
    assert!(k.is_multiple_of(RUN) && c.len() == m * n && scales.len() >= k / RUN * n);
    assert!(b.len() >= n.div_ceil(INT4_WIDTH) * panel && (m == 0 || a.len() >= (m - 1) * lda + k));
    args.epilogue.check(m, n);
    let mut scratch = scratch.again();
    let a = match a {
        Floats::F32(same) => same,
        _ => {
            let wide = scratch.take::<f32>(m * k);
            threads.for_each_chunk(wide, k, |i, row| a.load(isa, i * lda, row));
            lda = k;
            &*wide
        }
    };
    let of = |col: usize| (&b[col / INT4_WIDTH * panel..][..panel], &scales[col..]);
    if m < WIDEN_FROM {
        let grid = TileGrid { outer: &[], rows: m, cols: n, row_stride: n, tile_rows: m, tile_cols: INT4_WIDTH };
        return threads.for_each_tile(c, &grid, |at, mut tile| {
            let (panel, scales) = of(at.col);
            let (cols, mut sums) = (tile.cols(), [0f32; WIDEN_FROM * INT4_WIDTH]);
            for (r, sums) in sums.chunks_exact_mut(INT4_WIDTH).take(m).enumerate() {
                row_times_panel(isa, &a[r * lda..][..k], panel, (scales, n, cols), sums);
            }
            args.epilogue.apply(isa, 0, at.col, &mut TileMut::new(&mut sums, m, cols, INT4_WIDTH));
            for (r, sums) in sums.chunks_exact(INT4_WIDTH).take(m).enumerate() {
                C::narrow(isa, &sums[..cols], tile.row(r));
            }
        });
    }
    let (rows, nr) = (TASK_ROWS.min(m), panel_width(isa));
    let mut parts: Vec<_> = (0..workers(threads))
        .map(|_| {
            let wide = scratch.take::<f32>(k * INT4_WIDTH.max(nr));
            let gathered = scratch.take(gathered_bytes(rows, 1, k));
            (wide, Workspace { a: gathered, sums: scratch.take(rows * INT4_WIDTH) })
        })
        .collect();
    let operand = Operand::new(Floats::F32(a), Rows::Strided { lda }, m, 1, k);
    let grid = TileGrid { outer: &[], rows: m, cols: n, row_stride: n, tile_rows: rows, tile_cols: INT4_WIDTH };
    threads.for_each_tile_with(&mut parts, c, &grid, |(wide, work), at, tile| {
        let (panel, scales) = of(at.col);
        let cols = tile.cols();
        widen(isa, panel, (scales, n, cols), nr, wide);
        // The panels of the product begin with this one; its columns are counted from there.
        let panels = Panels::new(nr, Floats::F32(wide), k, INT4_WIDTH);
        let (height, mut sums) = (tile.rows(), [0f32; TASK_ROWS * INT4_WIDTH]);
        let product = TileMut::new(&mut sums, height, cols, INT4_WIDTH);
        multiply_block(isa, &operand, at.row, &panels, 0, product, &Epilogue::default(), work);
        let mut tile = tile;
        args.epilogue.apply(isa, at.row, at.col, &mut TileMut::new(&mut sums, height, cols, INT4_WIDTH));
        for (r, sums) in sums.chunks_exact(INT4_WIDTH).take(height).enumerate() {
            C::narrow(isa, &sums[..cols], tile.row(r));
        }
    });
}

/// The two whole numbers of a byte.
#[inline(always)]
fn halves(byte: u8) -> [f32; 2] {
    [(i32::from(byte & 15) - 8) as f32, (i32::from(byte >> 4) - 8) as f32]
}

simd_fn! {
    /// `sums += row · panel`; `scales` are those of the panel's first column on, rows of them `.1` apart, `.2` columns are there.
    fn row_times_panel<F>(row: &[f32], panel: &[u8], scales: (&[f32], usize, usize), sums: &mut [f32]) {
        let (scales, distance, cols) = scales;
        let runs = row.as_chunks::<RUN>().0.iter().zip(panel.as_chunks::<{ RUN / 2 * INT4_WIDTH }>().0);
        for (run, (row, bytes)) in runs.enumerate() {
            let mut acc = [0f32; INT4_WIDTH];
            for (x, bytes) in row.as_chunks::<2>().0.iter().zip(bytes.as_chunks::<INT4_WIDTH>().0) {
                for (acc, byte) in acc.iter_mut().zip(bytes) {
                    let [first, second] = halves(*byte);
                    *acc = F::mul_add(x[1], second, F::mul_add(x[0], first, *acc));
                }
            }
            let scales = &scales[run * distance..][..cols];
            for ((sum, acc), scale) in sums.iter_mut().zip(&acc).zip(scales) {
                *sum = F::mul_add(*acc, *scale, *sum);
            }
        }
    }
}

simd_fn! {
    /// Writes a panel as floats, in panels of `nr` columns.
    fn widen<F>(panel: &[u8], scales: (&[f32], usize, usize), nr: usize, out: &mut [f32]) {
        let (scales, distance, cols) = scales;
        let k = panel.len() / INT4_WIDTH * 2;
        for (i, bytes) in panel.as_chunks::<INT4_WIDTH>().0.iter().enumerate() {
            let mut scale = [0f32; INT4_WIDTH];
            scale[..cols].copy_from_slice(&scales[2 * i / RUN * distance..][..cols]);
            let mut steps = [[0f32; INT4_WIDTH]; 2];
            for (c, byte) in bytes.iter().enumerate() {
                let [first, second] = halves(*byte);
                (steps[0][c], steps[1][c]) = (first * scale[c], second * scale[c]);
            }
            for (half, step) in steps.iter().enumerate() {
                for (p, part) in step.chunks_exact(nr).enumerate() {
                    out[p * k * nr + (2 * i + half) * nr..][..nr].copy_from_slice(part);
                }
            }
        }
    }
}
