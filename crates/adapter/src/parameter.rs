//! PEFT's `target_parameters`: adapters of parameters that are not the weight of a module, such as those of all experts of a layer.
//!
//! Keys name the module, and how deep its wrappers are nested: `mlp.experts.lora_A.weight` and
//! `mlp.experts.base_layer.lora_A.weight`. Which parameter each is about, the configuration says where there is one, and where
//! there are several, their shapes.

use std::collections::{BTreeMap, BTreeSet};

use regraft_tensor::Tensor;
use regraft_weights::RefitMap;

use crate::{
    AdapterConfig, AdapterProblem, Update,
    dialect::{ModuleName, Part},
    layer::{Layer, Outcome, Parts, Weight, shape, unsupported},
    matrix,
};

/// What PEFT puts between a module and what wraps it.
const WRAPPED: &str = ".base_layer";

/// More parameters of one module than this are not told apart.
const MOST: usize = 4;

/// The tensors with the names of parameters where they are about parameters.
pub(super) fn named<'w, 'c>(
    parts: BTreeMap<ModuleName, Parts<'w>>,
    config_of: impl Fn(Option<&str>) -> &'c AdapterConfig,
    map: &RefitMap,
    problems: &mut Vec<AdapterProblem>,
) -> BTreeMap<ModuleName, Parts<'w>> {
    let mut named = BTreeMap::new();
    let mut nested: BTreeMap<(Option<&'static str>, String), Vec<Parts<'w>>> = BTreeMap::new();
    for (name, parts) in parts {
        let module = name.path.trim_end_matches(WRAPPED);
        let is_about_one = !name.flat && !parameters(config_of(name.component), module).is_empty();
        match is_about_one && parts.keys().any(|part| matches!(part, Part::Down | Part::Up)) {
            true => nested.entry((name.component, module.to_owned())).or_default().push(parts),
            false => drop(named.insert(name, parts)),
        }
    }
    for ((component, module), each) in nested {
        let candidates = parameters(config_of(component), &module);
        let key = each.iter().flat_map(|parts| parts.values()).map(|(key, _)| *key).next().unwrap_or_default();
        match assigned(&each, &candidates, map) {
            Some(order) => named.extend(each.into_iter().zip(order).map(|(parts, at)| {
                let path = candidates[at].strip_suffix(".weight").unwrap_or(&candidates[at]).to_owned();
                (ModuleName { component, path, flat: false }, parts)
            })),
            None => problems.push(AdapterProblem::Ambiguous { key: key.into(), candidates }),
        }
    }
    named
}

/// The names of the parameters of a module that a configuration says are adapted, in order.
fn parameters(config: &AdapterConfig, module: &str) -> Vec<String> {
    let of = |target: &str| {
        let (owner, name) = target.rsplit_once('.').unwrap_or(("", target));
        (owner.is_empty() || is_end(module, owner)).then(|| format!("{module}.{name}"))
    };
    config.target_parameters().filter_map(of).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Whether a name ends with whole segments that are `end`.
fn is_end(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Which of the candidates each is about; `None` when that cannot be told.
fn assigned(each: &[Parts<'_>], candidates: &[String], map: &RefitMap) -> Option<Vec<usize>> {
    if each.len() != candidates.len() || each.len() > MOST {
        return None;
    }
    if each.len() == 1 {
        return Some(vec![0]);
    }
    let shapes: Vec<&[usize]> = candidates.iter().map(|name| shape_of(map, name)).collect::<Option<_>>()?;
    let mut orders: Vec<Vec<usize>> = vec![vec![]];
    for parts in each {
        let longer = |order: Vec<usize>| {
            let free = (0..shapes.len()).filter(|at| !order.contains(at) && may_be_of(parts, shapes[*at]));
            free.map(|at| [order.as_slice(), &[at]].concat()).collect::<Vec<_>>()
        };
        orders = orders.into_iter().flat_map(longer).collect();
    }
    match orders.as_slice() {
        [order] => Some(order.clone()),
        _ => None,
    }
}

/// The shape of a parameter, whose name in the engine may have more in front, or less.
fn shape_of<'m>(map: &'m RefitMap, name: &str) -> Option<&'m [usize]> {
    let shape = |index: usize| Some(map.sources.get(map.source_of(index)?)?.shape.as_slice());
    let uses = map.uses_by_name();
    let shorter = name.match_indices('.').take(3).map(|(at, _)| &name[at + 1..]);
    if let Some(index) = std::iter::once(name).chain(shorter).find_map(|name| uses.get(name)) {
        return shape(*index);
    }
    let mut found = uses.iter().filter(|(other, _)| is_end(other, name)).map(|(_, index)| *index);
    let first = found.next()?;
    found.next().is_none().then(|| shape(first)).flatten()
}

/// Whether factors of these sizes are of a parameter of this shape.
fn may_be_of(parts: &Parts<'_>, shape: &[usize]) -> bool {
    let size = |part: Part| parts.get(&part).and_then(|(_, tensor)| <[usize; 2]>::try_from(tensor.shape()).ok());
    let (Some([_, inputs]), Some([outputs, _])) = (size(Part::Down), size(Part::Up)) else { return false };
    match *shape {
        [rows, cols] => (outputs, inputs) == (rows, cols),
        [_, rows, cols] => (outputs, inputs) == (rows, cols) || (inputs, outputs) == (rows, cols),
        _ => false,
    }
}

impl AdapterConfig {
    /// Parameters that are adapted beside modules.
    pub(super) fn target_parameters(&self) -> impl Iterator<Item = &str> {
        let given = self.other.get("target_parameters").and_then(|given| given.as_array());
        given.into_iter().flatten().filter_map(|name| name.as_str())
    }

    /// The full name of the parameter that a path is, where the configuration says that it is one.
    pub(super) fn parameter(&self, path: &str) -> Option<String> {
        let of = |target: &str| {
            let weight = format!("{path}.weight");
            [path.to_owned(), weight].into_iter().find(|name| is_end(name, target))
        };
        self.target_parameters().find_map(of)
    }
}

impl Layer<'_, '_> {
    /// LoRA of a parameter `[out, in]`, or of one for each expert: `A` of `[experts * r, in]` and `B` of `[out, r * experts]`.
    pub(super) fn of_parameter(&self, weight: Weight<'_>) -> Outcome<Update> {
        let ((down_key, down), (up_key, up)) = (self.part(Part::Down, Part::Up)?, self.part(Part::Up, Part::Down)?);
        let ([ranks, inputs], [outputs, _]) = (down.shape(), up.shape()) else {
            return Err(shape(down_key, "a matrix", down));
        };
        let (ranks, inputs, outputs) = (*ranks, *inputs, *outputs);
        let (experts, is_crossed) = match *weight.info.shape.as_slice() {
            [rows, cols] if (outputs, inputs) == (rows, cols) => (1, false),
            [experts, rows, cols] if experts > 1 && rows == cols && (outputs, inputs) == (rows, cols) => {
                let why = format!(
                    "whether {} has outputs or inputs first its shape does not tell: merge this layer with PEFT",
                    weight.info.name
                );
                return Err(unsupported(down_key, &why));
            }
            [experts, rows, cols] if experts > 1 && (outputs, inputs) == (rows, cols) => (experts, false),
            [experts, rows, cols] if experts > 1 && (inputs, outputs) == (rows, cols) => (experts, true),
            _ => return Err(shape(down_key, &format!("factors of {}", weight.info.type_text()), down)),
        };
        if ranks == 0 || !ranks.is_multiple_of(experts) || ranks > experts * 4 * inputs.max(outputs) {
            return Err(shape(down_key, &format!("a rank for each of {experts} experts"), down));
        }
        let rank = ranks / experts;
        self.check_rank(down_key, rank)?;
        let scale = self.scale(rank)?;
        let down = matrix::expect(down_key, matrix::flat(down_key, down, ranks)?, [ranks, inputs])?;
        let up = matrix::expect(up_key, matrix::flat(up_key, up, outputs)?, [outputs, ranks])?;
        if weight.info.shape.len() == 2 {
            return Ok(Update::LowRank { factors: crate::Factors { up, down }, scale, magnitude: None });
        }
        let (a, b) = (down.as_slice::<f32>().unwrap_or_default(), up.as_slice::<f32>().unwrap_or_default());
        let at = |expert: usize, output: usize, input: usize| -> f64 {
            let term = |r: usize| {
                f64::from(b[output * ranks + r * experts + expert]) * f64::from(a[(expert * rank + r) * inputs + input])
            };
            (0..rank).map(term).sum()
        };
        let mut delta = Vec::with_capacity(experts * outputs * inputs);
        for expert in 0..experts {
            match is_crossed {
                true => delta.extend((0..inputs * outputs).map(|e| at(expert, e % outputs, e / outputs) as f32)),
                false => delta.extend((0..inputs * outputs).map(|e| at(expert, e / inputs, e % inputs) as f32)),
            }
        }
        Ok(Update::Full { delta: Tensor::from_slice(&[weight.rows, weight.cols], &delta), scale })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_ends_of_names() {
        let config: AdapterConfig =
            serde_json::from_str(r#"{"target_parameters": ["experts.up", "router.weight", "bias_of"]}"#).expect("one");
        assert_eq!(parameters(&config, "h.0.experts"), ["h.0.experts.bias_of", "h.0.experts.up"]);
        assert_eq!(config.parameter("h.0.experts.up").as_deref(), Some("h.0.experts.up"));
        assert_eq!(config.parameter("h.router").as_deref(), Some("h.router.weight"));
        assert_eq!(config.parameter("h.other_experts.up"), None);
    }
}
