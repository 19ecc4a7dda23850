//! The AVX-512 micro-kernels: 12 x 32, 6 x 64, 8 x 48 and 24 x 16. All have 24 accumulators in the 32 registers, a vector of `B` for
//! each 16 columns, and `A` broadcast from memory. The wide ones keep the arithmetic units busier when there are few rows, and
//! fetch less of `A`; the narrow ones waste less of a last panel and fetch less of `B`.
#![allow(unsafe_code)]

use std::{arch::x86_64::*, array};

use super::micro::{CHUNK, Job, Kernel, LINE, kernel};
use crate::{Isa, threads::TileMut};

/// Floats of a vector.
const LANES: usize = 16;

pub(super) const KERNELS: &[Kernel] = &[
    kernel!(Isa::Avx512, tile, 16, 2, [1 2 3 4 5 6 7 8 9 10 11 12]),
    kernel!(Isa::Avx512, tile, 16, 4, [1 2 3 4 5 6]),
    kernel!(Isa::Avx512, tile, 16, 3, [1 2 3 4 5 6 7 8]),
    kernel!(Isa::Avx512, tile, 16, 1, [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24]),
];

/// # Safety
///
/// Needs AVX-512F, `MR` rows in `c`, and what `job.check` asserts.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const VECTORS: usize, const MR: usize>(job: &Job<'_>, mut c: TileMut<'_, f32>) {
    let mask = u64::MAX.unbounded_shr((u64::BITS as usize - c.cols()) as u32);
    let masks: [u16; VECTORS] = array::from_fn(|v| (mask >> (LANES * v)) as u16);
    let mut acc = [[_mm512_setzero_ps(); VECTORS]; MR];
    if job.accumulate {
        for (r, acc) in acc.iter_mut().enumerate() {
            let row = c.row(r).as_ptr();
            for (v, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the masks have a bit for each float of the row, and masked-out lanes are not touched.
                *acc = unsafe { _mm512_maskz_loadu_ps(masks[v], row.wrapping_add(LANES * v)) };
            }
        }
    }
    let (a, mut b) = (job.a, job.panel.as_ptr());
    let (mut next, lines) = (job.next.as_ptr(), job.lines_per_chunk());
    for tap in job.block.taps.clone() {
        let rows: [*const f32; MR] = array::from_fn(|r| a.tap_ptr(job.row + r, tap));
        for chunk in job.block.k.clone().step_by(CHUNK) {
            for _ in 0..lines {
                _mm_prefetch::<_MM_HINT_T1>(next.cast());
                next = next.wrapping_add(LINE);
            }
            for k in chunk..job.block.k.end.min(chunk + CHUNK) {
                // SAFETY: the panel holds a step for each `k` of each tap of the block; a tap holds `k_tap` floats.
                unsafe {
                    let mut step = [_mm512_setzero_ps(); VECTORS];
                    for (v, step) in step.iter_mut().enumerate() {
                        *step = _mm512_loadu_ps(b.add(LANES * v));
                    }
                    b = b.add(LANES * VECTORS);
                    for r in 0..MR {
                        let x = _mm512_set1_ps(*rows[r].add(k));
                        for v in 0..VECTORS {
                            acc[r][v] = _mm512_fmadd_ps(x, step[v], acc[r][v]);
                        }
                    }
                }
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        let row = c.row(r).as_mut_ptr();
        for (v, acc) in acc.iter().enumerate() {
            // SAFETY: the masks have a bit for each float of the row, and masked-out lanes are not touched.
            unsafe { _mm512_mask_storeu_ps(row.wrapping_add(LANES * v), masks[v], *acc) };
        }
    }
}
