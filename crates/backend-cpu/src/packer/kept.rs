//! Sources that are kept where they are read: in the slot that was made of them.
//!
//! A recipe that only moves elements loses nothing, so the slot holds its sources too, in another order. What a generation
//! then keeps of such a source is the slot and the way back, and no second copy.

use std::ops::ControlFlow;

use regraft_backend::{MemoryKind, OutOfMemory, PackError};
use regraft_tensor::{AlignedVec, DType, Tensor, numel};
use regraft_weights::{GatherPlan, Piece};

use crate::{format::Panels, pack::panel_place, simd::FloatType};

/// A source all of whose elements lie in a slot, bit for bit.
#[derive(Debug)]
pub(super) struct Kept<'a> {
    pub(super) slot: &'a [u8],
    pub(super) dtype: DType,
    pub(super) shape: &'a [usize],
    pub(super) places: &'a KeptPlaces,
}

/// Where in a slot the elements of one of its sources are.
#[derive(Debug)]
pub(super) struct KeptPlaces(Vec<Place>);

/// A part of the source, and where it lies.
#[derive(Debug)]
enum Place {
    /// Elements in a row on both sides: the first in the source, the first in the slot, how many.
    Run(usize, usize, usize),
    /// Columns of a packed matrix.
    Columns {
        piece: Piece,
        /// First element of the matrix in the slot.
        matrix: usize,
        /// First column in it.
        column: usize,
        panels: Panels,
    },
}

/// `len` elements that lie at equal distances on both sides.
#[derive(Clone, Copy)]
struct Strip {
    source: usize,
    source_step: usize,
    slot: usize,
    slot_step: usize,
    len: usize,
}

/// Rows of a panel that are walked through together, so that they stay in the first-level cache.
const ROWS: usize = 64;

impl KeptPlaces {
    /// Where source `source`, of this shape, is in a slot that `gather` makes in `panels`, or plain. `None` unless the recipe
    /// moves all of it, and no more than moves it.
    pub(super) fn find(
        gather: &GatherPlan,
        panels: Option<Panels>,
        slot_shape: &[usize],
        source: u32,
        shape: &[usize],
    ) -> Option<KeptPlaces> {
        let numel = numel(shape).filter(|n| *n > 0)?;
        let (places, covered) = match (gather, panels) {
            (GatherPlan::Copy { runs }, None) => runs_of(runs, source),
            (GatherPlan::Matrices { matrices, .. }, Some(panels)) => columns_of(matrices, slot_shape, panels, source)?,
            _ => return None,
        };
        covers(covered, numel).then_some(KeptPlaces(places))
    }
}

impl Kept<'_> {
    /// The tensor, in memory of its own: one pass over it.
    pub(super) fn tensor(&self) -> Result<Tensor, PackError> {
        let bytes = Tensor::byte_len(self.dtype, self.shape).expect("it was a tensor once");
        let refused = |_| OutOfMemory { device: "cpu".into(), bytes, kind: MemoryKind::Slot, free: None };
        let mut data = AlignedVec::try_to_stay(bytes).map_err(refused)?;
        match self.dtype.size() {
            1 => self.gather::<1>(data.bytes_mut()),
            2 => self.gather::<2>(data.bytes_mut()),
            4 => self.gather::<4>(data.bytes_mut()),
            _ => self.gather::<8>(data.bytes_mut()),
        }
        Ok(Tensor::new(self.dtype, self.shape.to_vec(), data.into()).expect("as many bytes as the shape has"))
    }

    /// Whether `given` is the same tensor, bit for bit; ends at the first difference.
    pub(super) fn is(&self, given: &Tensor) -> bool {
        self.is_in(given, usize::MAX)
    }

    /// Whether `given` differs in the elements that are looked at first.
    pub(super) fn differs_at_once(&self, given: &Tensor) -> bool {
        !self.is_in(given, 16)
    }

    /// Whether the `most` elements that are looked at first are those of `given`, bit for bit.
    fn is_in(&self, given: &Tensor, most: usize) -> bool {
        let same = || match self.dtype.size() {
            1 => self.same::<1>(given.bytes(), most),
            2 => self.same::<2>(given.bytes(), most),
            4 => self.same::<4>(given.bytes(), most),
            _ => self.same::<8>(given.bytes(), most),
        };
        given.dtype() == self.dtype && given.shape() == self.shape && same()
    }

    fn gather<const SIZE: usize>(&self, to: &mut [u8]) {
        let (from, to) = (self.slot.as_chunks::<SIZE>().0, to.as_chunks_mut::<SIZE>().0);
        let done = self.strips(&mut |s| {
            match (s.source_step, s.slot_step) {
                (1, 1) => to[s.source..][..s.len].copy_from_slice(&from[s.slot..][..s.len]),
                _ => (0..s.len).for_each(|i| to[s.source + i * s.source_step] = from[s.slot + i * s.slot_step]),
            }
            ControlFlow::Continue(())
        });
        debug_assert!(done.is_continue());
    }

    fn same<const SIZE: usize>(&self, given: &[u8], most: usize) -> bool {
        let (ours, given) = (self.slot.as_chunks::<SIZE>().0, given.as_chunks::<SIZE>().0);
        let (mut is_same, mut left) = (true, most);
        // The answer is in `is_same`; whether the walk came to its end does not matter.
        let _ = self.strips(&mut |s| {
            let len = s.len.min(left);
            is_same = match (s.source_step, s.slot_step) {
                (1, 1) => given[s.source..][..len] == ours[s.slot..][..len],
                _ => (0..len).all(|i| given[s.source + i * s.source_step] == ours[s.slot + i * s.slot_step]),
            };
            left -= len;
            if is_same && left > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        is_same
    }

    fn strips(&self, f: &mut impl FnMut(Strip) -> ControlFlow<()>) -> ControlFlow<()> {
        self.places.0.iter().try_for_each(|place| match place {
            Place::Run(source, slot, len) => {
                f(Strip { source: *source, source_step: 1, slot: *slot, slot_step: 1, len: *len })
            }
            Place::Columns { piece, matrix, column, panels } => strips_of(piece, *matrix, *column, *panels, f),
        })
    }
}

/// The runs of one source, and the ranges of it that they cover.
fn runs_of(runs: &[(u32, usize, usize)], wanted: u32) -> (Vec<Place>, Vec<(usize, usize)>) {
    let mut at = 0;
    let (mut places, mut covered) = (Vec::new(), Vec::new());
    for &(source, first, len) in runs {
        if source == wanted {
            places.push(Place::Run(first, at, len));
            covered.push((first, len));
        }
        at += len;
    }
    (places, covered)
}

/// The pieces of one source, and the ranges of it that they cover; `None` when one is scaled, or is not a range.
fn columns_of(
    matrices: &[Vec<Piece>],
    shape: &[usize],
    panels: Panels,
    wanted: u32,
) -> Option<(Vec<Place>, Vec<(usize, usize)>)> {
    let [.., k, n] = shape else { return None };
    let each = panels.matrix_bytes(*k, *n) / panels.ty.size();
    let (mut places, mut covered) = (Vec::new(), Vec::new());
    for (i, pieces) in matrices.iter().enumerate() {
        let mut column = 0;
        for piece in pieces {
            if piece.source == wanted {
                covered.push((piece.offset, range_len(piece)?));
                places.push(Place::Columns { piece: piece.clone(), matrix: i * each, column, panels });
            }
            column += piece.n_len;
        }
    }
    Some((places, covered))
}

/// How many elements from its first one on a piece takes, when it takes each of them once and is not scaled.
fn range_len(piece: &Piece) -> Option<usize> {
    let mut dims: Vec<(usize, usize)> = piece.k_dims.clone();
    dims.push((piece.n_len, piece.n_stride));
    dims.retain(|(size, _)| *size != 1);
    dims.sort_by_key(|(_, stride)| *stride);
    let len = dims.iter().try_fold(1usize, |len, &(size, stride)| (stride == len).then(|| len * size))?;
    piece.scale.is_none().then_some(len)
}

/// Whether these ranges, each a first element and a length, leave no gap below `numel`.
fn covers(mut ranges: Vec<(usize, usize)>, numel: usize) -> bool {
    ranges.sort_unstable();
    let reach = ranges.iter().try_fold(0, |reach: usize, &(first, len)| {
        (first <= reach && first + len <= numel).then(|| reach.max(first + len))
    });
    reach == Some(numel)
}

/// The strips of a piece: along the columns where these are neighbors in the source, else along the rows.
fn strips_of(
    piece: &Piece,
    matrix: usize,
    column: usize,
    Panels { ty, nr }: Panels,
    f: &mut impl FnMut(Strip) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let k: usize = piece.k_dims.iter().map(|d| d.0).product();
    // Rows that stand in one line of a panel.
    let woven = if ty == FloatType::Bf16 { 2 } else { 1 };
    // A matrix without rows, or with one, may have no parts of a row index.
    let (&(inner, step), outer) = piece.k_dims.split_last().unwrap_or((&(1, 1), &[]));
    let mut first = 0;
    while first < piece.n_len {
        let at = column + first;
        let width = (nr - at % nr).min(piece.n_len - first);
        let place = |row: usize, i: usize| matrix + panel_place(ty, nr, k, row, at + i);
        let source = piece.offset + first * piece.n_stride;
        for (block, start) in outer_indices(outer).enumerate() {
            for row in (0..inner).step_by(ROWS) {
                let rows = ROWS.min(inner - row);
                let (source, row) = (source + start + row * step, block * inner + row);
                if piece.n_stride == 1 && width > 1 {
                    (0..rows).try_for_each(|i| {
                        let (source, slot) = (source + i * step, place(row + i, 0));
                        f(Strip { source, source_step: 1, slot, slot_step: woven, len: width })
                    })?;
                    continue;
                }
                for i in 0..width {
                    let source = source + i * piece.n_stride;
                    (0..woven.min(rows)).try_for_each(|half| {
                        f(Strip {
                            source: source + half * step,
                            source_step: woven * step,
                            slot: place(row + half, i),
                            slot_step: woven * nr,
                            len: (rows - half).div_ceil(woven),
                        })
                    })?;
                }
            }
        }
        first += width;
    }
    ControlFlow::Continue(())
}

/// Offsets in the source of every index of the outer parts of a row index, in order.
fn outer_indices(parts: &[(usize, usize)]) -> impl Iterator<Item = usize> {
    let count: usize = parts.iter().map(|d| d.0).product();
    (0..count).map(move |mut index| {
        parts.iter().rev().fold(0, |at, &(size, stride)| {
            let here = index % size;
            index /= size;
            at + here * stride
        })
    })
}

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;
