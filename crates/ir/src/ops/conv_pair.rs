//! A convolution of single pixels and the depthwise one behind it, whose image between them is never there as a whole.

use regraft_tensor::{DType, Dim, Tensor};

use super::{
    Conv, OpDef, Operands, SpatialLayout,
    linear::Activation,
    support::{elements, sizes},
};
use crate::{EvalError, OpError, TensorType, attrs};

attrs! {
    /// `act(depthwise(inner_act(conv(x, V) + c), W) + bias)` for channels-last images `x: [n, spatial..., c]`, `V: [m, c, 1...]`, `c: [m]`,
    /// `W: [m, 1, kernel...]` and `bias: [m]`: two [`Conv`] as mobile networks have them.
    pub struct ConvPair {
        /// Step of the depthwise window, per spatial axis.
        pub stride: Vec<usize>,
        /// Zeros added before and after, per spatial axis, to the image between the two.
        pub padding: Vec<usize>,
        /// Step between taps, per spatial axis.
        pub dilation: Vec<usize>,
        /// Activation between the two.
        pub inner_act: Activation = Activation::None,
        /// Activation of the result.
        pub act: Activation = Activation::None,
    }
}

impl ConvPair {
    /// The convolution of single pixels.
    pub fn pointwise(&self) -> Conv {
        let axes = self.stride.len();
        Conv {
            stride: vec![1; axes],
            padding: vec![0; axes],
            dilation: vec![1; axes],
            groups: 1,
            layout: SpatialLayout::Nhwc,
            act: self.inner_act,
            act_first: false,
        }
    }

    /// The depthwise convolution of an image of so many channels.
    pub fn depthwise(&self, channels: usize) -> Conv {
        Conv {
            stride: self.stride.clone(),
            padding: self.padding.clone(),
            dilation: self.dilation.clone(),
            groups: channels,
            layout: SpatialLayout::Nhwc,
            act: self.act,
            act_first: false,
        }
    }

    /// The type of the image between the two.
    ///
    /// # Errors
    /// When there is none.
    fn between(&self, operands: &Operands<'_>) -> Result<TensorType, OpError> {
        operands.expect_dtype(0, DType::is_float, "a float")?;
        operands.expect_same_dtype(1..5)?;
        let first = [Some(operands.get(0)), Some(operands.get(1)), operands.optional(2)];
        let types = self.pointwise().infer(&Operands::new(Conv::OPERANDS, &first)?)?;
        if operands.get(1).shape[2..].iter().any(|size| *size != Dim::from(1usize)) {
            return Err(OpError::Shape(format!("the first window must be one pixel, found {}", operands.get(1))));
        }
        types.into_iter().next().ok_or_else(|| OpError::Shape("a convolution has a result".into()))
    }
}

impl OpDef for ConvPair {
    const OPERANDS: &'static [&'static str] = &["x", "pointwise", "pointwise_bias?", "depthwise", "bias?"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        let between = self.between(operands)?;
        let Some(channels) = operands.get(1).shape[0].as_usize() else {
            return Err(OpError::Shape(format!("the weight must have known sizes, found {}", operands.get(1))));
        };
        let second = [Some(&between), Some(operands.get(3)), operands.optional(4)];
        self.depthwise(channels).infer(&Operands::new(Conv::OPERANDS, &second)?)
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let at = |index: usize| inputs.get(index).copied().flatten();
        let ops: Vec<Option<TensorType>> =
            (0..5).map(|i| at(i).map(|t| TensorType::of_sizes(t.dtype(), t.shape()))).collect();
        let ops: Vec<Option<&TensorType>> = ops.iter().map(Option::as_ref).collect();
        let between = self.between(&Operands::new(ConvPair::OPERANDS, &ops)?)?;
        let channels = sizes(&between).last().copied().unwrap_or(0);
        let image = self.pointwise().eval(&[at(0), at(1), at(2)], &[between])?;
        self.depthwise(channels).eval(&[image.first(), at(3), at(4)], types)
    }

    fn flops(&self, inputs: &[Option<&[usize]>], outputs: &[&[usize]]) -> u64 {
        let (x, size) = (inputs[0].unwrap_or(&[]), |i: usize| inputs[i].map_or(0, |weight| elements(&weight[1..])));
        let pixels = elements(&x[..x.len().saturating_sub(1)]);
        let channels = inputs[1].map_or(0, |weight| weight[0] as u64);
        2 * pixels * channels * size(1) + 2 * elements(outputs[0]) * size(3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> ConvPair {
        ConvPair {
            inner_act: Activation::Relu,
            stride: vec![2, 2],
            padding: vec![1, 1],
            dilation: vec![1, 1],
            act: Activation::None,
        }
    }

    fn infer(pointwise: &[usize], depthwise: &[usize]) -> Result<Vec<TensorType>, OpError> {
        let of = |shape: &[usize]| TensorType::of_sizes(DType::F32, shape);
        let types = [of(&[1, 8, 8, 3]), of(pointwise), of(depthwise)];
        let operands = [Some(&types[0]), Some(&types[1]), None, Some(&types[2]), None];
        pair().infer(&Operands::new(ConvPair::OPERANDS, &operands)?)
    }

    #[test]
    fn the_second_window_makes_the_shape() {
        let shape = infer(&[6, 3, 1, 1], &[6, 1, 3, 3]).unwrap();
        assert_eq!(shape, [TensorType::of_sizes(DType::F32, &[1, 4, 4, 6])]);
        assert!(infer(&[6, 3, 3, 3], &[6, 1, 3, 3]).is_err());
        assert!(infer(&[6, 2, 1, 1], &[6, 1, 3, 3]).is_err());
        assert!(infer(&[6, 3, 1, 1], &[5, 1, 3, 3]).is_err());
    }

    #[test]
    fn it_is_two_convolutions() {
        let tensor = |shape: &[usize], step: f32| {
            let data: Vec<f32> = (0..shape.iter().product()).map(|i| (i as f32 * step).sin()).collect();
            Tensor::from_slice(shape, &data)
        };
        let x = tensor(&[1, 5, 5, 3], 0.3);
        let [v, c, w, b] =
            [tensor(&[4, 3, 1, 1], 0.7), tensor(&[4], 1.1), tensor(&[4, 1, 3, 3], 0.9), tensor(&[4], 0.2)];
        let image = crate::Op::from(pair().pointwise()).eval(&[Some(&x), Some(&v), Some(&c)]).unwrap();
        let want = crate::Op::from(pair().depthwise(4)).eval(&[image.first(), Some(&w), Some(&b)]).unwrap();
        let got = crate::Op::from(pair()).eval(&[Some(&x), Some(&v), Some(&c), Some(&w), Some(&b)]).unwrap();
        assert!(got[0].bit_equal(&want[0]));
    }
}
