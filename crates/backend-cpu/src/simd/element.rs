//! Float types at the edges of routines: what is read is widened to f32, what is written is rounded once, to nearest even.

use bytemuck::Pod;
use half::{bf16, f16};
use regraft_tensor::DType;

use super::{Isa, simd_fn};

/// An element type that routines read and write; they compute in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl FloatType {
    /// All of them, for tests and tables.
    pub const ALL: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::Bf16];

    /// The type of a tensor's elements, if routines take it.
    pub fn of(dtype: DType) -> Option<FloatType> {
        match dtype {
            DType::F32 => Some(FloatType::F32),
            DType::F16 => Some(FloatType::F16),
            DType::BF16 => Some(FloatType::Bf16),
            _ => None,
        }
    }

    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            FloatType::F32 => 4,
            FloatType::F16 | FloatType::Bf16 => 2,
        }
    }
}

/// The Rust type of a [`FloatType`].
pub trait Float: Pod + Send + Sync {
    /// Which one it is.
    const TYPE: FloatType;

    /// The slice with its type as a value.
    fn floats(slice: &[Self]) -> Floats<'_>;

    /// Writes the values of `from`, exactly.
    ///
    /// # Panics
    /// When the lengths differ.
    fn widen(isa: Isa, from: &[Self], to: &mut [f32]);

    /// Writes the nearest value to each of `from`.
    ///
    /// # Panics
    /// When the lengths differ.
    fn narrow(isa: Isa, from: &[f32], to: &mut [Self]);

    /// The same slice, if it already is f32.
    fn as_f32_mut(_slice: &mut [Self]) -> Option<&mut [f32]> {
        None
    }

    /// The same slice, if it is bf16.
    fn as_bf16_mut(_slice: &mut [Self]) -> Option<&mut [bf16]> {
        None
    }
}

impl Float for f32 {
    const TYPE: FloatType = FloatType::F32;

    fn floats(slice: &[f32]) -> Floats<'_> {
        Floats::F32(slice)
    }

    fn widen(_: Isa, from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    fn narrow(_: Isa, from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    fn as_f32_mut(slice: &mut [f32]) -> Option<&mut [f32]> {
        Some(slice)
    }
}

impl Float for bf16 {
    const TYPE: FloatType = FloatType::Bf16;

    fn floats(slice: &[bf16]) -> Floats<'_> {
        Floats::Bf16(slice)
    }

    fn widen(isa: Isa, from: &[bf16], to: &mut [f32]) {
        assert_eq!(from.len(), to.len(), "as many floats as are widened");
        widen_bf16(isa, from, to);
    }

    fn narrow(isa: Isa, from: &[f32], to: &mut [bf16]) {
        assert_eq!(from.len(), to.len(), "as many floats as are narrowed");
        narrow_bf16(isa, from, to);
    }

    fn as_bf16_mut(slice: &mut [bf16]) -> Option<&mut [bf16]> {
        Some(slice)
    }
}

impl Float for f16 {
    const TYPE: FloatType = FloatType::F16;

    fn floats(slice: &[f16]) -> Floats<'_> {
        Floats::F16(slice)
    }

    fn widen(isa: Isa, from: &[f16], to: &mut [f32]) {
        assert_eq!(from.len(), to.len(), "as many floats as are widened");
        match isa.verified() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => {
                // SAFETY: `verified` has found AVX-512 here.
                unsafe { x86::widen512(from, to) }
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                // SAFETY: `verified` has found F16C here.
                unsafe { x86::widen256(from, to) }
            }
            _ => to.iter_mut().zip(from).for_each(|(y, x)| *y = super::math::f16_to_f32(x.to_bits())),
        }
    }

    fn narrow(isa: Isa, from: &[f32], to: &mut [f16]) {
        assert_eq!(from.len(), to.len(), "as many floats as are narrowed");
        match isa.verified() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => {
                // SAFETY: `verified` has found AVX-512 here.
                unsafe { x86::narrow512(from, to) }
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                // SAFETY: `verified` has found F16C here.
                unsafe { x86::narrow256(from, to) }
            }
            _ => to.iter_mut().zip(from).for_each(|(y, x)| *y = f16::from_f32(*x)),
        }
    }
}

/// The nearest bfloat16, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) as u16
}

simd_fn! {
    fn widen_bf16<F>(from: &[bf16], to: &mut [f32]) {
        for (y, x) in to.iter_mut().zip(from) {
            *y = super::math::bf16_to_f32(x.to_bits());
        }
    }
}

simd_fn! {
    fn narrow_bf16<F>(from: &[f32], to: &mut [bf16]) {
        for (y, x) in to.iter_mut().zip(from) {
            *y = bf16::from_bits(to_bf16(*x));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::f16;

    /// # Safety
    /// Needs AVX-512F, and slices of one length.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn widen512(from: &[f16], to: &mut [f32]) {
        let (blocks, rest) = from.as_chunks::<16>();
        let (outs, out_rest) = to.as_chunks_mut::<16>();
        for (x, y) in blocks.iter().zip(outs) {
            // SAFETY: both are 16 elements.
            unsafe { _mm512_storeu_ps(y.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast()))) };
        }
        if !rest.is_empty() {
            let (mut x, mut y) = ([f16::ZERO; 16], [0f32; 16]);
            x[..rest.len()].copy_from_slice(rest);
            // SAFETY: both are 16 elements.
            unsafe { _mm512_storeu_ps(y.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast()))) };
            out_rest.copy_from_slice(&y[..rest.len()]);
        }
    }

    /// # Safety
    /// Needs AVX-512F, and slices of one length.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn narrow512(from: &[f32], to: &mut [f16]) {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        let (blocks, rest) = from.as_chunks::<16>();
        let (outs, out_rest) = to.as_chunks_mut::<16>();
        for (x, y) in blocks.iter().zip(outs) {
            // SAFETY: both are 16 elements.
            unsafe {
                let half = _mm512_cvtps_ph::<NEAREST>(_mm512_loadu_ps(x.as_ptr()));
                _mm256_storeu_si256(y.as_mut_ptr().cast(), half);
            }
        }
        if !rest.is_empty() {
            let (mut x, mut y) = ([0f32; 16], [f16::ZERO; 16]);
            x[..rest.len()].copy_from_slice(rest);
            // SAFETY: both are 16 elements.
            unsafe {
                let half = _mm512_cvtps_ph::<NEAREST>(_mm512_loadu_ps(x.as_ptr()));
                _mm256_storeu_si256(y.as_mut_ptr().cast(), half);
            }
            out_rest.copy_from_slice(&y[..rest.len()]);
        }
    }

    /// # Safety
    /// Needs F16C, and slices of one length.
    #[target_feature(enable = "avx2,f16c")]
    pub(super) unsafe fn widen256(from: &[f16], to: &mut [f32]) {
        let (blocks, rest) = from.as_chunks::<8>();
        let (outs, out_rest) = to.as_chunks_mut::<8>();
        for (x, y) in blocks.iter().zip(outs) {
            // SAFETY: both are 8 elements.
            unsafe { _mm256_storeu_ps(y.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast()))) };
        }
        out_rest.iter_mut().zip(rest).for_each(|(y, x)| *y = crate::simd::math::f16_to_f32(x.to_bits()));
    }

    /// # Safety
    /// Needs F16C, and slices of one length.
    #[target_feature(enable = "avx2,f16c")]
    pub(super) unsafe fn narrow256(from: &[f32], to: &mut [f16]) {
        let (blocks, rest) = from.as_chunks::<8>();
        let (outs, out_rest) = to.as_chunks_mut::<8>();
        for (x, y) in blocks.iter().zip(outs) {
            // SAFETY: both are 8 elements.
            unsafe {
                let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(x.as_ptr()));
                _mm_storeu_si128(y.as_mut_ptr().cast(), half);
            }
        }
        out_rest.iter_mut().zip(rest).for_each(|(y, x)| *y = f16::from_f32(*x));
    }
}

/// A slice of one of the float types.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// Of f32.
    F32(&'a [f32]),
    /// Of f16.
    F16(&'a [f16]),
    /// Of bf16.
    Bf16(&'a [bf16]),
}

/// The same expression for whichever slice it is.
macro_rules! each {
    ($floats:expr, $slice:ident => $body:expr) => {
        match $floats {
            Floats::F32($slice) => $body,
            Floats::F16($slice) => $body,
            Floats::Bf16($slice) => $body,
        }
    };
}

impl<'a> Floats<'a> {
    /// Whole elements of `bytes`, which are aligned for them.
    ///
    /// # Panics
    /// When they are not aligned.
    pub fn of_bytes(ty: FloatType, bytes: &'a [u8]) -> Floats<'a> {
        let bytes = &bytes[..bytes.len() / ty.size() * ty.size()];
        // No bytes start anywhere.
        if bytes.is_empty() {
            return match ty {
                FloatType::F32 => Floats::F32(&[]),
                FloatType::F16 => Floats::F16(&[]),
                FloatType::Bf16 => Floats::Bf16(&[]),
            };
        }
        match ty {
            FloatType::F32 => Floats::F32(bytemuck::cast_slice(bytes)),
            FloatType::F16 => Floats::F16(bytemuck::cast_slice(bytes)),
            FloatType::Bf16 => Floats::Bf16(bytemuck::cast_slice(bytes)),
        }
    }

    /// Their type.
    pub fn ty(self) -> FloatType {
        match self {
            Floats::F32(_) => FloatType::F32,
            Floats::F16(_) => FloatType::F16,
            Floats::Bf16(_) => FloatType::Bf16,
        }
    }

    /// How many there are.
    pub fn len(self) -> usize {
        each!(self, x => x.len())
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Their bytes.
    pub(crate) fn bytes(self) -> &'a [u8] {
        each!(self, x => bytemuck::cast_slice(x))
    }

    /// The elements from `at` on; none where there are no more.
    #[inline]
    pub fn from(self, at: usize) -> Floats<'a> {
        match self {
            Floats::F32(x) => Floats::F32(&x[at.min(x.len())..]),
            Floats::F16(x) => Floats::F16(&x[at.min(x.len())..]),
            Floats::Bf16(x) => Floats::Bf16(&x[at.min(x.len())..]),
        }
    }

    /// The first `len` elements.
    ///
    /// # Panics
    /// When there are fewer.
    #[inline]
    pub fn first(self, len: usize) -> Floats<'a> {
        match self {
            Floats::F32(x) => Floats::F32(&x[..len]),
            Floats::F16(x) => Floats::F16(&x[..len]),
            Floats::Bf16(x) => Floats::Bf16(&x[..len]),
        }
    }

    /// Writes the elements from `at` on, as many as `to` takes.
    ///
    /// # Panics
    /// When there are fewer.
    #[inline]
    pub fn load(self, isa: Isa, at: usize, to: &mut [f32]) {
        match self {
            Floats::F32(x) => to.copy_from_slice(&x[at..at + to.len()]),
            Floats::F16(x) => f16::widen(isa, &x[at..at + to.len()], to),
            Floats::Bf16(x) => bf16::widen(isa, &x[at..at + to.len()], to),
        }
    }

    /// The elements from `at` on: as they are if they are f32, otherwise widened into `buffer`, whose length says how many.
    ///
    /// # Panics
    /// When there are fewer.
    #[inline]
    pub(crate) fn read<'b>(self, isa: Isa, at: usize, buffer: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Floats::F32(x) => &x[at..at + buffer.len()],
            _ => {
                self.load(isa, at, buffer);
                buffer
            }
        }
    }
}

impl<'a, T: Float> From<&'a [T]> for Floats<'a> {
    fn from(slice: &'a [T]) -> Self {
        T::floats(slice)
    }
}

impl<'a, T: Float> From<&'a Vec<T>> for Floats<'a> {
    fn from(slice: &'a Vec<T>) -> Self {
        T::floats(slice)
    }
}

/// Runs `$body` with `$out` as the elements of `$bytes`, which are of a [`FloatType`].
macro_rules! with_floats_mut {
    ($ty:expr, $bytes:expr, $out:ident => $body:expr) => {
        match $ty {
            $crate::simd::FloatType::F32 => {
                let $out = bytemuck::cast_slice_mut::<u8, f32>($bytes);
                $body
            }
            $crate::simd::FloatType::F16 => {
                let $out = bytemuck::cast_slice_mut::<u8, half::f16>($bytes);
                $body
            }
            $crate::simd::FloatType::Bf16 => {
                let $out = bytemuck::cast_slice_mut::<u8, half::bf16>($bytes);
                $body
            }
        }
    };
}
pub(crate) use with_floats_mut;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_widened_exactly() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let mut got = vec![0f32; all.len()];
        for isa in Isa::available() {
            f16::widen(isa, bytemuck::cast_slice(&all), &mut got);
            for (bits, got) in all.iter().zip(&got) {
                let want = f16::from_bits(*bits).to_f32();
                assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{isa}: f16 {bits:x}");
            }
            bf16::widen(isa, bytemuck::cast_slice(&all), &mut got);
            assert!(all.iter().zip(&got).all(|(bits, got)| got.to_bits() >> 16 == u32::from(*bits)), "{isa}: bf16");
        }
    }

    #[test]
    fn narrowing_rounds_to_nearest_even() {
        // Every 1009th bit pattern, and those half way between two halves.
        let ties = (0..0x7fffu32).map(|h| f32::from_bits(h << 16 | 0x8000));
        let inputs: Vec<f32> = (0..u32::MAX).step_by(1009).map(f32::from_bits).chain(ties).collect();
        for isa in Isa::available() {
            let mut half = vec![f16::ZERO; inputs.len()];
            f16::narrow(isa, &inputs, &mut half);
            let mut brain = vec![bf16::ZERO; inputs.len()];
            bf16::narrow(isa, &inputs, &mut brain);
            for ((x, h), b) in inputs.iter().zip(&half).zip(&brain) {
                let (want_h, want_b) = (f16::from_f32(*x), bf16::from_f32(*x));
                assert!(h.to_bits() == want_h.to_bits() || (h.is_nan() && x.is_nan()), "{isa}: f16 of {x:e}");
                assert!(b.to_bits() == want_b.to_bits() || (b.is_nan() && x.is_nan()), "{isa}: bf16 of {x:e}");
            }
        }
    }

    #[test]
    fn short_and_long_slices() {
        for len in 0..40 {
            let from: Vec<f32> = (0..len).map(|i| i as f32 * 0.5).collect();
            for isa in Isa::available() {
                let (mut half, mut back) = (vec![f16::ZERO; len], vec![0.0; len]);
                f16::narrow(isa, &from, &mut half);
                f16::widen(isa, &half, &mut back);
                assert_eq!(from, back);
            }
        }
    }
}
