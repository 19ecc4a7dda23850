//! Layers other than matrix products, in `f32`. Images are channels-last (`[batch, height, width, channels]`).

pub mod attention;
pub mod depthwise;
pub mod embedding;
pub mod im2col;
pub mod norm;
pub mod pool;
pub mod reduce;
pub mod softmax;
pub mod transpose;
mod window;

use crate::Threads;

/// Elements that a task should at least work on; less is not worth a hand-over.
const GRAIN: usize = 8 * 1024;

/// How many rows of `cols` elements go into one task.
fn rows_per_task(threads: &Threads, rows: usize, cols: usize) -> usize {
    let fair = rows.div_ceil(4 * threads.count());
    fair.max(GRAIN.div_ceil(cols.max(1))).clamp(1, rows.max(1))
}

/// Runs `row(i, out_row)` for every row of `out`, several rows a task.
fn for_each_row<T: Send>(threads: &Threads, out: &mut [T], cols: usize, row: impl Fn(usize, &mut [T]) + Sync) {
    if cols == 0 {
        return;
    }
    assert!(out.len().is_multiple_of(cols), "{} elements are no rows of {cols}", out.len());
    let per_task = rows_per_task(threads, out.len() / cols, cols);
    threads.for_each_chunk(out, per_task * cols, |task, chunk| {
        for (i, out) in chunk.chunks_exact_mut(cols).enumerate() {
            row(task * per_task + i, out);
        }
    });
}

#[cfg(test)]
mod testing {
    use crate::{Isa, Threads};

    /// Numbers between -1 and 1 without a pattern.
    pub(super) fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 31 + seed * 17) * 7919 % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// Runs `compute` for every instruction set with one and two threads, which must agree bit for bit, and hands the result to
    /// `check`.
    pub(super) fn on_every_isa(len: usize, compute: impl Fn(&Threads, Isa, &mut [f32]), check: impl Fn(&[f32])) {
        for isa in Isa::available() {
            let [one, two] = [1, 2].map(|count| {
                let mut out = vec![f32::NAN; len];
                compute(&Threads::new(count).unwrap(), isa, &mut out);
                out
            });
            assert!(one.iter().zip(&two).all(|(x, y)| x.to_bits() == y.to_bits()), "{isa}: threads disagree");
            check(&one);
        }
    }

    /// Panics unless `got` is within `tolerance` of `want`, absolutely and relatively.
    #[track_caller]
    pub(super) fn assert_close(got: f32, want: f64, tolerance: f64) {
        let error = (f64::from(got) - want).abs();
        assert!(error <= tolerance * (1.0 + want.abs()), "{got} for {want}");
    }
}
