use std::{collections::BTreeMap, sync::Arc};

use regraft_weights::SourceInfo;

use crate::{Adapter, AdapterLayer, Overlay, Update};

/// The adapters of a generation with their scales. The order in which they are given does not matter: they are
/// applied in the order of their names.
///
/// ```
/// use std::sync::Arc;
///
/// use regraft_adapter::{Adapter, AdapterSet};
///
/// let (a, b) = (Arc::new(Adapter::new("a", vec![])), Arc::new(Adapter::new("b", vec![])));
/// let set = AdapterSet::new([(b, 0.3), (a.clone(), 0.7)])?;
/// let names: Vec<&str> = set.iter().map(|(adapter, _)| adapter.name.as_str()).collect();
/// assert_eq!(names, ["a", "b"]);
/// assert!(AdapterSet::new([(a.clone(), 0.7), (a, 0.3)]).is_err());
/// # Ok::<(), String>(())
/// ```
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

    /// Uses of sources for which the two sets differ.
    pub fn differing_uses(&self, other: &AdapterSet) -> Vec<usize> {
        let (ours, theirs) = (self.by_use(), other.by_use());
        let mut differing: Vec<usize> = (ours.iter())
            .filter(|(used_as, updates)| theirs.get(used_as) != Some(updates))
            .map(|(used_as, _)| *used_as)
            .chain(theirs.keys().filter(|used_as| !ours.contains_key(used_as)).copied())
            .collect();
        differing.sort_unstable();
        differing
    }

    /// Two adapters that both bring values for the same place of a source: the use, and their names.
    pub fn conflict(&self) -> Option<(usize, &str, &str)> {
        let mut seen: BTreeMap<usize, Vec<(&str, &Update)>> = BTreeMap::new();
        for (adapter, _) in &self.adapters {
            for layer in &adapter.layers {
                let earlier = seen.entry(layer.source).or_default();
                if let Some((other, _)) = earlier.iter().find(|(_, other)| both_bring(other, &layer.update)) {
                    return Some((layer.source, other, &adapter.name));
                }
                earlier.push((&adapter.name, &layer.update));
            }
        }
        None
    }

    /// Whether both uses of a source are treated alike.
    pub fn treats_alike(&self, one: usize, other: usize) -> bool {
        self.adapters.iter().all(|(adapter, _)| {
            let of = |used_as: usize| adapter.layers.iter().filter(move |layer| layer.source == used_as);
            let same = |(a, b): (&AdapterLayer, &AdapterLayer)| a.update.is_same(&b.update);
            of(one).count() == of(other).count() && of(one).zip(of(other)).all(same)
        })
    }

    /// The overlay on use number `used_as` of the source with this `info`; `None` where no adapter touches it.
    pub fn overlay(&self, used_as: usize, info: &SourceInfo) -> Option<Overlay> {
        let updates: Vec<(&Update, f64)> = (self.adapters.iter())
            .flat_map(|(adapter, scale)| {
                let layers = adapter.layers.iter().filter(move |layer| layer.source == used_as);
                layers.map(|layer| (&layer.update, *scale))
            })
            .collect();
        (!updates.is_empty()).then(|| Overlay::new(info.dtype, &info.shape, &updates))
    }

    /// Adapters are told apart as objects: comparing factors would cost more than applying them again.
    fn by_use(&self) -> BTreeMap<usize, Vec<(*const Adapter, u64)>> {
        let mut uses: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for (adapter, scale) in &self.adapters {
            for layer in &adapter.layers {
                uses.entry(layer.source).or_default().push((Arc::as_ptr(adapter), scale.to_bits()));
            }
        }
        uses
    }
}

/// Whether both updates bring values for the same place, or would come out otherwise in the other order.
fn both_bring(one: &Update, other: &Update) -> bool {
    match (one, other) {
        (Update::Rows { rows, .. }, Update::Rows { rows: others, .. }) => rows.iter().any(|row| others.contains(row)),
        // Factors may be multiplied in any order.
        (Update::Scaled { .. }, Update::Scaled { .. }) => false,
        _ => one.is_rewrite() && other.is_rewrite(),
    }
}
