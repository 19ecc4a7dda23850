//! The registers of x86-64.

use std::arch::x86_64::*;

use half::bf16;

use super::{Fused, Vectors};

/// AVX2 with FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor has AVX2 and FMA.
    pub(crate) unsafe fn new() -> Self {
        Avx2(())
    }
}

impl Vectors for Avx2 {
    type V = __m256;
    type D = __m256d;
    type F = Fused;
    const LANES: usize = 8;

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        let from: &[f32; 8] = from.first_chunk().expect("a whole register");
        // SAFETY: eight floats are there; the processor has AVX2, which `self` proves.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> __m256 {
        // SAFETY: by contract; the processor has AVX2, which `self` proves.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    fn store(self, v: __m256, to: &mut [f32]) {
        let to: &mut [f32; 8] = to.first_chunk_mut().expect("a whole register");
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) };
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: the processor has AVX2, which `self` proves.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the processor has FMA, which `self` proves.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the processor has AVX2, which `self` proves.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn relu(self, v: __m256) -> __m256 {
        // Where neither is greater, as of not-a-number and of a negative zero, the second one is the result.
        // SAFETY: the processor has AVX2, which `self` proves.
        unsafe { _mm256_max_ps(_mm256_setzero_ps(), v) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the processor has AVX2, which `self` proves.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn greater(self, a: __m256, b: __m256) -> __m256 {
        // The second one is the result where either is not a number.
        // SAFETY: as above.
        unsafe { _mm256_blendv_ps(_mm256_max_ps(b, a), b, _mm256_cmp_ps::<_CMP_UNORD_Q>(b, b)) }
    }

    #[inline(always)]
    fn at_least(self, v: __m256, low: f32) -> __m256 {
        // The second one is the result where either is not a number.
        // SAFETY: as above.
        unsafe { _mm256_max_ps(_mm256_set1_ps(low), v) }
    }

    #[inline(always)]
    fn at_most(self, v: __m256, high: f32) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_min_ps(_mm256_set1_ps(high), v) }
    }

    #[inline(always)]
    fn abs(self, v: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), v) }
    }

    #[inline(always)]
    fn to_exponents(self, v: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(v))) }
    }

    #[inline(always)]
    fn load_doubles(self, from: &[f64]) -> __m256d {
        let from: &[f64; 4] = from.first_chunk().expect("a whole register");
        // SAFETY: four doubles are there; the processor has AVX2, which `self` proves.
        unsafe { _mm256_loadu_pd(from.as_ptr()) }
    }

    #[inline(always)]
    fn store_doubles(self, d: __m256d, to: &mut [f64]) {
        let to: &mut [f64; 4] = to.first_chunk_mut().expect("a whole register");
        // SAFETY: as above.
        unsafe { _mm256_storeu_pd(to.as_mut_ptr(), d) };
    }

    #[inline(always)]
    fn splat_doubles(self, x: f64) -> __m256d {
        // SAFETY: the processor has AVX2, which `self` proves.
        unsafe { _mm256_set1_pd(x) }
    }

    #[inline(always)]
    fn mul_add_doubles(self, a: __m256d, b: __m256d, c: __m256d) -> __m256d {
        // SAFETY: the processor has FMA, which `self` proves.
        unsafe { _mm256_fmadd_pd(a, b, c) }
    }
}

/// A bit for each of the first lanes of a register.
#[inline(always)]
fn first_lanes(count: usize) -> __mmask16 {
    if count < 16 { (1 << count) - 1 } else { __mmask16::MAX }
}

/// AVX-512; if `ROUNDS`, with instructions for bfloat16, the one that rounds among them.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const ROUNDS: bool>(());

impl<const ROUNDS: bool> Avx512<ROUNDS> {
    /// # Safety
    /// The processor has AVX-512F, BW and VL, and if `ROUNDS`, BF16.
    pub(crate) unsafe fn new() -> Self {
        Avx512(())
    }
}

impl<const ROUNDS: bool> Vectors for Avx512<ROUNDS> {
    type V = __m512;
    type D = __m512d;
    type F = Fused;
    const LANES: usize = 16;

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        let from: &[f32; 16] = from.first_chunk().expect("a whole register");
        // SAFETY: sixteen floats are there; the processor has AVX-512F, which `self` proves.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> __m512 {
        // SAFETY: by contract; the processor has AVX-512F, which `self` proves.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32]) {
        let to: &mut [f32; 16] = to.first_chunk_mut().expect("a whole register");
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) };
    }

    #[inline(always)]
    fn load_some(self, from: &[f32]) -> __m512 {
        // SAFETY: lanes that the mask leaves out are not touched; the processor has AVX-512F, which `self` proves.
        unsafe { _mm512_maskz_loadu_ps(first_lanes(from.len()), from.as_ptr()) }
    }

    #[inline(always)]
    fn store_some(self, v: __m512, to: &mut [f32]) {
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), first_lanes(to.len()), v) };
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> __m512 {
        // SAFETY: the processor has AVX-512F, BW and VL, which `self` proves; what is beyond `from` is not touched.
        unsafe {
            let halves = _mm256_maskz_loadu_epi16(first_lanes(from.len()), from.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }

    #[inline(always)]
    fn store_bf16(self, v: __m512, to: &mut [bf16]) {
        // SAFETY: the processor has AVX-512F, BW and VL, and BF16 if `ROUNDS`, which `self` proves; lanes beyond `to` are not touched.
        unsafe {
            let result = if ROUNDS {
                // The same bits, as a type for bits.
                std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))
            } else {
                let bits = _mm512_castps_si512(v);
                let upper = _mm512_srli_epi32::<16>(bits);
                let half = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(upper, _mm512_set1_epi32(1)));
                let (rounded, nan) = (_mm512_add_epi32(bits, half), _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v));
                let quiet = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000));
                _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(quiet))
            };
            if to.len() < Self::LANES {
                _mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), first_lanes(to.len()), result);
            } else {
                _mm256_storeu_si256(to.as_mut_ptr().cast(), result);
            }
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: the processor has AVX-512F, which `self` proves.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the processor has AVX-512F, which `self` proves.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn relu(self, v: __m512) -> __m512 {
        // Where neither is greater, as of not-a-number and of a negative zero, the second one is the result.
        // SAFETY: the processor has AVX-512F, which `self` proves.
        unsafe { _mm512_max_ps(_mm512_setzero_ps(), v) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the processor has AVX-512F, which `self` proves.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn greater(self, a: __m512, b: __m512) -> __m512 {
        // The second one is the result where either is not a number.
        // SAFETY: as above.
        unsafe { _mm512_mask_mov_ps(_mm512_max_ps(b, a), _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(b, b), b) }
    }

    #[inline(always)]
    fn at_least(self, v: __m512, low: f32) -> __m512 {
        // The second one is the result where either is not a number.
        // SAFETY: as above.
        unsafe { _mm512_max_ps(_mm512_set1_ps(low), v) }
    }

    #[inline(always)]
    fn at_most(self, v: __m512, high: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_min_ps(_mm512_set1_ps(high), v) }
    }

    #[inline(always)]
    fn abs(self, v: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_abs_ps(v) }
    }

    #[inline(always)]
    fn to_exponents(self, v: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(v))) }
    }

    #[inline(always)]
    fn load_doubles(self, from: &[f64]) -> __m512d {
        let from: &[f64; 8] = from.first_chunk().expect("a whole register");
        // SAFETY: eight doubles are there; the processor has AVX-512F, which `self` proves.
        unsafe { _mm512_loadu_pd(from.as_ptr()) }
    }

    #[inline(always)]
    fn store_doubles(self, d: __m512d, to: &mut [f64]) {
        let to: &mut [f64; 8] = to.first_chunk_mut().expect("a whole register");
        // SAFETY: as above.
        unsafe { _mm512_storeu_pd(to.as_mut_ptr(), d) };
    }

    #[inline(always)]
    fn splat_doubles(self, x: f64) -> __m512d {
        // SAFETY: the processor has AVX-512F, which `self` proves.
        unsafe { _mm512_set1_pd(x) }
    }

    #[inline(always)]
    fn mul_add_doubles(self, a: __m512d, b: __m512d, c: __m512d) -> __m512d {
        // SAFETY: the processor has AVX-512F, which `self` proves.
        unsafe { _mm512_fmadd_pd(a, b, c) }
    }
}
