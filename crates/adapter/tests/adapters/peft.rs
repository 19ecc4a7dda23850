//! Adapters that PEFT wrote, against what PEFT merges them to: `peft/generate.py` made both.

use regraft_adapter::{Adapter, AdapterOptions};
use regraft_tensor::Tensor;
use regraft_weights::{RefitMap, StateDict};

use crate::{beside, map};

/// The largest difference over the largest value.
fn difference(ours: &Tensor, expected: &Tensor) -> f64 {
    let (ours, expected) = (ours.to_f64_vec(), expected.to_f64_vec());
    let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
    ours.iter().zip(&expected).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / largest
}

/// Panics unless the adapter, scaled, makes of `base` what the tool that wrote it made: of these sources and no others.
pub(crate) fn assert_merges(
    case: &str,
    adapter: &Adapter,
    map: &RefitMap,
    base: &StateDict,
    (merged, scale): (&StateDict, f64),
    bound: f64,
) {
    let mut names = Vec::new();
    for layer in &adapter.layers {
        let name = &map.sources[layer.source].name;
        let source = base.get(name).expect("a source");
        let expected = merged.get(name).unwrap_or_else(|| panic!("{case}: the tool does not change {name}"));
        let off = difference(&layer.update.reference(source, scale), expected);
        assert!(off < bound, "{case}, times {scale}: {name} is off by {off:.1e}");
        names.push(name.as_str());
    }
    assert_eq!(names, merged.iter().map(|(name, _)| name).collect::<Vec<_>>(), "{case}, times {scale}");
}

fn check(case: &str) {
    let folder = beside("peft").join(case);
    let own = folder.join("base.safetensors");
    let base = if own.exists() { own } else { beside("peft/base.safetensors") };
    let base = regraft_checkpoint::open(&base).expect("base weights");
    let merged = regraft_checkpoint::open(&folder.join("merged.safetensors")).expect("merged weights");
    let map = map(base.iter().map(|(name, tensor)| (name, tensor.shape())));
    let adapter = Adapter::open(&folder, &AdapterOptions::default(), &map, regraft_checkpoint::open)
        .expect("an adapter that fits");
    assert_eq!(adapter.name, case);
    assert_merges(case, &adapter, &map, &base, (&merged, 1.0), 1e-6);
}

macro_rules! cases {
    ($($case:ident),*) => {
        $(#[test]
        fn $case() {
            check(stringify!($case));
        })*
    };
}

cases!(
    lora,
    lora_patterns,
    lora_bias,
    lora_transposed,
    dora,
    dora_embedding,
    dora_transposed,
    loha,
    loha_effective,
    lokr,
    lokr_effective,
    lokr_whole,
    oft,
    oft_exact,
    oft_shared,
    boft,
    boft_blocks,
    boft_butterflies,
    experts
);
