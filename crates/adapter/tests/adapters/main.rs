//! Adapter files: how they name things, what they hold, and what is wrong with them.

mod hostile;
mod joined;
mod kinds;
mod lycoris;
mod names;
mod peft;
mod problems;

use std::path::{Path, PathBuf};

use regraft_adapter::{Adapter, AdapterConfig, AdapterErrorKind, AdapterOptions, Update};
use regraft_ir::{Role, SourceKind};
use regraft_tensor::{DType, Tensor};
use regraft_weights::{RefitMap, SourceInfo, StateDict};

/// A file that stands beside these tests.
fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/adapters").join(name)
}

/// An engine with these sources. What they are to their modules, names and shapes say here.
fn map<'a>(sources: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> RefitMap {
    let source = |(name, shape): (&str, &[usize])| SourceInfo {
        name: name.into(),
        aliases: vec![],
        kind: SourceKind::Parameter,
        dtype: DType::F32,
        shape: shape.to_vec(),
        role: match shape.len() {
            2 if name.contains("gpt") => Role::LinearInOut,
            2 if name.contains("emb") => Role::Table,
            2 => Role::Linear,
            3.. => Role::Conv,
            _ => Role::Other,
        },
        folded: None,
    };
    RefitMap { sources: sources.into_iter().map(source).collect(), twins: vec![], recipes: vec![] }
}

/// Some numbers in the order of memory; each `seed` has its own.
fn numbers(shape: &[usize], seed: usize) -> Tensor {
    let len = shape.iter().product();
    let values: Vec<f32> = (0..len).map(|i| ((i + 31 * seed) * 7919 % 97) as f32 / 64.0 - 0.75).collect();
    Tensor::from_slice(shape, &values)
}

fn scalar(value: f32) -> Tensor {
    Tensor::from_slice(&[], &[value])
}

/// An adapter with these tensors, each with its own numbers.
fn dict<'a>(entries: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> StateDict {
    let tensors = entries.into_iter().enumerate();
    tensors.map(|(seed, (key, shape))| (key.to_owned(), numbers(shape, seed))).collect()
}

fn config(json: &str) -> AdapterConfig {
    serde_json::from_str(json).expect("a configuration")
}

/// The configuration where scales do not matter.
fn scale_of_one() -> AdapterConfig {
    config(r#"{"scaling": 1.0}"#)
}

/// Reads an adapter that fits.
fn read(weights: &StateDict, map: &RefitMap) -> Adapter {
    let options = AdapterOptions::new().beside(scale_of_one());
    Adapter::from_state_dict("a", weights, options, map).expect("an adapter that fits")
}

/// Reads an adapter that does not fit: `key: what` for each problem.
fn problems_with(weights: &StateDict, config: &AdapterConfig, map: &RefitMap) -> Vec<String> {
    let error = Adapter::from_state_dict("a", weights, config, map).expect_err("an adapter that does not fit");
    let AdapterErrorKind::Fit { problems, .. } = error.kind() else { panic!("{error}") };
    problems.iter().map(|p| format!("{}: {}", p.key(), p.what())).collect()
}

fn problems(weights: &StateDict, map: &RefitMap) -> Vec<String> {
    problems_with(weights, &scale_of_one(), map)
}

/// The updates with the names of their sources.
fn updates<'a>(adapter: &'a Adapter, map: &'a RefitMap) -> Vec<(&'a str, &'a Update)> {
    adapter.layers.iter().map(|layer| (map.sources[layer.source].name.as_str(), &layer.update)).collect()
}
