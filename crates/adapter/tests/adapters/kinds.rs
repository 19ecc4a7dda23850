//! What each kind computes, against sums written out. `peft.rs` has those that PEFT writes.

use regraft_adapter::{Adapter, AdapterLayer, MagnitudeAxis, Update};
use regraft_ir::Role;
use regraft_tensor::{DType, Tensor};
use regraft_weights::StateDict;

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

/// Square weights of GPT-2 are `[in, out]`, whatever their neighbours are and the configuration says.
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
