//! Linear layers whose weights are stored as small integers: a scale for each run of a weight's row, and whole numbers beside it.
//! What is rounded is rounded in f32, step by step as stated here, so that a kernel finds the same integers.

use regraft_tensor::{DType, Dim, Tensor};

use super::{
    OpDef, Operands,
    linear::{Activation, epilogue},
    support::{differ, elements, input, last, optional, sizes},
};
use crate::{EvalError, OpError, TensorType, attrs, word_enum};

word_enum! {
    /// How a weight is stored.
    ///
    /// ```
    /// use regraft_ir::ops::WeightFormat;
    ///
    /// assert_eq!(WeightFormat::from_name("int8"), Some(WeightFormat::Int8));
    /// assert_eq!(WeightFormat::Int4.name(), "int4");
    /// ```
    pub enum WeightFormat {
        /// Whole numbers of -127 to 127, one scale for a row; rows of `x` are rounded likewise as they come
        Int8 = "int8",
        /// Whole numbers of -7 to 7, one scale for each 32 of a row; `x` stays as it is
        Int4 = "int4",
    }
}

attrs! {
    /// A weight `[n, k]` as integers and scales. `int8`: `i8[n, k]` and `f32[n, 1]`. `int4`: `u8[n, k/2]`, two neighbors a byte, the
    /// first in the low half, each plus 8, and `f32[n, k/32]`. A scale is the greatest magnitude of its run, divided by the
    /// greatest integer.
    pub struct Quantize {
        /// What is stored.
        pub format: WeightFormat,
    }
}

attrs! {
    /// As [`Linear`](super::Linear), with a weight of [`Quantize`].
    pub struct QuantLinear {
        /// How the weight is stored.
        pub format: WeightFormat,
        /// Activation.
        pub act: Activation = Activation::None,
        /// Whether the activation comes before the residual is added.
        pub act_first: bool = false,
    }
}

/// Added to and subtracted from a float of small magnitude, it leaves the nearest whole number, even ones of ties.
const ROUNDING: f32 = 12_582_912.0;

/// Scales are at least this, so that runs of zeros have one.
const LEAST: f32 = 1e-30;

/// Rounds a run to whole numbers of at most `most`; returns the scale.
fn round_run(run: &[f32], most: f32, mut put: impl FnMut(usize, i8)) -> f32 {
    let amax = run.iter().fold(LEAST, |max, x| if x.abs() > max || x.is_nan() { x.abs() } else { max });
    let factor = most / amax;
    for (i, x) in run.iter().enumerate() {
        put(i, ((x * factor + ROUNDING) - ROUNDING) as i8);
    }
    amax / most
}

impl WeightFormat {
    /// Elements of a row that have one scale.
    pub const fn run(self, k: usize) -> usize {
        match self {
            WeightFormat::Int8 => k,
            WeightFormat::Int4 => 32,
        }
    }

    /// Bytes that `k` elements of a row become.
    pub const fn row_bytes(self, k: usize) -> usize {
        match self {
            WeightFormat::Int8 => k,
            WeightFormat::Int4 => k / 2,
        }
    }

    /// The most elements of a row: sums of products of int8 must fit into i32.
    pub const fn takes(self, k: usize) -> bool {
        match self {
            WeightFormat::Int8 => k > 0 && k <= 1 << 16,
            WeightFormat::Int4 => k > 0 && k.is_multiple_of(32),
        }
    }

    /// Rounds a row of a weight: its bytes and its scales.
    pub fn round_row(self, row: &[f32], bytes: &mut [u8], scales: &mut [f32]) {
        match self {
            WeightFormat::Int8 => scales[0] = WeightFormat::round_activations(row, bytes),
            WeightFormat::Int4 => {
                for ((run, bytes), scale) in row.chunks_exact(32).zip(bytes.chunks_exact_mut(16)).zip(scales) {
                    let mut whole = [0i8; 32];
                    *scale = round_run(run, 7.0, |i, q| whole[i] = q);
                    for (byte, pair) in bytes.iter_mut().zip(whole.as_chunks::<2>().0) {
                        *byte = (pair[0] + 8) as u8 | ((pair[1] + 8) as u8) << 4;
                    }
                }
            }
        }
    }

    /// Rounds a row of activations to bytes of `i8`; returns their scale.
    pub fn round_activations(row: &[f32], bytes: &mut [u8]) -> f32 {
        round_run(row, 127.0, |i, q| bytes[i] = q as u8)
    }

    /// Element `i` of a row that was rounded.
    fn element(self, bytes: &[u8], i: usize) -> i32 {
        match self {
            WeightFormat::Int8 => i32::from(bytes[i] as i8),
            WeightFormat::Int4 => i32::from(bytes[i / 2] >> (4 * (i % 2)) & 15) - 8,
        }
    }
}

impl OpDef for Quantize {
    const OPERANDS: &'static [&'static str] = &["weight"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_dtype(0, |d| d == DType::F32, "f32")?;
        operands.expect_rank(0, 2..=2)?;
        let shape = &operands.get(0).shape;
        let Some(k) = shape[1].as_usize().filter(|k| self.format.takes(*k)) else {
            return Err(OpError::Shape(format!("{} takes no rows of {} elements", self.format.name(), shape[1])));
        };
        let dtype = if self.format == WeightFormat::Int8 { DType::I8 } else { DType::U8 };
        let of = |dtype, columns: usize| TensorType::new(dtype, vec![shape[0].clone(), Dim::from(columns)]);
        Ok(vec![of(dtype, self.format.row_bytes(k)), of(DType::F32, k / self.format.run(k))])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let weight = input(inputs, 0);
        let (n, k) = (weight.shape()[0], weight.shape()[1]);
        let rows: Vec<f32> = weight.to_f64_vec().into_iter().map(|x| x as f32).collect();
        let (width, runs) = (self.format.row_bytes(k), k / self.format.run(k));
        let (mut bytes, mut scales) = (vec![0u8; n * width], vec![0f32; n * runs]);
        let parts = bytes.chunks_exact_mut(width).zip(scales.chunks_exact_mut(runs));
        rows.chunks_exact(k).zip(parts).for_each(|(row, (q, s))| self.format.round_row(row, q, s));
        let buffer = regraft_tensor::AlignedVec::copy_of(&bytes).into();
        let whole = Tensor::new(types[0].dtype, sizes(&types[0]), buffer)?;
        Ok(vec![whole, Tensor::from_slice(&sizes(&types[1]), &scales)])
    }
}

impl OpDef for QuantLinear {
    const OPERANDS: &'static [&'static str] = &["x", "weight", "scale", "bias?", "residual?"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        operands.expect_dtype(0, DType::is_float, "a float")?;
        let stored = if self.format == WeightFormat::Int8 { DType::I8 } else { DType::U8 };
        operands.expect_dtype(1, |d| d == stored, stored.name())?;
        operands.expect_dtype(2, |d| d == DType::F32, "f32")?;
        operands.expect_same_dtype(3..5)?;
        operands.expect_rank(0, 1..)?;
        operands.expect_rank(1, 2..=2)?;
        let (x, w) = (operands.get(0), operands.get(1));
        let (features, lead) = x.shape.split_last().expect("rank is at least 1");
        let wide = if self.format == WeightFormat::Int8 { 1 } else { 2 };
        let k = w.shape[1].as_usize().map(|width| width.saturating_mul(wide));
        let Some(k) = k.filter(|k| self.format.takes(*k) && w.shape[0].as_usize().is_some()) else {
            return Err(OpError::Shape(format!("{} has no weight {w}", self.format.name())));
        };
        if differ(features, &Dim::from(k)) {
            return Err(OpError::Shape(format!("x has {features} features, the weight takes {k}")));
        }
        operands.expect_shape(2, &[w.shape[0].clone(), Dim::from(k / self.format.run(k))])?;
        let mut shape = lead.to_vec();
        shape.push(w.shape[0].clone());
        operands.expect_shape(3, &w.shape[..1])?;
        operands.expect_shape(4, &shape)?;
        Ok(vec![TensorType::new(x.dtype, shape)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, w, shape) = (input(inputs, 0), input(inputs, 1), sizes(&types[0]));
        let (n, width) = (w.shape()[0], w.shape()[1]);
        let k = x.shape()[x.shape().len() - 1];
        let (x, scales): (Vec<f32>, _) =
            (x.to_f64_vec().into_iter().map(|x| x as f32).collect(), input(inputs, 2).to_f64_vec());
        let bias = optional(inputs, 3).map(Tensor::to_f64_vec);
        let residual = optional(inputs, 4).map(Tensor::to_f64_vec);
        let (run, mut out) = (self.format.run(k), Vec::with_capacity(shape.iter().product()));
        let rows = shape[..shape.len() - 1].iter().product::<usize>();
        for i in 0..rows {
            let mut row: Vec<f64> = x[i * k..(i + 1) * k].iter().map(|x| f64::from(*x)).collect();
            if self.format == WeightFormat::Int8 {
                let mut whole = vec![0u8; k];
                let scale = f64::from(WeightFormat::round_activations(&x[i * k..(i + 1) * k], &mut whole));
                row = whole.iter().map(|q| f64::from(*q as i8) * scale).collect();
            }
            for j in 0..n {
                let bytes = &w.bytes()[j * width..(j + 1) * width];
                let scales = &scales[j * (k / run)..];
                let product = |(l, x): (usize, &f64)| x * f64::from(self.format.element(bytes, l)) * scales[l / run];
                let sum = row.iter().enumerate().map(product).sum::<f64>() + bias.as_ref().map_or(0.0, |b| b[j]);
                out.push(epilogue(self.act, self.act_first, sum, residual.as_ref().map(|r| r[i * n + j])));
            }
        }
        Ok(vec![Tensor::from_f64(types[0].dtype, &shape, &out)])
    }

    fn flops(&self, inputs: &[Option<&[usize]>], outputs: &[&[usize]]) -> u64 {
        2 * elements(outputs[0]) * last(inputs[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    fn quantized(format: WeightFormat, weight: &Tensor) -> Vec<Tensor> {
        Op::from(Quantize { format }).eval(&[Some(weight)]).expect("it takes the weight")
    }

    #[test]
    fn the_greatest_of_a_run_is_the_greatest_integer() {
        let weight = Tensor::from_slice(&[3, 4], &[0.5f32, -1.0, 0.25, 1.0, 0.0, 0.0, 0.0, 0.0, 3.0, 1.0, -3.0, 2.0]);
        let parts = quantized(WeightFormat::Int8, &weight);
        assert_eq!(parts[0].to_i64_vec(), [64, -127, 32, 127, 0, 0, 0, 0, 127, 42, -127, 85]);
        assert_eq!(parts[1].shape(), [3, 1]);
        assert!((parts[1].to_f64_vec()[2] - 3.0 / 127.0).abs() < 1e-8);
    }

    #[test]
    fn products_are_those_of_the_rounded_weight() {
        let values: Vec<f32> = (0..3 * 64).map(|i| ((i * 7919 % 2003) as f32 / 1001.0) - 1.0).collect();
        let (weight, x) = (Tensor::from_slice(&[3, 64], &values), Tensor::from_slice(&[2, 64], &values[64..]));
        let exact = Op::from(super::super::Linear { act: Activation::None, act_first: false });
        let exact = exact.eval(&[Some(&x), Some(&weight)]).expect("it takes them")[0].to_f64_vec();
        for (format, tolerance) in [(WeightFormat::Int8, 0.15), (WeightFormat::Int4, 1.5)] {
            let parts = quantized(format, &weight);
            let op = Op::from(QuantLinear { format, act: Activation::None, act_first: false });
            let got = op.eval(&[Some(&x), Some(&parts[0]), Some(&parts[1])]).expect("it takes them").remove(0);
            for (got, want) in got.to_f64_vec().iter().zip(&exact) {
                assert!((got - want).abs() < tolerance, "{}: {got} for {want}", format.name());
            }
        }
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        let infer =
            |format, k| Op::from(Quantize { format }).infer(&[Some(&TensorType::of_sizes(DType::F32, &[2, k]))]);
        assert!(infer(WeightFormat::Int4, 48).is_err() && infer(WeightFormat::Int8, 1 << 17).is_err());
        assert_eq!(infer(WeightFormat::Int4, 64).expect("two runs")[1].to_string(), "f32[2, 2]");
    }
}
