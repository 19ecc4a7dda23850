//! Registers of floats, for kernels whose sums must stay in registers while they walk over several inputs.
//!
//! [`simd_fn`](super::simd_fn) leaves it to LLVM to find vectors in loops; it does not where an array of sums lives through
//! several loops. Kernels of that kind are written over [`Vectors`], and compiled once for each instruction set by [`vector_fn`].
#![allow(unsafe_code)]

use super::{Fma, Fused, Unfused, math};

/// The registers of an instruction set. A value of such a type proves that this processor has it: [`vector_fn`] alone makes one.
pub(crate) trait Vectors: Copy {
    /// What a register holds: [`Self::LANES`] floats.
    type V: Copy;
    /// What a register holds of doubles: half as many.
    type D: Copy;
    /// Multiplication and addition of single floats, as registers have them.
    type F: Fma;
    /// Floats in a register.
    const LANES: usize;

    /// The first floats of `from`.
    ///
    /// # Panics
    /// When there are too few.
    fn load(self, from: &[f32]) -> Self::V;

    /// Writes to the first floats of `to`.
    ///
    /// # Panics
    /// When there are too few.
    fn store(self, v: Self::V, to: &mut [f32]);

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::V;

    /// `a * b + c`, lane by lane.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// `a + b`, lane by lane.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;

    /// [`relu`](super::math::relu) of each lane.
    fn relu(self, v: Self::V) -> Self::V;

    /// Adds to sum `i` the product of `w` and the register at `xs[i * step]`, lane by lane.
    ///
    /// # Panics
    /// When `xs` is too short.
    #[inline(always)]
    fn mul_add_each<const N: usize>(self, sums: &mut [Self::V; N], xs: &[f32], step: usize, w: Self::V) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = self.mul_add(self.load(&xs[i * step..]), w, *sum);
        }
    }

    /// The first doubles of `from`.
    ///
    /// # Panics
    /// When there are too few.
    fn load_doubles(self, from: &[f64]) -> Self::D;

    /// Writes to the first doubles of `to`.
    ///
    /// # Panics
    /// When there are too few.
    fn store_doubles(self, d: Self::D, to: &mut [f64]);

    /// `x` in every lane.
    fn splat_doubles(self, x: f64) -> Self::D;

    /// `a * b + c`, lane by lane.
    fn mul_add_doubles(self, a: Self::D, b: Self::D, c: Self::D) -> Self::D;
}

/// What every processor has: arrays, which LLVM may keep in registers.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Vectors for Portable {
    type V = [f32; 4];
    type D = [f64; 2];
    type F = Unfused;
    const LANES: usize = 4;

    #[inline(always)]
    fn load(self, from: &[f32]) -> [f32; 4] {
        *from.first_chunk().expect("a whole register")
    }

    #[inline(always)]
    fn store(self, v: [f32; 4], to: &mut [f32]) {
        *to.first_chunk_mut().expect("a whole register") = v;
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 4] {
        [x; 4]
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| Unfused::mul_add(a[i], b[i], c[i]))
    }

    #[inline(always)]
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn relu(self, v: [f32; 4]) -> [f32; 4] {
        v.map(math::relu)
    }

    #[inline(always)]
    fn load_doubles(self, from: &[f64]) -> [f64; 2] {
        *from.first_chunk().expect("a whole register")
    }

    #[inline(always)]
    fn store_doubles(self, d: [f64; 2], to: &mut [f64]) {
        *to.first_chunk_mut().expect("a whole register") = d;
    }

    #[inline(always)]
    fn splat_doubles(self, x: f64) -> [f64; 2] {
        [x; 2]
    }

    #[inline(always)]
    fn mul_add_doubles(self, a: [f64; 2], b: [f64; 2], c: [f64; 2]) -> [f64; 2] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use self::x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

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
        fn mul_add_each<const N: usize>(self, sums: &mut [__m256; N], xs: &[f32], step: usize, w: __m256) {
            let reach = step.checked_mul(N.saturating_sub(1)).and_then(|last| last.checked_add(Self::LANES));
            assert!(reach.is_some_and(|reach| reach <= xs.len()), "too few floats for {N} registers, {step} apart");
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the last register ends within `xs`; the processor has AVX2, which `self` proves.
                let x = unsafe { _mm256_loadu_ps(xs.as_ptr().add(i * step)) };
                *sum = self.mul_add(x, w, *sum);
            }
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

    /// AVX-512.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(());

    impl Avx512 {
        /// # Safety
        /// The processor has AVX-512F.
        pub(crate) unsafe fn new() -> Self {
            Avx512(())
        }
    }

    impl Vectors for Avx512 {
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
        fn store(self, v: __m512, to: &mut [f32]) {
            let to: &mut [f32; 16] = to.first_chunk_mut().expect("a whole register");
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) };
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
        fn mul_add_each<const N: usize>(self, sums: &mut [__m512; N], xs: &[f32], step: usize, w: __m512) {
            let reach = step.checked_mul(N.saturating_sub(1)).and_then(|last| last.checked_add(Self::LANES));
            assert!(reach.is_some_and(|reach| reach <= xs.len()), "too few floats for {N} registers, {step} apart");
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the last register ends within `xs`; the processor has AVX-512F, which `self` proves.
                let x = unsafe { _mm512_loadu_ps(xs.as_ptr().add(i * step)) };
                *sum = self.mul_add(x, w, *sum);
            }
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
}

/// Defines a function whose body is compiled for every [`Isa`](super::Isa), generic over its [`Vectors`]; the caller passes the
/// instruction set to run as first argument, the body sees the proof of it.
///
/// ```ignore
/// vector_fn! {
///     /// Writes the sums of four registers of `x` to `out`.
///     fn sums<S>(simd, x: &[f32], out: &mut [f32]) {
///         ...
///     }
/// }
/// sums(Isa::detect(), &x, &mut out);
/// ```
macro_rules! vector_fn {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$S:ident>($simd:ident, $($arg:ident: $ty:ty),* $(,)?) $body:block
    ) => {
        $(#[$meta])*
        #[allow(unsafe_code)]
        $vis fn $name(isa: $crate::simd::Isa, $($arg: $ty),*) {
            #[inline(always)]
            fn registers<$S: $crate::simd::Vectors>($simd: $S, $($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            fn avx512(simd: $crate::simd::Avx512, $($arg: $ty),*) {
                registers(simd, $($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2(simd: $crate::simd::Avx2, $($arg: $ty),*) {
                registers(simd, $($arg),*)
            }

            match isa.verified() {
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx512 | $crate::simd::Isa::Avx512Bf16 | $crate::simd::Isa::Amx => {
                    // SAFETY: `verified` has found these features on this processor.
                    unsafe { avx512($crate::simd::Avx512::new(), $($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx2 => {
                    // SAFETY: as above.
                    unsafe { avx2($crate::simd::Avx2::new(), $($arg),*) }
                }
                _ => registers($crate::simd::Portable, $($arg),*),
            }
        }
    };
}
pub(crate) use vector_fn;

#[cfg(test)]
mod tests {
    use super::super::{Isa, math};

    vector_fn! {
        fn clip<S>(simd, xs: &[f32], out: &mut [f32]) {
            for at in (0..xs.len()).step_by(S::LANES) {
                let x = simd.add(simd.load(&xs[at..]), simd.splat(-0.0));
                simd.store(simd.relu(x), &mut out[at..]);
            }
        }
    }

    vector_fn! {
        fn sum_of_two<S>(simd, xs: &[f32], step: usize, out: &mut [f32]) {
            let mut sums = [simd.splat(1.0); 2];
            simd.mul_add_each(&mut sums, xs, step, simd.splat(2.0));
            simd.store(sums[0], out);
            simd.store(sums[1], &mut out[S::LANES..]);
        }
    }

    #[test]
    fn lanes_are_clipped_as_single_floats_are() {
        let some = [f32::NAN, -f32::NAN, 0.0, -0.0, 1.0, -1.0, f32::INFINITY, f32::NEG_INFINITY];
        let xs = some.repeat(2);
        for isa in Isa::available() {
            let mut out = [7.0; 16];
            clip(isa, &xs, &mut out);
            for (x, got) in xs.iter().zip(out) {
                assert_eq!(got.to_bits(), math::relu(*x).to_bits(), "{isa}: {x}");
            }
        }
    }

    #[test]
    fn registers_may_be_any_distance_apart() {
        let xs: Vec<f32> = (0..40u8).map(f32::from).collect();
        for (isa, step) in Isa::available().into_iter().flat_map(|isa| [0, 1, 5, 24].map(|step| (isa, step))) {
            let mut out = [0.0; 32];
            sum_of_two(isa, &xs, step, &mut out);
            let lanes = out.iter().rposition(|x| *x != 0.0).map_or(0, |last| last + 1) / 2;
            for (at, got) in out[..2 * lanes].iter().enumerate() {
                assert_eq!(*got, 1.0 + 2.0 * xs[at / lanes * step + at % lanes], "{isa}, {step} apart");
            }
        }
    }

    #[test]
    fn registers_beyond_the_end_are_refused() {
        for isa in Isa::available() {
            for step in [39, usize::MAX] {
                let read = || sum_of_two(isa, &[0.0; 40], step, &mut [0.0; 32]);
                assert!(std::panic::catch_unwind(read).is_err(), "{isa}, {step} apart");
            }
        }
    }
}
