//! What holds for every fixture: PyTorch's numbers before and after a refit, and law 1.

use regraft::{Model, RefitOptions, StateDict, Tensor};
use regraft_backend_cpu::Isa;
use regraft_conformance::{Case, assert_close, assert_same, assert_same_slots, backend, frozen, through_a_file};

/// All calls that a fixture records, in one session.
fn calls(model: &Model, case: &Case) -> Vec<Vec<Tensor>> {
    let inputs = case.tensors("input");
    let mut session = model.session();
    let mut outputs = vec![session.run(&inputs).unwrap_or_else(|e| panic!("{}: {e}", case.name))];
    for _ in (2..).take_while(|call| !case.tensors(&format!("expected_call{call}")).is_empty()) {
        outputs.push(session.run(&inputs).expect("the first call went through"));
    }
    outputs
}

fn check_outputs(model: &Model, case: &Case, weights: &str) {
    let what = format!("{}{weights}", case.name);
    for (i, outputs) in calls(model, case).iter().enumerate() {
        let expected = if i == 0 { "expected".to_owned() } else { format!("expected_call{}", i + 1) };
        assert_close(&what, outputs, &case.tensors(&format!("{expected}{weights}")));
    }
    let second = case.tensors("input2");
    if !second.is_empty() {
        let outputs = model.run(&second).unwrap_or_else(|e| panic!("{what}, second shape: {e}"));
        assert_close(&format!("{what}, second shape"), &outputs, &case.tensors(&format!("expected2{weights}")));
    }
}

fn check(case: &Case) {
    let model = case.model(case.compile());
    check_outputs(&model, case, "");
    let first = calls(&model, case);
    let report =
        model.refit(&case.weights_b(), &RefitOptions::default()).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    assert_eq!(report.recomputed_slots.len() + report.shared_slots.len(), model.plan().slots.len());
    check_outputs(&model, case, "_b");

    // Law 1: the same bits as a build with B.
    let built = case.model(case.compile_with(&case.weights_b(), Isa::detect()));
    assert_same_slots(&case.name, &model, &built);
    for (refitted, built) in calls(&model, case).iter().zip(calls(&built, case)) {
        assert_same(&case.name, refitted, &built);
    }

    // And back: the bits of the first day.
    let original = case.model(case.compile());
    let generation = original.generation().expect("it is refittable");
    let weights: StateDict = (original.refit_map().sources.iter().zip(&generation.sources))
        .filter(|(info, _)| info.kind.in_state_dict())
        .map(|(info, tensor)| {
            (info.name.clone(), tensor.converted().expect("it can be read").expect("it holds its sources"))
        })
        .collect();
    model.refit(&weights, &RefitOptions::default()).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    for (again, first) in calls(&model, case).iter().zip(&first) {
        assert_same(&format!("{}, back to A", case.name), again, first);
    }
}

#[test]
fn every_fixture_gives_pytorchs_numbers_before_and_after_a_refit() {
    Case::all().iter().for_each(check);
}

#[test]
fn every_fixture_survives_a_file_in_every_mode() {
    let folder = tempfile::tempdir().unwrap();
    for case in Case::all() {
        let engine = case.compile();
        let model = case.model(engine.clone());
        let first = calls(&model, &case);
        let check = |what: &str, loaded: Model| {
            for (got, want) in calls(&loaded, &case).iter().zip(&first) {
                assert_same(&format!("{} {what}", case.name), got, want);
            }
        };
        check("refittable", case.model(through_a_file(&engine, folder.path())));
        check("frozen", case.model(through_a_file(&frozen(&model), folder.path())));
        let weights: StateDict = (engine.refit_map.sources.iter().zip(&engine.sources))
            .filter(|(info, _)| info.kind.in_state_dict())
            .map(|(info, tensor)| (info.name.clone(), tensor.clone().unwrap()))
            .collect();
        let stripped = case.model(through_a_file(&engine.clone().stripped(), folder.path()));
        stripped.refit(&weights, &RefitOptions::default()).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        check("stripped and bound", stripped);
    }
}

#[test]
fn every_instruction_set_gives_pytorchs_numbers() {
    for isa in Isa::available() {
        for case in Case::all() {
            let engine = case.compile_with(&StateDict::new(), isa);
            let model = regraft::model(engine, backend(isa)).unwrap();
            check_outputs(&model, &case, "");
        }
    }
}
