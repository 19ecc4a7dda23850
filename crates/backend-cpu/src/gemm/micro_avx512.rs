//! The AVX-512 micro-kernel: 12 x 32, 24 accumulators, two vectors of `B`, `A` broadcast from memory.
#![allow(unsafe_code)]

use std::{arch::x86_64::*, array};

use super::micro::{CHUNK, Job, Kernel, LINE, for_rows};
use crate::{Isa, threads::TileMut};

const NR: usize = 32;

pub(super) const KERNEL: Kernel = Kernel { mr: 12, nr: NR, run };

fn run(job: &Job<'_>, c: TileMut<'_, f32>) {
    job.check(&KERNEL, &c);
    Isa::Avx512.verified();
    // SAFETY: `verified` has found AVX-512 here; `check` has found what `tile` wants.
    unsafe { for_rows!(c.rows(), tile(job, c), [1 2 3 4 5 6 7 8 9 10 11 12]) }
}

/// # Safety
///
/// Needs AVX-512F, `MR` rows in `c`, and what `job.check` asserts.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const MR: usize>(job: &Job<'_>, mut c: TileMut<'_, f32>) {
    let mask = u32::MAX.unbounded_shr((NR - c.cols()) as u32);
    let mut acc = [[_mm512_setzero_ps(); 2]; MR];
    if job.accumulate {
        for (r, acc) in acc.iter_mut().enumerate() {
            let row = c.row(r).as_ptr();
            // SAFETY: the mask has a bit for each float of the row, and masked-out lanes are not touched.
            *acc = unsafe {
                let high = row.wrapping_add(16);
                [_mm512_maskz_loadu_ps(mask as u16, row), _mm512_maskz_loadu_ps((mask >> 16) as u16, high)]
            };
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
                    let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
                    b = b.add(NR);
                    for r in 0..MR {
                        let x = _mm512_set1_ps(*rows[r].add(k));
                        acc[r][0] = _mm512_fmadd_ps(x, b0, acc[r][0]);
                        acc[r][1] = _mm512_fmadd_ps(x, b1, acc[r][1]);
                    }
                }
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        let row = c.row(r).as_mut_ptr();
        // SAFETY: the mask has a bit for each float of the row, and masked-out lanes are not touched.
        unsafe {
            _mm512_mask_storeu_ps(row, mask as u16, acc[0]);
            _mm512_mask_storeu_ps(row.wrapping_add(16), (mask >> 16) as u16, acc[1]);
        }
    }
}
