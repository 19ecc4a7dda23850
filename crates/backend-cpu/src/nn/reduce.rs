//! Reductions of the middle dimension of `[outer, reduce, inner]`.

use super::{GRAIN, rows_of_tile};
use crate::{
    Isa, Threads,
    simd::{Float, Floats, Vectors, lanes, simd_fn, vector_fn},
    threads::{TASKS_PER_THREAD, TileGrid},
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
    /// The product; 1 of nothing.
    Prod,
}

/// Rows that are added up before their sum joins the result, so that the error grows with the logarithm of long sums.
const SPAN: usize = 64;

/// The most columns of a task: partial sums stay in the first-level cache.
const COLUMNS: usize = 512;

/// Of which the columns of a task are a multiple.
const STRIP: usize = 64;

/// `out[o, i] = reduction over r of x[o, r, i]`; `x` is `[outer, reduce, inner]`, `out` is `[outer, inner]`.
///
/// # Panics
///
/// If the lengths do not fit.
pub fn reduce<T: Float>(
    threads: &Threads,
    isa: Isa,
    reduction: Reduction,
    x: Floats<'_>,
    [outer, reduce, inner]: [usize; 3],
    out: &mut [T],
) {
    assert_eq!(x.len(), outer * reduce * inner);
    assert_eq!(out.len(), outer * inner);
    // Few results are shared out by columns.
    let across = (TASKS_PER_THREAD * threads.count()).div_ceil(outer.max(1));
    let tile_cols = inner.div_ceil(across).max(GRAIN.div_ceil(reduce.max(1))).next_multiple_of(STRIP).min(COLUMNS);
    let work = (reduce * inner.min(tile_cols)).max(1);
    let tile_rows = rows_of_tile(threads, outer, work);
    let grid = TileGrid { outer: &[], rows: outer, cols: inner, row_stride: inner, tile_rows, tile_cols };
    threads.for_each_tile(out, &grid, |at, mut tile| {
        for r in 0..tile.rows() {
            let slab = x.from((at.row + r) * reduce * inner).first(reduce * inner);
            if inner == 1 {
                T::narrow(isa, &[whole_of(isa, reduction, slab)], tile.row(r));
                continue;
            }
            let mut results = [0f32; COLUMNS];
            let results = &mut results[..tile.cols()];
            columns(isa, reduction, slab, inner, at.col, results);
            T::narrow(isa, results, tile.row(r));
        }
    });
}

/// Elements that are widened together.
const BLOCK: usize = 4096;

/// Reduces a contiguous run.
fn whole_of(isa: Isa, reduction: Reduction, xs: Floats<'_>) -> f32 {
    if let Floats::F32(xs) = xs {
        return whole(isa, reduction, xs);
    }
    let mut buffer = [0f32; BLOCK];
    let of_part = if reduction == Reduction::Mean { Reduction::Sum } else { reduction };
    let parts: Vec<f32> = (0..xs.len())
        .step_by(BLOCK)
        .map(|at| whole(isa, of_part, xs.read(isa, at, &mut buffer[..BLOCK.min(xs.len() - at)])))
        .collect();
    let joined = whole(isa, of_part, &parts);
    if reduction == Reduction::Mean { joined / xs.len() as f32 } else { joined }
}

simd_fn! {
    fn whole<F>(reduction: Reduction, xs: &[f32]) -> f32 {
        match reduction {
            Reduction::Sum => lanes::sum(xs),
            Reduction::Mean => lanes::sum(xs) / xs.len() as f32,
            Reduction::Max => lanes::max(xs),
            Reduction::Min => lanes::min(xs),
            // In f64 what is joined does not leave the range, where it would pass slowly through subnormal numbers.
            Reduction::Prod => {
                let lanes = lanes::reduced(xs, 1f32, |a, x| a * x);
                lanes::joined(std::array::from_fn(|i| f64::from(lanes[i])), |a, b| a * b) as f32
            }
        }
    }
}

/// Reduces columns `first ..` of rows of `inner` elements; at most `COLUMNS` of them.
fn columns(isa: Isa, reduction: Reduction, xs: Floats<'_>, inner: usize, first: usize, out: &mut [f32]) {
    let count = xs.len() / inner;
    let mut buffer = [0f32; COLUMNS];
    let buffer = &mut buffer[..out.len()];
    match reduction {
        Reduction::Sum | Reduction::Mean => {
            out.fill(0.0);
            if let Floats::F32(xs) = xs {
                sum_columns(isa, xs, inner, first, out);
            } else {
                let mut part = [0f32; COLUMNS];
                let part = &mut part[..out.len()];
                for start in (0..count).step_by(SPAN) {
                    part.fill(0.0);
                    for row in start..count.min(start + SPAN) {
                        combine(isa, Reduction::Sum, xs.read(isa, row * inner + first, buffer), part);
                    }
                    combine(isa, Reduction::Sum, part, out);
                }
            }
            if reduction == Reduction::Mean {
                out.iter_mut().for_each(|y| *y /= count as f32);
            }
        }
        Reduction::Max | Reduction::Min | Reduction::Prod => {
            out.fill(match reduction {
                Reduction::Max => f32::NEG_INFINITY,
                Reduction::Min => f32::INFINITY,
                _ => 1.0,
            });
            for row in 0..count {
                combine(isa, reduction, xs.read(isa, row * inner + first, buffer), out);
            }
        }
    }
}

vector_fn! {
    /// Adds columns `first ..` of rows of `inner` elements to `out`, in the order in which it is done row by row.
    fn sum_columns<S>(simd, xs: &[f32], inner: usize, first: usize, out: &mut [f32]) {
        let mut at = 0;
        while at < out.len() {
            let left = &mut out[at..];
            at += if left.len() >= 4 * S::LANES {
                sum_registers::<S, 4>(simd, xs, (inner, first + at), &mut left[..4 * S::LANES])
            } else {
                let some = left.len().min(S::LANES);
                sum_registers::<S, 1>(simd, xs, (inner, first + at), &mut left[..some])
            };
        }
    }
}

/// Adds columns `first ..` to `out`, which are those of `N` registers, or of one that has fewer. Returns how many there are.
#[inline(always)]
fn sum_registers<S: Vectors, const N: usize>(
    simd: S,
    xs: &[f32],
    (inner, first): (usize, usize),
    out: &mut [f32],
) -> usize {
    let (cols, count) = (out.len(), xs.len() / inner);
    let whole = cols == N * S::LANES;
    for start in (0..count).step_by(SPAN) {
        let mut part = [simd.splat(0.0); N];
        for row in start..count.min(start + SPAN) {
            let row = &xs[row * inner + first..][..cols];
            for (i, part) in part.iter_mut().enumerate() {
                *part = simd.add(*part, load_register(simd, row, i, whole));
            }
        }
        for (i, part) in part.into_iter().enumerate() {
            let sum = simd.add(load_register(simd, out, i, whole), part);
            if whole { simd.store(sum, &mut out[i * S::LANES..]) } else { simd.store_some(sum, out) }
        }
    }
    cols
}

/// Register `i` of some `whole` ones, or the only one, which may have fewer elements.
#[inline(always)]
fn load_register<S: Vectors>(simd: S, from: &[f32], i: usize, whole: bool) -> S::V {
    if whole { simd.load(&from[i * S::LANES..]) } else { simd.load_some(from) }
}

simd_fn! {
    /// Joins each element of `x` to that of `out`.
    pub(super) fn combine<F>(reduction: Reduction, x: &[f32], out: &mut [f32]) {
        match reduction {
            Reduction::Sum | Reduction::Mean => out.iter_mut().zip(x).for_each(|(y, x)| *y += x),
            Reduction::Max => out.iter_mut().zip(x).for_each(|(y, x)| *y = lanes::greater(*y, *x)),
            Reduction::Min => out.iter_mut().zip(x).for_each(|(y, x)| *y = lanes::lesser(*y, *x)),
            Reduction::Prod => out.iter_mut().zip(x).for_each(|(y, x)| *y *= x),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        Scratch,
        nn::testing::{Compute, Numbers, assert_close, in_every_type, numbers},
        simd::FloatType,
    };

    const ALL: [Reduction; 5] = [Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min, Reduction::Prod];

    struct Over<'a>(Reduction, Floats<'a>, [usize; 3]);

    impl Compute for Over<'_> {
        fn run<T: Float>(&self, threads: &Threads, isa: Isa, out: &mut [T], _: &mut Scratch<'_>) {
            reduce(threads, isa, self.0, self.1, self.2, out);
        }
        fn scratch(&self, _: &Threads, _: Isa, _: FloatType) -> usize {
            0
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn all_of_them(
            outer in 1usize..9, reduced in 1usize..200, inner in prop::sample::select(vec![1, 2, 7, 64, 700]),
            ty in prop::sample::select(&FloatType::ALL[..]),
        ) {
            let reduced = if inner == 1 { reduced * 50 } else { reduced };
            let x = Numbers::new(ty, &numbers(outer * reduced * inner, 1));
            for reduction in ALL {
                in_every_type(outer * inner, &Over(reduction, x.floats(), [outer, reduced, inner]), |out, rounding| {
                    for (at, y) in out.iter().enumerate() {
                        let (o, i) = (at / inner, at % inner);
                        let values = (0..reduced).map(|r| x.at((o * reduced + r) * inner + i));
                        let want = match reduction {
                            Reduction::Sum => values.sum(),
                            Reduction::Mean => values.sum::<f64>() / reduced as f64,
                            Reduction::Max => values.fold(f64::MIN, f64::max),
                            Reduction::Min => values.fold(f64::MAX, f64::min),
                            Reduction::Prod => values.product(),
                        };
                        assert_close(*y, want, 1e-4 + rounding);
                    }
                });
            }
        }
    }

    #[test]
    fn nan_wins() {
        for inner in [1, 2] {
            let mut out = vec![0.0f32; inner];
            let x: Vec<f32> = [1.0, f32::NAN, 2.0].iter().flat_map(|x| vec![*x; inner]).collect();
            reduce(&Threads::single(), Isa::detect(), Reduction::Max, (&x).into(), [1, 3, inner], &mut out);
            assert!(out.iter().all(|y| y.is_nan()));
        }
    }
}
