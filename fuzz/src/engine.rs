//! Engine files whose digests are right, and what must hold of the engines in them.

use std::{
    path::Path,
    sync::{Arc, LazyLock},
};

use regraft_backend::Device;
use regraft_backend_cpu::{CpuDevice, Isa};
use regraft_engine::{
    Engine, Plan,
    container::{ContainerWriter, Format, SectionClass, SectionKind},
};
use regraft_ir::{Graph, ValueId, eval::bind_symbols};
use regraft_runtime::{Model, RefitOptions};
use regraft_tensor::{AlignedVec, Buffer, Tensor};
use regraft_weights::{MatchOptions, RefitMap, StateDict};
use serde_json::Value;

use crate::{Parts, json, random::Random, text};

const fn metadata(id: u32, name: &'static str) -> SectionKind {
    SectionKind { id, name, class: SectionClass::Metadata }
}

const fn weights(id: u32, name: &'static str) -> SectionKind {
    SectionKind { id, name, class: SectionClass::Weights }
}

const ABOUT: SectionKind = metadata(1, "about");
const PLAN: SectionKind = metadata(2, "plan");
const RECIPES: SectionKind = metadata(3, "recipes");
const SOURCES: SectionKind = weights(4, "sources");
const SLOTS: SectionKind = weights(5, "slots");
const COMPAT: SectionKind = metadata(6, "compat");
const KEY: SectionKind = metadata(7, "key");

/// The formats that are read, as `crates/engine/src/artifact` has them.
static FORMATS: [Format; 2] = [
    Format { version: 1, sections: &[SOURCES, SLOTS, ABOUT, PLAN, RECIPES] },
    Format { version: 2, sections: &[KEY, COMPAT, SOURCES, SLOTS, ABOUT, PLAN, RECIPES] },
];

/// What stands for the version of Regraft in inputs, so that they outlive it.
const ANY_PRODUCT: &[u8] = br#""product":"any""#;

/// `"product":"0.1.0"`, as this version writes it.
static PRODUCT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let none = Engine::new(BACKENDS[0].codegen().target(), Plan::default(), RefitMap::default());
    let bytes = none.to_bytes().expect("an engine of nothing");
    let start = find(&bytes, br#""product":""#).expect("the version");
    let end = start + bytes[start..].iter().position(|byte| *byte == b',').expect("the target after it");
    bytes[start..end].to_vec()
});

/// Longer than sections of seeds: with this setting, larger tensors lie in them too.
const ROOM: usize = 32 << 10;

/// The file of a container of these parts. Settings: bit 0 chooses format 1, bit 3 adds zeros to weights.
pub fn sealed(parts: &Parts, key: Option<&[u8]>) -> Vec<u8> {
    let format = &FORMATS[usize::from(parts.settings & 1 == 0)];
    let mut writer = ContainerWriter::in_memory("input", format).expect("a writer to memory");
    for &kind in format.sections {
        let content = if kind == KEY { key } else { parts.get(kind.name) };
        let Some(mut content) = content.map(<[u8]>::to_vec) else { continue };
        if kind.class == SectionClass::Weights && parts.settings & 8 != 0 {
            content.resize(content.len().max(ROOM), 0);
        }
        if let Some(at) = find(&content, ANY_PRODUCT) {
            content.splice(at..at + ANY_PRODUCT.len(), PRODUCT.iter().copied());
        }
        writer.section(kind, &content).expect("a write to memory");
    }
    writer.into_bytes().expect("a write to memory")
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A mutator for libFuzzer: mostly [`mutated`], at times what the fuzzer does with bytes.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    if !seed.is_multiple_of(16)
        && let Some(mutated) = mutated(&data[..size], seed, max_size)
    {
        data[..mutated.len()].copy_from_slice(&mutated);
        return mutated.len();
    }
    libfuzzer_sys::fuzzer_mutate(data, size, max_size)
}

/// Changes parts of `input`: JSON stays JSON and programs stay words. `None` when the result is longer than `most`.
fn mutated(input: &[u8], seed: u32, most: usize) -> Option<Vec<u8>> {
    let mut random = Random::new(seed);
    let mut parts = Parts::of(input);
    let done = match random.below(4) {
        0 => {
            // Larger tensors want more room.
            parts.settings |= (random.below(2) as u8) << 3;
            let mut texts: Vec<_> = parts.contents_mut().collect();
            text::replace_everywhere(&mut texts, &mut random)
        }
        1 => {
            let name = if random.below(8) == 0 { "compat" } else { "about" };
            parts.get_mut(name).is_some_and(|part| json::mutate(part, &mut random))
        }
        _ => {
            let name = if random.below(3) == 0 { "recipes" } else { "plan" };
            parts.get_mut(name).is_some_and(|part| text::mutate(part, &mut random))
        }
    };
    if random.below(8) == 0 {
        parts.settings = random.below(256) as u8;
    }
    if random.below(8) != 0 {
        for name in ["plan", "recipes"] {
            if let Some(part) = parts.get_mut(name) {
                text::fit_types(part, &mut random);
            }
        }
        fit_recipes(&mut parts);
    }
    let joined = parts.join();
    (done && joined.len() <= most).then_some(joined)
}

/// Makes the lengths of the recipes' texts right again.
fn fit_recipes(parts: &mut Parts) {
    let Some(Ok(recipes)) = parts.get("recipes").map(std::str::from_utf8) else { return };
    let lens: Vec<usize> = text::programs(recipes).map(str::len).collect();
    let Some(about) = parts.get_mut("about") else { return };
    let Ok(mut value) = serde_json::from_slice::<Value>(about) else { return };
    let Some(recipes) = value.get_mut("recipes").and_then(Value::as_array_mut) else { return };
    for (recipe, right) in recipes.iter_mut().zip(lens) {
        if let Some(len) = recipe.get_mut("text_len") {
            *len = right.into();
        }
    }
    *about = value.to_string().into_bytes();
}

/// An engine of the bytes of its file.
pub fn read(bytes: &[u8]) -> Option<Engine> {
    match Engine::from_bytes("input", Buffer::from(AlignedVec::copy_of(bytes))) {
        Ok(engine) => Some(engine),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

/// Looks at all that an engine holds, and writes it and reads it again.
pub fn examine(engine: &Engine) {
    let held = engine.sources.iter().flatten().map(Tensor::bytes);
    let slots = engine.slots.iter().flatten().map(Buffer::bytes);
    let sum = held.chain(slots).flatten().fold(0u64, |sum, byte| sum.wrapping_add(u64::from(*byte)));
    std::hint::black_box(sum);
    engine.plan.check().expect("it was checked as it was read");
    assert_eq!(engine.manifest().len(), engine.refit_map.sources.len());
    let bytes = (engine.slot_bytes(), engine.source_bytes(), engine.keep_sources());
    std::hint::black_box(bytes);
    for same in [false, true] {
        if let Err(misfit) = engine.check(&StateDict::new(), same, &MatchOptions::default()) {
            assert!(!misfit.problems.is_empty());
        }
    }
    let once = engine.to_bytes().expect("what was read can be written");
    let again = read(&once).expect("what was written can be read");
    assert!(again.to_bytes().expect("and written again") == once);
}

/// One per instruction set, the best first.
static BACKENDS: LazyLock<Vec<Arc<CpuDevice>>> = LazyLock::new(|| {
    let mut all: Vec<_> = Isa::available().into_iter().map(|isa| Arc::new(CpuDevice::with_isa(isa, Some(1)))).collect();
    let best = CpuDevice::new(Some(1)).codegen().target();
    all.sort_by_key(|backend| backend.codegen().target() != best);
    all
});

/// More bytes than the values of any seed have; more than that would only take time.
const MOST_BYTES: usize = 256 << 10;

/// Makes a model of `engine` on the backend that the settings choose (bits 1 and 2), runs it, gives it weights of zeros,
/// runs it again, and saves it. Any of these may be refused.
pub fn run(mut engine: Engine, settings: u8) {
    let backend = &BACKENDS[usize::from(settings >> 1 & 3) % BACKENDS.len()];
    engine.target = backend.codegen().target();
    let Some((inputs, zeros)) = small(&engine) else { return };
    let weights = zeros.clone();
    // Paths in the input say which files of this machine would be read.
    let reader = Arc::new(move |_: &Path| Ok(weights.clone()));
    let Ok(model) = Model::new(engine, backend.clone(), reader) else { return };
    for round in 0..2 {
        let mut session = model.session();
        for _ in 0..2 {
            match session.run(&inputs) {
                Ok(outputs) => assert_eq!(outputs.len(), model.plan().graph.outputs.len()),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        if round == 0
            && let Err(error) = model.refit(&zeros, &RefitOptions::default())
        {
            assert!(!error.to_string().is_empty());
            break;
        }
    }
    if let Ok(saved) = model.to_engine(model.mode(), model.keep_sources()) {
        let bytes = saved.to_bytes().expect("a model can be saved");
        assert!(read(&bytes).is_some(), "what was saved can be read");
    }
}

/// Inputs and weights of zeros, when all that the engine computes is small.
fn small(engine: &Engine) -> Option<(Vec<Tensor>, StateDict)> {
    let graph = &engine.plan.graph;
    let symbols: Vec<i64> = graph.symbols.iter().map(|s| s.opt.min(4).max(s.range.min)).collect();
    let recipes = engine.refit_map.recipes.iter().map(|recipe| (&recipe.graph, &[][..]));
    let graphs = recipes.chain([(graph, &*symbols)]);
    let sizes = graphs.map(|(graph, symbols)| bytes_of(graph, symbols)).chain([engine.source_bytes()]);
    if sizes.fold(engine.slot_bytes(), usize::saturating_add) > MOST_BYTES {
        return None;
    }
    let input = |input: &regraft_ir::Input| zeros(graph, input.value, &symbols);
    let inputs = graph.inputs.iter().map(input).collect::<Option<Vec<Tensor>>>()?;
    // Symbols that no input shows get other values than above.
    if bind_symbols(graph, &inputs).is_ok_and(|symbols| bytes_of(graph, &symbols) > MOST_BYTES) {
        return None;
    }
    let mut weights = StateDict::new();
    for source in &engine.refit_map.sources {
        weights.insert(source.name.clone(), Tensor::zeros(source.dtype, &source.shape).ok()?);
    }
    Some((inputs, weights))
}

fn zeros(graph: &Graph, value: ValueId, symbols: &[i64]) -> Option<Tensor> {
    Tensor::zeros(graph.ty(value).dtype, &sizes(graph, value, symbols)?).ok()
}

fn sizes(graph: &Graph, value: ValueId, symbols: &[i64]) -> Option<Vec<usize>> {
    graph.ty(value).shape.iter().map(|dim| usize::try_from(dim.eval(symbols).ok()?).ok()).collect()
}

/// Bytes of all values of a program; more than there can be where one has no size.
fn bytes_of(graph: &Graph, symbols: &[i64]) -> usize {
    let bytes = |value: u32| {
        let value = ValueId(value);
        let sizes = sizes(graph, value, symbols)?;
        // Loops go over the other axes of empty values, too.
        let sizes: Vec<usize> = sizes.into_iter().map(|size| size.max(1)).collect();
        Tensor::byte_len(graph.ty(value).dtype, &sizes).ok()
    };
    (0..graph.value_count() as u32).map(bytes).fold(0, |sum, bytes| sum.saturating_add(bytes.unwrap_or(usize::MAX)))
}
