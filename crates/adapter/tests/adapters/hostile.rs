//! Nothing that a file says makes reading it panic, and what is read fits its sources.

use proptest::{collection::vec, prelude::*, sample::select};
use regraft_adapter::{Adapter, AdapterConfig, Overlay};
use regraft_tensor::{DType, Tensor};
use regraft_weights::{RefitMap, StateDict};

use crate::{config, map};

const DIMS: [usize; 8] = [0, 1, 2, 3, 4, 6, 12, 24];
const DTYPES: [DType; 6] = [DType::F32, DType::F32, DType::F16, DType::F64, DType::I64, DType::Bool];
const MODULES: [&str; 6] = ["fc", "square", "conv", "line", "emb", "empty"];
const PARTS: [&str; 37] = [
    "lora_down.weight",
    "lora_up.weight",
    "lora_mid.weight",
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "dora_scale",
    "alpha",
    "diff",
    "diff_b",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
    "lora_E",
    "ia3_l",
    "weight",
    "bias",
    "base_layer.weight",
    "on_input",
    "oft_R.weight",
    "oft_embedding_R.weight",
    "boft_R",
    "boft_s",
    "oft_blocks",
    "rescale",
    "token_adapter.trainable_tokens_delta",
];
const PREFIXES: [&str; 6] = ["", "unet.", "base_model.model.", "lora_unet_", "lycoris_", "lora_te2_"];

fn engine() -> RefitMap {
    map([
        ("fc.weight", &[6, 4][..]),
        ("fc.bias", &[6]),
        ("square.weight", &[4, 4]),
        ("conv.weight", &[6, 4, 3, 1]),
        ("line.weight", &[4, 2, 3]),
        ("emb.weight", &[12, 4]),
        ("empty.weight", &[0, 4]),
    ])
}

fn tensor() -> impl Strategy<Value = Tensor> {
    (vec(select(&DIMS[..]), 0..5), select(&DTYPES[..]), any::<i8>()).prop_map(|(shape, dtype, value)| {
        let len = shape.iter().product::<usize>();
        Tensor::from_f64(dtype, &shape, &vec![f64::from(value); len])
    })
}

fn entries() -> impl Strategy<Value = Vec<(String, Tensor)>> {
    let part = (select(&PARTS[..]), tensor());
    let module = (select(&MODULES[..]), vec(part, 1..5));
    (select(&PREFIXES[..]), vec(module, 1..4)).prop_map(|(prefix, modules)| {
        let keys = |(module, parts): (&str, Vec<(&str, Tensor)>)| {
            parts.into_iter().map(|(part, t)| (format!("{prefix}{module}.{part}"), t)).collect::<Vec<_>>()
        };
        modules.into_iter().flat_map(keys).collect()
    })
}

/// Tensors of one kind that fit a weight.
fn fitting(kind: usize, weight: &[usize], r: usize) -> Vec<(&'static str, Vec<usize>)> {
    let (rows, inputs, taps) = (weight[0], weight[1], &weight[2..]);
    let with_taps = |sizes: [usize; 2]| [&sizes[..], taps].concat();
    let ones = |sizes: [usize; 2]| [&sizes[..], &vec![1; taps.len()]].concat();
    match kind {
        0 => vec![
            ("lora_down.weight", with_taps([r, inputs])),
            ("lora_up.weight", ones([rows, r])),
            ("dora_scale", ones([rows, 1])),
            ("alpha", vec![]),
        ],
        1 => vec![
            ("lora_down.weight", ones([r, inputs])),
            ("lora_up.weight", ones([rows, 2])),
            ("lora_mid.weight", with_taps([2, r])),
        ],
        2 => vec![
            ("hada_w1_a", vec![r, rows]),
            ("hada_w1_b", vec![r, inputs]),
            ("hada_t1", with_taps([r, r])),
            ("hada_w2_a", vec![r, rows]),
            ("hada_w2_b", vec![r, inputs]),
            ("hada_t2", with_taps([r, r])),
        ],
        3 => vec![("lokr_w1", vec![2, 2]), ("lokr_w2", with_taps([rows / 2, inputs / 2])), ("alpha", vec![])],
        4 => vec![
            ("lokr_w1_a", vec![2, r]),
            ("lokr_w1_b", vec![r, 2]),
            ("lokr_w2_a", vec![r, rows / 2]),
            ("lokr_w2_b", vec![r, inputs / 2]),
            ("lokr_t2", with_taps([r, r])),
        ],
        _ => vec![
            ("lora_embedding_A", vec![r, rows]),
            ("lora_embedding_B", vec![inputs, r]),
            ("lora_magnitude_vector", vec![inputs]),
        ],
    }
}

/// Tensors that fit, but for one that may have another size or be left out: most of what is random fits nowhere.
fn near_misses() -> impl Strategy<Value = Vec<(String, Tensor)>> {
    let weights = engine().sources.into_iter().filter(|s| s.shape.len() > 1).collect::<Vec<_>>();
    let spoiled = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), select(&DIMS[..]));
    (select(weights), 0usize..6, 1usize..4, 0usize..3, spoiled).prop_map(
        |(weight, kind, r, how, (part, axis, size))| {
            let mut parts = fitting(kind, &weight.shape, r);
            let part = part.index(parts.len());
            match how {
                0 if !parts[part].1.is_empty() => {
                    let axis = axis.index(parts[part].1.len());
                    parts[part].1[axis] = size;
                }
                1 => drop(parts.remove(part)),
                _ => {}
            }
            let module = weight.name.trim_end_matches("weight");
            let filled = |shape: &[usize]| Tensor::from_slice(shape, &vec![0.5f32; shape.iter().product()]);
            parts.iter().map(|(part, shape)| (format!("{module}{part}"), filled(shape))).collect()
        },
    )
}

fn check(entries: Vec<(String, Tensor)>, config: &AdapterConfig) {
    let map = engine();
    let weights: StateDict = entries.into_iter().collect();
    match Adapter::from_state_dict("hostile", &weights, config, &map) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(adapter) => {
            for layer in &adapter.layers {
                let info = &map.sources[layer.source];
                // Panics when the update is of another size.
                Overlay::new(info.dtype, &info.shape, &[(&layer.update, 1.0)]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_tensors_are_read_or_refused(entries in entries(), peft in any::<bool>()) {
        let settings = if peft { config(r#"{"peft_type": "LORA", "fan_in_fan_out": true, "token_indices": [0, 1]}"#) } else { AdapterConfig::default() };
        check(entries, &settings);
    }

    #[test]
    fn near_misses_are_read_or_refused(entries in near_misses()) {
        check(entries, &AdapterConfig::default());
    }

    #[test]
    fn any_keys_are_read_or_refused(keys in vec("[a-z_.0-9]{0,12}(lora_A|lora_down|processor|alpha|self_attn)?[a-z_.]{0,12}", 1..6)) {
        check(keys.into_iter().map(|key| (key, Tensor::from_slice(&[1], &[1f32]))).collect(), &AdapterConfig::default());
    }
}

#[test]
fn empty_tensors_of_enormous_shapes_are_refused() {
    let huge = usize::MAX / 16;
    for shape in [vec![0, huge, 8], vec![0, 2, huge, 16], vec![2, 0, huge, 64], vec![huge, 0]] {
        for part in PARTS {
            let Ok(tensor) = Tensor::zeros(DType::F32, &shape) else { continue };
            let mut entries = vec![(format!("conv.{part}"), tensor)];
            for other in ["lora_down.weight", "lora_up.weight", "hada_w1_a", "hada_w1_b", "lokr_w2_a", "lokr_w2_b"] {
                if other != part {
                    entries.push((format!("conv.{other}"), Tensor::from_slice(&[2, 2], &[1f32; 4])));
                }
            }
            check(entries, &AdapterConfig::default());
        }
    }
}
