//! Instruction sets, found at run time, and the code that depends on them.
#![allow(unsafe_code)]

pub mod activation;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod dispatch;
mod element;
pub(crate) mod functions;
pub(crate) mod indices;
pub(crate) mod lanes;
pub mod math;
mod transpose;
mod vector;

use std::{fmt, sync::OnceLock};

pub(crate) use dispatch::simd_fn;
pub use dispatch::{Fma, Fused, Unfused};
pub use element::{Float, FloatType, Floats};
pub(crate) use element::{to_bf16, with_floats_mut};
pub(crate) use transpose::{Product, Runs, Steps, Strip, copy_lines_streaming, transpose_strip};
#[cfg(target_arch = "x86_64")]
pub(crate) use vector::{Avx2, Avx512};
pub(crate) use vector::{MOST_LANES, One, Portable, Several, Taps, Vectors, vector_fn};

/// Tells the caches that `data` will be read soon.
#[inline]
pub(crate) fn prefetch(data: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in data.chunks(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch has no effect but on time, whatever the address; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = data;
}

/// Tells the second-level cache that what is at `address`, if anything is, will be read later.
#[inline(always)]
pub(crate) fn prefetch_second(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch has no effect but on time, whatever the address; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// An instruction set that routines are compiled for. Later ones contain earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// What the target guarantees (SSE2 on x86-64), no fused multiply-add.
    Portable,
    /// AVX2 with FMA and F16C: 8 lanes.
    Avx2,
    /// AVX-512 F, VL, BW and DQ: 16 lanes.
    Avx512,
    /// AVX-512 with BF16: products of two bfloat16 numbers, added up in pairs.
    Avx512Bf16,
    /// That and AMX with BF16 and INT8: products of tiles, where the system lets this process use them.
    Amx,
}

impl Isa {
    /// All instruction sets, simplest first.
    pub const ALL: [Isa; 5] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx];

    /// The best instruction set of this processor.
    pub fn detect() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(detect)
    }

    /// Every instruction set of this processor, simplest first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_here()).collect()
    }

    /// Whether this processor has it. Tests of this crate have tiles where a model can stand in for them.
    #[inline]
    fn is_here(self) -> bool {
        let best = Isa::detect();
        self <= best || (cfg!(test) && self == Isa::Amx && best == Isa::Avx512Bf16)
    }

    /// The name in plans, reports and tuning records.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2+fma",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512+bf16",
            Isa::Amx => "avx512+amx",
        }
    }

    /// The instruction set that engines for this one name and need. Products of tiles read the panels that `avx512+bf16` reads, so
    /// that an engine built where there are tiles also runs where there are none, and the other way round.
    pub fn of_engines(self) -> Isa {
        if self == Isa::Amx { Isa::Avx512Bf16 } else { self }
    }

    /// The processor features that code for this instruction set is compiled with, in order.
    pub fn features(self) -> &'static [&'static str] {
        match self {
            Isa::Portable => &[],
            Isa::Avx2 => &["avx2", "f16c", "fma"],
            Isa::Avx512 => &["avx2", "avx512bw", "avx512dq", "avx512f", "avx512vl", "f16c", "fma"],
            Isa::Avx512Bf16 => &["avx2", "avx512bf16", "avx512bw", "avx512dq", "avx512f", "avx512vl", "f16c", "fma"],
            Isa::Amx => &[
                "amx-bf16",
                "amx-int8",
                "amx-tile",
                "avx2",
                "avx512bf16",
                "avx512bw",
                "avx512dq",
                "avx512f",
                "avx512vl",
                "f16c",
                "fma",
            ],
        }
    }

    /// `self`, known to run here: the one gate in front of every `target_feature` call.
    ///
    /// # Panics
    ///
    /// If this processor lacks the instruction set.
    #[inline]
    pub(crate) fn verified(self) -> Isa {
        assert!(self.is_here(), "this processor has no {}", self.name());
        self
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq");
    match (avx2, avx512) {
        (true, true) if is_x86_feature_detected!("avx512bf16") => {
            #[cfg(target_os = "linux")]
            if amx::is_usable() {
                return Isa::Amx;
            }
            Isa::Avx512Bf16
        }
        (true, true) => Isa::Avx512,
        (true, false) => Isa::Avx2,
        (false, _) => Isa::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Portable
}

#[cfg(test)]
mod tests {
    use super::Isa;

    #[test]
    fn available_ends_with_the_best() {
        let all = Isa::available();
        assert_eq!(all.first(), Some(&Isa::Portable));
        // Tiles may be a model.
        assert!(all.last() == Some(&Isa::detect()) || all.last() == Some(&Isa::Amx));
        assert!(all.is_sorted());
    }
}
