//! Generations: immutable sets of slots, and the sources they were made from.

mod content;
mod pool;

use std::sync::Arc;

use regraft_adapter::AdapterSet;
use regraft_weights::BakedAdapter;

pub(crate) use self::{content::InSlot, pool::SlotPool};
pub use self::{
    content::SourceContent,
    pool::{PoolMemory, ReserveError, Slot},
};

/// An immutable set of slots, and the sources they were made from. Cloning shares everything.
///
/// ```
/// # fn f(model: &regraft_runtime::Model) {
/// if let Some(generation) = model.generation() {
///     let bytes: usize = generation.slots.iter().map(|slot| slot.len()).sum();
///     println!("generation {} has {bytes} bytes of slots", generation.id);
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Generation {
    /// Number of this generation: counts up with each refit of a model.
    pub id: u64,
    /// One for each slot of the plan.
    pub slots: Vec<Arc<Slot>>,
    /// The original sources, without adapters. None of them is borrowed memory.
    pub sources: Vec<Arc<SourceContent>>,
    /// The adapters that were applied to the sources on the way to the slots.
    pub adapters: Arc<AdapterSet>,
    /// Adapters that are part of the sources: they were applied when these were saved.
    pub baked: Arc<[BakedAdapter]>,
}

impl Generation {
    /// Bytes of slots that no other generation shares; none at all where this very generation is held by more than `holders`,
    /// as by forks that were not refitted. A snapshot: runs hold generations, too.
    pub fn own_bytes(self: &Arc<Self>, holders: usize) -> usize {
        if Arc::strong_count(self) > holders {
            return 0;
        }
        // Sources that are kept in a slot hold it as well, and twins are one slot.
        let own = |(i, slot): &(usize, &Arc<Slot>)| {
            let sources =
                self.sources.iter().filter(|source| source.slot().is_some_and(|other| Arc::ptr_eq(other, slot)));
            let mut before = self.slots[..*i].iter();
            let here = self.slots.iter().filter(|other| Arc::ptr_eq(other, slot)).count();
            Arc::strong_count(slot) == here + sources.count() && !before.any(|other| Arc::ptr_eq(other, slot))
        };
        self.slots.iter().enumerate().filter(own).map(|(_, slot)| slot.len()).sum()
    }
}
