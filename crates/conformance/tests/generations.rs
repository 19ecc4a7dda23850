//! Generations: variants, rollback, memory, verification, injected errors. Test names carry the id of the scenario in
//! `docs/scenarios.md`.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicIsize, Ordering},
    },
};

use regraft::{
    Changed, Model, Pace, Problem, Refit, RefitObserver, RuntimeErrorKind, StateDict, Tensor, publish_together,
};
use regraft_backend_cpu::Isa;
use regraft_conformance::{
    Case, FULL, PARTIAL, Spoiled, assert_close, assert_same, assert_same_slots, backend, is_on_mock, one, own_weights,
    problems,
};

#[test]
fn v_1_variants_share_what_does_not_differ() {
    let case = Case::open("tiny_bert");
    let model = case.model(case.compile());
    let inputs = case.tensors("input");
    let before = model.run(&inputs).unwrap();
    let b = case.weights_b();
    let name = model.refit_map().sources.iter().find(|s| s.name.ends_with("pooler.dense.weight")).expect("a pooler");
    let name = name.name.clone();

    let head = model.fork();
    head.refit(&one(&name, b.get(&name).unwrap().clone()), &PARTIAL).unwrap();
    let all = model.fork();
    all.refit(&b, &FULL).unwrap();
    assert!(model.add_variant("head", head).unwrap().is_none());
    model.add_variant("all", all).unwrap();
    assert_eq!(model.variants().names(), ["all", "head"]);

    assert_same("the model itself", &model.run(&inputs).unwrap(), &before);
    let expected_b = case.tensors("expected_b");
    assert_close("all", &model.variants().get("all").unwrap().run(&inputs).unwrap(), &expected_b);
    let head = model.variants().get("head").unwrap().run(&inputs).unwrap();
    assert_same("the part before the head", &head[..1], &before[..1]);
    assert!(!head[1].bit_equal(&before[1]), "the head differs");

    let memory = model.variant_memory();
    let by_name = |name: Option<&str>| memory.iter().find(|m| m.name.as_deref() == name).unwrap().clone();
    let slot = model.refit_map().sources.iter().position(|s| s.name == name).unwrap();
    let private: usize = model.refit_map().slots_by_source()[slot].iter().map(|&s| model.plan().slots[s].bytes).sum();
    assert_eq!(by_name(Some("head")).bytes - by_name(Some("head")).shared, private);
    assert!(by_name(Some("all")).shared * 20 < by_name(Some("all")).bytes, "only constants are shared with B");
    let distinct: usize = memory.iter().map(|m| m.bytes - m.shared).sum::<usize>() + by_name(None).shared;
    let rounded = model.slot_memory().in_use;
    assert!(rounded >= distinct && rounded < distinct + 64 * 3 * model.plan().slots.len(), "{rounded} {distinct}");

    let stranger = case.model(case.compile());
    assert!(model.add_variant("stranger", stranger).is_err(), "it is of another engine");
}

#[test]
fn v_2_a_variant_is_removed_while_runs_use_it() {
    let case = Case::open("tiny_bert");
    let model = case.model(case.compile());
    let inputs = case.tensors("input");
    let variant = model.fork();
    variant.refit(&case.weights_b(), &FULL).unwrap();
    let expected = variant.run(&inputs).unwrap();
    model.add_variant("b", variant).unwrap();
    let in_use = model.slot_memory().in_use;
    std::thread::scope(|scope| {
        let user = model.variants().get("b").unwrap();
        let runner =
            scope.spawn(move || (0..20).for_each(|_| assert_same("b", &user.run(&inputs).unwrap(), &expected)));
        assert!(model.variants().remove("b").is_some());
        assert!(model.variants().get("b").is_none());
        runner.join().expect("runs that have it go on");
    });
    assert!(model.slot_memory().in_use < in_use, "its memory came back");
}

#[test]
fn v_3_many_models_are_staged_published_together_and_rolled_back() {
    let case = Case::open("tiny_resnet");
    let models: Vec<Model> = (0..3).map(|_| case.model(case.compile())).collect();
    let (inputs, b) = (case.tensors("input"), case.weights_b());
    let before = models[0].run(&inputs).unwrap();
    models.iter().for_each(|m| m.set_keep_previous(true));
    let staged: Vec<_> = models.iter().map(|m| m.stage(&b, &FULL).unwrap()).collect();
    models.iter().for_each(|m| assert_same("staging changes nothing", &m.run(&inputs).unwrap(), &before));
    publish_together(staged).unwrap();
    models.iter().for_each(|m| assert_close("B", &m.run(&inputs).unwrap(), &case.tensors("expected_b")));
    for model in &models {
        model.rollback().unwrap();
        assert_same("rolled back", &model.run(&inputs).unwrap(), &before);
        model.rollback().unwrap();
        assert_close("forth again", &model.run(&inputs).unwrap(), &case.tensors("expected_b"));
        model.rollback().unwrap();
    }
    // One of them moves on: none is published.
    let staged: Vec<_> = models.iter().map(|m| m.stage(&b, &FULL).unwrap()).collect();
    models[2].refit(&b, &FULL).unwrap();
    let error = publish_together(staged).expect_err("one was refitted since");
    assert!(matches!(error.kind(), RuntimeErrorKind::Stale));
    assert_same("untouched", &models[0].run(&inputs).unwrap(), &before);
    let forgetful = case.model(case.compile());
    forgetful.refit(&b, &FULL).unwrap();
    let error = forgetful.rollback().expect_err("nothing was kept");
    assert!(matches!(error.kind(), RuntimeErrorKind::NoPrevious), "{error}");
}

#[test]
fn r_16_verification_finds_a_wrong_slot_and_nothing_is_published() {
    for name in ["tiny_bert", "tiny_resnet", "embedding", "tiny_gpt2", "constants", "mutated_buffer"] {
        let case = Case::open(name);
        let model = case.model(case.compile());
        let (inputs, b) = (case.tensors("input"), case.weights_b());
        let staged = model.stage(&b, &FULL).unwrap();
        let found = staged.verify(std::slice::from_ref(&inputs)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((found.slots, found.outputs > 0), (staged.report().recomputed_slots.len(), true), "{name}");
        staged.publish().unwrap();
    }
    let case = Case::open("tiny_bert");
    let spoiled = Arc::new(Spoiled::new(backend(Isa::detect())));
    let model = regraft::model(case.compile(), spoiled.clone()).unwrap();
    let (inputs, b) = (case.tensors("input"), case.weights_b());
    let before = model.run(&inputs).unwrap();
    spoiled.spoil_pack_after(3);
    let staged = model.stage(&b, &FULL).unwrap();
    let error = staged.verify(std::slice::from_ref(&inputs)).expect_err("one slot is wrong");
    drop(staged);
    let text = error.to_string();
    assert!(text.contains("slot ") && text.contains("nothing was published"), "{text}");
    assert_same("A still serves", &model.run(&inputs).unwrap(), &before);
}

#[test]
fn r_17_updates_far_below_any_tolerance_arrive() {
    let case = Case::open("tiny_bert");
    let engine = case.compile();
    let own = own_weights(&engine);
    let model = case.model(engine);
    let mut state = 7u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut step = |tensor: &Tensor| match tensor.as_slice::<f32>() {
        Some(values) => {
            let moved: Vec<f32> = values.iter().map(|w| w - 1e-8 * random()).collect();
            Tensor::from_slice(tensor.shape(), &moved)
        }
        None => tensor.clone(),
    };
    let stepped: StateDict = own.iter().map(|(name, tensor)| (name.to_owned(), step(tensor))).collect();
    let differing = own.iter().filter(|(name, tensor)| !stepped.get(name).unwrap().bit_equal(tensor)).count();
    assert!(differing > 3, "the step changes bits of {differing} tensors");
    let report = model.refit(&stepped, &FULL).unwrap();
    assert_eq!(report.applied.len(), differing);
    assert_same_slots("one step", &model, &case.model(case.compile_with(&stepped, Isa::detect())));
}

/// What a refit leaves behind when it fails: nothing.
fn assert_untouched(what: &str, model: &Model, inputs: &[Tensor], before: &[Tensor], in_use: usize) {
    assert_same(what, &model.run(inputs).expect("it runs as before"), before);
    assert_eq!(model.generation().map(|g| g.id), Some(0), "{what}");
    assert_eq!(model.slot_memory().in_use, in_use, "{what}: no buffer leaks");
}

#[test]
fn r_19_an_error_at_any_phase_changes_nothing() {
    let case = Case::open("tiny_bert");
    let spoiled = Arc::new(Spoiled::new(backend(Isa::detect())));
    let model = regraft::model(case.compile(), spoiled.clone()).unwrap();
    let (inputs, b) = (case.tensors("input"), case.weights_b());
    let before = model.run(&inputs).unwrap();
    let in_use = model.slot_memory().in_use;
    let check = |what: &str| assert_untouched(what, &model, &inputs, &before, in_use);

    model.refit(&one("nobody", Tensor::from_slice(&[1], &[0f32])), &PARTIAL).expect_err("match");
    check("match");
    let name = model.refit_map().sources[0].name.clone();
    model.refit(&one(&name, Tensor::from_slice(&[1], &[0f32])), &PARTIAL).expect_err("check");
    check("check");
    // Staging fails at each of its packs in turn, by an error and by a panic.
    for at in 0.. {
        spoiled.fail_pack_after(at);
        let failed = model.stage(&b, &FULL);
        spoiled.heal();
        if failed.is_ok() {
            assert!(at > 4, "several slots are packed");
            break;
        }
        check(&format!("an error of pack {at}"));
    }
    for at in 0..3 {
        spoiled.panic_in_pack_after(at);
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.refit(&b, &FULL)));
        std::panic::set_hook(hook);
        spoiled.heal();
        assert!(outcome.is_err(), "the panic of pack {at} goes through");
        check(&format!("a panic of pack {at}"));
    }
    // Publishing: the generation was overtaken.
    let staged = model.stage(&b, &FULL).unwrap();
    drop(staged);
    check("dropped before it was published");
    model.refit(&b, &FULL).unwrap();
    assert_close("and then it works", &model.run(&inputs).unwrap(), &case.tensors("expected_b"));
}

#[test]
fn r_20_two_models_share_one_engine_and_differ_in_their_generations() {
    let case = Case::open("tiny_resnet");
    let model = case.model(case.compile());
    let inputs = case.tensors("input");
    let other = model.fork();
    other.refit(&case.weights_b(), &FULL).unwrap();
    assert!(std::ptr::eq(model.plan(), other.plan()), "one plan");
    assert!(std::ptr::eq(model.refit_map(), other.refit_map()), "one refit map");
    assert_close("A", &model.run(&inputs).unwrap(), &case.tensors("expected"));
    assert_close("B", &other.run(&inputs).unwrap(), &case.tensors("expected_b"));
}

#[test]
fn a_memory_limit_refuses_a_stage_that_does_not_fit() {
    let case = Case::open("tiny_bert");
    let model = case.model(case.compile());
    let (inputs, b) = (case.tensors("input"), case.weights_b());
    let before = model.run(&inputs).unwrap();
    let in_use = model.slot_memory().in_use;
    model.set_memory_limit(Some(in_use + in_use / 2));
    let error = model.refit(&b, &FULL).expect_err("two generations do not fit");
    assert!(matches!(error.kind(), RuntimeErrorKind::Memory(_)), "{error}");
    assert!(error.to_string().contains("limit"), "{error}");
    assert_untouched("over the limit", &model, &inputs, &before, in_use);
    // One layer fits.
    let name = model.refit_map().sources.iter().find(|s| s.name.ends_with("pooler.dense.weight")).unwrap().name.clone();
    model.refit(&one(&name, b.get(&name).unwrap().clone()), &PARTIAL).unwrap();
    // In place, all of it fits, again and again.
    for weights in [&b, &own_weights(&case.compile()), &b] {
        model.refit_exclusive(weights, &FULL).unwrap();
        let memory = model.slot_memory();
        assert!(memory.in_use + memory.free <= in_use + in_use / 2, "{memory:?}");
    }
    assert_close("B in place", &model.run(&inputs).unwrap(), &case.tensors("expected_b"));
    assert_same_slots("B in place", &model, &case.model(case.compile_with(&b, Isa::detect())));
}

#[test]
fn a_refit_in_place_that_fails_goes_back() {
    let case = Case::open("tiny_bert");
    let spoiled = Arc::new(Spoiled::new(backend(Isa::detect())));
    let model = regraft::model(case.compile(), spoiled.clone()).unwrap();
    let (inputs, b) = (case.tensors("input"), case.weights_b());
    let before = model.run(&inputs).unwrap();
    spoiled.fail_one_pack_after(2);
    model.refit_exclusive(&b, &FULL).expect_err("a pack fails");
    assert_same("A was made again", &model.run(&inputs).unwrap(), &before);
    model.refit_exclusive(&one("nobody", Tensor::from_slice(&[1], &[0f32])), &PARTIAL).expect_err("no such name");
    assert_same("nothing was given up", &model.run(&inputs).unwrap(), &before);
}

#[test]
fn a_refit_in_place_that_the_limit_refuses_changes_nothing() {
    let case = Case::open("tiny_bert");
    let model = case.model(case.compile());
    let (inputs, b) = (case.tensors("input"), case.weights_b());
    let before = model.run(&inputs).unwrap();
    let in_use = model.slot_memory().in_use;
    let refused = |what: &str| {
        let error = model.refit_exclusive(&b, &FULL).expect_err(what);
        assert!(matches!(error.kind(), RuntimeErrorKind::Memory(_)), "{what}: {error}");
        assert_untouched(what, &model, &inputs, &before, in_use);
    };
    model.set_memory_limit(Some(in_use / 2));
    refused("a limit below what is in use");
    if is_on_mock() {
        // What follows waits for ten seconds, for no device in particular.
        return;
    }
    // Someone else holds the generation, so that its memory does not come free.
    model.set_memory_limit(Some(in_use + in_use / 2));
    let held = model.generation();
    refused("slots that are held");
    drop(held);
    model.refit_exclusive(&b, &FULL).unwrap();
}

#[test]
fn the_caller_may_say_what_changed() {
    let case = Case::open("tiny_bert");
    let engine = case.compile();
    let own = own_weights(&engine);
    let model = case.model(engine);
    let b = case.weights_b();
    let all = FULL.changed(Changed::All);
    let report = model.refit(&own, &all).unwrap();
    let held = |s: &u32| model.refit_map().sources[*s as usize].kind.in_state_dict();
    let of_weights = model.refit_map().recipes.iter().filter(|r| r.sources.iter().any(held)).count();
    assert_eq!(report.recomputed_slots.len(), of_weights, "all are rebuilt, though none differs");

    let name = model.refit_map().sources.iter().find(|s| s.name.ends_with("pooler.dense.weight")).unwrap().name.clone();
    let keys = |name: &str| FULL.changed(Changed::Keys(BTreeSet::from([name.to_owned()])));
    let report = model.refit(&b, &keys(&name)).unwrap();
    assert_eq!(report.applied, std::slice::from_ref(&name));
    let only = one(&name, b.get(&name).unwrap().clone());
    assert_same_slots("one key of B", &model, &case.model(case.compile_with(&only, Isa::detect())));
    assert!(matches!(problems(model.refit(&b, &keys("nobody"))).as_slice(), [Problem::NotGiven { .. }]));
}

#[test]
fn released_sources_are_told_apart_by_their_digests() {
    let case = Case::open("conv_bn");
    let engine = case.compile();
    let own = own_weights(&engine);
    let model = case.model(engine);
    model.release_sources().unwrap();
    let report = model.refit(&own, &FULL).unwrap();
    assert!(report.applied.is_empty(), "the digests are those of the same weights: {:?}", report.applied);
    let b = case.weights_b();
    let missing = problems(model.refit(&one("conv.weight", b.get("conv.weight").unwrap().clone()), &PARTIAL));
    assert!(missing.iter().any(|p| matches!(p, Problem::SiblingMissing { .. })), "{missing:?}");
    assert!(
        model.to_engine(regraft::Mode::Refittable, regraft::KeepSources::default()).is_err(),
        "there is nothing to save"
    );
    model.refit(&b, &FULL).unwrap();
    assert_close("B", &model.run(&case.tensors("input")).unwrap(), &case.tensors("expected_b"));
}

#[derive(Default)]
struct Watcher {
    phases: Mutex<Vec<regraft::Phase>>,
    bytes: AtomicIsize,
}

impl RefitObserver for Watcher {
    fn phase(&self, phase: regraft::Phase) {
        self.phases.lock().expect("nobody panics").push(phase);
    }

    fn staged(&self, done: usize, total: usize) {
        assert!(done <= total);
        self.bytes.fetch_max(done as isize, Ordering::Relaxed);
    }
}

/// The threads that make slots.
#[derive(Default)]
struct Makers(Mutex<BTreeSet<String>>);

impl RefitObserver for Makers {
    fn staged(&self, _: usize, _: usize) {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        self.0.lock().expect("nobody panics").insert(name);
    }
}

#[test]
fn a_stage_in_the_background_makes_the_same_bits_on_the_threads_of_its_caller() {
    let case = Case::open("tiny_bert");
    let (fast, slow) = (case.model(case.compile()), case.model(case.compile()));
    fast.refit(&case.weights_b(), &FULL).unwrap();
    let (makers, weights, options) = (Makers::default(), case.weights_b(), FULL);
    let refit = Refit::new().weights(&weights, &options).pace(Pace::Background).observe(&makers);
    let thread = std::thread::Builder::new().name("caller".into());
    std::thread::scope(|scope| thread.spawn_scoped(scope, || refit.run(&slow).unwrap()).unwrap().join().unwrap());
    let inputs = case.tensors("input");
    assert_same("background", &slow.run(&inputs).unwrap(), &fast.run(&inputs).unwrap());
    assert_eq!(*makers.0.lock().unwrap(), BTreeSet::from(["caller".to_owned()]));
}

#[test]
fn an_observer_sees_every_phase_and_all_bytes() {
    use regraft::Phase::{Check, Compare, Match, Stage};
    let case = Case::open("tiny_bert");
    let model = case.model(case.compile());
    let watcher = Watcher::default();
    let staged = Refit::new().weights(&case.weights_b(), &FULL).observe(&watcher).stage(&model).unwrap();
    assert_eq!(*watcher.phases.lock().unwrap(), [Match, Check, Check, Compare, Stage]);
    assert_eq!(watcher.bytes.load(Ordering::Relaxed) as usize, staged.report().bytes);
}

#[test]
fn outputs_that_are_held_keep_their_bits_and_others_give_their_memory_again() {
    let case = Case::open("tiny_resnet");
    let model = case.model(case.compile());
    let inputs = case.tensors("input");
    let negated: Vec<Tensor> = inputs
        .iter()
        .map(|t| Tensor::from_f64(t.dtype(), t.shape(), &t.to_f64_vec().iter().map(|x| -x).collect::<Vec<_>>()))
        .collect();
    let mut session = model.session();
    let first = session.run(&inputs).unwrap();
    let (bits, address) = (first[0].bytes().to_vec(), first[0].bytes().as_ptr());
    let second = session.run(&negated).unwrap();
    assert!(first[0].bytes() == bits && !second[0].bit_equal(&first[0]), "what is held is not written again");
    drop(first);
    let third = session.run(&inputs).unwrap();
    assert!(third[0].bytes() == bits && third[0].bytes().as_ptr() == address, "what is free is given again");
    assert!(!second[0].bit_equal(&third[0]));
}
