//! Several registers as one.

use half::bf16;

use super::Vectors;

/// `N` registers of `S`, to which everything is done in turn: a formula of many steps that depend on each other then keeps the arithmetic
/// units busy, and fetches each of its constants once.
#[derive(Clone, Copy)]
pub(crate) struct Several<S, const N: usize>(pub(crate) S);

/// The registers that `$x` is for each `$i`. A loop: a closure would be compiled for no instruction set in particular.
macro_rules! each {
    ($none:expr, $i:ident => $x:expr) => {{
        let mut registers = $none;
        for $i in 0..N {
            registers[$i] = $x;
        }
        registers
    }};
}

impl<S: Vectors, const N: usize> Vectors for Several<S, N> {
    type V = [S::V; N];
    type D = [S::D; N];
    type F = S::F;
    const LANES: usize = N * S::LANES;

    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::V {
        each!(self.splat(0.0), i => self.0.load(&from[i * S::LANES..]))
    }

    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32]) {
        for (i, v) in v.into_iter().enumerate() {
            self.0.store(v, &mut to[i * S::LANES..]);
        }
    }

    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> Self::V {
        // SAFETY: by contract as many floats are there as all registers hold.
        each!(self.splat(0.0), i => unsafe { self.0.load_at(from.add(i * S::LANES)) })
    }

    #[inline(always)]
    fn load_some(self, from: &[f32]) -> Self::V {
        if from.len() >= Self::LANES {
            return self.load(from);
        }
        each!(self.splat(0.0), i => self.0.load_some(from.chunks(S::LANES).nth(i).unwrap_or(&[])))
    }

    #[inline(always)]
    fn store_some(self, v: Self::V, to: &mut [f32]) {
        if to.len() >= Self::LANES {
            return self.store(v, to);
        }
        for (v, to) in v.into_iter().zip(to.chunks_mut(S::LANES)) {
            self.0.store_some(v, to);
        }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> Self::V {
        each!(self.splat(0.0), i => self.0.load_bf16(from.chunks(S::LANES).nth(i).unwrap_or(&[])))
    }

    #[inline(always)]
    fn store_bf16(self, v: Self::V, to: &mut [bf16]) {
        for (v, to) in v.into_iter().zip(to.chunks_mut(S::LANES)) {
            self.0.store_bf16(v, to);
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [self.0.splat(x); N]
    }

    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each!(self.splat(0.0), i => self.0.mul_add(a[i], b[i], c[i]))
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each!(self.splat(0.0), i => self.0.add(a[i], b[i]))
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each!(self.splat(0.0), i => self.0.mul(a[i], b[i]))
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        each!(self.splat(0.0), i => self.0.div(a[i], b[i]))
    }

    #[inline(always)]
    fn relu(self, v: Self::V) -> Self::V {
        each!(self.splat(0.0), i => self.0.relu(v[i]))
    }

    #[inline(always)]
    fn greater(self, a: Self::V, b: Self::V) -> Self::V {
        each!(self.splat(0.0), i => self.0.greater(a[i], b[i]))
    }

    #[inline(always)]
    fn at_least(self, v: Self::V, low: f32) -> Self::V {
        each!(self.splat(0.0), i => self.0.at_least(v[i], low))
    }

    #[inline(always)]
    fn at_most(self, v: Self::V, high: f32) -> Self::V {
        each!(self.splat(0.0), i => self.0.at_most(v[i], high))
    }

    #[inline(always)]
    fn map(self, v: Self::V, f: impl Fn(f32) -> f32) -> Self::V {
        each!(self.splat(0.0), i => self.0.map(v[i], &f))
    }

    #[inline(always)]
    fn abs(self, v: Self::V) -> Self::V {
        each!(self.splat(0.0), i => self.0.abs(v[i]))
    }

    #[inline(always)]
    fn to_exponents(self, v: Self::V) -> Self::V {
        each!(self.splat(0.0), i => self.0.to_exponents(v[i]))
    }

    #[inline(always)]
    fn load_doubles(self, from: &[f64]) -> Self::D {
        each!(self.splat_doubles(0.0), i => self.0.load_doubles(&from[i * S::LANES / 2..]))
    }

    #[inline(always)]
    fn store_doubles(self, d: Self::D, to: &mut [f64]) {
        for (i, d) in d.into_iter().enumerate() {
            self.0.store_doubles(d, &mut to[i * S::LANES / 2..]);
        }
    }

    #[inline(always)]
    fn splat_doubles(self, x: f64) -> Self::D {
        [self.0.splat_doubles(x); N]
    }

    #[inline(always)]
    fn mul_add_doubles(self, a: Self::D, b: Self::D, c: Self::D) -> Self::D {
        each!(self.splat_doubles(0.0), i => self.0.mul_add_doubles(a[i], b[i], c[i]))
    }
}
