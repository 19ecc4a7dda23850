//! Matrix products of f64. Every element is one chain of multiply-adds in ascending order of `k`, whatever the tiling. The right
//! operand is packed on the way, some columns at a time.

use std::array;

use regraft_ir::ops::Activation;

use super::workers;
use crate::{
    Isa, Scratch, Threads,
    scratch::bytes_of,
    simd::{Vectors, vector_fn},
    threads::{TileGrid, TileMut},
};

/// Rows that are multiplied together.
const ROWS: usize = 6;

/// Registers of a row of sums: with those of [`ROWS`] rows, and what they are made of, as many as every instruction set has.
const REGISTERS: usize = 2;

/// Columns that fit into the registers of every instruction set.
const COLUMNS: usize = 8 * REGISTERS;

/// The most rows of a task, about: what is packed is used that often.
const TASK: usize = 256;

/// A product `act(A · B + bias + residual)`, or `act(A · B + bias) + residual`, of f64.
#[derive(Clone, Copy, Debug)]
pub struct DoubleArgs<'a> {
    /// Rows of `A`, columns of `B`, and the length of both.
    pub sizes: [usize; 3],
    /// `A`; its rows are `lda` apart.
    pub a: &'a [f64],
    /// Distance between rows of `A`.
    pub lda: usize,
    /// `B`.
    pub b: &'a [f64],
    /// Distances between its rows and between its columns.
    pub b_strides: [usize; 2],
    /// One addend for each column.
    pub bias: Option<&'a [f64]>,
    /// An addend for each element.
    pub residual: Option<&'a [f64]>,
    /// Applied to the sum.
    pub activation: Activation,
    /// Whether the residual is added after the activation.
    pub act_before_residual: bool,
}

/// Bytes of scratch that [`double`] needs for products of length `k`.
pub fn double_scratch(threads: &Threads, k: usize) -> usize {
    workers(threads) * bytes_of::<f64>(k * COLUMNS)
}

/// Computes a product into `out`, row-major.
///
/// # Panics
///
/// If a length does not fit, or the scratch is shorter than [`double_scratch`].
pub fn double(threads: &Threads, isa: Isa, args: &DoubleArgs<'_>, out: &mut [f64], scratch: &mut Scratch<'_>) {
    let [m, n, k] = args.sizes;
    assert_eq!(out.len(), m * n);
    if out.is_empty() {
        return;
    }
    let [down, across] = args.b_strides;
    assert!(k == 0 || (m - 1) * args.lda + k <= args.a.len() && (k - 1) * down + (n - 1) * across < args.b.len());
    assert!(args.bias.is_none_or(|b| b.len() >= n) && args.residual.is_none_or(|r| r.len() >= m * n));
    let mut scratch = scratch.again();
    let mut panels = scratch.parts::<f64>(workers(threads), k * COLUMNS);
    let tile_rows = m.div_ceil(m.div_ceil(TASK)).next_multiple_of(ROWS);
    let grid = TileGrid { outer: &[], rows: m, cols: n, row_stride: n, tile_rows, tile_cols: COLUMNS };
    threads.for_each_tile_with(&mut panels, out, &grid, |panel, at, mut tile| {
        for (c, column) in (at.col..at.col + tile.cols()).enumerate() {
            let from = (0..k).map(|row| args.b[row * down + column * across]);
            panel.iter_mut().skip(c).step_by(COLUMNS).zip(from).for_each(|(y, x)| *y = x);
        }
        let rows = args.a.get(at.row * args.lda..).unwrap_or(&[]);
        multiply(isa, rows, args.lda, panel, &mut tile);
        for r in 0..tile.rows() {
            finish(args, at.row + r, at.col, tile.row(r));
        }
    });
}

/// Does to a part of a row of the product what comes after it.
fn finish(args: &DoubleArgs<'_>, row: usize, col: usize, xs: &mut [f64]) {
    if let Some(bias) = args.bias {
        xs.iter_mut().zip(&bias[col..]).for_each(|(x, b)| *x += b);
    }
    if args.act_before_residual {
        xs.iter_mut().for_each(|x| *x = args.activation.apply_f64(*x));
    }
    if let Some(residual) = args.residual {
        xs.iter_mut().zip(&residual[row * args.sizes[1] + col..]).for_each(|(x, r)| *x += r);
    }
    if !args.act_before_residual {
        xs.iter_mut().for_each(|x| *x = args.activation.apply_f64(*x));
    }
}

vector_fn! {
    /// Sets `tile` to the product of its rows, `lda` apart, with a panel.
    fn multiply<S>(simd, rows: &[f64], lda: usize, panel: &[f64], tile: &mut TileMut<'_, f64>) {
        for first in (0..tile.rows()).step_by(ROWS) {
            let rows = rows.get(first * lda..).unwrap_or(&[]);
            let mut part = tile.part(first..tile.rows().min(first + ROWS), 0..tile.cols());
            match part.rows() {
                1 => strip::<S, 1>(simd, rows, lda, panel, &mut part),
                2 => strip::<S, 2>(simd, rows, lda, panel, &mut part),
                3 => strip::<S, 3>(simd, rows, lda, panel, &mut part),
                4 => strip::<S, 4>(simd, rows, lda, panel, &mut part),
                5 => strip::<S, 5>(simd, rows, lda, panel, &mut part),
                _ => strip::<S, ROWS>(simd, rows, lda, panel, &mut part),
            }
        }
    }
}

/// The same for `R` rows, their sums in registers.
#[inline(always)]
fn strip<S: Vectors, const R: usize>(simd: S, rows: &[f64], lda: usize, panel: &[f64], tile: &mut TileMut<'_, f64>) {
    let (steps, _) = panel.as_chunks::<COLUMNS>();
    let rows: [&[f64]; R] = array::from_fn(|r| if steps.is_empty() { &[] } else { &rows[r * lda..][..steps.len()] });
    let lanes = S::LANES / 2;
    for first in (0..tile.cols()).step_by(REGISTERS * lanes) {
        let mut sums = [[simd.splat_doubles(0.0); REGISTERS]; R];
        for (p, step) in steps.iter().enumerate() {
            let step: [S::D; REGISTERS] = array::from_fn(|v| simd.load_doubles(&step[first + v * lanes..]));
            for (sums, row) in sums.iter_mut().zip(&rows) {
                let x = simd.splat_doubles(row[p]);
                sums.iter_mut().zip(step).for_each(|(sum, b)| *sum = simd.mul_add_doubles(x, b, *sum));
            }
        }
        let width = (REGISTERS * lanes).min(tile.cols() - first);
        for (r, sums) in sums.iter().enumerate() {
            let mut values = [0.0; COLUMNS];
            sums.iter().zip(values.chunks_exact_mut(lanes)).for_each(|(sum, to)| simd.store_doubles(*sum, to));
            tile.row(r)[first..first + width].copy_from_slice(&values[..width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::testing::with_scratch;

    #[test]
    fn no_products_and_rows_that_are_one() {
        let threads = Threads::single();
        let product = |k: usize, b: &[f64], b_strides| {
            let mut out = [7.0; 6];
            let (a, activation) = ([1.0, 2.0, 3.0, 4.0], Activation::None);
            let args = DoubleArgs {
                sizes: [2, 3, k],
                a: &a[..2 * k],
                lda: k,
                b,
                b_strides,
                bias: None,
                residual: None,
                activation,
                act_before_residual: false,
            };
            with_scratch(double_scratch(&threads, k), |s| double(&threads, Isa::detect(), &args, &mut out, s));
            out
        };
        assert_eq!(product(0, &[], [3, 1]), [0.0; 6]);
        // Each row of the right operand is the same one.
        assert_eq!(product(2, &[1.0, 10.0, 100.0], [0, 1]), [3.0, 30.0, 300.0, 7.0, 70.0, 700.0]);
    }
}
