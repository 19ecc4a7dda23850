//! Many slots in one launch: tables of jobs for the grouped kernels.

use regraft_tensor::DType;

use super::spec::{Defines, Why};
use crate::nvrtc::Source;

/// Blocks of a multiprocessor at a time.
const RESIDENT: usize = 4;
/// Elements of a piece, about, that are moved one by one.
const PIECE: usize = 4096;
/// Bytes of a piece that is copied.
const COPY_PIECE: usize = 32_768;
/// Bytes of a piece that changes axes in shared memory.
const ROOM: usize = 16_384;
/// An axis that a thread takes whole has at most so many elements.
const SHORT: usize = 16;
/// Bytes of a piece of a [`Pair`].
const PAIR_PIECE: usize = 65_536;
/// Bytes of a word that a thread moves at once.
const WIDE: usize = 16;

/// Bytes of a [`Layout`] in a table.
pub const LAYOUT_BYTES: usize = 216;
/// Bytes of a [`Merge`] in a table.
pub const MERGE_BYTES: usize = 80;
/// Bytes of a [`Pair`] in a table.
pub const PAIR_BYTES: usize = 32;

/// The source of `pack`, `merge` and `differ`.
pub fn source() -> Source {
    Defines::default().set("RESIDENT", RESIDENT).set("ROOM", ROOM).source("pack", include_str!("pack.cu"))
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

/// How elements of a source are moved to a slot, cast and scaled on the way: a job but for its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Sizes of five axes, then their strides.
    axes: [u64; 20],
    dims: usize,
    /// From and to any address.
    way: Way,
    /// From and to addresses of wide words, where there is a faster one.
    wide: Option<Way>,
}

/// What a kernel does with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    /// A case of the source's switch.
    kind: i32,
    count: usize,
    /// How many of these make a piece.
    piece: usize,
    /// Elements of the last axis, where it is short.
    inner: usize,
}

/// The addresses of a job: of the first element, of its place, and of factors in f32, or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Of the first element.
    pub source: u64,
    /// Of its place.
    pub target: u64,
    /// Of the factors in f32, or 0.
    pub scale: u64,
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

/// The number of a type in the sources' switches.
fn float_number(dtype: DType) -> Option<i32> {
    match dtype {
        DType::F32 => Some(0),
        DType::F16 => Some(1),
        DType::BF16 => Some(2),
        _ => None,
    }
}

/// The number of a pair of types there.
fn float_kind(source: DType, target: DType) -> Option<i32> {
    Some(float_number(source)? * 3 + float_number(target)?)
}

/// Whether a [`Layout`] may have so many axes, neighbors joined, and elements.
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

/// How elements of `size` bytes are moved in wide words, where they can be.
fn wide_way(axes: &[Axis], inner: usize, size: usize, count: usize) -> Option<Way> {
    if let [Axis { from: 1, to: 1, .. }] = axes {
        let copy = Way { kind: 13, count: count * size, piece: COPY_PIECE, inner: 1 };
        return takes(1, copy.count).then_some(copy);
    }
    let (kind, neighbors) = match size {
        2 => (14, WIDE / 2),
        4 => (15, WIDE / 4),
        _ => return None,
    };
    let (column, others) = match axes {
        [outer @ .., column, short] if inner > 1 => (column, outer.iter().chain([short])),
        _ => return None,
    };
    // All of them are neighbors in the source, and wide words of the target are those of one row.
    let follows = |next: usize, axis: &Axis| (axis.from == next).then(|| next * axis.size);
    let is_run = axes.iter().rev().try_fold(1, follows).is_some();
    let is_wide = column.to == 1 && column.size.is_multiple_of(neighbors);
    let step = inner * neighbors;
    let turn = Way { kind, count, piece: ROOM / size / step * step, inner };
    (is_run && is_wide && others.into_iter().all(|axis| axis.to.is_multiple_of(neighbors))).then_some(turn)
}

impl Layout {
    /// Elements of the first type that become such of the second, scaled or not, over these axes, outermost first: at most 5 are
    /// left when neighbors are joined.
    ///
    /// # Errors
    /// When there are too many axes or elements, or a type does not fit.
    pub fn new((from, to): (DType, DType), is_scaled: bool, axes: &[Axis]) -> Result<Layout, Why> {
        let axes = join(axes);
        let count: usize = axes.iter().map(|a| a.size).product();
        if !takes(axes.len(), count) {
            return Err(Why::new(format!("{} axes, {count} elements", axes.len())));
        }
        let stays = from == to && !is_scaled;
        let kind = match stays {
            true => 9 + from.size().trailing_zeros() as i32,
            false => float_kind(from, to).ok_or_else(|| Why::new(format!("{from} becomes {to} on the host")))?,
        };
        let (axes, inner) = short_axis_last(axes);
        let way = Way { kind, count, piece: PIECE / inner * inner, inner };
        let wide = if stays { wide_way(&axes, inner, from.size(), count) } else { None };
        let mut all = [Axis { size: 1, ..Axis::default() }; 5];
        all[5 - axes.len()..].copy_from_slice(&axes);
        let mut numbers = [0; 20];
        let picks = [|a: &Axis| a.size, |a: &Axis| a.from, |a: &Axis| a.to, |a: &Axis| a.by];
        for (of, pick) in numbers.chunks_exact_mut(5).zip(picks) {
            of.iter_mut().zip(&all).for_each(|(number, axis)| *number = pick(axis) as u64);
        }
        Ok(Layout { axes: numbers, dims: axes.len().max(1), way, wide })
    }

    /// A run of so many elements, cast where the types differ.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn run(types: (DType, DType), len: usize) -> Result<Layout, Why> {
        Layout::new(types, false, &[Axis { size: len, from: 1, to: 1, by: 0 }])
    }
}

impl Table {
    fn words(&mut self, words: &[u64]) {
        self.bytes.extend_from_slice(bytemuck::cast_slice(words));
    }

    /// An empty table with room for so many moves.
    pub fn with_room(moves: usize) -> Table {
        Table { bytes: Vec::with_capacity(moves * LAYOUT_BYTES), ..Table::default() }
    }

    /// Adds a move.
    pub fn push(&mut self, layout: &Layout, places: Places) {
        let Places { source, target, scale } = places;
        let is_wide = (source | target).is_multiple_of(WIDE as u64);
        let way = layout.wide.filter(|_| is_wide).unwrap_or(layout.way);
        if way.count == 0 {
            return;
        }
        self.words(&[source, target, scale, self.pieces as u64, way.count as u64]);
        let numbers = [way.kind, layout.dims as i32, way.piece as i32, way.inner as i32];
        self.bytes.extend_from_slice(bytemuck::cast_slice(&numbers));
        self.words(&layout.axes);
        self.jobs += 1;
        self.pieces += way.count.div_ceil(way.piece);
    }

    /// The table of these merges.
    ///
    /// # Errors
    /// When a type does not fit.
    pub fn merges(jobs: &[Merge]) -> Result<Table, Why> {
        let mut table = Table::default();
        for job in jobs.iter().filter(|j| j.rows * j.cols > 0) {
            let kind = float_number(job.dtype).ok_or_else(|| Why::new(format!("adapters of {}", job.dtype)))?;
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

/// `W + scale·up·down`, rounded to the type of `W`.
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
    /// Element type of `W` and the result.
    pub dtype: DType,
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

    fn axis(size: usize, from: usize, to: usize) -> Axis {
        Axis { size, from, to, by: 0 }
    }

    /// Channels last, of 64 x 32 windows of 9.
    fn channels_last() -> Vec<Axis> {
        vec![axis(64, 288, 288), axis(9, 1, 32), axis(32, 9, 1)]
    }

    /// What is done with a move from and to these addresses.
    fn kind(layout: &Layout, source: u64, target: u64) -> i32 {
        let mut table = Table::default();
        table.push(layout, Places { source, target, scale: 0 });
        i32::from_ne_bytes(table.bytes[40..44].try_into().expect("four bytes"))
    }

    #[test]
    fn jobs_have_the_sizes_of_the_structures() {
        let mut table = Table::default();
        let layout = Layout::run((DType::F32, DType::F16), 10_000).expect("a cast");
        for _ in 0..2 {
            table.push(&layout, Places { source: 1, target: 2, scale: 0 });
        }
        table.push(
            &Layout::run((DType::F32, DType::F16), 0).expect("nothing"),
            Places { source: 1, target: 2, scale: 0 },
        );
        assert_eq!((table.bytes.len(), table.jobs, table.pieces), (2 * LAYOUT_BYTES, 2, 6));
        let merge =
            Merge { source: 1, target: 2, up: 3, down: 4, dtype: DType::F16, rows: 100, cols: 65, rank: 4, scale: 1.0 };
        let table = Table::merges(&[merge]).expect("it fits");
        assert_eq!((table.bytes.len(), table.pieces), (80, 4));
        assert_eq!(table.bytes.len(), MERGE_BYTES);
        let table = Table::pairs(&[Pair { first: 1, second: 2, bytes: 0 }]);
        assert_eq!((table.bytes.len(), table.pieces), (PAIR_BYTES, 1));
    }

    #[test]
    fn short_axes_of_neighbors_go_last() {
        assert_eq!(short_axis_last(channels_last()), (vec![axis(64, 288, 288), axis(32, 9, 1), axis(9, 1, 32)], 9));
        let as_it_is = vec![axis(64, 9, 1), axis(9, 1, 64)];
        assert_eq!(short_axis_last(as_it_is.clone()), (as_it_is, 1));
    }

    #[test]
    fn neighbors_are_joined() {
        assert_eq!(join(&[axis(2, 12, 12), axis(1, 5, 7), axis(3, 4, 4), axis(4, 1, 1)]), [axis(24, 1, 1)]);
        assert_eq!(join(&[axis(3, 1, 4), axis(4, 3, 1)]).len(), 2);
    }

    #[test]
    fn wide_words_are_moved_where_all_of_them_lie_at_their_addresses() {
        let halves = (DType::F16, DType::F16);
        let layout = |axes: &[Axis]| Layout::new(halves, false, axes).expect("halves");
        assert_eq!(kind(&layout(&[axis(1001, 1, 1)]), 32, 64), 13);
        assert_eq!(kind(&layout(&[axis(1001, 1, 1)]), 34, 64), 10);
        assert_eq!(kind(&layout(&channels_last()), 32, 64), 14);
        assert_eq!(kind(&layout(&channels_last()), 32, 66), 10);
        // Windows of 36 channels: rows of the target begin between wide words.
        assert_eq!(kind(&layout(&[axis(64, 324, 324), axis(9, 1, 36), axis(36, 9, 1)]), 32, 64), 10);
        // A slice of the source, and a part of wider rows.
        assert_eq!(kind(&layout(&[axis(64, 576, 288), axis(9, 1, 32), axis(32, 9, 1)]), 32, 64), 10);
        assert_eq!(kind(&layout(&[axis(64, 288, 324), axis(9, 1, 36), axis(32, 9, 1)]), 32, 64), 10);
        let scaled = Layout::new(halves, true, &channels_last()).expect("halves");
        assert_eq!(kind(&scaled, 32, 64), 4);
    }

    #[test]
    fn pieces_hold_whole_columns_and_fit_into_shared_memory() {
        for (dtype, inner) in [(DType::F16, 9), (DType::F32, 9), (DType::F16, 2), (DType::F32, 16)] {
            let columns = 64;
            let axes = [axis(100, columns * inner, columns * inner), axis(inner, 1, columns), axis(columns, inner, 1)];
            let layout = Layout::new((dtype, dtype), false, &axes).expect("it fits");
            let wide = layout.wide.expect("wide words");
            assert!(wide.piece > 0 && wide.piece * dtype.size() <= ROOM, "{dtype} {inner}: {wide:?}");
            assert!(wide.piece.is_multiple_of(inner * WIDE / dtype.size()), "{dtype} {inner}: {wide:?}");
        }
    }
}
