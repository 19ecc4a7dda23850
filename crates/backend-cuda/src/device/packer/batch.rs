//! Some slots made together: their sources lie in one piece of staging memory, and three launches make them all: casts, merges,
//! moves.

use std::{borrow::Cow, collections::HashMap};

use regraft_backend::{PackError, PackJob};
use regraft_tensor::{AlignedVec, DType, Tensor};
use regraft_weights::{Move, MovePlan};

use super::{
    super::lane::{ALIGN, DIRECT_FROM, Lane, Part},
    resident::Resident,
    slot::{Form, SlotPlan},
};
use crate::{
    CudaError,
    driver::{self, Context, Event, Span, Stream},
    kernels::{
        Why,
        pack::{LAYOUT_BYTES, Layout, MERGE_BYTES, Merge, Places, Table},
    },
};

/// A batch takes so much staging memory: it is made while the next one is copied, and the last one when all is copied.
const FULL: usize = 64 << 20;
/// Where little is staged, it has slots of so many bytes: the device has begun while the next one is laid out, and each launch has a tail.
pub(super) const FULL_OF_SLOTS: usize = 512 << 20;
/// The first one has fewer: the device has nothing to do until it comes.
pub(super) const FIRST: usize = 256 << 20;

/// Slots to be made, with what is uploaded for them.
#[derive(Default)]
pub(super) struct Batch<'a> {
    /// Large uploads.
    large: Uploads<'a>,
    /// Small ones, which come behind those: they take one copy together.
    small: Uploads<'a>,
    /// Bytes that are computed from those.
    computed: usize,
    /// What is staged already, by the address and length of its bytes.
    staged: HashMap<(usize, usize), Place>,
    casts: Vec<Cast>,
    merges: Vec<Merging>,
    moves: Vec<Moving<'a>>,
    /// Tensors whose copies stay on the device, in memory that they share, and where there.
    residents: Vec<(&'a Tensor, usize)>,
    resident_bytes: usize,
    /// Copies that are read.
    copies: Vec<driver::Region>,
    /// Bytes of the slots.
    slot_bytes: usize,
}

enum Upload<'a> {
    Given(&'a [u8]),
    Made(AlignedVec),
}

impl Upload<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Upload::Given(bytes) => bytes,
            Upload::Made(bytes) => bytes.bytes(),
        }
    }
}

/// Uploads that lie side by side.
#[derive(Default)]
struct Uploads<'a> {
    all: Vec<(Upload<'a>, usize)>,
    len: usize,
}

impl<'a> Uploads<'a> {
    /// Where it will be.
    fn push(&mut self, upload: Upload<'a>) -> usize {
        let at = self.len;
        self.len += upload.bytes().len().next_multiple_of(ALIGN);
        self.all.push((upload, at));
        at
    }

    /// Those of a place that begins at `first`.
    fn parts(&self, first: usize) -> impl Iterator<Item = Part<'_>> {
        self.all.iter().map(move |(upload, at)| Part { bytes: upload.bytes(), at: first + at })
    }
}

/// A place in what is uploaded, for now or to stay, in what is computed from that, or elsewhere on the device.
#[derive(Clone, Copy)]
enum Place {
    Large(usize),
    Small(usize),
    Resident(usize),
    Computed(usize),
    Device(u64),
}

/// Addresses of staging memory.
#[derive(Clone, Copy)]
struct Staging {
    large: u64,
    small: u64,
    resident: u64,
    computed: u64,
}

impl Place {
    fn address(self, staging: Staging) -> u64 {
        match self {
            Place::Large(at) => staging.large + at as u64,
            Place::Small(at) => staging.small + at as u64,
            Place::Resident(at) => staging.resident + at as u64,
            Place::Computed(at) => staging.computed + at as u64,
            Place::Device(address) => address,
        }
    }
}

struct Cast {
    from: Place,
    to: Place,
    types: (DType, DType),
    len: usize,
}

struct Merging {
    from: Place,
    to: Place,
    up: Place,
    down: Place,
    scale: f64,
    dtype: DType,
    sizes: (usize, usize, usize),
}

struct Moving<'a> {
    /// Where the source is, and the first byte that is read.
    from: (Place, usize),
    to: u64,
    /// Where the factors are, and the first of them.
    scale: Option<(Place, usize)>,
    layout: Cow<'a, Layout>,
}

impl<'a> Batch<'a> {
    /// An empty one, for so many slots.
    pub(super) fn with_room(slots: usize) -> Batch<'a> {
        Batch { moves: Vec::with_capacity(slots), ..Batch::default() }
    }

    /// Bytes of staging memory that are asked for.
    fn len(&self) -> usize {
        self.large.len + self.small.len + self.resident_bytes + self.computed
    }

    /// Whether it is to be sent off: at the latest with so many bytes of slots.
    pub(super) fn is_full(&self, slot_bytes: usize) -> bool {
        self.len() >= FULL || self.slot_bytes >= slot_bytes
    }

    /// Adds a slot that moves make.
    pub(super) fn add(
        &mut self,
        device: &str,
        resident: &mut Resident,
        slot: &'a SlotPlan,
        plan: &'a MovePlan,
        forms: &[Form<'a>],
        job: &PackJob<'a>,
    ) -> Result<(), PackError> {
        let recipe = |why: String| PackError::Recipe { slot: job.slot, why };
        let mut places = Vec::with_capacity(forms.len());
        let out = Span::from(&job.out);
        for (index, (given, form)) in job.given.iter().zip(forms).enumerate() {
            let moved = plan.moves.iter().any(|m| m.source as usize == index);
            let (own, shape) = &slot.sources[index];
            if given.tensor.shape() != shape {
                return Err(recipe(format!("a source of shape {:?} is given as {:?}", shape, given.tensor.shape())));
            }
            if !moved {
                places.push(None);
                continue;
            }
            let piece = match form {
                Form::Merged(_) => slot.piece(index),
                Form::AsGiven | Form::Cast => None,
            };
            let in_slot = |m: &Move| out.part(m.to * own.size(), m.len() * own.size()).map(Span::address);
            let piece = piece.map(in_slot).transpose();
            let piece = piece.map_err(|_| recipe("the moves are longer than the slot".into()))?;
            let made = self.source(device, resident, given.tensor, *form, *own, piece)?;
            places.push(if piece.is_some() { None } else { Some(made) });
        }
        let mut scales = Vec::with_capacity(plan.scales.len());
        for program in &plan.scales {
            let of = |&s: &u32| given_as(job, slot, s as usize);
            let value = program.value(&program.sources.iter().map(of).collect::<Vec<_>>()).map_err(recipe)?;
            let values = value.as_slice::<f32>().ok_or_else(|| recipe("factors are of f32".into()))?;
            scales.push((self.made(AlignedVec::from_slice(values)), values.len()));
        }
        for (index, m) in plan.moves.iter().enumerate() {
            let Some((from, dtype)) = places[m.source as usize] else { continue };
            let scale = m.scale.map(|(index, first)| (scales[index as usize], first));
            let reach =
                |first: usize| first + m.axes.iter().map(|axis| (axis.size.max(1) - 1) * axis.by).sum::<usize>();
            if scale.is_some_and(|((_, len), first)| !m.is_empty() && reach(first) >= len) {
                return Err(recipe("there are fewer factors than columns".into()));
            }
            let last = m.to + m.axes.iter().map(|axis| (axis.size.max(1) - 1) * axis.to).sum::<usize>() + 1;
            let size = slot.dtype.size();
            out.part(0, last * size).map_err(|_| recipe("the moves are longer than the slot".into()))?;
            let scale = scale.map(|((factors, _), first)| (factors, first));
            let (from, to) = ((from, m.from * dtype.size()), out.address() + (m.to * size) as u64);
            let layout = slot.layout(index, m, dtype).map_err(|why| recipe(why.to_string()))?;
            self.moves.push(Moving { from, to, scale, layout });
        }
        self.slot_bytes += job.out.len();
        Ok(())
    }

    /// Adds a slot whose contents the host has made.
    pub(super) fn add_made(&mut self, bytes: AlignedVec, job: &PackJob<'a>) -> Result<(), PackError> {
        let dtype = if bytes.len().is_multiple_of(8) { DType::I64 } else { DType::U8 };
        let layout = Layout::run((dtype, dtype), bytes.len() / dtype.size());
        let layout = layout.map_err(|why| PackError::Recipe { slot: job.slot, why: why.to_string() })?;
        let from = (self.made(bytes), 0);
        let to = Span::from(&job.out).address();
        self.moves.push(Moving { from, to, scale: None, layout: Cow::Owned(layout) });
        self.slot_bytes += job.out.len();
        Ok(())
    }

    /// Where a source is once it is in its form, and its dtype there. A merged one goes to the address `piece`, if there is one.
    fn source(
        &mut self,
        device: &str,
        resident: &mut Resident,
        tensor: &'a Tensor,
        form: Form<'a>,
        own: DType,
        piece: Option<u64>,
    ) -> Result<(Place, DType), PackError> {
        let given = tensor.dtype();
        let at = match form {
            _ if let Some(address) = tensor.remote_on(device) => Place::Device(address),
            Form::Merged(_) => self.resident(resident, tensor),
            Form::AsGiven | Form::Cast => self.given(tensor.bytes()),
        };
        let len = tensor.numel();
        let cast = |batch: &mut Batch<'a>| {
            let to = Place::Computed(batch.room(len * own.size()));
            batch.casts.push(Cast { from: at, to, types: (given, own), len });
            to
        };
        Ok(match form {
            Form::AsGiven => (at, given),
            Form::Cast => (cast(self), own),
            Form::Merged(product) => {
                let from = if given == own { at } else { cast(self) };
                let to = piece.map_or_else(|| Place::Computed(self.room(len * own.size())), Place::Device);
                let (up, down, scale) = match product.single() {
                    Some((factors, scale)) => {
                        (self.resident(resident, &factors.up), self.resident(resident, &factors.down), scale)
                    }
                    None => {
                        let values = product.values();
                        let mut given = |values: &'a [f32]| self.given(bytemuck::cast_slice(values));
                        (given(&values.up), given(&values.down), 1.0)
                    }
                };
                let sizes = product.sizes();
                if sizes.0 * sizes.1 != len {
                    return Err(PackError::Merge("the source is of another size".into()));
                }
                self.merges.push(Merging { from, to, up, down, scale, dtype: own, sizes });
                (to, own)
            }
        })
    }

    /// A source that adapters are merged into, or a factor of one: on the device already, or to be kept there.
    fn resident(&mut self, resident: &mut Resident, tensor: &'a Tensor) -> Place {
        if let Some(copy) = resident.get(tensor) {
            let address = copy.address();
            self.copies.push(copy);
            return Place::Device(address);
        }
        let bytes = tensor.bytes();
        // Where there is no room for a copy it is staged again the next time.
        if self.staged.contains_key(&key(bytes)) || !resident.keeps(tensor, self.resident_bytes) {
            return self.given(bytes);
        }
        let at = self.resident_bytes;
        self.resident_bytes += bytes.len().next_multiple_of(ALIGN);
        self.residents.push((tensor, at));
        self.staged.insert(key(bytes), Place::Resident(at));
        Place::Resident(at)
    }

    /// Where the caller's bytes are staged; they are uploaded once.
    fn given(&mut self, bytes: &'a [u8]) -> Place {
        if let Some(place) = self.staged.get(&key(bytes)) {
            return *place;
        }
        let place = self.upload(Upload::Given(bytes));
        self.staged.insert(key(bytes), place);
        place
    }

    /// Where bytes that were made are staged.
    fn made(&mut self, bytes: AlignedVec) -> Place {
        self.upload(Upload::Made(bytes))
    }

    fn upload(&mut self, upload: Upload<'a>) -> Place {
        match upload.bytes().len() < DIRECT_FROM {
            true => Place::Small(self.small.push(upload)),
            false => Place::Large(self.large.push(upload)),
        }
    }

    fn room(&mut self, bytes: usize) -> usize {
        let at = self.computed;
        self.computed += bytes.next_multiple_of(ALIGN);
        at
    }

    /// The tables of the three launches.
    fn tables(&self, staging: Staging) -> Result<[Table; 3], Why> {
        let address = |place: Place| place.address(staging);
        let mut casts = Table::with_room(self.casts.len());
        for c in &self.casts {
            let places = Places { source: address(c.from), target: address(c.to), scale: 0 };
            casts.push(&Layout::run(c.types, c.len)?, places);
        }
        let merge = |m: &Merging| Merge {
            source: address(m.from),
            target: address(m.to),
            up: address(m.up),
            down: address(m.down),
            dtype: m.dtype,
            rows: m.sizes.0,
            cols: m.sizes.1,
            rank: m.sizes.2,
            scale: m.scale,
        };
        let merges: Vec<Merge> = self.merges.iter().map(merge).collect();
        let mut moves = Table::with_room(self.moves.len());
        for Moving { from: (place, first), to, scale, layout } in &self.moves {
            let source = address(*place) + *first as u64;
            let scale = scale.map_or(0, |(factors, first)| address(factors) + first as u64 * 4);
            moves.push(layout, Places { source, target: *to, scale });
        }
        Ok([casts, Table::merges(&merges)?, moves])
    }

    /// Puts what makes the slots into the lane's streams.
    pub(super) fn run(
        self,
        context: &Context,
        lane: &mut Lane,
        mut launch: impl FnMut(&Stream, Entry, &Table, Span) -> Result<(), CudaError>,
    ) -> Result<InFlight<'a>, CudaError> {
        let refused = |why: Why| CudaError::NoAlgorithm { library: "the packer", problem: why.to_string() };
        let sizes = [self.casts.len() * LAYOUT_BYTES, self.merges.len() * MERGE_BYTES, self.moves.len() * LAYOUT_BYTES];
        let sizes = sizes.map(|bytes| bytes.next_multiple_of(ALIGN));
        let tables_at = self.large.len + self.small.len;
        let computed_at = tables_at + sizes.iter().sum::<usize>();
        let staging = driver::Buffer::new(context, computed_at + self.computed)?;
        let span = staging.region().span();
        // Each piece of memory takes a wait.
        let has_residents = self.resident_bytes > 0;
        let residents = has_residents.then(|| driver::Buffer::new(context, self.resident_bytes)).transpose()?;
        let residents = residents.map(|buffer| buffer.region());
        let addresses = Staging {
            large: span.address(),
            small: span.address() + self.large.len as u64,
            resident: residents.as_ref().map_or(0, driver::Region::address),
            computed: span.address() + computed_at as u64,
        };
        let tables = self.tables(addresses).map_err(refused)?;
        let mut at = tables_at;
        let mut table_places = [0; 3];
        for (place, size) in table_places.iter_mut().zip(sizes) {
            *place = at;
            at += size;
        }
        let mut parts: Vec<Part<'_>> = self.large.parts(0).chain(self.small.parts(self.large.len)).collect();
        parts.extend(tables.iter().zip(table_places).map(|(table, at)| Part { bytes: &table.bytes, at }));
        let to_stay = self.residents.iter().map(|(tensor, at)| Part { bytes: tensor.bytes(), at: *at });
        let to_stay: Vec<Part<'_>> = to_stay.collect();
        let end = Event::new(context)?;
        let mut send = || {
            lane.upload(&parts, span)?;
            if let Some(residents) = &residents {
                lane.upload(&to_stay, residents.span())?;
            }
            lane.hand_over()?;
            let entries = [Entry::Pack, Entry::Merge, Entry::Pack];
            for ((table, at), entry) in tables.iter().zip(table_places).zip(entries) {
                launch(&lane.kernels, entry, table, span.part(at, table.bytes.len())?)?;
            }
            lane.kernels.record(&end)
        };
        if let Err(error) = send() {
            // What was sent still uses memory, which goes now.
            let _ = lane.synchronize();
            return Err(error);
        }
        let memory = [staging.region()].into_iter().chain(self.copies).collect();
        let residents = residents.map(|memory| (memory, self.residents));
        Ok(InFlight { end, memory, residents, slot_bytes: self.slot_bytes })
    }
}

/// Slots that are on their way, and what they are made of: whoever drops this has waited for the end.
pub(super) struct InFlight<'a> {
    end: Event,
    /// What is read: staging memory, and copies that were there.
    #[expect(dead_code, reason = "held until the work is over")]
    memory: Vec<driver::Region>,
    /// New copies that stay, and where each is in their memory.
    residents: Option<(driver::Region, Vec<(&'a Tensor, usize)>)>,
    /// Bytes of the slots.
    pub(super) slot_bytes: usize,
}

impl InFlight<'_> {
    /// Waits for them. Copies that stay on the device are handed to `resident`.
    pub(super) fn finish(self, resident: &mut Resident) -> Result<(), CudaError> {
        self.end.wait()?;
        if let Some((memory, tensors)) = self.residents {
            for (tensor, at) in tensors {
                resident.keep(tensor, memory.part(at, tensor.byte_count())?);
            }
        }
        Ok(())
    }
}

/// A kernel over a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Pack,
    Merge,
    Differ,
}

/// A source in the program's dtype, on the host.
fn given_as(job: &PackJob<'_>, slot: &SlotPlan, source: usize) -> Tensor {
    job.given[source].tensor.cast(slot.sources[source].0)
}

fn key(bytes: &[u8]) -> (usize, usize) {
    (bytes.as_ptr() as usize, bytes.len())
}
