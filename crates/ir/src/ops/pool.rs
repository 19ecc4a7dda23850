//! Pooling over one to three spatial axes; `x: [n, c, spatial...]` in the stated layout.

use regraft_tensor::{DType, Dim, Tensor};

use super::{
    OpDef, Operands,
    conv::{SpatialLayout, check_windows, conv_out_size, indices},
    elementwise::BinaryFn,
    support::{input, sizes},
};
use crate::{EvalError, OpError, TensorType, attrs};

attrs! {
    /// Maximum over windows; padding never wins: `torch.nn.functional.max_pool2d` (values only).
    pub struct MaxPool {
        /// Window size per spatial axis.
        pub kernel: Vec<usize>,
        /// Step of the window.
        pub stride: Vec<usize>,
        /// Elements of padding before and after.
        pub padding: Vec<usize>,
        /// Step between taps.
        pub dilation: Vec<usize>,
        /// Whether a last window that starts inside counts although it ends outside.
        pub ceil: bool = false,
        /// Layout of `x` and the result.
        pub layout: SpatialLayout = SpatialLayout::Nchw,
    }
}

attrs! {
    /// Mean over windows: `torch.nn.functional.avg_pool2d`.
    pub struct AvgPool {
        /// Window size per spatial axis.
        pub kernel: Vec<usize>,
        /// Step of the window.
        pub stride: Vec<usize>,
        /// Zeros of padding before and after.
        pub padding: Vec<usize>,
        /// Whether a last window that starts inside counts although it ends outside.
        pub ceil: bool = false,
        /// Whether the padding counts in the divisor.
        pub count_include_pad: bool = true,
        /// A divisor to use in place of the number of elements.
        pub divisor: Option<usize> = None,
        /// Layout of `x` and the result.
        pub layout: SpatialLayout = SpatialLayout::Nchw,
    }
}

attrs! {
    /// Mean over `size` windows that cover each axis; window `i` is `floor(i·n/size)..ceil((i+1)·n/size)`:
    /// `torch.nn.functional.adaptive_avg_pool2d`.
    pub struct AdaptiveAvgPool {
        /// Sizes of the result's spatial axes.
        pub size: Vec<usize>,
        /// Layout of `x` and the result.
        pub layout: SpatialLayout = SpatialLayout::Nchw,
    }
}

/// Size of a pooled axis. A window that the end of the axis cuts off counts with `ceil`, if it starts inside of the
/// axis or the padding before it. Exact for padding of at most half a window, which is all that pools take.
pub fn pool_out_size(size: &Dim, kernel: usize, stride: usize, padding: usize, dilation: usize, ceil: bool) -> Dim {
    if !ceil {
        return conv_out_size(size, kernel, stride, padding, dilation);
    }
    // PyTorch's `ceil((size + 2·padding - span)/stride) + 1` windows, but only those that start before
    // `size + padding`, which are `ceil((size + padding)/stride)`.
    let (stride, padding) = (stride as i64, padding as i64);
    let span = window_span(kernel, dilation) as i64;
    let reach = (2 * padding - span).saturating_add(stride).min(padding);
    (size + &Dim::new(reach.saturating_add(stride - 1))).floor_div(&Dim::new(stride))
}

/// First element and end of window `i` when `out` windows cover an axis of `size` elements.
pub fn adaptive_window(i: usize, out: usize, size: usize) -> (usize, usize) {
    (i * size / out, ((i + 1) * size).div_ceil(out))
}

/// Elements from the first tap of a window to its last.
fn window_span(kernel: usize, dilation: usize) -> usize {
    dilation.saturating_mul(kernel.saturating_sub(1)).saturating_add(1)
}

/// Windows of one shape that step over the spatial axes.
struct Windows<'a> {
    kernel: &'a [usize],
    stride: &'a [usize],
    padding: &'a [usize],
    dilation: &'a [usize],
    ceil: bool,
    layout: SpatialLayout,
}

impl Windows<'_> {
    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = check_images(operands, self.layout)?;
        check_windows(
            x.rank() - 2,
            &[
                ("kernel", self.kernel, 1),
                ("stride", self.stride, 1),
                ("padding", self.padding, 0),
                ("dilation", self.dilation, 1),
            ],
        )?;
        let mut out = Vec::with_capacity(x.rank() - 2);
        for (i, size) in self.layout.spatial(&x.shape).iter().enumerate() {
            let (kernel, padding, dilation) = (self.kernel[i], self.padding[i], self.dilation[i]);
            if 2 * padding > window_span(kernel, dilation) {
                let why = format!("{padding} is more than half of a window of {}", window_span(kernel, dilation));
                return Err(OpError::Attr { name: "padding", why });
            }
            let windows = pool_out_size(size, kernel, self.stride[i], padding, dilation, self.ceil);
            if windows.as_const().is_some_and(|v| v < 1) {
                return Err(OpError::Shape(format!("a window of {kernel} does not fit into {x}")));
            }
            out.push(windows);
        }
        Ok(vec![pooled(x, self.layout, &out)])
    }

    /// The elements of an axis of `size` that window `i` covers.
    fn taps(&self, axis: usize, i: usize, size: usize) -> Vec<usize> {
        let first = i * self.stride[axis];
        let tap = |t: usize| (first + t * self.dilation[axis]).checked_sub(self.padding[axis]);
        (0..self.kernel[axis]).filter_map(tap).filter(|&at| at < size).collect()
    }
}

fn check_images<'a>(operands: &Operands<'a>, layout: SpatialLayout) -> Result<&'a TensorType, OpError> {
    operands.expect_dtype(0, DType::is_float, "a float")?;
    operands.expect_rank(0, 3..=5)?;
    let x = operands.get(0);
    if layout.spatial(&x.shape).iter().any(|d| d.is(0)) {
        return Err(OpError::Shape(format!("there is nothing to pool in {x}")));
    }
    Ok(x)
}

/// The type of a result with these spatial sizes.
fn pooled(x: &TensorType, layout: SpatialLayout, spatial: &[Dim]) -> TensorType {
    TensorType::new(x.dtype, layout.shape(&x.shape[0], &x.shape[layout.channel_axis(x.rank())], spatial))
}

/// Pools every channel: each pixel of the result is `f(pixel, elements)`, where the elements are those at the product
/// over the axes of `taps(axis, i, size)`.
fn pool(
    x: &Tensor,
    layout: SpatialLayout,
    shape: &[usize],
    taps: impl Fn(usize, usize, usize) -> Vec<usize>,
    f: impl Fn(&[usize], &[f64]) -> f64,
) -> Tensor {
    let (in_n, in_c, in_s) = layout.strides(x.shape());
    let (out_n, out_c, out_s) = layout.strides(shape);
    let in_sizes = layout.spatial(x.shape());
    let values = x.to_f64_vec();
    let mut out = vec![0.0; shape.iter().product()];
    for pixel in indices(layout.spatial(shape)) {
        let mut offsets = vec![0];
        for (axis, &i) in pixel.iter().enumerate() {
            let taps = taps(axis, i, in_sizes[axis]);
            offsets = offsets
                .iter()
                .flat_map(|o| taps.iter().map(move |t| (o, t)))
                .map(|(o, t)| o + t * in_s[axis])
                .collect();
        }
        let to: usize = pixel.iter().zip(&out_s).map(|(p, s)| p * s).sum();
        for n in 0..shape[0] {
            for c in 0..shape[layout.channel_axis(shape.len())] {
                let elements: Vec<f64> = offsets.iter().map(|o| values[n * in_n + c * in_c + o]).collect();
                out[n * out_n + c * out_c + to] = f(&pixel, &elements);
            }
        }
    }
    Tensor::from_f64(x.dtype(), shape, &out)
}

impl MaxPool {
    fn windows(&self) -> Windows<'_> {
        Windows {
            kernel: &self.kernel,
            stride: &self.stride,
            padding: &self.padding,
            dilation: &self.dilation,
            ceil: self.ceil,
            layout: self.layout,
        }
    }
}

impl OpDef for MaxPool {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        self.windows().infer(operands)
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, shape, windows) = (input(inputs, 0), sizes(&types[0]), self.windows());
        let greatest = |_: &[usize], elements: &[f64]| {
            elements.iter().fold(f64::NEG_INFINITY, |max, &v| BinaryFn::Max.apply_f64(max, v))
        };
        Ok(vec![pool(x, self.layout, &shape, |axis, i, size| windows.taps(axis, i, size), greatest)])
    }
}

impl AvgPool {
    fn windows<'a>(&'a self, dilation: &'a [usize]) -> Windows<'a> {
        Windows {
            kernel: &self.kernel,
            stride: &self.stride,
            padding: &self.padding,
            dilation,
            ceil: self.ceil,
            layout: self.layout,
        }
    }

    /// Elements and padding under the window at `pixel`; what lies beyond the padding does not count.
    fn padded_count(&self, pixel: &[usize], in_sizes: &[usize]) -> usize {
        let count = |axis: usize| {
            let first = pixel[axis] * self.stride[axis];
            (first + self.kernel[axis]).min(in_sizes[axis] + 2 * self.padding[axis]) - first
        };
        (0..pixel.len()).map(count).product()
    }
}

impl OpDef for AvgPool {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        if self.divisor == Some(0) {
            return Err(OpError::Attr { name: "divisor", why: "must be positive".into() });
        }
        self.windows(&vec![1; self.kernel.len()]).infer(operands)
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, shape) = (input(inputs, 0), sizes(&types[0]));
        let dilation = vec![1; self.kernel.len()];
        let windows = self.windows(&dilation);
        let in_sizes = self.layout.spatial(x.shape());
        let mean = |pixel: &[usize], elements: &[f64]| {
            let count = match self.divisor {
                Some(divisor) => divisor,
                None if self.count_include_pad => self.padded_count(pixel, in_sizes),
                None => elements.len(),
            };
            elements.iter().sum::<f64>() / count as f64
        };
        Ok(vec![pool(x, self.layout, &shape, |axis, i, size| windows.taps(axis, i, size), mean)])
    }
}

impl OpDef for AdaptiveAvgPool {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = check_images(operands, self.layout)?;
        check_windows(x.rank() - 2, &[("size", &self.size, 0)])?;
        Ok(vec![pooled(x, self.layout, &self.size.iter().map(|&s| Dim::from(s)).collect::<Vec<_>>())])
    }

    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, shape) = (input(inputs, 0), sizes(&types[0]));
        Tensor::byte_len(x.dtype(), &shape)?;
        let taps = |axis: usize, i: usize, size: usize| {
            let (start, end) = adaptive_window(i, self.size[axis], size);
            (start..end).collect()
        };
        let mean = |_: &[usize], elements: &[f64]| elements.iter().sum::<f64>() / elements.len() as f64;
        Ok(vec![pool(x, self.layout, &shape, taps, mean)])
    }
}

#[cfg(test)]
mod tests {
    use regraft_tensor::Symbol;

    use super::*;
    use crate::Op;

    fn eval(op: impl Into<Op>, x: &Tensor) -> Tensor {
        op.into().eval(&[Some(x)]).expect("x fits").remove(0)
    }

    fn avg(kernel: usize, stride: usize, padding: usize, count_include_pad: bool) -> AvgPool {
        AvgPool {
            kernel: vec![kernel],
            stride: vec![stride],
            padding: vec![padding],
            ceil: true,
            count_include_pad,
            divisor: None,
            layout: SpatialLayout::Nchw,
        }
    }

    /// PyTorch's `pooling_output_shape`, word for word.
    fn torch_out_size(size: i64, kernel: i64, stride: i64, padding: i64, dilation: i64, ceil: bool) -> i64 {
        let room = size + 2 * padding - dilation * (kernel - 1) - 1 + if ceil { stride - 1 } else { 0 };
        let out = room.div_euclid(stride) + 1;
        if ceil && (out - 1) * stride >= size + padding { out - 1 } else { out }
    }

    #[test]
    fn sizes_are_those_of_torch() {
        for at in indices(&[9, 5, 5, 4, 3, 2]) {
            let (size, kernel, stride, padding, dilation) = (at[0] + 1, at[1] + 1, at[2] + 1, at[3], at[4] + 1);
            if 2 * padding > window_span(kernel, dilation) {
                continue;
            }
            let [s, k, t, p, d] = [size, kernel, stride, padding, dilation].map(|v| v as i64);
            let want = torch_out_size(s, k, t, p, d, at[5] == 1);
            let symbolic = pool_out_size(&Dim::sym(Symbol(0)), kernel, stride, padding, dilation, at[5] == 1);
            assert_eq!(pool_out_size(&Dim::new(s), kernel, stride, padding, dilation, at[5] == 1), Dim::new(want));
            assert_eq!(symbolic.eval(&[s]).expect("s0 has a value"), want);
        }
    }

    #[test]
    fn the_divisor_counts_padding_but_no_overhang() {
        // Windows of padded positions 0..3, 3..6 and 6..8: the last one sticks out by one.
        let x = Tensor::from_slice(&[1, 1, 6], &[6.0, 6.0, 6.0, 6.0, 6.0, 6.0]);
        assert_eq!(eval(avg(3, 3, 1, true), &x).to_f64_vec(), [4.0, 6.0, 3.0]);
        assert_eq!(eval(avg(3, 3, 1, false), &x).to_f64_vec(), [6.0, 6.0, 6.0]);
        assert_eq!(eval(AvgPool { divisor: Some(2), ..avg(3, 3, 1, true) }, &x).to_f64_vec(), [6.0, 9.0, 3.0]);
    }

    #[test]
    fn padding_never_wins_and_nan_does() {
        let x = Tensor::from_slice(&[1, 1, 4], &[-5.0, -4.0, f64::NAN, -2.0]);
        let op = MaxPool {
            kernel: vec![2],
            stride: vec![1],
            padding: vec![1],
            dilation: vec![2],
            ceil: false,
            layout: SpatialLayout::Nchw,
        };
        let out = eval(op, &x).to_f64_vec();
        assert_eq!((out[0], out[2], out.len()), (-4.0, -2.0, 4));
        assert!(out[1].is_nan() && out[3].is_nan());
    }

    #[test]
    fn both_layouts_pool_the_same_pixels() {
        let x = Tensor::from_slice(&[1, 2, 5], &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        let op = |layout| AdaptiveAvgPool { size: vec![3], layout };
        let out = eval(op(SpatialLayout::Nchw), &x);
        assert_eq!(out.to_f64_vec(), [1.5, 3.0, 4.5, 15.0, 30.0, 45.0]);
        let x = Tensor::from_slice(&[1, 5, 2], &[1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0, 5.0, 50.0]);
        assert_eq!(eval(op(SpatialLayout::Nhwc), &x).to_f64_vec(), [1.5, 15.0, 3.0, 30.0, 4.5, 45.0]);
    }

    #[test]
    fn unfitting_windows_are_refused() {
        let x = TensorType::of_sizes(DType::F32, &[1, 1, 2]);
        let infer = |op: AvgPool| Op::from(op).infer(&[Some(&x)]);
        assert!(matches!(infer(AvgPool { ceil: false, ..avg(4, 2, 0, true) }), Err(OpError::Shape(_))));
        assert!(matches!(infer(avg(3, 1, 2, true)), Err(OpError::Attr { name: "padding", .. })));
        assert!(matches!(infer(AvgPool { kernel: vec![1, 1], ..avg(1, 1, 0, true) }), Err(OpError::Attr { .. })));
    }
}
