use regraft_tensor::Tensor;

use crate::{Factors, Magnitude, MagnitudeAxis, Update};

impl Update {
    /// The definition that fast implementations are tested against: `W'` of `source`, computed in f64 and rounded to the
    /// source's dtype. The caller's scale `by` multiplies the delta, with DoRA inside of the norm:
    /// `magnitude * (W + by * delta) / norm(W + by * delta)`.
    ///
    /// # Panics
    /// When the update is not of the source's size.
    pub fn reference(&self, source: &Tensor, by: f64) -> Tensor {
        if self.is_rewrite() {
            return self.rewritten(source, by);
        }
        let rows = source.shape().first().copied().unwrap_or(1);
        let cols = source.numel() / rows.max(1);
        let (delta, magnitude) = self.delta(rows, cols);
        let updated = source.to_f64_vec().iter().zip(&delta).map(|(w, d)| w + by * d).collect();
        let values = match magnitude {
            Some(magnitude) => magnitude.scale(updated, cols),
            None => updated,
        };
        Tensor::from_f64(source.dtype(), source.shape(), &values)
    }

    /// What is added, with the file's factor, and DoRA's norms.
    pub(crate) fn delta(&self, rows: usize, cols: usize) -> (Vec<f64>, Option<&Magnitude>) {
        let (values, scale, magnitude) = match self {
            Update::LowRank { factors, scale, magnitude } => (factors.product(rows, cols), scale, magnitude.as_ref()),
            Update::Hadamard { first, second, scale, magnitude } => {
                let products = first.product(rows, cols).into_iter().zip(second.product(rows, cols));
                (products.map(|(a, b)| a * b).collect(), scale, magnitude.as_ref())
            }
            Update::Kronecker { left, right, scale, magnitude } => {
                let (outer, inner, across) = (left.shape()[1], right.shape()[1], right.shape()[0]);
                let (left, right) = (left.to_f64_vec(), right.to_f64_vec());
                let at =
                    |i: usize, j: usize| left[i / across * outer + j / inner] * right[i % across * inner + j % inner];
                ((0..rows * cols).map(|e| at(e / cols, e % cols)).collect(), scale, magnitude.as_ref())
            }
            Update::Full { delta, scale } => (delta.to_f64_vec(), scale, None),
            Update::Replace { .. }
            | Update::Rows { .. }
            | Update::Scaled { .. }
            | Update::Decomposed { .. }
            | Update::Rotated(_) => {
                unreachable!("rewrites have no delta")
            }
        };
        (values.into_iter().map(|v| v * scale).collect(), magnitude)
    }
}

impl Factors {
    fn product(&self, rows: usize, cols: usize) -> Vec<f64> {
        let (rank, up, down) = (self.down.shape()[0], self.up.to_f64_vec(), self.down.to_f64_vec());
        let at = |i: usize, j: usize| (0..rank).map(|r| up[i * rank + r] * down[r * cols + j]).sum();
        (0..rows * cols).map(|e| at(e / cols, e % cols)).collect()
    }
}

impl Magnitude {
    fn scale(&self, mut values: Vec<f64>, cols: usize) -> Vec<f64> {
        let line = |e: usize| match self.axis {
            MagnitudeAxis::Rows => e / cols,
            MagnitudeAxis::Columns => e % cols,
        };
        let wanted = self.values.to_f64_vec();
        let mut squares = vec![0.0; wanted.len()];
        values.iter().enumerate().for_each(|(e, v)| squares[line(e)] += v * v);
        for (e, value) in values.iter_mut().enumerate() {
            *value *= wanted[line(e)] / squares[line(e)].sqrt();
        }
        values
    }
}
