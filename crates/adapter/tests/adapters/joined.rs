//! Modules that a file has as one and the engine as several, and the other way round.

use regraft_adapter::{Adapter, AdapterOptions, Update};
use regraft_tensor::{DType, Tensor};
use regraft_weights::{RefitMap, StateDict};

use crate::{dict, map, numbers, problems_with, scalar};

/// The parts of a joined projection, with their rows.
const PARTS: [(&str, usize); 4] = [("attn.to_q", 4), ("attn.to_k", 4), ("attn.to_v", 4), ("proj_mlp", 6)];

fn engine_of(names: &[(&str, [usize; 2])]) -> RefitMap {
    let names: Vec<(String, [usize; 2])> =
        names.iter().map(|(name, shape)| (format!("{name}.weight"), *shape)).collect();
    map(names.iter().map(|(name, shape)| (name.as_str(), &shape[..])))
}

/// A block with its projections apart, and one with them joined.
fn blocks() -> [RefitMap; 2] {
    let apart: Vec<String> = PARTS.iter().map(|(name, _)| format!("single_transformer_blocks.1.{name}")).collect();
    let apart: Vec<(&str, [usize; 2])> =
        apart.iter().zip(PARTS).map(|(name, (_, rows))| (name.as_str(), [rows, 4])).collect();
    [engine_of(&apart), engine_of(&[("single_blocks.1.linear1", [18, 4])])]
}

fn read(weights: &StateDict, map: &RefitMap) -> Adapter {
    Adapter::from_state_dict("a", weights, AdapterOptions::default(), map).unwrap_or_else(|e| panic!("{e}"))
}

/// What is done to zeros, source by source.
fn deltas(adapter: &Adapter, map: &RefitMap) -> Vec<f64> {
    let of = |layer: &regraft_adapter::AdapterLayer| {
        let zeros = Tensor::zeros(DType::F64, &map.sources[layer.source].shape).expect("small");
        layer.update.reference(&zeros, 1.0).to_f64_vec()
    };
    adapter.layers.iter().flat_map(of).collect()
}

/// `scale * up @ down`.
fn product(up: &Tensor, down: &Tensor, scale: f64) -> Vec<f64> {
    let ([rows, rank], [_, cols]) = (up.shape(), down.shape()) else { panic!("matrices") };
    let (up, down) = (up.to_f64_vec(), down.to_f64_vec());
    let at = |i: usize, j: usize| (0..*rank).map(|r| up[i * rank + r] * down[r * cols + j]).sum::<f64>() * scale;
    (0..rows * cols).map(|e| at(e / cols, e % cols)).collect()
}

fn close(found: &[f64], expected: &[f64]) -> bool {
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-6 * (1.0 + b.abs()))
}

/// The spellings of a module of the original code, with the parts that go with them.
const SPELLINGS: [(&str, [&str; 2]); 6] = [
    ("lora_unet_single_blocks_1_linear1", ["lora_down", "lora_up"]),
    ("lora_transformer_single_blocks_1_linear1", ["lora_down", "lora_up"]),
    ("diffusion_model.single_blocks.1.linear1", ["lora_A", "lora_B"]),
    ("transformer.single_blocks.1.linear1", ["lora_A", "lora_B"]),
    ("single_blocks.1.linear1", ["lora_down", "lora_up"]),
    ("single_blocks.1.linear1", ["lora_A", "lora_B"]),
];

#[test]
fn a_5_a_joined_update_is_that_of_its_parts() {
    let (down, up) = (numbers(&[2, 4], 1), numbers(&[18, 2], 2));
    for (module, [a, b]) in SPELLINGS {
        let mut weights = StateDict::from_iter([
            (format!("{module}.{a}.weight"), down.clone()),
            (format!("{module}.{b}.weight"), up.clone()),
        ]);
        // Without an alpha all of these mean a scale of 1.
        for scale in [1.0, 2.0] {
            for map in blocks() {
                let found = deltas(&read(&weights, &map), &map);
                assert!(close(&found, &product(&up, &down, scale)), "{module}");
            }
            weights.insert(format!("{module}.alpha"), scalar(4.0));
        }
    }
    let peft = dict([
        ("base_model.model.single_blocks.1.linear1.lora_A.weight", &[2, 4][..]),
        ("base_model.model.single_blocks.1.linear1.lora_B.weight", &[18, 2]),
    ]);
    // PEFT keeps it elsewhere.
    assert!(problems_with(&peft, &Default::default(), &blocks()[0])[0].contains("nothing says its scale"));
}

/// XLabs' trainer has factors for the part of a joined module that is attention's.
#[test]
fn a_5_an_update_of_the_first_rows_leaves_the_others() {
    let (down, up) = (numbers(&[2, 4], 1), numbers(&[12, 2], 2));
    for front in ["", "diffusion_model."] {
        let module = format!("{front}single_blocks.1.processor.qkv_lora");
        let weights = StateDict::from_iter([
            (format!("{module}.down.weight"), down.clone()),
            (format!("{module}.up.weight"), up.clone()),
        ]);
        let [apart, joined] = blocks();
        let mut expected = product(&up, &down, 1.0);
        assert!(close(&deltas(&read(&weights, &apart), &apart), &expected));
        expected.resize(72, 0.0);
        assert!(close(&deltas(&read(&weights, &joined), &joined), &expected));
        // The whole module beside its first rows would have these changed twice.
        let mut both = weights.clone();
        both.insert(format!("{front}single_blocks.1.linear1.lora_down.weight"), numbers(&[2, 4], 3));
        both.insert(format!("{front}single_blocks.1.linear1.lora_up.weight"), numbers(&[18, 2], 4));
        for map in [&apart, &joined] {
            let found = problems_with(&both, &Default::default(), map);
            assert!(found.iter().all(|problem| problem.contains("updates the same source as")), "{found:?}");
        }
    }
}

/// Each part with a rank and a scale of its own, some of them only.
#[test]
fn a_5_updates_of_parts_are_one_of_the_joined_module() {
    let [apart, joined] = blocks();
    for (count, front, flat) in [(4, "transformer.", false), (2, "transformer.", false), (3, "lora_transformer_", true)]
    {
        let mut weights = StateDict::new();
        for (i, (name, rows)) in PARTS.iter().enumerate().take(count) {
            let module = format!("single_transformer_blocks.1.{name}");
            let module = format!("{front}{}", if flat { module.replace('.', "_") } else { module });
            weights.insert(format!("{module}.lora_down.weight"), numbers(&[i + 1, 4], i));
            weights.insert(format!("{module}.lora_up.weight"), numbers(&[*rows, i + 1], i + 10));
            weights.insert(format!("{module}.alpha"), scalar(1.0 + i as f32));
        }
        let mut expected = deltas(&read(&weights, &apart), &apart);
        expected.resize(72, 0.0);
        let adapter = read(&weights, &joined);
        assert!(matches!(adapter.layers.as_slice(), [layer] if matches!(layer.update, Update::LowRank { .. })));
        assert!(close(&deltas(&adapter, &joined), &expected), "{count}");
    }
}

/// Kinds that are not a product of two factors, and what cannot be taken apart.
#[test]
fn other_kinds_are_taken_apart_by_rows() {
    let [apart, joined] = blocks();
    let of = |parts: &[(&str, &[usize])]| -> StateDict {
        let key = |part: &str| format!("lora_unet_single_blocks_1_linear1.{part}");
        parts.iter().enumerate().map(|(i, (part, shape))| (key(part), numbers(shape, i))).collect()
    };
    for parts in [
        &[("diff", &[18, 4][..])][..],
        &[("hada_w1_a", &[18, 2]), ("hada_w1_b", &[2, 4]), ("hada_w2_a", &[18, 2]), ("hada_w2_b", &[2, 4])],
        &[("lokr_w1", &[3, 2]), ("lokr_w2", &[6, 2])],
        &[("lora_up.weight", &[18, 2]), ("lora_down.weight", &[2, 4]), ("dora_scale", &[18, 1])],
    ] {
        let weights = of(parts);
        let (apart, joined) = (deltas(&read(&weights, &apart), &apart), deltas(&read(&weights, &joined), &joined));
        assert!(close(&apart, &joined), "{parts:?}");
    }
    let inputs = of(&[("lora_up.weight", &[18, 2]), ("lora_down.weight", &[2, 4]), ("dora_scale", &[1, 4])]);
    let found = problems_with(&inputs, &Default::default(), &apart);
    assert!(found.iter().all(|problem| problem.contains("norms of its inputs")), "{found:?}");
    // A norm for some of the rows does not fit the others.
    let half = dict([
        ("transformer.single_transformer_blocks.1.attn.to_q.lora_A.weight", &[2, 4][..]),
        ("transformer.single_transformer_blocks.1.attn.to_q.lora_B.weight", &[4, 2]),
        ("transformer.single_transformer_blocks.1.attn.to_q.lora_magnitude_vector", &[4]),
    ]);
    let found = problems_with(&half, &Default::default(), &joined);
    assert!(found[0].contains("joined with others"), "{found:?}");
}

/// Where a scale and a shift come out of one module, diffusers has the scale first, and the original code the shift.
#[test]
fn shift_and_scale_change_places() {
    let weights = |module: &str| {
        dict([(&*format!("{module}.lora_down.weight"), &[2, 4][..]), (&*format!("{module}.lora_up.weight"), &[8, 2])])
    };
    let swapped = |values: &[f64]| [&values[values.len() / 2..], &values[..values.len() / 2]].concat();
    let flux = |rest: &str, ours: &str, rows: usize, is_original: bool| match is_original {
        true => engine_of(&[("double_blocks.0.img_attn.qkv", [12, 4]), (rest, [rows, 4])]),
        false => engine_of(&[
            ("transformer_blocks.0.attn.to_q", [4, 4]),
            ("transformer_blocks.0.attn.to_k", [4, 4]),
            ("transformer_blocks.0.attn.to_v", [4, 4]),
            (ours, [rows, 4]),
        ]),
    };
    let last = ("joint_blocks.0.context_block.adaLN_modulation.1", "transformer_blocks.0.norm1_context.linear");
    let out = ("final_layer.adaLN_modulation.1", "norm_out.linear");
    for (original, ours) in [last, out] {
        let as_it_is = product(&numbers(&[8, 2], 1), &numbers(&[2, 4], 0), 1.0);
        for (file, is_original) in [(original, true), (original, false), (ours, true), (ours, false)] {
            let map = match (original == last.0, is_original) {
                (true, true) => engine_of(&[("joint_blocks.0.x_block.attn.qkv", [12, 4]), (original, [8, 4])]),
                _ => flux(original, ours, 8, is_original),
            };
            let found = deltas(&read(&weights(&format!("transformer.{file}")), &map), &map);
            let expected = if (file == original) == is_original { as_it_is.clone() } else { swapped(&as_it_is) };
            assert!(close(&found, &expected), "{file} for {original}: {is_original}");
        }
    }
    // Six of them are in one order.
    let map = flux(last.0, last.1, 24, false);
    let six = dict([
        ("transformer.joint_blocks.0.context_block.adaLN_modulation.1.lora_A.weight", &[2, 4][..]),
        ("transformer.joint_blocks.0.context_block.adaLN_modulation.1.lora_B.weight", &[24, 2]),
    ]);
    let expected = product(&numbers(&[24, 2], 1), &numbers(&[2, 4], 0), 1.0);
    assert!(close(&deltas(&read(&six, &map), &map), &expected));
}

/// A file for a whole pipeline, and modules that are in no block.
#[test]
fn text_encoders_and_modules_outside_of_blocks() {
    let map = engine_of(&[
        ("transformer_blocks.0.attn.to_q", [4, 4]),
        ("transformer_blocks.0.attn.to_k", [4, 4]),
        ("transformer_blocks.0.attn.to_v", [4, 4]),
        ("x_embedder", [4, 3]),
        ("time_text_embed.timestep_embedder.linear_1", [4, 5]),
    ]);
    let mut weights = StateDict::new();
    for (seed, (module, [rows, cols])) in [
        ("lora_unet_double_blocks_0_img_attn_qkv", [12, 4]),
        ("lora_unet_img_in", [4, 3]),
        ("lora_unet_time_in_in_layer", [4, 5]),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", [7, 7]),
    ]
    .into_iter()
    .enumerate()
    {
        weights.insert(format!("{module}.lora_down.weight"), numbers(&[1, cols], seed));
        weights.insert(format!("{module}.lora_up.weight"), numbers(&[rows, 1], seed));
    }
    let adapter = read(&weights, &map);
    assert_eq!((adapter.layers.len(), adapter.foreign_keys.len()), (5, 2));
    // A key that fits nowhere is an error with its name.
    weights.insert("lora_unet_double_blocks_7_img_attn_qkv.lora_up.weight", numbers(&[12, 1], 0));
    let found = problems_with(&weights, &Default::default(), &map);
    let lost = "lora_unet_double_blocks_7_img_attn_qkv.lora_up.weight: matches no source";
    assert!(found.iter().any(|problem| problem.starts_with(lost)), "{found:?}");
}

/// What diffusers' `fuse_qkv_projections` joined, whose parts are still there and not read any more.
#[test]
fn fused_projections_take_updates_of_what_they_were() {
    let map = engine_of(&[("block.attn.to_qkv", [12, 4]), ("block.ff", [4, 4])]);
    let (down, up) = (numbers(&[2, 4], 0), numbers(&[4, 2], 1));
    let weights = StateDict::from_iter([
        ("transformer.block.attn.to_k.lora_A.weight".to_owned(), down.clone()),
        ("transformer.block.attn.to_k.lora_B.weight".to_owned(), up.clone()),
    ]);
    let expected = [vec![0.0; 16], product(&up, &down, 1.0), vec![0.0; 16]].concat();
    assert!(close(&deltas(&read(&weights, &map), &map), &expected));
}
