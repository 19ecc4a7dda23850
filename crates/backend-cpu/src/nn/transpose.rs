//! Copies of strided tensors: permutations, slices, broadcasts made dense.

use std::ops::Range;

use bytemuck::Pod;

use super::GRAIN;
use crate::{
    Isa, Threads,
    simd::{Steps, Strip, transpose_strip},
    threads::TASKS_PER_THREAD,
};

/// A dimension of the copy, with the distances between its elements in source and result.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Dim {
    size: usize,
    src: usize,
    dst: usize,
}

/// Side of the blocks in which two dimensions change places.
const BLOCK: usize = 16;

/// Writes the tensor of `shape` whose element `(i, j, ..)` is `src[i * strides[0] + j * strides[1] + ..]` to `out`, row-major.
/// A stride of 0 repeats elements.
///
/// # Panics
///
/// If a stride is missing, `out` has the wrong length or an element lies beyond `src`.
pub fn copy_strided<T: Pod + Send + Sync>(
    threads: &Threads,
    isa: Isa,
    src: &[T],
    shape: &[usize],
    strides: &[usize],
    out: &mut [T],
) {
    assert_eq!(shape.len(), strides.len());
    assert_eq!(out.len(), shape.iter().product::<usize>());
    if out.is_empty() {
        return;
    }
    let last = shape.iter().zip(strides).try_fold(0usize, |sum, (n, s)| sum.checked_add((n - 1).checked_mul(*s)?));
    assert!(last.is_some_and(|last| last < src.len()), "a strided tensor reaches beyond its data");
    let dims = merged(shape, strides);
    let Some(first) = dims.first().copied() else {
        out[0] = src[0];
        return;
    };
    let fair = first.size.div_ceil(TASKS_PER_THREAD * threads.count());
    let per_task = GRAIN.div_ceil(first.dst).max(fair).next_multiple_of(BLOCK);
    threads.for_each_chunk(out, per_task * first.dst, |task, out| {
        let mut dims = dims.clone();
        dims[0].size = out.len() / first.dst;
        copy(isa, &src[task * per_task * first.src..], &dims, out);
    });
}

/// The dimensions without those of size 1, neighbors joined where the source has no gap between them.
fn merged(shape: &[usize], strides: &[usize]) -> Vec<Dim> {
    let mut dims: Vec<Dim> = Vec::with_capacity(shape.len());
    let mut dst: usize = shape.iter().product();
    for (size, src) in shape.iter().copied().zip(strides.iter().copied()).filter(|(size, _)| *size != 1) {
        dst /= size;
        match dims.last_mut() {
            Some(outer) if outer.src == src * size => *outer = Dim { size: outer.size * size, src, dst },
            _ => dims.push(Dim { size, src, dst }),
        }
    }
    dims
}

fn copy<T: Pod>(isa: Isa, src: &[T], dims: &[Dim], out: &mut [T]) {
    let Some((inner, outer)) = dims.split_last() else { return };
    if inner.src == 1 {
        for_each_offset(outer, 0, 0, &mut |s, d| out[d..][..inner.size].copy_from_slice(&src[s..][..inner.size]));
    } else if let Some(j) = outer.iter().position(|dim| dim.src == 1) {
        let others: Vec<Dim> = outer.iter().enumerate().filter(|(i, _)| *i != j).map(|(_, dim)| *dim).collect();
        let steps: Vec<(usize, usize)> = (0..outer[j].size / BLOCK * BLOCK).map(|i| (i, i)).collect();
        let steps = Steps::new(&steps);
        for_each_offset(&others, 0, 0, &mut |s, d| {
            transpose(isa, &src[s..], &mut out[d..], outer[j], *inner, steps);
        });
    } else {
        for_each_offset(outer, 0, 0, &mut |s, d| {
            let from = src[s..].iter().step_by(inner.src.max(1));
            match inner.src {
                0 => out[d..][..inner.size].fill(src[s]),
                _ => out[d..][..inner.size].iter_mut().zip(from).for_each(|(y, x)| *y = *x),
            }
        });
    }
}

/// Calls `visit` with the offsets of every index of `dims`.
fn for_each_offset(dims: &[Dim], src: usize, dst: usize, visit: &mut impl FnMut(usize, usize)) {
    match dims.split_first() {
        None => visit(src, dst),
        Some((dim, rest)) => {
            (0..dim.size).for_each(|i| for_each_offset(rest, src + i * dim.src, dst + i * dim.dst, visit));
        }
    }
}

/// Transposes the matrix whose dimension `row` is contiguous in the source and whose dimension `col` is in the result. `steps`
/// numbers the whole blocks of `row`.
fn transpose<T: Pod>(isa: Isa, src: &[T], dst: &mut [T], row: Dim, col: Dim, steps: Steps<'_>) {
    let (mut rows, mut cols) = (0, 0);
    if size_of::<T>() == size_of::<f32>()
        && let (Ok(src), Ok(dst)) = (bytemuck::try_cast_slice(src), bytemuck::try_cast_slice_mut(&mut *dst))
    {
        // Moves bits, whatever they mean.
        (rows, cols) = (steps.each().len(), col.size / BLOCK * BLOCK);
        for c in (0..cols).step_by(BLOCK) {
            let (src, dst) = (&src[c * col.src..], &mut dst[c..]);
            let strip = Strip {
                src,
                row_stride: col.src,
                product: None,
                scale: None,
                dst,
                line_stride: row.dst,
                stream: false,
            };
            transpose_strip(isa, strip, steps);
        }
    }
    by_element(src, dst, (rows..row.size, row.dst), (0..cols, col.src));
    by_element(src, dst, (0..row.size, row.dst), (cols..col.size, col.src));
}

/// The same for ranges of rows and columns, block by block so that lines of the source are used up.
fn by_element<T: Pod>(
    src: &[T],
    dst: &mut [T],
    (rows, dst_stride): (Range<usize>, usize),
    (cols, src_stride): (Range<usize>, usize),
) {
    if rows.is_empty() || cols.is_empty() {
        return;
    }
    for r0 in rows.clone().step_by(BLOCK) {
        for c0 in cols.clone().step_by(BLOCK) {
            let c1 = cols.end.min(c0 + BLOCK);
            for r in r0..rows.end.min(r0 + BLOCK) {
                let line = &mut dst[r * dst_stride + c0..r * dst_stride + c1];
                line.iter_mut().zip(c0..c1).for_each(|(y, c)| *y = src[c * src_stride + r]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive<T: Copy>(src: &[T], shape: &[usize], strides: &[usize]) -> Vec<T> {
        (0..shape.iter().product())
            .map(|mut at: usize| {
                let mut offset = 0;
                for (size, stride) in shape.iter().zip(strides).rev() {
                    offset += at % size * stride;
                    at /= size;
                }
                src[offset]
            })
            .collect()
    }

    fn check<T: Pod + Send + Sync + PartialEq>(element: impl Fn(usize) -> T, shape: &[usize], strides: &[usize]) {
        let len = 1 + shape.iter().zip(strides).map(|(n, s)| (n - 1) * s).sum::<usize>();
        let src: Vec<T> = (0..len).map(element).collect();
        let want = naive(&src, shape, strides);
        for isa in Isa::available() {
            for count in [1, 2] {
                let mut out = vec![T::zeroed(); want.len()];
                copy_strided(&Threads::new(count).unwrap(), isa, &src, shape, strides, &mut out);
                assert!(out == want, "{isa}, {count} threads, {shape:?} {strides:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn permutations(
            dims in prop::sample::subsequence(vec![3usize, 40, 2, 33, 1, 17], 1..5),
            order in Just((0..6usize).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let dense: Vec<usize> = (0..dims.len()).map(|i| dims[i + 1..].iter().product()).collect();
            let order: Vec<usize> = order.into_iter().filter(|i| *i < dims.len()).collect();
            let shape: Vec<usize> = order.iter().map(|i| dims[*i]).collect();
            let strides: Vec<usize> = order.iter().map(|i| dense[*i]).collect();
            check(|i| i as u32 ^ 0x7fa0_0000, &shape, &strides); // signalling NaN as floats
            check(|i| i as u8, &shape, &strides);
            check(|i| i as u64, &shape, &strides);
        }

        #[test]
        fn any_strides(shape in prop::collection::vec(1usize..20, 0..4), strides in prop::collection::vec(0usize..30, 4)) {
            check(|i| i as f32, &shape, &strides[..shape.len()]);
        }
    }

    #[test]
    fn neighbors_are_merged() {
        assert_eq!(merged(&[2, 1, 3, 4], &[12, 99, 4, 1]), [Dim { size: 24, src: 1, dst: 1 }]);
        assert_eq!(merged(&[2, 3, 4], &[4, 8, 1]).len(), 3);
    }
}
