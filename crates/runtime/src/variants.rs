use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use serde::Serialize;

use crate::{
    Generation, Model, RuntimeError, RuntimeErrorKind, Slot,
    sync::{Mutex, lock},
};

/// Named models that share one engine: see [`Model::variants`].
///
/// A variant is a fork: it runs, is refitted and takes adapters like any model, and shares every slot that does not differ.
/// Removing a variant changes nothing for runs that use it.
///
/// ```no_run
/// # use regraft_runtime::{Model, RefitOptions, RuntimeError};
/// # use regraft_tensor::Tensor;
/// # use regraft_weights::StateDict;
/// # fn f(model: &Model, weights: &StateDict, inputs: &[Tensor]) -> Result<(), RuntimeError> {
/// let candidate = model.fork();
/// candidate.refit(weights, &RefitOptions::new())?;
/// model.add_variant("candidate", candidate)?;
/// let outputs = model.variants().get("candidate").expect("it was added").run(inputs)?;
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct Variants {
    named: Mutex<BTreeMap<String, Model>>,
}

/// Memory of the slots of a variant.
///
/// ```
/// # fn f(model: &regraft_runtime::Model) {
/// for memory in model.variant_memory() {
///     println!("{memory}"); // candidate: 46.7 MB of slots, of which 40.1 MB are shared
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VariantMemory {
    /// Its name; `None` for the model itself.
    pub name: Option<String>,
    /// Bytes of all its slots.
    pub bytes: usize,
    /// Bytes of slots that the model or another variant also has.
    pub shared: usize,
}

impl fmt::Display for VariantMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().unwrap_or("the model itself");
        let (all, shared) = (self.bytes as f64 / 1e6, self.shared as f64 / 1e6);
        write!(f, "{name}: {all:.1} MB of slots, of which {shared:.1} MB are shared")
    }
}

impl Variants {
    /// The variant called `name`, to run or to refit.
    pub fn get(&self, name: &str) -> Option<Model> {
        lock(&self.named).get(name).cloned()
    }

    /// The names, in order.
    pub fn names(&self) -> Vec<String> {
        lock(&self.named).keys().cloned().collect()
    }

    /// Removes the name; returns its model. The memory is freed once nothing uses it any more.
    pub fn remove(&self, name: &str) -> Option<Model> {
        lock(&self.named).remove(name)
    }
}

impl Model {
    /// Adds `variant`, a [fork](Model::fork) of this model, as `name`; returns the variant that had the name before.
    ///
    /// # Errors
    /// [`RuntimeErrorKind::ForeignVariant`] when it is of another engine.
    pub fn add_variant(&self, name: &str, variant: Model) -> Result<Option<Model>, RuntimeError> {
        if !self.is_of_one_program(&variant) {
            return Err(RuntimeErrorKind::ForeignVariant(name.to_owned()).into());
        }
        // A model that held itself would never be freed.
        let variant = if Arc::ptr_eq(&self.shared, &variant.shared) { variant.fork() } else { variant };
        Ok(lock(&self.variants().named).insert(name.to_owned(), variant))
    }

    /// Memory of slots, of this model and of each variant, and how much of it is shared between them.
    pub fn variant_memory(&self) -> Vec<VariantMemory> {
        let named = lock(&self.variants().named).clone();
        let all = std::iter::once((None, self.clone())).chain(named.into_iter().map(|(name, m)| (Some(name), m)));
        let all: Vec<(Option<String>, Arc<Generation>)> =
            all.filter_map(|(name, model)| Some((name, model.generation()?))).collect();
        let mut holders: HashMap<*const Slot, usize> = HashMap::new();
        for slot in all.iter().flat_map(|(_, generation)| &generation.slots) {
            *holders.entry(Arc::as_ptr(slot)).or_default() += 1;
        }
        let memory = |(name, generation): (Option<String>, Arc<Generation>)| {
            let bytes = |slots: &mut dyn Iterator<Item = &Arc<Slot>>| slots.map(|s| s.len()).sum();
            let shared = bytes(&mut generation.slots.iter().filter(|s| holders[&Arc::as_ptr(s)] > 1));
            VariantMemory { name, bytes: bytes(&mut generation.slots.iter()), shared }
        };
        all.into_iter().map(memory).collect()
    }
}

impl fmt::Debug for Variants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Variants({})", self.names().join(", "))
    }
}
