//! Where the configuration of an adapter is: stated, in the metadata of its file, or beside it.

use std::collections::BTreeMap;

use regraft_weights::StateDict;
use serde_json::{Map, Value};

use crate::{AdapterConfig, AdapterOptions, AdapterProblem};

/// Where diffusers has them.
const KEY: &str = "lora_adapter_metadata";

/// Where other tools have the configuration as a whole.
const WHOLE: [&str; 4] = ["adapter_config", "peft_config", "lora_config", "config"];

/// Where tools have the alpha of all modules.
const ALPHAS: [&str; 4] = ["lora_alpha", "network_alpha", "ss_network_alpha", "alpha"];

/// The configuration of each component: stated by the caller, in the file, or beside it.
pub(super) struct Configs<'a> {
    stated: Option<&'a AdapterConfig>,
    /// Of keys without a component: under an empty name.
    by_component: BTreeMap<String, AdapterConfig>,
    beside: Option<&'a AdapterConfig>,
    none: AdapterConfig,
    /// The alpha of all modules, where the file says it.
    alpha: Option<f64>,
}

impl<'a> Configs<'a> {
    /// Reads what a file says, `{"unet.r": 4, "unet.lora_alpha": 8, ...}` or for a single model `{"r": 4, ...}`.
    pub(super) fn new(weights: &StateDict, options: &'a AdapterOptions, problems: &mut Vec<AdapterProblem>) -> Self {
        let problem = |why: String| AdapterProblem::Config { field: KEY.into(), why };
        let metadata = weights.metadata();
        let number = |key: &&str| metadata.get(*key)?.trim().parse::<f64>().ok().filter(|alpha| alpha.is_finite());
        let whole =
            |key: &&str| serde_json::from_str::<AdapterConfig>(metadata.get(*key)?).ok().filter(|c| c.has_alpha());
        let mut configs = Configs {
            stated: options.config.as_ref(),
            by_component: WHOLE.iter().find_map(whole).map(|config| (String::new(), config)).into_iter().collect(),
            beside: options.beside.as_ref(),
            none: AdapterConfig::default(),
            alpha: ALPHAS.iter().find_map(number),
        };
        for config in [configs.stated, configs.beside].into_iter().flatten().chain(configs.by_component.values()) {
            problems.extend(config.problems());
        }
        let fields = match metadata.get(KEY).map(|text| serde_json::from_str::<Map<String, Value>>(text)) {
            None => Map::new(),
            Some(Ok(fields)) => fields,
            Some(Err(e)) => {
                problems.push(problem(format!("is not a JSON object: {e}")));
                Map::new()
            }
        };
        let mut components: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
        for (key, value) in fields {
            let (component, field) = key.split_once('.').unwrap_or(("", &key));
            components.entry(component.into()).or_default().insert(field.into(), value);
        }
        for (component, fields) in components {
            match serde_json::from_value::<AdapterConfig>(fields.into()) {
                Ok(config) => {
                    problems.extend(config.problems());
                    configs.by_component.insert(component, config);
                }
                Err(e) => problems.push(problem(format!("of `{component}` cannot be read: {e}"))),
            }
        }
        configs
    }

    /// The configuration of a component's modules.
    pub(super) fn of(&self, component: Option<&str>) -> &AdapterConfig {
        let own = component.and_then(|name| self.by_component.get(name));
        let in_file = own.or_else(|| self.by_component.get(""));
        self.stated.or(in_file).or(self.beside).unwrap_or(&self.none)
    }

    /// The alpha of all modules, where the file says it beside any configuration.
    pub(super) fn alpha(&self) -> Option<f64> {
        self.alpha
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(metadata: &[(&str, &str)]) -> StateDict {
        let mut weights = StateDict::new();
        weights.add_metadata(metadata.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())));
        weights
    }

    #[test]
    fn fields_are_of_the_component_before_the_dot() {
        let none = AdapterOptions::default();
        let configs = |text: &str| {
            let mut problems = Vec::new();
            let weights = with(&[(KEY, text)]);
            let configs = Configs::new(&weights, &none, &mut problems);
            (["unet", "text_encoder"].map(|name| configs.of(Some(name)).r), problems.len())
        };
        assert_eq!(configs(r#"{"unet.r": 4, "unet.rank_pattern": {"a.b": 2}}"#), ([Some(4), None], 0));
        assert_eq!(configs(r#"{"r": 4, "text_encoder.r": 2}"#), ([Some(4), Some(2)], 0));
        for wrong in ["[]", "{", r#"{"unet.r": -1}"#, r#"{"unet.use_qalora": true}"#] {
            assert_eq!(configs(wrong).1, 1, "{wrong}");
        }
    }

    #[test]
    fn what_is_stated_counts_before_the_file_and_that_before_what_lies_beside() {
        let config = |r| Some(AdapterConfig { r: Some(r), ..AdapterConfig::default() });
        let mut problems = Vec::new();
        let file =
            with(&[("peft_config", r#"{"r": 2, "lora_alpha": 4}"#), ("ss_network_alpha", "16.0"), ("alpha", "None")]);
        let bare = with(&[]);
        let mut of = |weights: &StateDict, options: AdapterOptions| {
            let configs = Configs::new(weights, &options, &mut problems);
            (configs.of(None).r, configs.alpha())
        };
        let both = AdapterOptions { config: config(1), beside: config(3), alpha: None };
        assert_eq!(of(&file, both.clone()), (Some(1), Some(16.0)));
        assert_eq!(of(&file, AdapterOptions { config: None, ..both.clone() }), (Some(2), Some(16.0)));
        assert_eq!(of(&bare, AdapterOptions { config: None, ..both }), (Some(3), None));
        assert_eq!(of(&bare, AdapterOptions::default()), (None, None));
        assert!(problems.is_empty());
    }
}
