use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rayon::prelude::*;
use regraft_backend::{Extent, Memory, MemoryKind, Queue, QueueClass, RegionMut};

use crate::{Generation, Model, RuntimeError, RuntimeErrorKind};

/// Copies slots of a generation into other memory of the device, as refits write them: what the speed of a refit is measured
/// against.
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
        let memory = chosen.into_iter().map(|slot| {
            let bytes = plan.slots[slot].bytes;
            let mut memory = device.alloc(bytes, MemoryKind::Slot).map_err(RuntimeErrorKind::from)?;
            queue.write(&vec![1; bytes], RegionMut::of(&mut *memory).part(0..bytes));
            Ok::<_, RuntimeError>((slot, Mutex::new(memory)))
        });
        let slots = memory.collect::<Result<_, _>>()?;
        Ok(SlotCopier { queue, slots })
    }

    /// Copies once; returns how long it took.
    ///
    /// # Errors
    /// When the device failed.
    pub fn copy(&self, generation: &Generation) -> Result<Duration, RuntimeError> {
        let bytes = self.slots.iter().map(|(slot, _)| generation.slots[*slot].len()).sum();
        let start = Instant::now();
        self.queue.submit(Extent { steps: self.slots.len(), bytes }, &mut || {
            self.slots.par_iter().for_each(|(slot, to)| {
                let from = generation.slots[*slot].region();
                let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
                self.queue.copy(from, RegionMut::of(&mut **to).part(0..from.len()));
            });
        });
        self.queue.fence().wait().map_err(|error| RuntimeErrorKind::Run(error.kind))?;
        Ok(start.elapsed())
    }
}
