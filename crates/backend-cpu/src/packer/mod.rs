//! The CPU as a [`Packer`]: recipes in one pass over memory where they are of that form, and back from slots to sources.

mod kept;
mod recipe;
mod rounded;
mod winograd;

use std::{
    iter::zip,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use regraft_backend::{
    BackendError, Comparison, Given, KeptSource, MemoryKind, OutOfMemory, Pace, PackError, PackJob, Packer, SlotLayout,
    StageObserver, adapter::Overlay,
};
use regraft_tensor::{AlignedVec, Tensor};
use regraft_weights::RefitMap;

use self::{kept::Kept, recipe::SlotRecipe};
use crate::{
    Isa, Threads,
    pack::{fill_norms, for_float, merge},
};

/// Makes slots on the threads of refits.
#[derive(Debug)]
pub(crate) struct CpuPacker {
    cx: PackCx,
    slots: Vec<SlotRecipe>,
}

/// What packing runs with.
#[derive(Debug)]
struct PackCx {
    isa: Isa,
    threads: Threads,
}

impl CpuPacker {
    pub(crate) fn new(
        isa: Isa,
        threads: Threads,
        map: &RefitMap,
        layouts: &[SlotLayout],
    ) -> Result<Self, BackendError> {
        let slots = zip(&map.recipes, layouts).map(|(recipe, layout)| SlotRecipe::new(map, recipe, layout));
        Ok(CpuPacker { cx: PackCx { isa, threads }, slots: slots.collect::<Result<_, _>>()? })
    }

    fn kept<'a>(&'a self, source: &KeptSource<'a>) -> Result<Kept<'a>, PackError> {
        let found = self.slots[source.slot].kept(source.source, source.memory.host_bytes());
        found.ok_or_else(|| PackError::Recipe { slot: source.slot, why: "it does not keep this source".into() })
    }

    /// Calls `task` with every number below `count` on the threads of refits; results in order.
    fn each<T: Send + Sync>(&self, count: usize, task: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let results: Vec<OnceLock<T>> = (0..count).map(|_| OnceLock::new()).collect();
        self.cx.threads.for_each(count, |i| _ = results[i].get_or_init(|| task(i)));
        results.into_iter().map(|result| result.into_inner().expect("every task has run")).collect()
    }
}

impl Packer for CpuPacker {
    fn pack(&self, mut jobs: Vec<PackJob<'_>>, pace: Pace, observer: &dyn StageObserver) -> Result<(), PackError> {
        let callers = PackCx { isa: self.cx.isa, threads: Threads::of_caller() };
        let cx = match pace {
            Pace::Fast => &self.cx,
            // Threads whose time may be taken. Those of refits take as much as runs do.
            Pace::Background => &callers,
        };
        let total: usize = jobs.iter().map(|job| job.out.len()).sum();
        let done = AtomicUsize::new(0);
        make_values(cx, &jobs);
        // The largest first: the threads finish together.
        jobs.sort_by_key(|job| std::cmp::Reverse(job.out.len()));
        let jobs: Vec<Mutex<PackJob<'_>>> = jobs.into_iter().map(Mutex::new).collect();
        let failure: Mutex<Option<PackError>> = Mutex::new(None);
        cx.threads.for_each(jobs.len(), |i| {
            let PackJob { slot, given, out } = &mut *jobs[i].lock().unwrap_or_else(PoisonError::into_inner);
            match self.slots[*slot].run(cx, given, out.host_bytes()) {
                Ok(()) => observer.staged(done.fetch_add(out.len(), Ordering::Relaxed) + out.len(), total),
                Err(why) => {
                    let error = PackError::Recipe { slot: *slot, why };
                    _ = failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn on_threads(&self, work: &mut (dyn FnMut() + Send)) {
        self.cx.threads.install(work);
    }

    fn is_one_pass(&self, slot: usize, given: &[Given<'_>]) -> bool {
        self.slots[slot].is_one_pass(given)
    }

    fn keeps(&self, slot: usize, source: usize) -> bool {
        self.slots[slot].keeps(source)
    }

    fn read_back(&self, kept: &[KeptSource<'_>]) -> Result<Vec<Tensor>, PackError> {
        self.each(kept.len(), |i| self.kept(&kept[i])?.tensor()).into_iter().collect()
    }

    fn differ(&self, pairs: &[Comparison<'_>]) -> Result<Vec<bool>, PackError> {
        // Most that differ do so at once, which costs less than another thread.
        let differs_at_once = |pair: &Comparison<'_>| match pair {
            Comparison::Tensors(a, b) => Ok(a.bytes().first_chunk::<64>() != b.bytes().first_chunk::<64>()),
            Comparison::Kept(source, tensor) => Ok(self.kept(source)?.differs_at_once(tensor)),
        };
        let mut differ = pairs.iter().map(differs_at_once).collect::<Result<Vec<bool>, PackError>>()?;
        let open: Vec<usize> = (0..pairs.len()).filter(|&i| !differ[i]).collect();
        let differs = |i: usize| match &pairs[open[i]] {
            Comparison::Tensors(a, b) => Ok::<_, PackError>(!a.bit_equal(b)),
            Comparison::Kept(source, tensor) => Ok(!self.kept(source)?.is(tensor)),
        };
        let bytes = |&i: &usize| match &pairs[i] {
            Comparison::Tensors(_, tensor) | Comparison::Kept(_, tensor) => tensor.byte_count(),
        };
        let answers = match open.iter().map(bytes).sum::<usize>() {
            ..COMPARED_HERE => (0..open.len()).map(differs).collect(),
            _ => self.each(open.len(), differs),
        };
        for (i, differs) in open.into_iter().zip(answers) {
            differ[i] = differs?;
        }
        Ok(differ)
    }

    fn merge(&self, overlay: &Overlay, source: &Tensor) -> Result<Tensor, PackError> {
        let bytes = source.bytes().len();
        let refused = |_| OutOfMemory { device: "cpu".into(), bytes, kind: MemoryKind::Slot, free: None };
        let mut data = AlignedVec::try_to_stay(bytes).map_err(refused)?;
        self.cx.merge(overlay, source, 0, data.bytes_mut()).map_err(|why| PackError::Merge(why.to_owned()))?;
        let tensor = Tensor::new(source.dtype(), source.shape().to_vec(), data.into());
        Ok(tensor.expect("as many bytes as the source has"))
    }

    fn fill_norms(&self, overlay: &mut Overlay, source: &Tensor) -> Result<(), PackError> {
        let refuse = |why: &str| PackError::Merge(why.to_owned());
        if source.numel() != overlay.rows * overlay.cols {
            return Err(refuse("the source is of another size"));
        }
        let filled = for_float!(source.dtype(), T => {
            let data = bytemuck::try_cast_slice(source.bytes()).ok();
            data.map(|data: &[T]| fill_norms(&self.cx.threads, self.cx.isa, overlay, data))
        });
        filled.flatten().ok_or_else(|| refuse("the source is of no float type"))
    }
}

/// Makes the factors of all products side by side: a slot's tasks would wait for the one that makes them.
fn make_values(cx: &PackCx, jobs: &[PackJob<'_>]) {
    let overlays: Vec<&Overlay> = jobs.iter().flat_map(|job| &job.given).filter_map(|given| given.overlay).collect();
    cx.threads.for_each(overlays.len(), |i| overlays[i].make_values());
}

/// Fewer bytes than these are compared on the calling thread, in less time than others take to wake up: the counters of batch
/// norms, say, which are the same in most weights.
const COMPARED_HERE: usize = 1 << 16;

/// Bytes that one task copies.
const COPY_CHUNK: usize = 1 << 20;

impl PackCx {
    fn copy(&self, from: &[u8], to: &mut [u8]) {
        assert_eq!(from.len(), to.len(), "a copy has the size of what it copies");
        self.threads.for_each_chunk(to, COPY_CHUNK, |i, chunk| {
            let start = i * COPY_CHUNK;
            chunk.copy_from_slice(&from[start..start + chunk.len()]);
        });
    }

    /// Writes the part of `source` from element `first` on with `overlay` applied, in the source's dtype.
    fn merge(&self, overlay: &Overlay, source: &Tensor, first: usize, out: &mut [u8]) -> Result<(), &'static str> {
        let size = source.dtype().size();
        let last = first.checked_add(out.len() / size).filter(|_| out.len().is_multiple_of(size));
        if source.dtype() != overlay.dtype {
            return Err("the source is of another dtype");
        }
        if source.numel() != overlay.rows * overlay.cols || last.is_none_or(|last| last > source.numel()) {
            return Err("the source is of another size");
        }
        let done = for_float!(source.dtype(), T => {
            match (bytemuck::try_cast_slice(source.bytes()), bytemuck::try_cast_slice_mut(out)) {
                (Ok(source), Ok(out)) => {
                    merge::<T>(&self.threads, self.isa, overlay, source, first, out);
                    Some(())
                }
                _ => None,
            }
        });
        done.flatten().ok_or("the source is of no float type")
    }
}
