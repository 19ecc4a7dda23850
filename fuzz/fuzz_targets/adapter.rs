//! Tensors under the keys of adapters with a configuration, read for a small engine. Layers that are read must fit it, and are
//! applied.

#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use regraft_adapter::{Adapter, AdapterConfig, AdapterOptions, Overlay, Patterns};
use regraft_ir::{Role, SourceKind};
use regraft_tensor::{AlignedVec, Buffer, DType, Tensor};
use regraft_weights::{RefitMap, SourceInfo, StateDict, Twin};
use serde_json::{Value, json};

/// The sources of the engine. Some names are those of a UNet, which adapters name in a second way.
const SOURCES: [(&str, &[usize], DType, Role); 24] = [
    ("fc.weight", &[10, 12], DType::F32, Role::Linear),
    ("fc.bias", &[10], DType::F32, Role::Other),
    ("square.weight", &[8, 8], DType::BF16, Role::Other),
    ("conv.weight", &[6, 4, 3, 3], DType::F32, Role::Conv),
    ("conv.bias", &[6], DType::F16, Role::Other),
    ("conv1.weight", &[6, 4, 3], DType::F32, Role::Conv),
    ("point.weight", &[4, 6, 1, 1], DType::F32, Role::Conv),
    ("emb.weight", &[9, 7], DType::F32, Role::Table),
    ("ids.weight", &[4], DType::I64, Role::Other),
    ("none.weight", &[0, 4], DType::F32, Role::Linear),
    ("one.weight", &[], DType::F32, Role::Other),
    ("layers.0.fc.weight", &[6, 10], DType::F32, Role::Linear),
    ("layers.1.fc.weight", &[6, 10], DType::F32, Role::Linear),
    ("down_blocks.0.resnets.0.conv1.weight", &[4, 4, 3, 3], DType::F32, Role::Conv),
    ("down_blocks.1.attentions.0.proj_in.weight", &[4, 4], DType::F32, Role::Linear),
    ("transformer_blocks.0.attn.to_q.weight", &[4, 4], DType::F32, Role::Linear),
    ("transformer_blocks.0.attn.to_k.weight", &[4, 4], DType::F32, Role::Linear),
    ("transformer_blocks.0.attn.to_v.weight", &[4, 4], DType::F32, Role::Linear),
    ("norm_out.linear.weight", &[8, 4], DType::F32, Role::Linear),
    ("single_blocks.0.linear1.weight", &[18, 4], DType::BF16, Role::Linear),
    ("x.to_qkv.weight", &[12, 4], DType::F32, Role::Linear),
    ("gpt.weight", &[8, 12], DType::F64, Role::LinearInOut),
    ("up.weight", &[4, 6, 2, 2], DType::F32, Role::ConvTranspose),
    ("experts.w", &[2, 4, 6], DType::F32, Role::Other),
];

/// The source that a second module reads, too.
const TIED: u32 = 7;

/// What the engine has under other names, as one module or as several.
const OTHERS: [(&str, &[usize]); 7] = [
    ("double_blocks.0.img_attn.qkv.weight", &[12, 4]),
    ("final_layer.adaLN_modulation.1.weight", &[8, 4]),
    ("single_transformer_blocks.0.attn.to_q.weight", &[4, 4]),
    ("single_transformer_blocks.0.proj_mlp.weight", &[6, 4]),
    ("single_blocks.0.linear1.qkv.weight", &[12, 4]),
    ("x.to_k.weight", &[4, 4]),
    ("head.weight", &[9, 7]),
];

const PREFIXES: [&str; 12] = [
    "",
    "base_model.model.",
    "base_model.model.unet.",
    "unet.",
    "text_encoder.",
    "transformer.",
    "diffusion_model.",
    "lora_unet_",
    "lora_te_",
    "lora_te2_",
    "lycoris_",
    "pipe.unet.",
];

/// Modules as adapters name them.
const MODULES: [&str; 33] = [
    "fc",
    "square",
    "conv",
    "conv1",
    "point",
    "emb",
    "ids",
    "none",
    "one",
    "layers.0.fc",
    "layers.1.fc",
    "layers_0_fc",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks_0_resnets_0_conv1",
    "down_blocks_1_attentions_0_proj_in",
    "input_blocks_1_0_in_layers_2",
    "input_blocks_3_1_proj_in",
    "output_blocks_2_1_proj_in",
    "middle_block_0_skip_connection",
    "double_blocks.0.img_attn.qkv",
    "double_blocks_0_img_attn_qkv",
    "final_layer.adaLN_modulation.1",
    "single_transformer_blocks.0.attn.to_q",
    "single_transformer_blocks_0_proj_mlp",
    "x.to_k",
    "gpt",
    "up",
    "head",
    "experts",
    "double_blocks.0",
    "single_blocks.0",
    "nowhere",
    "",
];

const PARTS: [&str; 56] = [
    "lora_A.weight",
    "lora_B.weight",
    "lora_A.default.weight",
    "lora_B.default.weight",
    "lora_A",
    "lora_B",
    "lora_B.bias",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "lora_magnitude_vector.weight",
    "lora_down.weight",
    "lora_up.weight",
    "lora_mid.weight",
    "lora.down.weight",
    "lora.up.weight",
    "lora_linear_layer.down.weight",
    "processor.to_q_lora.down.weight",
    "alpha",
    "dora_scale",
    "diff",
    "diff_b",
    "hada_w1_a",
    "hada_w1_b",
    "hada_t1",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t2",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
    "weight",
    "bias",
    "base_layer.weight",
    "lora_E",
    "ia3_l",
    "on_input",
    "oft_R.weight",
    "oft_embedding_R.weight",
    "boft_R",
    "boft_s",
    "oft_blocks",
    "rescale",
    "token_adapter.trainable_tokens_delta",
    "w_norm",
    "b_norm",
    "base_layer.lora_A.weight",
    "base_layer.lora_B.weight",
    "processor.qkv_lora1.down.weight",
    "processor.qkv_lora1.up.weight",
    "processor.qkv_lora.down.weight",
    "processor.qkv_lora.up.weight",
];

/// Sizes of the sources above, their divisors, and sizes that only fit beside a zero.
const SIZES: [usize; 18] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 36, 40, 1 << 31, 1 << 40, 1 << 62, usize::MAX];

const DTYPES: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::F64, DType::I64, DType::Bool];

#[derive(Arbitrary, Debug)]
struct Input {
    prefix: u8,
    layers: Vec<LayerOf>,
    tensors: Vec<TensorOf>,
    config: Config,
    /// Metadata of diffusers: fields of components, or any text.
    components: Vec<(u8, u8, ValueOf)>,
    metadata: Option<String>,
    /// Other metadata.
    header: Vec<(u8, String)>,
    is_beside: bool,
    alpha: Option<f64>,
}

/// An update of one module whose shapes fit.
#[derive(Arbitrary, Debug)]
struct LayerOf {
    source: u8,
    kind: u8,
    rank: u8,
    dtype: u8,
    magnitude: bool,
}

/// One tensor under any key and with any shape.
#[derive(Arbitrary, Debug)]
struct TensorOf {
    other_prefix: Option<u8>,
    module: u8,
    other_module: Option<String>,
    part: u8,
    other_part: Option<String>,
    shape: Vec<u8>,
    dtype: u8,
    bits: u8,
}

/// Configurations that adapters of their kinds are read with.
const KNOWN: [&str; 6] = [
    r#"{"scaling": 1}"#,
    r#"{"peft_type": "OFT", "use_cayley_neumann": true, "num_cayley_neumann_terms": 5, "block_share": false, "coft": true, "eps": 0.1}"#,
    r#"{"peft_type": "OFT", "use_cayley_neumann": false, "block_share": false, "coft": false}"#,
    r#"{"peft_type": "IA3", "feedforward_modules": ["fc"]}"#,
    r#"{"r": 2, "lora_alpha": 4, "target_parameters": ["experts.w"]}"#,
    r#"{"r": 2, "lora_alpha": 4, "trainable_token_indices": {"emb": [1, 8]}}"#,
];

#[derive(Arbitrary, Debug)]
enum Config {
    Known(u8),
    Fields {
        kind: u8,
        r: Option<usize>,
        lora_alpha: Option<f64>,
        alpha: Option<f64>,
        use_rslora: bool,
        use_dora: bool,
        fan_in_fan_out: bool,
        ranks: Vec<(u8, usize)>,
        alphas: Vec<(u8, f64)>,
        pattern: Option<String>,
    },
    /// An `adapter_config.json` with fields that PEFT knows.
    Values(Vec<(u8, ValueOf)>),
    /// The text of an `adapter_config.json`.
    Text(String),
}

#[derive(Arbitrary, Debug)]
enum ValueOf {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    Empty,
    Pattern(Vec<(u8, i64)>),
    /// Names of parameters or modules.
    Names(Vec<u8>),
    /// Rows of embeddings.
    Tokens(Vec<(u8, Vec<i64>)>),
}

/// Fields of an `adapter_config.json`.
const FIELDS: [&str; 24] = [
    "peft_type",
    "r",
    "lora_alpha",
    "alpha",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "alora_invocation_tokens",
    "layer_replication",
    "use_qalora",
    "init_lora_weights",
    "target_modules",
    "lora_bias",
    "modules_to_save",
    "target_parameters",
    "use_cayley_neumann",
    "num_cayley_neumann_terms",
    "block_share",
    "coft",
    "eps",
    "trainable_token_indices",
    "feedforward_modules",
];

/// Where a header may say something of scales.
const HEADERS: [&str; 9] = [
    "adapter_config",
    "peft_config",
    "lora_config",
    "config",
    "lora_alpha",
    "network_alpha",
    "ss_network_alpha",
    "alpha",
    "ss_network_module",
];

impl ValueOf {
    fn json(self) -> Value {
        match self {
            ValueOf::Null => Value::Null,
            ValueOf::Bool(value) => value.into(),
            ValueOf::Integer(value) => value.into(),
            ValueOf::Float(value) => value.into(),
            ValueOf::Text(value) => value.into(),
            ValueOf::Empty => Value::Array(vec![]),
            ValueOf::Pattern(fields) => {
                fields.into_iter().map(|(module, value)| (pick(&MODULES, module).to_owned(), value)).collect()
            }
            ValueOf::Names(names) => {
                let name = |name: u8| if name == 0 { "experts.w" } else { pick(&MODULES, name) };
                names.into_iter().map(name).collect()
            }
            ValueOf::Tokens(rows) => {
                rows.into_iter().map(|(module, rows)| (pick(&MODULES, module).to_owned(), json!(rows))).collect()
            }
        }
    }
}

static ENGINE: LazyLock<RefitMap> = LazyLock::new(|| {
    let source = |(name, shape, dtype, role): (&str, &[usize], DType, Role)| SourceInfo {
        name: name.into(),
        aliases: vec![],
        kind: SourceKind::Parameter,
        dtype,
        shape: shape.to_vec(),
        role,
    };
    let mut sources: Vec<SourceInfo> = SOURCES.into_iter().map(source).collect();
    let head = "head.weight".to_owned();
    sources[TIED as usize].aliases.push(head.clone());
    RefitMap { sources, twins: vec![Twin { of: TIED, name: head, role: Role::Linear }], recipes: vec![] }
});

fn pick<T: Copy>(from: &[T], index: u8) -> T {
    from[usize::from(index) % from.len()]
}

/// A tensor whose bytes are all `bits`; `None` where no file could hold it.
fn tensor(dtype: DType, shape: &[usize], bits: u8) -> Option<Tensor> {
    let len = Tensor::byte_len(dtype, shape).ok().filter(|len| *len <= 1 << 16)?;
    let bits = if dtype == DType::Bool { bits & 1 } else { bits };
    Tensor::new(dtype, shape.to_vec(), Buffer::from(AlignedVec::copy_of(&vec![bits; len]))).ok()
}

impl LayerOf {
    /// The parts and shapes of the update.
    fn parts(&self) -> (&'static str, Vec<(&'static str, Vec<usize>)>) {
        let own = SOURCES.into_iter().map(|(name, shape, ..)| (name, shape));
        let all: Vec<(&str, &[usize])> = own.chain(OTHERS).collect();
        let (name, shape) = pick(&all, self.source);
        let module = name.rsplit_once('.').map_or("", |(module, _)| module);
        let rank = usize::from(self.rank % 9);
        let (rows, cols) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product::<usize>());
        let inputs = shape.get(1).copied().unwrap_or(1);
        let taps = shape.get(2..).unwrap_or_default();
        let of = |first: usize, second: usize, rest: &[usize]| [&[first, second], rest].concat();
        let half = |size: usize| if size.is_multiple_of(2) { (2, size / 2) } else { (1, size) };
        let ((a, c), (b, d)) = (half(rows), half(inputs));
        let size = [4, 3, 2].into_iter().find(|size| inputs.is_multiple_of(*size)).unwrap_or(1);
        let blocks = inputs / size;
        let mut parts = match self.kind % 18 {
            0 => vec![("lora_A.weight", of(rank, inputs, taps)), ("lora_B.weight", vec![rows, rank])],
            1 => vec![("lora_down.weight", of(rank, inputs, taps)), ("lora_up.weight", vec![rows, rank])],
            2 => vec![
                ("lora_down.weight", vec![rank, inputs]),
                ("lora_mid.weight", of(rank, rank, taps)),
                ("lora_up.weight", vec![rows, rank]),
            ],
            3 => vec![("lora_embedding_A", vec![rank, rows]), ("lora_embedding_B", vec![cols, rank])],
            4 => vec![
                ("hada_w1_a", vec![rows, rank]),
                ("hada_w1_b", vec![rank, cols]),
                ("hada_w2_a", vec![rows, rank]),
                ("hada_w2_b", vec![rank, cols]),
            ],
            5 => vec![
                ("hada_t1", of(rank, rank, taps)),
                ("hada_w1_a", vec![rank, rows]),
                ("hada_w1_b", vec![rank, inputs]),
                ("hada_t2", of(rank, rank, taps)),
                ("hada_w2_a", vec![rank, rows]),
                ("hada_w2_b", vec![rank, inputs]),
            ],
            6 => vec![("lokr_w1", vec![a, b]), ("lokr_w2", of(c, d, taps))],
            7 => vec![
                ("lokr_w1_a", vec![a, rank]),
                ("lokr_w1_b", vec![rank, b]),
                ("lokr_t2", of(rank, rank, taps)),
                ("lokr_w2_a", vec![rank, c]),
                ("lokr_w2_b", vec![rank, d]),
            ],
            8 => vec![("diff", shape.to_vec()), ("diff_b", vec![rows])],
            9 => vec![("oft_R.weight", vec![blocks, size * (size - 1) / 2])],
            10 => vec![("boft_R", vec![rank.clamp(1, 3), blocks, size, size]), ("boft_s", vec![rows, 1])],
            11 => vec![("oft_blocks", vec![a, c, c]), ("rescale", of(rows, 1, taps))],
            12 => vec![("ia3_l", vec![rows, 1])],
            13 => vec![("ia3_l", vec![1, inputs])],
            14 => vec![("weight", shape.to_vec()), ("bias", vec![rows])],
            15 => vec![("token_adapter.trainable_tokens_delta", vec![rank, cols])],
            16 => vec![
                ("lora_A.weight", vec![rank * rows, taps.iter().product()]),
                ("lora_B.weight", vec![inputs, rank * rows]),
            ],
            _ => vec![("lora_A.weight", vec![rank, rows]), ("lora_B.weight", vec![cols, rank])],
        };
        if self.magnitude {
            parts.push(if self.kind.is_multiple_of(2) {
                ("lora_magnitude_vector", vec![rows])
            } else {
                ("dora_scale", vec![1, cols])
            });
        }
        (module, parts)
    }
}

impl Config {
    fn read(self) -> AdapterConfig {
        match self {
            Config::Known(index) => serde_json::from_str(pick(&KNOWN, index)).expect("a configuration"),
            Config::Text(text) => serde_json::from_str(&text).unwrap_or_default(),
            Config::Values(fields) => {
                let fields = fields.into_iter().map(|(field, value)| (pick(&FIELDS, field).to_owned(), value.json()));
                serde_json::from_value(fields.collect()).unwrap_or_default()
            }
            Config::Fields {
                kind,
                r,
                lora_alpha,
                alpha,
                use_rslora,
                use_dora,
                fan_in_fan_out,
                ranks,
                alphas,
                pattern,
            } => {
                let peft_type = pick(&[None, Some("LORA"), Some("LOHA"), Some("LOKR"), Some("IA3")], kind);
                let mut alphas: Vec<_> = alphas.into_iter().map(|(m, v)| (pick(&MODULES, m).to_owned(), v)).collect();
                alphas.extend(pattern.map(|pattern| (pattern, 2.0)));
                AdapterConfig {
                    peft_type: peft_type.map(str::to_owned),
                    r,
                    lora_alpha,
                    alpha,
                    use_rslora,
                    use_dora,
                    fan_in_fan_out,
                    rank_pattern: Patterns(
                        ranks.into_iter().map(|(m, v)| (format!("^{}", pick(&MODULES, m)), v)).collect(),
                    ),
                    alpha_pattern: Patterns(alphas),
                    ..AdapterConfig::default()
                }
            }
        }
    }
}

fuzz_target!(|input: Input| {
    let config = input.config.read();
    let prefix = pick(&PREFIXES, input.prefix);
    let mut dict = StateDict::new();
    for layer in &input.layers {
        let (module, parts) = layer.parts();
        let module = if prefix.ends_with('_') { module.replace('.', "_") } else { module.to_owned() };
        for (part, shape) in parts {
            if let Some(tensor) = tensor(pick(&DTYPES[..4], layer.dtype), &shape, 0x3c) {
                dict.insert(format!("{prefix}{module}.{part}"), tensor);
            }
        }
    }
    for given in &input.tensors {
        let prefix = given.other_prefix.map_or(prefix, |prefix| pick(&PREFIXES, prefix));
        let module = given.other_module.as_deref().unwrap_or(pick(&MODULES, given.module));
        let part = given.other_part.as_deref().unwrap_or(pick(&PARTS, given.part));
        let shape: Vec<usize> = given.shape.iter().take(6).map(|size| pick(&SIZES, *size)).collect();
        if let Some(tensor) = tensor(pick(&DTYPES, given.dtype), &shape, given.bits) {
            dict.insert(format!("{prefix}{module}.{part}"), tensor);
        }
    }
    let component = |(component, field, value): (u8, u8, ValueOf)| {
        let component = pick(&["unet", "text_encoder", "text_encoder_2", "transformer", "x"], component);
        (format!("{component}.{}", pick(&FIELDS, field)), value.json())
    };
    let components: Value = input.components.into_iter().map(component).collect();
    let metadata = input.metadata.or_else(|| (components != json!({})).then(|| components.to_string()));
    dict.add_metadata(metadata.map(|text| ("lora_adapter_metadata".to_owned(), text)));
    dict.add_metadata(input.header.into_iter().map(|(key, text)| (pick(&HEADERS, key).to_owned(), text)));
    let (stated, beside) = if input.is_beside { (None, Some(config)) } else { (Some(config), None) };
    let options = AdapterOptions::new().config(stated).alpha(input.alpha).beside(beside);
    match Adapter::from_state_dict("x", &dict, options, &ENGINE) {
        Ok(adapter) => {
            assert!(adapter.mismatches(&ENGINE).is_empty());
            for layer in &adapter.layers {
                let source = ENGINE.source_of(layer.source).expect("a use of the engine");
                let info = &ENGINE.sources[source];
                std::hint::black_box(Overlay::new(info.dtype, &info.shape, &[(&layer.update, 0.5)]));
                let weight = tensor(info.dtype, &info.shape, 0x3c).expect("a small source");
                let updated = layer.update.reference(&weight, 0.5);
                assert_eq!((updated.dtype(), updated.shape()), (info.dtype, info.shape.as_slice()));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
