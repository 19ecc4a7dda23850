//! Convolutions over one to three spatial axes.

use regraft_tensor::{DType, Dim, Tensor, contiguous_strides, for_each_index};

use super::{
    OpDef, Operands,
    linear::{Activation, epilogue},
    support::{differ, elements, input, optional, sizes},
};
use crate::{EvalError, OpError, TensorType, attrs, word_enum};

word_enum! {
    /// Where the channel axis of images stands.
    pub enum SpatialLayout {
        /// `[n, c, spatial...]`, PyTorch's
        Nchw = "nchw",
        /// `[n, spatial..., c]`
        Nhwc = "nhwc",
    }
}

impl SpatialLayout {
    /// The channel axis of a value with `rank` axes.
    pub const fn channel_axis(self, rank: usize) -> usize {
        match self {
            SpatialLayout::Nchw => 1,
            SpatialLayout::Nhwc => rank - 1,
        }
    }

    /// The first spatial axis.
    pub const fn first_spatial(self) -> usize {
        match self {
            SpatialLayout::Nchw => 2,
            SpatialLayout::Nhwc => 1,
        }
    }

    /// A shape from its batch, channel and spatial sizes.
    pub fn shape<T: Clone>(self, batch: &T, channels: &T, spatial: &[T]) -> Vec<T> {
        let mut shape = vec![batch.clone()];
        match self {
            SpatialLayout::Nchw => {
                shape.push(channels.clone());
                shape.extend_from_slice(spatial);
            }
            SpatialLayout::Nhwc => {
                shape.extend_from_slice(spatial);
                shape.push(channels.clone());
            }
        }
        shape
    }

    /// The spatial sizes of a shape.
    pub fn spatial<T>(self, shape: &[T]) -> &[T] {
        match self {
            SpatialLayout::Nchw => &shape[2..],
            SpatialLayout::Nhwc => &shape[1..shape.len() - 1],
        }
    }

    /// Strides of batch, channel and spatial axes of a row-major value.
    pub(crate) fn strides(self, shape: &[usize]) -> (usize, usize, Vec<usize>) {
        let strides = contiguous_strides(shape);
        (strides[0], strides[self.channel_axis(shape.len())], self.spatial(&strides).to_vec())
    }
}

attrs! {
    /// `act(conv(x, W) + bias + residual)`, or `act(conv(x, W) + bias) + residual`, for `x: [n, c, spatial...]` in the
    /// stated layout, `W: [out, c/groups, kernel...]`, `bias: [out]`, `residual` like the result:
    /// `torch.nn.functional.conv1d`, `conv2d`, `conv3d` with an epilogue.
    pub struct Conv {
        /// Step of the window, per spatial axis.
        pub stride: Vec<usize>,
        /// Zeros added before and after, per spatial axis.
        pub padding: Vec<usize>,
        /// Step between taps, per spatial axis.
        pub dilation: Vec<usize>,
        /// Groups that channels are split into.
        pub groups: usize = 1,
        /// Layout of `x`, `residual` and the result.
        pub layout: SpatialLayout = SpatialLayout::Nchw,
        /// Activation.
        pub act: Activation = Activation::None,
        /// Whether the activation comes before the residual is added.
        pub act_first: bool = false,
    }
}

attrs! {
    /// Transposed convolution of `x: [n, c, spatial...]` with `W: [c, out/groups, kernel...]` and `bias: [out]`:
    /// `torch.nn.functional.conv_transpose2d` and its 1-D and 3-D forms.
    pub struct ConvTranspose {
        /// Step of the window in the result, per spatial axis.
        pub stride: Vec<usize>,
        /// Elements cut off before and after, per spatial axis.
        pub padding: Vec<usize>,
        /// Elements added after, per spatial axis.
        pub output_padding: Vec<usize>,
        /// Step between taps, per spatial axis.
        pub dilation: Vec<usize>,
        /// Groups that channels are split into.
        pub groups: usize = 1,
    }
}

/// Size of a convolved axis: `(size + 2·padding - dilation·(kernel - 1) - 1) / stride + 1`.
pub fn conv_out_size(size: &Dim, kernel: usize, stride: usize, padding: usize, dilation: usize) -> Dim {
    let span = (dilation as i64).saturating_mul(kernel as i64 - 1).saturating_add(1);
    let room = &(size + &Dim::new((padding as i64).saturating_mul(2).saturating_sub(span)));
    &room.floor_div(&Dim::from(stride)) + &Dim::new(1)
}

/// Checks the attributes that all windowed ops have: one positive value per spatial axis.
pub(crate) fn check_windows(spatial: usize, lists: &[(&'static str, &[usize], usize)]) -> Result<(), OpError> {
    for (name, list, least) in lists {
        if list.len() != spatial || list.iter().any(|v| v < least || *v > 1 << 20) {
            let why = format!("needs {spatial} values of at least {least}, found {list:?}");
            return Err(OpError::Attr { name, why });
        }
    }
    Ok(())
}

fn check_images(operands: &Operands<'_>, groups: usize) -> Result<usize, OpError> {
    operands.expect_dtype(0, DType::is_float, "a float")?;
    operands.expect_same_dtype(1..4)?;
    operands.expect_rank(0, 3..=5)?;
    let rank = operands.get(0).rank();
    operands.expect_rank(1, rank..=rank)?;
    if groups == 0 {
        return Err(OpError::Attr { name: "groups", why: "must be positive".into() });
    }
    Ok(rank - 2)
}

/// The kernel's sizes, which must be known.
fn kernel_sizes(weight: &TensorType) -> Result<Vec<usize>, OpError> {
    let sizes: Option<Vec<usize>> = weight.shape.iter().map(Dim::as_usize).collect();
    sizes
        .filter(|s| s.iter().all(|&d| d > 0))
        .ok_or_else(|| OpError::Shape(format!("the weight must have known positive sizes, found {weight}")))
}

impl OpDef for Conv {
    const OPERANDS: &'static [&'static str] = &["x", "weight", "bias?", "residual?"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        let spatial = check_images(operands, self.groups)?;
        check_windows(
            spatial,
            &[("stride", &self.stride, 1), ("padding", &self.padding, 0), ("dilation", &self.dilation, 1)],
        )?;
        let x = operands.get(0);
        let w = kernel_sizes(operands.get(1))?;
        let channels = &x.shape[self.layout.channel_axis(x.rank())];
        if differ(channels, &Dim::from(w[1].saturating_mul(self.groups))) || w[0] % self.groups != 0 {
            let why = format!("{channels} channels in {} groups, weight {}", self.groups, operands.get(1));
            return Err(OpError::Shape(why));
        }
        let out: Vec<Dim> = (self.layout.spatial(&x.shape).iter().enumerate())
            .map(|(i, d)| conv_out_size(d, w[i + 2], self.stride[i], self.padding[i], self.dilation[i]))
            .collect();
        if out.iter().any(|d| d.as_const().is_some_and(|v| v < 1)) {
            return Err(OpError::Shape(format!("the window of {} is larger than {x}", operands.get(1))));
        }
        let shape = self.layout.shape(&x.shape[0], &Dim::from(w[0]), &out);
        operands.expect_shape(2, &[Dim::from(w[0])])?;
        operands.expect_shape(3, &shape)?;
        Ok(vec![TensorType::new(x.dtype, shape)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, w, shape) = (input(inputs, 0), input(inputs, 1), sizes(&types[0]));
        let (in_n, in_c, in_s) = self.layout.strides(x.shape());
        let (out_n, out_c, out_s) = self.layout.strides(&shape);
        let in_sizes = self.layout.spatial(x.shape());
        let (kernel, spatial) = (&w.shape()[2..], self.layout.spatial(&shape));
        let (group_in, group_out) = (w.shape()[1], w.shape()[0] / self.groups);
        let taps: usize = kernel.iter().product();
        let (vx, vw) = (x.to_f64_vec(), w.to_f64_vec());
        let bias = optional(inputs, 2).map(Tensor::to_f64_vec);
        let residual = optional(inputs, 3).map(Tensor::to_f64_vec);
        let mut out = vec![0.0; shape.iter().product()];
        for n in 0..shape[0] {
            for pixel in indices(spatial) {
                let tap_offsets = self.tap_offsets(&pixel, kernel, in_sizes, &in_s);
                let at: usize = pixel.iter().zip(&out_s).map(|(p, s)| p * s).sum::<usize>() + n * out_n;
                for oc in 0..w.shape()[0] {
                    let group = oc / group_out;
                    let mut sum = 0.0;
                    for ic in 0..group_in {
                        let base = n * in_n + (group * group_in + ic) * in_c;
                        let weights = &vw[(oc * group_in + ic) * taps..][..taps];
                        for (offset, weight) in tap_offsets.iter().zip(weights) {
                            sum += offset.map_or(0.0, |o| vx[base + o] * weight);
                        }
                    }
                    let at = at + oc * out_c;
                    sum += bias.as_ref().map_or(0.0, |b| b[oc]);
                    out[at] = epilogue(self.act, self.act_first, sum, residual.as_ref().map(|r| r[at]));
                }
            }
        }
        Ok(vec![Tensor::from_f64(types[0].dtype, &shape, &out)])
    }

    fn flops(&self, inputs: &[Option<&[usize]>], outputs: &[&[usize]]) -> u64 {
        2 * elements(outputs[0]) * inputs[1].map_or(0, |weight| elements(&weight[1..]))
    }
}

impl Conv {
    /// For each tap the offset of the element it reads for the output at `pixel`; `None` in the padding.
    fn tap_offsets(&self, pixel: &[usize], kernel: &[usize], sizes: &[usize], strides: &[usize]) -> Vec<Option<usize>> {
        let tap = |tap: Vec<usize>| {
            let mut offset = 0;
            for (i, t) in tap.into_iter().enumerate() {
                let at = (pixel[i] * self.stride[i] + t * self.dilation[i]).checked_sub(self.padding[i])?;
                if at >= sizes[i] {
                    return None;
                }
                offset += at * strides[i];
            }
            Some(offset)
        };
        indices(kernel).into_iter().map(tap).collect()
    }
}

impl OpDef for ConvTranspose {
    const OPERANDS: &'static [&'static str] = &["x", "weight", "bias?"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        let spatial = check_images(operands, self.groups)?;
        check_windows(
            spatial,
            &[
                ("stride", &self.stride, 1),
                ("padding", &self.padding, 0),
                ("output_padding", &self.output_padding, 0),
                ("dilation", &self.dilation, 1),
            ],
        )?;
        let x = operands.get(0);
        let w = kernel_sizes(operands.get(1))?;
        if differ(&x.shape[1], &Dim::from(w[0])) || w[0] % self.groups != 0 {
            let why = format!("{} channels in {} groups, weight {}", x.shape[1], self.groups, operands.get(1));
            return Err(OpError::Shape(why));
        }
        let channels = Dim::from(w[1].saturating_mul(self.groups));
        operands.expect_shape(2, std::slice::from_ref(&channels))?;
        let mut shape = vec![x.shape[0].clone(), channels];
        for (i, size) in x.shape[2..].iter().enumerate() {
            let span = self.dilation[i].saturating_mul(w[i + 2] - 1).min(1 << 62) + self.output_padding[i] + 1;
            let span = span as i64;
            let grown = &(size - &Dim::new(1)) * &Dim::from(self.stride[i]);
            shape.push(&grown + &Dim::new(span - 2 * self.padding[i] as i64));
        }
        if shape[2..].iter().any(|d| d.as_const().is_some_and(|v| v < 1)) {
            return Err(OpError::Shape(format!("the result would have shape {shape:?}")));
        }
        Ok(vec![TensorType::new(x.dtype, shape)])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, w, shape) = (input(inputs, 0), input(inputs, 1), sizes(&types[0]));
        let strides = contiguous_strides(&shape);
        let (group_in, group_out) = (w.shape()[0] / self.groups, w.shape()[1]);
        let (kernel, taps) = (&w.shape()[2..], w.shape()[2..].iter().product::<usize>());
        let (vx, vw) = (x.to_f64_vec(), w.to_f64_vec());
        let bias = optional(inputs, 2).map(Tensor::to_f64_vec);
        let mut out = vec![0.0; shape.iter().product()];
        let (pixels, kernel_taps) = (indices(&x.shape()[2..]), indices(kernel));
        for n in 0..shape[0] {
            for ic in 0..w.shape()[0] {
                for (p, pixel) in pixels.iter().enumerate() {
                    let value = vx[(n * w.shape()[0] + ic) * pixels.len() + p];
                    for (t, tap) in kernel_taps.iter().enumerate() {
                        let Some(offset) = self.target(pixel, tap, &shape[2..], &strides[2..]) else { continue };
                        for oc in 0..group_out {
                            let channel = ic / group_in * group_out + oc;
                            out[n * strides[0] + channel * strides[1] + offset] +=
                                value * vw[(ic * group_out + oc) * taps + t];
                        }
                    }
                }
            }
        }
        if let Some(bias) = bias {
            let inner = strides[1];
            out.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i / inner % shape[1]]);
        }
        Ok(vec![Tensor::from_f64(types[0].dtype, &shape, &out)])
    }

    fn flops(&self, inputs: &[Option<&[usize]>], _: &[&[usize]]) -> u64 {
        2 * inputs[0].map_or(0, elements) * inputs[1].map_or(0, |weight| elements(&weight[1..]))
    }
}

impl ConvTranspose {
    /// The offset of the element of the result that `tap` of input `pixel` adds to; `None` where it is cut off.
    fn target(&self, pixel: &[usize], tap: &[usize], sizes: &[usize], strides: &[usize]) -> Option<usize> {
        let mut offset = 0;
        for i in 0..pixel.len() {
            let at = (pixel[i] * self.stride[i] + tap[i] * self.dilation[i]).checked_sub(self.padding[i])?;
            if at >= sizes[i] {
                return None;
            }
            offset += at * strides[i];
        }
        Some(offset)
    }
}

/// All indices of `shape` in row-major order.
pub(crate) fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let strides = contiguous_strides(shape);
    let mut all = Vec::new();
    for_each_index(shape, &strides, |at| {
        all.push(shape.iter().zip(&strides).map(|(d, s)| at / s % d).collect());
    });
    all
}
