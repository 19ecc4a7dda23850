//! What the generations of a model are called: a number that is never used twice, and a digest that two servers have in
//! common when they serve the same weights.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use regraft::{Digest, Generation, Model};
use serde_json::{Value, json};

use crate::error::Refusal;

/// An adapter of a generation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServedAdapter {
    pub(crate) name: String,
    pub(crate) scale: f64,
    /// Of its tensors.
    pub(crate) digest: Digest,
}

/// What a generation is.
#[derive(Clone, Debug)]
pub(crate) struct Label {
    /// Counts up over all generations of a served model, those of adapters too.
    pub(crate) number: u64,
    /// Of the sources, without adapters.
    pub(crate) weights: Digest,
    pub(crate) adapters: Vec<ServedAdapter>,
    /// Of the weights and the adapters: what two servers compare.
    pub(crate) digest: Digest,
    pub(crate) made: SystemTime,
}

impl Label {
    pub(crate) fn to_json(&self) -> Value {
        let adapters: Vec<Value> = (self.adapters.iter())
            .map(|a| json!({"name": a.name, "scale": a.scale, "digest": a.digest.to_string()}))
            .collect();
        let made = self.made.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        json!({
            "generation": self.number, "digest": self.digest.to_string(), "weights": self.weights.to_string(),
            "adapters": adapters, "made": made,
        })
    }
}

/// The labels of the generations that are still there.
pub(crate) struct Generations {
    known: Mutex<Vec<(Weak<Generation>, Arc<Label>)>>,
    count: AtomicU64,
}

impl Generations {
    pub(crate) fn new() -> Generations {
        Generations { known: Mutex::default(), count: AtomicU64::new(0) }
    }

    /// Gives `generation` of `model` a label; `adapters` are what it was made with. The digests of its sources are computed
    /// where they are not known yet.
    ///
    /// # Errors
    /// When sources cannot be read back from the device.
    pub(crate) fn add(
        &self,
        model: &Model,
        generation: &Arc<Generation>,
        adapters: Vec<ServedAdapter>,
    ) -> Result<Arc<Label>, Refusal> {
        let weights = model.weights_digest(generation)?;
        let label = self.of(weights, adapters);
        let mut known = self.lock();
        known.retain(|(generation, _)| generation.strong_count() > 0);
        known.push((Arc::downgrade(generation), label.clone()));
        Ok(label)
    }

    /// A label of weights that serve under no name here.
    pub(crate) fn of(&self, weights: Digest, mut adapters: Vec<ServedAdapter>) -> Arc<Label> {
        adapters.sort_by(|a, b| a.name.cmp(&b.name));
        let digest = digest_with(weights, &adapters);
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        Arc::new(Label { number, weights, adapters, digest, made: SystemTime::now() })
    }

    /// The label of a generation that was added.
    pub(crate) fn label(&self, generation: &Arc<Generation>) -> Arc<Label> {
        let known = self.lock();
        // A generation's memory is not used for another one while a weak reference to it is kept.
        let found = known.iter().rev().find(|(known, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(generation)));
        found.map(|(_, label)| label.clone()).expect("every generation is labeled before it serves")
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Weak<Generation>, Arc<Label>)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest_with(weights: Digest, adapters: &[ServedAdapter]) -> Digest {
    if adapters.is_empty() {
        return weights;
    }
    let mut text = weights.to_string();
    for adapter in adapters {
        text.push_str(&format!("\n{}\0{}\0{:016x}", adapter.name, adapter.digest, adapter.scale.to_bits()));
    }
    Digest::of_bytes(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_tells_adapters_and_scales_apart() {
        let generations = Generations::new();
        let weights = Digest::of_bytes(b"weights");
        let adapter = |name: &str, scale| ServedAdapter { name: name.into(), scale, digest: Digest::of_bytes(b"a") };
        let plain = generations.of(weights, Vec::new());
        let one = generations.of(weights, vec![adapter("a", 0.5), adapter("b", 1.0)]);
        let same = generations.of(weights, vec![adapter("b", 1.0), adapter("a", 0.5)]);
        let other = generations.of(weights, vec![adapter("a", 0.25), adapter("b", 1.0)]);
        assert_eq!((plain.digest, one.digest), (weights, same.digest));
        assert!(one.digest != other.digest && one.digest != plain.digest);
        assert_eq!([plain.number, one.number, same.number], [0, 1, 2]);
    }
}
