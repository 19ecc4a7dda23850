//! Adapters of a program that several engines run together.

use std::collections::{BTreeMap, HashMap};

use regraft_weights::{RefitMap, Twin};

use crate::{Adapter, AdapterError, AdapterErrorKind, AdapterLayer, layer::unsupported};

/// The sources of several engines as if they were one's, to read an adapter for: [`Adapter::parts`] then are for each engine.
/// A source of several of them is there once.
pub fn together(maps: &[&RefitMap]) -> RefitMap {
    let mut sources = Vec::new();
    let mut seen: HashMap<&str, u32> = HashMap::new();
    // The new numbers of each map's sources.
    let mut numbers: Vec<Vec<u32>> = Vec::new();
    for map in maps {
        let mut number = |source: &regraft_weights::SourceInfo| {
            sources.push(source.clone());
            (sources.len() - 1) as u32
        };
        let of = |source: usize| {
            *seen.entry(map.sources[source].name.as_str()).or_insert_with(|| number(&map.sources[source]))
        };
        numbers.push((0..map.sources.len()).map(of).collect());
    }
    let mut twins: BTreeMap<&str, Twin> = BTreeMap::new();
    for (map, numbers) in maps.iter().zip(&numbers) {
        for twin in &map.twins {
            let Some(of) = numbers.get(twin.of as usize) else { continue };
            twins.entry(&twin.name).or_insert_with(|| Twin { of: *of, ..twin.clone() });
        }
    }
    RefitMap { sources, twins: twins.into_values().collect(), recipes: Vec::new() }
}

impl Adapter {
    /// The parts for each of several engines, of an adapter that was read for them [`together`].
    ///
    /// # Errors
    /// [`AdapterErrorKind::Fit`] where a layer is of a tied tensor that several engines have: which of them reads it in the
    /// module that is adapted cannot be told.
    pub fn parts(&self, maps: &[&RefitMap]) -> Result<Vec<Adapter>, AdapterError> {
        let by_name: Vec<HashMap<&str, usize>> = maps.iter().map(|map| map.uses_by_name()).collect();
        let mut problems = Vec::new();
        for (name, _) in &self.made_for {
            let having = by_name.iter().zip(maps).filter_map(|(uses, map)| Some((*uses.get(name.as_str())?, *map)));
            let is_tied = |(used_as, map): &(usize, &RefitMap)| {
                map.source_of(*used_as).is_some_and(|source| !map.sources[source].aliases.is_empty())
            };
            if having.clone().count() > 1 && having.clone().any(|one| is_tied(&one)) {
                let why = "the tensor is tied, and several engines read it: whose module is adapted cannot be told; merge \
                           the adapter, and give the weights";
                problems.push(unsupported(name, why));
            }
        }
        if !problems.is_empty() {
            let (adapter, keys) = (self.name.clone(), self.layers.len());
            return Err(AdapterErrorKind::Fit { adapter, problems, keys }.into());
        }
        let part = |uses: &HashMap<&str, usize>| {
            let own = self.layers.iter().zip(&self.made_for).filter_map(|(layer, (name, shape))| {
                let source = *uses.get(name.as_str())?;
                Some((AdapterLayer { source, update: layer.update.clone() }, (name.clone(), shape.clone())))
            });
            let (layers, made_for) = own.unzip();
            Adapter { foreign_keys: self.foreign_keys.clone(), made_for, ..Adapter::new(self.name.clone(), layers) }
        };
        Ok(by_name.iter().map(part).collect())
    }
}
