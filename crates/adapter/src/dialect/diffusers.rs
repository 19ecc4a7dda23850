//! `unet.<module>.lora_A.weight`: what diffusers' `save_lora_weights` writes, and the forms of its older versions; also
//! dotted names with the parts of kohya's scripts, and those of XLabs' trainer of Flux.

use super::{Key, ModuleName, Part, peft};

/// Parts that follow the name of a module.
const PARTS: [(&str, Part); 9] = [
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_mid.weight", Part::Mid),
    (".alpha", Part::Alpha),
    (".dora_scale", Part::DoraScale),
    (".oft_blocks", Part::OftBlocks),
    (".rescale", Part::Rescale),
    (".diff", Part::Diff),
    (".diff_b", Part::DiffBias),
];

/// Norms that are trained as a whole beside factors: in diffusers, and in Flux's own code.
const NORMS: [&str; 6] = ["norm_q", "norm_k", "norm_added_q", "norm_added_k", "query_norm", "key_norm"];

/// The LoRAs of XLabs' trainer, which belong to the processors of attention, and their modules in Flux's own code.
const XLABS: [(&str, &str); 6] = [
    ("qkv_lora1", "img_attn.qkv"),
    ("proj_lora1", "img_attn.proj"),
    ("qkv_lora2", "txt_attn.qkv"),
    ("proj_lora2", "txt_attn.proj"),
    ("qkv_lora", "linear1.qkv"),
    ("proj_lora", "linear2"),
];

/// Takes a key apart.
pub(super) fn read(key: &str) -> Key {
    if let Some((path, part)) = peft::split(key) {
        return Key::Part(ModuleName::dotted(path), part);
    }
    for (suffix, part) in [(".down.weight", Part::Down), (".up.weight", Part::Up)] {
        if let Some(stem) = key.strip_suffix(suffix) {
            return older(stem).map_or(Key::Unknown, |path| Key::Part(ModuleName::dotted(&path), part));
        }
    }
    if let Some(path) = key.strip_suffix(".weight").or_else(|| key.strip_suffix(".scale"))
        && NORMS.contains(&path.rsplit('.').next().unwrap_or_default())
    {
        return Key::Part(ModuleName::dotted(path), Part::Weight);
    }
    // The suffixes begin at a dot and are of whole segments: at most one fits.
    match PARTS.into_iter().find_map(|(suffix, part)| Some((key.strip_suffix(suffix)?, part))) {
        Some((path, part)) => Key::Part(ModuleName::dotted(path), part),
        None => Key::Unknown,
    }
}

/// The module of a key of older versions: `to_q.lora`, `processor.to_q_lora` and `q_proj.lora_linear_layer` before
/// `.down.weight` mean `to_q` and `q_proj`; `processor.qkv_lora1` is XLabs'.
fn older(stem: &str) -> Option<String> {
    if let Some(path) = stem.strip_suffix(".lora").or_else(|| stem.strip_suffix(".lora_linear_layer")) {
        return Some(path.into());
    }
    let (parent, last) = stem.rsplit_once('.')?;
    let xlabs = XLABS.iter().find_map(|(name, module)| (*name == last).then_some(*module));
    if let (Some(block), Some(module)) = (parent.strip_suffix(".processor"), xlabs) {
        return Some(format!("{block}.{module}"));
    }
    let projection = last.strip_suffix("_lora")?;
    let parent = parent.strip_suffix(".processor").unwrap_or(parent);
    let name = match (parent.ends_with("self_attn"), projection) {
        // Attention of the text encoders of transformers.
        (true, "to_q") => "q_proj",
        (true, "to_k") => "k_proj",
        (true, "to_v") => "v_proj",
        (true, "to_out") => "out_proj",
        (false, "to_out") => "to_out.0",
        (_, other) => other,
    };
    Some(format!("{parent}.{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_and_old_forms_name_the_same_modules() {
        let attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
        let of = |path: String, part| Key::Part(ModuleName { component: Some("unet"), path, flat: false }, part);
        for (key, module, part) in [
            ("to_q.lora_A.weight", "to_q", Part::Down),
            ("to_q.lora_B.style.weight", "to_q", Part::Up),
            ("to_q.lora.down.weight", "to_q", Part::Down),
            ("processor.to_q_lora.up.weight", "to_q", Part::Up),
            ("processor.to_out_lora.down.weight", "to_out.0", Part::Down),
            ("to_out.0.lora.up.weight", "to_out.0", Part::Up),
            ("to_q.lora_down.weight", "to_q", Part::Down),
            ("to_q.alpha", "to_q", Part::Alpha),
            ("to_q.diff_b", "to_q", Part::DiffBias),
        ] {
            let key = format!("unet.{attention}.{key}");
            assert_eq!(read(&key), of(format!("{attention}.{module}"), part), "{key}");
        }
        let key = "text_encoder.text_model.encoder.layers.0.self_attn.to_k_lora.up.weight";
        let Key::Part(module, Part::Up) = read(key) else { panic!("{key}") };
        assert_eq!(module.path, "text_model.encoder.layers.0.self_attn.k_proj");
    }

    #[test]
    fn loras_of_processors_are_those_of_their_modules() {
        for (key, path, part) in [
            ("double_blocks.3.processor.qkv_lora1.down.weight", "double_blocks.3.img_attn.qkv", Part::Down),
            ("double_blocks.3.processor.qkv_lora2.up.weight", "double_blocks.3.txt_attn.qkv", Part::Up),
            ("double_blocks.3.processor.proj_lora1.up.weight", "double_blocks.3.img_attn.proj", Part::Up),
            ("double_blocks.3.processor.proj_lora2.down.weight", "double_blocks.3.txt_attn.proj", Part::Down),
            ("single_blocks.7.processor.qkv_lora.down.weight", "single_blocks.7.linear1.qkv", Part::Down),
            ("single_blocks.7.processor.proj_lora.up.weight", "single_blocks.7.linear2", Part::Up),
        ] {
            for component in [None, Some("diffusion_model")] {
                let module = ModuleName { component, path: path.into(), flat: false };
                let key = format!("{}{key}", component.map(|name| format!("{name}.")).unwrap_or_default());
                assert_eq!(read(&key), Key::Part(module, part), "{key}");
            }
        }
        assert_eq!(read("double_blocks.3.processor.qkv_lora3.down.weight"), Key::Unknown);
    }

    #[test]
    fn a_module_called_down_is_no_factor() {
        for key in ["unet.down.weight", "down.weight", "unet.block.down.weight", "unet.block.weight"] {
            assert_eq!(read(key), Key::Unknown, "{key}");
        }
    }
}
