use std::sync::Arc;

use regraft::{
    Adapter, Model, Tensor,
    adapter::{AdapterLayer, Factors, Update},
};

const RANK: usize = 16;

/// Parts of the names of attention projections, as BERT, torchvision's ViT and diffusers' UNet spell them.
const PROJECTIONS: [&str; 11] = [
    "attention.self.query.weight",
    "attention.self.key.weight",
    "attention.self.value.weight",
    "attention.output.dense.weight",
    "self_attention.in_proj_weight",
    "self_attention.out_proj.weight",
    "to_q.weight",
    "to_k.weight",
    "to_v.weight",
    "to_out.0.weight",
    "attn.c_attn.weight",
];

/// A LoRA of rank 16 on all attention projections, or, in a model without attention, on all convolutions.
pub(crate) fn lora(model: &Model, name: &str, seed: usize) -> (Arc<Adapter>, &'static str) {
    let sources = &model.refit_map().sources;
    let projection = |name: &str| PROJECTIONS.iter().any(|p| name.ends_with(p));
    let attention = sources.iter().any(|s| projection(&s.name));
    let chosen = sources.iter().enumerate().filter(|(_, s)| match attention {
        true => projection(&s.name),
        false => s.shape.len() == 4,
    });
    let layers = chosen.map(|(source, info)| {
        let (rows, cols) = (info.shape[0], info.shape[1..].iter().product());
        let factors = Factors { up: matrix(rows, RANK, seed), down: matrix(RANK, cols, seed + 1) };
        AdapterLayer { source, update: Update::LowRank { factors, scale: 0.5, magnitude: None } }
    });
    let what = if attention { "LoRA r=16, attention projections" } else { "LoRA r=16, convolutions" };
    (Arc::new(Adapter::new(name, layers.collect())), what)
}

fn matrix(rows: usize, cols: usize, seed: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * cols).map(|i| ((i + seed * 31) * 7919 % 10007) as f32 * 2e-6 - 0.01).collect();
    Tensor::from_slice(&[rows, cols], &values)
}
