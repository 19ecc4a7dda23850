//! From the modules of one component of a pipeline to updates of sources.

use std::collections::{BTreeMap, BTreeSet};

use regraft_weights::{RefitMap, suggestion};

use crate::{
    AdapterConfig, AdapterLayer, AdapterProblem,
    dialect::{ModuleName, Part},
    joined::is_original,
    layer::{Layer, Parts},
    resolve::{Modules, Resolved, Target},
};

/// Longer lists of problems have no suggestions beyond this: finding them takes time.
const SUGGESTIONS: usize = 16;

/// Facts about all modules of a component.
#[derive(Clone, Copy)]
pub(super) struct Settings<'c> {
    pub(super) config: &'c AdapterConfig,
    /// The alpha where the configuration says none.
    pub(super) alpha: Option<f64>,
}

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
        settings: Settings<'_>,
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
            Resolved::Found(targets) => component.update(&targets, map, settings, parts),
            Resolved::Missing { missing, found } => {
                component.found = !found.is_empty();
                // Problems of those that are found are listed, too.
                component.update(&found, map, settings, parts);
                missing.iter().for_each(|module| component.missing(module, modules, map, parts[module]));
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
        settings: Settings<'_>,
        parts: &BTreeMap<&ModuleName, &Parts<'a>>,
    ) {
        let config = settings.config;
        let scalings = config.scalings(settings.alpha);
        let is_of_own_code = parts.keys().any(|module| is_original(&module.path));
        for (module, target) in targets {
            let parameter = config.parameter(&module.path);
            let layer = Layer {
                module: &module.path,
                parts: parts[module].clone(),
                scaling: scalings.of(parameter.as_deref().unwrap_or(&module.path)),
                needs_scale: module.needs_scale(parts[module].values().map(|(key, _)| *key), is_of_own_code),
                config,
                is_parameter: parameter.is_some(),
            };
            match layer.updates(*target, map) {
                Ok(updates) => self.layers.extend(updates.into_iter().map(|u| (u, first_key(&layer.parts)))),
                // One of these is enough.
                Err(AdapterProblem::NoScale { .. }) if self.has_no_scale() => {}
                Err(problem) => self.problems.push(problem),
            }
        }
    }

    fn has_no_scale(&self) -> bool {
        self.problems.iter().any(|problem| matches!(problem, AdapterProblem::NoScale { .. }))
    }

    fn missing(&mut self, module: &ModuleName, modules: &Modules<'_>, map: &RefitMap, parts: &Parts<'a>) {
        let candidates = modules.of_flat_name(module);
        if candidates.len() > 1 {
            let (key, candidates) = (first_key(parts).into(), candidates.iter().map(|&c| c.into()).collect());
            return self.problems.push(AdapterProblem::Ambiguous { key, candidates });
        }
        let may_be = |name: &&str| {
            let weight = modules.weight(modules.dotted_name(name)).and_then(|one| map.source_of(one));
            weight.is_none_or(|source| may_be_of(parts, &map.sources[source].shape))
        };
        let names = || modules.names(module.flat).filter(may_be);
        let suggestion = (self.problems.len() < SUGGESTIONS).then(|| suggestion(&module.path, names()));
        let suggestion = suggestion.flatten().map(|name| modules.dotted_name(&name).into());
        let name = if module.path.is_empty() { "(the model itself)" } else { &module.path };
        for (part, (key, _)) in parts {
            let why = match part {
                Part::Weight | Part::Bias | Part::BaseWeight => {
                    format!("it was trained as a whole, and the engine has no module {name}")
                }
                _ => format!("the engine has no module {name}"),
            };
            self.problems.push(AdapterProblem::Unmatched { key: (*key).into(), suggestion: suggestion.clone(), why });
        }
    }
}

/// Whether the sizes of these parts allow that they are of a weight of this shape.
fn may_be_of(parts: &Parts<'_>, shape: &[usize]) -> bool {
    let (rows, cols) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product::<usize>());
    parts.iter().all(|(part, (_, tensor))| {
        let first = tensor.shape().first().copied().unwrap_or(1);
        let rest = tensor.numel().checked_div(first).unwrap_or(0);
        match part {
            Part::Down | Part::EmbeddingDown => rest == cols || rest == rows,
            Part::Up | Part::EmbeddingUp => first == cols || first == rows,
            Part::Weight | Part::BaseWeight | Part::Diff => tensor.numel() == rows * cols,
            _ => true,
        }
    })
}

fn first_key<'a>(parts: &Parts<'a>) -> &'a str {
    parts.values().next().map_or("", |(key, _)| *key)
}
