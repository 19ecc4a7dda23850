//! The AVX2 micro-kernel: 6 x 16, twelve accumulators, two vectors of `B`, one broadcast of `A`.
#![allow(unsafe_code)]

use std::{arch::x86_64::*, array};

use super::{
    micro::{Kernel, check_tile, for_rows},
    operand::Operand,
};
use crate::{Isa, threads::TileMut};

const NR: usize = 16;

pub(super) const KERNEL: Kernel = Kernel { mr: 6, nr: NR, run };

fn run(a: &Operand<'_>, first_row: usize, panel: &[f32], c: TileMut<'_, f32>) {
    check_tile(&KERNEL, a, first_row, panel, &c);
    Isa::Avx2.verified();
    // SAFETY: `verified` has found AVX2 and FMA here; `check_tile` has found what `tile` wants.
    unsafe { for_rows!(c.rows(), tile(a, first_row, panel, c), [1 2 3 4 5 6]) }
}

/// # Safety
///
/// Needs AVX2 and FMA, `MR` rows in `c` and in `a` from `first_row`, and a panel of at least `taps * k_tap` steps.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const MR: usize>(a: &Operand<'_>, first_row: usize, panel: &[f32], mut c: TileMut<'_, f32>) {
    let mut acc = [[_mm256_setzero_ps(); 2]; MR];
    let mut b = panel.as_ptr();
    for tap in 0..a.taps() {
        let rows: [*const f32; MR] = array::from_fn(|r| a.tap_ptr(first_row + r, tap));
        for k in 0..a.k_tap() {
            // SAFETY: the panel holds a step of 16 floats for each `k` of each tap; each tap is `k_tap` floats.
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
    for (r, acc) in acc.iter().enumerate() {
        let mut line = [0f32; NR];
        // SAFETY: `line` is 16 floats.
        unsafe {
            _mm256_storeu_ps(line.as_mut_ptr(), acc[0]);
            _mm256_storeu_ps(line.as_mut_ptr().add(8), acc[1]);
        }
        let row = c.row(r);
        match row.as_mut_array::<NR>() {
            Some(row) => *row = line,
            None => row.copy_from_slice(&line[..row.len()]),
        }
    }
}
