//! Models of other programs over the same weights: a slot that both have is one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use regraft_weights::RefitReport;

use crate::{
    Generation, Model, RuntimeError, RuntimeErrorKind, Slot, SourceContent, Staged,
    generation::InSlot,
    model::Shared,
    refit::slots_alike,
    sync::{Mutex, lock},
};

/// The models that a model shares slots with. They are not kept alive.
#[derive(Default)]
pub(crate) struct Siblings(Mutex<Vec<Weak<Shared>>>);

impl Siblings {
    /// Those that are still there.
    pub(crate) fn all(&self) -> Vec<Model> {
        let mut known = lock(&self.0);
        known.retain(|sibling| sibling.strong_count() > 0);
        known.iter().filter_map(Weak::upgrade).map(|shared| Model { shared }).collect()
    }

    fn add(&self, sibling: &Arc<Shared>) {
        let mut known = lock(&self.0);
        if !known.iter().any(|other| std::ptr::eq(other.as_ptr(), Arc::as_ptr(sibling))) {
            known.push(Arc::downgrade(sibling));
        }
    }
}

impl Model {
    /// Shares slots with `other` from now on, and the other way round: a model of another program over the same weights, such
    /// as those of the prompt and of a step of one language model. What a refit would make, and the other has already, by the
    /// same recipe from the same sources bit for bit, is not made: both read one slot. Slots with adapters are each model's
    /// own. Where the two are on different devices nothing is shared.
    ///
    /// Slots that both have now, and that hold the same, become one: `other`'s.
    ///
    /// # Errors
    /// When the file of one is damaged, or the device fails.
    pub fn share_slots_with(&self, other: &Model) -> Result<(), RuntimeError> {
        if self.is_of_one_program(other) || !self.reaches_memory_of(other) {
            return Ok(());
        }
        self.link(other);
        match (self.generation(), other.generation()) {
            (Some(base), Some(theirs)) => self.take_slots_of(other, base, &theirs),
            _ => Ok(()),
        }
    }

    /// Makes the two siblings.
    pub(crate) fn link(&self, other: &Model) {
        self.shared.siblings.add(&other.shared);
        other.shared.siblings.add(&self.shared);
    }

    fn take_slots_of(&self, other: &Model, base: Arc<Generation>, theirs: &Generation) -> Result<(), RuntimeError> {
        self.check_file()?;
        other.check_file()?;
        let mut taken = BTreeMap::new();
        for (slot, at) in slots_alike(self.refit_map(), other.refit_map()) {
            if holds_the_same(&base.slots[slot], &theirs.slots[at])? {
                taken.insert(slot, theirs.slots[at].clone());
            }
        }
        if taken.is_empty() {
            return Ok(());
        }
        let slot = |(i, slot): (usize, &Arc<Slot>)| taken.get(&i).unwrap_or(slot).clone();
        let slots = base.slots.iter().enumerate().map(slot).collect();
        let source = |(source, info): (&Arc<SourceContent>, &regraft_weights::SourceInfo)| {
            let place = source.place()?;
            let place = InSlot { slot: taken.get(&place.index)?.clone(), ..place.clone() };
            Some(Arc::new(SourceContent::in_slot(info.dtype, place)))
        };
        let infos = &self.refit_map().sources;
        let sources =
            base.sources.iter().zip(infos).map(|pair| source(pair).unwrap_or_else(|| pair.0.clone())).collect();
        let generation = Arc::new(Generation { slots, sources, ..Generation::clone(&base) });
        let staged = Staged { model: self.clone(), generation, base: Some(base), report: RefitReport::default() };
        match staged.publish() {
            // A refit came first, and has shared what it could.
            Err(error) if matches!(error.kind(), RuntimeErrorKind::Stale) => Ok(()),
            published => published.map(drop),
        }
    }

    /// Whether kernels of this model's device can read the slots of `other`.
    fn reaches_memory_of(&self, other: &Model) -> bool {
        let (here, there) = (self.device(), other.device());
        let both_are_host = here.reads_host() && there.reads_host() && here.name() == there.name();
        Arc::ptr_eq(here, there) || both_are_host
    }
}

fn holds_the_same(one: &Arc<Slot>, other: &Arc<Slot>) -> Result<bool, RuntimeError> {
    let is_one = Arc::ptr_eq(one, other);
    Ok(!is_one && one.len() == other.len() && one.read()?.bytes() == other.read()?.bytes())
}
