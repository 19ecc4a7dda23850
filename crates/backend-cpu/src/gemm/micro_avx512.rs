//! The AVX-512 micro-kernels: 12 x 32, 6 x 64, 8 x 48 and 24 x 16. All have 24 accumulators in the 32 registers, a vector of `B` for
//! each 16 columns, and `A` broadcast from memory. The wide ones keep the arithmetic units busier when there are few rows, and
//! fetch less of `A`; the narrow ones waste less of a last panel and fetch less of `B`. Panels of half floats are widened in
//! registers.
#![allow(unsafe_code)]

use std::{arch::x86_64::*, array};

use super::micro::{CHUNK, Fetch, Job, Kernel, finish, kernel};
use crate::{Isa, simd::FloatType, threads::TileMut};

/// Floats of a vector.
const LANES: usize = 16;

/// What panels hold.
const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

/// The kernel for panels of so many vectors of a type.
macro_rules! panels_of {
    ($b:ident, $kind:ident, $vectors:literal) => {
        kernel!(Isa::Avx512, F32, $b, ends: true, [$kind] tile, 16, $vectors, {
            1: [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24]
            2: [1 2 3 4 5 6 7 8 9 10 11 12]
            3: [1 2 3 4 5 6 7 8]
            4: [1 2 3 4 5 6]
        })
    };
}

pub(super) const KERNELS: &[Kernel] = &[
    panels_of!(F32, F32, 2),
    panels_of!(F32, F32, 4),
    panels_of!(F32, F32, 3),
    panels_of!(F32, F32, 1),
    panels_of!(F16, F16, 2),
    panels_of!(F16, F16, 4),
    panels_of!(Bf16, BF16, 4),
    panels_of!(Bf16, BF16, 2),
];

/// Vector `v` of a step of a panel, widened; of a pair of steps of bfloat16 the first or the second.
///
/// # Safety
///
/// Needs AVX-512F, and that many numbers at `b`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load<const KIND: u8>(b: *const u8, v: usize, half: usize) -> __m512 {
    // SAFETY: in bounds by contract.
    unsafe {
        match KIND {
            F32 => _mm512_loadu_ps(b.cast::<f32>().add(LANES * v)),
            F16 => _mm512_cvtph_ps(_mm256_loadu_si256(b.cast::<u16>().add(LANES * v).cast())),
            _ => {
                let pairs = _mm512_loadu_si512(b.cast::<u32>().add(LANES * v).cast());
                _mm512_castsi512_ps(match half {
                    0 => _mm512_slli_epi32::<16>(pairs),
                    _ => _mm512_and_si512(pairs, _mm512_set1_epi32(-65536)),
                })
            }
        }
    }
}

/// # Safety
///
/// Needs AVX-512F, `MR` rows and at most `VECTORS` vectors in `c`, panels of `nr` columns, and what `job.check` asserts.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const KIND: u8, const VECTORS: usize, const MR: usize>(
    job: &Job<'_>,
    nr: usize,
    mut fetch: Fetch,
    mut c: TileMut<'_, f32>,
) {
    let halves = const { if KIND == BF16 { 2 } else { 1 } };
    let stride = nr * const { if KIND == F16 { 2 } else { 4 } };
    let (masks, mut acc) = (masks(&c), [[_mm512_setzero_ps(); VECTORS]; MR]);
    if job.accumulate {
        // SAFETY: the masks are those of `c`.
        unsafe { read(&mut c, &masks, &mut acc) };
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
                    if first + half >= end {
                        break;
                    }
                    // SAFETY: the panel holds a step for each `k` of each tap of the block; a tap holds `k_tap` floats.
                    unsafe {
                        let step: [__m512; VECTORS] = array::from_fn(|v| load::<KIND>(b, v, half));
                        for r in 0..MR {
                            let x = _mm512_set1_ps(*rows[r].add(first + half));
                            for v in 0..VECTORS {
                                acc[r][v] = _mm512_fmadd_ps(x, step[v], acc[r][v]);
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
        finish!(end, acc, [_mm512_set1_ps _mm512_loadu_ps _mm512_add_ps _mm512_min_ps _mm512_max_ps]);
    }
    // SAFETY: the masks are those of `c`.
    unsafe { write(&mut c, &masks, &acc) };
}

/// A bit for each column that there is.
pub(super) fn masks<const VECTORS: usize>(c: &TileMut<'_, f32>) -> [u16; VECTORS] {
    let mask = u64::MAX.unbounded_shr((u64::BITS as usize - c.cols()) as u32);
    array::from_fn(|v| (mask >> (LANES * v)) as u16)
}

/// Reads the tile.
///
/// # Safety
///
/// Needs AVX-512F, `MR` rows in `c`, and its masks.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn read<const VECTORS: usize, const MR: usize>(
    c: &mut TileMut<'_, f32>,
    masks: &[u16; VECTORS],
    acc: &mut [[__m512; VECTORS]; MR],
) {
    for (r, acc) in acc.iter_mut().enumerate() {
        let row = c.row(r).as_ptr();
        for (v, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the masks have a bit for each float of the row, and masked-out lanes are not touched.
            *acc = unsafe { _mm512_maskz_loadu_ps(masks[v], row.wrapping_add(LANES * v)) };
        }
    }
}

/// Writes the tile.
///
/// # Safety
///
/// Needs AVX-512F, `MR` rows in `c`, and its masks.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn write<const VECTORS: usize, const MR: usize>(
    c: &mut TileMut<'_, f32>,
    masks: &[u16; VECTORS],
    acc: &[[__m512; VECTORS]; MR],
) {
    for (r, acc) in acc.iter().enumerate() {
        let row = c.row(r).as_mut_ptr();
        for (v, acc) in acc.iter().enumerate() {
            // SAFETY: the masks have a bit for each float of the row, and masked-out lanes are not touched.
            unsafe { _mm512_mask_storeu_ps(row.wrapping_add(LANES * v), masks[v], *acc) };
        }
    }
}
