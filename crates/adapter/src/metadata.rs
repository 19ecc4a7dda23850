//! The configurations that diffusers writes into the metadata of its files.

use std::collections::BTreeMap;

use regraft_weights::StateDict;
use serde_json::{Map, Value};

use crate::{AdapterConfig, AdapterProblem};

/// Where they are.
const KEY: &str = "lora_adapter_metadata";

/// The configuration of each component.
pub(super) struct Configs<'a> {
    /// Of keys without a component: under an empty name.
    by_component: BTreeMap<String, AdapterConfig>,
    default: &'a AdapterConfig,
}

impl<'a> Configs<'a> {
    /// Reads what a file says, `{"unet.r": 4, "unet.lora_alpha": 8, ...}` or for a single model `{"r": 4, ...}`. Where it
    /// says nothing, `default` holds.
    pub(super) fn new(weights: &StateDict, default: &'a AdapterConfig, problems: &mut Vec<AdapterProblem>) -> Self {
        let problem = |why: String| AdapterProblem::Config { field: KEY.into(), why };
        let mut configs = Configs { by_component: BTreeMap::new(), default };
        problems.extend(default.problems());
        let fields = match weights.metadata().get(KEY).map(|text| serde_json::from_str::<Map<String, Value>>(text)) {
            None => Map::new(),
            Some(Ok(fields)) => fields,
            Some(Err(e)) => {
                problems.push(problem(format!("is no JSON object: {e}")));
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
        own.or_else(|| self.by_component.get("")).unwrap_or(self.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_of_the_component_before_the_dot() {
        let default = AdapterConfig::default();
        let configs = |text: &str| {
            let mut weights = StateDict::new();
            weights.add_metadata([(KEY.to_owned(), text.to_owned())]);
            let mut problems = Vec::new();
            let configs = Configs::new(&weights, &default, &mut problems);
            (["unet", "text_encoder"].map(|name| configs.of(Some(name)).r), problems.len())
        };
        assert_eq!(configs(r#"{"unet.r": 4, "unet.rank_pattern": {"a.b": 2}}"#), ([Some(4), None], 0));
        assert_eq!(configs(r#"{"r": 4, "text_encoder.r": 2}"#), ([Some(4), Some(2)], 0));
        for wrong in ["[]", "{", r#"{"unet.r": -1}"#, r#"{"unet.use_qalora": true}"#] {
            assert_eq!(configs(wrong).1, 1, "{wrong}");
        }
    }
}
