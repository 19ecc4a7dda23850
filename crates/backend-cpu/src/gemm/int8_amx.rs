//! Products of rounded rows and a panel of bytes in tiles: 32 x 32. Both factors have signs, unlike with AVX512-VNNI; the sums are
//! the same.
#![allow(unsafe_code)]

use std::ptr;

use super::{
    int8::{INT8_STEPS, INT8_WIDTH},
    micro::{LINE, TILE_ROWS},
    tiles::{self, NO_REST, Pair, ROW, WALK_COLS, WALK_ROWS, Walk},
};

const _: () = assert!(INT8_WIDTH == WALK_COLS);

/// Bytes of a line of a panel.
const PANEL_LINE: usize = INT8_WIDTH * INT8_STEPS;

/// Sets `sums` to the products of the first `count` rows of `a` and a panel; what else there is of `sums` may be anything then. Tiles
/// are configured. `next` is what is multiplied later.
///
/// # Panics
///
/// If `a` does not go on to whole tiles of rows, or a row is shorter than the panel.
pub(super) fn rows(
    a: (&[u8], usize),
    count: usize,
    (panel, next): (&[i8], &[i8]),
    sums: &mut [[i32; INT8_WIDTH]; WALK_ROWS],
) {
    let ((a, stride), k) = (a, panel.len() / INT8_WIDTH);
    assert!(count <= WALK_ROWS && a.len() >= count.next_multiple_of(TILE_ROWS) * stride && stride >= k);
    assert!(panel.len() == k * INT8_WIDTH && k.is_multiple_of(INT8_STEPS));
    if count == 0 {
        return;
    }
    let (both, steps, over) = (count > TILE_ROWS, k / ROW, k % ROW);
    let lower = if both { TILE_ROWS * stride } else { 0 };
    let mut walk = Walk {
        a: [a.as_ptr(), a.as_ptr().wrapping_add(lower)],
        a_stride: stride,
        b: panel.as_ptr().cast(),
        b_stride: PANEL_LINE,
        steps,
        rest: NO_REST,
        c: sums.as_mut_ptr().cast(),
        c_stride: size_of::<[i32; INT8_WIDTH]>(),
        before: ptr::null(),
        before_stride: 0,
        both: both.into(),
        next: next.as_ptr().cast(),
        lines: (next.len() / LINE).div_ceil(steps.max(1)),
    };
    let (mut last_rows, last_columns);
    if over > 0 {
        // SAFETY: rows and lines go on for the rest of the panel, by the assertions.
        unsafe {
            (last_rows, last_columns) = (Pair::ZEROS, Pair::of_columns(&walk, over / INT8_STEPS, INT8_STEPS));
            last_rows.set_rows(&walk, over);
        }
        walk.rest = [&last_rows, &last_columns].map(ptr::from_ref);
    }
    // SAFETY: whole tiles of rows and whole steps of the panel are there, by the assertions; `sums` are four tiles.
    unsafe { tiles::int8(&walk) };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Isa;

    /// All rows of a product.
    fn product(a: &[i8], b: &[i8], [m, k]: [usize; 2]) -> Vec<[i32; INT8_WIDTH]> {
        let stride = k.next_multiple_of(64) + 64;
        // What stands behind rows, and rows behind the last, may be anything.
        let mut rows_of_a = vec![0x55u8; m.next_multiple_of(TILE_ROWS) * stride];
        for (row, to) in a.chunks_exact(k).zip(rows_of_a.chunks_exact_mut(stride)) {
            to[..k].copy_from_slice(bytemuck::cast_slice(row));
        }
        let _configured = tiles::configure();
        let mut all = Vec::new();
        for first in (0..m).step_by(WALK_ROWS) {
            let (count, mut sums) = (WALK_ROWS.min(m - first), [[-1; INT8_WIDTH]; WALK_ROWS]);
            rows((&rows_of_a[first * stride..], stride), count, (b, b), &mut sums);
            all.extend_from_slice(&sums[..count]);
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn sums_are_exact(m in 1usize..70, quads in 1usize..50, seed in any::<u32>()) {
            let k = quads * INT8_STEPS;
            let byte = |i: usize| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 24) as i8;
            let (a, b): (Vec<i8>, Vec<i8>) =
                ((0..m * k).map(byte).collect(), (0..k * INT8_WIDTH).map(|i| byte(i + m * k)).collect());
            let place = |t: usize, n: usize| (t / INT8_STEPS * INT8_WIDTH + n) * INT8_STEPS + t % INT8_STEPS;
            let want: Vec<[i32; INT8_WIDTH]> = a.chunks_exact(k).map(|row| std::array::from_fn(|n| {
                row.iter().enumerate().map(|(t, a)| i32::from(*a) * i32::from(b[place(t, n)])).sum()
            })).collect();
            prop_assert!(!Isa::available().contains(&Isa::Amx) || product(&a, &b, [m, k]) == want);
        }
    }
}
