//! Errors of adapters: all are reported at once. Test names carry the id of the scenario in `docs/scenarios.md`.

use regraft_adapter::Adapter;
use regraft_tensor::{DType, Tensor};

use crate::{config, dict, map, problems, problems_with, scalar};

#[test]
fn a_5_all_problems_are_listed_at_once() {
    let sources: [(&str, &[usize]); 4] =
        [("a.fc.weight", &[6, 4]), ("a.out.weight", &[4, 6]), ("a.in.weight", &[6, 4]), ("a.mask", &[3])];
    let map = map(sources);
    let weights = dict([
        ("base_model.model.a.fc.lora_A.weight", &[2, 5][..]),
        ("base_model.model.a.fc.lora_B.weight", &[6, 2]),
        ("base_model.model.a.out.lora_A.weight", &[2, 6]),
        ("base_model.model.a.in.lora_A.weight", &[2, 4]),
        ("base_model.model.a.in.lora_B.weight", &[6, 2]),
        ("base_model.model.a.in.lora_B.bias", &[6]),
        ("base_model.model.classifier.weight", &[2, 2]),
        ("base_model.model.what", &[2]),
    ]);
    let config = config(r#"{"peft_type": "LORA", "init_lora_weights": "olora"}"#);
    let error = Adapter::from_state_dict("style", &weights, &config, &map).expect_err("nothing fits").to_string();
    assert!(error.starts_with("style: 5 of 8 keys do not fit; nothing was changed\n"), "{error}");
    let weights_only = problems(&weights, &map);
    assert_eq!(
        weights_only,
        [
            "base_model.model.what: matches no source: no tool names a part of an adapter so",
            "base_model.model.a.fc.lora_A.weight: expected f32[2, 4], found f32[2, 5]",
            "base_model.model.a.in.lora_B.bias: the module has no bias",
            "base_model.model.a.out.lora_A.weight: has no lora_B (or lora_up) beside it",
            "base_model.model.classifier.weight: matches no source: it was trained as a whole, and the engine has no module \
             classifier",
        ]
    );
}

#[test]
fn a_5_unmatched_keys_name_what_may_be_meant() {
    let map = map([("blocks.0.query.weight", &[6, 4][..]), ("blocks.0.value.weight", &[6, 4])]);
    let weights = dict([
        ("blocks.0.qeury.lora_A.weight", &[2, 4][..]),
        ("blocks.0.value.lora_A.weight", &[2, 4]),
        ("blocks.0.value.lora_B.weight", &[6, 2]),
    ]);
    let expected = "blocks.0.qeury.lora_A.weight: matches no source; did you mean blocks.0.query?";
    assert_eq!(problems(&weights, &map), [expected]);
    let weights = dict([("lora_unet_blocks_0_qeury.alpha", &[][..])]);
    let expected = "lora_unet_blocks_0_qeury.alpha: matches no source; did you mean blocks.0.query?";
    assert_eq!(problems(&weights, &map), [expected]);
    assert_eq!(problems(&dict([]), &map), [": there are no tensors in it"]);
}

#[test]
fn two_updates_of_one_source_are_refused() {
    let map = map([("unet.fc.weight", &[6, 4][..])]);
    let weights = dict([
        ("fc.lora_A.weight", &[2, 4][..]),
        ("fc.lora_B.weight", &[6, 2]),
        ("unet.fc.lora_A.weight", &[2, 4]),
        ("unet.fc.lora_B.weight", &[6, 2]),
    ]);
    assert_eq!(problems(&weights, &map), ["unet.fc.lora_A.weight: updates the same source as fc.lora_A.weight"]);
    let map = crate::map([("fc.weight", &[6, 4][..])]);
    let weights = dict([("fc.lora_A.weight", &[2, 4][..]), ("fc.lora_down.weight", &[2, 4])]);
    let listed = problems(&weights, &map);
    assert_eq!(listed[0], "fc.lora_down.weight: updates the same source as fc.lora_A.weight");
}

#[test]
fn two_dialects_in_one_file_are_refused() {
    let map = map([("fc.weight", &[6, 4][..])]);
    let weights = dict([
        ("base_model.model.fc.lora_A.weight", &[2, 4][..]),
        ("base_model.model.fc.lora_B.weight", &[6, 2]),
        ("lora_unet_fc.alpha", &[]),
    ]);
    let expected = "lora_unet_fc.alpha: named in another dialect than most keys: give one adapter at a time";
    assert_eq!(problems(&weights, &map), [expected]);
}

#[test]
fn an_alpha_is_one_finite_number() {
    let map = map([("fc.weight", &[6, 4][..])]);
    let with = |alpha: Tensor| {
        let mut weights = dict([("fc.lora_down.weight", &[2, 4][..]), ("fc.lora_up.weight", &[6, 2])]);
        weights.insert("fc.alpha", alpha);
        problems(&weights, &map)
    };
    assert_eq!(with(scalar(f32::NAN)), ["fc.alpha: expected one finite number, found f32[]"]);
    assert_eq!(with(scalar(f32::INFINITY)).len(), 1);
    assert_eq!(with(Tensor::from_slice(&[2], &[1f32, 2.0])), ["fc.alpha: expected one finite number, found f32[2]"]);
}

#[test]
fn what_no_update_expresses_is_refused() {
    let map = map([
        ("grouped.weight", &[6, 2, 3][..]),
        ("line.weight", &[6, 4, 3]),
        ("fc.weight", &[6, 4]),
        ("ids.weight", &[6, 4]),
    ]);
    let refused = |keys: &[(&str, &[usize])], settings: &str, word: &str| {
        let listed = problems_with(&dict(keys.iter().copied()), &config(settings), &map);
        assert!(listed.len() == 1 && listed[0].contains(word), "{listed:?} does not say {word}");
    };
    // PEFT: the first convolution reads all inputs, the second one is grouped.
    refused(&[("grouped.lora_A.weight", &[2, 4, 3]), ("grouped.lora_B.weight", &[6, 1, 1])], "{}", "grouped");
    refused(
        &[("line.lokr_w1", &[2, 2]), ("line.lokr_w2", &[3, 2, 3])],
        r#"{"peft_type": "LOKR", "r": 8}"#,
        "merge this layer with PEFT",
    );
    let lora: [(&str, &[usize]); 2] = [("fc.lora_A.weight", &[2, 4]), ("fc.lora_B.weight", &[6, 2])];
    let two_kinds = [lora[0], lora[1], ("fc.diff", &[6, 4])];
    refused(&two_kinds, "{}", "another kind");
    refused(&lora, r#"{"use_dora": true, "lora_alpha": 2}"#, "lora_magnitude_vector");
}

#[test]
fn factors_are_floats() {
    let map = map([("fc.weight", &[6, 4][..])]);
    let mut weights = dict([("fc.lora_A.weight", &[2, 4][..]), ("fc.lora_B.weight", &[6, 2])]);
    weights.insert("fc.lora_A.weight", Tensor::from_i64(DType::I64, &[2, 4], &[1; 8]));
    assert_eq!(problems(&weights, &map), ["fc.lora_A.weight: expected floats, found i64[2, 4]"]);
}

/// Shapes that claim more blocks than there are numbers, and what no weight does.
#[test]
fn rotations_that_are_none_are_refused() {
    let oft =
        |more: &str| config(&format!(r#"{{"peft_type": "OFT", "use_cayley_neumann": false, "coft": false{more}}}"#));
    let said = oft(r#", "block_share": false"#);
    let map = map([("fc.weight", &[6, 4][..]), ("conv.weight", &[6, 4, 3, 3])]);
    let of = |key: &str, shape: &[usize], config: &_| problems_with(&dict([(key, shape)]), config, &map).join("; ");
    let key = "base_model.model.fc.oft_R.weight";
    assert!(of(key, &[1 << 40, 0], &said).contains("expected blocks for 4 inputs"));
    assert!(of(key, &[0, 1 << 62], &said).contains("fc.oft_R.weight: expected"));
    assert!(of(key, &[3, 1], &said).contains("expected blocks for 4 inputs"));
    assert!(of(key, &[2, 1], &oft("")).contains("does not say `block_share`"));
    assert!(of(key, &[2, 1], &config("{}")).contains("has no adapter_config.json"));
    assert!(of("base_model.model.conv.oft_R.weight", &[18, 1], &said).contains("adds them where they overlap"));
    assert!(of("base_model.model.fc.oft_r", &[2, 2, 2], &said).contains("before 0.15"));
    assert!(of("base_model.model.fc.boft_R", &[1, 2, 2, 2], &said).contains("has no boft_s beside it"));
    assert!(of("lycoris_fc.oft_blocks", &[3, 2, 2], &config("{}")).contains("has no alpha beside it"));
    assert!(of("lycoris_fc.a1.weight", &[2, 4], &config("{}")).contains("GLoRA is not supported"));
}

/// Shapes that fit in one way only decide which parameter is meant, and its orientation.
#[test]
fn parameters_that_cannot_be_told_apart_are_refused() {
    let targets = config(
        r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_parameters": ["experts.up", "experts.gate"]}"#,
    );
    let keys = ["base_layer.lora_A", "base_layer.lora_B", "lora_A", "lora_B"];
    let keys = keys.map(|part| format!("base_model.model.experts.{part}.weight"));
    let of = |rows: usize, cols: usize| {
        let shapes = [[3, cols], [rows, 3], [3, cols], [rows, 3]];
        dict(keys.iter().zip(&shapes).map(|(key, shape)| (key.as_str(), &shape[..])))
    };
    let alike = map([("experts.up", &[3, 6, 4][..]), ("experts.gate", &[3, 6, 4])]);
    assert!(problems_with(&of(6, 4), &targets, &alike).join("; ").contains("may mean experts.gate or experts.up"));
    let square = map([("experts.up", &[3, 4, 4][..])]);
    let one = config(r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_parameters": ["experts.up"]}"#);
    let weights = dict([(keys[2].as_str(), &[3, 4][..]), (keys[3].as_str(), &[4, 3])]);
    assert!(problems_with(&weights, &one, &square).join("; ").contains("its shape does not tell"));
}
