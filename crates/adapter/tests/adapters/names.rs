//! The namings of PEFT, diffusers and kohya's scripts. Test names carry the id of the scenario in `docs/scenarios.md`.

use regraft_adapter::{Adapter, AdapterOptions, Update};
use regraft_tensor::Tensor;
use regraft_weights::{RefitMap, StateDict};

use crate::{config, dict, map, numbers, problems, read, scalar, updates};

const QUERY: &str = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q";
const CONV: &str = "down_blocks.0.resnets.0.conv1";
const LATER: &str = "mid_block.resnets.1.conv2";
/// The same modules in the original Stable Diffusion code.
const LDM: [&str; 3] =
    ["input_blocks.4.1.transformer_blocks.0.attn1.to_q", "input_blocks.1.0.in_layers.2", "middle_block.2.out_layers.3"];
const UNET: [&str; 3] = [QUERY, CONV, LATER];

fn unet() -> RefitMap {
    map([
        ("down_blocks.0.resnets.0.conv1.weight", &[6, 4, 3, 3][..]),
        ("down_blocks.0.resnets.1.conv1.weight", &[6, 6, 3, 3]),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight", &[6, 4]),
        ("mid_block.resnets.1.conv2.weight", &[4, 4, 1, 1]),
    ])
}

/// One LoRA of rank 2 and alpha 3, with keys made of a module's name and suffixes.
fn lora(modules: [String; 3], down: &str, up: &str, alpha: Option<&str>) -> StateDict {
    let shapes: [[&[usize]; 2]; 3] =
        [[&[2, 4], &[6, 2]], [&[2, 4, 3, 3], &[6, 2, 1, 1]], [&[2, 4, 1, 1], &[4, 2, 1, 1]]];
    let mut weights = StateDict::new();
    for (seed, (module, [down_shape, up_shape])) in modules.iter().zip(shapes).enumerate() {
        weights.insert(format!("{module}{down}"), numbers(down_shape, 2 * seed));
        weights.insert(format!("{module}{up}"), numbers(up_shape, 2 * seed + 1));
        if let Some(alpha) = alpha {
            weights.insert(format!("{module}{alpha}"), scalar(3.0));
        }
    }
    weights
}

fn assert_same(ours: &Adapter, expected: &Adapter, case: &str) {
    assert_eq!(ours.layers.len(), expected.layers.len(), "{case}");
    for (a, b) in ours.layers.iter().zip(&expected.layers) {
        let (Update::LowRank { factors: f, scale: s, .. }, Update::LowRank { factors: g, scale: t, .. }) =
            (&a.update, &b.update)
        else {
            panic!("{case}: no LoRA")
        };
        assert_eq!((a.source, s), (b.source, t), "{case}");
        assert!(f.up.bit_equal(&g.up) && f.down.bit_equal(&g.down), "{case}");
    }
}

#[test]
fn a_5_every_dialect_names_the_same_updates() {
    let map = unet();
    let (down, up) = (".lora_A.weight", ".lora_B.weight");
    let prefixed = |prefix: &str| UNET.map(|m| format!("{prefix}{m}"));
    let peft = lora(prefixed("base_model.model."), down, up, None);
    let settings = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 3}"#;
    let expected = Adapter::from_state_dict("peft", &peft, &config(settings), &map).expect("fits");
    assert_eq!(expected.layers.len(), 3);
    let with_metadata = |mut weights: StateDict, text: &str| {
        weights.add_metadata([("lora_adapter_metadata".to_owned(), text.to_owned())]);
        weights
    };
    let alpha = Some(".alpha");
    let (kohya_down, kohya_up) = (".lora_down.weight", ".lora_up.weight");
    let flat = |prefix: &str, names: [&str; 3]| names.map(|m| format!("{prefix}{}", m.replace('.', "_")));
    let of_unet = r#"{"unet.r": 2, "unet.lora_alpha": 3, "unet.peft_type": "LORA"}"#;
    for (case, weights) in [
        ("diffusers", with_metadata(lora(prefixed("unet."), down, up, None), of_unet)),
        ("one model of diffusers", with_metadata(lora(prefixed(""), down, up, None), settings)),
        ("named adapter", lora(prefixed("unet."), ".lora_A.b.weight", ".lora_B.b.weight", alpha)),
        ("older diffusers", lora(prefixed("unet."), ".lora.down.weight", ".lora.up.weight", alpha)),
        ("kohya", lora(flat("lora_unet_", UNET), kohya_down, kohya_up, alpha)),
        ("kohya, blocks of SDXL", lora(flat("lora_unet_", LDM), kohya_down, kohya_up, alpha)),
        ("LyCORIS", lora(flat("lycoris_", UNET), kohya_down, kohya_up, alpha)),
        ("ComfyUI", lora(LDM.map(|m| format!("diffusion_model.{m}")), down, up, alpha)),
    ] {
        assert_same(&read(&weights, &map), &expected, case);
    }
}

#[test]
fn a_5_attention_processors_of_older_files() {
    let map = map([("attn1.to_q.weight", &[6, 4][..]), ("attn1.to_out.0.weight", &[4, 6])]);
    let weights = dict([
        ("unet.attn1.processor.to_q_lora.down.weight", &[2, 4][..]),
        ("unet.attn1.processor.to_q_lora.up.weight", &[6, 2]),
        ("unet.attn1.processor.to_out_lora.down.weight", &[1, 6]),
        ("unet.attn1.processor.to_out_lora.up.weight", &[4, 1]),
    ]);
    assert_eq!(read(&weights, &map).layers.len(), 2);
}

#[test]
fn prefixes_are_added_and_dropped_for_all_modules_alike() {
    let (a, b): (&[usize], &[usize]) = (&[2, 4], &[6, 2]);
    for (engine, file) in [
        ("fc", "fc"),
        ("model.fc", "fc"),
        ("unet.fc", "unet.fc"),
        ("fc", "model.fc"),
        ("fc", "unet.fc"),
        ("pipe.unet.fc", "unet.fc"),
        ("fc", "transformer.model.fc"),
    ] {
        let source = format!("{engine}.weight");
        let map = map([(source.as_str(), &[6, 4][..])]);
        let (down, up) = (format!("{file}.lora_A.weight"), format!("{file}.lora_B.weight"));
        assert_eq!(read(&dict([(down.as_str(), a), (up.as_str(), b)]), &map).layers.len(), 1, "{engine} from {file}");
    }
}

#[test]
fn the_component_of_a_key_is_preferred() {
    let sources: [(&str, &[usize]); 3] =
        [("unet.fc.weight", &[6, 4]), ("text_encoder.fc.weight", &[6, 4]), ("fc.weight", &[6, 4])];
    let map = map(sources);
    let weights = dict([("lora_te_fc.lora_down.weight", &[2, 4][..]), ("lora_te_fc.lora_up.weight", &[6, 2])]);
    assert_eq!(updates(&read(&weights, &map), &map)[0].0, "text_encoder.fc.weight");
}

#[test]
fn what_may_mean_several_sources_is_refused() {
    let down_and_up: [(&str, &[usize]); 2] = [("fc.lora_A.weight", &[2, 4]), ("fc.lora_B.weight", &[6, 2])];
    let two = map([("a.fc.weight", &[6, 4][..]), ("b.fc.weight", &[6, 4])]);
    assert_eq!(problems(&dict(down_and_up), &two), ["fc.lora_A.weight: may mean a.fc or b.fc"]);
    let flat = map([("a_b.fc.weight", &[6, 4][..]), ("a.b_fc.weight", &[6, 4])]);
    let weights = dict([("lora_unet_a_b_fc.lora_down.weight", &[2, 4][..])]);
    assert_eq!(problems(&weights, &flat), ["lora_unet_a_b_fc.lora_down.weight: may mean a.b_fc or a_b.fc"]);
}

#[test]
fn keys_of_other_models_of_a_pipeline_are_left_out() {
    let layers: [(&str, &[usize]); 2] = [("layers.0.fc.weight", &[6, 4]), ("layers.1.fc.weight", &[6, 4])];
    let map = map(layers);
    let file = dict([
        ("lora_unet_conv_in.lora_down.weight", &[2, 4, 3, 3][..]),
        ("lora_te1_layers_0_fc.lora_down.weight", &[2, 4]),
        ("lora_te1_layers_0_fc.lora_up.weight", &[6, 2]),
        ("lora_te2_layers_0_fc.lora_down.weight", &[2, 8]),
        ("lora_te2_layers_0_fc.lora_up.weight", &[8, 2]),
    ]);
    let adapter = read(&file, &map);
    assert_eq!(updates(&adapter, &map).iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["layers.0.fc.weight"]);
    assert_eq!(
        adapter.foreign_keys,
        [
            "lora_te2_layers_0_fc.lora_down.weight",
            "lora_te2_layers_0_fc.lora_up.weight",
            "lora_unet_conv_in.lora_down.weight"
        ]
    );
}

#[test]
fn files_and_folders_are_named_after_themselves() {
    let map = map([("fc.weight", &[6, 4][..])]);
    let folder = tempfile::tempdir().expect("a folder");
    let tensors: [(&str, Tensor); 2] =
        [("fc.lora_A.weight", numbers(&[2, 4], 0)), ("fc.lora_B.weight", numbers(&[6, 2], 1))];
    let bytes = safetensors_of(&tensors);
    let open = |name: &str| {
        Adapter::open(&folder.path().join(name), &AdapterOptions::default(), &map, regraft_checkpoint::open)
            .map_err(|e| e.to_string())
    };
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("written");
    write("style.v2.safetensors", &bytes);
    let error = open("style.v2.safetensors").expect_err("nothing says its scale");
    assert!(error.contains("fc.lora_A.weight  nothing says its scale"), "{error}");
    let stated = AdapterOptions::new().alpha(32.0);
    let path = folder.path().join("style.v2.safetensors");
    let style = Adapter::open(&path, &stated, &map, regraft_checkpoint::open).expect("a file");
    assert_eq!(style.name, "style.v2");
    assert!(matches!(style.layers[0].update, Update::LowRank { scale: 16.0, .. }));
    std::fs::create_dir(folder.path().join("tuned")).expect("a folder");
    write("tuned/adapter_model.safetensors", &bytes);
    let error = open("tuned").expect_err("no scale");
    assert!(error.contains("adapter_config.json"), "{error}");
    write("tuned/adapter_config.json", br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 8}"#);
    // Whatever the file's name.
    write("tuned/style.safetensors", &bytes);
    for name in ["tuned", "tuned/adapter_model.safetensors", "tuned/style.safetensors"] {
        let adapter = open(name).expect("an adapter of PEFT");
        assert!(matches!(adapter.layers[0].update, Update::LowRank { scale: 4.0, .. }), "{name}");
    }
    let error = Adapter::open(&folder.path().join("tuned"), &stated, &map, regraft_checkpoint::open).expect_err("said");
    assert!(error.to_string().contains("alpha  the adapter says its own"), "{error}");
    write("tuned/adapter_config.json", br#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8}"#);
    assert!(open("tuned").expect_err("of another adapter").contains("has rank 2, and the configuration says 4"));
    write("tuned/adapter_config.json", br#"{"r": "two"}"#);
    assert!(open("tuned").expect_err("a damaged configuration").contains("configuration"));
}

/// A file whose tensors lie at odd places, as none of the usual writers makes it.
fn safetensors_of(tensors: &[(&str, Tensor)]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, tensor) in tensors {
        let begin = data.len();
        data.extend_from_slice(tensor.bytes());
        entries.push(format!(
            r#""{name}":{{"dtype":"F32","shape":{:?},"data_offsets":[{begin},{}]}}"#,
            tensor.shape(),
            data.len()
        ));
    }
    let mut header = format!("{{{}}}", entries.join(","));
    while header.len() % 4 != 1 {
        header.push(' ');
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&data);
    bytes
}

#[test]
fn a_tensor_at_an_odd_place_is_read() {
    let map = map([("fc.weight", &[6, 4][..])]);
    let (down, up) = (numbers(&[2, 4], 0), numbers(&[6, 2], 1));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("odd.safetensors");
    let bytes = safetensors_of(&[("fc.lora_A.weight", down.clone()), ("fc.lora_B.weight", up.clone())]);
    std::fs::write(&path, bytes).expect("written");
    let adapter =
        Adapter::open(&path, &AdapterOptions::new().alpha(2.0), &map, regraft_checkpoint::open).expect("an adapter");
    let weights: StateDict =
        [("fc.lora_A.weight".to_owned(), down), ("fc.lora_B.weight".to_owned(), up)].into_iter().collect();
    let expected =
        Adapter::from_state_dict("a", &weights, &config(r#"{"r": 2, "lora_alpha": 2}"#), &map).expect("fits");
    assert_same(&adapter, &expected, "odd");
    for layer in &adapter.layers {
        let Update::LowRank { factors, .. } = &layer.update else { panic!("no LoRA") };
        assert!(factors.up.as_slice::<f32>().is_some() && factors.down.as_slice::<f32>().is_some());
    }
}

#[test]
fn a_digest_tells_adapters_apart_by_all_that_they_do() {
    let map = unet();
    let modules = || UNET.map(str::to_owned);
    let digest = |name: &str, weights: &StateDict, alpha: f64| {
        Adapter::from_state_dict(name, weights, AdapterOptions::new().alpha(alpha), &map).unwrap().digest()
    };
    let weights = lora(modules(), ".lora_A.weight", ".lora_B.weight", None);
    let one = digest("one", &weights, 2.0);
    assert_eq!(one, digest("other", &weights, 2.0), "a name says nothing");
    assert_eq!(one, digest("one", &lora(modules(), ".lora.down.weight", ".lora.up.weight", None), 2.0), "nor do keys");
    assert_ne!(one, digest("one", &weights, 4.0), "the factor does");
    let mut other = weights.clone();
    other.insert(format!("{QUERY}.lora_A.weight"), numbers(&[2, 4], 40));
    assert_ne!(one, digest("one", &other, 2.0), "numbers do");
}
