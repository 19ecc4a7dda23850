//! Products of rows that are rounded to bytes as they come and a matrix of bytes: `C = epilogue(sum(q_a · q_b) · scale_a · scale_b)`.
//!
//! Sums of integers are exact, so that the result depends neither on the tiling nor on the instructions that a processor has. With
//! AMX tiles are multiplied. With AVX512-VNNI four products are added up at a time; its instruction takes one factor without a sign:
//! weights are read 128 greater, and 128 times the sum of a row is taken off again.
#![allow(unsafe_code)]

use super::{Epilogue, micro::TILE_ROWS};
#[cfg(target_arch = "x86_64")]
use super::{int8_amx, tiles};
use crate::{
    Isa, Scratch, Threads,
    nn::workers,
    scratch::bytes_of,
    simd::{Float, Floats, simd_fn},
    threads::{TASKS_PER_THREAD, TileGrid, TileMut},
};

/// Columns of a panel.
pub const INT8_WIDTH: usize = 32;

/// Steps of `k` that stand side by side in a panel.
pub const INT8_STEPS: usize = 4;

/// The most rows that are multiplied at a time, of those that units take.
const MOST_ROWS: usize = 32;

/// Rows of a task: a multiple of what each unit takes.
const TASK_ROWS: usize = 96;

/// Bytes behind a rounded row: its scale and its sum.
const TAIL: usize = 8;

/// A product with a matrix of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Int8Args<'a> {
    /// Rows of `A` and `C`.
    pub m: usize,
    /// Columns of `B` and `C`.
    pub n: usize,
    /// Columns of `A`, rows of `B`.
    pub k: usize,
    /// `A`, row-major.
    pub a: Floats<'a>,
    /// Distance between rows of `A`.
    pub lda: usize,
    /// `B[k, n]` in panels of [`INT8_WIDTH`] columns, [`INT8_STEPS`] steps side by side, zeros behind the last.
    pub b: &'a [i8],
    /// A scale for each column.
    pub scales: &'a [f32],
    /// What is done to the product before it is stored.
    pub epilogue: Epilogue<'a>,
}

/// Bytes of a rounded row.
fn stride(k: usize) -> usize {
    (k.next_multiple_of(INT8_STEPS) + TAIL).next_multiple_of(64)
}

/// Bytes of scratch that [`int8_product`] needs.
pub fn int8_scratch(threads: &Threads, m: usize, k: usize) -> usize {
    bytes_of::<u8>(m.next_multiple_of(TILE_ROWS) * stride(k)) + workers(threads) * bytes_of::<f32>(k)
}

/// Computes `C`, row-major without gaps.
///
/// # Panics
///
/// If a slice is too short for its shape, or the scratch is shorter than [`int8_scratch`].
pub fn int8_product<C: Float>(
    threads: &Threads,
    isa: Isa,
    args: &Int8Args<'_>,
    c: &mut [C],
    scratch: &mut Scratch<'_>,
) {
    let Int8Args { m, n, k, a, lda, b, .. } = *args;
    let panel = k.next_multiple_of(INT8_STEPS) * INT8_WIDTH;
    assert!(c.len() == m * n && args.scales.len() >= n && b.len() >= n.div_ceil(INT8_WIDTH) * panel);
    assert!(m == 0 || a.len() >= (m - 1) * lda + k);
    args.epilogue.check(m, n);
    let (mut scratch, stride) = (scratch.again(), stride(k));
    // Tiles read rows behind the last one, which may be anything.
    let rows = scratch.take::<u8>(m.next_multiple_of(TILE_ROWS) * stride);
    // A row takes longer than its bytes say.
    let mut wide = scratch.parts::<f32>(workers(threads), k);
    threads.for_each_chunk_with(&mut wide, &mut rows[..m * stride], stride, |wide, i, row| {
        let values = a.read(isa, i * lda, wide);
        let (bytes, rest) = row.split_at_mut(k.next_multiple_of(INT8_STEPS));
        bytes[k..].fill(0);
        let (scale, sum) = round_row(isa, values, &mut bytes[..k]);
        rest[..4].copy_from_slice(&scale.to_ne_bytes());
        rest[4..8].copy_from_slice(&sum.to_ne_bytes());
    });
    let (rows, panels) = (&*rows, n.div_ceil(INT8_WIDTH));
    let across = (TASKS_PER_THREAD * threads.count()).div_ceil(m.div_ceil(TASK_ROWS).max(1)).min(panels.max(1));
    let tile_cols = if threads.count() == 1 { n } else { panels.div_ceil(across) * INT8_WIDTH };
    let grid = TileGrid { outer: &[], rows: m, cols: n, row_stride: n, tile_rows: TASK_ROWS, tile_cols };
    let unit = Unit8::of(isa);
    threads.for_each_tile(c, &grid, |at, mut tile| {
        let _configured = unit.configure();
        let (mut sums, mut floats) = ([[0i32; INT8_WIDTH]; MOST_ROWS], [0f32; MOST_ROWS * INT8_WIDTH]);
        for first in (0..tile.cols()).step_by(INT8_WIDTH) {
            let (col, cols) = (at.col + first, INT8_WIDTH.min(tile.cols() - first));
            let (b, next) = b[col / INT8_WIDTH * panel..].split_at(panel);
            // Of the panel after it each part of the rows brings a share into cache.
            let next = if first + INT8_WIDTH < tile.cols() { &next[..panel] } else { &[] };
            let mut shares = next.chunks(panel.div_ceil(tile.rows().div_ceil(unit.rows())).max(1));
            for from in (0..tile.rows()).step_by(unit.rows()) {
                let count = unit.rows().min(tile.rows() - from);
                let a = &rows[(at.row + from) * stride..];
                let next = shares.next().unwrap_or(&[]);
                unit.multiply(isa, (a, stride), count, (b, next), &mut sums);
                let part = tile.part(from..from + count, first..first + cols);
                finish(isa, args, [at.row + from, col], a.chunks_exact(stride), &sums, &mut floats, part);
            }
        }
    });
}

/// Makes a part of `C`, whose first element is at `row` and `col`, of the sums of its rows.
fn finish<'a, C: Float>(
    isa: Isa,
    args: &Int8Args<'_>,
    [row, col]: [usize; 2],
    rounded: impl Iterator<Item = &'a [u8]>,
    sums: &Sums,
    floats: &mut [f32],
    mut part: TileMut<'_, C>,
) {
    let (rows, cols) = (part.rows(), part.cols());
    let scales = &args.scales[col..col + cols];
    for ((sums, floats), a) in sums.iter().zip(floats.chunks_exact_mut(INT8_WIDTH)).zip(rounded).take(rows) {
        scaled(isa, &sums[..cols], tail(a, args.k), scales, &mut floats[..cols]);
    }
    args.epilogue.apply(isa, row, col, &mut TileMut::new(floats, rows, cols, INT8_WIDTH));
    for (r, floats) in floats.chunks_exact(INT8_WIDTH).take(rows).enumerate() {
        C::narrow(isa, &floats[..cols], part.row(r));
    }
}

/// The scale and the sum of a rounded row.
fn tail(row: &[u8], k: usize) -> (f32, i32) {
    let tail = &row[k.next_multiple_of(INT8_STEPS)..];
    let four = |at: usize| [tail[at], tail[at + 1], tail[at + 2], tail[at + 3]];
    (f32::from_ne_bytes(four(0)), i32::from_ne_bytes(four(4)))
}

simd_fn! {
    /// Rounds a row as `WeightFormat::round_activations` has it; returns the scale, and the sum of the whole numbers.
    fn round_row<F>(row: &[f32], bytes: &mut [u8]) -> (f32, i32) {
        const ROUNDING: f32 = 12_582_912.0;
        let amax = crate::simd::lanes::fold(
            row,
            1e-30,
            |max, x| if x.abs() > max || x.is_nan() { x.abs() } else { max },
            crate::simd::lanes::greater,
        );
        let factor = 127.0 / amax;
        let mut sum = 0i32;
        for (x, byte) in row.iter().zip(bytes) {
            // The low bits of a float of this size are the whole number.
            let whole = ((x * factor + ROUNDING).to_bits() as i32).wrapping_sub(ROUNDING.to_bits() as i32) as i8;
            sum += i32::from(whole);
            *byte = whole as u8;
        }
        (amax / 127.0, sum)
    }
}

simd_fn! {
    fn scaled<F>(sums: &[i32], row: (f32, i32), scales: &[f32], out: &mut [f32]) {
        for ((y, sum), scale) in out.iter_mut().zip(sums).zip(scales) {
            *y = *sum as f32 * (row.0 * scale);
        }
    }
}

/// What multiplies bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit8 {
    /// Whatever the compiler makes of loops.
    Loops,
    /// AVX512-VNNI.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// AMX-INT8.
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

#[cfg(target_arch = "x86_64")]
impl Unit8 {
    fn of(isa: Isa) -> Self {
        match isa.verified() {
            Isa::Amx => Unit8::Tiles,
            isa if isa >= Isa::Avx512 && is_x86_feature_detected!("avx512vnni") => Unit8::Vnni,
            _ => Unit8::Loops,
        }
    }

    /// The most rows at a time.
    fn rows(self) -> usize {
        if self == Unit8::Tiles { MOST_ROWS } else { 12 }
    }

    /// What the thread needs while it multiplies.
    fn configure(self) -> Option<tiles::Configured> {
        (self == Unit8::Tiles).then(tiles::configure)
    }

    /// Products of the first `count` rounded rows of `a`, which go on behind them, and a panel; `next` is what is multiplied later.
    fn multiply(self, isa: Isa, a: (&[u8], usize), count: usize, b: (&[i8], &[i8]), sums: &mut Sums) {
        let ((a, stride), (panel, _)) = (a, b);
        match self {
            Unit8::Tiles => int8_amx::rows((a, stride), count, b, sums),
            Unit8::Vnni => {
                let (steps, sums) = (panel.len() / INT8_WIDTH, &mut sums[..count]);
                assert!(count <= self.rows() && a.len() >= count * stride && stride >= steps + TAIL);
                // SAFETY: a unit is one of this processor; the lengths were checked.
                unsafe { vnni_tiles::rows(a, stride, panel, sums) };
                for (sums, a) in sums.iter_mut().zip(a.chunks_exact(stride)) {
                    let (_, sum) = tail(a, steps);
                    sums.iter_mut().for_each(|s| *s -= 128 * sum);
                }
            }
            Unit8::Loops => in_loops(isa, a, stride, panel, &mut sums[..count]),
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Unit8 {
    fn of(_: Isa) -> Self {
        Unit8::Loops
    }

    fn rows(self) -> usize {
        12
    }

    fn configure(self) {}

    fn multiply(self, isa: Isa, (a, stride): (&[u8], usize), count: usize, b: (&[i8], &[i8]), sums: &mut Sums) {
        in_loops(isa, a, stride, b.0, &mut sums[..count]);
    }
}

/// Sums of as many rows as any unit takes.
type Sums = [[i32; INT8_WIDTH]; MOST_ROWS];

fn in_loops(isa: Isa, a: &[u8], stride: usize, panel: &[i8], sums: &mut [[i32; INT8_WIDTH]]) {
    for (sums, a) in sums.iter_mut().zip(a.chunks_exact(stride)) {
        *sums = [0; INT8_WIDTH];
        plain(isa, a, panel, sums);
    }
}

simd_fn! {
    fn plain<F>(a: &[u8], b: &[i8], sums: &mut [i32; INT8_WIDTH]) {
        for (a, b) in a.as_chunks::<INT8_STEPS>().0.iter().zip(b.as_chunks::<{ INT8_STEPS * INT8_WIDTH }>().0) {
            let a = a.map(|a| i32::from(a as i8));
            for (sum, b) in sums.iter_mut().zip(b.as_chunks::<INT8_STEPS>().0) {
                *sum += a[0] * i32::from(b[0]) + a[1] * i32::from(b[1]) + a[2] * i32::from(b[2]) + a[3] * i32::from(b[3]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod vnni_tiles {
    use std::arch::x86_64::*;

    use super::{INT8_STEPS, INT8_WIDTH};

    /// Sums of products with the panel's numbers, each 128 greater, for up to 12 rows.
    ///
    /// # Safety
    ///
    /// Needs AVX512-VNNI. Every row, `stride` bytes from the one before, has as many bytes as the panel has steps.
    pub(super) unsafe fn rows(a: &[u8], stride: usize, b: &[i8], sums: &mut [[i32; INT8_WIDTH]]) {
        // SAFETY: as the caller's.
        unsafe {
            match sums.len() {
                0 => {}
                1 => tile::<1>(a, stride, b, sums),
                2 => tile::<2>(a, stride, b, sums),
                3 => tile::<3>(a, stride, b, sums),
                4 => tile::<4>(a, stride, b, sums),
                5 => tile::<5>(a, stride, b, sums),
                6 => tile::<6>(a, stride, b, sums),
                7 => tile::<7>(a, stride, b, sums),
                8 => tile::<8>(a, stride, b, sums),
                9 => tile::<9>(a, stride, b, sums),
                10 => tile::<10>(a, stride, b, sums),
                11 => tile::<11>(a, stride, b, sums),
                _ => tile::<12>(a, stride, b, sums),
            }
        }
    }

    /// # Safety
    ///
    /// As [`rows`], with `MR` rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn tile<const MR: usize>(a: &[u8], stride: usize, b: &[i8], sums: &mut [[i32; INT8_WIDTH]]) {
        let sign = _mm512_set1_epi8(-128);
        let mut acc = [[_mm512_setzero_si512(); 2]; MR];
        let rows: [*const i32; MR] = std::array::from_fn(|r| a.as_ptr().wrapping_add(r * stride).cast());
        for (i, step) in b.chunks_exact(INT8_STEPS * INT8_WIDTH).enumerate() {
            // SAFETY: a step is two vectors; each row has four bytes for it.
            unsafe {
                let low = _mm512_xor_si512(_mm512_loadu_si512(step.as_ptr().cast()), sign);
                let high = _mm512_xor_si512(_mm512_loadu_si512(step.as_ptr().add(64).cast()), sign);
                for r in 0..MR {
                    let x = _mm512_set1_epi32(rows[r].add(i).read_unaligned());
                    acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], low, x);
                    acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], high, x);
                }
            }
        }
        for (sums, acc) in sums.iter_mut().zip(&acc) {
            // SAFETY: a row of sums is two vectors.
            unsafe {
                _mm512_storeu_si512(sums.as_mut_ptr().cast(), acc[0]);
                _mm512_storeu_si512(sums.as_mut_ptr().add(16).cast(), acc[1]);
            }
        }
    }
}
