//! Weights with an adapter that requests name: forks of the model that are kept while there is room.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use regraft::{Generation, Model, Pace, Refit, RuntimeError, RuntimeErrorKind};
use serde_json::{Value, json};

use crate::{
    adapters::Opened,
    error::{Kind, Refusal},
    generations::{Generations, Label, ServedAdapter},
};

/// An adapter at a scale: what a request asks for.
#[derive(Clone, Debug)]
pub(crate) struct Scaled {
    pub(crate) opened: Opened,
    pub(crate) scale: f64,
}

/// Whether both do the same to weights, and are called the same.
impl PartialEq for Scaled {
    fn eq(&self, other: &Scaled) -> bool {
        let key = |one: &Scaled| (one.opened.digest, one.scale.to_bits());
        key(self) == key(other) && self.opened.adapter.name == other.opened.adapter.name
    }
}

/// A model with one adapter.
pub(crate) struct Variant {
    pub(crate) model: Model,
    pub(crate) label: Arc<Label>,
    /// What it was made from. Its memory is not used for another generation while this refers to it.
    base: Weak<Generation>,
}

impl Variant {
    /// Whether the weights that it was made from serve now.
    pub(crate) fn is_current(&self, model: &Model) -> bool {
        model.generation().is_some_and(|serving| self.is_of(&serving))
    }

    fn is_of(&self, generation: &Arc<Generation>) -> bool {
        std::ptr::eq(self.base.as_ptr(), Arc::as_ptr(generation))
    }
}

/// The variants of a model, the least recently used first.
pub(crate) struct Variants {
    entries: Mutex<Vec<Entry>>,
    limit: usize,
}

struct Entry {
    asked: Scaled,
    variant: Arc<Variant>,
    /// Bytes of the slots that it has for itself.
    bytes: usize,
    /// Whether a request has asked for it.
    is_used: bool,
}

impl Variants {
    /// Variants that together take at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Variants {
        Variants { entries: Mutex::default(), limit }
    }

    /// The weights that serve, with this adapter and no other, where they were made already.
    pub(crate) fn find(&self, model: &Model, asked: &Scaled) -> Option<Arc<Variant>> {
        let serving = model.generation()?;
        let mut entries = self.lock();
        let at = entries.iter().position(|entry| entry.variant.is_of(&serving) && entry.asked == *asked)?;
        let mut entry = entries.remove(at);
        let variant = entry.variant.clone();
        entry.is_used = true;
        entries.push(entry);
        Some(variant)
    }

    /// As [`Variants::find`], and makes them when they are not there: milliseconds to seconds. `is_used` says whether a request
    /// waits for them. For one caller at a time: two would take more memory than is checked for.
    ///
    /// # Errors
    /// When the adapter does not fit, or there is no room for it.
    pub(crate) fn get(
        &self,
        model: &Model,
        generations: &Generations,
        asked: &Scaled,
        is_used: bool,
    ) -> Result<Arc<Variant>, Refusal> {
        if let Some(variant) = self.find(model, asked) {
            return Ok(variant);
        }
        let Scaled { opened, scale } = asked;
        self.make_room(touched_bytes(model, opened))?;
        let fork = model.fork();
        let base = fork.generation().ok_or_else(|| Refusal::from(RuntimeError::from(RuntimeErrorKind::NotBound)))?;
        // It would hold the slots that the adapter changes as they were without it.
        fork.set_keep_previous(false);
        let report = Refit::new().adapters(&[(opened.adapter.clone(), *scale)])?.pace(Pace::Background).run(&fork)?;
        let served = ServedAdapter { name: opened.adapter.name.clone(), scale: *scale, digest: opened.digest };
        let label = generations.of(generations.label(&base).weights, vec![served]);
        let variant = Arc::new(Variant { model: fork, label, base: Arc::downgrade(&base) });
        self.lock().push(Entry { asked: asked.clone(), variant: variant.clone(), bytes: report.bytes, is_used });
        // Other weights may have been published meanwhile; nothing else would let go of what this one holds.
        let _ = self.retire(model);
        Ok(variant)
    }

    /// Lets the least recently used go until there is room for `bytes` more.
    fn make_room(&self, bytes: usize) -> Result<(), Refusal> {
        if bytes > self.limit {
            let why =
                format!("the adapter changes {bytes} bytes of slots, and {} are set aside for adapters", self.limit);
            return Err(Refusal::new(Kind::Memory, why).help("--adapter-memory sets how many"));
        }
        let mut entries = self.lock();
        let mut taken: usize = entries.iter().map(|entry| entry.bytes).sum();
        let mut gone = Vec::new();
        while !entries.is_empty() && taken > self.limit - bytes {
            let entry = entries.remove(0);
            taken -= entry.bytes;
            gone.push(entry);
        }
        drop(entries);
        // Outside of the lock: it may free much.
        drop(gone);
        Ok(())
    }

    /// Lets go of those that were made from other weights than serve now, and returns what requests asked for among them, the last
    /// first. Runs that have them keep them.
    pub(crate) fn retire(&self, model: &Model) -> Vec<Scaled> {
        let serving = model.generation();
        let is_current = |entry: &mut Entry| serving.as_ref().is_some_and(|now| entry.variant.is_of(now));
        let gone: Vec<Entry> = self.lock().extract_if(.., |entry| !is_current(entry)).collect();
        // Outside of the lock, too.
        gone.into_iter().rev().filter(|entry| entry.is_used).map(|entry| entry.asked).collect()
    }

    /// How many there are, and the bytes of slots that they have for themselves.
    pub(crate) fn size(&self) -> (usize, usize) {
        let entries = self.lock();
        (entries.len(), entries.iter().map(|entry| entry.bytes).sum())
    }

    pub(crate) fn to_json(&self) -> Value {
        let entries = self.lock();
        let one = |entry: &Entry| {
            let label = &entry.variant.label;
            json!({
                "adapter": entry.asked.opened.adapter.name, "scale": entry.asked.scale, "bytes": entry.bytes,
                "generation": label.number, "digest": label.digest.to_string(),
            })
        };
        entries.iter().map(one).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of the slots that an adapter changes.
fn touched_bytes(model: &Model, opened: &Opened) -> usize {
    let touches = |used_as: &u32| opened.adapter.layers.iter().any(|layer| layer.source == *used_as as usize);
    let recipes = model.refit_map().recipes.iter().zip(&model.plan().slots);
    recipes.filter(|(recipe, _)| recipe.uses.iter().any(touches)).map(|(_, slot)| slot.bytes).sum()
}
