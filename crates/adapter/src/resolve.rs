//! Which sources the modules of an adapter file are: strict, so that nothing is applied to a layer that was not meant.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use regraft_weights::RefitMap;

use crate::dialect::{LdmNames, ModuleName};

/// The sources of one module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) weight: Option<usize>,
    pub(super) bias: Option<usize>,
}

/// The modules of an engine.
pub(super) struct Modules<'a> {
    /// By their dotted names.
    dotted: BTreeMap<&'a str, Target>,
    /// Dotted names by those with underscores, which may be the same for several.
    flat: HashMap<String, Vec<&'a str>>,
    ldm: Option<LdmNames>,
}

/// How the names of a file come to be names of the engine. One rule must do for all modules of a component.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    Same,
    /// The engine's names have this in front.
    Add(String),
    /// The file's names have this in front.
    Drop(String),
    /// The file has the block names of the original Stable Diffusion code.
    Ldm,
}

/// What modules of a component were found to be.
#[derive(Debug)]
pub(super) enum Resolved {
    Found(BTreeMap<ModuleName, Target>),
    /// Several rules fit: what each makes of one of the modules.
    Ambiguous(ModuleName, Vec<String>),
    /// No rule finds all: what the best one does.
    Missing {
        missing: BTreeSet<ModuleName>,
        found: BTreeMap<ModuleName, Target>,
    },
}

impl<'a> Modules<'a> {
    /// Those of `map`, and its parameters of these names as if they were modules.
    pub(super) fn new(map: &'a RefitMap, parameters: BTreeSet<&str>) -> Self {
        let mut dotted: BTreeMap<&str, Target> = BTreeMap::new();
        for (name, index) in map.uses_by_name() {
            // `torch.nn.MultiheadAttention` holds the stacked projections itself.
            let of = |suffixes: [&str; 2]| suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
            if let Some(module) = of([".weight", ".in_proj_weight"]) {
                dotted.entry(module).or_default().weight = Some(index);
            } else if let Some(module) = of([".bias", ".in_proj_bias"]) {
                dotted.entry(module).or_default().bias = Some(index);
            } else if name.rsplit('.').next().is_some_and(|last| parameters.contains(last)) {
                dotted.entry(name).or_default().weight = Some(index);
            }
        }
        let mut flat: HashMap<String, Vec<&str>> = HashMap::new();
        for (module, target) in &dotted {
            let named = flat.entry(module.replace('.', "_")).or_default();
            // Two spellings of one module are one.
            if !named.iter().any(|other| dotted[other] == *target) {
                named.push(module);
            }
        }
        let ldm = LdmNames::new(flat.keys().map(String::as_str));
        Modules { dotted, flat, ldm }
    }

    /// The names of all modules, with underscores for dots when `flat`.
    pub(super) fn names(&self, flat: bool) -> impl Iterator<Item = &str> {
        let (dotted, flattened) = (self.dotted.keys().copied(), self.flat.keys().map(String::as_str));
        dotted.filter(move |_| !flat).chain(flattened.filter(move |_| flat))
    }

    /// The dotted name of what [`Modules::names`] gave.
    pub(super) fn dotted_name<'n>(&self, name: &'n str) -> &'n str
    where
        'a: 'n,
    {
        match self.flat.get(name).map(Vec::as_slice) {
            Some([module]) => module,
            _ => name,
        }
    }

    /// The use that is the weight of the module of this dotted name.
    pub(super) fn weight(&self, module: &str) -> Option<usize> {
        self.dotted.get(module)?.weight
    }

    /// All modules that a name with underscores may mean.
    pub(super) fn of_flat_name(&self, name: &ModuleName) -> &[&'a str] {
        self.flat.get(&name.path).filter(|_| name.flat).map_or(&[], Vec::as_slice)
    }

    /// Finds the modules of one component.
    pub(super) fn resolve(&self, names: &BTreeSet<&ModuleName>) -> Resolved {
        let missing = |rule: &Rule| names.iter().filter(|name| self.find(rule, name).is_none()).count();
        let component = names.first().and_then(|name| Some(format!("{}{}", name.component?, name.separator())));
        let mut exact = component.into_iter().map(Rule::Add).chain([Rule::Same]);
        if let Some(rule) = exact.find(|rule| missing(rule) == 0) {
            return Resolved::Found(self.found(&rule, names));
        }
        // What a rule would be shows in any module that the file does not misspell, so in one of a few.
        let rules: BTreeSet<Rule> = names.iter().take(4).flat_map(|name| self.rules(name)).collect();
        let counted: Vec<(usize, &Rule)> =
            rules.iter().chain([&Rule::Same]).map(|rule| (missing(rule), rule)).collect();
        let mut fitting: Vec<&Rule> = counted.iter().filter(|(count, _)| *count == 0).map(|(_, rule)| *rule).collect();
        // Two ways to the same modules are one.
        let mut ways = BTreeSet::new();
        fitting.retain(|rule| ways.insert(names.iter().map(|name| self.find(rule, name)).collect::<Vec<_>>()));
        match fitting.as_slice() {
            [] => {
                let best = counted.iter().min().map_or(&Rule::Same, |(_, rule)| *rule);
                let lost = names.iter().filter(|name| self.find(best, name).is_none());
                Resolved::Missing {
                    missing: lost.map(|name| (*name).clone()).collect(),
                    found: self.found(best, names),
                }
            }
            [rule] => Resolved::Found(self.found(rule, names)),
            several => {
                let first = names.first().expect("a rule was found on one of them");
                let candidates = several.iter().filter_map(|rule| Some(self.find(rule, first)?.to_owned()));
                Resolved::Ambiguous((*first).clone(), candidates.collect())
            }
        }
    }

    fn found(&self, rule: &Rule, names: &BTreeSet<&ModuleName>) -> BTreeMap<ModuleName, Target> {
        let target = |name: &&ModuleName| Some(((*name).clone(), self.dotted[self.find(rule, name)?]));
        names.iter().filter_map(target).collect()
    }

    /// The dotted name that a rule gives a module, when there is exactly one.
    fn find(&self, rule: &Rule, name: &ModuleName) -> Option<&'a str> {
        let path = match rule {
            Rule::Same => name.path.clone(),
            Rule::Add(prefix) => format!("{prefix}{}", name.path),
            Rule::Drop(prefix) => name.path.strip_prefix(prefix.as_str())?.to_owned(),
            Rule::Ldm => self.ldm?.translate(&name.path.replace('.', "_"))?,
        };
        if name.flat || *rule == Rule::Ldm {
            match self.flat.get(&path)?.as_slice() {
                [module] => Some(*module),
                _ => None,
            }
        } else {
            self.dotted.get_key_value(path.as_str()).map(|(module, _)| *module)
        }
    }

    /// Rules that find this module, besides [`Rule::Same`].
    fn rules(&self, name: &ModuleName) -> BTreeSet<Rule> {
        let separator = name.separator();
        let path = name.path.as_str();
        let mut rules: BTreeSet<Rule> = self.ldm.iter().map(|_| Rule::Ldm).collect();
        let added = |module: &str| {
            let prefix = module.strip_suffix(path)?;
            prefix.ends_with(separator).then(|| Rule::Add(prefix.to_owned()))
        };
        if name.flat {
            rules.extend(self.flat.keys().filter_map(|module| added(module)));
        } else {
            rules.extend(self.dotted.keys().filter_map(|module| added(module)));
        }
        // Wrappers around a model are few and thin.
        rules.extend(path.match_indices(separator).take(3).map(|(at, _)| Rule::Drop(path[..=at].to_owned())));
        rules.retain(|rule| self.find(rule, name).is_some());
        rules
    }
}
