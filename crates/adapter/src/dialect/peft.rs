//! `base_model.model.<module>.lora_A.weight`: what PEFT's `save_pretrained` writes.

use super::{Key, ModuleName, Part, unwrapped};

const PREFIX: &str = "base_model.model.";

/// Whether a key is PEFT's.
pub(super) fn is(key: &str) -> bool {
    key.starts_with(PREFIX)
}

/// Takes a key apart.
pub(super) fn read(key: &str) -> Key {
    let name = key.strip_prefix(PREFIX).unwrap_or(key);
    match split(name) {
        Some((path, _)) if path.ends_with(".base_layer.out_proj") => {
            let why = "the output of a MultiheadAttention, which PEFT applies twice: merge the adapter with PEFT and \
                       give the weights with --weights";
            Key::Refused(why)
        }
        // PEFT puts no component in front: the path is the module's name in the model that was trained.
        Some((path, part)) => Key::Part(ModuleName { component: None, path: unwrapped(path), flat: false }, part),
        None if name.split('.').any(|segment| segment == "oft_r") => Key::Refused(
            "OFT as PEFT wrote it before 0.15, which newer versions read otherwise: merge it with that version",
        ),
        None => whole(name),
    }
}

/// Tensors that were trained as a whole, and what PEFT saves beside a trained embedding.
fn whole(name: &str) -> Key {
    let Some((path, last)) = name.rsplit_once('.') else { return Key::Unknown };
    let path = unwrapped(path);
    if path.split('.').any(|segment| part(segment, &[]).is_some()) {
        return Key::Unknown;
    }
    // PEFT keeps what a trained module was before beside it.
    if path.ends_with(".original_module") {
        return Key::Nothing;
    }
    let path = path.strip_suffix(".modules_to_save").map_or_else(|| path.clone(), str::to_owned);
    let inner = |path: &str| -> Option<String> {
        let path = path.strip_suffix(".base_layer")?;
        Some(path.strip_suffix(".token_adapter").unwrap_or(path).to_owned())
    };
    let (path, part) = match (inner(&path), last) {
        (Some(path), "weight") => (path, Part::BaseWeight),
        (Some(path), "bias") => (path, Part::Bias),
        (None, "weight") => (path, Part::Weight),
        (None, "bias") => (path, Part::Bias),
        _ => return Key::Unknown,
    };
    Key::Part(ModuleName { component: None, path, flat: false }, part)
}

/// Parts a name at the segment that says what the tensor is: `fc.lora_A.default.weight` is `fc` and the down factor. The
/// name of the adapter is not in files of newer versions.
pub(super) fn split(name: &str) -> Option<(&str, Part)> {
    let (mut rest, mut after) = (name, Vec::new());
    // Behind the segment come at most an adapter's name and `weight` or `bias`.
    for _ in 0..3 {
        let (path, segment) = rest.rsplit_once('.')?;
        if let Some(part) = part(segment, &after) {
            return Some((path.strip_suffix(".token_adapter").unwrap_or(path), part));
        }
        after.insert(0, segment);
        rest = path;
    }
    None
}

fn part(segment: &str, after: &[&str]) -> Option<Part> {
    let is_bias = after.last() == Some(&"bias");
    let part = match segment {
        "lora_B" if is_bias => return Some(Part::UpBias),
        "lora_A" => Part::Down,
        "lora_B" => Part::Up,
        "lora_embedding_A" => Part::EmbeddingDown,
        "lora_embedding_B" => Part::EmbeddingUp,
        "lora_magnitude_vector" => Part::Magnitude,
        "lora_E" => Part::Singular,
        "ia3_l" => Part::Ia3,
        "oft_R" => Part::OftR,
        "oft_embedding_R" => Part::OftEmbeddingR,
        "boft_R" => Part::BoftR,
        "boft_s" => Part::BoftS,
        "trainable_tokens_delta" => Part::Tokens,
        _ => Part::of_lycoris(segment)?,
    };
    let known = matches!(after, [] | [_] | [_, "weight"]) && !is_bias;
    known.then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part_of(key: &str) -> Option<(String, Part)> {
        match read(key) {
            Key::Part(module, part) => Some((module.path, part)),
            Key::Refused(_) | Key::Unknown | Key::Nothing => None,
        }
    }

    #[test]
    fn parts_with_and_without_the_name_of_an_adapter() {
        let expected = |path: &str, part| Some((path.to_owned(), part));
        for (key, part) in [
            ("base_model.model.a.fc.lora_A.weight", Part::Down),
            ("base_model.model.a.fc.lora_A.default.weight", Part::Down),
            ("base_model.model.a.fc.lora_B.weight", Part::Up),
            ("base_model.model.a.fc.lora_B.bias", Part::UpBias),
            ("base_model.model.a.fc.lora_B.default.bias", Part::UpBias),
            ("base_model.model.a.fc.lora_embedding_A", Part::EmbeddingDown),
            ("base_model.model.a.fc.lora_embedding_B.default", Part::EmbeddingUp),
            ("base_model.model.a.fc.lora_magnitude_vector", Part::Magnitude),
            ("base_model.model.a.fc.lora_magnitude_vector.default.weight", Part::Magnitude),
            ("base_model.model.a.fc.hada_w1_a", Part::HadaW1A),
            ("base_model.model.a.fc.lokr_t2.default", Part::LokrT2),
        ] {
            assert_eq!(part_of(key), expected("a.fc", part), "{key}");
        }
        assert_eq!(part_of("base_model.model.a.fc.lora_A.default.bias"), None);
    }

    #[test]
    fn whole_tensors_and_other_kinds() {
        let expected = |path: &str, part| Some((path.to_owned(), part));
        for (key, path, part) in [
            ("classifier.weight", "classifier", Part::Weight),
            ("wte.base_layer.weight", "wte", Part::BaseWeight),
            ("wte.token_adapter.base_layer.weight", "wte", Part::BaseWeight),
            ("wte.token_adapter.trainable_tokens_delta", "wte", Part::Tokens),
            ("fc.base_layer.bias", "fc", Part::Bias),
            ("norm.modules_to_save.bias", "norm", Part::Bias),
            ("a._orig_mod.fc.lora_E", "a.fc", Part::Singular),
            ("a.fc.ia3_l", "a.fc", Part::Ia3),
        ] {
            assert_eq!(part_of(&format!("base_model.model.{key}")), expected(path, part), "{key}");
        }
        assert!(matches!(read("base_model.model.attn.base_layer.out_proj.lora_A.weight"), Key::Refused(_)));
        assert_eq!(read("base_model.model.norm.original_module.bias"), Key::Nothing);
        assert_eq!(read("base_model.model.fc.prompt"), Key::Unknown);
    }
}
