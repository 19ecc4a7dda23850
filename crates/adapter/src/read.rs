//! Adapter files: their tensors, and the sources of an engine that these are for.

use std::{
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
};

use regraft_weights::{RefitMap, StateDict};

use crate::{
    Adapter, AdapterConfig, AdapterError, AdapterErrorKind, AdapterLayer, AdapterProblem,
    component::{Component, Settings},
    dialect::{Dialect, Key, ModuleName, Part},
    joined::Joined,
    layer::Parts,
    metadata::Configs,
    parameter,
    resolve::Modules,
};

/// The configuration in a folder that PEFT wrote.
const PEFT_CONFIG: &str = "adapter_config.json";
/// The weights in such a folder.
const PEFT_WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
/// The weights in a folder that diffusers wrote: they bring their own configuration.
const DIFFUSERS_WEIGHTS: [&str; 2] = ["pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"];

/// What is known of an adapter besides its file.
///
/// ```
/// # use regraft_adapter::AdapterOptions;
/// assert_eq!(AdapterOptions::new().alpha(16.0).alpha, Some(16.0));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct AdapterOptions {
    /// Its configuration, which counts before what its file says.
    pub config: Option<AdapterConfig>,
    /// The alpha that it was trained with, where neither its file nor a configuration says one.
    pub alpha: Option<f64>,
    /// The configuration that lies beside its file, which counts after what the file says. [`Adapter::open`] fills it in.
    pub beside: Option<AdapterConfig>,
}

impl AdapterOptions {
    /// Nothing but the file.
    pub fn new() -> Self {
        AdapterOptions::default()
    }

    /// Sets [`AdapterOptions::config`].
    #[must_use]
    pub fn config(mut self, config: impl Into<Option<AdapterConfig>>) -> Self {
        self.config = config.into();
        self
    }

    /// Sets [`AdapterOptions::alpha`].
    #[must_use]
    pub fn alpha(mut self, alpha: impl Into<Option<f64>>) -> Self {
        self.alpha = alpha.into();
        self
    }

    /// Sets [`AdapterOptions::beside`].
    #[must_use]
    pub fn beside(mut self, config: impl Into<Option<AdapterConfig>>) -> Self {
        self.beside = config.into();
        self
    }
}

impl From<&AdapterConfig> for AdapterOptions {
    fn from(config: &AdapterConfig) -> Self {
        AdapterOptions { config: Some(config.clone()), ..AdapterOptions::default() }
    }
}

impl Adapter {
    /// Reads an adapter for an engine with these sources: a file (`.safetensors`, `.pt`, `.bin`) in the namings of PEFT,
    /// diffusers or kohya's scripts, or a folder that PEFT's `save_pretrained` or diffusers wrote. Its name is the file's or
    /// the folder's.
    ///
    /// Kinds: LoRA of linear layers, convolutions and embeddings, rsLoRA, DoRA, AdaLoRA, LoHa, LoKr, IA3, full deltas, and whole
    /// tensors that were trained beside them. An `adapter_config.json` beside the file is read, whatever the file's name. `read`
    /// reads a weight file.
    ///
    /// # Errors
    /// When a file cannot be read, or [`AdapterErrorKind::Fit`] with everything that does not fit.
    pub fn open<E: Into<Box<dyn Error + Send + Sync>>>(
        path: &Path,
        options: &AdapterOptions,
        map: &RefitMap,
        read: impl FnOnce(&Path) -> Result<StateDict, E>,
    ) -> Result<Adapter, AdapterError> {
        let weights = weights_of(path);
        let beside = weights.with_file_name(PEFT_CONFIG);
        let beside = if options.config.is_none() && beside.exists() { Some(read_config(&beside)?) } else { None };
        let options = AdapterOptions { beside, ..options.clone() };
        let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
        let name = stem.map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        let weights = read(&weights).map_err(|e| AdapterErrorKind::Weights(e.into()))?;
        Adapter::from_state_dict(&name, &weights, options, map)
    }

    /// As [`Adapter::open`], from tensors that were read already.
    ///
    /// # Errors
    /// As [`Adapter::open`].
    pub fn from_state_dict(
        name: &str,
        weights: &StateDict,
        options: impl Into<AdapterOptions>,
        map: &RefitMap,
    ) -> Result<Adapter, AdapterError> {
        let mut problems = Vec::new();
        let (layers, foreign_keys) = read(weights, &options.into(), map, &mut problems);
        if problems.is_empty() {
            let made_for = |layer: &AdapterLayer| {
                let shape = map.source_of(layer.source).map(|source| map.sources[source].shape.clone());
                (map.use_name(layer.source).to_owned(), shape.unwrap_or_default())
            };
            let made_for = layers.iter().map(made_for).collect();
            return Ok(Adapter { foreign_keys, made_for, ..Adapter::new(name, layers) });
        }
        Err(AdapterErrorKind::Fit { adapter: name.into(), problems, keys: weights.len() }.into())
    }
}

/// The file of weights.
fn weights_of(path: &Path) -> PathBuf {
    if !path.is_dir() {
        return path.to_owned();
    }
    let known = PEFT_WEIGHTS.iter().chain(&DIFFUSERS_WEIGHTS).map(|name| path.join(name));
    known.clone().find(|file| file.exists()).unwrap_or_else(|| path.join(PEFT_WEIGHTS[0]))
}

/// Reads an `adapter_config.json` of PEFT.
///
/// # Errors
/// When it cannot be read.
pub fn read_config(path: impl AsRef<Path>) -> Result<AdapterConfig, AdapterError> {
    let path = path.as_ref();
    let failed = |why: String, help| AdapterErrorKind::Config { path: path.into(), why, help };
    let text = std::fs::read_to_string(path)
        .map_err(|e| failed(e.to_string(), "give the adapter_config.json that was saved with the adapter"))?;
    Ok(serde_json::from_str(&text)
        .map_err(|e| failed(format!("not a valid configuration of an adapter: {e}"), "save the adapter again"))?)
}

/// The layers, and the keys that are about other models of a pipeline.
fn read(
    weights: &StateDict,
    options: &AdapterOptions,
    map: &RefitMap,
    problems: &mut Vec<AdapterProblem>,
) -> (Vec<AdapterLayer>, Vec<String>) {
    if weights.is_empty() {
        problems.push(AdapterProblem::Empty);
    }
    let joined = Joined::of(map);
    let map = joined.map();
    let configs = Configs::new(weights, options, problems);
    let parts = parameter::named(take_apart(weights, problems), |name| configs.of(name), map, problems);
    let mut components: BTreeMap<_, BTreeMap<&ModuleName, &Parts<'_>>> = BTreeMap::new();
    for (module, parts) in &parts {
        components.entry(module.component).or_default().insert(module, parts);
    }
    let targets = components.keys().flat_map(|name| configs.of(*name).target_parameters());
    let modules = Modules::new(map, targets.map(|name| name.rsplit('.').next().unwrap_or(name)).collect());
    let alpha = configs.alpha().or(options.alpha);
    let settings = |name| Settings { config: configs.of(name), alpha };
    if options.alpha.is_some() && !needs_alpha(&components, &configs) {
        let why = "the adapter says its own: change how much it does by its scale";
        problems.push(AdapterProblem::Config { field: "alpha".into(), why: why.into() });
    }
    let components: Vec<Component<'_>> =
        (components.into_iter()).map(|(name, parts)| Component::new(&modules, map, settings(name), &parts)).collect();
    let fitting: Vec<Option<&str>> = components.iter().filter(|c| c.problems.is_empty()).map(|c| c.name).collect();
    let (mut foreign_keys, mut found) = (Vec::new(), Vec::new());
    for component in components {
        if is_elsewhere(&component, &fitting) {
            foreign_keys.extend(component.keys.into_iter().map(str::to_owned));
            continue;
        }
        problems.extend(component.problems);
        found.extend(component.layers);
    }
    let mut layers: BTreeMap<(usize, bool), (AdapterLayer, &str)> = BTreeMap::new();
    for (layer, key) in joined.folded(found, problems) {
        // A tensor may be replaced, and then be added to.
        let place = (layer.source, layer.update.is_rewrite());
        if let Some((_, other)) = layers.get(&place) {
            problems.push(AdapterProblem::Twice { key: key.into(), other: (*other).into() });
        }
        layers.insert(place, (layer, key));
    }
    (layers.into_values().map(|(layer, _)| layer).collect(), foreign_keys)
}

/// Whether any module's scale is left for the caller to state.
fn needs_alpha(
    components: &BTreeMap<Option<&'static str>, BTreeMap<&ModuleName, &Parts<'_>>>,
    configs: &Configs<'_>,
) -> bool {
    let is_left = |parts: &&Parts<'_>| !parts.contains_key(&Part::Alpha) && parts.keys().any(|part| part.is_scaled());
    let mut open = components.iter().filter(|(name, _)| !configs.of(**name).has_alpha());
    configs.alpha().is_none() && open.any(|(_, modules)| modules.values().any(is_left))
}

/// Whether a component is about another model than the engine's, given which components fit. Files for a pipeline bring
/// parts for several models, and its text encoders name their modules alike: which one the engine is, shapes tell.
fn is_elsewhere(component: &Component<'_>, fitting: &[Option<&str>]) -> bool {
    let is_text_encoder = |name: Option<&str>| name.is_some_and(|name| name.starts_with("text_encoder"));
    let alike = |other: &Option<&str>| is_text_encoder(component.name) && is_text_encoder(*other);
    let fits = component.problems.is_empty();
    !fits && component.name.is_some() && fitting.iter().any(|other| !component.found || alike(other))
}

/// The tensors of each module.
fn take_apart<'w>(weights: &'w StateDict, problems: &mut Vec<AdapterProblem>) -> BTreeMap<ModuleName, Parts<'w>> {
    let dialect = Dialect::of(weights.iter().map(|(key, _)| key));
    let mut parts: BTreeMap<ModuleName, Parts<'w>> = BTreeMap::new();
    for (key, tensor) in weights.iter() {
        match dialect.read(key) {
            Key::Part(module, part) => {
                let before = parts.entry(module).or_default().insert(part, (key, tensor));
                // PEFT saves the biases of trained modules twice.
                if let Some((other, _)) = before.filter(|(_, before)| !before.bit_equal(tensor)) {
                    problems.push(AdapterProblem::Twice { key: key.into(), other: other.into() });
                }
            }
            Key::Nothing => {}
            Key::Refused(why) => problems.push(AdapterProblem::Unsupported { key: key.into(), why: why.into() }),
            Key::Unknown => {
                let why = "no tool names a part of an adapter so".into();
                problems.push(AdapterProblem::Unmatched { key: key.into(), suggestion: None, why });
            }
        }
    }
    parts
}
