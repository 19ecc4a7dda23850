//! The suite on the mock device, and what happens there when memory runs out.

#[path = "adapters.rs"]
mod adapters;
#[path = "borrowed.rs"]
mod borrowed;
#[path = "damage.rs"]
mod damage;
#[path = "fixtures.rs"]
mod fixtures;
#[path = "format_before.rs"]
mod format_before;
#[path = "generations.rs"]
mod generations;
#[path = "keep_sources.rs"]
mod keep_sources;
#[path = "mock/lent.rs"]
mod lent;
#[path = "precision.rs"]
mod precision;
#[path = "mock/remote.rs"]
mod remote;
#[path = "scenarios.rs"]
mod scenarios;
#[path = "siblings.rs"]
mod siblings;
#[path = "stress.rs"]
mod stress;
#[path = "tuning.rs"]
mod tuning;

use std::sync::Arc;

use regraft::{Model, RefitOptions, ReserveError, RuntimeErrorKind};
use regraft_backend_cpu::CpuDevice;
use regraft_backend_mock::{Failing, MockDevice};
use regraft_conformance::{Case, FULL, assert_close, assert_same, assert_same_slots};

fn mock() -> Arc<MockDevice> {
    Arc::new(MockDevice::new(Arc::new(CpuDevice::new(Some(2)))))
}

#[test]
fn the_suite_runs_on_the_mock_device() {
    assert!(regraft_conformance::is_on_mock());
}

#[test]
fn r_19_an_allocation_that_fails_halfway_through_a_refit_changes_nothing() {
    let (case, device) = (Case::open("tiny_bert"), mock());
    let model = regraft::model(case.compile(), device.clone()).unwrap();
    let (inputs, b) = (case.tensors("input"), case.weights_b());
    let before = model.run(&inputs).unwrap();
    let (in_use, held) = (model.slot_memory().in_use, device.bytes_in_use());
    for good in 0.. {
        device.fail_allocations(Failing::FromThenOn, good);
        let staged = model.stage(&b, &FULL);
        device.heal();
        let Err(error) = staged else {
            assert!(good > 4, "several slots are allocated");
            break;
        };
        let RuntimeErrorKind::Memory(ReserveError::OutOfMemory { needed, in_use: beside, error: refused }) =
            error.kind()
        else {
            panic!("{error}")
        };
        assert_eq!((*beside, refused.device.as_str()), (in_use, "mock"));
        let text = error.to_string();
        assert!(text.contains(&needed.to_string()) && text.contains(&refused.bytes.to_string()), "{text}");
        assert!(text.contains("refit exclusively"), "{text}");
        assert_eq!((model.generation().unwrap().id, model.slot_memory().in_use), (0, in_use));
        // What was allocated waits for the next refit, and is given back when asked for.
        model.trim();
        assert_same("A serves", &model.run(&inputs).unwrap(), &before);
        assert_eq!((model.slot_memory().free, device.bytes_in_use()), (0, held), "nothing leaks");
    }
    model.refit(&b, &RefitOptions::default()).unwrap();
    assert_close("and then it works", &model.run(&inputs).unwrap(), &case.tensors("expected_b"));
    drop(model);
    assert_eq!(device.bytes_in_use(), 0);
    device.assert_clean();
}

#[test]
fn r_19_a_refit_in_place_on_a_full_device_comes_back_or_goes_through() {
    let (case, device) = (Case::open("tiny_bert"), mock());
    let model = regraft::model(case.compile(), device.clone()).unwrap();
    let (inputs, b) = (case.tensors("input"), case.weights_b());
    let before = model.run(&inputs).unwrap();
    // No room for a second set of slots.
    device.set_byte_limit(Some(device.bytes_in_use() + 1000));
    model.refit(&b, &FULL).expect_err("two generations do not fit");
    assert_same("A serves", &model.run(&inputs).unwrap(), &before);
    model.refit_exclusive(&b, &FULL).unwrap();
    assert_close("B", &model.run(&inputs).unwrap(), &case.tensors("expected_b"));
    assert_same_slots("B", &model, &built_b(&case));
    drop(model);
    device.assert_clean();
}

fn built_b(case: &Case) -> Model {
    case.model(case.compile_with(&case.weights_b(), regraft_backend_cpu::Isa::detect()))
}

#[test]
fn a_run_whose_memory_is_refused_is_an_error_and_the_session_goes_on() {
    for name in ["tiny_bert", "mutated_buffer"] {
        let (case, device) = (Case::open(name), mock());
        let model = regraft::model(case.compile(), device.clone()).unwrap();
        let inputs = case.tensors("input");
        let want = model.session().run(&inputs).unwrap();
        model.trim();
        let mut session = model.session();
        let mut refused = 0;
        for good in 0.. {
            device.fail_allocations(Failing::Once, good);
            let outputs = session.run(&inputs);
            device.heal();
            match outputs {
                Ok(outputs) => {
                    assert_same(name, &outputs, &want);
                    break;
                }
                Err(error) => {
                    assert!(matches!(error.kind(), RuntimeErrorKind::OutOfMemory(_)), "{error}");
                    assert!(error.to_string().contains("smaller batches"), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 1, "{name}");
        drop((session, model));
        assert_eq!(device.bytes_in_use(), 0, "{name}");
        device.assert_clean();
    }
}

#[test]
fn a_run_waits_for_its_work_and_holds_its_generation_till_then() {
    let (case, device) = (Case::open("tiny_resnet"), mock());
    let model = regraft::model(case.compile(), device.clone()).unwrap();
    let (inputs, b) = (case.tensors("input"), case.weights_b());
    let before = model.run(&inputs).unwrap();
    let staged = model.stage(&b, &FULL).unwrap();
    device.pause();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| model.run(&inputs).unwrap());
        // The run is on its queue by then, or pins the new generation; both are right, and the device tells what is not.
        std::thread::sleep(std::time::Duration::from_millis(20));
        staged.publish().unwrap();
        model.trim();
        assert!(!run.is_finished(), "its queue is held");
        device.resume();
        let outputs = run.join().unwrap();
        assert!(outputs[0].bit_equal(&before[0]) || outputs[0].bit_equal(&model.run(&inputs).unwrap()[0]));
    });
    model.refit(&case.weights_b(), &FULL).unwrap();
    drop(model);
    device.assert_clean();
}
