//! Slots on the device.
//!
//! Sources are uploaded as they are given and packed there, many slots in a few launches; products of adapters are added on the
//! way. What does more than move, scale and cast is made on the host by the CPU's packer and uploaded.

mod batch;
mod resident;
mod slot;

use std::{
    fmt,
    iter::zip,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use regraft_backend::{
    Comparison, Given, KeptSource, MemoryKind, OutOfMemory, Pace, PackError, PackJob, Packer, RegionMut, SlotLayout,
    StageObserver, adapter::Overlay,
};
use regraft_tensor::{AlignedVec, Tensor};
use regraft_weights::RefitMap;

use self::{
    batch::{Batch, Entry},
    resident::Resident,
    slot::SlotPlan,
};
use super::{
    Cx,
    lane::{ALIGN, Lane, Part},
};
use crate::{
    CudaError,
    driver::{self, Args, Function, Launch, Span},
    kernels::pack::{PAIR_BYTES, Pair, Table, source},
};

/// Makes slots of a program on a GPU.
pub(super) struct CudaPacker {
    cx: Cx,
    host: Arc<dyn Packer>,
    slots: Vec<SlotPlan>,
    kernels: PackKernels,
    lane: Arc<Mutex<Lane>>,
    resident: Mutex<Resident>,
}

/// The kernels over tables.
struct PackKernels {
    pack: Function,
    merge: Function,
    differ: Function,
}

/// Bytes of staging memory that are used at once, where a single slot does not need more.
const STAGING: usize = 256 << 20;
/// The part of the device's memory that copies of adapted sources may take.
const RESIDENT_SHARE: usize = 8;

impl fmt::Debug for CudaPacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaPacker({} slots on {})", self.slots.len(), self.cx.name)
    }
}

impl CudaPacker {
    pub(super) fn new(
        cx: &Cx,
        lane: &Arc<Mutex<Lane>>,
        host: Arc<dyn Packer>,
        map: &RefitMap,
        layouts: &[SlotLayout],
    ) -> Result<CudaPacker, CudaError> {
        let module = cx.kernels.module(&source())?;
        let kernels = PackKernels {
            pack: module.function("pack", 0)?,
            merge: module.function("merge", 0)?,
            differ: module.function("differ", 0)?,
        };
        let resident = Mutex::new(Resident::new(cx.context.info().memory / RESIDENT_SHARE));
        let slots = zip(&map.recipes, layouts).map(|(recipe, layout)| SlotPlan::new(map, recipe, layout)).collect();
        Ok(CudaPacker { cx: cx.clone(), host, slots, kernels, lane: lane.clone(), resident })
    }

    fn lane(&self) -> MutexGuard<'_, Lane> {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resident(&self) -> MutexGuard<'_, Resident> {
        self.resident.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: CudaError) -> PackError {
        match self.cx.refused(&error) {
            Some(refused) => PackError::Memory(refused),
            None => PackError::Device { device: self.cx.name.to_string(), why: error.to_string() },
        }
    }

    /// Puts a kernel over a table into the lane's stream.
    fn launch(
        &self,
        lane: &Lane,
        entry: Entry,
        table: &Table,
        jobs: Span,
        flags: Option<Span>,
        pace: Pace,
    ) -> Result<(), CudaError> {
        if table.pieces == 0 {
            return Ok(());
        }
        let mut args = Args::new();
        args.region(jobs).i32(table.jobs as i32).i64(table.pieces as i64);
        flags.iter().for_each(|flags| _ = args.region(*flags));
        let multiprocessors = self.cx.context.info().multiprocessors as usize;
        let blocks = match pace {
            Pace::Fast => multiprocessors * 8,
            // Most of the device is left to runs.
            Pace::Background => multiprocessors.div_ceil(8),
        };
        let grid = [table.pieces.min(blocks) as u32, 1, 1];
        let function = match entry {
            Entry::Pack => &self.kernels.pack,
            Entry::Merge => &self.kernels.merge,
            Entry::Differ => &self.kernels.differ,
        };
        function.launch(&lane.stream, Launch { grid, block: 256, shared: 0 }, &mut args)
    }

    fn run(&self, batch: Batch<'_>, pace: Pace) -> Result<(), PackError> {
        let (lane, resident) = (&mut *self.lane(), &mut *self.resident());
        let launch = |lane: &Lane, entry, table: &Table, jobs| self.launch(lane, entry, table, jobs, None, pace);
        batch.run(&self.cx.context, lane, resident, launch).map_err(|e| self.failed(e))
    }

    /// Slots that the host makes, side by side, for as long as they are on their way.
    fn make_on_host(&self, jobs: &[&PackJob<'_>], pace: Pace) -> Result<Vec<AlignedVec>, PackError> {
        let memory = |job: &&PackJob<'_>| {
            let bytes = self.slots[job.slot].bytes;
            let refused = |_| OutOfMemory { device: "cpu".into(), bytes, kind: MemoryKind::Slot, free: None };
            AlignedVec::try_zeroed(bytes).map_err(refused)
        };
        let mut made = jobs.iter().map(memory).collect::<Result<Vec<_>, _>>()?;
        let same = zip(jobs, &mut made).map(|(job, made)| PackJob {
            slot: job.slot,
            given: job.given.clone(),
            out: RegionMut::of_host(made.bytes_mut()),
        });
        self.host.pack(same.collect(), pace, &())?;
        Ok(made)
    }

    /// The bytes of a source that a slot keeps.
    fn kept_bytes(&self, kept: &KeptSource<'_>) -> Result<AlignedVec, PackError> {
        let slot = &self.slots[kept.slot];
        let (dtype, shape) = &slot.sources[kept.source];
        let nothing = || PackError::Recipe { slot: kept.slot, why: "it does not keep this source".into() };
        let runs = slot.kept_runs(kept.source).ok_or_else(nothing)?;
        let bytes = Tensor::byte_len(*dtype, shape).map_err(|_| nothing())?;
        let refused = |_| OutOfMemory { device: "cpu".into(), bytes, kind: MemoryKind::Slot, free: None };
        let mut data = AlignedVec::try_to_stay(bytes).map_err(refused)?;
        let memory = Span::from(kept.memory);
        for (first, at, len) in runs {
            let to = data.bytes_mut().get_mut(first..first + len).ok_or_else(nothing)?;
            let from = memory.part(at, len).map_err(|e| self.failed(e))?;
            self.lane().download(from, to).map_err(|e| self.failed(e))?;
        }
        Ok(data)
    }

    /// For each of these whether what the slot keeps differs from the tensor, which has the program's dtype and shape.
    fn differ_from_kept(&self, pairs: &[(KeptSource<'_>, &Tensor)]) -> Result<Vec<bool>, PackError> {
        let mut found = Vec::with_capacity(pairs.len());
        let mut rest = pairs;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |pair: &&(KeptSource<'_>, &Tensor)| {
                bytes += pair.1.byte_count().next_multiple_of(ALIGN);
                bytes <= STAGING
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (now, later) = rest.split_at(count);
            found.extend(self.differ_at_once(now).map_err(|e| self.failed(e))?);
            rest = later;
        }
        Ok(found)
    }

    fn differ_at_once(&self, pairs: &[(KeptSource<'_>, &Tensor)]) -> Result<Vec<bool>, CudaError> {
        let mut at = 0;
        let mut space = |bytes: usize| {
            let here = at;
            at += bytes.next_multiple_of(ALIGN);
            here
        };
        let mut parts: Vec<Part<'_>> = Vec::new();
        let mut runs = Vec::new();
        for (index, (kept, tensor)) in pairs.iter().enumerate() {
            let memory = Span::from(kept.memory);
            let remote = tensor.remote_on(&self.cx.name);
            let staged = if remote.is_some() { 0 } else { space(tensor.byte_count()) };
            if remote.is_none() {
                parts.push(Part { bytes: tensor.bytes(), at: staged });
            }
            for (first, in_slot, len) in self.slots[kept.slot].kept_runs(kept.source).unwrap_or_default() {
                runs.push((index, remote, staged + first, memory.part(in_slot, len)?));
            }
        }
        let table_at = space(runs.len() * PAIR_BYTES);
        let flags_at = space(runs.len() * 4);
        let staging = driver::Buffer::new(&self.cx.context, at)?;
        let span = staging.region().span();
        let pair = |(_, remote, at, kept): &(usize, Option<u64>, usize, Span)| {
            let first = match remote {
                Some(address) => address + *at as u64,
                None => span.part(*at, kept.len())?.address(),
            };
            Ok(Pair { first, second: kept.address(), bytes: kept.len() })
        };
        let table = Table::pairs(&runs.iter().map(pair).collect::<Result<Vec<_>, CudaError>>()?);
        let mut flags = vec![0u8; runs.len() * 4];
        parts.push(Part { bytes: &table.bytes, at: table_at });
        let zeros = flags.clone();
        parts.push(Part { bytes: &zeros, at: flags_at });
        let lane = &mut *self.lane();
        lane.upload(&parts, span)?;
        let flags_span = span.part(flags_at, flags.len())?;
        let jobs = span.part(table_at, table.bytes.len())?;
        self.launch(lane, Entry::Differ, &table, jobs, Some(flags_span), Pace::Fast)?;
        lane.download(flags_span, &mut flags)?;
        let mut differs = vec![false; pairs.len()];
        for ((index, ..), flag) in runs.iter().zip(flags.chunks_exact(4)) {
            differs[*index] |= flag != [0; 4];
        }
        Ok(differs)
    }
}

impl Packer for CudaPacker {
    fn pack(&self, jobs: Vec<PackJob<'_>>, pace: Pace, observer: &dyn StageObserver) -> Result<(), PackError> {
        let total: usize = jobs.iter().map(|job| job.out.len()).sum();
        let mut done = 0;
        let mut flush = |batch: Batch<'_>| {
            done += batch.slot_bytes;
            self.run(batch, pace).map(|()| observer.staged(done, total))
        };
        let mut on_host = Vec::new();
        let mut batch = Batch::default();
        for job in &jobs {
            let slot = &self.slots[job.slot];
            let Some((plan, forms)) = slot.accept(&job.given) else {
                on_host.push(job);
                continue;
            };
            batch.add((&self.cx.context, &self.cx.name), &self.resident(), slot, plan, &forms, job)?;
            if batch.len() >= STAGING {
                flush(std::mem::take(&mut batch))?;
            }
        }
        // As many at a time as staging memory holds: the host's copies of all slots at once would be as large as the model.
        let mut rest = on_host.as_slice();
        while !rest.is_empty() {
            let mut bytes = batch.len();
            let fits = |job: &&&PackJob<'_>| {
                bytes += self.slots[job.slot].bytes.next_multiple_of(ALIGN);
                bytes <= STAGING
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (now, later) = rest.split_at(count);
            for (job, made) in zip(now, self.make_on_host(now, pace)?) {
                batch.add_made(made, job);
            }
            rest = later;
            if !rest.is_empty() {
                flush(std::mem::take(&mut batch))?;
            }
        }
        if !batch.is_empty() {
            flush(batch)?;
        }
        self.resident().settle();
        Ok(())
    }

    fn is_one_pass(&self, slot: usize, given: &[Given<'_>]) -> bool {
        match self.slots[slot].accept(given) {
            Some((_, forms)) => forms.iter().all(|form| *form == slot::Form::AsGiven),
            None => self.host.is_one_pass(slot, given),
        }
    }

    fn keeps(&self, slot: usize, source: usize) -> bool {
        self.slots[slot].kept_runs(source).is_some() && self.host.keeps(slot, source)
    }

    fn reads_remote(&self, slot: usize, source: usize) -> bool {
        self.slots[slot].only_moves(source)
    }

    fn read_back(&self, kept: &[KeptSource<'_>]) -> Result<Vec<Tensor>, PackError> {
        let read = |kept: &KeptSource<'_>| {
            let (dtype, shape) = &self.slots[kept.slot].sources[kept.source];
            let data = self.kept_bytes(kept)?;
            Ok(Tensor::new(*dtype, shape.clone(), data.into()).expect("as many bytes as the shape has"))
        };
        kept.iter().map(read).collect()
    }

    fn differ(&self, pairs: &[Comparison<'_>]) -> Result<Vec<bool>, PackError> {
        let tensors = pairs.iter().filter(|pair| matches!(pair, Comparison::Tensors(..))).copied().collect::<Vec<_>>();
        let fits = |kept: &KeptSource<'_>, tensor: &Tensor| {
            let (dtype, shape) = &self.slots[kept.slot].sources[kept.source];
            tensor.dtype() == *dtype && tensor.shape() == shape
        };
        let kept: Vec<_> = (pairs.iter())
            .filter_map(|pair| match pair {
                Comparison::Kept(kept, tensor) if fits(kept, tensor) => Some((*kept, *tensor)),
                Comparison::Kept(..) | Comparison::Tensors(..) => None,
            })
            .collect();
        let mut of_tensors = self.host.differ(&tensors)?.into_iter();
        let mut of_kept = self.differ_from_kept(&kept)?.into_iter();
        let answer = |pair: &Comparison<'_>| match pair {
            Comparison::Tensors(..) => of_tensors.next().unwrap_or(true),
            Comparison::Kept(kept, tensor) => !fits(kept, tensor) || of_kept.next().unwrap_or(true),
        };
        Ok(pairs.iter().map(answer).collect())
    }

    fn merge(&self, overlay: &Overlay, source: &Tensor) -> Result<Tensor, PackError> {
        self.host.merge(overlay, source)
    }

    fn fill_norms(&self, overlay: &mut Overlay, source: &Tensor) -> Result<(), PackError> {
        self.host.fill_norms(overlay, source)
    }
}
