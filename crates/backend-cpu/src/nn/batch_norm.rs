//! Batch normalisation by given statistics, where no layer takes it in.

use super::{for_each_float_row, row_scratch};
use crate::{
    Isa, Scratch, Threads,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, simd_fn},
};

/// A normalisation of each channel by its own statistics.
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
    /// Elements of a row that is normalised at once.
    fn row(channels: usize, positions: usize) -> usize {
        if positions == 1 { channels } else { positions }
    }

    /// Bytes of scratch that a normalisation needs.
    pub fn scratch(threads: &Threads, channels: usize, positions: usize, out: FloatType) -> usize {
        3 * bytes_of::<f32>(channels) + row_scratch(threads, out, Self::row(channels, positions))
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
    for_each_float_row(threads, isa, out, cols, &mut scratch, |i, row| {
        x.load(isa, i * cols, row);
        if positions == 1 {
            return columns(isa, row, mean, factor, addend);
        }
        let c = i % channels;
        one(isa, row, (mean[c], factor[c], addend[c]));
    });
}

simd_fn! {
    fn columns<F>(row: &mut [f32], mean: &[f32], factor: &[f32], addend: &[f32]) {
        for (((x, mean), factor), addend) in row.iter_mut().zip(mean).zip(factor).zip(addend) {
            *x = F::mul_add(*x - mean, *factor, *addend);
        }
    }
}

simd_fn! {
    fn one<F>(row: &mut [f32], channel: (f32, f32, f32)) {
        let (mean, factor, addend) = channel;
        row.iter_mut().for_each(|x| *x = F::mul_add(*x - mean, factor, addend));
    }
}
