//! Adapters that LyCORIS wrote, against the weights that LyCORIS computes with: `lycoris/generate.py` made both.

use regraft_adapter::{Adapter, AdapterOptions};

use crate::{beside, map, peft::assert_merges};

fn check(case: &str) {
    let folder = beside("lycoris").join(case);
    let base = regraft_checkpoint::open(&beside("lycoris/base.safetensors")).expect("base weights");
    let map = map(base.iter().map(|(name, tensor)| (name, tensor.shape())));
    let file = folder.join("lycoris.safetensors");
    let adapter = Adapter::open(&file, &AdapterOptions::default(), &map, regraft_checkpoint::open)
        .unwrap_or_else(|e| panic!("{case}: {e}"));
    for (made, by) in [("merged", 1.0), ("half", 0.5)] {
        let file = folder.join(format!("{made}.safetensors"));
        if by != 1.0 && !file.exists() {
            continue;
        }
        let merged = regraft_checkpoint::open(&file).expect("merged weights");
        assert_merges(case, &adapter, &map, &base, (&merged, by), 2e-6);
    }
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
    locon,
    locon_tucker,
    locon_root,
    dora_outputs,
    dora_inputs,
    loha,
    loha_tucker,
    loha_dora_inputs,
    lokr,
    lokr_tucker,
    lokr_both,
    lokr_whole,
    full,
    norms,
    ia3_outputs,
    ia3_inputs,
    oft,
    oft_limited,
    boft,
    boft_limited
);
