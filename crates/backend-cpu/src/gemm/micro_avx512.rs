//! The AVX-512 micro-kernel: 12 x 32, 24 accumulators, two vectors of `B`, `A` broadcast from memory.
#![allow(unsafe_code)]

use std::{arch::x86_64::*, array};

use super::{
    micro::{Kernel, check_tile, for_rows},
    operand::Operand,
};
use crate::{Isa, threads::TileMut};

const NR: usize = 32;

pub(super) const KERNEL: Kernel = Kernel { mr: 12, nr: NR, run };

fn run(a: &Operand<'_>, first_row: usize, panel: &[f32], c: TileMut<'_, f32>) {
    check_tile(&KERNEL, a, first_row, panel, &c);
    Isa::Avx512.verified();
    // SAFETY: `verified` has found AVX-512 here; `check_tile` has found what `tile` wants.
    unsafe { for_rows!(c.rows(), tile(a, first_row, panel, c), [1 2 3 4 5 6 7 8 9 10 11 12]) }
}

/// # Safety
///
/// Needs AVX-512F, `MR` rows in `c` and in `a` from `first_row`, and a panel of at least `taps * k_tap` steps.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const MR: usize>(a: &Operand<'_>, first_row: usize, panel: &[f32], mut c: TileMut<'_, f32>) {
    let mut acc = [[_mm512_setzero_ps(); 2]; MR];
    let mut b = panel.as_ptr();
    for tap in 0..a.taps() {
        let rows: [*const f32; MR] = array::from_fn(|r| a.tap_ptr(first_row + r, tap));
        for k in 0..a.k_tap() {
            // SAFETY: the panel holds a step of 32 floats for each `k` of each tap; each tap is `k_tap` floats.
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
    for (r, acc) in acc.iter().enumerate() {
        let row = c.row(r);
        let mask = u32::MAX.unbounded_shr(NR as u32 - row.len() as u32);
        // SAFETY: the mask has a bit for each float of the row, and masked-out lanes are not touched.
        unsafe {
            _mm512_mask_storeu_ps(row.as_mut_ptr(), mask as u16, acc[0]);
            _mm512_mask_storeu_ps(row.as_mut_ptr().wrapping_add(16), (mask >> 16) as u16, acc[1]);
        }
    }
}
