//! Engine files of the format before are read. They were written by the version that wrote that format.

#![allow(clippy::unwrap_used, reason = "a test")]

use regraft::{Engine, Mode, SourceInfo, ir::Role};
use regraft_backend_cpu::Isa;
use regraft_conformance::{Case, FULL, assert_same_slots, backend, fixtures, own_weights, through_a_file};

fn before(name: &str) -> Engine {
    Engine::read(fixtures().join("engines").join(name)).unwrap_or_else(|e| panic!("{e}"))
}

/// The engine in today's format.
fn today(engine: &Engine) -> Engine {
    through_a_file(engine, tempfile::tempdir().unwrap().path())
}

#[test]
fn a_refittable_engine() {
    let (case, engine) = (Case::open("conv_bn"), before("conv_bn-v1.rgf"));
    assert_eq!(engine.mode, Mode::Refittable);
    let now = case.compile();
    // That format does not say how a program uses a weight.
    let as_before = |info: &SourceInfo| SourceInfo { role: Role::Other, ..info.clone() };
    assert_eq!(engine.refit_map.sources, now.refit_map.sources.iter().map(as_before).collect::<Vec<_>>());
    let (old, new) = (own_weights(&today(&engine)), own_weights(&now));
    assert_eq!(old.len(), new.len());
    assert!(old.iter().all(|(name, tensor)| new.get(name).is_some_and(|other| other.bit_equal(tensor))));
}

#[test]
fn a_frozen_engine_and_a_refittable_one_serve_the_same_slots() {
    let case = Case::open("conv_bn");
    let (refittable, frozen) = (before("conv_bn-v1.rgf"), before("conv_bn-v1-frozen.rgf"));
    assert_eq!(frozen.mode, Mode::Frozen);
    let backend = backend(Isa::detect());
    if !backend.runs(&refittable.target) {
        // The files are for a processor with AVX-512.
        return;
    }
    let model = regraft::model(refittable, backend.clone()).unwrap();
    assert_same_slots("frozen", &regraft::model(today(&frozen), backend).unwrap(), &model);
    model.refit(&case.weights_b(), &FULL).unwrap();
    let built = case.model(case.compile());
    built.refit(&case.weights_b(), &FULL).unwrap();
    assert_same_slots("refitted", &model, &built);
}

#[test]
fn an_identical_engine_knows_its_weights() {
    let (case, engine) = (Case::open("conv_bn"), today(&before("conv_bn-v1-stripped-identical.rgf")));
    assert_eq!((engine.mode, engine.identical), (Mode::Stripped, true));
    let own = own_weights(&case.compile());
    let options = regraft::MatchOptions::default();
    assert_eq!(engine.check(&own, false, &options).map(|found| found.given), Ok(own.len()));
    assert!(engine.check(&case.weights_b(), false, &options).is_err());
}
