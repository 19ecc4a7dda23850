//! UNets as the original Stable Diffusion code names their blocks, which kohya's SDXL files follow: `input_blocks_4_1` for
//! `down_blocks.1.attentions.0`.

/// Translates block names of one UNet; its structure says which block is which.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LdmNames {
    /// Residual blocks of each block on the way down.
    layers: usize,
}

impl LdmNames {
    /// For an engine with these modules, by their names with underscores; `None` when it is not such a UNet.
    pub(crate) fn new<'a>(modules: impl Iterator<Item = &'a str>) -> Option<LdmNames> {
        let layer = |name: &str| {
            let (_, rest) = name.split_once("down_blocks_0_resnets_")?;
            rest.split('_').next()?.parse::<usize>().ok()
        };
        let layers = modules.filter_map(layer).max()?.checked_add(1)?;
        Some(LdmNames { layers })
    }

    /// The name that diffusers has for `name`, both with underscores; `None` when it is none of these.
    pub(crate) fn translate(self, name: &str) -> Option<String> {
        for (ldm, ours) in [
            ("time_embed_0", "time_embedding_linear_1"),
            ("time_embed_2", "time_embedding_linear_2"),
            ("label_emb_0_0", "add_embedding_linear_1"),
            ("label_emb_0_2", "add_embedding_linear_2"),
            ("input_blocks_0_0", "conv_in"),
            ("out_0", "conv_norm_out"),
            ("out_2", "conv_out"),
        ] {
            if name == ldm {
                return Some(ours.into());
            }
        }
        if let Some(rest) = name.strip_prefix("input_blocks_") {
            return self.down(rest);
        }
        if let Some(rest) = name.strip_prefix("output_blocks_") {
            return self.up(rest);
        }
        let (part, rest) = number(name.strip_prefix("middle_block_")?)?;
        match part {
            1 => Some(format!("mid_block_attentions_0_{rest}")),
            0 | 2 => Some(format!("mid_block_resnets_{}_{}", part / 2, residual(rest)?)),
            _ => None,
        }
    }

    fn down(self, rest: &str) -> Option<String> {
        let (index, rest) = number(rest)?;
        let (part, rest) = number(rest)?;
        let each = self.layers.checked_add(1)?;
        let (block, layer) = (index.checked_sub(1)? / each, (index - 1) % each);
        match (part, rest) {
            (0, "op") if layer == self.layers => Some(format!("down_blocks_{block}_downsamplers_0_conv")),
            (0, _) if layer < self.layers => Some(format!("down_blocks_{block}_resnets_{layer}_{}", residual(rest)?)),
            (1, _) if layer < self.layers => Some(format!("down_blocks_{block}_attentions_{layer}_{rest}")),
            _ => None,
        }
    }

    fn up(self, rest: &str) -> Option<String> {
        let (index, rest) = number(rest)?;
        let (part, rest) = number(rest)?;
        let each = self.layers.checked_add(1)?;
        let (block, layer) = (index / each, index % each);
        match (part, rest) {
            (0, _) => Some(format!("up_blocks_{block}_resnets_{layer}_{}", residual(rest)?)),
            // Behind the residual block, and the attention where there is one.
            (1 | 2, "conv") => Some(format!("up_blocks_{block}_upsamplers_0_conv")),
            (1, _) => Some(format!("up_blocks_{block}_attentions_{layer}_{rest}")),
            _ => None,
        }
    }
}

/// What the layers of a residual block are called.
fn residual(name: &str) -> Option<&'static str> {
    Some(match name {
        "in_layers_0" => "norm1",
        "in_layers_2" => "conv1",
        "emb_layers_1" => "time_emb_proj",
        "out_layers_0" => "norm2",
        "out_layers_3" => "conv2",
        "skip_connection" => "conv_shortcut",
        _ => return None,
    })
}

/// A number and what stands behind it and an underscore.
fn number(text: &str) -> Option<(usize, &str)> {
    let (digits, rest) = text.split_once('_')?;
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_by_structure() {
        let modules = ["down_blocks_0_resnets_0_conv1", "down_blocks_0_resnets_1_conv1", "conv_in"];
        let names = LdmNames::new(modules.into_iter()).expect("a UNet");
        for (ldm, ours) in [
            ("input_blocks_1_0_in_layers_2", "down_blocks_0_resnets_0_conv1"),
            ("input_blocks_3_0_op", "down_blocks_0_downsamplers_0_conv"),
            (
                "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
                "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
            ),
            ("input_blocks_8_1_proj_in", "down_blocks_2_attentions_1_proj_in"),
            ("middle_block_1_proj_out", "mid_block_attentions_0_proj_out"),
            ("middle_block_2_out_layers_3", "mid_block_resnets_1_conv2"),
            ("output_blocks_2_1_proj_in", "up_blocks_0_attentions_2_proj_in"),
            ("output_blocks_2_2_conv", "up_blocks_0_upsamplers_0_conv"),
            ("output_blocks_5_0_skip_connection", "up_blocks_1_resnets_2_conv_shortcut"),
            ("time_embed_2", "time_embedding_linear_2"),
            ("out_2", "conv_out"),
        ] {
            assert_eq!(names.translate(ldm).as_deref(), Some(ours), "{ldm}");
        }
        for other in ["input_blocks_1", "input_blocks_0_1_x", "input_blocks_99999999999999999999_0_op", "down_blocks_0"]
        {
            assert_eq!(names.translate(other), None, "{other}");
        }
        assert!(LdmNames::new(["encoder_layer_0"].into_iter()).is_none());
    }
}
