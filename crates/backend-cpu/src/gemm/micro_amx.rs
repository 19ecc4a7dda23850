//! The AMX micro-kernels for bfloat16: 32 x 64 and 32 x 32.
//!
//! An instruction takes 32 steps of `k`: for each sum it adds up the products of the even steps and those of the odd ones, each a chain
//! of fused multiply-adds that begins at zero, adds the two, and adds that to the sum. Instructions begin at multiples of 32
//! steps whatever the tiling and the taps, so results are the same bits whatever `m`, the panels and the threads; but not those of
//! [`micro_bf16`](super::micro_bf16), which adds each pair to the sum. Both take subnormal numbers for zero, operands and sums, round to
//! nearest even whatever the thread has set, and raise no exception.
#![allow(unsafe_code)]

use std::{ops::Range, ptr};

use half::bf16;

use super::{
    epilogue::Rounding,
    micro::{Job, Kernel, LINE, TILE_ROWS as ROWS},
    tiles::{self, NO_REST, Pair, WALK_COLS, WALK_ROWS, Walk},
};
use crate::{simd::FloatType, threads::TileMut};

/// Steps of `k` of an instruction.
const STEPS: usize = 32;

pub(super) const KERNELS: &[Kernel] = &[kernel::<64>(), kernel::<32>()];

/// The most walks side by side.
const ACROSS: usize = 2;

/// The kernel for panels of `NR` columns.
const fn kernel<const NR: usize>() -> Kernel {
    let (a, b) = (FloatType::Bf16, FloatType::Bf16);
    let (run, rounds) = (run::<NR>, Some(round::<NR> as _));
    Kernel { mr: WALK_ROWS, nr: NR, lanes: WALK_COLS, a, b, tiles: true, ends: false, run, rounds }
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
    job.check(&kernel::<NR>(), &c);
    let (rows, cols) = (c.rows(), c.cols());
    for_each_walk::<NR>(job, [rows, cols], |walk, early, rows, columns| {
        let mut c = c.part(rows, columns);
        if is_whole(&c) {
            (walk.c, walk.c_stride) = (c.as_mut_ptr().cast(), c.row_stride() * size_of::<f32>());
            if job.accumulate {
                (walk.before, walk.before_stride) = (walk.c, walk.c_stride);
            }
            // SAFETY: as `for_each_walk` says; `C` has whole tiles here.
            return unsafe {
                tiles::bf16(walk);
                tiles::store(walk);
            };
        }
        let mut sums = Sums::ZEROS;
        if job.accumulate {
            sums.begin_with(walk, early, &mut c);
        }
        sums.add(walk, || ());
        let cols = c.cols();
        (0..c.rows()).for_each(|r| c.row(r).copy_from_slice(&sums.0[r + early[r / ROWS]][..cols]));
    });
}

/// Whether a walk may store where its sums belong.
fn is_whole(c: &TileMut<'_, f32>) -> bool {
    c.cols() == WALK_COLS && c.rows().is_multiple_of(ROWS)
}

impl Sums {
    const ZEROS: Sums = Sums([[0.0; WALK_COLS]; WALK_ROWS]);

    /// Lets `walk` add to the sums `before`, of which a copy is made here if they are not whole tiles.
    fn begin_with(&mut self, walk: &mut Walk, early: [usize; 2], before: &mut TileMut<'_, f32>) {
        if is_whole(before) {
            walk.before = before.as_mut_ptr().cast();
            walk.before_stride = before.row_stride() * size_of::<f32>();
            return;
        }
        let cols = before.cols();
        (0..before.rows()).for_each(|r| self.0[r + early[r / ROWS]][..cols].copy_from_slice(before.row(r)));
        (walk.before, walk.before_stride) = (self.0.as_ptr().cast(), size_of::<[f32; WALK_COLS]>());
    }

    /// Multiplies a walk, whose sums these are, and does something else meanwhile, but nothing with tiles.
    fn add(&mut self, walk: &mut Walk, meanwhile: impl FnOnce()) {
        (walk.c, walk.c_stride) = (self.0.as_mut_ptr().cast(), size_of::<[f32; WALK_COLS]>());
        // SAFETY: as `for_each_walk` says; these are four whole tiles.
        unsafe { tiles::bf16(walk) };
        meanwhile();
        // SAFETY: as above.
        unsafe { tiles::store(walk) };
    }
}

/// As [`Kernel::rounds`]. While a walk is multiplied the sums of the one before are rounded.
fn round<const NR: usize>(
    job: &Job<'_>,
    end: Rounding<'_>,
    mut before: Option<TileMut<'_, f32>>,
    mut c: TileMut<'_, bf16>,
) {
    job.check(&kernel::<NR>(), &c);
    let size = [c.rows(), c.cols()];
    let (mut sums, mut turn, mut waiting) = ([Sums::ZEROS; 2], 0, None::<Waiting>);
    for_each_walk::<NR>(job, size, |walk, early, rows, columns| {
        let [first, second] = &mut sums;
        let (now, last) = if turn == 0 { (first, second) } else { (second, first) };
        if let Some(before) = &mut before {
            now.begin_with(walk, early, &mut before.part(rows.clone(), columns.clone()));
        }
        let ready = waiting.replace(Waiting { early, rows, columns });
        now.add(walk, || ready.into_iter().for_each(|ready| ready.round(last, end, &mut c)));
        turn = 1 - turn;
    });
    if let Some(ready) = waiting {
        ready.round(&mut sums[1 - turn], end, &mut c);
    }
}

/// Sums that are not rounded yet: where they belong, and how many rows each of their tiles begins too early.
struct Waiting {
    early: [usize; 2],
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Waiting {
    /// Rounds them to their place in `c`.
    fn round(self, sums: &mut Sums, end: Rounding<'_>, c: &mut TileMut<'_, bf16>) {
        let Waiting { early, rows, columns } = self;
        let (height, width) = (rows.len(), columns.len());
        let (end, mut c) = (end.part(rows.start, columns.start), c.part(rows, columns));
        for first in (0..height).step_by(ROWS) {
            let (line, rows) = (first + early[first / ROWS], first..height.min(first + ROWS));
            let sums = &mut sums.0.as_flattened_mut()[line * WALK_COLS..];
            let mut sums = TileMut::new(sums, rows.len(), width, WALK_COLS);
            end.part(first, 0).run(&mut sums, &mut c.part(rows, 0..width));
        }
    }
}

/// Calls `each` for every part of `rows` and `cols` that one walk multiplies, with the walk, but for its sums; how many rows each of its
/// tiles begins too early; and the rows and columns. What the walk reads is there: whole steps of rows, which are as long as the block, and
/// of the panel, which has a line for each pair of steps; the caller has configured tiles ([`multiply_block`](super::multiply_block)).
fn for_each_walk<const NR: usize>(
    job: &Job<'_>,
    [rows, cols]: [usize; 2],
    mut each: impl FnMut(&mut Walk, [usize; 2], Range<usize>, Range<usize>),
) {
    if rows == 0 {
        return;
    }
    let (Some(stride), true) = (job.a.stride(), job.a.m() >= ROWS) else {
        unreachable!("rows were gathered that tiles cannot reach")
    };
    let k = job.block.k.len();
    let start = |(first, _)| job.a.tap_ptr(first, 0).wrapping_add(job.block.k.start * FloatType::Bf16.size());
    let walks = rows.div_ceil(WALK_ROWS) * cols.div_ceil(WALK_COLS);
    let lines = (job.next.len() / LINE).div_ceil((k / STEPS).max(1) * walks);
    let mut next = job.next.as_ptr();
    let mut last_rows = Pair::ZEROS;
    let mut last_columns: [Option<Pair>; ACROSS] = [const { None }; ACROSS];
    for top in (0..rows).step_by(WALK_ROWS) {
        let height = WALK_ROWS.min(rows - top);
        let (at, both) = (tiles_of(job.row + top, job.a.m()), height > ROWS);
        let mut walk = Walk {
            a: if both { at.map(start) } else { [start(at[0]); 2] },
            a_stride: stride * FloatType::Bf16.size(),
            b: ptr::null(),
            b_stride: NR * 2 * FloatType::Bf16.size(),
            steps: k / STEPS,
            rest: NO_REST,
            c: ptr::null_mut(),
            c_stride: 0,
            before: ptr::null(),
            before_stride: 0,
            both: both.into(),
            next,
            lines,
        };
        if !k.is_multiple_of(STEPS) {
            // SAFETY: rows of `A` are as long as the block.
            unsafe { last_rows.set_rows(&walk, FloatType::Bf16.size() * (k % STEPS)) };
        }
        for (left, last_columns) in (0..cols).step_by(WALK_COLS).zip(&mut last_columns) {
            walk.b = job.panel.as_ptr().wrapping_add(left * 2 * FloatType::Bf16.size());
            walk.next = next;
            next = next.wrapping_add(lines * LINE * walk.steps);
            if !k.is_multiple_of(STEPS) {
                let columns = last_columns.get_or_insert_with(|| last_columns_of(&walk, k % STEPS));
                walk.rest = [&raw const last_rows, columns];
            }
            each(&mut walk, at.map(|(_, before)| before), top..top + height, left..cols.min(left + WALK_COLS));
        }
    }
}

/// The last `steps` of the columns of a walk, which are too few for an instruction.
fn last_columns_of(walk: &Walk, steps: usize) -> Pair {
    // Beside an odd step the panel may hold anything.
    let keep = if steps.is_multiple_of(2) { 4 } else { 2 };
    // SAFETY: the panel has a line for each pair of steps of the block.
    unsafe { Pair::of_columns(walk, steps.div_ceil(2), keep) }
}

#[cfg(test)]
#[path = "micro_amx_tests.rs"]
mod tests;
