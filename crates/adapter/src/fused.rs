//! Transformers of pipelines that one tool has with joined projections and another with split ones: files in the names of
//! Flux's, Hunyuan's and Stable Diffusion 3's own code, for an engine in those of diffusers.
//!
//! The product of a joined projection is that of its parts side by side: these take the rows of its second factor that are
//! theirs, and all of the first.

use regraft_tensor::Tensor;
use regraft_weights::{RefitMap, StateDict};

/// Modules of a block by their names in the original code, dots or underscores alike, and what diffusers has for each: several
/// where it is joined, in the order of their rows.
const MODULES: &[(&str, &[&str])] = &[
    ("img_attn.qkv", &["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("txt_attn.qkv", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
    ("img_attn.proj", &["attn.to_out.0"]),
    ("txt_attn.proj", &["attn.to_add_out"]),
    ("img_mlp.0", &["ff.net.0.proj"]),
    ("img_mlp.2", &["ff.net.2"]),
    ("txt_mlp.0", &["ff_context.net.0.proj"]),
    ("txt_mlp.2", &["ff_context.net.2"]),
    ("img_mlp.fc1", &["ff.net.0.proj"]),
    ("img_mlp.fc2", &["ff.net.2"]),
    ("txt_mlp.fc1", &["ff_context.net.0.proj"]),
    ("txt_mlp.fc2", &["ff_context.net.2"]),
    ("img_mod.lin", &["norm1.linear"]),
    ("txt_mod.lin", &["norm1_context.linear"]),
    ("img_mod.linear", &["norm1.linear"]),
    ("txt_mod.linear", &["norm1_context.linear"]),
    ("linear1", &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]),
    ("linear2", &["proj_out"]),
    ("modulation.lin", &["norm.linear"]),
    ("modulation.linear", &["norm.linear"]),
    ("x_block.attn.qkv", &["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("context_block.attn.qkv", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
    ("x_block.attn.proj", &["attn.to_out.0"]),
    ("context_block.attn.proj", &["attn.to_add_out"]),
    ("x_block.mlp.fc1", &["ff.net.0.proj"]),
    ("x_block.mlp.fc2", &["ff.net.2"]),
    ("context_block.mlp.fc1", &["ff_context.net.0.proj"]),
    ("context_block.mlp.fc2", &["ff_context.net.2"]),
];

/// Lists of blocks, and what diffusers calls them.
const BLOCKS: [(&str, &str); 3] = [
    ("double_blocks", "transformer_blocks"),
    ("single_blocks", "single_transformer_blocks"),
    ("joint_blocks", "transformer_blocks"),
];

/// What may stand before the blocks.
const PREFIXES: [&str; 6] =
    ["lora_unet_", "lora_transformer_", "lycoris_", "base_model.model.", "diffusion_model.", "transformer."];

/// The tensors of an adapter under the names of diffusers, when the engine has those and the file the others; `None` when there
/// is nothing to translate. What has no place stays as it is.
pub(super) fn split(weights: &StateDict, map: &RefitMap) -> Option<StateDict> {
    let uses = map.uses_by_name();
    let is_block = |segment: &str| BLOCKS.iter().any(|(original, _)| segment == *original);
    let engine_is_original = uses.keys().any(|name| name.split('.').any(is_block));
    if engine_is_original || !weights.iter().any(|(key, _)| Place::of(key).is_some()) {
        return None;
    }
    let rows = |module: &str| -> Option<usize> {
        let name = format!("{module}.weight");
        let is_it =
            |other: &&str| other.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let mut found = uses.iter().filter(|(other, _)| is_it(other)).map(|(_, one)| *one);
        let source = map.source_of(found.next().filter(|_| found.next().is_none())?)?;
        map.sources.get(source)?.shape.first().copied()
    };
    let mut translated = StateDict::new();
    translated.add_metadata(weights.metadata().iter().map(|(key, text)| (key.clone(), text.clone())));
    for (key, tensor) in weights.iter() {
        let parts = Place::of(key).and_then(|place| place.parts(tensor, &rows));
        match parts {
            Some(parts) => parts.into_iter().for_each(|(key, part)| translated.insert(key, part)),
            None => translated.insert(key, tensor.clone()),
        }
    }
    Some(translated)
}

/// Where a key of the original code is.
struct Place<'k> {
    /// What new keys have in front.
    prefix: &'static str,
    /// The block in diffusers' names.
    block: String,
    modules: &'static [&'static str],
    /// What the tensor is in its module.
    part: &'k str,
}

impl<'k> Place<'k> {
    fn of(key: &'k str) -> Option<Place<'k>> {
        let found = PREFIXES.iter().find_map(|prefix| Some((*prefix, key.strip_prefix(prefix)?)));
        let (prefix, rest) = found.unwrap_or(("", key));
        let (list, rest) = BLOCKS.iter().find_map(|(original, ours)| Some((*ours, rest.strip_prefix(original)?)))?;
        let rest = rest.strip_prefix(['.', '_'])?;
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, rest) = rest.split_at(digits);
        let rest = rest.strip_prefix(['.', '_']).filter(|_| digits > 0)?;
        let of = |(name, modules): &(&str, &'static [&'static str])| {
            // Names in files have dots, or underscores in their place, or both.
            let flat = |text: &str| text.replace('.', "_");
            let part = rest.get(name.len()..)?.strip_prefix('.')?;
            (flat(&rest[..name.len()]) == flat(name)).then_some((*modules, part))
        };
        let (modules, part) = MODULES.iter().find_map(of)?;
        // PEFT keeps the scale elsewhere; all others mean 1 where they say nothing.
        let prefix = if prefix == "base_model.model." { prefix } else { "transformer." };
        Some(Place { prefix, block: format!("{list}.{number}"), modules, part })
    }

    /// The tensor for each of the modules; `None` when it cannot be taken apart.
    fn parts(&self, tensor: &Tensor, rows: &impl Fn(&str) -> Option<usize>) -> Option<Vec<(String, Tensor)>> {
        let key = |module: &str| format!("{}{}.{module}.{}", self.prefix, self.block, self.part);
        if let [module] = self.modules {
            return Some(vec![(key(module), tensor.clone())]);
        }
        let shared = ["lora_down.weight", "lora_A.weight", "alpha"];
        if shared.contains(&self.part) {
            return Some(self.modules.iter().map(|module| (key(module), tensor.clone())).collect());
        }
        let by_rows = ["lora_up.weight", "lora_B.weight", "lora_B.bias", "diff", "diff_b", "dora_scale"];
        if !by_rows.contains(&self.part) {
            return None;
        }
        let each: Vec<usize> =
            self.modules.iter().map(|module| rows(&format!("{}.{module}", self.block))).collect::<Option<_>>()?;
        let total = tensor.shape().first().copied()?;
        if each.iter().try_fold(0usize, |sum, rows| sum.checked_add(*rows)) != Some(total) || total == 0 {
            return None;
        }
        let row = tensor.bytes().len() / total;
        let mut at = 0;
        let slice = |(module, rows): (&&str, &usize)| {
            let shape = std::iter::once(*rows).chain(tensor.shape()[1..].iter().copied()).collect();
            let bytes = regraft_tensor::AlignedVec::copy_of(&tensor.bytes()[at * row..(at + rows) * row]);
            at += rows;
            Some((key(module), Tensor::new(tensor.dtype(), shape, bytes.into()).ok()?))
        };
        self.modules.iter().zip(&each).map(slice).collect()
    }
}

#[cfg(test)]
mod tests {
    use regraft_ir::{Role, SourceKind};
    use regraft_tensor::DType;
    use regraft_weights::SourceInfo;

    use super::*;
    use crate::{Adapter, AdapterOptions};

    fn map(names: &[(&str, [usize; 2])]) -> RefitMap {
        let source = |(name, shape): &(&str, [usize; 2])| SourceInfo {
            name: format!("{name}.weight"),
            aliases: vec![],
            kind: SourceKind::Parameter,
            dtype: DType::F32,
            shape: shape.to_vec(),
            role: Role::Linear,
        };
        RefitMap { sources: names.iter().map(source).collect(), ..RefitMap::default() }
    }

    fn numbers(shape: &[usize], seed: usize) -> Tensor {
        let n = shape.iter().product::<usize>();
        Tensor::from_f64(DType::F32, shape, &(0..n).map(|i| ((i * 7 + seed * 3) % 11) as f64 - 5.0).collect::<Vec<_>>())
    }

    /// The parts of a joined projection are what its product is in their rows, in all namings.
    #[test]
    fn joined_projections_are_split_by_rows() {
        let joined = [("attn.to_q", 4), ("attn.to_k", 4), ("attn.to_v", 4), ("proj_mlp", 6)];
        let engine: Vec<(String, [usize; 2])> =
            joined.iter().map(|(name, rows)| (format!("single_transformer_blocks.1.{name}"), [*rows, 4])).collect();
        let engine: Vec<(&str, [usize; 2])> = engine.iter().map(|(name, shape)| (name.as_str(), *shape)).collect();
        let map = map(&engine);
        let (down, up) = (numbers(&[2, 4], 1), numbers(&[18, 2], 2));
        for (module, parts) in [
            ("lora_unet_single_blocks_1_linear1", ["lora_down", "lora_up"]),
            ("diffusion_model.single_blocks.1.linear1", ["lora_A", "lora_B"]),
            ("transformer.single_blocks.1.linear1", ["lora_A", "lora_B"]),
            ("single_blocks.1.linear1", ["lora_down", "lora_up"]),
        ] {
            let weights = StateDict::from_iter([
                (format!("{module}.{}.weight", parts[0]), down.clone()),
                (format!("{module}.{}.weight", parts[1]), up.clone()),
                (format!("{module}.alpha"), Tensor::from_slice(&[], &[4f32])),
            ]);
            let adapter = Adapter::from_state_dict("a", &weights, AdapterOptions::default(), &map);
            let adapter = adapter.unwrap_or_else(|e| panic!("{module}: {e}"));
            let whole: Vec<f64> = (0..72)
                .map(|e| {
                    (0..2).map(|r| up.to_f64_vec()[e / 4 * 2 + r] * down.to_f64_vec()[r * 4 + e % 4]).sum::<f64>() * 2.0
                })
                .collect();
            let found: Vec<f64> = (adapter.layers.iter())
                .flat_map(|layer| {
                    let zeros = Tensor::zeros(DType::F64, &map.sources[layer.source].shape).expect("small");
                    layer.update.reference(&zeros, 1.0).to_f64_vec()
                })
                .collect();
            assert_eq!(found, whole, "{module}");
        }
    }

    #[test]
    fn every_name_is_there_once_and_sizes_must_fit() {
        let names: std::collections::BTreeSet<&str> = MODULES.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), MODULES.len());
        let map = map(&[("transformer_blocks.0.attn.to_q", [4, 4]), ("transformer_blocks.0.attn.to_out.0", [4, 4])]);
        let one = |key: &str| StateDict::from_iter([(key.to_owned(), numbers(&[12, 2], 0))]);
        // `to_k` and `to_v` are not in the engine.
        let key = "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight";
        assert!(split(&one(key), &map).is_some_and(|found| found.get(key).is_some()));
        let key = "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight";
        let found = split(&one(key), &map).expect("translated");
        assert!(found.get("transformer.transformer_blocks.0.attn.to_out.0.lora_up.weight").is_some());
        assert!(split(&one("lora_unet_down_blocks_0.lora_up.weight"), &map).is_none());
    }
}
