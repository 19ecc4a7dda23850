//! Models of two programs over the same weights share the slots that both have.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;

use regraft::{Engine, Model, RefitOptions, StateDict};
use regraft_backend_cpu::Isa;
use regraft_conformance::{Case, FULL, assert_same, assert_same_slots, backend, own_weights};

/// Two models of one program that was compiled twice, on one device: as different as two programs are to a model. The other
/// one has no weights yet.
fn pair(case: &Case) -> (Model, Model) {
    let device = backend(Isa::detect());
    let model = |engine: Engine| regraft::model(engine, device.clone()).unwrap();
    (model(case.compile()), model(case.compile().stripped()))
}

fn shared(one: &Model, other: &Model) -> usize {
    let (one, other) = (one.generation().unwrap(), other.generation().unwrap());
    one.slots.iter().zip(&other.slots).filter(|(a, b)| Arc::ptr_eq(a, b)).count()
}

#[test]
fn one_slot_serves_both_and_each_refits_alone() {
    let case = Case::open("tiny_bert");
    let (inputs, b) = (case.tensors("input"), case.weights_b());
    let a = own_weights(&case.compile());
    let (one, other) = pair(&case);
    one.share_slots_with(&other).unwrap();
    let alone = case.model(case.compile());
    other.refit(&a, &FULL).unwrap();
    let slots = one.plan().slots.len();
    assert_eq!(shared(&one, &other), slots);
    assert_eq!(other.slot_memory().in_use, 0, "all of it is the first one's");
    assert_same("A", &other.run(&inputs).unwrap(), &alone.run(&inputs).unwrap());

    // One goes on alone, and the other comes after it.
    let report = one.refit(&b, &FULL).unwrap();
    assert_eq!(report.recomputed_slots.len() + report.shared_slots.len(), slots);
    assert_same("still A", &other.run(&inputs).unwrap(), &alone.run(&inputs).unwrap());
    alone.refit(&b, &FULL).unwrap();
    let report = other.refit(&b, &FULL).unwrap();
    assert!(report.recomputed_slots.is_empty() && !report.applied.is_empty());
    assert_eq!(shared(&one, &other), slots);
    assert_same_slots("B", &other, &alone);
    assert_same("B", &other.run(&inputs).unwrap(), &alone.run(&inputs).unwrap());

    // In place: what the first one holds stays as it is.
    other.refit_exclusive(&a, &FULL).unwrap();
    assert_same("first one", &one.run(&inputs).unwrap(), &alone.run(&inputs).unwrap());
    one.refit(&a, &FULL).unwrap();
    assert_eq!(shared(&one, &other), slots);
    drop(one);
    alone.refit(&a, &FULL).unwrap();
    assert_same("A again", &other.run(&inputs).unwrap(), &alone.run(&inputs).unwrap());
    other.refit(&b, &FULL).unwrap();
    alone.refit(&b, &FULL).unwrap();
    assert_same_slots("B without the first one", &other, &alone);
}

#[test]
fn one_changed_weight_is_not_shared() {
    let case = Case::open("tiny_bert");
    let (b, a) = (case.weights_b(), own_weights(&case.compile()));
    let (one, other) = pair(&case);
    one.share_slots_with(&other).unwrap();
    other.refit(&a, &FULL).unwrap();
    let name = a.iter().map(|(name, _)| name).find(|name| name.ends_with("dense.weight")).unwrap().to_owned();
    let only: StateDict = [(name.clone(), b.get(&name).unwrap().clone())].into_iter().collect();
    let partial = RefitOptions::new().partial(true);
    let report = other.refit(&only, &partial).unwrap();
    assert_eq!((report.recomputed_slots.len(), shared(&one, &other)), (1, one.plan().slots.len() - 1));
    let alone = case.model(case.compile());
    alone.refit(&only, &partial).unwrap();
    assert_same_slots("one weight of B", &other, &alone);
    one.refit(&only, &partial).unwrap();
    assert_eq!(shared(&one, &other), one.plan().slots.len());
}

#[test]
fn models_that_have_weights_share_what_is_the_same() {
    let case = Case::open("tiny_bert");
    let (one, other) = pair(&case);
    other.refit(&own_weights(&case.compile()), &FULL).unwrap();
    assert_eq!(shared(&one, &other), 0);
    let before = other.run(&case.tensors("input")).unwrap();
    other.share_slots_with(&one).unwrap();
    assert_eq!(shared(&one, &other), one.plan().slots.len());
    assert_same("the same", &other.run(&case.tensors("input")).unwrap(), &before);
    let alone = case.model(case.compile());
    for weights in [case.weights_b(), own_weights(&case.compile())] {
        other.refit(&weights, &FULL).unwrap();
        alone.refit(&weights, &FULL).unwrap();
        assert_same_slots("refitted", &other, &alone);
    }
}
