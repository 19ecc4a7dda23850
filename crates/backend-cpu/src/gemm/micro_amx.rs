//! The AMX micro-kernels for bfloat16: 32 x 64 and 32 x 32.
//!
//! An instruction takes 32 steps of `k`: for each sum it adds up the products of the even steps and those of the odd ones, each a chain
//! of fused multiply-adds that begins at zero, adds the two, and adds that to the sum. Instructions begin at multiples of 32
//! steps whatever the tiling and the taps, so results are the same bits whatever `m`, the panels and the threads; but not those of
//! [`micro_bf16`](super::micro_bf16), which adds each pair to the sum. Both take subnormal numbers for zero, operands and sums, round to
//! nearest even whatever the thread has set, and raise no exception.
#![allow(unsafe_code)]

use std::ptr;

use super::{
    micro::{Job, Kernel, LINE, TILE_ROWS as ROWS},
    tiles::{self, Rest, WALK_COLS, WALK_ROWS, Walk},
};
use crate::{simd::FloatType, threads::TileMut};

/// Steps of `k` of an instruction.
const STEPS: usize = 32;

pub(super) const KERNELS: &[Kernel] = &[kernel::<64>(), kernel::<32>()];

/// The kernel for panels of `NR` columns.
const fn kernel<const NR: usize>() -> Kernel {
    let (a, b) = (FloatType::Bf16, FloatType::Bf16);
    Kernel { mr: WALK_ROWS, nr: NR, lanes: WALK_COLS, a, b, tiles: true, ends: false, run: run::<NR> }
}

/// Sums that are not stored where they belong at once.
#[repr(align(64))]
struct Sums([[f32; WALK_COLS]; WALK_ROWS]);

/// Where the rows of a tile of `C` are in `A`: the first of each tile, and how many before it are not asked for. At the end of `A`
/// rows before are multiplied once more, so that no tile reaches beyond.
fn tiles_of(row: usize, m: usize) -> [(usize, usize); 2] {
    [row, row + ROWS].map(|row| {
        let first = row.min(m - ROWS);
        (first, row - first)
    })
}

fn run<const NR: usize>(job: &Job<'_>, mut c: TileMut<'_, f32>) {
    let (rows, cols) = (c.rows(), c.cols());
    if rows == 0 {
        return;
    }
    let kernel = const { kernel::<NR>() };
    job.check(&kernel, &c);
    let (Some(stride), true) = (job.a.stride(), job.a.m() >= ROWS) else {
        unreachable!("rows were gathered that tiles cannot reach")
    };
    let k = job.block.k.len();
    let start = |(first, _)| job.a.tap_ptr(first, 0).wrapping_add(job.block.k.start * FloatType::Bf16.size());
    let walks = rows.div_ceil(WALK_ROWS) * cols.div_ceil(WALK_COLS);
    let lines = (job.next.len() / LINE).div_ceil((k / STEPS).max(1) * walks);
    let mut next = job.next.as_ptr();
    let mut rest = None;
    for (left, top) in
        (0..cols).step_by(WALK_COLS).flat_map(|left| (0..rows).step_by(WALK_ROWS).map(move |top| (left, top)))
    {
        let (width, height) = (WALK_COLS.min(cols - left), WALK_ROWS.min(rows - top));
        let (at, both) = (tiles_of(job.row + top, job.a.m()), height > ROWS);
        let mut walk = Walk {
            a: if both { at.map(start) } else { [start(at[0]); 2] },
            a_stride: stride * FloatType::Bf16.size(),
            b: job.panel.as_ptr().wrapping_add(left * 2 * FloatType::Bf16.size()),
            b_stride: NR * 2 * FloatType::Bf16.size(),
            steps: k / STEPS,
            rest: ptr::null(),
            c: ptr::null_mut(),
            c_stride: 0,
            accumulate: job.accumulate.into(),
            both: both.into(),
            next,
            lines,
        };
        next = next.wrapping_add(lines * LINE * walk.steps);
        if top == 0 {
            rest = rest_of_columns(&walk, k % STEPS);
        }
        if let Some(rest) = &mut rest {
            // SAFETY: rows of `A` are as long as the block.
            unsafe { rest.set_rows(&walk, 2 * (k % STEPS)) };
            walk.rest = rest;
        }
        let mut part = c.part(top..top + height, left..left + width);
        if width < WALK_COLS || !height.is_multiple_of(ROWS) {
            multiply_apart(&mut walk, at.map(|(_, before)| before), &mut part);
            continue;
        }
        walk.c = part.as_mut_ptr().cast();
        walk.c_stride = part.row_stride() * size_of::<f32>();
        // SAFETY: `multiply_block` has configured tiles; the whole steps lie in `A`, where rows are as long as the block, and in the
        // panel, which has a line for each pair of steps; `C` has whole tiles here.
        unsafe { tiles::bf16(&walk) };
    }
}

/// The last `steps` of the columns of a walk, which are too few for an instruction.
fn rest_of_columns(walk: &Walk, steps: usize) -> Option<Rest> {
    // Beside an odd step the panel may hold anything.
    let keep = if steps.is_multiple_of(2) { 4 } else { 2 };
    // SAFETY: the panel has a line for each pair of steps of the block.
    (steps > 0).then(|| unsafe { Rest::of_columns(walk, steps.div_ceil(2), keep) })
}

/// Multiplies where `C` is not whole tiles, in separate memory. `before` says how many rows each tile begins too early.
fn multiply_apart(walk: &mut Walk, before: [usize; 2], c: &mut TileMut<'_, f32>) {
    let mut sums = Sums([[0.0; WALK_COLS]; WALK_ROWS]);
    let (rows, cols, line) = (c.rows(), c.cols(), |r: usize| r + before[r / ROWS]);
    if walk.accumulate != 0 {
        (0..rows).for_each(|r| sums.0[line(r)][..cols].copy_from_slice(c.row(r)));
    }
    walk.c = sums.0.as_mut_ptr().cast();
    walk.c_stride = size_of::<[f32; WALK_COLS]>();
    // SAFETY: as in `run`; `sums` are four whole tiles.
    unsafe { tiles::bf16(walk) };
    (0..rows).for_each(|r| c.row(r).copy_from_slice(&sums.0[line(r)][..cols]));
}

#[cfg(test)]
#[path = "micro_amx_tests.rs"]
mod tests;
