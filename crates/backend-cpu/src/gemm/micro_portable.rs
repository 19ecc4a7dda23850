//! The micro-kernel without intrinsics: 4 x 16, arrays that LLVM keeps in registers.
#![allow(unsafe_code)]

use std::array;

use super::micro::{Job, Kernel};
use crate::{
    simd::{FloatType, math},
    threads::TileMut,
};

const NR: usize = 16;

/// One for each type of panels: the width makes no difference to it.
pub(super) const KERNELS: &[Kernel] =
    &[kernel::<F32>(FloatType::F32), kernel::<F16>(FloatType::F16), kernel::<BF16>(FloatType::Bf16)];

/// What panels hold.
const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

const fn kernel<const KIND: u8>(b: FloatType) -> Kernel {
    let (a, run) = (FloatType::F32, run::<KIND>);
    Kernel { mr: 4, nr: NR, lanes: WIDTH, a, b, tiles: false, ends: false, run, rounds: None }
}

fn run<const KIND: u8>(job: &Job<'_>, mut c: TileMut<'_, f32>) {
    let (kernel, cols) = (&KERNELS[usize::from(KIND)], c.cols());
    job.check(kernel, &c);
    for part in kernel.parts(c.rows()) {
        let (rows, job) = (part.len(), &job.after_rows(part.start));
        let c = c.part(part, 0..cols);
        match rows {
            1 => tile::<KIND, 1>(job, c),
            2 => tile::<KIND, 2>(job, c),
            3 => tile::<KIND, 3>(job, c),
            4 => tile::<KIND, 4>(job, c),
            rows => unreachable!("a tile of {rows} rows"),
        }
    }
}

/// Columns that are computed together: with four rows, as many accumulators as half the registers of SSE2 or NEON.
const WIDTH: usize = 8;

fn tile<const KIND: u8, const MR: usize>(job: &Job<'_>, mut c: TileMut<'_, f32>) {
    for first_col in (0..c.cols()).step_by(WIDTH) {
        let columns = first_col..c.cols().min(first_col + WIDTH);
        let mut acc = [[0f32; WIDTH]; MR];
        if job.accumulate {
            for (r, acc) in acc.iter_mut().enumerate() {
                acc[..columns.len()].copy_from_slice(&c.row(r)[columns.clone()]);
            }
        }
        let acc = add_product::<KIND, MR>(job, first_col, acc);
        for (r, acc) in acc.iter().enumerate() {
            c.row(r)[columns.clone()].copy_from_slice(&acc[..columns.len()]);
        }
    }
}

/// `WIDTH` columns from `first_col` on of step `step` of a panel, widened.
#[inline(always)]
fn load<const KIND: u8>(panel: &[u8], step: usize, first_col: usize) -> [f32; WIDTH] {
    match KIND {
        F32 => *bytemuck::cast_slice::<u8, f32>(panel)[step * NR + first_col..].first_chunk().expect("a whole step"),
        F16 => {
            let halves: &[u16] = bytemuck::cast_slice(panel);
            array::from_fn(|j| math::f16_to_f32(halves[step * NR + first_col + j]))
        }
        _ => {
            let pairs: &[u32] = bytemuck::cast_slice(panel);
            let pairs = &pairs[step / 2 * NR + first_col..][..WIDTH];
            array::from_fn(|j| {
                f32::from_bits(if step.is_multiple_of(2) { pairs[j] << 16 } else { pairs[j] & 0xffff_0000 })
            })
        }
    }
}

/// `acc` plus `MR` rows by `WIDTH` columns of the product.
fn add_product<const KIND: u8, const MR: usize>(
    job: &Job<'_>,
    first_col: usize,
    mut acc: [[f32; WIDTH]; MR],
) -> [[f32; WIDTH]; MR] {
    let mut step = 0;
    for tap in job.block.taps.clone() {
        let rows: [*const f32; MR] = job.a.tap_ptrs(job.row, tap).map(<*const u8>::cast);
        for k in job.block.k.clone() {
            let b = load::<KIND>(job.panel, step, first_col);
            step += 1;
            let mut next = acc;
            for r in 0..MR {
                // SAFETY: `check` has found that row and tap exist, that they are floats and that `k` lies in the tap.
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
