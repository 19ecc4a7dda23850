//! The AVX2 micro-kernels: 6 x 16 and 3 x 32. Both have twelve accumulators in the sixteen registers; the wide one keeps the
//! arithmetic units busier when there are few rows. Panels of half floats are widened in registers.
#![allow(unsafe_code)]

use std::{arch::x86_64::*, array};

use super::micro::{CHUNK, Job, Kernel, LINE, finish, kernel};
use crate::{Isa, simd::FloatType, threads::TileMut};

/// Floats of a vector.
const LANES: usize = 8;

/// What panels hold.
const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

pub(super) const KERNELS: &[Kernel] = &[
    kernel!(Isa::Avx2, F32, F32, ends: true, [F32] tile, 8, 2, [1 2 3 4 5 6]),
    kernel!(Isa::Avx2, F32, F32, ends: true, [F32] tile, 8, 4, [1 2 3]),
    kernel!(Isa::Avx2, F32, F16, ends: true, [F16] tile, 8, 2, [1 2 3 4 5 6]),
    kernel!(Isa::Avx2, F32, F16, ends: true, [F16] tile, 8, 4, [1 2 3]),
    kernel!(Isa::Avx2, F32, Bf16, ends: true, [BF16] tile, 8, 2, [1 2 3 4 5 6]),
    kernel!(Isa::Avx2, F32, Bf16, ends: true, [BF16] tile, 8, 4, [1 2 3]),
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
/// Needs AVX2, FMA and F16C, `MR` rows in `c`, and what `job.check` asserts.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const KIND: u8, const VECTORS: usize, const MR: usize>(job: &Job<'_>, mut c: TileMut<'_, f32>) {
    let halves = const { if KIND == BF16 { 2 } else { 1 } };
    let stride = const { LANES * VECTORS * if KIND == F16 { 2 } else { 4 } };
    let mut acc = [[_mm256_setzero_ps(); VECTORS]; MR];
    if job.accumulate {
        for (r, acc) in acc.iter_mut().enumerate() {
            let mut line = [[0f32; LANES]; VECTORS];
            line.as_flattened_mut()[..c.cols()].copy_from_slice(c.row(r));
            for (acc, part) in acc.iter_mut().zip(&line) {
                // SAFETY: each part of the line is a vector.
                *acc = unsafe { _mm256_loadu_ps(part.as_ptr()) };
            }
        }
    }
    let (a, mut b) = (job.a, job.panel.as_ptr());
    let (mut next, lines) = (job.next.as_ptr(), job.lines_per_chunk(job.block.len()));
    for tap in job.block.taps.clone() {
        let rows: [*const f32; MR] = array::from_fn(|r| a.tap_ptr(job.row + r, tap).cast());
        for chunk in job.block.k.clone().step_by(CHUNK) {
            for _ in 0..lines {
                _mm_prefetch::<_MM_HINT_T1>(next.cast());
                next = next.wrapping_add(LINE);
            }
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
