//! Updates that take the place of what a source holds, instead of adding to it.

use regraft_tensor::{AlignedVec, DType, Tensor};

use crate::{MagnitudeAxis, Rotation, Update};

impl Update {
    /// Whether it is not a sum: what it makes of a source is made first, and other updates add to that.
    pub fn is_rewrite(&self) -> bool {
        match self {
            Update::Replace { .. }
            | Update::Rows { .. }
            | Update::Scaled { .. }
            | Update::Decomposed { .. }
            | Update::Rotated(_) => true,
            Update::LowRank { .. } | Update::Hadamard { .. } | Update::Kronecker { .. } | Update::Full { .. } => false,
        }
    }

    /// What a rewrite makes of `source`, in the source's dtype; the source itself where this is not a rewrite.
    pub(crate) fn rewritten(&self, source: &Tensor, by: f64) -> Tensor {
        match self {
            Update::Replace { values } => shaped_as(source, AlignedVec::copy_of(values.cast(source.dtype()).bytes())),
            Update::Rows { rows, values } => {
                let mut data = AlignedVec::copy_of(source.bytes());
                let values = values.cast(source.dtype());
                let len = values.bytes().len() / rows.len().max(1);
                for (row, values) in rows.iter().zip(values.bytes().chunks_exact(len.max(1))) {
                    data.bytes_mut()[row * len..][..len].copy_from_slice(values);
                }
                shaped_as(source, data)
            }
            Update::Scaled { axis, factors } => scaled(source, *axis, &factors.to_f64_vec(), by),
            Update::Decomposed { delta, taps, norms } => decomposed(source, (delta, *taps), norms, by),
            Update::Rotated(rotation) => rotated(source, rotation, by),
            Update::LowRank { .. } | Update::Hadamard { .. } | Update::Kronecker { .. } | Update::Full { .. } => {
                source.clone()
            }
        }
    }
}

fn shaped_as(source: &Tensor, data: AlignedVec) -> Tensor {
    let tensor = Tensor::new(source.dtype(), source.shape().to_vec(), data.into());
    tensor.expect("an update is of its source's size")
}

/// As the reference of DoRA, with a norm for the columns of each input.
fn decomposed(source: &Tensor, (delta, taps): (&Tensor, usize), norms: &Tensor, by: f64) -> Tensor {
    let (deltas, norms) = (delta.to_f64_vec(), norms.to_f64_vec());
    let input = |e: usize| e % (norms.len() * taps) / taps;
    let mut values = source.to_f64_vec();
    let mut squares = vec![0.0; norms.len()];
    for (e, (value, delta)) in values.iter_mut().zip(&deltas).enumerate() {
        *value += by * delta;
        squares[input(e)] += *value * *value;
    }
    values.iter_mut().enumerate().for_each(|(e, value)| *value *= norms[input(e)] / squares[input(e)].sqrt());
    Tensor::from_f64(source.dtype(), source.shape(), &values)
}

/// Sums are of f64, and rounded once to the source's dtype.
fn rotated(source: &Tensor, rotation: &Rotation, by: f64) -> Tensor {
    let rows = source.shape().first().copied().unwrap_or(1);
    let cols = (source.numel() / rows.max(1)).max(1);
    let mut values = source.to_f64_vec();
    rotation.apply(&mut values, (rows, cols), by);
    Tensor::from_f64(source.dtype(), source.shape(), &values)
}

/// Each product is rounded once to f32, as PyTorch does, and then to the source's dtype.
fn scaled(source: &Tensor, axis: MagnitudeAxis, factors: &[f64], by: f64) -> Tensor {
    let rows = source.shape().first().copied().unwrap_or(1);
    let cols = (source.numel() / rows.max(1)).max(1);
    let factor = |e: usize| {
        let factor = factors[match axis {
            MagnitudeAxis::Rows => e / cols,
            MagnitudeAxis::Columns => e % cols,
        }];
        if by == 1.0 { factor } else { 1.0 + by * (factor - 1.0) }
    };
    if source.dtype() == DType::F64 {
        let values: Vec<f64> = source.to_f64_vec().iter().enumerate().map(|(e, w)| w * factor(e)).collect();
        return Tensor::from_f64(DType::F64, source.shape(), &values);
    }
    let wide = source.cast(DType::F32).aligned();
    let values = wide.as_slice::<f32>().expect("it was cast");
    let values: Vec<f32> = values.iter().enumerate().map(|(e, w)| (f64::from(*w) * factor(e)) as f32).collect();
    Tensor::from_slice(source.shape(), &values).cast(source.dtype())
}
