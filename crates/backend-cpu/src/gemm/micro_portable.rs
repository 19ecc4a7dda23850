//! The micro-kernel without intrinsics: 4 x 16, arrays that LLVM keeps in registers.
#![allow(unsafe_code)]

use std::array;

use super::micro::{Job, Kernel};
use crate::threads::TileMut;

const NR: usize = 16;

const KERNEL: Kernel = Kernel { mr: 4, nr: NR, run };

/// One: the width makes no difference to it.
pub(super) const KERNELS: &[Kernel] = &[KERNEL];

fn run(job: &Job<'_>, c: TileMut<'_, f32>) {
    job.check(&KERNEL, &c);
    match c.rows() {
        0 => {}
        1 => tile::<1>(job, c),
        2 => tile::<2>(job, c),
        3 => tile::<3>(job, c),
        4 => tile::<4>(job, c),
        rows => unreachable!("a tile of {rows} rows"),
    }
}

/// Columns that are computed together: with four rows, as many accumulators as half the registers of SSE2 or NEON.
const WIDTH: usize = 8;

fn tile<const MR: usize>(job: &Job<'_>, mut c: TileMut<'_, f32>) {
    for first_col in (0..c.cols()).step_by(WIDTH) {
        let columns = first_col..c.cols().min(first_col + WIDTH);
        let mut acc = [[0f32; WIDTH]; MR];
        if job.accumulate {
            for (r, acc) in acc.iter_mut().enumerate() {
                acc[..columns.len()].copy_from_slice(&c.row(r)[columns.clone()]);
            }
        }
        let acc = add_product(job, first_col, acc);
        for (r, acc) in acc.iter().enumerate() {
            c.row(r)[columns.clone()].copy_from_slice(&acc[..columns.len()]);
        }
    }
}

/// `acc` plus `MR` rows by `WIDTH` columns of the product.
fn add_product<const MR: usize>(job: &Job<'_>, first_col: usize, mut acc: [[f32; WIDTH]; MR]) -> [[f32; WIDTH]; MR] {
    let (pieces, _) = job.panel.as_chunks::<WIDTH>();
    let mut steps = pieces.iter().skip(first_col / WIDTH).step_by(NR / WIDTH);
    for tap in job.block.taps.clone() {
        let rows: [*const f32; MR] = array::from_fn(|r| job.a.tap_ptr(job.row + r, tap));
        for (k, b) in job.block.k.clone().zip(steps.by_ref()) {
            let mut next = acc;
            for r in 0..MR {
                // SAFETY: `check` has found that row and tap exist and that `k` lies in the tap.
                let x = unsafe { *rows[r].add(k) };
                for j in 0..WIDTH {
                    next[r][j] += x * b[j];
                }
            }
            acc = next;
        }
    }
    acc
}
