//! Where the elements of a matrix that is to be packed come from.

use bytemuck::Pod;
use half::{bf16, f16};
use regraft_backend::adapter::Overlay;
use regraft_tensor::DType;

use crate::simd::{Floats, math};

/// An element type that weights may have; packing converts to `f32` on the way.
pub trait SourceElement: Pod + Send + Sync {
    /// The dtype of such elements.
    const DTYPE: DType;

    /// The value as `f32`, rounded to nearest where it does not fit.
    fn to_f32(self) -> f32;

    /// The nearest value to an `f32`.
    fn from_f32(value: f32) -> Self;

    /// The same slice, if routines take elements of its type.
    fn floats(_slice: &[Self]) -> Option<Floats<'_>> {
        None
    }

    /// The same slice, if it already is `f32`.
    fn as_f32(_slice: &[Self]) -> Option<&[f32]> {
        None
    }
}

impl SourceElement for f32 {
    const DTYPE: DType = DType::F32;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    fn floats(slice: &[f32]) -> Option<Floats<'_>> {
        Some(Floats::F32(slice))
    }

    fn as_f32(slice: &[f32]) -> Option<&[f32]> {
        Some(slice)
    }
}

impl SourceElement for f64 {
    const DTYPE: DType = DType::F64;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self as f32
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value.into()
    }
}

impl SourceElement for f16 {
    const DTYPE: DType = DType::F16;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        math::f16_to_f32(self.to_bits())
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }

    fn floats(slice: &[f16]) -> Option<Floats<'_>> {
        Some(Floats::F16(slice))
    }
}

impl SourceElement for bf16 {
    const DTYPE: DType = DType::BF16;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        math::bf16_to_f32(self.to_bits())
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }

    fn floats(slice: &[bf16]) -> Option<Floats<'_>> {
        Some(Floats::Bf16(slice))
    }
}

/// Runs `$body` with `$T` as the element type of a float dtype; `None` for other dtypes.
macro_rules! for_float {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            regraft_tensor::DType::F32 => {
                type $T = f32;
                Some($body)
            }
            regraft_tensor::DType::F64 => {
                type $T = f64;
                Some($body)
            }
            regraft_tensor::DType::F16 => {
                type $T = half::f16;
                Some($body)
            }
            regraft_tensor::DType::BF16 => {
                type $T = half::bf16;
                Some($body)
            }
            regraft_tensor::DType::I64
            | regraft_tensor::DType::I32
            | regraft_tensor::DType::I16
            | regraft_tensor::DType::I8
            | regraft_tensor::DType::U8
            | regraft_tensor::DType::Bool
            | regraft_tensor::DType::U16
            | regraft_tensor::DType::U32
            | regraft_tensor::DType::U64 => None,
        }
    };
}
pub(crate) use for_float;

/// A logical matrix `[K, N]` gathered from a strided tensor: element `(k, n)` is
/// `data[offset + (k's offset) + n * n_stride] * scale[n]`, where `k` runs over `k_dims` in row-major order.
#[derive(Clone, Debug)]
pub struct MatrixView<'a, T = f32> {
    /// The tensor's storage.
    pub data: &'a [T],
    /// Where element `(0, 0)` is.
    pub offset: usize,
    /// `(size, stride)` of the dimensions that make up `K`, slowest first.
    pub k_dims: Vec<(usize, usize)>,
    /// `N`.
    pub n_len: usize,
    /// Distance between columns.
    pub n_stride: usize,
    /// A factor for each column.
    pub scale: Option<&'a [f32]>,
    /// What adapters do to the tensor; see [`regraft_weights::Piece::tiles`] for when that is possible here.
    pub overlay: Option<&'a Overlay>,
}

impl<'a, T> MatrixView<'a, T> {
    /// The weight of a linear layer, `[n, k]`: the product is `x · Wᵀ`.
    pub fn linear(data: &'a [T], n: usize, k: usize) -> Self {
        MatrixView { data, offset: 0, k_dims: vec![(k, 1)], n_len: n, n_stride: k, scale: None, overlay: None }
    }

    /// A matrix that is stored as `[k, n]`.
    pub fn row_major(data: &'a [T], k: usize, n: usize) -> Self {
        MatrixView { data, offset: 0, k_dims: vec![(k, n)], n_len: n, n_stride: 1, scale: None, overlay: None }
    }

    /// The weight of a convolution, `[oc, ic, kh, kw]`, with `K` in the order `(kh, kw, ic)` that channels-last taps have.
    pub fn conv2d(data: &'a [T], [oc, ic, kh, kw]: [usize; 4]) -> Self {
        let k_dims = vec![(kh, kw), (kw, 1), (ic, kh * kw)];
        MatrixView { data, offset: 0, k_dims, n_len: oc, n_stride: ic * kh * kw, scale: None, overlay: None }
    }

    /// The same with a factor for each column.
    pub fn scaled(self, scale: &'a [f32]) -> Self {
        MatrixView { scale: Some(scale), ..self }
    }

    /// `K`.
    pub fn k_len(&self) -> usize {
        self.k_dims.iter().map(|(size, _)| size).product()
    }

    /// Whether every element lies in `data`, and there is a scale for each column.
    pub(crate) fn is_in_bounds(&self) -> bool {
        if self.scale.is_some_and(|scale| scale.len() != self.n_len) {
            return false;
        }
        if self.k_len() == 0 || self.n_len == 0 {
            return true;
        }
        let mut dims = self.k_dims.iter().copied().chain([(self.n_len, self.n_stride)]);
        let last = dims.try_fold(self.offset, |sum, (size, stride)| sum.checked_add((size - 1).checked_mul(stride)?));
        last.is_some_and(|last| last < self.data.len())
    }

    /// `(source offset, k)` for every `k`, sorted by source offset, so that packing walks through memory in order.
    pub(super) fn k_order(&self) -> Vec<(usize, usize)> {
        let mut inner = self.k_len();
        let mut dims: Vec<(usize, usize, usize)> = Vec::with_capacity(self.k_dims.len());
        for &(size, stride) in &self.k_dims {
            inner /= size.max(1);
            dims.push((size, stride, inner));
        }
        dims.sort_by_key(|(_, stride, _)| std::cmp::Reverse(*stride));
        let mut order = vec![(0, 0)];
        for (size, stride, k_stride) in dims {
            let mut next = Vec::with_capacity(order.len() * size);
            for (at, k) in order {
                next.extend((0..size).map(|i| (at + i * stride, k + i * k_stride)));
            }
            order = next;
        }
        order
    }
}
