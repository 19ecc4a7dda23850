//! The micro-kernel without intrinsics: 4 x 16, arrays that LLVM keeps in registers.
#![allow(unsafe_code)]

use super::{
    micro::{Kernel, check_tile, for_rows},
    operand::Operand,
};
use crate::threads::TileMut;

const NR: usize = 16;

pub(super) const KERNEL: Kernel = Kernel { mr: 4, nr: NR, run };

fn run(a: &Operand<'_>, first_row: usize, panel: &[f32], c: TileMut<'_, f32>) {
    check_tile(&KERNEL, a, first_row, panel, &c);
    for_rows!(c.rows(), tile(a, first_row, panel, c), [1 2 3 4]);
}

fn tile<const MR: usize>(a: &Operand<'_>, first_row: usize, panel: &[f32], mut c: TileMut<'_, f32>) {
    let mut acc = [[0f32; NR]; MR];
    let mut steps = panel.as_chunks::<NR>().0.iter();
    for tap in 0..a.taps() {
        let rows: [&[f32]; MR] = std::array::from_fn(|r| {
            // SAFETY: `check_tile` has found that rows `first_row .. first_row + MR` exist; a tap is `k_tap` floats.
            unsafe { std::slice::from_raw_parts(a.tap_ptr(first_row + r, tap), a.k_tap()) }
        });
        for (k, b) in steps.by_ref().take(a.k_tap()).enumerate() {
            for (acc, row) in acc.iter_mut().zip(rows) {
                let x = row[k];
                acc.iter_mut().zip(b).for_each(|(acc, b)| *acc += x * b);
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        let row = c.row(r);
        row.copy_from_slice(&acc[..row.len()]);
    }
}
