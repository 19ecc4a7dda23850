//! The AVX2 micro-kernels: 6 x 16 and 3 x 32, and for last panels 8 x 8 and 3 x 24. They have eight to twelve accumulators in the sixteen
//! registers; the wide ones keep the arithmetic units busier when there are few rows. Panels of half floats are widened in registers.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::micro::{CHUNK, Fetch, Job, Kernel, finish, kernel};
use crate::{Isa, simd::FloatType, threads::TileMut};

/// Floats of a vector.
const LANES: usize = 8;

/// What panels hold.
const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

/// The kernel for panels of so many vectors of a type.
macro_rules! panels_of {
    ($b:ident, $kind:ident, $vectors:literal) => {
        kernel!(Isa::Avx2, F32, $b, ends: true, [$kind] tile, 8, $vectors, {
            1: [1 2 3 4 5 6 7 8]
            2: [1 2 3 4 5 6]
            3: [1 2 3]
            4: [1 2 3]
        })
    };
}

pub(super) const KERNELS: &[Kernel] = &[
    panels_of!(F32, F32, 2),
    panels_of!(F32, F32, 4),
    panels_of!(F16, F16, 2),
    panels_of!(F16, F16, 4),
    panels_of!(Bf16, BF16, 2),
    panels_of!(Bf16, BF16, 4),
];

/// Vector `v` of a step of a panel, widened; of a pair of steps of bfloat16 the first or the second.
///
/// # Safety
///
/// Needs AVX2 and F16C, and that many numbers at `b`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load<const KIND: u8>(b: *const u8, v: usize, half: usize) -> __m256 {
    // SAFETY: in bounds by contract.
    unsafe {
        match KIND {
            F32 => _mm256_loadu_ps(b.cast::<f32>().add(LANES * v)),
            F16 => _mm256_cvtph_ps(_mm_loadu_si128(b.cast::<u16>().add(LANES * v).cast())),
            _ => {
                let pairs = _mm256_loadu_si256(b.cast::<u32>().add(LANES * v).cast());
                _mm256_castsi256_ps(match half {
                    0 => _mm256_slli_epi32::<16>(pairs),
                    _ => _mm256_and_si256(pairs, _mm256_set1_epi32(-65536)),
                })
            }
        }
    }
}

/// # Safety
///
/// Needs AVX2, FMA and F16C, `MR` rows and at most `VECTORS` vectors in `c`, panels of `nr` columns, and what `job.check` asserts.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const KIND: u8, const VECTORS: usize, const MR: usize>(
    job: &Job<'_>,
    nr: usize,
    mut fetch: Fetch,
    mut c: TileMut<'_, f32>,
) {
    let halves = const { if KIND == BF16 { 2 } else { 1 } };
    let stride = nr * const { if KIND == F16 { 2 } else { 4 } };
    let mut acc = [[_mm256_setzero_ps(); VECTORS]; MR];
    if job.accumulate {
        for (r, acc) in acc.iter_mut().enumerate() {
            let row = c.row(r);
            let mut line = [[0f32; LANES]; VECTORS];
            let row = if row.len() == LANES * VECTORS {
                &*row
            } else {
                line.as_flattened_mut()[..row.len()].copy_from_slice(row);
                line.as_flattened()
            };
            for (v, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the row holds all vectors.
                *acc = unsafe { _mm256_loadu_ps(row.as_ptr().add(LANES * v)) };
            }
        }
    }
    let (a, mut b) = (job.a, job.panel.as_ptr());
    for tap in job.block.taps.clone() {
        let rows: [*const f32; MR] = a.tap_ptrs(job.row, tap).map(<*const u8>::cast);
        for chunk in job.block.k.clone().step_by(CHUNK) {
            fetch.chunk();
            let end = job.block.k.end.min(chunk + CHUNK);
            let mut first = chunk;
            while first < end {
                for half in 0..halves {
                    let k = first + half;
                    if k >= end {
                        break;
                    }
                    // SAFETY: the panel holds a step for each `k` of each tap of the block; a tap holds `k_tap` floats.
                    unsafe {
                        // The accumulators leave four registers: of the step's vectors and the rows' floats the fewer are held.
                        if MR < VECTORS {
                            let mut xs = [_mm256_setzero_ps(); MR];
                            for (x, row) in xs.iter_mut().zip(&rows) {
                                *x = _mm256_broadcast_ss(&*row.add(k));
                            }
                            for v in 0..VECTORS {
                                let step = load::<KIND>(b, v, half);
                                for (acc, x) in acc.iter_mut().zip(&xs) {
                                    acc[v] = _mm256_fmadd_ps(*x, step, acc[v]);
                                }
                            }
                        } else {
                            let mut step = [_mm256_setzero_ps(); VECTORS];
                            for (v, step) in step.iter_mut().enumerate() {
                                *step = load::<KIND>(b, v, half);
                            }
                            for (acc, row) in acc.iter_mut().zip(&rows) {
                                let x = _mm256_broadcast_ss(&*row.add(k));
                                for (acc, step) in acc.iter_mut().zip(&step) {
                                    *acc = _mm256_fmadd_ps(x, *step, *acc);
                                }
                            }
                        }
                    }
                }
                b = b.wrapping_add(stride);
                first += halves;
            }
        }
    }
    if let Some(end) = &job.end {
        finish!(end, acc, [_mm256_set1_ps _mm256_loadu_ps _mm256_add_ps _mm256_min_ps _mm256_max_ps]);
    }
    for (r, acc) in acc.iter().enumerate() {
        let row = c.row(r);
        if row.len() == LANES * VECTORS {
            for (v, acc) in acc.iter().enumerate() {
                // SAFETY: the row holds all vectors.
                unsafe { _mm256_storeu_ps(row.as_mut_ptr().add(LANES * v), *acc) };
            }
            continue;
        }
        let mut line = [[0f32; LANES]; VECTORS];
        for (part, acc) in line.iter_mut().zip(acc) {
            // SAFETY: each part of the line is a vector.
            unsafe { _mm256_storeu_ps(part.as_mut_ptr(), *acc) };
        }
        row.copy_from_slice(&line.as_flattened()[..row.len()]);
    }
}
