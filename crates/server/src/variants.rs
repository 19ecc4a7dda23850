//! Weights with an adapter that a request names: forks of the model that are kept while there is room.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use regraft::{Generation, Model};
use serde_json::{Value, json};

use crate::{
    adapters::{AdapterStore, Opened},
    error::{Kind, Refusal},
    generations::{Generations, Label, ServedAdapter},
};

/// A model with one adapter.
pub(crate) struct Variant {
    /// Tells it from all others.
    pub(crate) id: u64,
    pub(crate) model: Model,
    pub(crate) label: Arc<Label>,
}

/// The variants of a model, the least recently used first.
pub(crate) struct Variants {
    entries: Mutex<Vec<Entry>>,
    /// One is made at a time: two of them would take more memory than was checked for.
    making: Mutex<()>,
    limit: usize,
    made: AtomicU64,
}

struct Entry {
    adapter: Opened,
    scale: f64,
    /// What it was made from. Kept, so that no other generation can be taken for it.
    base: Arc<Generation>,
    variant: Arc<Variant>,
    /// Bytes of the slots that it has for itself.
    bytes: usize,
}

impl Variants {
    /// Variants that together take at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Variants {
        Variants { entries: Mutex::default(), making: Mutex::default(), limit, made: AtomicU64::new(0) }
    }

    /// The weights that serve, with the adapter called `name` and no other. Makes them when they are not there: milliseconds to
    /// seconds.
    ///
    /// # Errors
    /// When the adapter is not there or does not fit, or there is no room for it.
    pub(crate) fn get(
        &self,
        model: &Model,
        generations: &Generations,
        store: &AdapterStore,
        (name, scale): (&str, f64),
    ) -> Result<Arc<Variant>, Refusal> {
        let adapter = store.get(name, model)?;
        if let Some(variant) = self.find(model, &adapter, scale) {
            return Ok(variant);
        }
        let _one = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        // Another request may have made it meanwhile.
        if let Some(variant) = self.find(model, &adapter, scale) {
            return Ok(variant);
        }
        self.make_room(touched_bytes(model, &adapter))?;
        let fork = model.fork();
        let Some(base) = fork.generation() else {
            return Err(regraft::RuntimeError::from(regraft::RuntimeErrorKind::NotBound).into());
        };
        let report = fork.adapters().set(&[(adapter.adapter.clone(), scale)])?;
        let served = ServedAdapter { name: name.to_owned(), scale, digest: adapter.digest };
        let label = generations.of(generations.label(&base).weights, vec![served]);
        let id = self.made.fetch_add(1, Ordering::Relaxed);
        let variant = Arc::new(Variant { id, model: fork, label });
        let entry = Entry { adapter, scale, base, variant: variant.clone(), bytes: report.bytes };
        self.lock().push(entry);
        // Other weights may have been published meanwhile; nothing else would let go of what this one holds.
        self.retire(model);
        Ok(variant)
    }

    fn find(&self, model: &Model, adapter: &Opened, scale: f64) -> Option<Arc<Variant>> {
        let serving = model.generation()?;
        let mut entries = self.lock();
        let at = entries.iter().position(|entry| {
            Arc::ptr_eq(&entry.base, &serving)
                && Arc::ptr_eq(&entry.adapter.adapter, &adapter.adapter)
                && entry.scale.to_bits() == scale.to_bits()
        })?;
        let entry = entries.remove(at);
        let variant = entry.variant.clone();
        entries.push(entry);
        Some(variant)
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
        while !entries.is_empty() && taken > self.limit - bytes {
            taken -= entries.remove(0).bytes;
        }
        Ok(())
    }

    /// Lets go of those that were made from other weights than serve now. Requests that have them keep them.
    pub(crate) fn retire(&self, model: &Model) {
        let serving = model.generation();
        let is_current = |entry: &mut Entry| serving.as_ref().is_some_and(|now| Arc::ptr_eq(&entry.base, now));
        let gone: Vec<Entry> = self.lock().extract_if(.., |entry| !is_current(entry)).collect();
        // Outside of the lock: it may free much.
        drop(gone);
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
                "adapter": entry.adapter.adapter.name, "scale": entry.scale, "bytes": entry.bytes,
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
fn touched_bytes(model: &Model, adapter: &Opened) -> usize {
    let touches = |used_as: &u32| adapter.adapter.layers.iter().any(|layer| layer.source == *used_as as usize);
    let recipes = model.refit_map().recipes.iter().zip(&model.plan().slots);
    recipes.filter(|(recipe, _)| recipe.uses.iter().any(touches)).map(|(_, slot)| slot.bytes).sum()
}
