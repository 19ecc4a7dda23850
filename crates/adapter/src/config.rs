use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, MapAccess, Visitor},
    ser::Serializer,
};
use serde_json::Value;

use crate::AdapterProblem;

/// What an `adapter_config.json` of PEFT says that matters when its tensors are applied. How layers are decomposed
/// (`use_effective_conv2d`, `decompose_both`, `decompose_factor`, `lora_bias`, `modules_to_save`) shows in the tensors.
///
/// The default is that of a file without a configuration: scales of 1, unless the file brings an alpha for each layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdapterConfig {
    /// `LORA`, `LOHA` or `LOKR`.
    #[serde(deserialize_with = "null_as_default")]
    pub peft_type: Option<String>,
    /// The rank of layers that `rank_pattern` does not name.
    #[serde(deserialize_with = "null_as_default")]
    pub r: Option<usize>,
    /// LoRA: the alpha of layers that `alpha_pattern` does not name.
    #[serde(deserialize_with = "null_as_default")]
    pub lora_alpha: Option<f64>,
    /// LoHa and LoKr: the same.
    #[serde(deserialize_with = "null_as_default")]
    pub alpha: Option<f64>,
    /// The scale is `alpha / sqrt(rank)` instead of `alpha / rank`.
    #[serde(deserialize_with = "null_as_default")]
    pub use_rslora: bool,
    /// Every layer has a magnitude.
    #[serde(deserialize_with = "null_as_default")]
    pub use_dora: bool,
    /// Weights are stored as `[in, out]`. Shapes say so, too; this decides where they are square.
    #[serde(deserialize_with = "null_as_default")]
    pub fan_in_fan_out: bool,
    /// Ranks of modules with other ranks than `r`.
    #[serde(deserialize_with = "null_as_default")]
    pub rank_pattern: Patterns<usize>,
    /// Alphas of modules with other alphas.
    #[serde(deserialize_with = "null_as_default")]
    pub alpha_pattern: Patterns<f64>,
    /// Everything else.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// PEFT's rank and alpha where its configuration does not say.
const PEFT_DEFAULT: usize = 8;

/// Settings that change what the tensors mean in a way that no [`Update`](super::Update) expresses.
const UNSUPPORTED: [&str; 7] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
];

/// Initialisations that take what the adapter starts with out of the base weights.
const REPLACES_BASE: [&str; 5] = ["corda", "loftq", "lora_ga", "olora", "pissa"];

impl AdapterConfig {
    /// What cannot be applied.
    pub(super) fn problems(&self) -> Vec<AdapterProblem> {
        let config = |field: &str, why: String| AdapterProblem::Config { field: field.into(), why };
        let mut problems = Vec::new();
        if let Some(kind) = self.peft_type.as_ref().filter(|k| !["LORA", "LOHA", "LOKR"].contains(&k.as_str())) {
            problems.push(config("peft_type", format!("{kind} is not supported; LORA, LOHA and LOKR are")));
        }
        let set = |name: &&&str| self.other.get(**name).is_some_and(is_set);
        problems.extend(UNSUPPORTED.iter().filter(set).map(|f| config(f, "is not supported".into())));
        if let Some(init) = self.replaces_base() {
            let why = format!(
                "`{init}` changes the base weights: convert the adapter to plain LoRA \
                 (path_initial_model_for_weight_conversion of PEFT's save_pretrained)"
            );
            problems.push(config("init_lora_weights", why));
        }
        let ranks = self.rank_pattern.expressions().map(|e| ("rank_pattern", e));
        let expressions = ranks.chain(self.alpha_pattern.expressions().map(|e| ("alpha_pattern", e)));
        let why = |e| format!("`{e}` is a regular expression: name the modules instead");
        problems.extend(expressions.map(|(field, e)| config(field, why(e))));
        problems
    }

    fn replaces_base(&self) -> Option<&str> {
        let init = self.other.get("init_lora_weights")?.as_str()?;
        REPLACES_BASE.iter().any(|name| init.starts_with(name)).then_some(init)
    }

    /// How the factors of a module are scaled; `module` is its name in the model.
    pub(super) fn scaling(&self, module: &str) -> Scaling {
        let from_peft = self.peft_type.is_some();
        let rank = self.r.or(from_peft.then_some(PEFT_DEFAULT));
        let alpha = self.lora_alpha.or(self.alpha).or(from_peft.then_some(PEFT_DEFAULT as f64));
        Scaling {
            rank: self.rank_pattern.get(module).copied().or(rank),
            alpha: self.alpha_pattern.get(module).copied().or(alpha),
            by_root: self.use_rslora,
        }
    }
}

/// What scales the factors of one layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scaling {
    /// The rank that the configuration says.
    pub(super) rank: Option<usize>,
    /// Without it the scale is 1.
    pub(super) alpha: Option<f64>,
    /// rsLoRA.
    pub(super) by_root: bool,
}

impl Scaling {
    /// The scale of factors of this rank.
    pub(super) fn factor(&self, rank: usize) -> f64 {
        let rank = rank as f64;
        self.alpha.map_or(1.0, |alpha| alpha / if self.by_root { rank.sqrt() } else { rank })
    }
}

/// Values for modules by pattern, in order: the first pattern that matches counts. PEFT's patterns are regular
/// expressions that must match the end of a module's name from a dot on; here they are plain names, or with `^` in front
/// whole names.
#[derive(Clone, Debug, PartialEq)]
pub struct Patterns<T>(pub Vec<(String, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Patterns(Vec::new())
    }
}

impl<T> Patterns<T> {
    fn get(&self, module: &str) -> Option<&T> {
        self.0.iter().find(|(pattern, _)| matches(pattern, module)).map(|(_, value)| value)
    }

    /// Patterns that are no plain names.
    fn expressions(&self) -> impl Iterator<Item = &str> {
        let plain = |pattern: &str| !name_of(pattern).contains(['^', '$', '*', '+', '?', '|', '\\', '(', '[', '{']);
        self.0.iter().map(|(pattern, _)| pattern.as_str()).filter(move |p| !plain(p))
    }
}

fn matches(pattern: &str, module: &str) -> bool {
    let name = name_of(pattern);
    match module.strip_suffix(name.as_str()) {
        Some("") => true,
        Some(rest) => rest.ends_with('.') && !pattern.starts_with('^'),
        None => false,
    }
}

/// The module that a pattern names, without anchors and escapes of dots.
fn name_of(pattern: &str) -> String {
    let name = pattern.strip_prefix('^').unwrap_or(pattern);
    name.strip_suffix('$').unwrap_or(name).replace("\\.", ".")
}

impl<T: Serialize> Serialize for Patterns<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(pattern, value)| (pattern, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// A map that keeps the order of its entries.
        struct InOrder<T>(Vec<(String, T)>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Patterns<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from patterns to values")
            }

            fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
                while let Some(entry) = map.next_entry()? {
                    self.0.push(entry);
                }
                Ok(Patterns(self.0))
            }
        }
        deserializer.deserialize_map(InOrder(Vec::new()))
    }
}

fn null_as_default<'de, D: Deserializer<'de>, T: Default + DeserializeOwned>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Whether a setting is on: Python's truth.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> AdapterConfig {
        serde_json::from_str(json).expect("a configuration")
    }

    #[test]
    fn the_first_pattern_that_matches_counts() {
        let config = config(
            r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": null,
                "rank_pattern": {"0.query": 16, "query": 2, "^value$": 6}, "alpha_pattern": {"layer\\.1\\.query": 3}}"#,
        );
        let scale = |module: &str| config.scaling(module).rank.map(|r| config.scaling(module).factor(r));
        assert_eq!(scale("layer.0.query"), Some(0.5));
        assert_eq!(scale("layer.1.query"), Some(1.5));
        assert_eq!(scale("layer.1.subquery"), Some(2.0));
        assert_eq!(scale("layer.value"), Some(2.0));
        assert_eq!(scale("value"), Some(8.0 / 6.0));
        assert!(config.problems().is_empty());
    }

    #[test]
    fn scales_by_the_root_of_the_rank() {
        let config = config(r#"{"r": 16, "lora_alpha": 8, "use_rslora": true}"#);
        assert_eq!(config.scaling("fc").factor(16), 2.0);
        assert_eq!(AdapterConfig::default().scaling("fc").factor(16), 1.0);
    }

    #[test]
    fn what_cannot_be_applied_is_listed() {
        let config = config(
            r#"{"peft_type": "IA3", "use_qalora": true, "layer_replication": [], "init_lora_weights": "pissa_niter_4",
                "alpha_pattern": {"layer.[01].query": 3}}"#,
        );
        let problems = config.problems();
        let fields: Vec<&str> = problems.iter().map(AdapterProblem::key).collect();
        assert_eq!(fields, ["peft_type", "use_qalora", "init_lora_weights", "alpha_pattern"]);
    }
}
