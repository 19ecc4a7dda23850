//! What Flux's, Hunyuan Video's and Stable Diffusion 3's own code calls modules, and what diffusers has for each.

/// A module of the original code.
pub(super) struct Row {
    /// Its names in files, the first of them in the engine's map.
    pub(super) original: &'static [&'static str],
    /// What diffusers has for it: several modules where it is joined, in the order of their rows.
    pub(super) ours: &'static [&'static str],
    /// It makes a shift and a scale, which diffusers has the other way round where nothing else comes of it.
    pub(super) is_shift_and_scale: bool,
    /// It is not a module of the original code: the first rows of this one.
    pub(super) begins: Option<&'static str>,
}

const fn row(original: &'static [&'static str], ours: &'static [&'static str]) -> Row {
    Row { original, ours, is_shift_and_scale: false, begins: None }
}

const fn shift_and_scale(original: &'static [&'static str], ours: &'static [&'static str]) -> Row {
    Row { original, ours, is_shift_and_scale: true, begins: None }
}

const fn beginning(of: &'static str, original: &'static [&'static str], ours: &'static [&'static str]) -> Row {
    Row { original, ours, is_shift_and_scale: false, begins: Some(of) }
}

/// A list of blocks.
pub(super) struct Blocks {
    /// What the original code calls it.
    pub(super) original: &'static str,
    /// What diffusers calls it.
    pub(super) ours: &'static str,
    /// The modules of a block.
    pub(super) rows: &'static [Row],
}

pub(super) const BLOCKS: [Blocks; 4] = [
    Blocks {
        original: "double_blocks",
        ours: "transformer_blocks",
        rows: &[
            row(&["img_attn.qkv", "img_attn_qkv"], &["attn.to_q", "attn.to_k", "attn.to_v"]),
            row(&["txt_attn.qkv", "txt_attn_qkv"], &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
            row(&["img_attn.proj", "img_attn_proj"], &["attn.to_out.0"]),
            row(&["txt_attn.proj", "txt_attn_proj"], &["attn.to_add_out"]),
            row(&["img_attn.norm.query_norm", "img_attn_q_norm"], &["attn.norm_q"]),
            row(&["img_attn.norm.key_norm", "img_attn_k_norm"], &["attn.norm_k"]),
            row(&["txt_attn.norm.query_norm", "txt_attn_q_norm"], &["attn.norm_added_q"]),
            row(&["txt_attn.norm.key_norm", "txt_attn_k_norm"], &["attn.norm_added_k"]),
            row(&["img_mlp.0", "img_mlp.fc1"], &["ff.net.0.proj"]),
            row(&["img_mlp.2", "img_mlp.fc2"], &["ff.net.2"]),
            row(&["txt_mlp.0", "txt_mlp.fc1"], &["ff_context.net.0.proj"]),
            row(&["txt_mlp.2", "txt_mlp.fc2"], &["ff_context.net.2"]),
            row(&["img_mod.lin", "img_mod.linear"], &["norm1.linear"]),
            row(&["txt_mod.lin", "txt_mod.linear"], &["norm1_context.linear"]),
        ],
    },
    Blocks {
        original: "single_blocks",
        ours: "single_transformer_blocks",
        rows: &[
            row(&["linear1"], &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]),
            // XLabs' trainer adapts attention only.
            beginning("linear1", &["linear1.qkv"], &["attn.to_q", "attn.to_k", "attn.to_v"]),
            row(&["linear2"], &["proj_out"]),
            row(&["norm.query_norm", "q_norm"], &["attn.norm_q"]),
            row(&["norm.key_norm", "k_norm"], &["attn.norm_k"]),
            row(&["modulation.lin", "modulation.linear"], &["norm.linear"]),
        ],
    },
    Blocks {
        original: "joint_blocks",
        ours: "transformer_blocks",
        rows: &[
            row(&["x_block.attn.qkv"], &["attn.to_q", "attn.to_k", "attn.to_v"]),
            row(&["context_block.attn.qkv"], &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
            row(&["x_block.attn.proj"], &["attn.to_out.0"]),
            row(&["context_block.attn.proj"], &["attn.to_add_out"]),
            row(&["x_block.attn2.qkv"], &["attn2.to_q", "attn2.to_k", "attn2.to_v"]),
            row(&["x_block.attn2.proj"], &["attn2.to_out.0"]),
            row(&["x_block.mlp.fc1"], &["ff.net.0.proj"]),
            row(&["x_block.mlp.fc2"], &["ff.net.2"]),
            row(&["context_block.mlp.fc1"], &["ff_context.net.0.proj"]),
            row(&["context_block.mlp.fc2"], &["ff_context.net.2"]),
            row(&["x_block.adaLN_modulation.1"], &["norm1.linear"]),
            shift_and_scale(&["context_block.adaLN_modulation.1"], &["norm1_context.linear"]),
        ],
    },
    Blocks {
        original: "txt_in.individual_token_refiner.blocks",
        ours: "context_embedder.token_refiner.refiner_blocks",
        rows: &[
            row(&["self_attn_qkv"], &["attn.to_q", "attn.to_k", "attn.to_v"]),
            row(&["self_attn_proj"], &["attn.to_out.0"]),
            row(&["mlp.fc1"], &["ff.net.0.proj"]),
            row(&["mlp.fc2"], &["ff.net.2"]),
            row(&["adaLN_modulation.1"], &["norm_out.linear"]),
        ],
    },
];

/// Modules of no block.
pub(super) const OUTSIDE: [Row; 17] = [
    row(&["img_in"], &["x_embedder"]),
    row(&["txt_in"], &["context_embedder"]),
    row(&["time_in.in_layer", "time_in.mlp.0", "t_embedder.mlp.0"], &["time_text_embed.timestep_embedder.linear_1"]),
    row(&["time_in.out_layer", "time_in.mlp.2", "t_embedder.mlp.2"], &["time_text_embed.timestep_embedder.linear_2"]),
    row(&["vector_in.in_layer", "y_embedder.mlp.0"], &["time_text_embed.text_embedder.linear_1"]),
    row(&["vector_in.out_layer", "y_embedder.mlp.2"], &["time_text_embed.text_embedder.linear_2"]),
    row(&["guidance_in.in_layer", "guidance_in.mlp.0"], &["time_text_embed.guidance_embedder.linear_1"]),
    row(&["guidance_in.out_layer", "guidance_in.mlp.2"], &["time_text_embed.guidance_embedder.linear_2"]),
    row(&["img_in.proj"], &["x_embedder.proj"]),
    row(&["x_embedder.proj"], &["pos_embed.proj"]),
    row(&["txt_in.input_embedder"], &["context_embedder.proj_in"]),
    row(&["txt_in.t_embedder.mlp.0"], &["context_embedder.time_text_embed.timestep_embedder.linear_1"]),
    row(&["txt_in.t_embedder.mlp.2"], &["context_embedder.time_text_embed.timestep_embedder.linear_2"]),
    row(&["txt_in.c_embedder.linear_1"], &["context_embedder.time_text_embed.text_embedder.linear_1"]),
    row(&["txt_in.c_embedder.linear_2"], &["context_embedder.time_text_embed.text_embedder.linear_2"]),
    row(&["final_layer.linear"], &["proj_out"]),
    shift_and_scale(&["final_layer.adaLN_modulation.1"], &["norm_out.linear"]),
];

/// What diffusers' `fuse_qkv_projections` makes beside the modules that it joins.
pub(super) const FUSED: [Row; 3] = [
    row(&["to_qkv"], &["to_q", "to_k", "to_v"]),
    row(&["to_kv"], &["to_k", "to_v"]),
    row(&["to_added_qkv"], &["add_q_proj", "add_k_proj", "add_v_proj"]),
];

/// Whether a module's path, with dots or underscores, is in a block of the original code.
pub(crate) fn is_original(path: &str) -> bool {
    let mut blocks =
        BLOCKS.iter().flat_map(|blocks| path.match_indices(blocks.original).map(|(at, list)| (at, list.len())));
    blocks.any(|(at, len)| {
        let begins = at == 0 || path[..at].ends_with(['.', '_']);
        let number = path[at + len..].strip_prefix(['.', '_']);
        begins && number.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_there_once() {
        for rows in BLOCKS.iter().map(|blocks| blocks.rows).chain([&OUTSIDE[..], &FUSED[..]]) {
            let names: Vec<&str> = rows.iter().flat_map(|row| row.original).copied().collect();
            let once: std::collections::BTreeSet<&str> = names.iter().copied().collect();
            assert_eq!(once.len(), names.len());
        }
    }

    #[test]
    fn paths_of_the_original_code() {
        for path in ["double_blocks.0.img_attn.qkv", "model.single_blocks_3_linear1", "joint_blocks_12_x_block_mlp_fc1"]
        {
            assert!(is_original(path), "{path}");
        }
        for path in ["transformer_blocks.0.attn.to_q", "my_double_blocks.x", "redouble_blocks.0.a", "double_blocks"] {
            assert!(!is_original(path), "{path}");
        }
    }
}
