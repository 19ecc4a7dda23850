//! Registers of floats, for kernels whose sums must stay in registers while they walk over several inputs.
//!
//! [`simd_fn`](super::simd_fn) leaves it to LLVM to find vectors in loops; it does not where an array of sums lives through
//! several loops. Kernels of that kind are written over [`Vectors`], and compiled once for each instruction set by [`vector_fn`].
#![allow(unsafe_code)]

use std::marker::PhantomData;

use half::bf16;

use super::{Fma, Fused, Unfused, element::to_bf16, lanes, math};

/// The most floats of a register.
pub(crate) const MOST_LANES: usize = 16;

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

    /// All of `from`, which are no more than a register holds; in the other lanes zeros.
    #[inline(always)]
    fn load_some(self, from: &[f32]) -> Self::V {
        if from.len() >= Self::LANES {
            return self.load(from);
        }
        let mut lanes = [0.0; MOST_LANES];
        for (lane, x) in lanes.iter_mut().zip(from) {
            *lane = *x;
        }
        self.load(&lanes)
    }

    /// Writes to all of `to`, which are no more than a register holds.
    #[inline(always)]
    fn store_some(self, v: Self::V, to: &mut [f32]) {
        if to.len() >= Self::LANES {
            return self.store(v, to);
        }
        let mut lanes = [0.0; MOST_LANES];
        self.store(v, &mut lanes);
        for (x, lane) in to.iter_mut().zip(&lanes) {
            *x = *lane;
        }
    }

    /// All of `from`, which are no more than a register holds, widened; in the other lanes zeros.
    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> Self::V {
        let mut lanes = [0.0; MOST_LANES];
        for (lane, x) in lanes[..Self::LANES].iter_mut().zip(from) {
            *lane = math::bf16_to_f32(x.to_bits());
        }
        self.load(&lanes)
    }

    /// Rounds to all of `to`, which are no more than a register holds, as [`to_bf16`] does.
    #[inline(always)]
    fn store_bf16(self, v: Self::V, to: &mut [bf16]) {
        let mut lanes = [0.0; MOST_LANES];
        self.store(v, &mut lanes);
        for (x, lane) in to.iter_mut().zip(&lanes[..Self::LANES]) {
            *x = bf16::from_bits(to_bf16(*lane));
        }
    }

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::V;

    /// `a * b + c`, lane by lane.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// `a + b`, lane by lane.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;

    /// `a * b`, lane by lane.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;

    /// `a / b`, lane by lane.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;

    /// [`relu`](super::math::relu) of each lane.
    fn relu(self, v: Self::V) -> Self::V;

    /// [`greater`](super::lanes::greater) of two lanes.
    fn greater(self, a: Self::V, b: Self::V) -> Self::V;

    /// Each lane, or `low` where it is less.
    fn at_least(self, v: Self::V, low: f32) -> Self::V;

    /// Each lane, or `high` where it is more.
    fn at_most(self, v: Self::V, high: f32) -> Self::V;

    /// `f` of each lane.
    #[inline(always)]
    fn map(self, v: Self::V, f: impl Fn(f32) -> f32) -> Self::V {
        let mut lanes = [0.0; MOST_LANES];
        self.store(v, &mut lanes);
        for lane in &mut lanes[..Self::LANES] {
            *lane = f(*lane);
        }
        self.load(&lanes)
    }

    /// Each lane without its sign.
    fn abs(self, v: Self::V) -> Self::V;

    /// The lowest bits of each lane, where the exponent is.
    fn to_exponents(self, v: Self::V) -> Self::V;

    /// The floats at `from`.
    ///
    /// # Safety
    /// A register of floats is there.
    unsafe fn load_at(self, from: *const f32) -> Self::V;

    /// Adds to register `q` of sum `i` the products of register `q` of the weights of each tap and register `q` of its pixel, `i` steps
    /// further, lane by lane.
    ///
    /// # Panics
    /// When `xs` or `weights` are too short.
    #[inline(always)]
    fn mul_add_taps<const N: usize, const Q: usize>(
        self,
        sums: &mut [[Self::V; Q]; N],
        taps: &Taps,
        (xs, step): (&[f32], usize),
        weights: &[f32],
    ) {
        if taps.at().is_empty() {
            return;
        }
        let width = Q * Self::LANES;
        let [pixel, weight] = taps.reach();
        let reach = |steps: Option<usize>, at: usize| steps?.checked_add(at)?.checked_add(width);
        let [pixels, weights_end] = [reach(step.checked_mul(N - 1), pixel), reach(Some(0), weight)];
        assert!(pixels.is_some_and(|end| end <= xs.len()), "too few floats for {N} times {Q} registers, {step} apart");
        assert!(weights_end.is_some_and(|end| end <= weights.len()), "too few weights for {Q} registers");
        for [pixel, weight] in taps.at() {
            let mut w = [self.splat(0.0); Q];
            for (q, w) in w.iter_mut().enumerate() {
                // SAFETY: as many weights are there behind the farthest.
                *w = unsafe { self.load_at(weights.as_ptr().add(*weight + q * Self::LANES)) };
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                for (q, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: as many floats are there behind the farthest pixel.
                    let x = unsafe { self.load_at(xs.as_ptr().add(*pixel + i * step + q * Self::LANES)) };
                    *sum = self.mul_add(x, w[q], *sum);
                }
            }
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

/// Single floats as they are in code for an instruction set, where LLVM makes vectors of loops over them.
#[derive(Clone, Copy)]
pub(crate) struct One<F>(PhantomData<F>);

impl<F> Default for One<F> {
    fn default() -> Self {
        One(PhantomData)
    }
}

impl<F: Fma> Vectors for One<F> {
    type V = f32;
    type D = f64;
    type F = F;
    const LANES: usize = 1;

    #[inline(always)]
    fn load(self, from: &[f32]) -> f32 {
        from[0]
    }

    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> f32 {
        // SAFETY: by contract.
        unsafe { *from }
    }

    #[inline(always)]
    fn store(self, v: f32, to: &mut [f32]) {
        to[0] = v;
    }

    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        F::mul_add(a, b, c)
    }

    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }

    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }

    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }

    #[inline(always)]
    fn relu(self, v: f32) -> f32 {
        math::relu(v)
    }

    #[inline(always)]
    fn greater(self, a: f32, b: f32) -> f32 {
        lanes::greater(a, b)
    }

    #[inline(always)]
    fn at_least(self, v: f32, low: f32) -> f32 {
        if v < low { low } else { v }
    }

    #[inline(always)]
    fn at_most(self, v: f32, high: f32) -> f32 {
        if v > high { high } else { v }
    }

    #[inline(always)]
    fn map(self, v: f32, f: impl Fn(f32) -> f32) -> f32 {
        f(v)
    }

    #[inline(always)]
    fn abs(self, v: f32) -> f32 {
        v.abs()
    }

    #[inline(always)]
    fn to_exponents(self, v: f32) -> f32 {
        f32::from_bits(v.to_bits() << 23)
    }

    #[inline(always)]
    fn load_doubles(self, from: &[f64]) -> f64 {
        from[0]
    }

    #[inline(always)]
    fn store_doubles(self, d: f64, to: &mut [f64]) {
        to[0] = d;
    }

    #[inline(always)]
    fn splat_doubles(self, x: f64) -> f64 {
        x
    }

    #[inline(always)]
    fn mul_add_doubles(self, a: f64, b: f64, c: f64) -> f64 {
        a * b + c
    }
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
    unsafe fn load_at(self, from: *const f32) -> [f32; 4] {
        // SAFETY: by contract; an array is aligned as its elements are.
        unsafe { *from.cast() }
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
    fn mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn relu(self, v: [f32; 4]) -> [f32; 4] {
        v.map(math::relu)
    }

    #[inline(always)]
    fn greater(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| lanes::greater(a[i], b[i]))
    }

    #[inline(always)]
    fn at_least(self, v: [f32; 4], low: f32) -> [f32; 4] {
        v.map(|x| if x < low { low } else { x })
    }

    #[inline(always)]
    fn at_most(self, v: [f32; 4], high: f32) -> [f32; 4] {
        v.map(|x| if x > high { high } else { x })
    }

    #[inline(always)]
    fn abs(self, v: [f32; 4]) -> [f32; 4] {
        v.map(f32::abs)
    }

    #[inline(always)]
    fn to_exponents(self, v: [f32; 4]) -> [f32; 4] {
        v.map(|x| f32::from_bits(x.to_bits() << 23))
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
pub(crate) use self::{several::Several, taps::Taps};

mod several;
mod taps;

#[cfg(target_arch = "x86_64")]
mod x86;

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
///
/// After `product:` a processor that multiplies bfloat16 rounds to it by its own instruction, too: that takes subnormal numbers for zero, as
/// its products do.
macro_rules! vector_fn {
    (
        product:
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$S:ident>($simd:ident, $($arg:ident: $ty:ty),* $(,)?) $body:block
    ) => {
        $(#[$meta])*
        #[allow(unsafe_code)]
        $vis fn $name(isa: $crate::simd::Isa, $($arg: $ty),*) {
            #[inline(always)]
            fn body<$S: $crate::simd::Vectors>($simd: $S, $($arg: $ty),*) $body

            $crate::simd::vector_fn! {
                fn others<$S>(simd, $($arg: $ty),*) {
                    body(simd, $($arg),*)
                }
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma")]
            fn rounding(simd: $crate::simd::Avx512<true>, $($arg: $ty),*) {
                body(simd, $($arg),*)
            }

            match isa.verified() {
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx512Bf16 | $crate::simd::Isa::Amx => {
                    // SAFETY: `verified` has found these features on this processor.
                    unsafe { rounding($crate::simd::Avx512::new(), $($arg),*) }
                }
                _ => others(isa, $($arg),*),
            }
        }
    };
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
            fn avx512(simd: $crate::simd::Avx512<false>, $($arg: $ty),*) {
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
    use half::bf16;

    use super::{
        super::{Isa, element::to_bf16, math},
        Taps,
    };

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
            let mut sums = [[simd.splat(1.0)]; 2];
            let mut taps = Taps::default();
            taps.push(1, 4);
            taps.push(0, 8);
            simd.mul_add_taps(&mut sums, &taps, (xs, step), &[2.0; 32]);
            simd.store(sums[0][0], out);
            simd.store(sums[1][0], &mut out[S::LANES..]);
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

    vector_fn! {
        fn round<S>(simd, xs: &[f32], out: &mut [bf16]) {
            for (xs, out) in xs.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
                simd.store_bf16(simd.load_some(xs), out);
            }
        }
    }

    vector_fn! {
        fn widen<S>(simd, xs: &[bf16], out: &mut [f32]) {
            for (xs, out) in xs.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
                simd.store_some(simd.load_bf16(xs), out);
            }
        }
    }

    #[test]
    fn registers_are_rounded_and_widened_as_single_floats_are() {
        let mut xs: Vec<f32> = (0..u32::MAX).step_by(1_000_003).map(f32::from_bits).collect();
        // Ties, and what becomes infinite.
        xs.extend([0x3f80_8000, 0x3f81_8000, 0x7f7f_8000, 0xff7f_ffff, 0x7f80_0001].map(f32::from_bits));
        for isa in Isa::available() {
            let mut out = vec![bf16::ZERO; xs.len()];
            round(isa, &xs, &mut out);
            let mut widened = vec![7.0; xs.len()];
            widen(isa, &out, &mut widened);
            for ((x, got), wide) in xs.iter().zip(out).zip(widened) {
                assert_eq!(got.to_bits(), to_bf16(*x), "{isa}: {:#x}", x.to_bits());
                assert_eq!(wide.to_bits(), u32::from(got.to_bits()) << 16, "{isa}: {:#x}", x.to_bits());
            }
        }
    }

    #[test]
    fn registers_may_be_any_distance_apart() {
        let xs: Vec<f32> = (0..48u8).map(f32::from).collect();
        for (isa, step) in Isa::available().into_iter().flat_map(|isa| [0, 1, 5, 24].map(|step| (isa, step))) {
            let mut out = [0.0; 32];
            sum_of_two(isa, &xs, step, &mut out);
            let lanes = out.iter().rposition(|x| *x != 0.0).map_or(0, |last| last + 1) / 2;
            for (at, got) in out[..2 * lanes].iter().enumerate() {
                let first = at / lanes * step + at % lanes;
                assert_eq!(*got, 1.0 + 2.0 * (xs[first] + xs[first + 1]), "{isa}, {step} apart");
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
