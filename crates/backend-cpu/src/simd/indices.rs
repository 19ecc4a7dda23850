//! Indices, looked at together: no element waits for the check of the one before.
#![allow(unsafe_code)]

use bytemuck::Pod;

use super::simd_fn;
use crate::Isa;

/// A number of an index tensor.
pub(crate) trait Index: Pod {
    fn wide(self) -> i64;
}

impl Index for i64 {
    #[inline(always)]
    fn wide(self) -> i64 {
        self
    }
}

impl Index for i32 {
    #[inline(always)]
    fn wide(self) -> i64 {
        i64::from(self)
    }
}

/// Where an index points, which need not be below `size`.
#[inline(always)]
fn place_of<I: Index>(index: I, size: usize, wrap: bool) -> u64 {
    let index = index.wide();
    (if wrap && index < 0 { index.wrapping_add(size as i64) } else { index }) as u64
}

simd_fn! {
    /// As [`append_digits`], where all rows are `base / size` before: nothing is multiplied, and nothing is read of `rows`.
    pub(crate) fn first_digits<F, I: Index>(
        indices: &[I],
        size: usize,
        wrap: bool,
        base: usize,
        rows: &mut [usize],
    ) -> bool {
        let mut all = true;
        for (row, index) in rows.iter_mut().zip(indices) {
            let place = place_of(*index, size, wrap);
            all &= place < size as u64;
            *row = base.wrapping_add(place as usize);
        }
        all
    }
}

simd_fn! {
    /// Makes each of `indices` the next digit of the number in its row, in a system of `size` digits, negative ones counted from the end if
    /// `wrap`; and says whether all are places below `size`. If not, the numbers are of no use.
    pub(crate) fn append_digits<F, I: Index>(indices: &[I], size: usize, wrap: bool, rows: &mut [usize]) -> bool {
        let mut all = true;
        for (row, index) in rows.iter_mut().zip(indices) {
            let place = place_of(*index, size, wrap);
            all &= place < size as u64;
            *row = row.wrapping_mul(size).wrapping_add(place as usize);
        }
        all
    }
}

simd_fn! {
    /// Whether all indices are places of `len` elements.
    fn all_below<F, I: Index>(indices: &[I], len: usize) -> bool {
        let mut all = true;
        for index in indices {
            all &= (index.wide() as u64) < len as u64;
        }
        all
    }
}

/// Writes the element of `x` that each index names; `false`, and nothing written, when one names none.
pub(crate) fn take<T: Pod, I: Index>(isa: Isa, x: &[T], indices: &[I], out: &mut [T]) -> bool {
    let all = all_below(isa, indices, x.len());
    if all {
        // For no instruction set: the gathers of AVX2 and AVX-512 are slower than loads one by one.
        for (y, index) in out.iter_mut().zip(indices) {
            // SAFETY: all indices are below the length.
            *y = unsafe { *x.get_unchecked(index.wide() as usize) };
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_taken_or_an_index_is_wrong() {
        let x: Vec<u16> = (0..100).map(|i| i * 3).collect();
        for isa in Isa::available() {
            for len in 0..70 {
                let mut indices: Vec<i32> = (0..len).map(|i| i * 37 % 100).collect();
                let mut out = vec![0; indices.len()];
                assert!(take(isa, &x, &indices, &mut out));
                assert!(indices.iter().zip(&out).all(|(i, y)| *y == x[*i as usize]));
                for wrong in [-1, 100] {
                    if let Some(last) = indices.last_mut() {
                        *last = wrong;
                        assert!(!take(isa, &x, &indices, &mut out));
                    }
                }
            }
        }
    }
}
