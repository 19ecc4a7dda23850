//! Spatial resampling.

use regraft_tensor::{DType, Dim, Tensor};

use super::{
    OpDef, Operands,
    conv::SpatialLayout,
    support::{around, input, pick, sizes},
};
use crate::{EvalError, OpError, TensorType, attrs, word_enum};

word_enum! {
    /// How new elements are made.
    pub enum ResizeMode {
        /// The nearest element: `floor(i·scale)`
        Nearest = "nearest",
        /// Linear interpolation along each spatial axis
        Linear = "linear",
        /// Cubic convolution along each spatial axis, with the coefficient -0.75
        Cubic = "cubic",
    }
}

impl ResizeMode {
    /// How many elements along an axis a new one is made of.
    pub const fn taps(self) -> usize {
        match self {
            ResizeMode::Nearest => 1,
            ResizeMode::Linear => 2,
            ResizeMode::Cubic => 4,
        }
    }
}

attrs! {
    /// `torch.nn.functional.interpolate` of `x: [n, c, spatial...]`, modes nearest, linear, bilinear,
    /// trilinear and bicubic.
    pub struct Resize {
        /// How.
        pub mode: ResizeMode,
        /// Sizes of the result's spatial axes.
        pub size: Vec<Dim>,
        /// `align_corners` of the linear and the cubic mode.
        pub align_corners: bool = false,
        /// Scale factors result/input per spatial axis when the program gives them and they, not the sizes, set the
        /// sampling positions.
        pub scales: Option<Vec<f64>> = None,
        /// Layout of `x` and the result.
        pub layout: SpatialLayout = SpatialLayout::Nchw,
    }
}

impl Resize {
    /// For each of `out` elements along spatial axis `axis`, which has `size` elements, at least one: the elements that it is made of,
    /// [`ResizeMode::taps`] of them, and the weight of each. Positions are rounded as in PyTorch's 2-D kernels, so that the same
    /// elements are picked: to f32, but for the modes that blend f64.
    pub fn taps(&self, axis: usize, size: usize, out: usize, dtype: DType) -> Vec<(usize, f64)> {
        if self.mode == ResizeMode::Linear && size == out {
            return (0..out).flat_map(|i| [(i, 1.0), (i, 0.0)]).collect();
        }
        let blends = self.mode != ResizeMode::Nearest;
        let round = |v: f64| if dtype == DType::F64 && blends { v } else { f64::from(v as f32) };
        let aligned = blends && self.align_corners;
        let scale = round(match &self.scales {
            _ if aligned => {
                if out > 1 {
                    (size - 1) as f64 / (out - 1) as f64
                } else {
                    0.0
                }
            }
            Some(scales) => 1.0 / scales[axis],
            None => size as f64 / out as f64,
        });
        let position = |i: usize| match self.mode {
            ResizeMode::Nearest => round(scale * i as f64),
            _ if aligned => round(scale * i as f64),
            _ => round(round(scale * (i as f64 + 0.5)) - 0.5),
        };
        let mut taps = Vec::with_capacity(out * self.mode.taps());
        for position in (0..out).map(position) {
            let first = ((position.max(0.0) as f32).floor() as usize).min(size - 1);
            match self.mode {
                ResizeMode::Nearest => taps.push((first, 1.0)),
                ResizeMode::Linear => {
                    let weight = (position - first as f64).clamp(0.0, 1.0);
                    taps.extend([(first, 1.0 - weight), ((first + 1).min(size - 1), weight)]);
                }
                ResizeMode::Cubic => {
                    let floor = position.floor();
                    let place = |k: usize| (floor + k as f64 - 1.0).clamp(0.0, (size - 1) as f64) as usize;
                    taps.extend(cubic(position - floor).into_iter().enumerate().map(|(k, weight)| (place(k), weight)));
                }
            }
        }
        taps
    }
}

/// Weights of the elements around a position that is `t` behind the second of them.
fn cubic(t: f64) -> [f64; 4] {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}

impl OpDef for Resize {
    const OPERANDS: &'static [&'static str] = &["x"];

    fn infer(&self, operands: &Operands<'_>) -> Result<Vec<TensorType>, OpError> {
        if self.mode != ResizeMode::Nearest {
            operands.expect_dtype(0, DType::is_float, "a float")?;
        }
        operands.expect_rank(0, 3..=5)?;
        let x = operands.get(0);
        let empty = |d: &Dim| d.as_const().is_some_and(|v| v < 1);
        if self.size.len() != x.rank() - 2 || self.size.iter().any(empty) {
            return Err(OpError::Attr { name: "size", why: format!("{:?} for {x}", self.size) });
        }
        if let Some(scales) = &self.scales
            && (scales.len() != self.size.len() || !scales.iter().all(|&s| s > 0.0 && s.is_finite()))
        {
            return Err(OpError::Attr { name: "scales", why: format!("{scales:?} for {x}") });
        }
        if self.layout.spatial(&x.shape).iter().any(empty) {
            return Err(OpError::Shape(format!("{x} has an empty spatial axis")));
        }
        let channels = &x.shape[self.layout.channel_axis(x.rank())];
        Ok(vec![TensorType::new(x.dtype, self.layout.shape(&x.shape[0], channels, &self.size))])
    }

    /// One spatial axis after the other: the modes are separable.
    fn eval(&self, inputs: &[Option<&Tensor>], types: &[TensorType]) -> Result<Vec<Tensor>, EvalError> {
        let (x, out) = (input(inputs, 0), sizes(&types[0]));
        Tensor::byte_len(x.dtype(), &out)?;
        let mut nearest = x.clone();
        let mut blended = if self.mode == ResizeMode::Nearest { vec![] } else { x.to_f64_vec() };
        let mut shape = x.shape().to_vec();
        for i in 0..self.size.len() {
            let axis = self.layout.first_spatial() + i;
            let taps = self.taps(i, shape[axis], out[axis], x.dtype());
            let (outer, size, inner) = around(&shape, axis);
            let (count, step) = (out[axis], self.mode.taps());
            let each = (0..outer * count * inner).map(|at| {
                let place = move |k: usize| (at / inner / count * size + k) * inner + at % inner;
                taps[at / inner % count * step..][..step].iter().map(move |(tap, weight)| (place(*tap), weight))
            });
            shape[axis] = count;
            match self.mode {
                ResizeMode::Nearest => {
                    nearest = pick(&nearest, &shape, each.map(|mut taps| taps.next().map_or(0, |(at, _)| at)));
                }
                ResizeMode::Linear | ResizeMode::Cubic => {
                    blended = each.map(|taps| taps.map(|(at, weight)| blended[at] * weight).sum()).collect();
                }
            }
        }
        Ok(vec![match self.mode {
            ResizeMode::Nearest => nearest,
            ResizeMode::Linear | ResizeMode::Cubic => Tensor::from_f64(x.dtype(), &out, &blended),
        }])
    }
}

#[cfg(test)]
mod tests {
    use regraft_tensor::Symbol;

    use super::*;
    use crate::Op;

    fn resize(mode: ResizeMode, size: &[i64]) -> Resize {
        Resize {
            mode,
            size: size.iter().map(|&s| Dim::new(s)).collect(),
            align_corners: false,
            scales: None,
            layout: SpatialLayout::Nchw,
        }
    }

    fn eval(op: Resize, x: &Tensor) -> Vec<f64> {
        Op::from(op).eval(&[Some(x)]).expect("x fits")[0].to_f64_vec()
    }

    fn sources(op: &Resize, size: usize, out: usize) -> Vec<usize> {
        op.taps(0, size, out, DType::F32).into_iter().map(|(i, _)| i).collect()
    }

    #[test]
    fn linear_clamps_half_pixels_and_aligns_corners() {
        let x = Tensor::from_slice(&[1, 1, 2], &[0.0f32, 8.0]);
        assert_eq!(eval(resize(ResizeMode::Linear, &[4]), &x), [0.0, 2.0, 6.0, 8.0]);
        let aligned = |size| Resize { align_corners: true, ..resize(ResizeMode::Linear, &[size]) };
        assert_eq!(eval(aligned(5), &x), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(eval(aligned(1), &x), [0.0]);
    }

    #[test]
    fn cubic_weights_add_up_and_repeat_the_border() {
        let x = Tensor::from_slice(&[1, 1, 3], &[0.0f32, 8.0, 16.0]);
        // Half way between elements their neighbors count -3/32 and 19/32 each.
        let op = Resize { align_corners: true, ..resize(ResizeMode::Cubic, &[5]) };
        assert_eq!(eval(op, &x), [0.0, 3.25, 8.0, 12.75, 16.0]);
        let constant = Tensor::from_slice(&[1, 1, 3], &[2.0f32; 3]);
        assert_eq!(eval(resize(ResizeMode::Cubic, &[4]), &constant), [2.0; 4]);
    }

    #[test]
    fn given_scales_move_the_samples() {
        // `interpolate(scale_factor=2.4)` of 5 elements gives 12, but samples 1/2.4 apart.
        let op = Resize { scales: Some(vec![2.4]), ..resize(ResizeMode::Nearest, &[12]) };
        assert_eq!(sources(&op, 5, 12), [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4]);
        let op = Resize { scales: Some(vec![1.5]), ..resize(ResizeMode::Nearest, &[4]) };
        assert_eq!(sources(&op, 3, 4), [0, 0, 1, 2]);
        assert_eq!(sources(&resize(ResizeMode::Nearest, &[4]), 3, 4), [0, 0, 1, 2]);
    }

    #[test]
    fn nearest_sources_are_rounded_to_f32() {
        // 23·14/46 is 7, but f32 ends just below it; PyTorch's 2-D kernels pick element 6 in f32 and in f64.
        let op = resize(ResizeMode::Nearest, &[46]);
        for dtype in [DType::F32, DType::F64] {
            assert_eq!(op.taps(0, 14, 46, dtype)[23], (6, 1.0));
        }
    }

    #[test]
    fn channels_last_resizes_the_middle_axes() {
        let x = Tensor::from_slice(&[1, 1, 2, 2], &[1i64, 2, 3, 4]);
        let op = Resize { layout: SpatialLayout::Nhwc, ..resize(ResizeMode::Nearest, &[2, 3]) };
        assert_eq!(eval(op, &x), [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn symbolic_sizes_stay() {
        let s = Dim::sym(Symbol(0));
        let x = TensorType::new(DType::F32, [Dim::new(1), Dim::new(3), s.clone()]);
        let op = Resize { size: vec![&s * &Dim::new(2)], ..resize(ResizeMode::Linear, &[]) };
        assert_eq!(Op::from(op).infer(&[Some(&x)]).expect("x fits")[0].to_string(), "f32[1, 3, s0*2]");
        let error = Op::from(resize(ResizeMode::Linear, &[0])).infer(&[Some(&x)]);
        assert!(matches!(error, Err(OpError::Attr { name: "size", .. })));
    }
}
