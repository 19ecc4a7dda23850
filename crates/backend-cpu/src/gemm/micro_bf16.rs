//! The AVX512-BF16 micro-kernels: 12 x 32 and 6 x 64. An instruction multiplies pairs of bfloat16 numbers of two neighboring steps of
//! `k` and adds both products to a float. It takes subnormal numbers for zero.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::{
    micro::{CHUNK, Fetch, Job, Kernel, kernel},
    micro_avx512::{masks, read, write},
};
use crate::{Isa, simd::FloatType, threads::TileMut};

/// Pairs of a vector.
const LANES: usize = 16;

/// The kernel for panels of so many vectors.
macro_rules! panels_of {
    ($vectors:literal) => {
        kernel!(Isa::Avx512Bf16, Bf16, Bf16, ends: false, [] tile, 16, $vectors, {
            1: [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16]
            2: [1 2 3 4 5 6 7 8 9 10 11 12]
            3: [1 2 3 4 5 6 7 8]
            4: [1 2 3 4 5 6]
        })
    };
}

pub(super) const KERNELS: &[Kernel] = &[panels_of!(2), panels_of!(4)];

/// # Safety
///
/// Needs AVX512-BF16, `MR` rows and at most `VECTORS` vectors in `c`, panels of `nr` columns, and what `job.check` asserts.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile<const VECTORS: usize, const MR: usize>(
    job: &Job<'_>,
    nr: usize,
    mut fetch: Fetch,
    mut c: TileMut<'_, f32>,
) {
    let (masks, mut acc) = (masks(&c), [[_mm512_setzero_ps(); VECTORS]; MR]);
    if job.accumulate {
        // SAFETY: the masks are those of `c`.
        unsafe { read(&mut c, &masks, &mut acc) };
    }
    let (a, mut b) = (job.a, job.panel.as_ptr().cast::<u32>());
    let (whole, odd) = (job.block.k.len() / 2, !job.block.k.len().is_multiple_of(2));
    for tap in job.block.taps.clone() {
        let first = job.block.k.start;
        let rows: [*const i32; MR] = a.tap_ptrs(job.row, tap).map(|row| row.cast::<u16>().wrapping_add(first).cast());
        for chunk in (0..whole).step_by(CHUNK) {
            fetch.chunk();
            for pair in chunk..whole.min(chunk + CHUNK) {
                // SAFETY: the panel holds a pair of steps for each pair of `k` of each tap of the block; a tap holds `k_tap` numbers.
                unsafe {
                    let mut step = [bf16(_mm512_setzero_si512()); VECTORS];
                    for (v, step) in step.iter_mut().enumerate() {
                        *step = bf16(_mm512_loadu_si512(b.add(LANES * v).cast()));
                    }
                    b = b.wrapping_add(nr);
                    for r in 0..MR {
                        let x = bf16(_mm512_set1_epi32(rows[r].add(pair).read_unaligned()));
                        for v in 0..VECTORS {
                            acc[r][v] = _mm512_dpbf16_ps(acc[r][v], x, step[v]);
                        }
                    }
                }
            }
        }
        if odd {
            // SAFETY: as above; of the last pair only the first number is read. What stands beside it in the panel may be anything.
            unsafe {
                let low = _mm512_set1_epi32(0xffff);
                for r in 0..MR {
                    let x = bf16(_mm512_set1_epi32(i32::from(*rows[r].add(whole).cast::<u16>())));
                    for (v, acc) in acc[r].iter_mut().enumerate() {
                        let step = _mm512_and_si512(_mm512_loadu_si512(b.add(LANES * v).cast()), low);
                        *acc = _mm512_dpbf16_ps(*acc, x, bf16(step));
                    }
                }
                b = b.wrapping_add(nr);
            }
        }
    }
    // SAFETY: the masks are those of `c`.
    unsafe { write(&mut c, &masks, &acc) };
}

/// The same bits, as pairs of bfloat16.
#[inline]
#[target_feature(enable = "avx512f")]
fn bf16(pairs: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits of which every value is valid.
    unsafe { std::mem::transmute(pairs) }
}
