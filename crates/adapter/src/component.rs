//! From the modules of one component of a pipeline to updates of sources.

use std::collections::{BTreeMap, BTreeSet};

use regraft_weights::{RefitMap, suggestion};

use crate::{
    AdapterConfig, AdapterLayer, AdapterProblem,
    dialect::ModuleName,
    layer::{Layer, Parts},
    resolve::{Modules, Resolved, Target},
};

/// Longer lists of problems have no suggestions beyond this: finding them takes time.
const SUGGESTIONS: usize = 16;

/// What the modules of one component come to.
pub(super) struct Component<'a> {
    pub(super) name: Option<&'static str>,
    /// All its keys.
    pub(super) keys: Vec<&'a str>,
    /// Updates, each with a key of its module.
    pub(super) layers: Vec<(AdapterLayer, &'a str)>,
    pub(super) problems: Vec<AdapterProblem>,
    /// Whether the engine has any of its modules.
    pub(super) found: bool,
}

impl<'a> Component<'a> {
    /// Finds the modules in the engine and makes updates of their tensors.
    pub(super) fn new(
        modules: &Modules<'_>,
        map: &RefitMap,
        config: &AdapterConfig,
        parts: &BTreeMap<&ModuleName, &Parts<'a>>,
    ) -> Component<'a> {
        let names: BTreeSet<&ModuleName> = parts.keys().copied().collect();
        let mut component = Component {
            name: names.first().and_then(|name| name.component),
            keys: parts.values().flat_map(|parts| parts.values().map(|(key, _)| *key)).collect(),
            layers: Vec::new(),
            problems: Vec::new(),
            found: true,
        };
        match modules.resolve(&names) {
            Resolved::Found(targets) => component.update(&targets, map, config, parts),
            Resolved::Missing { missing, found } => {
                component.found = !found.is_empty();
                // Problems of those that are found are listed, too.
                component.update(&found, map, config, parts);
                missing.iter().for_each(|module| component.missing(module, modules, parts[module]));
            }
            Resolved::Ambiguous(module, candidates) => {
                component
                    .problems
                    .push(AdapterProblem::Ambiguous { key: first_key(parts[&module]).into(), candidates });
            }
        }
        component
    }

    fn update(
        &mut self,
        targets: &BTreeMap<ModuleName, Target>,
        map: &RefitMap,
        config: &AdapterConfig,
        parts: &BTreeMap<&ModuleName, &Parts<'a>>,
    ) {
        let layer = |module: &ModuleName| Layer {
            parts: parts[module].clone(),
            scaling: config.scaling(&module.path),
            dora: config.use_dora,
            from_peft: config.peft_type.is_some(),
        };
        for (module, target) in targets {
            let layer = layer(module);
            match layer.updates(*target, map) {
                Ok(updates) => self.layers.extend(updates.into_iter().map(|u| (u, first_key(&layer.parts)))),
                Err(problem) => self.problems.push(problem),
            }
        }
    }

    fn missing(&mut self, module: &ModuleName, modules: &Modules<'_>, parts: &Parts<'a>) {
        let candidates = modules.of_flat_name(module);
        if candidates.len() > 1 {
            let (key, candidates) = (first_key(parts).into(), candidates.iter().map(|&c| c.into()).collect());
            return self.problems.push(AdapterProblem::Ambiguous { key, candidates });
        }
        let suggestion =
            (self.problems.len() < SUGGESTIONS).then(|| suggestion(&module.path, modules.names(module.flat)));
        let suggestion = suggestion.flatten().map(|name| modules.dotted_name(&name).into());
        for (key, _) in parts.values() {
            self.problems.push(AdapterProblem::Unmatched { key: (*key).into(), suggestion: suggestion.clone() });
        }
    }
}

fn first_key<'a>(parts: &Parts<'a>) -> &'a str {
    parts.values().next().map_or("", |(key, _)| *key)
}
