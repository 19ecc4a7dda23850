//! Launches of bound plans that a device has recorded, to be repeated at the cost of one.
//!
//! A recording holds addresses: of the arena, which is its lane's own, of slots and of states. A run of another generation
//! whose slots lie elsewhere records the same launches with these, in place of the recording that was used longest ago.
//! Successive generations alternate between the same blocks of memory ([`crate::generation`]), so that this ends after a few.

use std::sync::Arc;

use regraft_backend::{Bindings, Device, Queue, Recording, RegionMut};

use crate::bind::BoundPlan;

/// The recordings of a lane.
#[derive(Default)]
pub(crate) struct Recordings {
    /// The one used last is at the end.
    entries: Vec<Entry>,
}

struct Entry {
    bound: Arc<BoundPlan>,
    /// Addresses of the slots and the states that were recorded.
    addresses: Vec<u64>,
    recorded: Recorded,
}

enum Recorded {
    /// It has not run yet.
    New,
    /// It has run, and what is set up in a first run is there.
    Ran,
    /// It is repeated as it was recorded.
    Yes(Box<dyn Recording>),
    /// The device does not record it.
    Never,
}

impl Recordings {
    /// Bound plans that a lane remembers, each with as many generations as it has recordings for.
    const LIMIT: usize = 32;
    /// Recordings of one bound plan: the places of a serving generation, of the one that a refit makes, and of one that is kept
    /// for a rollback; or variants in turns.
    const GENERATIONS: usize = 3;

    /// Launches what was recorded for this plan, these slots and these states, or records it now; `false` where it is to be
    /// launched step by step. The memory must be that of the lane each time.
    pub(crate) fn launch(
        &mut self,
        device: &dyn Device,
        queue: &dyn Queue,
        bound: &Arc<BoundPlan>,
        memory: &mut Bindings<'_>,
    ) -> bool {
        if !bound.is_repeatable {
            return false;
        }
        let mut entry = self.ready(device, bound, memory);
        let launched = match &mut entry.recorded {
            Recorded::Yes(recording) => {
                recording.launch(queue);
                true
            }
            Recorded::New => {
                entry.recorded = Recorded::Ran;
                false
            }
            Recorded::Ran | Recorded::Never => false,
        };
        self.entries.push(entry);
        launched
    }

    /// The entry of this plan and this memory, taken out, and recorded unless it has not run yet or cannot be.
    fn ready(&mut self, device: &dyn Device, bound: &Arc<BoundPlan>, memory: &mut Bindings<'_>) -> Entry {
        let slots = (0..bound.sequence.sizes().slots.len()).map(|i| (memory.slots)(i).address());
        let addresses: Vec<u64> = slots.chain(memory.states.iter().map(RegionMut::address)).collect();
        let mut entry = self.take(bound, &addresses);
        match &mut entry.recorded {
            Recorded::New | Recorded::Never => {}
            Recorded::Ran => {
                let recorded = device.record(&mut |queue| bound.sequence.launch(queue, memory));
                entry.recorded = recorded.ok().flatten().map_or(Recorded::Never, Recorded::Yes);
            }
            Recorded::Yes(_) if entry.addresses == addresses => {}
            Recorded::Yes(recording) => {
                if recording.update(&mut |queue| bound.sequence.launch(queue, memory)).is_err() {
                    entry.recorded = Recorded::Never;
                }
            }
        }
        entry.addresses = addresses;
        if self.entries.len() >= Self::LIMIT {
            self.entries.remove(0);
        }
        entry
    }

    /// The entry of this plan and these addresses, taken out: an exact one, else the one of this plan that was used longest ago if
    /// there are as many as there may be, else a new one.
    fn take(&mut self, bound: &Arc<BoundPlan>, addresses: &[u64]) -> Entry {
        let of_plan = |e: &Entry| Arc::ptr_eq(&e.bound, bound);
        let exact = self.entries.iter().position(|e| of_plan(e) && e.addresses == addresses);
        let count = self.entries.iter().filter(|e| of_plan(e)).count();
        let oldest = || self.entries.iter().position(of_plan).filter(|_| count >= Self::GENERATIONS);
        match exact.or_else(oldest) {
            Some(at) => self.entries.remove(at),
            // What one generation's first run has set up serves the others too.
            None => Entry {
                bound: bound.clone(),
                addresses: addresses.to_vec(),
                recorded: if count > 0 { Recorded::Ran } else { Recorded::New },
            },
        }
    }
}
