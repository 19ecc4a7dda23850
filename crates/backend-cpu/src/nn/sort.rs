//! Elements in order along an axis. An element and its position become one whole number, so that sorting compares and moves numbers
//! alone, equal elements keep their order, and the result is one whatever the algorithm.

use bytemuck::Pod;
use half::{bf16, f16};

use super::workers;
use crate::{Isa, Scratch, Threads, scratch::bytes_of, simd::simd_fn, threads::TileGrid};

/// An element that can be sorted.
pub trait Sorted: Pod + Send + Sync {
    /// A number that holds the element's order and its position.
    type Packed: Pod + Ord + Send;
    /// The part of it that is the element's order.
    type Key: Copy + Ord;
    /// Greater for elements that are later in ascending order, or in descending order.
    fn key(self, descending: bool) -> Self::Key;
    /// The element at a position below 2^32, so that greater numbers are later in ascending order, or in descending order.
    fn pack(self, position: usize, descending: bool) -> Self::Packed;
    /// The position.
    fn position(packed: Self::Packed) -> usize;
    /// The key.
    fn key_of(packed: Self::Packed) -> Self::Key;
}

macro_rules! sorted {
    ($($t:ty, $packed:ty, $key:ty, $of:expr;)*) => {$(
        impl Sorted for $t {
            type Packed = $packed;
            type Key = $key;
            #[inline(always)]
            fn key(self, descending: bool) -> $key {
                let key: $key = $of(self);
                if descending { !key } else { key }
            }
            #[inline(always)]
            fn pack(self, position: usize, descending: bool) -> $packed {
                <$packed>::from(self.key(descending)) << 32 | position as $packed
            }
            #[inline(always)]
            fn position(packed: $packed) -> usize {
                packed as u32 as usize
            }
            #[inline(always)]
            fn key_of(packed: $packed) -> $key {
                (packed >> 32) as $key
            }
        }
    )*};
}

/// Whole numbers in the order of floats: zeros are equal, NaN is above all.
macro_rules! float_key {
    ($name:ident, $t:ty, $key:ty) => {
        #[inline(always)]
        fn $name(x: $t) -> $key {
            const SIGN: $key = 1 << (<$key>::BITS - 1);
            if x.is_nan() {
                return <$key>::MAX;
            }
            let bits = (x + 0.0).to_bits();
            if bits & SIGN == 0 { bits | SIGN } else { !bits }
        }
    };
}
float_key!(key32, f32, u32);
float_key!(key64, f64, u64);

sorted! {
    f64, u128, u64, key64;
    i64, u128, u64, |x| (x as u64) ^ (1 << 63);
    f32, u64, u32, key32;
    f16, u64, u32, |x: f16| key32(x.to_f32());
    bf16, u64, u32, |x: bf16| key32(x.to_f32());
    i32, u64, u32, |x| (x as u32) ^ (1 << 31);
    i16, u64, u32, |x| (i32::from(x) as u32) ^ (1 << 31);
    i8, u64, u32, |x| (i32::from(x) as u32) ^ (1 << 31);
    u8, u64, u32, u32::from;
    u16, u64, u32, u32::from;
    u32, u64, u32, |x: u32| x;
    u64, u128, u64, |x: u64| x;
}

/// Bytes of scratch that [`positions`] needs.
pub fn sort_scratch<T: Sorted>(threads: &Threads, axis: usize) -> usize {
    workers(threads) * bytes_of::<T::Packed>(axis)
}

/// For each of the first places along the middle dimension of `[outer, axis, inner]`, as many as `out` has, the position of the element
/// that goes there.
///
/// # Panics
///
/// If a length does not fit, the axis has 2^32 elements or more, or the scratch is shorter than [`sort_scratch`].
pub fn positions<T: Sorted>(
    threads: &Threads,
    isa: Isa,
    descending: bool,
    x: &[T],
    sizes: [usize; 3],
    out: &mut [i64],
    scratch: &mut Scratch<'_>,
) {
    let [outer, axis, inner] = sizes;
    let keep = out.len() / (outer * inner).max(1);
    assert!(x.len() >= outer * axis * inner && out.len() == outer * keep * inner && u32::try_from(axis).is_ok());
    assert!(keep <= axis, "there are fewer elements than stay");
    if out.is_empty() {
        return;
    }
    let mut scratch = scratch.again();
    let mut rows = scratch.parts::<T::Packed>(workers(threads), axis);
    let outers = [(outer, keep * inner)];
    let grid = TileGrid { outer: &outers, rows: keep, cols: inner, row_stride: inner, tile_rows: keep, tile_cols: 1 };
    threads.for_each_tile_with(&mut rows, out, &grid, |row, at, mut tile| {
        let x = &x[at.matrix * axis * inner + at.col..];
        if FEW * keep <= axis {
            first_of(isa, x, inner, descending, keep, row);
        } else {
            for (i, packed) in row.iter_mut().enumerate() {
                *packed = x[i * inner].pack(i, descending);
            }
            if keep < axis {
                row.select_nth_unstable(keep);
            }
        }
        row[..keep].sort_unstable();
        for (i, packed) in row[..keep].iter().enumerate() {
            tile.row(i)[0] = T::position(*packed) as i64;
        }
    });
}

/// Where at most one of so many elements stays, most are passed over.
const FEW: usize = 8;

/// Elements that are passed over together, a bit of a word each: two vectors of AVX-512 of the most frequent types.
const BLOCK: usize = u32::BITS as usize;

simd_fn! {
    /// Puts the `keep` elements that come first, in any order, at the beginning of `row`, which has a place for each element; neighbors
    /// are `step` apart in `x`. Once there are `keep`, an element must come before the last of them to be looked at again.
    fn first_of<F, T: Sorted>(x: &[T], step: usize, descending: bool, keep: usize, row: &mut [T::Packed]) {
        let (axis, room) = (row.len(), (2 * keep).max(256).min(row.len()));
        let (mut count, mut last) = (0, None);
        for first in (0..axis).step_by(BLOCK) {
            let len = BLOCK.min(axis - first);
            let mut block = [T::zeroed(); BLOCK];
            if step == 1 && len == BLOCK {
                block.copy_from_slice(&x[first..][..BLOCK]);
            } else {
                block[..len].iter_mut().zip(first..).for_each(|(y, i)| *y = x[i * step]);
            }
            let mut hits = u32::MAX;
            if let Some(last) = last {
                hits = 0;
                for (i, y) in block.iter().enumerate() {
                    hits |= u32::from(y.key(descending) < last) << i;
                }
            }
            hits &= u32::MAX >> (BLOCK - len);
            while hits != 0 {
                let i = hits.trailing_zeros() as usize;
                hits &= hits - 1;
                // Of equal elements those before come first.
                if last.is_some_and(|last| block[i].key(descending) >= last) {
                    continue;
                }
                row[count] = block[i].pack(first + i, descending);
                count += 1;
                if count == room && keep < room {
                    let (_, worst, _) = row[..count].select_nth_unstable(keep - 1);
                    (count, last) = (keep, Some(T::key_of(*worst)));
                }
            }
        }
        if keep < count {
            row[..count].select_nth_unstable(keep - 1);
        }
    }
}

/// Writes to each place along the middle dimension the element that `positions` names for it.
///
/// # Panics
///
/// If a length does not fit, or a position is not on the axis.
pub fn take_positions<T: Pod + Send + Sync>(
    threads: &Threads,
    x: &[T],
    [outer, axis, inner]: [usize; 3],
    positions: &[i64],
    out: &mut [T],
) {
    assert_eq!(positions.len(), out.len());
    if out.is_empty() {
        return;
    }
    let keep = out.len() / (outer * inner).max(1);
    threads.for_each_chunk(out, super::GRAIN, |task, out| {
        for (i, y) in out.iter_mut().enumerate() {
            let at = task * super::GRAIN + i;
            *y = x[(at / inner / keep * axis + positions[at] as usize) * inner + at % inner];
        }
    });
}
