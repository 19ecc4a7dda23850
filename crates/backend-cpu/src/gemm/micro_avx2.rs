//! The AVX2 micro-kernel: 6 x 16, twelve accumulators, two vectors of `B`, one broadcast of `A`.
#![allow(unsafe_code)]

use std::{arch::x86_64::*, array};

use super::micro::{CHUNK, Job, Kernel, LINE, for_rows};
use crate::{Isa, threads::TileMut};

const NR: usize = 16;

pub(super) const KERNEL: Kernel = Kernel { mr: 6, nr: NR, run };

fn run(job: &Job<'_>, c: TileMut<'_, f32>) {
    job.check(&KERNEL, &c);
    Isa::Avx2.verified();
    // SAFETY: `verified` has found AVX2 and FMA here; `check` has found what `tile` wants.
    unsafe { for_rows!(c.rows(), tile(job, c), [1 2 3 4 5 6]) }
}

/// # Safety
///
/// Needs AVX2 and FMA, `MR` rows in `c`, and what `job.check` asserts.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const MR: usize>(job: &Job<'_>, mut c: TileMut<'_, f32>) {
    let mut acc = [[_mm256_setzero_ps(); 2]; MR];
    if job.accumulate {
        for (r, acc) in acc.iter_mut().enumerate() {
            let mut line = [0f32; NR];
            line[..c.cols()].copy_from_slice(c.row(r));
            // SAFETY: `line` is 16 floats.
            *acc = unsafe { [_mm256_loadu_ps(line.as_ptr()), _mm256_loadu_ps(line.as_ptr().add(8))] };
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
                    let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
                    b = b.add(NR);
                    for r in 0..MR {
                        let x = _mm256_broadcast_ss(&*rows[r].add(k));
                        acc[r][0] = _mm256_fmadd_ps(x, b0, acc[r][0]);
                        acc[r][1] = _mm256_fmadd_ps(x, b1, acc[r][1]);
                    }
                }
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        let mut line = [0f32; NR];
        // SAFETY: `line` is 16 floats.
        unsafe {
            _mm256_storeu_ps(line.as_mut_ptr(), acc[0]);
            _mm256_storeu_ps(line.as_mut_ptr().add(8), acc[1]);
        }
        let row = c.row(r);
        match row.first_chunk_mut::<NR>() {
            Some(row) => *row = line,
            None => row.copy_from_slice(&line[..row.len()]),
        }
    }
}
