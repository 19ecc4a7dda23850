use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use regraft::Model;

use crate::times::time;

/// Copies some slots of the serving generation into memory that is in use already, on the threads of refits.
pub(crate) struct Copier {
    slots: Vec<(usize, Mutex<Vec<u8>>)>,
}

impl Copier {
    /// For the slots of these names.
    pub(crate) fn new(model: &Model, names: &BTreeSet<String>) -> Self {
        let plan = model.plan();
        let chosen = (0..plan.slots.len()).filter(|&slot| names.contains(plan.slot_name(slot)));
        // Ones, so that every page is touched here.
        let mut slots: Vec<_> = chosen.map(|slot| (slot, Mutex::new(vec![1; plan.slot_bytes(slot)]))).collect();
        // The largest first, as refits do.
        slots.sort_by_key(|(slot, _)| std::cmp::Reverse(plan.slot_bytes(*slot)));
        Copier { slots }
    }

    /// Milliseconds of one copy.
    pub(crate) fn copy(&self, model: &Model) -> f64 {
        let Some(generation) = model.generation() else { return f64::NAN };
        let backend = model.backend();
        let work = || {
            backend.for_each_staged(self.slots.len(), &|task| {
                let (slot, to) = &self.slots[task];
                let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
                backend.copy_staged(generation.slots[*slot].bytes(), &mut to);
            });
        };
        time(work).0
    }
}
