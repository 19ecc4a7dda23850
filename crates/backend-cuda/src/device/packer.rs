//! Slots on the device.
//!
//! What a recipe only moves and casts is uploaded as it is and packed there, all slots in a few launches. Everything else is
//! made on the host by the CPU's packer and uploaded.

use std::{
    fmt,
    iter::zip,
    sync::{Arc, Mutex, PoisonError},
};

use regraft_backend::{
    Comparison, Given, KeptSource, MemoryKind, OutOfMemory, Pace, PackError, PackJob, Packer, Region, RegionMut,
    SlotLayout, StageObserver, adapter::Overlay,
};
use regraft_tensor::{AlignedVec, Tensor};
use regraft_weights::{GatherPlan, RefitMap};

use super::{Cx, upload};
use crate::{
    CudaError,
    driver::{Pinned, Priority, Span, Stream},
};

/// Makes slots of a program on a GPU.
pub(super) struct CudaPacker {
    cx: Cx,
    host: Arc<dyn Packer>,
    slots: Vec<Slot>,
    lane: Mutex<Lane>,
}

/// A stream for staging with page-locked memory.
struct Lane {
    stream: Stream,
    ring: Pinned,
}

/// A slot as its recipe has it.
struct Slot {
    /// Runs of sources of the slot's dtype, one after the other: source, first byte, bytes; with the sources' bytes.
    runs: Option<Vec<(usize, usize, usize)>>,
    bytes: usize,
}

/// Bytes of page-locked memory that slots go through.
const RING: usize = 64 << 20;

impl fmt::Debug for CudaPacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaPacker({} slots on {})", self.slots.len(), self.cx.name)
    }
}

impl CudaPacker {
    pub(super) fn new(
        cx: &Cx,
        host: Arc<dyn Packer>,
        map: &RefitMap,
        layouts: &[SlotLayout],
    ) -> Result<CudaPacker, CudaError> {
        let slot = |(recipe, layout): (&regraft_weights::Recipe, &SlotLayout)| {
            let dtype = recipe.dtype();
            let bytes = layout.shape.iter().product::<usize>() * dtype.size();
            let runs = match GatherPlan::compile(&recipe.graph, &layout.format) {
                Some(GatherPlan::Copy { runs }) => {
                    let size = dtype.size();
                    Some(runs.into_iter().map(|(s, first, len)| (s as usize, first * size, len * size)).collect())
                }
                _ => None,
            };
            Slot { runs, bytes }
        };
        let slots = zip(&map.recipes, layouts).map(slot).collect();
        let lane = Lane { stream: Stream::new(&cx.context, Priority::Low)?, ring: Pinned::new(&cx.context, RING)? };
        Ok(CudaPacker { cx: cx.clone(), host, slots, lane: Mutex::new(lane) })
    }

    fn failed(&self, error: CudaError) -> PackError {
        match error {
            CudaError::OutOfMemory { bytes, free, .. } => PackError::Memory(OutOfMemory {
                device: self.cx.name.to_string(),
                bytes,
                kind: MemoryKind::Slot,
                free: Some(free),
            }),
            error => PackError::Device { device: self.cx.name.to_string(), why: error.to_string() },
        }
    }

    /// Uploads the runs of a slot as they are; `None` when something must be computed.
    fn upload_runs(&self, lane: &mut Lane, job: &PackJob<'_>) -> Option<Result<(), PackError>> {
        let slot = &self.slots[job.slot];
        let runs = slot.runs.as_ref()?;
        let as_it_is = |&(source, first, len): &(usize, usize, usize)| {
            let given = job.given.get(source)?;
            let bytes = given.tensor.bytes().get(first..first.checked_add(len)?)?;
            given.overlay.is_none().then_some(bytes)
        };
        // Sources of another width are converted on the host.
        if !self.keeps_types(job) {
            return None;
        }
        let parts: Vec<&[u8]> = runs.iter().map(as_it_is).collect::<Option<_>>()?;
        let out = Span::from(&job.out);
        if parts.iter().map(|p| p.len()).sum::<usize>() != out.len().min(slot.bytes) {
            return None;
        }
        let mut at = 0;
        for part in parts {
            let to = match out.part(at, part.len()) {
                Ok(to) => to,
                Err(error) => return Some(Err(self.failed(error))),
            };
            if let Err(error) = upload(&lane.stream, &mut lane.ring, part, to) {
                return Some(Err(self.failed(error)));
            }
            at += part.len();
        }
        Some(Ok(()))
    }

    /// Whether every source was given in the program's own dtype.
    fn keeps_types(&self, job: &PackJob<'_>) -> bool {
        self.host.is_one_pass(job.slot, &job.given)
    }

    /// The bytes of a slot, on the host.
    fn download(&self, memory: Region<'_>) -> Result<AlignedVec, PackError> {
        let refused = |_| OutOfMemory { device: "cpu".into(), bytes: memory.len(), kind: MemoryKind::Slot, free: None };
        let mut bytes = AlignedVec::try_zeroed(memory.len()).map_err(refused)?;
        let lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
        lane.stream.download_slice(memory, bytes.bytes_mut()).map_err(|e| self.failed(e))?;
        Ok(bytes)
    }
}

impl Packer for CudaPacker {
    fn pack(&self, jobs: Vec<PackJob<'_>>, pace: Pace, observer: &dyn StageObserver) -> Result<(), PackError> {
        let total: usize = jobs.iter().map(|job| job.out.len()).sum();
        let mut done = 0;
        let mut rest = Vec::new();
        {
            let mut lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
            for job in jobs {
                match self.upload_runs(&mut lane, &job) {
                    None => rest.push(job),
                    Some(outcome) => {
                        outcome?;
                        done += job.out.len();
                        observer.staged(done, total);
                    }
                }
            }
        }
        // A few at a time: the host's copies of all slots at once would be as large as the model.
        for job in rest {
            let bytes = self.slots[job.slot].bytes;
            let refused = |_| OutOfMemory { device: "cpu".into(), bytes, kind: MemoryKind::Slot, free: None };
            let mut made = AlignedVec::try_zeroed(bytes).map_err(refused)?;
            let out = RegionMut::of_host(made.bytes_mut());
            self.host.pack(vec![PackJob { slot: job.slot, given: job.given, out }], pace, &())?;
            let mut lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
            let Lane { stream, ring } = &mut *lane;
            let to = Span::from(&job.out).part(0, bytes).map_err(|e| self.failed(e))?;
            upload(stream, ring, made.bytes(), to).map_err(|e| self.failed(e))?;
            done += job.out.len();
            observer.staged(done, total);
        }
        Ok(())
    }

    fn is_one_pass(&self, slot: usize, given: &[Given<'_>]) -> bool {
        self.host.is_one_pass(slot, given)
    }

    fn keeps(&self, slot: usize, source: usize) -> bool {
        self.host.keeps(slot, source)
    }

    fn read_back(&self, kept: &[KeptSource<'_>]) -> Result<Vec<Tensor>, PackError> {
        let read = |kept: &KeptSource<'_>| {
            let bytes = self.download(kept.memory)?;
            let here = KeptSource { memory: Region::of_host(bytes.bytes()), ..*kept };
            self.host
                .read_back(&[here])?
                .pop()
                .ok_or_else(|| PackError::Recipe { slot: kept.slot, why: "it does not keep this source".into() })
        };
        kept.iter().map(read).collect()
    }

    fn differ(&self, pairs: &[Comparison<'_>]) -> Result<Vec<bool>, PackError> {
        let differs = |pair: &Comparison<'_>| match pair {
            Comparison::Tensors(a, b) => self.host.differ(&[Comparison::Tensors(a, b)]),
            Comparison::Kept(kept, tensor) => {
                let bytes = self.download(kept.memory)?;
                let here = KeptSource { memory: Region::of_host(bytes.bytes()), ..*kept };
                self.host.differ(&[Comparison::Kept(here, tensor)])
            }
        };
        let outcomes = pairs.iter().map(|pair| differs(pair).map(|found| found.first().copied().unwrap_or(true)));
        outcomes.collect()
    }

    fn merge(&self, overlay: &Overlay, source: &Tensor) -> Result<Tensor, PackError> {
        self.host.merge(overlay, source)
    }

    fn fill_norms(&self, overlay: &mut Overlay, source: &Tensor) -> Result<(), PackError> {
        self.host.fill_norms(overlay, source)
    }
}
