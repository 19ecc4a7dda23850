//! Reductions of the middle dimension of `[outer, reduce, inner]`.

use super::GRAIN;
use crate::{
    Isa, Threads,
    simd::{lanes, simd_fn},
    threads::TileGrid,
};

/// What is computed of the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// The sum; 0 of nothing.
    Sum,
    /// The sum divided by the count; NaN of nothing.
    Mean,
    /// The maximum, or NaN if there is one; minus infinity of nothing.
    Max,
    /// The minimum, or NaN if there is one; infinity of nothing.
    Min,
}

/// Rows that are added up before their sum joins the result, so that the error grows with the logarithm of long sums.
const SPAN: usize = 64;

/// Columns of a task: partial sums stay in the first-level cache.
const COLUMNS: usize = 512;

/// `out[o, i] = reduction over r of x[o, r, i]`; `x` is `[outer, reduce, inner]`, `out` is `[outer, inner]`.
///
/// # Panics
///
/// If the lengths do not fit.
pub fn reduce(
    threads: &Threads,
    isa: Isa,
    reduction: Reduction,
    x: &[f32],
    [outer, reduce, inner]: [usize; 3],
    out: &mut [f32],
) {
    assert_eq!(x.len(), outer * reduce * inner);
    assert_eq!(out.len(), outer * inner);
    let work = (reduce * inner.min(COLUMNS)).max(1);
    let tile_rows = GRAIN.div_ceil(work).min(outer.div_ceil(4 * threads.count())).max(1);
    let grid = TileGrid { outer: &[], rows: outer, cols: inner, row_stride: inner, tile_rows, tile_cols: COLUMNS };
    threads.for_each_tile(out, &grid, |at, mut tile| {
        for r in 0..tile.rows() {
            let slab = &x[(at.row + r) * reduce * inner..][..reduce * inner];
            match tile.row(r) {
                [one] if inner == 1 => *one = whole(isa, reduction, slab),
                row => columns(isa, reduction, slab, inner, at.col, row),
            }
        }
    });
}

simd_fn! {
    fn whole<F>(reduction: Reduction, xs: &[f32]) -> f32 {
        match reduction {
            Reduction::Sum => lanes::sum(xs),
            Reduction::Mean => lanes::sum(xs) / xs.len() as f32,
            Reduction::Max => lanes::max(xs),
            Reduction::Min => lanes::min(xs),
        }
    }
}

simd_fn! {
    /// Reduces columns `first ..` of rows of `inner` elements; at most `COLUMNS` of them.
    fn columns<F>(reduction: Reduction, xs: &[f32], inner: usize, first: usize, out: &mut [f32]) {
        let end = first + out.len();
        let rows = xs.chunks_exact(inner).map(|row| &row[first..end]);
        match reduction {
            Reduction::Sum => add_up(rows, out),
            Reduction::Mean => {
                add_up(rows, out);
                let count = (xs.len() / inner) as f32;
                out.iter_mut().for_each(|y| *y /= count);
            }
            Reduction::Max => combine(rows, f32::NEG_INFINITY, lanes::greater, out),
            Reduction::Min => combine(rows, f32::INFINITY, lanes::lesser, out),
        }
    }
}

#[inline(always)]
fn combine<'a>(rows: impl Iterator<Item = &'a [f32]>, start: f32, step: impl Fn(f32, f32) -> f32, out: &mut [f32]) {
    out.fill(start);
    for row in rows {
        out.iter_mut().zip(row).for_each(|(y, x)| *y = step(*y, *x));
    }
}

#[inline(always)]
fn add_up<'a>(rows: impl Iterator<Item = &'a [f32]>, out: &mut [f32]) {
    let mut rows = rows.peekable();
    out.fill(0.0);
    let mut part = [0f32; COLUMNS];
    let part = &mut part[..out.len()];
    while rows.peek().is_some() {
        combine(rows.by_ref().take(SPAN), 0.0, |a, x| a + x, part);
        out.iter_mut().zip(&*part).for_each(|(y, x)| *y += x);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nn::testing::{assert_close, numbers, on_every_isa};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn all_of_them(outer in 1usize..9, reduced in 1usize..200, inner in prop::sample::select(vec![1, 2, 7, 64, 700])) {
            let x = numbers(outer * reduced * inner, 1);
            for reduction in [Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min] {
                on_every_isa(outer * inner, |threads, isa, out| {
                    reduce(threads, isa, reduction, &x, [outer, reduced, inner], out);
                }, |out| {
                    for (at, y) in out.iter().enumerate() {
                        let (o, i) = (at / inner, at % inner);
                        let values = (0..reduced).map(|r| f64::from(x[(o * reduced + r) * inner + i]));
                        let want = match reduction {
                            Reduction::Sum => values.sum(),
                            Reduction::Mean => values.sum::<f64>() / reduced as f64,
                            Reduction::Max => values.fold(f64::MIN, f64::max),
                            Reduction::Min => values.fold(f64::MAX, f64::min),
                        };
                        assert_close(*y, want, 1e-5);
                    }
                });
            }
        }
    }

    #[test]
    fn nan_wins() {
        for inner in [1, 2] {
            let mut out = vec![0.0; inner];
            let x: Vec<f32> = [1.0, f32::NAN, 2.0].iter().flat_map(|x| vec![*x; inner]).collect();
            reduce(&Threads::single(), Isa::detect(), Reduction::Max, &x, [1, 3, inner], &mut out);
            assert!(out.iter().all(|y| y.is_nan()));
        }
    }
}
