//! Weights in memory of someone else, who writes over it as soon as a call returns.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{cell::UnsafeCell, ptr::NonNull, sync::Arc};

use regraft::{
    AlignedVec, BorrowedBytes, Buffer, Changed, DType, KeepSources, Mode, Model, Refit, RefitOptions, RefitReport,
    StateDict, Tensor,
    adapter::{Adapter, AdapterLayer, Factors, Update},
};
use regraft_backend_cpu::Isa;
use regraft_conformance::{
    Case, FULL, PARTIAL, Spoiled, assert_same, assert_same_slots, backend, one, own_weights, through_a_file,
};

/// Memory that is lent.
struct Lent(UnsafeCell<Box<[u64]>>);

// SAFETY: it is written to by `scribble` alone, while no call reads it.
unsafe impl Sync for Lent {}

/// A copy of `weights` in lent memory.
fn lend(weights: &StateDict) -> (StateDict, Vec<Arc<Lent>>) {
    let mut owners = Vec::new();
    let lent = weights.iter().map(|(name, tensor)| {
        let bytes = tensor.bytes();
        let mut memory = vec![0u64; bytes.len().div_ceil(8)].into_boxed_slice();
        let start = NonNull::from(&mut *memory).cast::<u8>();
        // SAFETY: there are at least as many bytes, of memory that is ours.
        unsafe { start.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        let owner = Arc::new(Lent(UnsafeCell::new(memory)));
        owners.push(owner.clone());
        // SAFETY: the owner holds the memory, and only `scribble` writes to it, between calls.
        let bytes = unsafe { BorrowedBytes::new(start, bytes.len(), owner) };
        let tensor = Tensor::new(tensor.dtype(), tensor.shape().to_vec(), Buffer::Borrowed(bytes)).unwrap();
        (name.to_owned(), tensor)
    });
    (lent.collect(), owners)
}

/// Writes over what was lent, of which nothing must be left anywhere.
fn scribble(owners: Vec<Arc<Lent>>) {
    for owner in owners {
        assert_eq!(Arc::strong_count(&owner), 1, "someone keeps borrowed memory");
        // SAFETY: nobody else has it any more.
        unsafe { (*owner.0.get()).fill(0xdead_beef_dead_beef) };
    }
}

/// Refits from lent memory, which is written over right after.
fn refit(model: &Model, weights: &StateDict, options: &RefitOptions) -> RefitReport {
    let (lent, owners) = lend(weights);
    let report = model.refit(&lent, options).unwrap();
    drop(lent);
    scribble(owners);
    report
}

/// A model that was bound from lent memory.
fn bound(case: &Case, weights: &StateDict) -> Model {
    let model = case.model(case.compile().stripped());
    refit(&model, weights, &FULL);
    model
}

/// How many sources are kept in slots.
fn in_slots(model: &Model) -> usize {
    model.generation().unwrap().sources.iter().filter(|s| s.slot().is_some()).count()
}

/// Both have the same slots, give the same outputs, and know the same sources.
fn assert_alike(what: &str, got: &Model, want: &Model, inputs: &[Tensor]) {
    assert_same_slots(what, got, want);
    assert_same(what, &got.run(inputs).unwrap(), &want.run(inputs).unwrap());
    let (got, want) = (got.generation().unwrap(), want.generation().unwrap());
    for (i, (got, want)) in got.sources.iter().zip(&want.sources).enumerate() {
        let (a, b) = (got.converted().unwrap(), want.converted().unwrap());
        assert!(a.zip(b).is_none_or(|(a, b)| a.bit_equal(&b)), "{what}: source {i}");
        assert_eq!(got.digest().unwrap(), want.digest().unwrap(), "{what}: digest of source {i}");
    }
}

fn owned(case: &Case, weights: &StateDict) -> Model {
    case.model(case.compile_with(weights, Isa::detect()))
}

#[test]
fn a_bound_model_keeps_no_borrowed_memory() {
    for case in Case::all() {
        let a = own_weights(&case.compile());
        let model = bound(&case, &a);
        assert_alike(&case.name, &model, &owned(&case, &a), &case.tensors("input"));
        // What is the same as before is told, and costs no slot.
        let report = refit(&model, &a, &FULL);
        assert!(report.applied.is_empty() && report.recomputed_slots.is_empty(), "{}: {report:?}", case.name);
        assert_eq!(refit(&model, &a, &FULL.changed(Changed::All)).applied.len(), a.len());
        assert_alike(&case.name, &model, &owned(&case, &a), &case.tensors("input"));
    }
    let case = Case::open("tiny_bert");
    let model = bound(&case, &own_weights(&case.compile()));
    assert!(in_slots(&model) * 10 > 9 * model.refit_map().sources.len(), "nearly all are kept in slots");
    assert!(in_slots(&bound(&Case::open("conv_grouped"), &own_weights(&Case::open("conv_grouped").compile()))) > 0);
    let in_use = model.slot_memory().in_use;
    let before = owned(&case, &own_weights(&case.compile())).slot_memory().in_use;
    assert_eq!(in_use, before, "no slot is held for its sources alone");
}

#[test]
fn an_engine_of_borrowed_weights_keeps_none() {
    for name in ["tiny_bert", "conv_bn", "constants"] {
        let case = Case::open(name);
        let engine = case.compile();
        let a: StateDict =
            (engine.sources.iter().enumerate()).map(|(i, t)| (i.to_string(), t.clone().unwrap())).collect();
        let (lent, owners) = lend(&a);
        let weights = (0..a.len()).map(|i| lent.get(&i.to_string()).cloned()).collect();
        let model = case.model(engine.with_weights(weights, false));
        drop(lent);
        scribble(owners);
        assert_alike(name, &model, &case.model(case.compile()), &case.tensors("input"));
    }
}

#[test]
fn partial_refits_find_siblings_in_slots() {
    for case in Case::all() {
        let (a, b) = (own_weights(&case.compile()), case.weights_b());
        let model = bound(&case, &a);
        let want = owned(&case, &a);
        for (name, tensor) in b.iter().filter(|(name, _)| a.get(name).is_some()) {
            refit(&model, &one(name, tensor.clone()), &PARTIAL);
            want.refit(&one(name, tensor.clone()), &PARTIAL).unwrap();
            assert_same_slots(&format!("{} with {name}", case.name), &model, &want);
        }
        assert_alike(&case.name, &model, &want, &case.tensors("input"));
        // A whole checkpoint of which little changed, over what slots keep.
        let untied = |name: &str| want.refit_map().sources.iter().any(|s| s.name == name && s.aliases.is_empty());
        let Some((name, tensor)) = a.iter().find(|(name, _)| untied(name)) else { continue };
        let mut mixed = b.clone();
        mixed.insert(name, tensor.clone());
        refit(&model, &mixed, &FULL);
        want.refit(&mixed, &FULL).unwrap();
        assert_alike(&case.name, &model, &want, &case.tensors("input"));
        let in_use = |model: &Model| model.slot_memory().in_use;
        assert_eq!(in_use(&model), in_use(&want), "{}: no slot is held for its sources alone", case.name);
    }
}

#[test]
fn floats_of_another_width_are_kept_as_they_were_given() {
    for name in ["tiny_bert", "conv_bn", "tied", "two_layouts", "dtypes", "mha", "conv_grouped"] {
        let case = Case::open(name);
        let b = case.weights_b();
        for dtype in [DType::F16, DType::BF16, DType::F64] {
            let cast = |t: &Tensor| if t.dtype().is_float() { t.cast(dtype) } else { t.clone() };
            let narrow: StateDict = b.iter().map(|(name, tensor)| (name.to_owned(), cast(tensor))).collect();
            let want = case.model(case.compile());
            want.refit(&narrow, &FULL).unwrap();
            let model = bound(&case, &own_weights(&case.compile()));
            refit(&model, &narrow, &FULL);
            assert_alike(name, &model, &want, &case.tensors("input"));
            assert!(refit(&model, &narrow, &FULL).applied.is_empty(), "{name}: they are the same");
            refit(&model, &b, &FULL);
            want.refit(&b, &FULL).unwrap();
            assert_alike(name, &model, &want, &case.tensors("input"));
        }
    }
}

/// A tensor of this shape with bits of all kinds: among them NaNs of all kinds, infinities, subnormals and -0.0.
fn noise(shape: &[usize]) -> Tensor {
    let mut state = 0x9e37_79b9_u32;
    let mut bits = |i: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match i % 8 {
            0 | 3 => 0x7f80_0000 | state >> 9,
            5 => 1 << 31,
            _ => state,
        }
    };
    let bits: Vec<u32> = (0..shape.iter().product()).map(&mut bits).collect();
    Tensor::new(DType::F32, shape.to_vec(), AlignedVec::from_slice(&bits).into()).unwrap()
}

#[test]
fn every_bit_pattern_is_kept_on_every_instruction_set() {
    let cases = ["tiny_bert", "tied", "two_layouts", "conv1x1", "conv_grouped"];
    for (name, isa) in cases.into_iter().flat_map(|name| Isa::available().into_iter().map(move |isa| (name, isa))) {
        let engine = Case::open(name).compile_with(&StateDict::new(), isa);
        let own = own_weights(&engine);
        let float = own.iter().filter(|(_, t)| t.dtype() == DType::F32);
        let weights: StateDict = float.map(|(name, t)| (name.to_owned(), noise(t.shape()))).collect();
        let model = regraft::model(engine, backend(isa)).unwrap();
        refit(&model, &weights, &PARTIAL);
        assert!(in_slots(&model) > 0, "{name}");
        let generation = model.generation().unwrap();
        for (info, content) in model.refit_map().sources.iter().zip(&generation.sources) {
            let Some(given) = info.names().find_map(|n| weights.get(n)) else { continue };
            assert!(content.tensor().unwrap().unwrap().bit_equal(given), "{name} {} on {}", info.name, isa.name());
        }
    }
}

fn lora(model: &Model, name: &str, seed: usize) -> Arc<Adapter> {
    let numbers =
        |len: usize| (0..len).map(|i| ((i + seed * 31) * 7919 % 10007) as f32 * 2e-5 - 0.1).collect::<Vec<f32>>();
    let matrix = |rows: usize, cols: usize| Tensor::from_slice(&[rows, cols], &numbers(rows * cols));
    let wide = |s: &regraft::SourceInfo| s.shape.len() >= 2 && s.dtype.is_float() && !s.shape.contains(&0);
    let sources = model.refit_map().sources.iter().enumerate().filter(|(_, s)| wide(s));
    let layer = |(source, info): (usize, &regraft::SourceInfo)| {
        let (rows, cols) = (info.shape[0], info.shape[1..].iter().product());
        let factors = Factors { up: matrix(rows, 3), down: matrix(3, cols) };
        AdapterLayer { source, update: Update::LowRank { factors, scale: 0.5, magnitude: None } }
    };
    // Every other one: their siblings are not touched.
    Arc::new(Adapter::new(name, sources.step_by(2).map(layer).collect()))
}

#[test]
fn adapters_are_applied_to_what_slots_keep() {
    for case in Case::all() {
        let a = own_weights(&case.compile());
        let (model, want) = (bound(&case, &a), owned(&case, &a));
        let inputs = case.tensors("input");
        let (first, second) = (lora(&model, "first", 1), lora(&model, "second", 2));
        for set in [vec![(first.clone(), 0.7)], vec![(first.clone(), -1.0), (second, 0.3)], vec![]] {
            model.adapters().set(&set).unwrap();
            want.adapters().set(&set).unwrap();
            assert_alike(&case.name, &model, &want, &inputs);
        }
        let held = |model: &Model, source: usize| model.generation().unwrap().sources[source].held().is_some();
        assert!(first.layers.iter().all(|layer| held(&model, layer.source)), "{}: read back once", case.name);
        // Weights and adapters in one step.
        let (lent, owners) = lend(&case.weights_b());
        let adapters = [(first, 0.5)];
        Refit::new().weights(&lent, &FULL).adapters(&adapters).unwrap().run(&model).unwrap();
        drop(lent);
        scribble(owners);
        Refit::new().weights(&case.weights_b(), &FULL).adapters(&adapters).unwrap().run(&want).unwrap();
        assert_alike(&case.name, &model, &want, &inputs);
        model.adapters().clear().unwrap();
        assert_same_slots(&case.name, &model, &owned(&case, &case.weights_b()));
    }
}

#[test]
fn models_are_saved_and_loaded() {
    for name in ["tiny_bert", "conv_bn", "tied", "two_layouts", "dtypes", "mutated_buffer", "constants"] {
        let case = Case::open(name);
        let (model, want) = (bound(&case, &case.weights_b()), owned(&case, &case.weights_b()));
        let inputs = case.tensors("input");
        for keep in KeepSources::ALL {
            let folder = tempfile::tempdir().unwrap();
            let engine = model.to_engine(Mode::Refittable, keep).unwrap();
            let loaded = case.model(through_a_file(&engine, folder.path()));
            assert_same_slots(name, &loaded, &want);
            let part = one("nothing", Tensor::from_slice(&[1], &[0f32]));
            assert!(loaded.refit(&part, &PARTIAL).is_err());
            refit(&loaded, &own_weights(&case.compile()), &FULL);
            assert_same_slots(name, &loaded, &case.model(case.compile()));
        }
        let frozen = |model: &Model| model.to_engine(Mode::Frozen, KeepSources::default()).unwrap();
        assert_eq!(frozen(&model).digests, frozen(&want).digests, "{name}");
        assert_same(name, &case.model(frozen(&model)).run(&inputs).unwrap(), &want.run(&inputs).unwrap());
        // Known by their digests from now on.
        model.release_sources().unwrap();
        assert_eq!(in_slots(&model), 0);
        assert!(refit(&model, &case.weights_b(), &FULL).applied.is_empty(), "{name}: they are the same");
    }
}

#[test]
fn forks_and_generations_before_keep_their_sources() {
    let case = Case::open("tiny_bert");
    let (a, b) = (own_weights(&case.compile()), case.weights_b());
    let (of_a, of_b) = (owned(&case, &a), owned(&case, &b));
    let inputs = case.tensors("input");
    let model = bound(&case, &a);
    model.set_keep_previous(true);
    let fork = model.fork();
    refit(&model, &b, &FULL);
    assert_alike("the fork", &fork, &of_a, &inputs);
    assert_alike("the model", &model, &of_b, &inputs);
    model.rollback().unwrap();
    assert_alike("rolled back", &model, &of_a, &inputs);
    let (lent, owners) = lend(&b);
    let staged = fork.stage(&lent, &FULL).unwrap();
    drop(lent);
    scribble(owners);
    staged.verify(std::slice::from_ref(&inputs)).unwrap();
    staged.publish().unwrap();
    assert_alike("staged", &fork, &of_b, &inputs);
    drop(model);
    assert_alike("alone", &fork, &of_b, &inputs);
}

/// Refits in place from lent memory.
fn in_place(model: &Model, weights: &StateDict, options: &RefitOptions) -> bool {
    let (lent, owners) = lend(weights);
    let done = model.refit_exclusive(&lent, options).is_ok();
    drop(lent);
    scribble(owners);
    done
}

#[test]
fn refits_in_place_keep_what_they_need() {
    for name in ["tiny_bert", "conv_bn", "two_layouts", "mha"] {
        let case = Case::open(name);
        let (a, b) = (own_weights(&case.compile()), case.weights_b());
        let spoiled = Arc::new(Spoiled::new(backend(Isa::detect())));
        let model = regraft::model(case.compile().stripped(), spoiled.clone()).unwrap();
        refit(&model, &a, &FULL);
        let (of_a, inputs) = (owned(&case, &a), case.tensors("input"));
        let in_use = model.slot_memory().in_use;
        model.set_memory_limit(Some(in_use + in_use / 2));
        spoiled.fail_one_pack_after(0);
        assert!(!in_place(&model, &b, &FULL), "{name}: a pack fails");
        assert_alike(name, &model, &of_a, &inputs);
        assert!(in_place(&model, &b, &FULL), "{name}");
        assert_alike(name, &model, &owned(&case, &b), &inputs);
        assert_eq!(model.slot_memory().in_use, in_use);
        // Siblings come out of the slots that are given up.
        let want = owned(&case, &b);
        for (key, tensor) in a.iter() {
            assert!(in_place(&model, &one(key, tensor.clone()), &PARTIAL), "{name} with {key}");
            want.refit(&one(key, tensor.clone()), &PARTIAL).unwrap();
            assert_same_slots(name, &model, &want);
        }
        assert_alike(name, &model, &of_a, &inputs);
    }
}

#[test]
fn inputs_may_be_borrowed() {
    for case in Case::all() {
        let model = case.model(case.compile());
        let inputs = case.tensors("input");
        let named = inputs.iter().enumerate().map(|(i, t)| (format!("{i:03}"), t.clone())).collect();
        let (lent, owners) = lend(&named);
        let borrowed: Vec<Tensor> = lent.iter().map(|(_, t)| t.clone()).collect();
        drop(lent);
        let mut session = model.session();
        let outputs = session.run(&borrowed).unwrap();
        drop(borrowed);
        scribble(owners);
        let mut want = model.session();
        assert_same(&case.name, &outputs, &want.run(&inputs).unwrap());
        assert_same(&case.name, &session.run(&inputs).unwrap(), &want.run(&inputs).unwrap());
    }
}
