//! Slots on the device.
//!
//! Sources are uploaded as they are given and packed there, many slots in a few launches; products of adapters are added on the
//! way. What does more than move, scale and cast is made on the host by the CPU's packer and uploaded.

mod batch;
mod kept;
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
    batch::{Batch, Entry, FIRST, FULL_OF_SLOTS, InFlight},
    resident::Resident,
    slot::SlotPlan,
};
use super::{
    Cx,
    lane::{ALIGN, Lane},
};
use crate::{
    CudaError,
    driver::{Args, Function, Launch, Span, Stream},
    kernels::pack::{Table, source},
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

    /// Puts a kernel over a table into a stream.
    fn launch(
        &self,
        stream: &Stream,
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
        let blocks = match pace {
            // Blocks are short: kernels of runs, which are more urgent, come between them.
            Pace::Fast => i32::MAX as usize,
            // Most of the device is left to runs.
            Pace::Background => self.cx.context.info().multiprocessors.div_ceil(8) as usize,
        };
        let grid = [table.pieces.min(blocks) as u32, 1, 1];
        let function = match entry {
            Entry::Pack => &self.kernels.pack,
            Entry::Merge => &self.kernels.merge,
            Entry::Differ => &self.kernels.differ,
        };
        function.launch(stream, Launch { grid, block: 256, shared: 0 }, &mut args)
    }

    /// Puts a batch into the lane's streams, behind others.
    fn run<'a>(&self, batch: Batch<'a>, pace: Pace) -> Result<InFlight<'a>, PackError> {
        let lane = &mut *self.lane();
        let launch = |stream: &Stream, entry, table: &Table, jobs| self.launch(stream, entry, table, jobs, None, pace);
        batch.run(&self.cx.context, lane, launch).map_err(|e| self.failed(e))
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
}

/// Batches of slots, one of them on its way while the next is laid out.
struct Stage<'p, 'a> {
    packer: &'p CudaPacker,
    pace: Pace,
    observer: &'p dyn StageObserver,
    total: usize,
    done: usize,
    on_the_way: Option<InFlight<'a>>,
}

impl<'a> Stage<'_, 'a> {
    /// Sends batches off as `next` lays them out, each while the one before is copied and made: the device always has work.
    fn push_all(&mut self, mut next: impl FnMut() -> Result<Option<Batch<'a>>, PackError>) -> Result<(), PackError> {
        while let Some(batch) = next()? {
            let sent = self.packer.run(batch, self.pace)?;
            let before = self.on_the_way.replace(sent);
            self.finish(before)?;
        }
        Ok(())
    }

    /// Waits for a batch.
    fn finish(&mut self, batch: Option<InFlight<'a>>) -> Result<(), PackError> {
        let Some(batch) = batch else { return Ok(()) };
        self.done += batch.slot_bytes;
        batch.finish(&mut self.packer.resident()).map_err(|e| self.packer.failed(e))?;
        self.observer.staged(self.done, self.total);
        Ok(())
    }
}

impl Drop for Stage<'_, '_> {
    /// After an error: nothing that is read or written may be given to anyone else before the work is over.
    fn drop(&mut self) {
        if self.on_the_way.is_some() {
            let _ = self.packer.lane().synchronize();
        }
    }
}

impl Packer for CudaPacker {
    fn pack(&self, jobs: Vec<PackJob<'_>>, pace: Pace, observer: &dyn StageObserver) -> Result<(), PackError> {
        let total: usize = jobs.iter().map(|job| job.out.len()).sum();
        let mut stage = Stage { packer: self, pace, observer, total, done: 0, on_the_way: None };
        self.resident().begin();
        let (mut left, mut on_host) = (jobs.iter(), Vec::new());
        let (mut full_at, mut forms) = (FIRST, Vec::new());
        stage.push_all(|| {
            let (mut batch, mut slots) = (Batch::with_room(left.len()), 0);
            for job in left.by_ref() {
                let slot = &self.slots[job.slot];
                let Some(plan) = slot.accept(&job.given, &mut forms) else {
                    on_host.push(job);
                    continue;
                };
                batch.add(&self.cx.name, &mut self.resident(), slot, plan, &forms, job)?;
                slots += 1;
                if batch.is_full(full_at) {
                    break;
                }
            }
            full_at = FULL_OF_SLOTS;
            Ok((slots > 0).then_some(batch))
        })?;
        // As many at a time as staging memory holds: the host's copies of all slots at once would be as large as the model.
        let mut rest = on_host.as_slice();
        stage.push_all(|| {
            let mut bytes = 0;
            let fits = |job: &&&PackJob<'_>| {
                bytes += self.slots[job.slot].bytes.next_multiple_of(ALIGN);
                bytes <= STAGING
            };
            let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
            let (now, later) = rest.split_at(count);
            rest = later;
            let mut batch = Batch::default();
            for (job, made) in zip(now, self.make_on_host(now, pace)?) {
                batch.add_made(made, job)?;
            }
            Ok((!now.is_empty()).then_some(batch))
        })?;
        observer.waits();
        let last = stage.on_the_way.take();
        stage.finish(last)?;
        self.resident().settle();
        Ok(())
    }

    fn is_one_pass(&self, slot: usize, given: &[Given<'_>]) -> bool {
        self.slots[slot].is_one_pass(given).unwrap_or_else(|| self.host.is_one_pass(slot, given))
    }

    fn keeps(&self, slot: usize, source: usize) -> bool {
        self.slots[slot].kept(source).is_some()
    }

    fn reads_remote(&self, slot: usize, source: usize) -> bool {
        self.slots[slot].only_moves(source)
    }

    fn read_back(&self, kept: &[KeptSource<'_>]) -> Result<Vec<Tensor>, PackError> {
        self.kept_tensors(kept)
    }

    fn differ(&self, pairs: &[Comparison<'_>]) -> Result<Vec<bool>, PackError> {
        self.differences(pairs)
    }

    fn merge(&self, overlay: &Overlay, source: &Tensor) -> Result<Tensor, PackError> {
        self.host.merge(overlay, source)
    }

    fn fill_norms(&self, overlay: &mut Overlay, source: &Tensor) -> Result<(), PackError> {
        self.host.fill_norms(overlay, source)
    }
}
