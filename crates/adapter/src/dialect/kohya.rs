//! `lora_unet_<module with underscores>.lora_down.weight`: what kohya's scripts, LyCORIS and ComfyUI write.

use super::{Key, ModuleName, Part};

/// What keys begin with, and the component that it names.
const PREFIXES: [(&str, Option<&str>); 9] = [
    ("lora_unet_", Some("unet")),
    ("lora_transformer_", Some("transformer")),
    ("lora_te_", Some("text_encoder")),
    ("lora_te1_", Some("text_encoder")),
    ("lora_te2_", Some("text_encoder_2")),
    ("lora_te3_", Some("text_encoder_3")),
    ("lycoris_unet_", Some("unet")),
    ("lycoris_te_", Some("text_encoder")),
    ("lycoris_", None),
];

/// Whether a key is of this dialect.
pub(super) fn is(key: &str) -> bool {
    PREFIXES.iter().any(|(prefix, _)| key.starts_with(prefix))
}

/// Takes a key apart: the module's name has no dots.
pub(super) fn read(key: &str) -> Key {
    let prefixed = PREFIXES.into_iter().find_map(|(prefix, component)| Some((key.strip_prefix(prefix)?, component)));
    let Some((rest, component)) = prefixed else { return Key::Unknown };
    let Some((path, part)) = rest.split_once('.') else { return Key::Unknown };
    let part = match part {
        "lora_down.weight" | "lora_A.weight" => Part::Down,
        "lora_up.weight" | "lora_B.weight" => Part::Up,
        "lora_mid.weight" => Part::Mid,
        "alpha" => Part::Alpha,
        "dora_scale" => Part::DoraScale,
        "oft_blocks" => Part::OftBlocks,
        "rescale" => Part::Rescale,
        // LyCORIS calls those of norms `w_norm` and `b_norm`.
        "diff" | "w_norm" => Part::Diff,
        "diff_b" | "b_norm" => Part::DiffBias,
        "a1.weight" | "a2.weight" | "b1.weight" | "b2.weight" | "bm1.weight" | "bm2.weight" => {
            return Key::Refused("GLoRA is not supported: merge the adapter with LyCORIS");
        }
        "lambda_layer" | "p_layer.weight" | "q_layer.weight" => {
            return Key::Refused("T-LoRA is not supported: merge the adapter with LyCORIS");
        }
        // LyCORIS's IA3.
        "weight" => Part::Ia3,
        "on_input" => Part::OnInput,
        other => match Part::of_lycoris(other.strip_suffix(".weight").unwrap_or(other)) {
            Some(part) => part,
            None => return Key::Unknown,
        },
    };
    Key::Part(ModuleName { component, path: path.into(), flat: true }, part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_and_parts() {
        let of = |component, path: &str, part| Key::Part(ModuleName { component, path: path.into(), flat: true }, part);
        assert_eq!(read("lora_unet_conv_in.lora_down.weight"), of(Some("unet"), "conv_in", Part::Down));
        assert_eq!(read("lora_te2_fc1.alpha"), of(Some("text_encoder_2"), "fc1", Part::Alpha));
        assert_eq!(read("lycoris_blocks_0_fc.lokr_w1"), of(None, "blocks_0_fc", Part::LokrW1));
        assert_eq!(read("lora_unet_conv_in.hada_t1"), of(Some("unet"), "conv_in", Part::HadaT1));
        assert_eq!(read("lora_unet_norm_out.b_norm"), of(Some("unet"), "norm_out", Part::DiffBias));
        assert_eq!(read("lora_unet_conv_in.weight"), of(Some("unet"), "conv_in", Part::Ia3));
        assert_eq!(read("lora_unet_conv_in"), Key::Unknown);
    }
}
