//! Normalizations.

use regraft_tensor::{DType, Dim, Tensor};

use super::{
    OpDef, Operands,
    conv::SpatialLayout,
    support::{around, input, optional},
};
use crate::{EvalError, OpError, TensorType, attrs};

attrs! {
    /// `(x - mean)/sqrt(var + eps)·weight + bias` per channel (axis 1 or last, by layout), with given statistics:
    /// `torch.nn.functional.batch_norm` in inference. Operands `mean`, `var`, `weight?`, `bias?`: `[c]`.
    /// `x` has rank 2 or more.
    pub struct BatchNorm {
        /// Added to the variance.
        pub eps: f64,
        /// Layout of `x`.
        pub layout: SpatialLayout = SpatialLayout::Nchw,
    }
}

attrs! {
    /// `(x - mean)/sqrt(var + eps)·weight + bias` over the last `axes` axes: `torch.nn.functional.layer_norm`.
    /// `weight` and `bias` have the shape of those axes.
    pub struct LayerNorm {
        /// Number of trailing axes.
        pub axes: usize,
        /// Added to the variance.
        pub eps: f64,
    }
}

attrs! {
    /// `x/sqrt(mean(x²) + eps)·weight` over the last `axes` axes: `torch.nn.functional.rms_norm`.
    pub struct RmsNorm {
        /// Number of trailing axes.
        pub axes: usize,
        /// Added to the mean square.
        pub eps: f64,
    }
}

attrs! {
    /// Normalization over groups of channels and all spatial axes: `torch.nn.functional.group_norm` (instance norm has as
    /// many groups as channels). `weight` and `bias`: `[c]`.
    pub struct GroupNorm {
        /// Number of groups.
        pub groups: usize,
        /// Added to the variance.
        pub eps: f64,
        /// Layout of `x`.
        pub layout: SpatialLayout = SpatialLayout::Nchw,
    }
}

impl OpDef for BatchNorm {
    const OPERANDS: &'static [&'static str] = &["x", "mean", "var", "weight?", "bias?"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        check_floats(operands)?;
        operands.expect_rank(0, 2..)?;
        let x = operands.get(0);
        let channels = &x.shape[self.layout.channel_axis(x.rank())];
        (1..5).try_for_each(|i| operands.expect_shape(i, std::slice::from_ref(channels)))?;
        Ok(vec![x.clone()])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], _: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, mean, var) = (input(inputs, 0), input(inputs, 1).to_f64_vec(), input(inputs, 2).to_f64_vec());
        let (_, channels, inner) = around(x.shape(), self.layout.channel_axis(x.shape().len()));
        let channel = |at: usize| at / inner % channels;
        let mut values = x.to_f64_vec();
        for (at, v) in values.iter_mut().enumerate() {
            *v = (*v - mean[channel(at)]) / (var[channel(at)] + self.eps).sqrt();
        }
        scale_and_shift(&mut values, optional(inputs, 3), optional(inputs, 4), channel);
        Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &values)])
    }
}

impl OpDef for LayerNorm {
    const OPERANDS: &'static [&'static str] = &["x", "weight?", "bias?"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        infer_trailing(operands, self.axes)
    }

    fn eval(&self, inputs: &[Option<&Tensor>], _: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        Ok(vec![eval_trailing(inputs, self.axes, true, self.eps)])
    }
}

impl OpDef for RmsNorm {
    const OPERANDS: &'static [&'static str] = &["x", "weight?"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        infer_trailing(operands, self.axes)
    }

    fn eval(&self, inputs: &[Option<&Tensor>], _: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        Ok(vec![eval_trailing(inputs, self.axes, false, self.eps)])
    }
}

impl OpDef for GroupNorm {
    const OPERANDS: &'static [&'static str] = &["x", "weight?", "bias?"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        check_floats(operands)?;
        operands.expect_rank(0, 2..)?;
        let x = operands.get(0);
        let channels = &x.shape[self.layout.channel_axis(x.rank())];
        if self.groups == 0 || channels.as_usize().is_some_and(|c| c % self.groups != 0) {
            return Err(OpError::Attr {
                name: "groups",
                why: format!("{channels} channels in {} groups", self.groups),
            });
        }
        (1..3).try_for_each(|i| operands.expect_shape(i, std::slice::from_ref(channels)))?;
        Ok(vec![x.clone()])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], _: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let x = input(inputs, 0);
        let (_, channels, inner) = around(x.shape(), self.layout.channel_axis(x.shape().len()));
        let image: usize = x.shape()[1..].iter().product();
        let channel = |at: usize| at / inner % channels;
        let group = |at: usize| at / image * self.groups + channel(at) / (channels / self.groups);
        let mut values = x.to_f64_vec();
        normalize(&mut values, x.shape()[0] * self.groups, group, true, self.eps);
        scale_and_shift(&mut values, optional(inputs, 1), optional(inputs, 2), channel);
        Ok(vec![Tensor::from_f64(x.dtype(), x.shape(), &values)])
    }
}

fn check_floats(operands: &Operands<'_>) -> Result<(), OpError> {
    operands.expect_dtype(0, DType::is_float, "a float")?;
    operands.expect_same_dtype(1..5)
}

/// Inference of the norms over trailing axes.
fn infer_trailing(operands: &Operands<'_>, axes: usize) -> Result<Vec<TensorType>, OpError> {
    check_floats(operands)?;
    let x = operands.get(0);
    if axes == 0 || axes > x.rank() {
        return Err(OpError::Attr { name: "axes", why: format!("{axes} trailing axes of {x}") });
    }
    let trailing: &[Dim] = &x.shape[x.rank() - axes..];
    (1..3).try_for_each(|i| operands.expect_shape(i, trailing))?;
    Ok(vec![x.clone()])
}

/// Evaluation of the norms over trailing axes.
fn eval_trailing(inputs: &[Option<&Tensor>], axes: usize, center: bool, eps: f64) -> Tensor {
    let x = input(inputs, 0);
    let (rows, row) = x.shape().split_at(x.shape().len() - axes);
    let row: usize = row.iter().product();
    let mut values = x.to_f64_vec();
    normalize(&mut values, rows.iter().product(), |at| at / row, center, eps);
    scale_and_shift(&mut values, optional(inputs, 1), optional(inputs, 2), |at| at % row);
    Tensor::from_f64(x.dtype(), x.shape(), &values)
}

/// `(x - mean)/sqrt(var + eps)` with the statistics of each group of elements; without `center` the mean counts as 0.
fn normalize(values: &mut [f64], groups: usize, group: impl Fn(usize) -> usize, center: bool, eps: f64) {
    let means = |values: &[f64]| {
        let mut sums = vec![(0.0, 0.0); groups];
        for (at, v) in values.iter().enumerate() {
            let (sum, count) = &mut sums[group(at)];
            (*sum, *count) = (*sum + v, *count + 1.0);
        }
        sums.into_iter().map(|(sum, count)| sum / count).collect::<Vec<f64>>()
    };
    if center {
        let mean = means(values);
        values.iter_mut().enumerate().for_each(|(at, v)| *v -= mean[group(at)]);
    }
    let var = means(&values.iter().map(|v| v * v).collect::<Vec<_>>());
    values.iter_mut().enumerate().for_each(|(at, v)| *v /= (var[group(at)] + eps).sqrt());
}

/// Multiplies by the weight and adds the bias that `parameter` names for each element.
fn scale_and_shift(
    values: &mut [f64],
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    parameter: impl Fn(usize) -> usize,
) {
    if let Some(weight) = weight.map(Tensor::to_f64_vec) {
        values.iter_mut().enumerate().for_each(|(at, v)| *v *= weight[parameter(at)]);
    }
    if let Some(bias) = bias.map(Tensor::to_f64_vec) {
        values.iter_mut().enumerate().for_each(|(at, v)| *v += bias[parameter(at)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    fn eval(op: impl Into<Op>, inputs: &[Option<&Tensor>]) -> Vec<f64> {
        op.into().eval(inputs).expect("they fit")[0].to_f64_vec()
    }

    #[test]
    fn variances_are_biased() {
        let x = Tensor::from_slice(&[2, 2], &[1.0, 3.0, 10.0, 30.0]);
        assert_eq!(eval(LayerNorm { axes: 1, eps: 0.0 }, &[Some(&x)]), [-1.0, 1.0, -1.0, 1.0]);
        let x = Tensor::from_slice(&[1, 2], &[1.0, 7.0]);
        let bias = Tensor::from_slice(&[2], &[0.5, 0.5]);
        assert_eq!(eval(LayerNorm { axes: 2, eps: 16.0 }, &[Some(&x), None, None]), [-0.6, 0.6]);
        assert_eq!(eval(LayerNorm { axes: 1, eps: 16.0 }, &[Some(&x), None, Some(&bias)]), [-0.6 + 0.5, 1.1]);
        assert_eq!(eval(RmsNorm { axes: 1, eps: 0.0 }, &[Some(&x), Some(&bias)]), [0.1, 0.7]);
    }

    #[test]
    fn group_norm_is_the_same_in_both_layouts() {
        // Two channels per group, two pixels; in the other layout channels are innermost.
        let first = Tensor::from_slice(&[1, 4, 2], &[1.0, 1.0, 3.0, 3.0, 0.0, 4.0, 0.0, 4.0]);
        let last = Tensor::from_slice(&[1, 2, 4], &[1.0, 3.0, 0.0, 0.0, 1.0, 3.0, 4.0, 4.0]);
        let weight = Tensor::from_slice(&[4], &[1.0, 2.0, 3.0, 4.0]);
        let op = |layout| GroupNorm { groups: 2, eps: 0.0, layout };
        let want = [-1.0, -1.0, 2.0, 2.0, -3.0, 3.0, -4.0, 4.0];
        assert_eq!(eval(op(SpatialLayout::Nchw), &[Some(&first), Some(&weight)]), want);
        let want = [-1.0, 2.0, -3.0, -4.0, -1.0, 2.0, 3.0, 4.0];
        assert_eq!(eval(op(SpatialLayout::Nhwc), &[Some(&last), Some(&weight)]), want);
    }

    #[test]
    fn batch_norm_takes_the_channel_axis_of_the_layout() {
        let statistics = TensorType::of_sizes(DType::F32, &[3]);
        let x = TensorType::of_sizes(DType::F32, &[2, 5, 3]);
        let infer =
            |layout| Op::from(BatchNorm { eps: 1e-5, layout }).infer(&[Some(&x), Some(&statistics), Some(&statistics)]);
        assert!(infer(SpatialLayout::Nhwc).is_ok());
        assert!(matches!(infer(SpatialLayout::Nchw), Err(OpError::Shape(_))));
        let x = Tensor::from_slice(&[1, 2], &[5.0, 5.0]);
        let (mean, var) = (Tensor::from_slice(&[2], &[1.0, 2.0]), Tensor::from_slice(&[2], &[3.0, 8.0]));
        let op = BatchNorm { eps: 1.0, layout: SpatialLayout::Nchw };
        assert_eq!(eval(op, &[Some(&x), Some(&mean), Some(&var)]), [2.0, 1.0]);
    }

    #[test]
    fn empty_values_and_bad_axes() {
        let x = Tensor::from_slice::<f32>(&[0, 4, 2], &[]);
        let layout = SpatialLayout::Nchw;
        assert!(eval(GroupNorm { groups: 2, eps: 0.0, layout }, &[Some(&x)]).is_empty());
        assert!(eval(LayerNorm { axes: 1, eps: 0.0 }, &[Some(&x)]).is_empty());
        let x = TensorType::of_sizes(DType::F32, &[4]);
        for axes in [0, 2] {
            let error = Op::from(LayerNorm { axes, eps: 0.0 }).infer(&[Some(&x)]);
            assert!(matches!(error, Err(OpError::Attr { name: "axes", .. })));
        }
    }
}
