use std::{collections::BTreeMap, fmt};

use regex::{Regex, RegexBuilder};
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
/// The default says nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdapterConfig {
    /// `LORA`, `ADALORA`, `LOHA`, `LOKR`, `IA3`, `OFT`, `BOFT` or `TRAINABLE_TOKENS`.
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
    /// The scale itself, in place of alpha over the rank: no tool writes it; give 1 for factors that include their scales.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Option::is_none")]
    pub scaling: Option<f64>,
    /// The scale is `alpha / sqrt(rank)` instead of `alpha / rank`.
    #[serde(deserialize_with = "null_as_default")]
    pub use_rslora: bool,
    /// Every layer has a magnitude.
    #[serde(deserialize_with = "null_as_default")]
    pub use_dora: bool,
    /// Weights are stored as `[in, out]`. PEFT writes it for the last layer only, so it is not used.
    #[serde(deserialize_with = "null_as_default")]
    pub fan_in_fan_out: bool,
    /// Ranks of modules with other ranks than `r`.
    #[serde(deserialize_with = "ranks")]
    pub rank_pattern: Patterns<usize>,
    /// Alphas of modules with other alphas.
    #[serde(deserialize_with = "null_as_default")]
    pub alpha_pattern: Patterns<f64>,
    /// Everything else.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// The kinds of adapters of PEFT that are read.
const KINDS: [&str; 8] = ["LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "TRAINABLE_TOKENS"];

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

/// Initializations that take what the adapter starts with out of the base weights.
const REPLACES_BASE: [&str; 5] = ["corda", "loftq", "lora_ga", "olora", "pissa"];

impl AdapterConfig {
    /// What cannot be applied.
    pub(super) fn problems(&self) -> Vec<AdapterProblem> {
        let config = |field: &str, why: String| AdapterProblem::Config { field: field.into(), why };
        let mut problems = Vec::new();
        if let Some(kind) = self.peft_type.as_ref().filter(|k| !KINDS.contains(&k.as_str())) {
            problems.push(config("peft_type", format!("{kind} is not supported; {} are", KINDS.join(", "))));
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
        let fields =
            [("rank_pattern", self.rank_pattern.unreadable()), ("alpha_pattern", self.alpha_pattern.unreadable())];
        for (field, expressions) in fields {
            let why = |e: &str| format!("`{e}` is an expression that Regraft does not read: name the modules instead");
            problems.extend(expressions.iter().map(|e| config(field, why(e))));
        }
        problems
    }

    fn replaces_base(&self) -> Option<&str> {
        let init = self.other.get("init_lora_weights")?.as_str()?;
        REPLACES_BASE.iter().any(|name| init.starts_with(name)).then_some(init)
    }

    /// How the factors of modules are scaled; `alpha` holds where the configuration does not say.
    pub(super) fn scalings(&self, alpha: Option<f64>) -> Scalings {
        let from_peft = self.peft_type.is_some();
        Scalings {
            rank: self.r.or(from_peft.then_some(PEFT_DEFAULT)),
            alpha: self.lora_alpha.or(self.alpha).or(from_peft.then_some(PEFT_DEFAULT as f64)).or(alpha),
            by_root: self.use_rslora,
            fixed: self.scaling,
            ranks: self.rank_pattern.compiled(),
            alphas: self.alpha_pattern.compiled(),
        }
    }

    /// Whether it says the alpha of every module.
    pub(super) fn has_alpha(&self) -> bool {
        self.scaling.is_some() || self.peft_type.is_some() || self.lora_alpha.is_some() || self.alpha.is_some()
    }

    /// What a setting says that is on or off.
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.other.get(name)?.as_bool()
    }

    /// What a setting says that is a number.
    pub(super) fn number(&self, name: &str) -> Option<f64> {
        self.other.get(name)?.as_f64()
    }

    /// IA3: whether a module's inputs are scaled, as PEFT decides it.
    pub(super) fn is_feedforward(&self, module: &str) -> bool {
        match self.other.get("feedforward_modules") {
            Some(Value::String(pattern)) => {
                let whole = RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(EXPRESSION_LIMIT).build();
                whole.is_ok_and(|whole| whole.is_match(module))
            }
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).any(|name| module.ends_with(name)),
            _ => false,
        }
    }

    /// The tokens of an embedding whose rows were trained.
    pub(super) fn token_indices(&self, module: &str) -> Option<Vec<usize>> {
        let given = self.other.get("trainable_token_indices").or_else(|| self.other.get("token_indices"))?;
        let list = match given {
            Value::Array(_) => given,
            Value::Object(by_name) => {
                let is_it =
                    |name: &str| module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
                by_name.iter().find(|(name, _)| is_it(name)).map(|(_, list)| list)?
            }
            _ => return None,
        };
        let index = |value: &Value| value.as_u64().and_then(|index| usize::try_from(index).ok());
        list.as_array()?.iter().map(index).collect()
    }
}

/// How the factors of each module are scaled.
pub(super) struct Scalings {
    rank: Option<usize>,
    alpha: Option<f64>,
    by_root: bool,
    fixed: Option<f64>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

impl Scalings {
    /// How those of `module`, by its name in the model, are.
    pub(super) fn of(&self, module: &str) -> Scaling {
        let rank = self.ranks.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, rank)| *rank);
        let alpha = self.alphas.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, alpha)| *alpha);
        Scaling { rank: rank.or(self.rank), alpha: alpha.or(self.alpha), by_root: self.by_root, fixed: self.fixed }
    }
}

/// What scales the factors of one layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scaling {
    /// The rank that the configuration says.
    pub(super) rank: Option<usize>,
    /// Nothing says it otherwise.
    pub(super) alpha: Option<f64>,
    /// rsLoRA.
    pub(super) by_root: bool,
    /// The scale, whatever the rank.
    pub(super) fixed: Option<f64>,
}

impl Scaling {
    /// The scale of factors of this rank, where something says it.
    pub(super) fn factor(&self, rank: usize) -> Option<f64> {
        let rank = rank as f64;
        self.fixed.or(self.alpha.map(|alpha| alpha / if self.by_root { rank.sqrt() } else { rank }))
    }
}

/// Values for modules by pattern, in order: the first pattern that matches counts. Patterns are regular expressions that must
/// match the end of a module's name from a dot on.
#[derive(Clone, Debug, PartialEq)]
pub struct Patterns<T>(pub Vec<(String, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Patterns(Vec::new())
    }
}

impl<T: Copy> Patterns<T> {
    /// Those that can be read, in order.
    fn compiled(&self) -> Vec<(Regex, T)> {
        self.0.iter().filter_map(|(pattern, value)| Some((expression(pattern)?, *value))).collect()
    }

    fn unreadable(&self) -> Vec<&str> {
        self.0.iter().map(|(pattern, _)| pattern.as_str()).filter(|pattern| expression(pattern).is_none()).collect()
    }
}

/// Bytes that an expression may take: names of modules need few.
const EXPRESSION_LIMIT: usize = 1 << 20;

/// What PEFT matches names of modules with: `(.*\\.)?(PATTERN)$` from their first character on.
fn expression(pattern: &str) -> Option<Regex> {
    RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{pattern})$")).size_limit(EXPRESSION_LIMIT).build().ok()
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

/// The ranks of modules; AdaLoRA writes masks in their place, and its factors are of the ranks that these leave.
fn ranks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Patterns<usize>, D::Error> {
    let patterns: Patterns<Value> = null_as_default(deserializer)?;
    let mut ranks = Patterns::default();
    for (pattern, value) in patterns.0 {
        match value {
            Value::Array(_) => {}
            value => ranks.0.push((pattern, serde_json::from_value(value).map_err(serde::de::Error::custom)?)),
        }
    }
    Ok(ranks)
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
                "rank_pattern": {"0.query": 16, "query": 2, "^value$": 6, "h\\.[0-3]\\.fc|last": 32},
                "alpha_pattern": {"layer\\.1\\.query": 3}}"#,
        );
        let scalings = config.scalings(None);
        let scale = |module: &str| scalings.of(module).rank.and_then(|r| scalings.of(module).factor(r));
        assert_eq!(scale("layer.0.query"), Some(0.5));
        assert_eq!(scale("layer.1.query"), Some(1.5));
        assert_eq!(scale("layer.1.subquery"), Some(2.0));
        assert_eq!(scale("layer.value"), Some(2.0));
        assert_eq!(scale("value"), Some(8.0 / 6.0));
        assert_eq!(scale("model.h.2.fc"), Some(0.25));
        assert_eq!(scale("model.h.4.fc"), Some(2.0));
        assert_eq!(scale("last"), Some(0.25));
        assert!(config.problems().is_empty());
    }

    #[test]
    fn scales_by_the_root_of_the_rank() {
        let config = config(r#"{"r": 16, "lora_alpha": 8, "use_rslora": true}"#);
        assert_eq!(config.scalings(None).of("fc").factor(16), Some(2.0));
        assert_eq!(AdapterConfig::default().scalings(None).of("fc").factor(16), None);
        assert_eq!(AdapterConfig::default().scalings(Some(32.0)).of("fc").factor(16), Some(2.0));
    }

    #[test]
    fn what_cannot_be_applied_is_listed() {
        let config = config(
            r#"{"peft_type": "VERA", "use_qalora": true, "layer_replication": [], "init_lora_weights": "pissa_niter_4",
                "alpha_pattern": {"(?=layer).query": 3}, "rank_pattern": {"a": [true, false]}}"#,
        );
        let problems = config.problems();
        let fields: Vec<&str> = problems.iter().map(AdapterProblem::key).collect();
        assert_eq!(fields, ["peft_type", "use_qalora", "init_lora_weights", "alpha_pattern"]);
    }
}
