//! Many slots in one launch: tables of jobs for the grouped kernels.

use regraft_tensor::DType;

use super::{
    is_small_float,
    spec::{Defines, Why},
};
use crate::nvrtc::Source;

/// Elements of a piece of a [`Pack`], about.
const PIECE: usize = 4096;
/// An axis that a thread takes whole has at most so many elements.
const SHORT: usize = 16;
/// Bytes of a piece of a [`Pair`].
const PAIR_PIECE: usize = 65_536;

/// Bytes of a [`Pack`] in a table.
pub const PACK_BYTES: usize = 216;
/// Bytes of a [`Merge`] in a table.
pub const MERGE_BYTES: usize = 80;
/// Bytes of a [`Pair`] in a table.
pub const PAIR_BYTES: usize = 32;

/// The source of `pack`, `merge` and `differ`.
pub fn source() -> Source {
    Defines::default().source("pack", include_str!("pack.cu"))
}

/// An axis that a job runs over, with its strides in elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Axis {
    /// Number of elements.
    pub size: usize,
    /// Stride in the source.
    pub from: usize,
    /// Stride in the target.
    pub to: usize,
    /// Stride in the vector of factors.
    pub by: usize,
}

/// Elements of a source moved to a slot, cast and scaled on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pack {
    /// Address of the first element.
    pub source: u64,
    /// Address of the first element's place.
    pub target: u64,
    /// Address of factors in f32, or 0.
    pub scale: u64,
    /// Element type of the source.
    pub source_type: DType,
    /// Element type of the slot.
    pub target_type: DType,
    /// Axes, outermost first; at most 5 are left when neighbors are joined.
    pub axes: Vec<Axis>,
}

/// A table of jobs for one launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The jobs, as the source's structures.
    pub bytes: Vec<u8>,
    /// Number of jobs.
    pub jobs: usize,
    /// Pieces of all jobs.
    pub pieces: usize,
}

/// The number of a pair of types in the sources' switches.
fn float_kind(source: DType, target: DType) -> Option<i32> {
    let number = |d| match d {
        DType::F32 => Some(0),
        DType::F16 => Some(1),
        DType::BF16 => Some(2),
        _ => None,
    };
    Some(number(source)? * 3 + number(target)?)
}

impl Pack {
    fn kind(&self) -> Result<i32, Why> {
        if self.source_type == self.target_type && self.scale == 0 {
            return Ok(9 + self.source_type.size().trailing_zeros() as i32);
        }
        float_kind(self.source_type, self.target_type)
            .ok_or_else(|| Why::new(format!("{} becomes {} on the host", self.source_type, self.target_type)))
    }
}

/// Whether a [`Pack`] may have so many axes, neighbors joined, and elements.
pub fn takes(axes: usize, elements: usize) -> bool {
    axes <= 5 && elements < 1 << 31
}

/// Axes without those of size 1, neighbors joined.
fn join(axes: &[Axis]) -> Vec<Axis> {
    let mut joined: Vec<Axis> = Vec::new();
    for &axis in axes.iter().filter(|a| a.size != 1) {
        match joined.last_mut() {
            Some(last)
                if last.from == axis.from * axis.size
                    && last.to == axis.to * axis.size
                    && last.by == axis.by * axis.size =>
            {
                *last = Axis { size: last.size * axis.size, ..axis };
            }
            _ => joined.push(axis),
        }
    }
    joined
}

/// The axes with one last that threads take whole, and its size. As channels go last, each thread reads a window's neighbors,
/// and neighboring threads write neighbors.
fn short_axis_last(mut axes: Vec<Axis>) -> (Vec<Axis>, usize) {
    let is_innermost = |axes: &[Axis]| axes.last().is_some_and(|last| last.to == 1 && last.from != 1);
    match axes.iter().position(|axis| axis.from == 1 && (2..=SHORT).contains(&axis.size)) {
        Some(short) if is_innermost(&axes) => {
            let axis = axes.remove(short);
            axes.push(axis);
            (axes, axis.size)
        }
        _ => (axes, 1),
    }
}

impl Table {
    fn words(&mut self, words: &[u64]) {
        words.iter().for_each(|w| self.bytes.extend(w.to_ne_bytes()));
    }

    /// The table of these moves.
    ///
    /// # Errors
    /// When a type or a size does not fit.
    pub fn packs(jobs: &[Pack]) -> Result<Table, Why> {
        let mut table = Table::default();
        for job in jobs {
            let axes = join(&job.axes);
            let count: usize = axes.iter().map(|a| a.size).product();
            if !takes(axes.len(), count) {
                return Err(Why::new(format!("{} axes, {count} elements", axes.len())));
            }
            if count == 0 {
                continue;
            }
            let (axes, inner) = short_axis_last(axes);
            let piece = PIECE / inner * inner;
            let dims = axes.len().max(1);
            let mut all = vec![Axis { size: 1, ..Axis::default() }; 5 - axes.len()];
            all.extend(axes);
            table.words(&[job.source, job.target, job.scale, table.pieces as u64, count as u64]);
            table.bytes.extend(job.kind()?.to_ne_bytes());
            [dims, piece, inner].iter().for_each(|n| table.bytes.extend((*n as i32).to_ne_bytes()));
            for pick in [|a: &Axis| a.size, |a: &Axis| a.from, |a: &Axis| a.to, |a: &Axis| a.by] {
                table.words(&all.iter().map(|a| pick(a) as u64).collect::<Vec<_>>());
            }
            table.jobs += 1;
            table.pieces += count.div_ceil(piece);
        }
        Ok(table)
    }

    /// The table of these merges.
    ///
    /// # Errors
    /// When a type does not fit.
    pub fn merges(jobs: &[Merge]) -> Result<Table, Why> {
        let mut table = Table::default();
        for job in jobs.iter().filter(|j| j.rows * j.cols > 0) {
            let kind = float_kind(job.source_type, job.target_type)
                .filter(|_| is_small_float(job.source_type))
                .ok_or_else(|| Why::new(format!("{} becomes {}", job.source_type, job.target_type)))?;
            let columns = job.cols.div_ceil(64);
            table.words(&[job.source, job.target, job.up, job.down, table.pieces as u64]);
            table.words(&[job.rows as u64, job.cols as u64, job.rank as u64]);
            table.bytes.extend(kind.to_ne_bytes());
            table.bytes.extend((columns as i32).to_ne_bytes());
            table.bytes.extend(job.scale.to_ne_bytes());
            table.jobs += 1;
            table.pieces += columns * job.rows.div_ceil(64);
        }
        Ok(table)
    }

    /// The table of these pairs.
    pub fn pairs(pairs: &[Pair]) -> Table {
        let mut table = Table::default();
        for pair in pairs {
            table.words(&[pair.first, pair.second, table.pieces as u64, pair.bytes as u64]);
            table.jobs += 1;
            // A pair of nothing has a piece too, so that pieces find their pairs.
            table.pieces += pair.bytes.div_ceil(PAIR_PIECE).max(1);
        }
        table
    }
}

/// `W + scale·up·down`, rounded to the type of `W`, then to the target's.
#[derive(Clone, Debug, PartialEq)]
pub struct Merge {
    /// Address of `W`, row-major.
    pub source: u64,
    /// Address of the result, row-major.
    pub target: u64,
    /// Address of `rows x rank` floats.
    pub up: u64,
    /// Address of `rank x cols` floats.
    pub down: u64,
    /// Element type of `W`.
    pub source_type: DType,
    /// Element type of the slot.
    pub target_type: DType,
    /// Rows of `W`.
    pub rows: usize,
    /// Columns of `W`.
    pub cols: usize,
    /// Inner size of the product.
    pub rank: usize,
    /// What `up` is multiplied by, rounded to f32.
    pub scale: f64,
}

/// Two pieces of memory to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Address.
    pub first: u64,
    /// Address.
    pub second: u64,
    /// Bytes of each.
    pub bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_have_the_sizes_of_the_structures() {
        let axis = Axis { size: 10_000, from: 1, to: 1, by: 0 };
        let job =
            Pack { source: 1, target: 2, scale: 0, source_type: DType::F32, target_type: DType::F16, axes: vec![axis] };
        let table = Table::packs(&[job.clone(), job]).expect("they fit");
        assert_eq!((table.bytes.len(), table.jobs, table.pieces), (2 * PACK_BYTES, 2, 6));
        let merge = Merge {
            source: 1,
            target: 2,
            up: 3,
            down: 4,
            source_type: DType::F16,
            target_type: DType::F16,
            rows: 100,
            cols: 65,
            rank: 4,
            scale: 1.0,
        };
        let table = Table::merges(&[merge]).expect("it fits");
        assert_eq!((table.bytes.len(), table.pieces), (80, 4));
        assert_eq!(table.bytes.len(), MERGE_BYTES);
        let table = Table::pairs(&[Pair { first: 1, second: 2, bytes: 0 }]);
        assert_eq!((table.bytes.len(), table.pieces), (PAIR_BYTES, 1));
    }

    #[test]
    fn short_axes_of_neighbors_go_last() {
        let axis = |size, from, to| Axis { size, from, to, by: 0 };
        let channels_last = vec![axis(64, 288, 288), axis(9, 1, 32), axis(32, 9, 1)];
        assert_eq!(short_axis_last(channels_last), (vec![axis(64, 288, 288), axis(32, 9, 1), axis(9, 1, 32)], 9));
        let as_it_is = vec![axis(64, 9, 1), axis(9, 1, 64)];
        assert_eq!(short_axis_last(as_it_is.clone()), (as_it_is, 1));
    }

    #[test]
    fn neighbors_are_joined() {
        let axis = |size, from, to| Axis { size, from, to, by: 0 };
        assert_eq!(join(&[axis(2, 12, 12), axis(1, 5, 7), axis(3, 4, 4), axis(4, 1, 1)]), [axis(24, 1, 1)]);
        assert_eq!(join(&[axis(3, 1, 4), axis(4, 3, 1)]).len(), 2);
    }
}
