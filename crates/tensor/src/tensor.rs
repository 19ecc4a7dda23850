use std::sync::Arc;

use bytemuck::Pod;
use half::{bf16, f16};

use crate::{AlignedVec, Buffer, DType, Element, ErrorKind, TensorError, numel};

/// A dense, row-major tensor in host memory. Cloning shares the bytes.
///
/// ```
/// # use regraft_tensor::{DType, Tensor};
/// let x = Tensor::from_slice(&[2, 2], &[1f32, 2.0, 3.0, 4.0]);
/// assert_eq!((x.dtype(), x.shape()), (DType::F32, &[2, 2][..]));
/// assert_eq!(x.as_slice::<f32>(), Some(&[1.0, 2.0, 3.0, 4.0][..]));
/// assert_eq!(x.cast(DType::BF16).byte_count(), 8);
/// ```
#[derive(Clone, Debug)]
pub struct Tensor {
    dtype: DType,
    /// Shared, so that a clone allocates nothing.
    shape: Arc<[usize]>,
    data: Buffer,
}

impl Tensor {
    /// A tensor over `data`, whose length must be that of `shape` and `dtype`.
    ///
    /// # Errors
    /// [`ErrorKind::Length`] or [`ErrorKind::TooLarge`].
    pub fn new(dtype: DType, shape: Vec<usize>, data: Buffer) -> Result<Self, TensorError> {
        Self::of(dtype, shape.into(), data)
    }

    fn of(dtype: DType, shape: Arc<[usize]>, data: Buffer) -> Result<Self, TensorError> {
        let expected = Self::byte_len(dtype, &shape)?;
        if data.len() != expected {
            return Err(ErrorKind::Length { dtype, shape: shape.to_vec(), expected, found: data.len() }.into());
        }
        Ok(Tensor { dtype, shape, data })
    }

    /// Bytes of a tensor of this shape and dtype.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] on overflow.
    pub fn byte_len(dtype: DType, shape: &[usize]) -> Result<usize, TensorError> {
        numel(shape)
            .and_then(|n| n.checked_mul(dtype.size()))
            .filter(|&n| n <= isize::MAX as usize)
            .ok_or_else(|| ErrorKind::TooLarge(shape.to_vec()).into())
    }

    /// A tensor holding a copy of `data`.
    ///
    /// # Panics
    /// When `data` has not as many elements as `shape`; for data of one's own making.
    pub fn from_slice<T: Element>(shape: &[usize], data: &[T]) -> Self {
        Self::from_vec_of(T::DTYPE, shape, AlignedVec::from_slice(data))
    }

    /// A `bool` tensor.
    ///
    /// # Panics
    /// As [`Tensor::from_slice`].
    pub fn from_bools(shape: &[usize], data: &[bool]) -> Self {
        let bytes: Vec<u8> = data.iter().map(|&b| u8::from(b)).collect();
        Self::from_vec_of(DType::Bool, shape, AlignedVec::copy_of(&bytes))
    }

    /// A tensor of any dtype made of f64 values, rounded as [`Element::from_f64`] does.
    ///
    /// # Panics
    /// As [`Tensor::from_slice`].
    pub fn from_f64(dtype: DType, shape: &[usize], data: &[f64]) -> Self {
        fn make<T: Element>(data: &[f64]) -> AlignedVec {
            AlignedVec::from_slice(&data.iter().map(|&v| T::from_f64(v)).collect::<Vec<T>>())
        }
        let bytes = match dtype {
            DType::F64 => AlignedVec::from_slice(data),
            DType::F32 => make::<f32>(data),
            DType::F16 => make::<f16>(data),
            DType::BF16 => make::<bf16>(data),
            DType::I64 => make::<i64>(data),
            DType::I32 => make::<i32>(data),
            DType::I16 => make::<i16>(data),
            DType::I8 => make::<i8>(data),
            DType::U8 => make::<u8>(data),
            DType::U16 => make::<u16>(data),
            DType::U32 => make::<u32>(data),
            DType::U64 => make::<u64>(data),
            DType::Bool => AlignedVec::copy_of(&data.iter().map(|&v| u8::from(v != 0.0)).collect::<Vec<u8>>()),
        };
        Self::from_vec_of(dtype, shape, bytes)
    }

    /// A tensor made of i64 values; narrower integers wrap, floats are rounded.
    ///
    /// # Panics
    /// As [`Tensor::from_slice`].
    pub fn from_i64(dtype: DType, shape: &[usize], data: &[i64]) -> Self {
        fn make<T: Element>(data: &[i64]) -> AlignedVec {
            AlignedVec::from_slice(&data.iter().map(|&v| T::from_i64(v)).collect::<Vec<T>>())
        }
        // Each by its own width: an f64 between would lose the last bits of large values that wrap.
        let bytes = match dtype {
            DType::I64 => return Self::from_slice(shape, data),
            DType::Bool => return Self::from_bools(shape, &data.iter().map(|&v| v != 0).collect::<Vec<_>>()),
            DType::I32 => make::<i32>(data),
            DType::I16 => make::<i16>(data),
            DType::I8 => make::<i8>(data),
            DType::U8 => make::<u8>(data),
            DType::U16 => make::<u16>(data),
            DType::U32 => make::<u32>(data),
            DType::U64 => make::<u64>(data),
            DType::F64 | DType::F32 | DType::F16 | DType::BF16 => {
                return Self::from_f64(dtype, shape, &data.iter().map(|&v| v as f64).collect::<Vec<_>>());
            }
        };
        Self::from_vec_of(dtype, shape, bytes)
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`], [`ErrorKind::OutOfMemory`].
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Self, TensorError> {
        let data = AlignedVec::try_zeroed(Self::byte_len(dtype, shape)?)?;
        Ok(Self::from_vec_of(dtype, shape, data))
    }

    fn from_vec_of(dtype: DType, shape: &[usize], data: AlignedVec) -> Self {
        Tensor::of(dtype, shape.into(), data.into()).expect("the caller passes as many elements as the shape has")
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes of the axes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// Number of bytes.
    pub fn byte_count(&self) -> usize {
        self.data.len()
    }

    /// Where it is on `device`, when it is in its memory: see [`RemoteBytes`](crate::RemoteBytes).
    pub fn remote_on(&self, device: &str) -> Option<u64> {
        self.data.remote_on(device)
    }

    /// Whether it is in memory of a device.
    pub fn is_remote(&self) -> bool {
        matches!(self.data, Buffer::Remote(_))
    }

    /// This tensor in memory of the host: itself, or a copy when it is in memory of a device.
    ///
    /// # Errors
    /// When the device fails, or there is not enough memory.
    pub fn fetched(&self) -> Result<Tensor, TensorError> {
        if self.is_remote() { self.to_owned_memory() } else { Ok(self.clone()) }
    }

    /// The buffer under the tensor.
    pub fn buffer(&self) -> &Buffer {
        &self.data
    }

    /// The bytes in memory that nobody else has: taken over where no other tensor shares them, otherwise copied.
    pub fn into_owned(self) -> AlignedVec {
        match self.data {
            Buffer::Owned(data) => Arc::unwrap_or_clone(data),
            other => AlignedVec::copy_of(other.bytes()),
        }
    }

    /// The bytes, row-major, native byte order.
    pub fn bytes(&self) -> &[u8] {
        self.data.bytes()
    }

    /// The elements when the dtype is `T`'s and the memory is aligned for it.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        if !T::reads(self.dtype) {
            return None;
        }
        bytemuck::try_cast_slice(self.bytes()).ok()
    }

    /// This tensor with memory that is aligned for its elements: itself, or a copy when a file held it at an odd place.
    pub fn aligned(&self) -> Tensor {
        if self.is_remote() || self.bytes().as_ptr().align_offset(self.dtype.size()) == 0 {
            return self.clone();
        }
        Tensor { data: AlignedVec::copy_of(self.bytes()).into(), ..self.clone() }
    }

    /// Whether its memory is someone else's: see [`Buffer::is_borrowed`].
    pub fn is_borrowed(&self) -> bool {
        self.data.is_borrowed()
    }

    /// This tensor in memory that stays as it is: itself, or a copy when its memory is borrowed.
    ///
    /// # Errors
    /// As [`Buffer::to_owned_memory`].
    pub fn to_owned_memory(&self) -> Result<Tensor, TensorError> {
        Ok(Tensor { data: self.data.to_owned_memory()?, ..self.clone() })
    }

    /// All elements as f64.
    pub fn to_f64_vec(&self) -> Vec<f64> {
        match self.dtype {
            DType::F64 => self.map(|v: f64| v),
            DType::F32 => self.map(f32::to_f64),
            DType::F16 => self.map(f16::to_f64),
            DType::BF16 => self.map(bf16::to_f64),
            DType::I64 => self.map(i64::to_f64),
            DType::I32 => self.map(i32::to_f64),
            DType::I16 => self.map(i16::to_f64),
            DType::I8 => self.map(i8::to_f64),
            DType::U8 | DType::Bool => self.map(u8::to_f64),
            DType::U16 => self.map(u16::to_f64),
            DType::U32 => self.map(u32::to_f64),
            DType::U64 => self.map(u64::to_f64),
        }
    }

    /// All elements as i64; floats truncate, and u64 keeps its bits.
    pub fn to_i64_vec(&self) -> Vec<i64> {
        match self.dtype {
            DType::F64 => self.map(f64::to_i64),
            DType::F32 => self.map(f32::to_i64),
            DType::F16 => self.map(f16::to_i64),
            DType::BF16 => self.map(bf16::to_i64),
            DType::I64 => self.map(|v: i64| v),
            DType::I32 => self.map(i32::to_i64),
            DType::I16 => self.map(i16::to_i64),
            DType::I8 => self.map(i8::to_i64),
            DType::U8 | DType::Bool => self.map(u8::to_i64),
            DType::U16 => self.map(u16::to_i64),
            DType::U32 => self.map(u32::to_i64),
            DType::U64 => self.map(u64::to_i64),
        }
    }

    fn map<T: Pod, U>(&self, f: impl Fn(T) -> U) -> Vec<U> {
        self.bytes().chunks_exact(size_of::<T>()).map(|c| f(bytemuck::pod_read_unaligned(c))).collect()
    }

    /// The tensor with another dtype, converted as PyTorch's `Tensor.to(dtype)` does.
    pub fn cast(&self, dtype: DType) -> Tensor {
        if dtype == self.dtype {
            self.clone()
        } else if self.dtype.is_float() || dtype.is_float() {
            Tensor::from_f64(dtype, &self.shape, &self.to_f64_vec())
        } else {
            Tensor::from_i64(dtype, &self.shape, &self.to_i64_vec())
        }
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// [`ErrorKind::Length`] when the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor, TensorError> {
        Tensor::of(self.dtype, shape.into(), self.data.clone())
    }

    /// Whether dtype, shape and every byte are equal. NaNs with the same bits are equal; 0.0 and -0.0 are not.
    pub fn bit_equal(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype
            && self.shape == other.shape
            && (self.data.same_memory(&other.data) || self.bytes() == other.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_truncate_and_round_like_torch() {
        let t = Tensor::from_slice(&[3], &[1.9f32, -1.9, 3.0]);
        assert_eq!(t.cast(DType::I64).to_i64_vec(), [1, -1, 3]);
        assert_eq!(t.cast(DType::Bool).to_i64_vec(), [1, 1, 1]);
        assert_eq!(t.cast(DType::BF16).cast(DType::F32).to_f64_vec()[0], 1.8984375);
    }

    #[test]
    fn unsigned_integers_keep_their_bits_and_their_values() {
        let large = Tensor::from_slice(&[2], &[u64::MAX, 1]);
        assert_eq!(large.to_f64_vec(), [18_446_744_073_709_551_615.0, 1.0]);
        assert_eq!(Tensor::from_i64(DType::U64, &[2], &large.to_i64_vec()).as_slice(), Some(&[u64::MAX, 1][..]));
        assert_eq!(large.cast(DType::I32).to_i64_vec(), [-1, 1]);
        let wrapped = Tensor::from_slice(&[2], &[-1i64, 65537]);
        assert_eq!(wrapped.cast(DType::U16).to_i64_vec(), [65535, 1]);
        assert_eq!(wrapped.cast(DType::U32).to_f64_vec(), [4_294_967_295.0, 65537.0]);
        assert_eq!(Tensor::from_f64(DType::U64, &[2], &[1.9, 1e19]).to_f64_vec(), [1.0, 1e19]);
    }

    #[test]
    fn a_wrong_length_is_refused() {
        let data = AlignedVec::zeroed(12).into();
        let error = Tensor::new(DType::F32, vec![2, 2], data).expect_err("12 bytes are no 2x2 f32");
        assert_eq!(error.to_string(), "f32[2, 2] needs 16 bytes, found 12");
    }
}
