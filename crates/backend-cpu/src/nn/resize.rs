//! Resampling with blending: along each axis every position of the result is made of as many elements, each with a weight.

use super::{row_scratch, rows_per_task, workers};
use crate::{
    Isa, Scratch, Threads,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, Fma, simd_fn},
};

/// An element that a position of the result is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tap {
    /// Its place along the axis.
    pub place: usize,
    /// Its weight.
    pub weight: f32,
}

/// The most elements along an axis that a position is made of.
const MOST_TAPS: usize = 4;

/// The most rows that a line is blended of: images have at most two axes beside the last one.
const MOST_ROWS: usize = MOST_TAPS * MOST_TAPS;

/// A resampling of `[batch, spatial..., inner]` along its spatial axes.
#[derive(Clone, Debug)]
pub struct Blend {
    /// Images, or planes.
    pub batch: usize,
    /// Sizes of the operand's spatial axes, slowest first; one to three.
    pub input: Vec<usize>,
    /// Elements along an axis that a position is made of: 2 or 4.
    pub per: usize,
    /// For each spatial axis the taps of the result's positions.
    pub taps: Vec<Vec<Tap>>,
    /// Elements that are resampled together: channels, where they come last.
    pub inner: usize,
}

impl Blend {
    /// Positions of the result along an axis.
    fn positions(&self, axis: usize) -> usize {
        self.taps[axis].len() / self.per
    }

    fn lines(&self) -> (usize, usize, usize) {
        let last = self.input.len() - 1;
        let lines = (0..last).map(|axis| self.positions(axis)).product();
        (self.input[last] * self.inner, self.positions(last) * self.inner, lines)
    }

    /// Bytes of scratch that [`blend`] needs.
    pub fn scratch(&self, threads: &Threads, out: FloatType) -> usize {
        let (from, to, _) = self.lines();
        row_scratch(threads, out, to) + workers(threads) * 2 * bytes_of::<f32>(from)
    }

    /// The rows that line `line` of the result is blended of, each with its weight.
    fn sources(&self, line: usize) -> ([(usize, f32); MOST_ROWS], usize) {
        let (mut rows, mut count) = ([(0, 1.0); MOST_ROWS], 1);
        let (mut rest, mut stride) = (line, 1);
        for axis in (0..self.input.len() - 1).rev() {
            let at = rest % self.positions(axis);
            rest /= self.positions(axis);
            for i in 0..count {
                let (row, weight) = rows[i];
                for (k, tap) in self.taps[axis][at * self.per..][..self.per].iter().enumerate() {
                    rows[k * count + i] = (row + tap.place * stride, weight * tap.weight);
                }
            }
            count *= self.per;
            stride *= self.input[axis];
        }
        (rows, count)
    }
}

/// Resamples `x` into `out`.
///
/// # Panics
///
/// If a length does not fit, a tap lies outside of its axis, there are more than three axes, or a position is made of neither 2 nor 4
/// elements.
pub fn blend<T: Float>(
    threads: &Threads,
    isa: Isa,
    plan: &Blend,
    x: Floats<'_>,
    out: &mut [T],
    scratch: &mut Scratch<'_>,
) {
    let (from, to, lines) = plan.lines();
    let rows: usize = plan.input[..plan.input.len() - 1].iter().product();
    assert!(plan.input.len() == plan.taps.len() && plan.input.len() <= 3 && [2, MOST_TAPS].contains(&plan.per));
    assert!(x.len() >= plan.batch * rows * from && out.len() == plan.batch * lines * to);
    let inside = |(taps, size): (&Vec<Tap>, &usize)| taps.iter().all(|tap| tap.place < *size);
    assert!(plan.taps.iter().zip(&plan.input).all(inside), "a tap outside of its axis");
    if out.is_empty() {
        return;
    }
    let mut scratch = scratch.again();
    let narrow = if T::TYPE == FloatType::F32 { 0 } else { to };
    let mut buffers: Vec<_> =
        (0..workers(threads)).map(|_| [scratch.take::<f32>(from), scratch.take(from), scratch.take(narrow)]).collect();
    let blend_line = if plan.per == 2 { along_by_2 } else { along_by_4 };
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
                blend_line(isa, last, plan.inner, blended, out);
                continue;
            }
            blend_line(isa, last, plan.inner, blended, buffer);
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
    /// Blends along a line, of two elements for each position.
    fn along_by_2<F>(taps: &[Tap], inner: usize, line: &[f32], out: &mut [f32]) {
        along::<F, 2>(taps, inner, line, out);
    }
}

simd_fn! {
    /// Blends along a line, of four elements for each position.
    fn along_by_4<F>(taps: &[Tap], inner: usize, line: &[f32], out: &mut [f32]) {
        along::<F, 4>(taps, inner, line, out);
    }
}

#[inline(always)]
fn along<F: Fma, const PER: usize>(taps: &[Tap], inner: usize, line: &[f32], out: &mut [f32]) {
    let (taps, _) = taps.as_chunks::<PER>();
    let sum = |terms: [(f32, f32); PER]| {
        let first = terms[0].0 * terms[0].1;
        terms[1..].iter().fold(first, |sum, (x, weight)| F::mul_add(*x, *weight, sum))
    };
    if inner == 1 {
        for (y, taps) in out.iter_mut().zip(taps) {
            *y = sum(taps.map(|tap| (line[tap.place], tap.weight)));
        }
        return;
    }
    for (out, taps) in out.chunks_exact_mut(inner).zip(taps) {
        let pixels = taps.map(|tap| (&line[tap.place * inner..][..inner], tap.weight));
        for (i, y) in out.iter_mut().enumerate() {
            *y = sum(pixels.map(|(pixel, weight)| (pixel[i], weight)));
        }
    }
}
