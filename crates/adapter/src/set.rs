use std::{collections::BTreeMap, sync::Arc};

use regraft_weights::SourceInfo;

use crate::{Adapter, Overlay, Update};

/// The adapters of a generation with their scales. What they do does not depend on the order they are given in: they are
/// applied in the order of their names.
#[derive(Clone, Debug, Default)]
pub struct AdapterSet {
    adapters: Vec<(Arc<Adapter>, f64)>,
}

impl AdapterSet {
    /// The set of these adapters with their scales; `Err` names one that is given twice.
    ///
    /// # Errors
    /// The name that two of them have.
    pub fn new(adapters: impl IntoIterator<Item = (Arc<Adapter>, f64)>) -> Result<Self, String> {
        let mut adapters: Vec<_> = adapters.into_iter().collect();
        adapters.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        match adapters.windows(2).find(|pair| pair[0].0.name == pair[1].0.name) {
            Some(pair) => Err(pair[0].0.name.clone()),
            None => Ok(AdapterSet { adapters }),
        }
    }

    /// The adapters with their scales, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<Adapter>, f64)> {
        self.adapters.iter().map(|(adapter, scale)| (adapter, *scale))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.adapters.is_empty()
    }

    /// Sources that `self` and `other` do not treat alike.
    pub fn differing_sources(&self, other: &AdapterSet) -> Vec<usize> {
        let (ours, theirs) = (self.by_source(), other.by_source());
        let mut differing: Vec<usize> = (ours.iter())
            .filter(|(source, updates)| theirs.get(source) != Some(updates))
            .map(|(source, _)| *source)
            .chain(theirs.keys().filter(|source| !ours.contains_key(source)).copied())
            .collect();
        differing.sort_unstable();
        differing
    }

    /// The overlay on source number `source`; `None` where no adapter touches it.
    pub fn overlay(&self, source: usize, info: &SourceInfo) -> Option<Overlay> {
        let updates: Vec<(&Update, f64)> = (self.adapters.iter())
            .flat_map(|(adapter, scale)| {
                let layers = adapter.layers.iter().filter(move |layer| layer.source == source);
                layers.map(|layer| (&layer.update, *scale))
            })
            .collect();
        (!updates.is_empty()).then(|| Overlay::new(info.dtype, &info.shape, &updates))
    }

    /// Adapters are told apart as objects: comparing factors would cost more than applying them again.
    fn by_source(&self) -> BTreeMap<usize, Vec<(*const Adapter, u64)>> {
        let mut sources: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for (adapter, scale) in &self.adapters {
            for layer in &adapter.layers {
                sources.entry(layer.source).or_default().push((Arc::as_ptr(adapter), scale.to_bits()));
            }
        }
        sources
    }
}
