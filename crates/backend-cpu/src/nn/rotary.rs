//! Rotary position embeddings: `y = x·cos + cat(-x₂, x₁)·sin` over rows whose halves are `x₁` and `x₂`.

use super::{for_each_float_row, row_scratch};
use crate::{
    Isa, Scratch, Threads,
    simd::{Float, FloatType, Floats, simd_fn},
};

/// Elements of a half that are computed together: what is widened of them stays in the first-level cache.
const BLOCK: usize = 64;

/// A rotary embedding of rows of `cols` elements, each in one piece.
#[derive(Clone, Copy, Debug)]
pub struct Rotary<'a> {
    /// The storage of the rows that are turned, from its first element.
    pub x: Floats<'a>,
    /// The storage of the rows of cosines.
    pub cos: Floats<'a>,
    /// The storage of the rows of sines.
    pub sin: Floats<'a>,
    /// Length of a row, even.
    pub cols: usize,
}

impl Rotary<'_> {
    /// Bytes of scratch that rows of `cols` elements into `out` need.
    pub fn scratch(threads: &Threads, cols: usize, out: FloatType) -> usize {
        row_scratch(threads, out, cols)
    }

    /// The row of `x` that begins at the first of `starts`, turned by the rows of cosines and sines that begin at the others.
    fn row(&self, isa: Isa, starts: [usize; 3], out: &mut [f32]) {
        let half = self.cols / 2;
        let (first, second) = out.split_at_mut(half);
        let mut buffers = [[0f32; BLOCK]; 6];
        for (block, (y1, y2)) in first.chunks_mut(BLOCK).zip(second.chunks_mut(BLOCK)).enumerate() {
            let [x, cos, sin] = starts.map(|start| start + block * BLOCK);
            let [a, b, c, d, e, f] = buffers.each_mut().map(|buffer| &mut buffer[..y1.len()]);
            let (x1, x2) = (self.x.read(isa, x, a), self.x.read(isa, x + half, b));
            let (cos1, cos2) = (self.cos.read(isa, cos, c), self.cos.read(isa, cos + half, d));
            let (sin1, sin2) = (self.sin.read(isa, sin, e), self.sin.read(isa, sin + half, f));
            weigh(isa, x1, cos1, -1.0, x2, sin1, y1);
            weigh(isa, x2, cos2, 1.0, x1, sin2, y2);
        }
    }
}

/// Computes a [`Rotary`] into the rows of `out`. `starts` says where a row of `x`, of the cosines and of the sines begins, of the row of
/// this number.
///
/// # Panics
///
/// If `cols` is odd, `out` is not whole rows, a row reaches beyond its storage, or the scratch is shorter than [`Rotary::scratch`].
pub fn rotary<T: Float>(
    threads: &Threads,
    isa: Isa,
    rotary: &Rotary<'_>,
    starts: impl Fn(usize) -> [usize; 3] + Sync,
    out: &mut [T],
    scratch: &mut Scratch<'_>,
) {
    assert!(rotary.cols.is_multiple_of(2), "a row of {} elements has no halves", rotary.cols);
    for_each_float_row(threads, isa, out, rotary.cols, scratch, |i, out| rotary.row(isa, starts(i), out));
}

simd_fn! {
    /// `y = x·by + sign·other·with`.
    fn weigh<F>(x: &[f32], by: &[f32], sign: f32, other: &[f32], with: &[f32], y: &mut [f32]) {
        for ((((y, x), by), other), with) in y.iter_mut().zip(x).zip(by).zip(other).zip(with) {
            *y = F::mul_add(*x, *by, sign * other * with);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nn::testing::{Compute, Numbers, assert_close, in_every_type, numbers};

    /// Rows of `x` that lie `step` apart, each turned by one of two rows of angles.
    struct Apart<'a>(Rotary<'a>, usize);

    impl Compute for Apart<'_> {
        fn run<T: Float>(&self, threads: &Threads, isa: Isa, out: &mut [T], scratch: &mut Scratch<'_>) {
            let angles = |row: usize| row % 2 * self.0.cols;
            rotary(threads, isa, &self.0, |row| [row * self.1, angles(row), angles(row)], out, scratch);
        }
        fn scratch(&self, threads: &Threads, _: Isa, out: FloatType) -> usize {
            Rotary::scratch(threads, self.0.cols, out)
        }
    }

    fn any_type() -> impl Strategy<Value = FloatType> {
        prop::sample::select(&FloatType::ALL[..])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn pairs_are_turned(rows in 1usize..40, half in 1usize..150, gap in 0usize..5, ty in any_type(), angles in any_type()) {
            let (cols, step) = (2 * half, 2 * half + gap);
            let x = Numbers::new(ty, &numbers(rows * step, 1));
            let [cos, sin] = [2, 3].map(|seed| Numbers::new(angles, &numbers(2 * cols, seed)));
            let rotary = Rotary { x: x.floats(), cos: cos.floats(), sin: sin.floats(), cols };
            in_every_type(rows * cols, &Apart(rotary, step), |out, rounding| {
                for (at, got) in out.iter().enumerate() {
                    let (row, col) = (at / cols, at % cols);
                    let turned = if col < half { -x.at(row * step + col + half) } else { x.at(row * step + col - half) };
                    let angle = row % 2 * cols + col;
                    let want = x.at(row * step + col) * cos.at(angle) + turned * sin.at(angle);
                    assert_close(*got, want, 1e-6 + rounding);
                }
            });
        }
    }
}
