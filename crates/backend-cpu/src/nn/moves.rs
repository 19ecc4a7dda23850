//! Elements moved to other places: flips, padding, resampling without blending, and reads at computed positions. Types play no part,
//! only sizes do.

use bytemuck::Pod;

use super::{GRAIN, for_each_row, rows_per_task};
use crate::{
    Isa, Threads,
    simd::{
        indices::{Index, append_digits, first_digits, take},
        simd_fn,
    },
};

/// For each index of an axis of the result, which element of the operand's axis it is; [`FILL`] stands for none.
#[derive(Clone, Debug)]
pub struct AxisMap {
    /// Distance between neighbors along the operand's axis.
    pub stride: usize,
    /// The operand's index for each of the result's.
    pub sources: Vec<usize>,
}

/// The source of an element that is not in the operand.
pub const FILL: usize = usize::MAX;

/// Neighbors along the innermost axis that are moved together.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Run {
    /// So many elements from here on, upwards.
    Up(usize, usize),
    /// So many elements from here on, downwards.
    Down(usize, usize),
    /// So many elements from here on, upwards, each of them as often: the first, how many, how often.
    Each(usize, usize, usize),
    /// No element of the operand.
    Fill(usize),
}

impl Run {
    fn len(self) -> usize {
        match self {
            Run::Up(_, len) | Run::Down(_, len) | Run::Fill(len) => len,
            Run::Each(_, count, times) => count * times,
        }
    }
}

/// The longest row whose elements a plan lists.
const LONGEST_ROW: usize = 1 << 16;

/// A plan of [`remap`]: made once for a shape.
#[derive(Clone, Debug)]
pub struct Remap {
    outer: Vec<AxisMap>,
    runs: Vec<Run>,
    /// Elements of a row of the result.
    row: usize,
    /// Elements that the operand must have.
    reach: usize,
}

impl Remap {
    /// The result has an axis for each of `axes`; an operand shorter than they reach is refused by [`remap`].
    pub fn new(mut axes: Vec<AxisMap>) -> Remap {
        let of = |axis: &AxisMap| axis.sources.iter().filter(|s| **s != FILL).max().map_or(0, |s| s * axis.stride);
        let reach = if axes.iter().any(|a| a.sources.iter().all(|s| *s == FILL)) {
            0
        } else {
            1 + axes.iter().map(of).sum::<usize>()
        };
        // Whole axes at the end are one: their elements stand side by side.
        let mut inner = AxisMap { stride: 1, sources: vec![0] };
        while let Some(axis) = axes.last() {
            let width = inner.sources.len();
            let whole = inner.sources.iter().enumerate().all(|(i, s)| i == *s);
            let side_by_side = whole && axis.stride == width && width * axis.sources.len() <= LONGEST_ROW;
            if !(side_by_side || axis.sources.len() == 1 && axis.sources[0] == 0) {
                break;
            }
            let spread = |&s: &usize| (0..width).map(move |i| if s == FILL { FILL } else { s * width + i });
            if side_by_side {
                inner.sources = axis.sources.iter().flat_map(spread).collect();
            }
            axes.pop();
        }
        if inner.sources == [0] && !axes.is_empty() {
            let axis = axes.pop().unwrap_or(AxisMap { stride: 1, sources: vec![0] });
            inner.sources = axis.sources.iter().map(|s| if *s == FILL { FILL } else { s * axis.stride }).collect();
        }
        let row = inner.sources.len();
        Remap { outer: axes, runs: runs(&inner.sources), row, reach }
    }

    /// Elements of the result.
    pub fn len(&self) -> usize {
        self.row * self.outer.iter().map(|axis| axis.sources.len()).product::<usize>()
    }

    /// Whether the result has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where row `row` of the result starts in the operand; `None` where there is nothing.
    fn start(&self, row: usize) -> Option<usize> {
        let (mut at, mut rest) = (0, row);
        for axis in self.outer.iter().rev() {
            match axis.sources[rest % axis.sources.len()] {
                FILL => return None,
                source => at += source * axis.stride,
            }
            rest /= axis.sources.len();
        }
        Some(at)
    }
}

/// Cuts places along an axis into runs.
fn runs(sources: &[usize]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &source in sources {
        let grown = match runs.last() {
            Some(Run::Fill(len)) if source == FILL => Some(Run::Fill(len + 1)),
            _ if source == FILL => None,
            Some(&Run::Up(start, len)) if start + len == source => Some(Run::Up(start, len + 1)),
            Some(&Run::Up(start, 1)) if start == source => Some(Run::Each(start, 1, 2)),
            Some(&Run::Up(start, 1)) if start == source + 1 => Some(Run::Down(start, 2)),
            Some(&Run::Down(start, len)) if start == source + len => Some(Run::Down(start, len + 1)),
            Some(&Run::Each(start, 1, times)) if start == source => Some(Run::Each(start, 1, times + 1)),
            _ => None,
        };
        match (grown, runs.last_mut()) {
            (Some(grown), Some(last)) => *last = grown,
            _ => runs.push(if source == FILL { Run::Fill(1) } else { Run::Up(source, 1) }),
        }
    }
    let mut joined: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        match (joined.last_mut(), run) {
            (Some(Run::Each(first, count, often)), Run::Each(start, 1, times))
                if *first + *count == start && *often == times =>
            {
                *count += 1;
            }
            _ => joined.push(run),
        }
    }
    joined
}

/// Writes to each element of `out` the one of `x` that the plan names for it, or `fill`.
///
/// # Panics
///
/// If `x` is too short for the plan or `out` has another length.
pub fn remap<T: Pod + Send + Sync>(threads: &Threads, isa: Isa, plan: &Remap, x: &[T], fill: T, out: &mut [T]) {
    assert_eq!(out.len(), plan.len(), "the length of a result");
    assert!(plan.reach <= x.len() || out.is_empty(), "the operand is too short");
    if out.is_empty() {
        return;
    }
    let per_task = rows_per_task(threads, out.len() / plan.row, plan.row);
    threads.for_each_chunk(out, per_task * plan.row, |task, chunk| {
        let mut last = None;
        for i in 0..chunk.len() / plan.row {
            let start = plan.start(task * per_task + i);
            let (done, rest) = chunk.split_at_mut(i * plan.row);
            let out = &mut rest[..plan.row];
            if last == Some(start) {
                // Repeated along a slower axis: the row before is there already.
                out.copy_from_slice(&done[(i - 1) * plan.row..]);
            } else {
                write_row(isa, &plan.runs, x, start, fill, out);
            }
            last = Some(start);
        }
    });
}

/// Writes a row that starts at `start` in the operand, or nowhere.
fn write_row<T: Pod>(isa: Isa, runs: &[Run], x: &[T], start: Option<usize>, fill: T, mut out: &mut [T]) {
    let Some(start) = start else { return out.fill(fill) };
    for run in runs {
        let (to, rest) = out.split_at_mut(run.len());
        match *run {
            Run::Up(from, len) => to.copy_from_slice(&x[start + from..][..len]),
            Run::Down(from, len) => reversed(isa, &x[start + from + 1 - len..][..len], to),
            Run::Each(from, count, times) => {
                let from = &x[start + from..][..count];
                match times {
                    // A loop that becomes instructions on vectors.
                    2 => to.as_chunks_mut::<2>().0.iter_mut().zip(from).for_each(|(y, x)| *y = [*x; 2]),
                    _ => to.chunks_exact_mut(times).zip(from).for_each(|(y, x)| y.fill(*x)),
                }
            }
            Run::Fill(_) => to.fill(fill),
        }
        out = rest;
    }
}

simd_fn! {
    /// Copies, the last element first.
    fn reversed<F, T: Pod>(from: &[T], to: &mut [T]) {
        for (y, x) in to.iter_mut().zip(from.iter().rev()) {
            *y = *x;
        }
    }
}

/// Indices of one of the two types that index tensors have.
#[derive(Clone, Copy, Debug)]
pub enum Indices<'a> {
    /// Of i64.
    I64(&'a [i64]),
    /// Of i32.
    I32(&'a [i32]),
}

impl Indices<'_> {
    /// How many there are.
    pub fn len(self) -> usize {
        match self {
            Indices::I64(x) => x.len(),
            Indices::I32(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The first `len` of them.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    pub fn first(self, len: usize) -> Self {
        match self {
            Indices::I64(x) => Indices::I64(&x[..len]),
            Indices::I32(x) => Indices::I32(&x[..len]),
        }
    }

    /// Index `i`.
    #[inline]
    pub fn at(self, i: usize) -> i64 {
        match self {
            Indices::I64(x) => x[i],
            Indices::I32(x) => i64::from(x[i]),
        }
    }

    /// The index at `i` as a place in `0..size`, with negative ones counted from the end if `wrap`.
    ///
    /// # Errors
    ///
    /// The index, when it is out of range.
    #[inline]
    pub fn checked(self, i: usize, size: usize, wrap: bool) -> Result<usize, i64> {
        let index = self.at(i);
        let place = if wrap && index < 0 { index + size as i64 } else { index };
        usize::try_from(place).ok().filter(|place| *place < size).ok_or(index)
    }

    /// [`first_digits`] of the indices from `at` on, as many as there are of `rows`.
    ///
    /// # Panics
    ///
    /// If there are fewer indices.
    pub(crate) fn begin(self, isa: Isa, at: usize, size: usize, wrap: bool, base: usize, rows: &mut [usize]) -> bool {
        match self {
            Indices::I64(x) => first_digits(isa, &x[at..][..rows.len()], size, wrap, base, rows),
            Indices::I32(x) => first_digits(isa, &x[at..][..rows.len()], size, wrap, base, rows),
        }
    }

    /// [`append_digits`] of the indices from `at` on, as many as there are of `rows`.
    ///
    /// # Panics
    ///
    /// If there are fewer indices.
    pub(crate) fn append(self, isa: Isa, at: usize, size: usize, wrap: bool, rows: &mut [usize]) -> bool {
        match self {
            Indices::I64(x) => append_digits(isa, &x[at..][..rows.len()], size, wrap, rows),
            Indices::I32(x) => append_digits(isa, &x[at..][..rows.len()], size, wrap, rows),
        }
    }
}

/// Copies run `rows[i]` of each of `outer` groups of `group` runs of `inner` elements to place `i`.
///
/// # Panics
///
/// If a length does not fit, or a row is not in a group.
pub fn take_rows<T: Pod + Send + Sync>(
    threads: &Threads,
    x: &[T],
    [outer, group, inner]: [usize; 3],
    rows: &[usize],
    out: &mut [T],
) {
    assert!(x.len() >= outer * group * inner && out.len() == outer * rows.len() * inner);
    assert!(rows.iter().all(|row| *row < group), "a row beyond the group");
    if out.is_empty() {
        return;
    }
    let per_task = GRAIN.div_ceil(inner);
    threads.for_each_chunk(out, per_task * inner, |task, out| {
        let first = task * per_task;
        if inner == 1 {
            for (i, y) in out.iter_mut().enumerate() {
                let at = first + i;
                *y = x[at / rows.len() * group + rows[at % rows.len()]];
            }
            return;
        }
        for (i, out) in out.chunks_exact_mut(inner).enumerate() {
            let at = first + i;
            let row = at / rows.len() * group + rows[at % rows.len()];
            out.copy_from_slice(&x[row * inner..][..inner]);
        }
    });
}

/// Writes the element of `x` at `index · step + j · along` for the `j`-th index; `false` when one is not below `size`.
fn take_strided<T: Pod, I: Index>(
    x: &[T],
    indices: &[I],
    size: usize,
    [step, along]: [usize; 2],
    out: &mut [T],
) -> bool {
    for (j, (y, index)) in out.iter_mut().zip(indices).enumerate() {
        match usize::try_from(index.wide()) {
            Ok(place) if place < size => *y = x[place * step + j * along],
            _ => return false,
        }
    }
    true
}

/// The operand and indices of a gather along one axis.
#[derive(Clone, Copy, Debug)]
pub struct GatherShape<'a> {
    /// Sizes of the index, and of the result.
    pub shape: &'a [usize],
    /// Distances between neighbors of the operand, for each axis.
    pub strides: &'a [usize],
    /// The axis that is indexed.
    pub axis: usize,
    /// The operand's size along it.
    pub size: usize,
}

/// `out[i][j][k] = x[i][index[i][j][k]][k]`, for axis 1 of three: `torch.gather`.
///
/// # Errors
///
/// An index that is out of range; `out` may be partly written.
///
/// # Panics
///
/// If a length does not fit or the operand is too short for its strides.
pub fn gather<T: Pod + Send + Sync>(
    threads: &Threads,
    isa: Isa,
    shape: GatherShape<'_>,
    x: &[T],
    index: Indices<'_>,
    out: &mut [T],
) -> Result<(), i64> {
    let GatherShape { shape, strides, axis, size } = shape;
    assert_eq!(index.len(), out.len());
    let Some((&row, outer)) = shape.split_last() else {
        return index.checked(0, size, false).map(|_| out[0] = x[0]);
    };
    if size == 0 && !index.is_empty() {
        return index.checked(0, size, false).map(|_| ());
    }
    let (step, last) = (strides[axis], axis + 1 == shape.len());
    let along = if last { 0 } else { strides[strides.len() - 1] };
    let bad = std::sync::Mutex::new(None);
    for_each_row(threads, out, row, |i, out| {
        let (mut base, mut rest) = (0, i);
        for (at, size) in outer.iter().enumerate().rev() {
            base += if at == axis { 0 } else { rest % size * strides[at] };
            rest /= size;
        }
        let x = &x[base..];
        let part = i * row..(i + 1) * row;
        let all = match (index, last && step == 1) {
            (Indices::I64(index), true) => take(isa, &x[..size], &index[part], out),
            (Indices::I32(index), true) => take(isa, &x[..size], &index[part], out),
            (Indices::I64(index), false) => take_strided(x, &index[part], size, [step, along], out),
            (Indices::I32(index), false) => take_strided(x, &index[part], size, [step, along], out),
        };
        if all {
            return;
        }
        let wrong = |j| index.checked(i * row + j, size, false).err().map(|index| (i * row + j, index));
        // The first in order, whichever thread finds it.
        let mut bad = bad.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *bad = [*bad, (0..row).find_map(wrong)].into_iter().flatten().min();
    });
    bad.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), |(_, index)| Err(index))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn any_map(
            sizes in prop::collection::vec(1usize..6, 1..4),
            picks in prop::collection::vec(prop::collection::vec(prop::option::weighted(0.8, 0usize..100), 1..8), 3),
            whole in prop::collection::vec(0usize..4, 3),
        ) {
            let len: usize = sizes.iter().product();
            let x: Vec<u32> = (0..len as u32).map(|i| i + 1).collect();
            let mut stride = len;
            let axes: Vec<AxisMap> = sizes.iter().enumerate().map(|(i, &size)| {
                stride /= size;
                let sources = match whole[i] {
                    0 => (0..size).collect(),
                    1 => (0..size).rev().collect(),
                    _ => picks[i].iter().map(|p| p.map_or(FILL, |p| p % size)).collect(),
                };
                AxisMap { stride, sources }
            }).collect();
            let shape: Vec<usize> = axes.iter().map(|a| a.sources.len()).collect();
            let plan = Remap::new(axes.clone());
            for threads in [Threads::single(), Threads::new(2).unwrap()] {
                let mut out = vec![9999; shape.iter().product()];
                remap(&threads, Isa::detect(), &plan, &x, 0, &mut out);
                for (at, got) in out.iter().enumerate() {
                    let mut rest = at;
                    let mut place = Some(0);
                    for axis in axes.iter().rev() {
                        let source = axis.sources[rest % axis.sources.len()];
                        place = place.filter(|_| source != FILL).map(|p| p + source * axis.stride);
                        rest /= axis.sources.len();
                    }
                    assert_eq!(*got, place.map_or(0, |p| x[p]));
                }
            }
        }
    }

    #[test]
    fn bad_indices_are_named() {
        let shape = GatherShape { shape: &[2, 2], strides: &[3, 1], axis: 1, size: 3 };
        let mut out = [0u8; 4];
        let x = [1, 2, 3, 4, 5, 6];
        assert_eq!(gather(&Threads::single(), Isa::detect(), shape, &x, Indices::I32(&[2, 0, 1, 2]), &mut out), Ok(()));
        assert_eq!(out, [3, 1, 5, 6]);
        assert_eq!(
            gather(&Threads::single(), Isa::detect(), shape, &x, Indices::I64(&[2, 0, -1, 7]), &mut out),
            Err(-1)
        );
        assert_eq!(Indices::I64(&[-1]).checked(0, 3, true), Ok(2));
    }
}
