//! What each kind computes, against sums written out. `peft.rs` has those that PEFT writes.

use regraft_adapter::{Adapter, AdapterLayer, AdapterOptions, MagnitudeAxis, Update};
use regraft_ir::Role;
use regraft_tensor::{DType, Tensor};
use regraft_weights::{RefitMap, StateDict};

use crate::{config, dict, map, numbers, problems, read, scalar};

fn at(tensor: &Tensor, index: &[usize]) -> f64 {
    let flat = index.iter().zip(tensor.shape()).fold(0, |flat, (i, n)| flat * n + i);
    tensor.to_f64_vec()[flat]
}

/// What the only update of an adapter makes of a source of zeros.
fn delta(adapter: &Adapter, shape: &[usize]) -> Vec<f64> {
    let [layer] = adapter.layers.as_slice() else { panic!("{} updates", adapter.layers.len()) };
    layer.update.reference(&Tensor::zeros(DType::F32, shape).expect("small"), 1.0).to_f64_vec()
}

fn assert_near(ours: &[f64], expected: &[f64]) {
    assert_eq!(ours.len(), expected.len());
    let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
    assert!(ours.iter().zip(expected).all(near), "{ours:?}\n{expected:?}");
}

fn scale_of(adapter: &Adapter) -> f64 {
    match &adapter.layers[0].update {
        Update::LowRank { scale, .. }
        | Update::Hadamard { scale, .. }
        | Update::Kronecker { scale, .. }
        | Update::Full { scale, .. } => *scale,
        _ => panic!("no scale"),
    }
}

#[test]
fn a_kernel_between_the_factors_is_folded_into_one() {
    let shape = [5, 4, 3, 2];
    let map = map([("conv.weight", &shape[..])]);
    let weights = dict([
        ("lora_unet_conv.lora_down.weight", &[3, 4, 1, 1][..]),
        ("lora_unet_conv.lora_up.weight", &[5, 2, 1, 1]),
        ("lora_unet_conv.lora_mid.weight", &[2, 3, 3, 2]),
    ]);
    let part = |name: &str| weights.get(&format!("lora_unet_conv.{name}.weight")).expect("given");
    let (down, up, mid) = (part("lora_down"), part("lora_up"), part("lora_mid"));
    let mut expected = Vec::new();
    for (o, c) in (0..5).flat_map(|o| (0..4).map(move |c| (o, c))) {
        for (y, x) in (0..3).flat_map(|y| (0..2).map(move |x| (y, x))) {
            let term = |i, j| at(up, &[o, i, 0, 0]) * at(mid, &[i, j, y, x]) * at(down, &[j, c, 0, 0]);
            expected.push((0..2).flat_map(|i| (0..3).map(move |j| (i, j))).map(|(i, j)| term(i, j)).sum::<f64>());
        }
    }
    assert_near(&delta(&read(&weights, &map), &shape), &expected);
}

#[test]
fn alpha_over_rank_scales_and_is_one_by_default() {
    let map = map([("fc.weight", &[6, 4][..])]);
    let with = |alpha: Option<Tensor>| {
        let mut weights = dict([("fc.lora_down.weight", &[2, 4][..]), ("fc.lora_up.weight", &[6, 2])]);
        alpha.into_iter().for_each(|alpha| weights.insert("fc.alpha", alpha));
        scale_of(&read(&weights, &map))
    };
    assert_eq!(with(None), 1.0);
    assert_eq!(with(Some(scalar(3.0))), 1.5);
    assert_eq!(with(Some(Tensor::from_f64(DType::BF16, &[1], &[0.5]))), 0.25);
    assert_eq!(with(Some(Tensor::from_i64(DType::I64, &[], &[8]))), 4.0);
}

#[test]
fn whole_factors_of_lokr_have_no_scale() {
    let map = map([("fc.weight", &[6, 4][..])]);
    let mut weights = dict([("lycoris_fc.lokr_w1", &[2, 2][..]), ("lycoris_fc.lokr_w2", &[3, 2])]);
    weights.insert("lycoris_fc.alpha", scalar(8.0));
    let (w1, w2) = (weights.get("lycoris_fc.lokr_w1").expect("given"), weights.get("lycoris_fc.lokr_w2"));
    let element = |i: usize, j: usize| at(w1, &[i / 3, j / 2]) * at(w2.expect("given"), &[i % 3, j % 2]);
    let expected: Vec<f64> = (0..24).map(|e| element(e / 4, e % 4)).collect();
    assert_near(&delta(&read(&weights, &map), &[6, 4]), &expected);
    // Where one of them is a product, its rank counts.
    let mut weights = dict([
        ("lycoris_fc.lokr_w1", &[2, 2][..]),
        ("lycoris_fc.lokr_w2_a", &[3, 2]),
        ("lycoris_fc.lokr_w2_b", &[2, 2]),
    ]);
    weights.insert("lycoris_fc.alpha", scalar(8.0));
    assert_eq!(scale_of(&read(&weights, &map)), 4.0);
}

#[test]
fn scales_of_dora_are_of_outputs_or_inputs_by_their_shape() {
    let shape = [6, 4];
    let map = map([("fc.weight", &shape[..])]);
    let source = numbers(&shape, 9);
    let mut weights = dict([("fc.lora_down.weight", &[2, 4][..]), ("fc.lora_up.weight", &[6, 2])]);
    let plain = read(&weights, &map).layers[0].update.reference(&source, 1.0);
    for (axis, norms) in [(MagnitudeAxis::Rows, [6, 1]), (MagnitudeAxis::Columns, [1, 4])] {
        let wanted = numbers(&norms, 5);
        weights.insert("fc.dora_scale", wanted.clone());
        let updated = read(&weights, &map).layers[0].update.reference(&source, 1.0).to_f64_vec();
        let line = |e: usize| if axis == MagnitudeAxis::Rows { e / 4 } else { e % 4 };
        let norm =
            |l: usize| (0..24).filter(|&e| line(e) == l).map(|e| plain.to_f64_vec()[e].powi(2)).sum::<f64>().sqrt();
        let expected: Vec<f64> =
            (0..24).map(|e| plain.to_f64_vec()[e] * wanted.to_f64_vec()[line(e)] / norm(line(e))).collect();
        assert_near(&updated, &expected);
    }
}

#[test]
fn full_deltas_are_added_to_weights_and_biases() {
    let map = map([("conv.weight", &[3, 2, 1, 2][..]), ("conv.bias", &[3])]);
    let weights = dict([("lora_unet_conv.diff", &[3, 2, 1, 2][..]), ("lora_unet_conv.diff_b", &[3])]);
    let adapter = read(&weights, &map);
    for (layer, key) in adapter.layers.iter().zip(["diff", "diff_b"]) {
        let delta = weights.get(&format!("lora_unet_conv.{key}")).expect("given");
        let source = numbers(&map.sources[layer.source].shape, 7);
        let sums: Vec<f64> = source.to_f64_vec().iter().zip(delta.to_f64_vec()).map(|(w, d)| w + d).collect();
        assert_near(&layer.update.reference(&source, 1.0).to_f64_vec(), &sums);
    }
    assert_eq!(adapter.layers.len(), 2);
}

#[test]
fn factors_of_any_float_become_f32() {
    let map = map([("fc.weight", &[6, 4][..])]);
    for dtype in [DType::F16, DType::BF16, DType::F64] {
        let (down, up) = (numbers(&[2, 4], 0).cast(dtype), numbers(&[6, 2], 1).cast(dtype));
        let weights: StateDict =
            [("fc.lora_A.weight".to_owned(), down.clone()), ("fc.lora_B.weight".to_owned(), up)].into_iter().collect();
        let adapter = read(&weights, &map);
        let Update::LowRank { factors, .. } = &adapter.layers[0].update else { panic!("a LoRA") };
        assert!(factors.down.bit_equal(&down.cast(DType::F32)), "{dtype}");
    }
}

/// Square weights of GPT-2 are `[in, out]`, whatever their neighbors are and the configuration says.
#[test]
fn how_a_square_weight_is_stored_its_use_tells() {
    let mut map = map([("h.0.gpt.weight", &[4, 4][..]), ("h.0.fc.weight", &[4, 4])]);
    let keys: [(&str, &[usize]); 4] = [
        ("h.0.gpt.lora_A.weight", &[2, 4]),
        ("h.0.gpt.lora_B.weight", &[4, 2]),
        ("h.0.fc.lora_A.weight", &[2, 4]),
        ("h.0.fc.lora_B.weight", &[4, 2]),
    ];
    let crossed = |adapter: &Adapter, weights: &StateDict| -> Vec<bool> {
        let is_crossed = |(layer, down): (&AdapterLayer, &str)| {
            let Update::LowRank { factors, .. } = &layer.update else { panic!("a LoRA") };
            !factors.down.bit_equal(weights.get(down).expect("given"))
        };
        adapter.layers.iter().zip([keys[0].0, keys[2].0]).map(is_crossed).collect()
    };
    let all = dict(keys);
    for settings in [r#"{"r": 2, "lora_alpha": 2}"#, r#"{"r": 2, "lora_alpha": 2, "fan_in_fan_out": true}"#] {
        let adapter = Adapter::from_state_dict("a", &all, &config(settings), &map).expect("fits");
        assert_eq!(crossed(&adapter, &all), [true, false], "{settings}");
    }
    // Where neither the use nor the class tells, no shape that fits both ways does.
    map.sources.iter_mut().for_each(|source| source.role = Role::Other);
    let listed = problems(&all, &map);
    assert!(listed.iter().all(|problem| problem.contains("the weight is square")) && listed.len() == 2, "{listed:?}");
}

/// What an adapter with this configuration makes of a source of ones, by the names of the sources.
fn made(weights: &StateDict, settings: &str, map: &RefitMap, by: f64) -> Vec<(String, Vec<f64>)> {
    let adapter = Adapter::from_state_dict("a", weights, &config(settings), map).expect("fits");
    let of_ones = |layer: &AdapterLayer| {
        let shape = &map.sources[map.source_of(layer.source).expect("a source")].shape;
        let ones = Tensor::from_f64(DType::F32, shape, &vec![1.0; shape.iter().product()]);
        (map.use_name(layer.source).to_owned(), layer.update.reference(&ones, by).to_f64_vec())
    };
    adapter.layers.iter().map(of_ones).collect()
}

#[test]
fn whole_tensors_replace_sources_whatever_the_scale() {
    let map = map([("head.weight", &[3, 2][..]), ("head.bias", &[3]), ("embed.weight", &[4, 2])]);
    let prefix = "base_model.model.";
    let head = numbers(&[3, 2], 1);
    let mut weights: StateDict = [("head.weight", &head), ("head.bias", &numbers(&[3], 2))]
        .into_iter()
        .map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone()))
        .collect();
    let settings = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "trainable_token_indices": {"embed": [3, 0]}}"#;
    weights.insert(format!("{prefix}embed.token_adapter.trainable_tokens_delta"), numbers(&[2, 2], 3));
    let found = made(&weights, settings, &map, 0.25);
    let tokens = numbers(&[2, 2], 3).to_f64_vec();
    assert_eq!(
        found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["head.weight", "head.bias", "embed.weight"]
    );
    assert_eq!(found[0].1, head.to_f64_vec());
    assert_eq!(found[2].1, [tokens[2], tokens[3], 1.0, 1.0, 1.0, 1.0, tokens[0], tokens[1]]);
    // A resized vocabulary is an error with both sizes.
    weights.insert(format!("{prefix}embed.base_layer.weight"), numbers(&[5, 2], 0));
    let listed = crate::problems_with(&weights, &config(settings), &map);
    assert!(listed.len() == 1 && listed[0].contains("has 5 rows, and the engine's embed.weight has 4"), "{listed:?}");
}

#[test]
fn ia3_scales_outputs_with_their_bias_or_inputs() {
    let map =
        map([("up.weight", &[3, 2][..]), ("up.bias", &[3]), ("gpt.weight", &[2, 3]), ("conv.weight", &[2, 2, 1, 2])]);
    let key = |module: &str| format!("base_model.model.{module}.ia3_l");
    let factors = |shape: &[usize]| {
        let n = shape.iter().product::<usize>();
        Tensor::from_f64(DType::F32, shape, &(0..n).map(|i| i as f64 + 2.0).collect::<Vec<_>>())
    };
    let one = |module: &str, shape: &[usize]| StateDict::from_iter([(key(module), factors(shape))]);
    let settings = r#"{"peft_type": "IA3", "feedforward_modules": ["conv"]}"#;
    let found = made(&one("up", &[3, 1]), settings, &map, 1.0);
    assert_eq!(found[0].1, [2.0, 2.0, 3.0, 3.0, 4.0, 4.0]);
    assert_eq!(found[1], ("up.bias".to_owned(), vec![2.0, 3.0, 4.0]));
    assert_eq!(made(&one("up", &[1, 2]), settings, &map, 0.5)[0].1, [1.5, 2.0, 1.5, 2.0, 1.5, 2.0]);
    assert_eq!(made(&one("gpt", &[3, 1]), settings, &map, 1.0)[0].1, [2.0, 3.0, 4.0, 2.0, 3.0, 4.0]);
    let conv = made(&one("conv", &[1, 2, 1, 1]), settings, &map, 1.0);
    assert_eq!(conv[0].1, [2.0, 2.0, 3.0, 3.0, 2.0, 2.0, 3.0, 3.0]);
    // LyCORIS: the difference to 1, and a flag.
    let lycoris = StateDict::from_iter([
        ("lycoris_up.weight".to_owned(), factors(&[2])),
        ("lycoris_up.on_input".to_owned(), scalar(1.0)),
    ]);
    assert_eq!(made(&lycoris, "{}", &map, 1.0)[0].1, [3.0, 4.0, 3.0, 4.0, 3.0, 4.0]);
}

#[test]
fn adalora_has_singular_values_between_its_factors() {
    let map = map([("fc.weight", &[2, 2][..])]);
    let part = |name: &str, shape: &[usize], values: &[f64]| {
        (format!("base_model.model.fc.{name}"), Tensor::from_f64(DType::F32, shape, values))
    };
    let weights = StateDict::from_iter([
        part("lora_A", &[1, 2], &[1.0, 2.0]),
        part("lora_B", &[2, 1], &[3.0, 4.0]),
        part("lora_E", &[1, 1], &[0.5]),
    ]);
    let found = made(
        &weights,
        r#"{"peft_type": "ADALORA", "lora_alpha": 4, "rank_pattern": {"fc.lora_E": [true]}}"#,
        &map,
        1.0,
    );
    let scale = 4.0 / (1.0 + 1e-5);
    assert_near(&found[0].1, &[1.5, 3.0, 2.0, 4.0].map(|delta| 1.0 + delta * scale));
}

#[test]
fn scales_are_read_from_all_that_headers_spell() {
    let map = map([("fc.weight", &[6, 4][..])]);
    let keys = [("base_model.model.fc.lora_A.weight", &[2, 4][..]), ("base_model.model.fc.lora_B.weight", &[6, 2])];
    let with = |entries: &[(&str, &str)]| {
        let mut weights = dict(keys);
        weights.add_metadata(entries.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())));
        Adapter::from_state_dict("a", &weights, AdapterOptions::default(), &map)
    };
    for key in ["ss_network_alpha", "network_alpha", "lora_alpha", "alpha"] {
        assert_eq!(scale_of(&with(&[(key, "32")]).expect("fits")), 16.0, "{key}");
    }
    for key in ["lora_adapter_metadata", "adapter_config", "peft_config", "config"] {
        assert_eq!(scale_of(&with(&[(key, r#"{"r": 2, "lora_alpha": 3}"#)]).expect("fits")), 1.5, "{key}");
    }
    for nothing in [&[][..], &[("ss_network_alpha", "None")], &[("format", "pt")]] {
        let error = with(nothing).expect_err("nothing says it").to_string();
        assert!(error.contains("nothing says its scale"), "{error}");
    }
    // Other tools mean 1 where there is nothing: kohya's scripts and pipelines of diffusers.
    for names in [
        ["lora_unet_fc.lora_down.weight", "lora_unet_fc.lora_up.weight"],
        ["unet.fc.lora_A.weight", "unet.fc.lora_B.weight"],
    ] {
        let weights = dict([(names[0], &[2, 4][..]), (names[1], &[6, 2])]);
        let adapter = Adapter::from_state_dict("a", &weights, AdapterOptions::default(), &map).expect("fits");
        assert_eq!(scale_of(&adapter), 1.0, "{names:?}");
    }
}
