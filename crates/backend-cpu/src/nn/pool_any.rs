//! Pooling of images of one to three axes in either layout, by windows of any sizes: lines of the image that a line of the result
//! covers are joined first, all at once, then what stands along the line.

use std::ops::Range;

use super::{
    reduce::{Reduction, combine},
    rows_per_task, workers,
};
use crate::{
    Isa, Scratch, Threads,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, lanes, simd_fn},
};

/// What a position of the result covers along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first element.
    pub first: usize,
    /// How many elements inside of the image.
    pub count: usize,
    /// What the count contributes to the divisor of a mean.
    pub counts_as: usize,
}

/// The windows along one axis.
#[derive(Clone, Debug)]
pub struct SpanAxis {
    /// Elements of the image.
    size: usize,
    /// Distance between the elements of a window.
    step: usize,
    /// The window of each position of the result.
    spans: Vec<Span>,
    /// Positions whose windows are alike but for their place, which moves by `stride` each time.
    alike: Range<usize>,
    stride: usize,
}

impl SpanAxis {
    /// An axis of `size` elements, and the window of each position of the result, whose elements are `step` apart.
    pub fn new(size: usize, step: usize, spans: Vec<Span>) -> SpanAxis {
        let moved = |at: usize| spans[at].first.checked_sub(spans[at - 1].first).filter(|by| *by > 0);
        let same = |at: usize| (spans[at].count, spans[at].counts_as) == (spans[at - 1].count, spans[at - 1].counts_as);
        let (mut alike, mut start) = (0..spans.len().min(1), 0);
        for at in 1..spans.len() {
            if !same(at) || moved(at).is_none() || (at > start + 1 && moved(at) != moved(start + 1)) {
                start = at;
            }
            if at + 1 - start > alike.len() {
                alike = start..at + 1;
            }
        }
        let stride = if alike.len() > 1 { moved(alike.start + 1).unwrap_or(1) } else { 1 };
        SpanAxis { size, step, spans, alike, stride }
    }

    /// An axis that is not there.
    pub fn none() -> SpanAxis {
        SpanAxis::new(1, 1, vec![Span { first: 0, count: 1, counts_as: 1 }])
    }
}

/// A pooling of `[outer, image..., inner]`.
#[derive(Clone, Debug)]
pub struct SpanPool {
    /// Whether the mean is taken, and not the maximum.
    pub mean: bool,
    /// Images, or channels of images.
    pub outer: usize,
    /// The axes, slowest first.
    pub axes: [SpanAxis; 3],
    /// Elements that stand side by side at a position: channels that are last.
    pub inner: usize,
}

impl SpanPool {
    /// Elements of a line of the image, and of the result.
    fn lines(&self) -> [usize; 2] {
        [self.axes[2].size * self.inner, self.axes[2].spans.len() * self.inner]
    }

    /// Bytes of scratch that [`span_pool`] needs.
    pub fn scratch(&self, threads: &Threads, out: FloatType) -> usize {
        let [from, to] = self.lines();
        let narrow = if out == FloatType::F32 { 0 } else { to };
        workers(threads) * (2 * bytes_of::<f32>(from) + bytes_of::<f32>(narrow))
    }
}

/// Pools `x` into `out`.
///
/// # Panics
///
/// If a length does not fit, a window reaches outside of its axis, or the scratch is shorter than [`SpanPool::scratch`].
pub fn span_pool<T: Float>(
    threads: &Threads,
    isa: Isa,
    pool: &SpanPool,
    x: Floats<'_>,
    out: &mut [T],
    scratch: &mut Scratch<'_>,
) {
    let ([from, to], [z, y, _]) = (pool.lines(), &pool.axes);
    let positions = z.spans.len() * y.spans.len();
    assert!(x.len() >= pool.outer * z.size * y.size * from && out.len() == pool.outer * positions * to);
    let inside =
        |axis: &SpanAxis, span: &Span| span.count == 0 || span.first + (span.count - 1) * axis.step < axis.size;
    assert!(pool.axes.iter().all(|axis| axis.spans.iter().all(|span| inside(axis, span))), "a window outside");
    if out.is_empty() {
        return;
    }
    let mut scratch = scratch.again();
    let narrow = if T::TYPE == FloatType::F32 { 0 } else { to };
    let mut buffers: Vec<_> =
        (0..workers(threads)).map(|_| [scratch.take::<f32>(from), scratch.take(from), scratch.take(narrow)]).collect();
    let per_task = rows_per_task(threads, pool.outer * positions, to);
    let (how, nothing) = if pool.mean { (Reduction::Sum, 0.0) } else { (Reduction::Max, f32::NEG_INFINITY) };
    threads.for_each_chunk_with(&mut buffers, out, per_task * to, |[joined, line, buffer], task, chunk| {
        for (i, out) in chunk.chunks_exact_mut(to).enumerate() {
            let at = task * per_task + i;
            let (image, at) = (at / positions, at % positions);
            let (in_z, in_y) = (z.spans[at / y.spans.len()], y.spans[at % y.spans.len()]);
            let met = (0..in_z.count).flat_map(|a| (0..in_y.count).map(move |b| (a, b)));
            let mut rows = met
                .map(|(a, b)| (image * z.size + in_z.first + a * z.step) * y.size + in_y.first + b * y.step)
                .map(|row| row * from);
            match rows.next() {
                Some(first) => x.load(isa, first, joined),
                None => joined.fill(nothing),
            }
            rows.for_each(|row| combine(isa, how, x.read(isa, row, line), joined));
            let lines = in_z.counts_as * in_y.counts_as;
            if let Some(out) = T::as_f32_mut(out) {
                along(isa, pool, joined, lines, out);
                continue;
            }
            along(isa, pool, joined, lines, buffer);
            T::narrow(isa, buffer, out);
        }
    });
}

simd_fn! {
    /// Joins along a line whose elements stand for `lines` each.
    fn along<F>(pool: &SpanPool, line: &[f32], lines: usize, out: &mut [f32]) {
        let (axis, inner) = (&pool.axes[2], pool.inner);
        if !pool.mean {
            return join(axis, inner, line, out, f32::NEG_INFINITY, lanes::greater);
        }
        join(axis, inner, line, out, 0.0, |y, x| y + x);
        let scale = |out: &mut [f32], span: &Span| {
            let factor = 1.0 / (lines * span.counts_as) as f32;
            out.iter_mut().for_each(|y| *y *= factor);
        };
        let Range { start, end } = axis.alike;
        for at in (0..start).chain(end..axis.spans.len()) {
            scale(&mut out[at * inner..][..inner], &axis.spans[at]);
        }
        if let Some(first) = axis.spans[start..end].first() {
            scale(&mut out[start * inner..end * inner], first);
        }
    }
}

/// Joins the elements of every window along a line, of which `nothing` is none.
#[inline(always)]
fn join(
    axis: &SpanAxis,
    inner: usize,
    line: &[f32],
    out: &mut [f32],
    nothing: f32,
    both: impl Fn(f32, f32) -> f32 + Copy,
) {
    out.fill(nothing);
    // Single elements of windows that are alike: one tap of all of them after the other, since windows are short.
    let alike = if inner == 1 { axis.alike.clone() } else { 0..0 };
    for at in (0..alike.start).chain(alike.end..axis.spans.len()) {
        let (span, out) = (&axis.spans[at], &mut out[at * inner..][..inner]);
        let elements = (0..span.count).map(|i| &line[(span.first + i * axis.step) * inner..][..inner]);
        elements.for_each(|xs| out.iter_mut().zip(xs).for_each(|(y, x)| *y = both(*y, *x)));
    }
    let Some(first) = axis.spans[alike.clone()].first() else { return };
    for tap in 0..first.count {
        let taps = line[first.first + tap * axis.step..].iter().step_by(axis.stride);
        out[alike.clone()].iter_mut().zip(taps).for_each(|(y, x)| *y = both(*y, *x));
    }
}
