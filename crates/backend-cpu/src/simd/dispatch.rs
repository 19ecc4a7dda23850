//! One source, three machine codes: slice loops compiled per instruction set and chosen at run time.

/// Whether `a * b + c` is fused. Without hardware support `f32::mul_add` is a library call, so the lane functions of
/// [`math`](super::math) take this marker instead of calling it.
pub trait Fma: Copy {
    /// `a * b + c`.
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// One rounding: for code compiled with FMA.
#[derive(Clone, Copy, Debug)]
pub struct Fused;

/// Two roundings: for code compiled without.
#[derive(Clone, Copy, Debug)]
pub struct Unfused;

impl Fma for Fused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

impl Fma for Unfused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// Defines a function whose body is compiled for every [`Isa`](super::Isa); the caller passes the one to run as first argument.
///
/// The body is ordinary safe code, generic over an [`Fma`] marker, written so that LLVM can vectorize it: loops over
/// slices or arrays of fixed length, selects instead of branches.
///
/// ```ignore
/// simd_fn! {
///     /// Adds `y * scale` to `x`.
///     pub fn add_scaled<F>(x: &mut [f32], y: &[f32], scale: f32) {
///         for (x, y) in x.iter_mut().zip(y) {
///             *x = F::mul_add(*y, scale, *x);
///         }
///     }
/// }
/// add_scaled(Isa::detect(), &mut x, &y, 2.0);
/// ```
///
/// Types that the function is generic over come behind the marker, each with one bound: `<F, T: Pod>`.
macro_rules! simd_fn {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$F:ident $(, $T:ident: $bound:path)*>($($arg:ident: $ty:ty),* $(,)?)
            $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        #[allow(unsafe_code)]
        $vis fn $name<$($T: $bound),*>(isa: $crate::simd::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::extra_unused_type_parameters)]
            fn lanes<$F: $crate::simd::Fma $(, $T: $bound)*>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            fn avx512<$($T: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                lanes::<$crate::simd::Fused $(, $T)*>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<$($T: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                lanes::<$crate::simd::Fused $(, $T)*>($($arg),*)
            }

            match isa.verified() {
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx512 | $crate::simd::Isa::Avx512Bf16 | $crate::simd::Isa::Amx => {
                    // SAFETY: `verified` has found these features on this processor.
                    unsafe { avx512($($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx2 => {
                    // SAFETY: as above.
                    unsafe { avx2($($arg),*) }
                }
                _ => lanes::<$crate::simd::Unfused $(, $T)*>($($arg),*),
            }
        }
    };
}
pub(crate) use simd_fn;
