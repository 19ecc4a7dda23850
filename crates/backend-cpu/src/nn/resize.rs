//! Resampling with blending: each axis has two elements and a weight for every position of the result.

use super::{row_scratch, rows_per_task, workers};
use crate::{
    Isa, Scratch, Threads,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, simd_fn},
};

/// The two elements that a position lies between, and the weight of the second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tap {
    /// The first element.
    pub first: usize,
    /// The second.
    pub second: usize,
    /// The weight of the second; the first has what is missing to one.
    pub weight: f32,
}

/// A resampling of `[batch, spatial..., inner]` along its spatial axes.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Images, or planes.
    pub batch: usize,
    /// Sizes of the operand's spatial axes, slowest first; at least one.
    pub input: Vec<usize>,
    /// For each spatial axis the taps of the result's positions.
    pub taps: Vec<Vec<Tap>>,
    /// Elements that are resampled together: channels, where they come last.
    pub inner: usize,
}

impl Linear {
    fn lines(&self) -> (usize, usize, usize) {
        let (from, to) = (self.input[self.input.len() - 1], self.taps[self.taps.len() - 1].len());
        let lines = self.taps[..self.taps.len() - 1].iter().map(Vec::len).product();
        (from * self.inner, to * self.inner, lines)
    }

    /// Bytes of scratch that [`resize_linear`] needs.
    pub fn scratch(&self, threads: &Threads, out: FloatType) -> usize {
        let (from, to, _) = self.lines();
        row_scratch(threads, out, to) + workers(threads) * 2 * bytes_of::<f32>(from)
    }

    /// The rows that line `line` of the result is blended of, each with its weight.
    fn sources(&self, line: usize) -> ([(usize, f32); 4], usize) {
        let mut rest = line;
        let (mut rows, mut count) = ([(0, 1.0); 4], 1);
        let mut stride = 1;
        // At most two axes are beside the last one: images are of one to three.
        for (taps, size) in self.taps[..self.taps.len() - 1].iter().zip(&self.input).rev() {
            let tap = taps[rest % taps.len()];
            rest /= taps.len();
            for i in 0..count {
                let (row, weight) = rows[i];
                rows[i] = (row + tap.first * stride, weight * (1.0 - tap.weight));
                rows[count + i] = (row + tap.second * stride, weight * tap.weight);
            }
            count *= 2;
            stride *= size;
        }
        (rows, count)
    }
}

/// Resamples `x` into `out`.
///
/// # Panics
///
/// If a length does not fit, a tap lies outside of its axis, or there are more than three axes.
pub fn resize_linear<T: Float>(
    threads: &Threads,
    isa: Isa,
    plan: &Linear,
    x: Floats<'_>,
    out: &mut [T],
    scratch: &mut Scratch<'_>,
) {
    let (from, to, lines) = plan.lines();
    let rows: usize = plan.input[..plan.input.len() - 1].iter().product();
    assert!(plan.input.len() == plan.taps.len() && plan.input.len() <= 3);
    assert!(x.len() >= plan.batch * rows * from && out.len() == plan.batch * lines * to);
    let inside = |(taps, size): (&Vec<Tap>, &usize)| taps.iter().all(|tap| tap.first.max(tap.second) < *size);
    assert!(plan.taps.iter().zip(&plan.input).all(inside), "a tap outside of its axis");
    if out.is_empty() {
        return;
    }
    let mut scratch = scratch.again();
    let narrow = if T::TYPE == FloatType::F32 { 0 } else { to };
    let mut buffers: Vec<_> =
        (0..workers(threads)).map(|_| [scratch.take::<f32>(from), scratch.take(from), scratch.take(narrow)]).collect();
    let last = &plan.taps[plan.taps.len() - 1];
    let per_task = rows_per_task(threads, plan.batch * lines, to);
    threads.for_each_chunk_with(&mut buffers, out, per_task * to, |[blended, row, buffer], task, chunk| {
        for (i, out) in chunk.chunks_exact_mut(to).enumerate() {
            let line = task * per_task + i;
            let (sources, count) = plan.sources(line % lines);
            for (i, (source, weight)) in sources[..count].iter().enumerate() {
                let values = x.read(isa, (line / lines * rows + source) * from, row);
                add_scaled(isa, i == 0, values, *weight, blended);
            }
            if let Some(out) = T::as_f32_mut(out) {
                along(isa, last, plan.inner, blended, out);
                continue;
            }
            along(isa, last, plan.inner, blended, buffer);
            T::narrow(isa, buffer, out);
        }
    });
}

simd_fn! {
    /// Adds, or first sets, what a row gives to a line.
    fn add_scaled<F>(set: bool, x: &[f32], weight: f32, sum: &mut [f32]) {
        if set {
            sum.iter_mut().zip(x).for_each(|(y, x)| *y = x * weight);
        } else if weight != 0.0 {
            sum.iter_mut().zip(x).for_each(|(y, x)| *y = F::mul_add(*x, weight, *y));
        }
    }
}

simd_fn! {
    /// Blends along a line.
    fn along<F>(taps: &[Tap], inner: usize, line: &[f32], out: &mut [f32]) {
        if inner == 1 {
            for (y, tap) in out.iter_mut().zip(taps) {
                *y = line[tap.first] * (1.0 - tap.weight) + line[tap.second] * tap.weight;
            }
            return;
        }
        for (out, tap) in out.chunks_exact_mut(inner).zip(taps) {
            let (a, b) = (&line[tap.first * inner..][..inner], &line[tap.second * inner..][..inner]);
            for ((y, a), b) in out.iter_mut().zip(a).zip(b) {
                *y = a * (1.0 - tap.weight) + b * tap.weight;
            }
        }
    }
}
