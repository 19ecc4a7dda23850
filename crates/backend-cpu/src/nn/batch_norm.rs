//! Batch normalization by given statistics, where no layer takes it in.

use super::rows_per_task;
use crate::{
    Isa, Scratch, Threads,
    scratch::bytes_of,
    simd::{Float, Floats, simd_fn},
};

/// Elements that are normalized together: in the first-level cache.
const BLOCK: usize = 1024;

/// A normalization of each channel by its own statistics.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm<'a> {
    /// Input: `[batch, channels, positions]`, or `[batch, positions, channels]`.
    pub x: Floats<'a>,
    /// Channels.
    pub channels: usize,
    /// Elements of a channel of one image; 1 where channels are last.
    pub positions: usize,
    /// What is subtracted, for each channel.
    pub mean: Floats<'a>,
    /// The variance of each channel.
    pub variance: Floats<'a>,
    /// A factor for each channel.
    pub weight: Option<Floats<'a>>,
    /// An addend for each channel.
    pub bias: Option<Floats<'a>>,
    /// Added to the variance.
    pub eps: f32,
}

impl BatchNorm<'_> {
    /// Elements of a row that is normalized at once.
    fn row(channels: usize, positions: usize) -> usize {
        if positions == 1 { channels } else { positions }
    }

    /// Bytes of scratch that a normalization needs.
    pub fn scratch(channels: usize) -> usize {
        3 * bytes_of::<f32>(channels)
    }
}

/// `y = (x - mean) / sqrt(variance + eps) * weight + bias`, channel by channel.
///
/// # Panics
///
/// If a slice has the wrong length, or the scratch is shorter than [`BatchNorm::scratch`].
pub fn batch_norm<T: Float>(
    threads: &Threads,
    isa: Isa,
    norm: &BatchNorm<'_>,
    out: &mut [T],
    scratch: &mut Scratch<'_>,
) {
    let BatchNorm { x, channels, positions, .. } = *norm;
    assert_eq!(x.len(), out.len());
    let mut scratch = scratch.again();
    let [mean, factor, addend] = [(); 3].map(|()| scratch.take::<f32>(channels));
    norm.mean.load(isa, 0, mean);
    norm.variance.load(isa, 0, addend);
    match norm.weight {
        Some(weight) => weight.load(isa, 0, factor),
        None => factor.fill(1.0),
    }
    factor.iter_mut().zip(&*addend).for_each(|(f, variance)| *f /= (variance + norm.eps).sqrt());
    match norm.bias {
        Some(bias) => bias.load(isa, 0, addend),
        None => addend.fill(0.0),
    }
    let (mean, factor, addend) = (&*mean, &*factor, &*addend);
    let cols = BatchNorm::row(channels, positions);
    if cols == 0 {
        return;
    }
    let per_task = rows_per_task(threads, out.len() / cols, cols);
    threads.for_each_chunk(out, per_task * cols, |task, out| {
        let (mut wide, mut result) = ([0f32; BLOCK], [0f32; BLOCK]);
        for (i, out) in out.chunks_exact_mut(cols).enumerate() {
            let row = task * per_task + i;
            for (block, out) in out.chunks_mut(BLOCK).enumerate() {
                let (at, first) = (row * cols + block * BLOCK, block * BLOCK);
                let x = x.read(isa, at, &mut wide[..out.len()]);
                let normalize = |y: &mut [f32]| match positions {
                    1 => columns(isa, x, (&mean[first..], &factor[first..], &addend[first..]), y),
                    _ => one(isa, x, (mean[row % channels], factor[row % channels], addend[row % channels]), y),
                };
                match T::as_f32_mut(out) {
                    Some(out) => normalize(out),
                    None => {
                        let result = &mut result[..out.len()];
                        normalize(result);
                        T::narrow(isa, result, out);
                    }
                }
            }
        }
    });
}

simd_fn! {
    fn columns<F>(x: &[f32], channels: (&[f32], &[f32], &[f32]), y: &mut [f32]) {
        let (mean, factor, addend) = channels;
        for ((((y, x), mean), factor), addend) in y.iter_mut().zip(x).zip(mean).zip(factor).zip(addend) {
            *y = F::mul_add(*x - mean, *factor, *addend);
        }
    }
}

simd_fn! {
    fn one<F>(x: &[f32], channel: (f32, f32, f32), y: &mut [f32]) {
        let (mean, factor, addend) = channel;
        y.iter_mut().zip(x).for_each(|(y, x)| *y = F::mul_add(*x - mean, factor, addend));
    }
}
