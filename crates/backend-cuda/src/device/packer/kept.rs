//! Sources that lie in slots, back in their own order: to be read, or compared with what is given.

use std::cmp::Reverse;

use regraft_backend::{Comparison, KeptSource, MemoryKind, OutOfMemory, Pace, PackError};
use regraft_tensor::{AlignedVec, DType, Tensor};
use regraft_weights::{Move, MoveAxis};

use super::{
    super::lane::{ALIGN, Lane, Part},
    CudaPacker, STAGING,
    batch::Entry,
};
use crate::{
    CudaError,
    driver::{self, Span},
    kernels::pack::{Axis, LAYOUT_BYTES, Layout, PAIR_BYTES, Pair, Places, Table},
};

/// Elements that are compared first: of weights that differ, nearly all do so there, and the rest need not be uploaded twice.
const BEGINNING: usize = 4096;

/// How a source that lies in a slot bit for bit is read back.
#[derive(Debug)]
pub(super) struct Kept {
    /// All of it, in the order of the source.
    whole: Vec<Back>,
    /// Its first elements, about [`BEGINNING`].
    beginning: [Back; 1],
}

/// A move the other way: from a slot to the order of a source. Offsets are in bytes.
#[derive(Debug)]
struct Back {
    /// Of the first element in the slot.
    from: usize,
    /// From there to the end of the last element.
    reach: usize,
    /// Of the first element in the source.
    to: usize,
    /// Bytes of the elements.
    len: usize,
    /// Whether they are neighbors on both sides.
    is_run: bool,
    layout: Layout,
}

/// How much of two contents is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Beginning,
    Whole,
}

/// A tensor, and the content that it is compared with, of the same dtype and shape.
#[derive(Clone, Copy)]
struct Compared<'a> {
    given: &'a Tensor,
    with: Content<'a>,
}

#[derive(Clone, Copy)]
enum Content<'a> {
    Kept(KeptSource<'a>),
    Tensor(&'a Tensor),
}

/// Bytes on the device: a caller's, those of a slot, or at an offset of the uploaded or the gathered part of staging memory.
#[derive(Clone, Copy)]
enum Place {
    Given(u64),
    InSlot(Span),
    Uploaded(usize),
    Gathered(usize),
}

/// Staging memory that is being laid out: what is uploaded comes first, then what is gathered from slots.
#[derive(Default)]
struct Staging<'a> {
    uploads: Vec<Part<'a>>,
    uploaded: usize,
    gathers: Vec<Gather<'a>>,
    gathered: usize,
}

/// Moves of a slot's elements back to the order of their source.
struct Gather<'a> {
    memory: Span,
    moves: &'a [Back],
    at: usize,
}

impl Kept {
    /// Of a source that these moves take to a slot of its dtype, each of its elements once; `None` where the kernel does not take
    /// them the other way.
    pub(super) fn new(dtype: DType, moves: &[&Move]) -> Option<Kept> {
        let whole = moves.iter().map(|m| Back::of(m, dtype)).collect::<Option<_>>()?;
        Some(Kept { whole, beginning: [Back::of(&beginning(moves.first()?, BEGINNING), dtype)?] })
    }

    fn of(&self, extent: Extent) -> &[Back] {
        match extent {
            Extent::Whole => &self.whole,
            Extent::Beginning => &self.beginning,
        }
    }
}

impl Back {
    fn of(m: &Move, dtype: DType) -> Option<Back> {
        let size = dtype.size();
        let axis = |axis: &MoveAxis| Axis { size: axis.size, from: axis.to, to: axis.from, by: 0 };
        let layout = Layout::new((dtype, dtype), false, &m.axes.iter().map(axis).collect::<Vec<_>>()).ok()?;
        let last = m.axes.iter().map(|axis| (axis.size.max(1) - 1) * axis.to).sum::<usize>();
        let (from, reach, to) = (m.to * size, (last + 1) * size, m.from * size);
        Some(Back { from, reach, to, len: m.len() * size, is_run: m.is_run(), layout })
    }
}

impl<'a> Staging<'a> {
    fn upload(&mut self, bytes: &'a [u8]) -> Place {
        let at = self.room(bytes.len());
        self.uploads.push(Part { bytes, at });
        Place::Uploaded(at)
    }

    /// Room for bytes that are to be uploaded.
    fn room(&mut self, bytes: usize) -> usize {
        let at = self.uploaded;
        self.uploaded += bytes.next_multiple_of(ALIGN);
        at
    }

    /// What these moves read from a slot: where it lies, if in one piece, else gathered.
    fn gather(&mut self, memory: Span, moves: &'a [Back]) -> Result<Place, CudaError> {
        if let [one] = moves
            && one.is_run
        {
            return Ok(Place::InSlot(memory.part(one.from, one.len)?));
        }
        let at = self.gathered;
        self.gathered += moves.iter().map(|back| back.len).sum::<usize>().next_multiple_of(ALIGN);
        self.gathers.push(Gather { memory, moves, at });
        Ok(Place::Gathered(at))
    }

    /// The table that gathers.
    fn table(&self, staging: Span) -> Result<Table, CudaError> {
        let mut table = Table::with_room(self.moves());
        for Gather { memory, moves, at } in &self.gathers {
            let to = Place::Gathered(*at).address(staging, self.uploaded);
            for back in *moves {
                let source = memory.part(back.from, back.reach)?.address();
                table.push(&back.layout, Places { source, target: to + back.to as u64, scale: 0 });
            }
        }
        Ok(table)
    }

    fn moves(&self) -> usize {
        self.gathers.iter().map(|gather| gather.moves.len()).sum()
    }
}

impl Place {
    /// The address, with staging memory whose gathered part begins at `gathered`.
    fn address(self, staging: Span, gathered: usize) -> u64 {
        match self {
            Place::Given(address) => address,
            Place::InSlot(span) => span.address(),
            Place::Uploaded(at) => staging.address() + at as u64,
            Place::Gathered(at) => staging.address() + (gathered + at) as u64,
        }
    }
}

impl CudaPacker {
    /// The bytes of sources that slots keep.
    pub(super) fn kept_tensors(&self, kept: &[KeptSource<'_>]) -> Result<Vec<Tensor>, PackError> {
        let mut tensors = Vec::with_capacity(kept.len());
        for group in groups(kept, |kept| self.source_bytes(kept)) {
            tensors.extend(self.kept_at_once(group)?);
        }
        Ok(tensors)
    }

    fn kept_at_once(&self, kept: &[KeptSource<'_>]) -> Result<Vec<Tensor>, PackError> {
        let mut staging = Staging::default();
        let mut places = Vec::with_capacity(kept.len());
        for kept in kept {
            let slot = &self.slots[kept.slot];
            let nothing = || PackError::Recipe { slot: kept.slot, why: "it does not keep this source".into() };
            let moves = slot.kept(kept.source).ok_or_else(nothing)?.of(Extent::Whole);
            places.push(staging.gather(Span::from(kept.memory), moves).map_err(|e| self.failed(e))?);
        }
        let table_at = staging.room(staging.moves() * LAYOUT_BYTES);
        let memory = driver::Buffer::new(&self.cx.context, staging.uploaded + staging.gathered);
        let memory = memory.map_err(|e| self.failed(e))?.region();
        self.gather(&staging, memory.span(), table_at).map_err(|e| self.failed(e))?;
        let read = |(kept, place): (&KeptSource<'_>, &Place)| {
            let (dtype, shape) = &self.slots[kept.slot].sources[kept.source];
            let bytes = self.source_bytes(kept);
            let refused = |_| OutOfMemory { device: "cpu".into(), bytes, kind: MemoryKind::Slot, free: None };
            let mut data = AlignedVec::try_to_stay(bytes).map_err(refused)?;
            let from = match *place {
                Place::InSlot(span) => Ok(span),
                Place::Gathered(at) => memory.span().part(staging.uploaded + at, bytes),
                Place::Given(_) | Place::Uploaded(_) => unreachable!("sources of slots are there or gathered"),
            };
            let downloaded = from.and_then(|from| self.lane().download(from, data.bytes_mut()));
            downloaded.map_err(|e| self.failed(e))?;
            Ok(Tensor::new(*dtype, shape.clone(), data.into()).expect("as many bytes as the shape has"))
        };
        kept.iter().zip(&places).map(read).collect()
    }

    /// Brings the gathered part of staging memory about; the table goes to `table_at`.
    fn gather(&self, staging: &Staging<'_>, memory: Span, table_at: usize) -> Result<(), CudaError> {
        if staging.gathers.is_empty() {
            return Ok(());
        }
        let table = staging.table(memory)?;
        let lane = &mut *self.lane();
        lane.upload(&[Part { bytes: &table.bytes, at: table_at }], memory)?;
        self.launch(&lane.stream, Entry::Pack, &table, memory.part(table_at, table.bytes.len())?, None, Pace::Fast)?;
        lane.stream.synchronize()
    }

    /// For each of these whether there is a difference.
    pub(super) fn differences(&self, pairs: &[Comparison<'_>]) -> Result<Vec<bool>, PackError> {
        // One answer for each pair; `true` for what cannot be the same.
        let mut differ = vec![true; pairs.len()];
        let (mut here, mut on_host) = (Vec::new(), Vec::new());
        for (i, pair) in pairs.iter().enumerate() {
            match *pair {
                Comparison::Kept(kept, given) => {
                    let (dtype, shape) = &self.slots[kept.slot].sources[kept.source];
                    if given.dtype() == *dtype && given.shape() == shape {
                        here.push((i, Compared { given, with: Content::Kept(kept) }));
                    }
                }
                Comparison::Tensors(one, given) if given.is_remote() => {
                    if given.dtype() == one.dtype() && given.shape() == one.shape() {
                        here.push((i, Compared { given, with: Content::Tensor(one) }));
                    }
                }
                Comparison::Tensors(..) => on_host.push(i),
            }
        }
        let tensors: Vec<Comparison<'_>> = on_host.iter().map(|&i| pairs[i]).collect();
        for (i, differs) in on_host.into_iter().zip(self.host.differ(&tensors)?) {
            differ[i] = differs;
        }
        for extent in [Extent::Beginning, Extent::Whole] {
            let compared: Vec<Compared<'_>> = here.iter().map(|(_, compared)| *compared).collect();
            let bytes = |compared: &Compared<'_>| match extent {
                Extent::Beginning => 2 * BEGINNING * compared.given.dtype().size(),
                Extent::Whole => 2 * compared.given.byte_count(),
            };
            let mut found = Vec::with_capacity(compared.len());
            for group in groups(&compared, bytes) {
                found.extend(self.differ_at_once(group, extent).map_err(|e| self.failed(e))?);
            }
            for ((i, _), differs) in here.iter().zip(&found) {
                differ[*i] = *differs;
            }
            let mut found = found.into_iter();
            here.retain(|(_, compared)| found.next() == Some(false) && compared.given.numel() > BEGINNING);
        }
        Ok(differ)
    }

    fn differ_at_once(&self, pairs: &[Compared<'_>], extent: Extent) -> Result<Vec<bool>, CudaError> {
        let mut staging = Staging::default();
        let mut places = Vec::with_capacity(pairs.len());
        for Compared { given, with } in pairs {
            let size = given.dtype().size();
            let most = if extent == Extent::Whole { usize::MAX } else { BEGINNING };
            let (former, len) = match with {
                Content::Kept(kept) => {
                    let moves = self.slots[kept.slot].kept(kept.source).map_or(&[][..], |kept| kept.of(extent));
                    let len: usize = moves.iter().map(|back| back.len).sum();
                    (staging.gather(Span::from(kept.memory), moves)?, len)
                }
                Content::Tensor(tensor) => {
                    let len = tensor.numel().min(most) * size;
                    (staging.upload(&tensor.bytes()[..len]), len)
                }
            };
            let new = match given.remote_on(&self.cx.name) {
                Some(address) => Place::Given(address),
                None => staging.upload(&given.bytes()[..len]),
            };
            places.push((former, new, len));
        }
        let flags = vec![0u8; pairs.len() * 4];
        let flags_at = staging.room(flags.len());
        let pairs_at = staging.room(pairs.len() * PAIR_BYTES);
        let moves_at = staging.room(staging.moves() * LAYOUT_BYTES);
        let memory = driver::Buffer::new(&self.cx.context, staging.uploaded + staging.gathered)?.region();
        let (span, gathered) = (memory.span(), staging.uploaded);
        let pair = |&(one, other, bytes): &(Place, Place, usize)| Pair {
            first: one.address(span, gathered),
            second: other.address(span, gathered),
            bytes,
        };
        let moves = staging.table(span)?;
        let table = Table::pairs(&places.iter().map(pair).collect::<Vec<_>>());
        let mut parts = staging.uploads;
        parts.push(Part { bytes: &flags, at: flags_at });
        parts.push(Part { bytes: &table.bytes, at: pairs_at });
        parts.push(Part { bytes: &moves.bytes, at: moves_at });
        let lane = &mut *self.lane();
        let mut found = flags.clone();
        let mut compare = |lane: &mut Lane| {
            lane.upload(&parts, span)?;
            self.launch(&lane.stream, Entry::Pack, &moves, span.part(moves_at, moves.bytes.len())?, None, Pace::Fast)?;
            let flags_span = span.part(flags_at, flags.len())?;
            let jobs = span.part(pairs_at, table.bytes.len())?;
            self.launch(&lane.stream, Entry::Differ, &table, jobs, Some(flags_span), Pace::Fast)?;
            lane.download(flags_span, &mut found)
        };
        if let Err(error) = compare(lane) {
            // What was sent still uses memory, which goes now.
            let _ = lane.synchronize();
            return Err(error);
        }
        Ok(found.chunks_exact(4).map(|flag| flag != [0; 4]).collect())
    }

    fn source_bytes(&self, kept: &KeptSource<'_>) -> usize {
        let (dtype, shape) = &self.slots[kept.slot].sources[kept.source];
        Tensor::byte_len(*dtype, shape).expect("a source of an engine has a size")
    }
}

/// Neighbors that staging memory holds together, or one where it is larger.
fn groups<T>(all: &[T], bytes: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = all;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = |one: &&T| {
            sum += bytes(one).next_multiple_of(ALIGN);
            sum <= STAGING
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (now, later) = rest.split_at(count);
        rest = later;
        (!now.is_empty()).then_some(now)
    })
}

/// The part of a move that reads the first elements of its source, about as many as `most`. The move takes all elements of a
/// source once.
fn beginning(whole: &Move, most: usize) -> Move {
    let mut part = whole.clone();
    let mut order: Vec<usize> = (0..part.axes.len()).collect();
    order.sort_by_key(|&axis| Reverse(part.axes[axis].from));
    let mut inner = part.len();
    for axis in order {
        let axis = &mut part.axes[axis];
        inner /= axis.size.max(1);
        axis.size = axis.size.min((most / inner.max(1)).max(1));
        if axis.size > 1 {
            break;
        }
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(size: usize, from: usize, to: usize) -> MoveAxis {
        MoveAxis { size, from, to, by: 0 }
    }

    #[test]
    fn the_beginning_of_a_move_is_the_beginning_of_its_source() {
        // Channels last: 64 x 32 x 9 becomes 64 x 9 x 32.
        let whole = Move {
            source: 0,
            from: 0,
            to: 0,
            axes: vec![axis(64, 288, 288), axis(9, 1, 32), axis(32, 9, 1)],
            scale: None,
        };
        for most in [1, 10, 300, 2048, 1 << 20] {
            let part = beginning(&whole, most);
            assert!((1..=most.max(1)).contains(&part.len()), "{most}: {}", part.len());
            let mut read: Vec<usize> = Vec::new();
            for a in 0..part.axes[0].size {
                for b in 0..part.axes[1].size {
                    read.extend((0..part.axes[2].size).map(|c| a * 288 + b + c * 9));
                }
            }
            read.sort_unstable();
            assert_eq!(read, (0..part.len()).collect::<Vec<_>>(), "{most}");
        }
    }

    #[test]
    fn groups_are_of_neighbors_and_hold_all() {
        let sizes = [STAGING, 1, 1, STAGING - 2 * ALIGN, 2 * STAGING, 5];
        let found: Vec<Vec<usize>> = groups(&sizes, |size| *size).map(<[usize]>::to_vec).collect();
        assert_eq!(found, [vec![STAGING], vec![1, 1, STAGING - 2 * ALIGN], vec![2 * STAGING], vec![5]]);
        assert_eq!(groups(&[], |size: &usize| *size).count(), 0);
    }
}
