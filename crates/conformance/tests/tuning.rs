//! What holds whatever candidates are chosen: builds with the same records are the same, and law 1.

use std::sync::Arc;

use regraft::{
    CacheUse, Compiled, Compiler, Engine, Model, Records, StateDict, Tune, TuneMode,
    cache::{DiskCache, EngineCache},
    ir::text,
};
use regraft_backend_cpu::Isa;
use regraft_compile::{
    CompileError,
    pipeline::{Options, Output},
    tune::{CandidateName, TuneError, Tuning},
};
use regraft_conformance::{Case, FULL, assert_close, assert_same, assert_same_slots, backend, through_a_file};

fn pinned<'a>(records: &'a Records) -> Tuning<'a> {
    Tuning { pinned: Some(records), ..Tuning::default() }
}

/// All that a build decides, as text.
fn decided(engine: &Engine) -> String {
    let recipes: Vec<String> = engine.refit_map.recipes.iter().map(ToString::to_string).collect();
    let plan = &engine.plan;
    format!("{}\n{:?}\n{:?}\n{}", text::print(&plan.graph), plan.kernels, plan.slots, recipes.join("\n"))
}

/// The records with another choice for a problem.
fn choosing(records: &Records, problem: &str, choice: &CandidateName) -> Records {
    let mut changed = records.clone();
    let record = records.get(problem).expect("it is one of them").clone();
    changed.insert(problem, regraft_compile::tune::Record { choice: choice.clone(), ..record });
    changed
}

/// What may be chosen for a problem: an error for what may not be lists it.
fn offered(case: &Case, isa: Isa, records: &Records, problem: &str) -> Vec<CandidateName> {
    let wrong = choosing(records, problem, &CandidateName("nothing()".into()));
    let imported = regraft_import::import_pt2(case.program()).expect("a fixture");
    let options = Options { tuning: pinned(&wrong), ..Options::default() };
    let refused = regraft_conformance::build(imported.graph, &imported.weights, isa, options);
    let error = refused.expect_err("nothing of this name is offered");
    match error {
        CompileError::Tune(TuneError::PinnedCandidate { offered, .. }) => offered,
        other => panic!("{other}"),
    }
}

fn build(case: &Case, weights: &StateDict, isa: Isa, records: &Records) -> Output {
    let output = case.compile_tuned(weights, isa, pinned(records));
    assert_eq!(output.tune_report.unpinned_missing, 0);
    assert_eq!(output.records, *records);
    output
}

fn check(case: &Case, isa: Isa, records: &Records) {
    let what = format!("{} with {:?}", case.name, records.iter().map(|(_, r)| &r.choice.0).collect::<Vec<_>>());
    let engine = build(case, &StateDict::new(), isa, records).engine;
    let again = build(case, &StateDict::new(), isa, records).engine;
    assert_eq!(decided(&engine), decided(&again), "{what}");

    let inputs = case.tensors("input");
    let run = |model: &Model| model.run(&inputs).unwrap_or_else(|e| panic!("{what}: {e}"));
    let model = regraft::model(engine, backend(isa)).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_close(&what, &run(&model), &case.tensors("expected"));
    model.refit(&case.weights_b(), &FULL).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_close(&what, &run(&model), &case.tensors("expected_b"));
    let built = build(case, &case.weights_b(), isa, records).engine;
    let built = regraft::model(built, backend(isa)).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_same_slots(&what, &model, &built);
    assert_same(&what, &run(&model), &run(&built));
}

#[test]
fn every_candidate_is_right_and_refits_to_the_bits_of_a_cold_build() {
    let mut kernels = std::collections::BTreeSet::new();
    for name in [
        "linear",
        "conv_bn_relu_residual",
        "conv_wide_bn_relu_residual",
        "conv_grouped",
        "conv1x1",
        "conv1d",
        "conv3d",
        "conv_depthwise_bn_hardswish",
    ] {
        let case = Case::open(name);
        for isa in Isa::available() {
            let records = case.compile_tuned(&StateDict::new(), isa, Tuning::default()).records;
            for (problem, _) in records.iter() {
                for choice in offered(&case, isa, &records, problem) {
                    check(&case, isa, &choosing(&records, problem, &choice));
                    kernels.insert(choice.0);
                }
            }
        }
    }
    for kernel in [
        "conv.lines(1: panels_f32<n16>)",
        "conv.panels(1: panels_f32<n16>)",
        "conv.winograd2(1: panels_f32<n16>)",
        "conv.winograd4(1: panels_f32<n16>)",
        "linear.panels(1: panels_f32<n16>)",
    ] {
        assert!(kernels.contains(kernel), "{kernels:?}");
    }
}

#[test]
fn the_engine_cache_tells_records_apart() {
    let (case, folder) = (Case::open("linear"), tempfile::tempdir().expect("a folder"));
    let cache: Arc<dyn EngineCache> = Arc::new(DiskCache::new(folder.path().join("engines"), 1 << 20));
    let compile = |tune: Tune, cache: Option<&Arc<dyn EngineCache>>| {
        let compiler = Compiler::new().tune(tune);
        let compiler = cache.map_or(compiler.clone(), |cache| compiler.cache(cache.clone()));
        compiler.compile(case.program()).unwrap_or_else(|e| panic!("{e}"))
    };
    let is_hit = |compiled: &Compiled| matches!(compiled.cache, CacheUse::Hit { .. });
    let first = compile(Tune::default(), Some(&cache));
    let records = &first.tuned.as_ref().expect("it was built").records;
    assert!(compile(Tune::default(), Some(&cache)).tuned.is_none(), "nothing was chosen");
    let (problem, _) = records.iter().next().expect("a problem");
    let last = offered(&case, Isa::detect(), records, problem).pop().expect("a candidate");
    let pinned = Tune::from(choosing(records, problem, &last));
    let (built, found) = (compile(pinned.clone(), Some(&cache)), compile(pinned, Some(&cache)));
    assert!(!is_hit(&built) && is_hit(&found));
    assert_eq!(decided(&built.engine), decided(&found.engine));
    assert_ne!(decided(&built.engine), decided(&first.engine));
    let fast = Tune::from(TuneMode::Fast).cache_dir(folder.path().join("tuning"));
    let (measured, found) = (compile(fast.clone(), Some(&cache)), compile(fast.clone(), Some(&cache)));
    assert!(!is_hit(&measured) && is_hit(&found));
    assert_eq!(decided(&measured.engine), decided(&found.engine));
    // Without the engine, what was measured is still known.
    let again = compile(fast, None);
    let report =
        |compiled: &Compiled| compiled.tuned.as_ref().map(|tuned| (tuned.report.measured, tuned.report.reused));
    assert_eq!((report(&measured), report(&again)), (Some((1, 0)), Some((0, 1))));
    assert_eq!(decided(&measured.engine), decided(&again.engine));
}

#[test]
fn tuned_engines_are_the_same_again_through_files() {
    for name in ["tiny_bert", "tiny_resnet"] {
        let (case, folder) = (Case::open(name), tempfile::tempdir().unwrap());
        let tuned =
            case.compile_tuned(&StateDict::new(), Isa::detect(), Tuning { mode: TuneMode::Fast, ..Tuning::default() });
        assert_eq!(tuned.tune_report.measured, tuned.records.len());
        let path = folder.path().join("records.json");
        tuned.records.save(&path).unwrap();
        let records = Records::open(&path).unwrap();
        assert_eq!(records.digest(), tuned.records.digest());
        check(&case, Isa::detect(), &records);
        let again = build(&case, &StateDict::new(), Isa::detect(), &records).engine;
        assert_eq!(decided(&through_a_file(&again, folder.path())), decided(&tuned.engine), "{name}");
    }
}
