//! Adapters on the way to the slots: tiles of `W' = W + Σ terms` that stay in the first-level cache.
//!
//! An element's value depends on its row and column alone, never on the tile it is computed in: products add up in the order
//! of the rank, in f32, and the sum is added to `W` last.

use half::{bf16, f16};
use regraft_backend::adapter::{Delta, LowRank, MagnitudeAxis, Norms, Overlay, Term};
use regraft_tensor::DType;

use super::SourceElement;
use crate::{
    Isa, Threads,
    simd::{Fma, prefetch, simd_fn},
};

/// Lines of a tile.
pub(super) const TILE_ROWS: usize = 16;

/// Floats of a line.
pub(super) const TILE_COLS: usize = 128;

/// Elements of a line, side by side in one row of the source.
pub(super) type Tile = [[f32; TILE_COLS]; TILE_ROWS];

/// Elements that one task of a merge handles at least.
const GRAIN: usize = 32 * 1024;

/// The lines of a tile: line `i` is the elements `col .. col + len` of row `rows[i]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lines<'a> {
    pub(super) rows: &'a [usize],
    pub(super) col: usize,
    pub(super) len: usize,
}

/// Computes lines of `W'` into the first lines of `out`. `data` is the whole source `W`.
pub(super) fn merge_tile<T: SourceElement>(isa: Isa, overlay: &Overlay, data: &[T], lines: Lines<'_>, out: &mut Tile) {
    let cols = overlay.cols;
    match (overlay.plain(), T::as_f32(data)) {
        // `W` is added while the product is in registers.
        (Some(product), Some(data)) => {
            for row in lines.rows {
                prefetch(&data[row * cols + lines.col..][..lines.len]);
            }
            multiply(isa, product, Some(data), cols, lines, out);
        }
        _ => {
            let mut sum = [[0.0; TILE_COLS]; TILE_ROWS];
            load(cols, data, lines, out);
            overlay.terms.iter().for_each(|term| add_term(isa, cols, term, out, lines, &mut sum));
            for (out, sum) in out.iter_mut().zip(&sum).take(lines.rows.len()) {
                out[..lines.len].iter_mut().zip(sum).for_each(|(w, d)| *w += d);
            }
        }
    }
    match overlay.dtype {
        DType::F16 => round::<f16>(lines, out),
        DType::BF16 => round::<bf16>(lines, out),
        _ => {}
    }
}

fn load<T: SourceElement>(cols: usize, data: &[T], lines: Lines<'_>, out: &mut Tile) {
    for (out, row) in out.iter_mut().zip(lines.rows) {
        let from = &data[row * cols + lines.col..][..lines.len];
        out.iter_mut().zip(from).for_each(|(y, x)| *y = x.to_f32());
    }
}

/// Rounds to what the engine holds the source in.
fn round<T: SourceElement>(lines: Lines<'_>, tile: &mut Tile) {
    for line in tile.iter_mut().take(lines.rows.len()) {
        line[..lines.len].iter_mut().for_each(|x| *x = T::from_f32(*x).to_f32());
    }
}

/// Adds a term to `sum`; `base` is `W`.
fn add_term(isa: Isa, cols: usize, term: &Term, base: &Tile, lines: Lines<'_>, sum: &mut Tile) {
    let mut delta = [[0.0; TILE_COLS]; TILE_ROWS];
    delta_tile(isa, cols, &term.delta, lines, &mut delta);
    for (i, &row) in lines.rows.iter().enumerate() {
        let (sum, delta, base) = (&mut sum[i][..lines.len], &delta[i], &base[i]);
        match &term.norms {
            None => sum.iter_mut().zip(delta).for_each(|(s, d)| *s += d),
            Some(Norms { axis: MagnitudeAxis::Rows, factors, .. }) => {
                let by = factors[row];
                sum.iter_mut().zip(delta).zip(base).for_each(|((s, d), w)| *s += by * (w + d) - w);
            }
            Some(Norms { axis: MagnitudeAxis::Columns, factors, .. }) => {
                let factors = &factors[lines.col..][..lines.len];
                sum.iter_mut().zip(delta).zip(base).zip(factors).for_each(|(((s, d), w), by)| *s += by * (w + d) - w);
            }
        }
    }
}

/// Writes the lines of a delta.
fn delta_tile(isa: Isa, cols: usize, delta: &Delta, lines: Lines<'_>, out: &mut Tile) {
    match delta {
        Delta::LowRank(product) => multiply(isa, product, None, cols, lines, out),
        Delta::Hadamard(first, second) => {
            let mut other = [[0.0; TILE_COLS]; TILE_ROWS];
            multiply(isa, first, None, cols, lines, out);
            multiply(isa, second, None, cols, lines, &mut other);
            out.iter_mut().flatten().zip(other.iter().flatten()).for_each(|(x, y)| *x *= y);
        }
        Delta::Kronecker { left, right } => {
            let inner_rows = right.data.len() / right.cols.max(1);
            for (out, row) in out.iter_mut().zip(lines.rows) {
                let left = &left.data[row / inner_rows * left.cols..][..left.cols];
                let inner = &right.data[row % inner_rows * right.cols..][..right.cols];
                for (x, col) in out[..lines.len].iter_mut().zip(lines.col..) {
                    *x = left[col / right.cols] * inner[col % right.cols];
                }
            }
        }
        Delta::Full { delta, scale } => {
            let values: &[f32] = delta.as_slice().expect("checked when the overlay was made");
            for (out, row) in out.iter_mut().zip(lines.rows) {
                let from = &values[row * cols + lines.col..][..lines.len];
                out.iter_mut().zip(from).for_each(|(x, d)| *x = d * scale);
            }
        }
    }
}

/// Columns that are computed together: two vectors of AVX-512.
const WIDE: usize = 32;

/// Rows that are computed together: with [`WIDE`], as many independent sums as hide the latency of a multiply-add.
const TALL: usize = 4;

/// [`TALL`] rows of a product, [`WIDE`] columns of each; the sums stay in registers.
#[inline(always)]
fn block<F: Fma>(ups: [&[f32]; TALL], down: &[f32], cols: usize) -> [[f32; WIDE]; TALL] {
    let mut sums = [[0.0; WIDE]; TALL];
    let rank = ups[0].len();
    let ups = ups.map(|up| &up[..rank]);
    for r in 0..rank {
        let Some(line) = down[r * cols..].first_chunk::<WIDE>() else { break };
        for (sums, up) in sums.iter_mut().zip(&ups) {
            let by = up[r];
            for (sum, x) in sums.iter_mut().zip(line) {
                *sum = F::mul_add(by, *x, *sum);
            }
        }
    }
    sums
}

simd_fn! {
    /// Writes `W + up @ down`, or the product alone where no `W` is given, to the lines of `out`.
    fn multiply<F>(product: &LowRank, source: Option<&[f32]>, cols: usize, lines: Lines<'_>, out: &mut Tile) {
        let (rank, values) = (product.rank(), product.values());
        let up_of = |row: usize| &values.up[row * rank..][..rank];
        let whole = lines.len / WIDE * WIDE;
        // Columns outside, rows inside: the block of `down` stays in the first-level cache.
        for at in (0..whole).step_by(WIDE) {
            for (rows, out) in lines.rows.chunks(TALL).zip(out.chunks_mut(TALL)) {
                // A last group of fewer rows computes its first row more than once.
                let ups: [&[f32]; TALL] = std::array::from_fn(|i| up_of(rows.get(i).copied().unwrap_or(rows[0])));
                let sums = block::<F>(ups, &values.down[lines.col + at..], cols);
                for ((out, sums), row) in out.iter_mut().zip(&sums).zip(rows) {
                    write(source.map(|w| &w[row * cols + lines.col + at..][..WIDE]), sums, &mut out[at..at + WIDE]);
                }
            }
        }
        for (row, out) in lines.rows.iter().zip(out.iter_mut()) {
            let (out, up) = (&mut out[whole..lines.len], up_of(*row));
            let mut sums = [0.0; WIDE];
            let sums = &mut sums[..out.len()];
            for (by, down) in up.iter().zip(values.down.chunks_exact(cols)) {
                let down = &down[lines.col + whole..][..out.len()];
                sums.iter_mut().zip(down).for_each(|(sum, x)| *sum = F::mul_add(*by, *x, *sum));
            }
            write(source.map(|w| &w[row * cols + lines.col + whole..][..out.len()]), sums, out);
        }
    }
}

/// `W + sums`, or the sums alone.
#[inline(always)]
fn write(source: Option<&[f32]>, sums: &[f32], out: &mut [f32]) {
    match source {
        Some(source) => out.iter_mut().zip(source).zip(sums).for_each(|((y, w), d)| *y = w + d),
        None => out.copy_from_slice(sums),
    }
}

/// Writes elements of `W'`, starting at element `first`.
///
/// # Panics
/// When they reach beyond the source, or `data` is not of the overlay's size.
pub(crate) fn merge<T: SourceElement>(
    threads: &Threads,
    isa: Isa,
    overlay: &Overlay,
    data: &[T],
    first: usize,
    out: &mut [T],
) {
    assert_eq!(data.len(), overlay.rows * overlay.cols, "an overlay of the source's size");
    assert!(first + out.len() <= data.len(), "a merge reaches beyond its source");
    let cols = overlay.cols.max(1);
    threads.for_each_chunk(out, GRAIN.next_multiple_of(cols), |task, chunk| {
        let mut at = first + task * GRAIN.next_multiple_of(cols);
        let mut rest = chunk;
        while !rest.is_empty() {
            let (row, col) = (at / cols, at % cols);
            // Whole rows together; parts of rows, at the ends, one by one.
            let rows = if col == 0 { (rest.len() / cols).clamp(1, TILE_ROWS) } else { 1 };
            let len = if rows == 1 { rest.len().min(cols - col) } else { rows * cols };
            let (now, after) = rest.split_at_mut(len);
            merge_rows(isa, overlay, data, (row, rows, col), now);
            (rest, at) = (after, at + len);
        }
    });
}

fn merge_rows<T: SourceElement>(
    isa: Isa,
    overlay: &Overlay,
    data: &[T],
    (row, rows, col): (usize, usize, usize),
    out: &mut [T],
) {
    let numbers: [usize; TILE_ROWS] = std::array::from_fn(|i| row + i);
    let width = out.len() / rows;
    let mut tile = [[0.0; TILE_COLS]; TILE_ROWS];
    for start in (0..width).step_by(TILE_COLS) {
        let len = TILE_COLS.min(width - start);
        let lines = Lines { rows: &numbers[..rows], col: col + start, len };
        merge_tile(isa, overlay, data, lines, &mut tile);
        for (line, out) in tile.iter().zip(out.chunks_exact_mut(width)) {
            out[start..start + len].iter_mut().zip(line).for_each(|(y, x)| *y = T::from_f32(*x));
        }
    }
}

/// Fills in the factors of every term that has norms. One pass over the source for each.
pub(crate) fn fill_norms<T: SourceElement>(threads: &Threads, isa: Isa, overlay: &mut Overlay, data: &[T]) {
    let (rows, cols) = (overlay.rows, overlay.cols);
    for Term { delta, norms } in &mut overlay.terms {
        let Some(norms) = norms else { continue };
        let mut squares = vec![0f64; norms.magnitude.len()];
        match norms.axis {
            MagnitudeAxis::Rows => threads.for_each_chunk(&mut squares, TILE_ROWS, |task, squares| {
                let numbers: [usize; TILE_ROWS] = std::array::from_fn(|i| task * TILE_ROWS + i);
                for col in (0..cols).step_by(TILE_COLS) {
                    let lines = Lines { rows: &numbers[..squares.len()], col, len: TILE_COLS.min(cols - col) };
                    let tile = updated(isa, cols, delta, data, lines);
                    for (square, line) in squares.iter_mut().zip(&tile) {
                        line[..lines.len].iter().for_each(|x| *square += f64::from(*x) * f64::from(*x));
                    }
                }
            }),
            MagnitudeAxis::Columns => threads.for_each_chunk(&mut squares, TILE_COLS, |task, squares| {
                for first in (0..rows).step_by(TILE_ROWS) {
                    let numbers: [usize; TILE_ROWS] = std::array::from_fn(|i| first + i);
                    let here = TILE_ROWS.min(rows - first);
                    let lines = Lines { rows: &numbers[..here], col: task * TILE_COLS, len: squares.len() };
                    for line in updated(isa, cols, delta, data, lines).iter().take(here) {
                        squares.iter_mut().zip(line).for_each(|(s, x)| *s += f64::from(*x) * f64::from(*x));
                    }
                }
            }),
        }
        let factor = |(wanted, square): (&f32, &f64)| (f64::from(*wanted) / square.sqrt()) as f32;
        norms.factors = norms.magnitude.iter().zip(&squares).map(factor).collect();
    }
}

/// `W + delta`.
fn updated<T: SourceElement>(isa: Isa, cols: usize, delta: &Delta, data: &[T], lines: Lines<'_>) -> Tile {
    let (mut base, mut sum) = ([[0.0; TILE_COLS]; TILE_ROWS], [[0.0; TILE_COLS]; TILE_ROWS]);
    load(cols, data, lines, &mut base);
    delta_tile(isa, cols, delta, lines, &mut sum);
    base.iter_mut().flatten().zip(sum.iter().flatten()).for_each(|(w, d)| *w += d);
    base
}

#[cfg(test)]
#[path = "overlay_tests.rs"]
mod tests;
