use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rayon::prelude::*;
use regraft_backend::{Extent, Memory, MemoryKind, Queue, QueueClass, RegionMut};
use regraft_tensor::AlignedVec;
use regraft_weights::on_shared_threads;

use crate::{Generation, Model, RuntimeError, RuntimeErrorKind};

/// Copies slots of a generation into other memory of the device, as refits write them: what the speed of a refit is measured
/// against.
///
/// ```
/// use regraft_runtime::SlotCopier;
///
/// # use regraft_runtime::{Model, RuntimeError};
/// # fn f(model: &Model) -> Result<(), RuntimeError> {
/// let copier = SlotCopier::new(model, 0..model.plan().slots.len())?;
/// if let Some(generation) = model.generation() {
///     println!("a plain copy of all slots takes {:?}", copier.copy(&generation)?);
/// }
/// # Ok(())
/// # }
/// ```
pub struct SlotCopier {
    queue: Arc<dyn Queue>,
    /// Memory for each slot; the largest first, as refits do.
    slots: Vec<(usize, Mutex<Box<dyn Memory>>)>,
}

impl SlotCopier {
    /// For these slots of the model. The memory is in use already when this returns: every page of it was written.
    ///
    /// # Errors
    /// When the device does not have the memory.
    pub fn new(model: &Model, slots: impl IntoIterator<Item = usize>) -> Result<SlotCopier, RuntimeError> {
        let (device, plan) = (model.device(), model.plan());
        let queue = device.queue(QueueClass::Stage)?;
        let mut chosen: Vec<usize> = slots.into_iter().collect();
        chosen.sort_by_key(|&slot| std::cmp::Reverse(plan.slots[slot].bytes));
        let largest = chosen.first().map_or(0, |&slot| plan.slots[slot].bytes);
        let refused = |_| RuntimeErrorKind::no_host_memory(largest, "a slot");
        let zeros = AlignedVec::try_zeroed(largest).map_err(refused)?;
        let alloc = |&slot: &usize| device.alloc(plan.slots[slot].bytes, MemoryKind::Slot);
        let mut memory = chosen.iter().map(alloc).collect::<Result<Vec<_>, _>>().map_err(RuntimeErrorKind::from)?;
        for (&slot, memory) in chosen.iter().zip(&mut memory) {
            let bytes = plan.slots[slot].bytes;
            queue.write(&zeros.bytes()[..bytes], RegionMut::of(&mut **memory).part(0..bytes));
        }
        queue.fence().wait().map_err(|error| RuntimeErrorKind::Run(error.kind))?;
        Ok(SlotCopier { queue, slots: chosen.into_iter().zip(memory.into_iter().map(Mutex::new)).collect() })
    }

    /// Copies once; returns how long it took.
    ///
    /// # Errors
    /// When the device failed.
    pub fn copy(&self, generation: &Generation) -> Result<Duration, RuntimeError> {
        let bytes = self.slots.iter().map(|(slot, _)| generation.slots[*slot].len()).sum();
        let start = Instant::now();
        self.queue.submit(Extent { steps: self.slots.len(), bytes }, &mut || {
            let copy = |(slot, to): &(usize, Mutex<Box<dyn Memory>>)| {
                let from = generation.slots[*slot].region();
                let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
                self.queue.copy(from, RegionMut::of(&mut **to).part(0..from.len()));
            };
            on_shared_threads(|| self.slots.par_iter().for_each(copy));
        });
        self.queue.fence().wait().map_err(|error| RuntimeErrorKind::Run(error.kind))?;
        Ok(start.elapsed())
    }
}
