//! From the modules of one component of a pipeline to updates of sources.

use std::collections::{BTreeMap, BTreeSet};

use regraft_weights::{SourceInfo, suggestion};

use crate::{
    AdapterConfig, AdapterLayer, AdapterProblem,
    dialect::ModuleName,
    layer::{Layer, Orientation, Parts},
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
        sources: &[SourceInfo],
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
            Resolved::Found(targets) => component.update(&targets, sources, config, parts),
            Resolved::Missing { missing, found } => {
                component.found = !found.is_empty();
                // Problems of those that are found are listed, too.
                component.update(&found, sources, config, parts);
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
        sources: &[SourceInfo],
        config: &AdapterConfig,
        parts: &BTreeMap<&ModuleName, &Parts<'a>>,
    ) {
        let layer = |module: &ModuleName| Layer {
            parts: parts[module].clone(),
            scaling: config.scaling(&module.path),
            orientation: Orientation::Unknown,
            dora: config.use_dora,
            from_peft: config.peft_type.is_some(),
        };
        let mut layers: Vec<_> = targets.iter().map(|(module, target)| (layer(module), *target)).collect();
        let orientations = Orientations::new(&layers, sources);
        for (layer, target) in &mut layers {
            if let Some(weight) = target.weight {
                layer.orientation = orientations.of(&sources[weight], config);
            }
            match layer.updates(*target, sources) {
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

/// How linear layers that are not square are stored: square ones are stored as those of the same name are, or all others.
#[derive(Default)]
struct Orientations<'a> {
    by_name: BTreeMap<&'a str, Seen>,
    all: Seen,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    straight: bool,
    crossed: bool,
}

impl<'s> Orientations<'s> {
    fn new(layers: &[(Layer<'_>, Target)], sources: &'s [SourceInfo]) -> Self {
        let mut orientations = Orientations::default();
        for (layer, target) in layers {
            let Some(info) = target.weight.map(|weight| &sources[weight]) else { continue };
            let seen = match layer.orientation(info) {
                Some(Orientation::Straight) => Seen { straight: true, crossed: false },
                Some(Orientation::Crossed) => Seen { straight: false, crossed: true },
                Some(Orientation::Unknown) | None => continue,
            };
            orientations.all.add(seen);
            orientations.by_name.entry(last_name(info)).or_default().add(seen);
        }
        orientations
    }

    fn of(&self, info: &SourceInfo, config: &AdapterConfig) -> Orientation {
        let from_peft = config.peft_type.is_some();
        match (self.by_name.get(last_name(info)), self.all, config.fan_in_fan_out) {
            (Some(Seen { straight: true, crossed: false }), _, _) => Orientation::Straight,
            (Some(Seen { straight: false, crossed: true }), _, _) => Orientation::Crossed,
            (_, Seen { crossed: false, .. }, false) => Orientation::Straight,
            (_, Seen { straight: false, .. }, true) => Orientation::Crossed,
            (_, Seen { straight: false, crossed: true }, false) if !from_peft => Orientation::Crossed,
            // PEFT's configuration is right for the last layer only.
            _ => Orientation::Unknown,
        }
    }
}

impl Seen {
    fn add(&mut self, other: Seen) {
        self.straight |= other.straight;
        self.crossed |= other.crossed;
    }
}

/// What the module of a weight is called in its parent.
fn last_name(info: &SourceInfo) -> &str {
    let module = info.name.strip_suffix(".weight").unwrap_or(&info.name);
    module.rsplit_once('.').map_or(module, |(_, last)| last)
}
