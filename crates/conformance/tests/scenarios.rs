//! Behaviors of one compiled model under refit. Test names carry the id of the scenario in `docs/scenarios.md`.

use regraft::{DType, Engine, KeepSources, Mode, Plan, Problem, RefitMap, RuntimeErrorKind, StateDict, Tensor};
use regraft_backend::KernelId;
use regraft_backend_cpu::Isa;
use regraft_compile::pipeline::Options;
use regraft_conformance::{
    Case, FULL, PARTIAL, assert_close, assert_same, assert_same_slots, backend, build, frozen, model_of, one,
    own_weights, problems, through_a_file,
};

#[test]
fn r_4_each_batch_norm_tensor_changes_alone() {
    let case = Case::open("conv_bn");
    let (a, b) = (own_weights(&case.compile()), case.weights_b());
    let names: Vec<String> = b.iter().map(|(n, _)| n.to_owned()).filter(|n| a.get(n).is_some()).collect();
    for part in ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "conv.weight"] {
        assert!(names.iter().any(|n| n == part), "{part} is not among {names:?}");
    }
    for name in names {
        let model = case.model(case.compile());
        let changed = one(&name, b.get(&name).expect("listed").clone());
        model.refit(&changed, &PARTIAL).unwrap_or_else(|e| panic!("{name}: {e}"));
        let built = case.model(case.compile_with(&changed, Isa::detect()));
        assert_same_slots(&name, &model, &built);
        let inputs = case.tensors("input");
        assert_same(&name, &model.run(&inputs).unwrap(), &built.run(&inputs).unwrap());
    }
}

#[test]
fn r_7_tied_tensors_take_either_name_and_refuse_two_values() {
    let case = Case::open("tied");
    let model = case.model(case.compile());
    let tied = model.refit_map().sources.iter().find(|s| !s.aliases.is_empty()).expect("a tied source").clone();
    let b = case.weights_b();
    let inputs = case.tensors("input");
    let value = b.get(&tied.name).or_else(|| b.get(&tied.aliases[0])).expect("B has it").clone();
    let mut results = Vec::new();
    for name in [&tied.name, &tied.aliases[0]] {
        let model = model.fork();
        model.refit(&one(name, value.clone()), &PARTIAL).unwrap();
        results.push(model.run(&inputs).unwrap());
    }
    assert_same("either name", &results[0], &results[1]);
    let mut two = one(&tied.name, value.clone());
    two.insert(tied.aliases[0].clone(), Tensor::zeros(value.dtype(), value.shape()).unwrap());
    assert!(matches!(problems(model.refit(&two, &PARTIAL)).as_slice(), [Problem::TiedDiffer { .. }]));
}

#[test]
fn r_7_one_tensor_in_two_layouts_and_slices_of_one_tensor() {
    for name in ["two_layouts", "slices", "tied"] {
        let case = Case::open(name);
        let model = case.model(case.compile());
        let report = model.refit(&case.weights_b(), &FULL).unwrap();
        let shared_source = model.refit_map().slots_by_source().iter().any(|slots| slots.len() > 1);
        assert!(shared_source, "{name}: a source feeds several slots");
        assert!(report.recomputed_slots.len() > 1, "{name}: all of them are rebuilt");
        assert_close(name, &model.run(&case.tensors("input")).unwrap(), &case.tensors("expected_b"));
    }
}

#[test]
fn r_10_a_partial_update_changes_only_its_keys() {
    let case = Case::open("tiny_bert");
    let model = case.model(case.compile());
    let (b, map) = (case.weights_b(), model.refit_map().clone());
    let name = "encoder.layer.1.output.dense.weight";
    let name =
        map.sources.iter().map(|s| s.name.as_str()).find(|n| n.ends_with(name)).expect("it has the layer").to_owned();
    let change = one(&name, b.get(&name).expect("B has all keys").clone());
    let missing = problems(model.refit(&change, &FULL));
    assert!(
        missing.iter().all(|p| matches!(p, Problem::Missing { .. })) && missing.len() > 10,
        "a full refit asks for all"
    );
    let before = model.generation().unwrap();
    let report = model.refit(&change, &PARTIAL).unwrap();
    assert_eq!(report.applied, std::slice::from_ref(&name));
    assert_eq!(report.recomputed_slots.len(), 1);
    assert_eq!(report.recomputed_slots[0].sources, std::slice::from_ref(&name));
    let after = model.generation().unwrap();
    let shared = before.slots.iter().zip(&after.slots).filter(|(a, b)| std::sync::Arc::ptr_eq(a, b)).count();
    assert_eq!(shared, model.plan().slots.len() - 1, "every other buffer is shared");
    let built = case.model(case.compile_with(&change, Isa::detect()));
    assert_same_slots(&name, &model, &built);
}

#[test]
fn r_11_every_problem_is_listed_and_nothing_changes() {
    let case = Case::open("linear");
    let model = case.model(case.compile());
    let inputs = case.tensors("input");
    let before = model.run(&inputs).unwrap();
    let names: Vec<String> = model.refit_map().sources.iter().map(|s| s.name.clone()).collect();
    let weight = names.iter().find(|n| n.ends_with("weight")).expect("a weight");
    let bias = names.iter().find(|n| n.ends_with("bias")).expect("a bias");

    // Only a tensor of its shape can be meant.
    let meant = model.refit_map().sources.iter().find(|s| s.name == *weight).unwrap().shape.clone();
    let mut weights = one(&format!("{weight}s"), Tensor::zeros(DType::F32, &meant).unwrap());
    weights.insert(bias.clone(), Tensor::from_slice(&[1], &[0i64]));
    let found = problems(model.refit(&weights, &FULL));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(matches!(&found[0], Problem::Missing { name, .. } if name == weight));
    assert!(matches!(&found[1], Problem::Mismatch { name, .. } if name == bias));
    assert!(matches!(&found[2], Problem::Unknown { suggestion: Some(s), .. } if s == weight));

    let shape = model.refit_map().sources.iter().find(|s| s.name == *bias).unwrap().shape.clone();
    let count = shape.iter().product::<usize>();
    let nan = one(bias, Tensor::from_slice(&shape, &vec![f32::NAN; count]));
    let strict = PARTIAL.reject_non_finite(true);
    assert_eq!(problems(model.refit(&nan, &strict)), [Problem::NonFinite { name: bias.clone(), count }]);

    let integers = one(bias, Tensor::from_i64(DType::I64, &shape, &vec![0; count]));
    assert!(matches!(problems(model.refit(&integers, &PARTIAL)).as_slice(), [Problem::Mismatch { .. }]));
    assert_same("after four refusals", &model.run(&inputs).unwrap(), &before);
    assert_eq!(model.generation().unwrap().id, 0, "the first generation still serves");
}

#[test]
fn r_11_frozen_and_unbound_engines_say_what_to_do() {
    let case = Case::open("linear");
    let model = case.model(case.compile());
    let inputs = case.tensors("input");
    let ice = case.model(frozen(&model));
    let error = ice.refit(&case.weights_b(), &FULL).expect_err("it is frozen");
    assert!(matches!(error.kind(), RuntimeErrorKind::Frozen), "{error}");
    assert_same("frozen", &ice.run(&inputs).unwrap(), &model.run(&inputs).unwrap());

    let stripped = case.model(case.compile().stripped());
    let error = stripped.run(&inputs).expect_err("it has no weights");
    assert!(error.to_string().contains("bind"), "{error}");
    let half = case.weights_b().iter().take(1).map(|(n, t)| (n.to_owned(), t.clone())).collect();
    assert!(!problems(stripped.refit(&half, &PARTIAL)).is_empty(), "nothing can be kept, so all must be given");
    assert!(stripped.generation().is_none());
}

#[test]
fn r_12_a_fork_is_refitted_and_the_original_stays() {
    let case = Case::open("conv_bn_relu_residual");
    let model = case.model(case.compile());
    let inputs = case.tensors("input");
    let before = model.run(&inputs).unwrap();
    let fork = model.fork();
    fork.refit(&case.weights_b(), &FULL).unwrap();
    assert_same("the original", &model.run(&inputs).unwrap(), &before);
    assert_close("the fork", &fork.run(&inputs).unwrap(), &case.tensors("expected_b"));
    model.refit(&case.weights_b(), &FULL).unwrap();
    assert_same("both", &model.run(&inputs).unwrap(), &fork.run(&inputs).unwrap());
}

#[test]
fn r_14_one_refit_is_right_for_every_shape_in_range() {
    let case = Case::open("tiny_bert");
    let model = case.model(case.compile());
    model.refit(&case.weights_b(), &FULL).unwrap();
    let built = case.model(case.compile_with(&case.weights_b(), Isa::detect()));
    let like = case.tensors("input");
    for (batch, sequence) in [(1, 2), (8, 16), (3, 7), (2, 16)] {
        let inputs: Vec<Tensor> = (like.iter())
            .map(|t| Tensor::from_i64(t.dtype(), &[batch, sequence], &vec![1; batch * sequence]))
            .collect();
        assert_same("any shape", &model.run(&inputs).unwrap(), &built.run(&inputs).unwrap());
    }
    let outside = Tensor::from_i64(like[0].dtype(), &[9, 4], &[1; 36]);
    let error = model.run(&[outside.clone(), outside]).expect_err("the batch is out of range");
    assert!(error.to_string().contains("in 1..=8"), "{error}");
}

#[test]
fn r_15_saved_and_loaded_engines_go_on_being_refitted() {
    let (case, folder) = (Case::open("tiny_resnet"), tempfile::tempdir().unwrap());
    let inputs = case.tensors("input");
    let loaded = case.model(through_a_file(&case.compile(), folder.path()));
    loaded.refit(&case.weights_b(), &FULL).unwrap();
    let again =
        case.model(through_a_file(&loaded.to_engine(Mode::Refittable, KeepSources::default()).unwrap(), folder.path()));
    assert_same("after a second file", &again.run(&inputs).unwrap(), &loaded.run(&inputs).unwrap());
    assert_close("after a second file", &again.run(&inputs).unwrap(), &case.tensors("expected_b"));
    again.refit(&own_weights(&case.compile()), &FULL).unwrap();
    assert_close("back to A", &again.run(&inputs).unwrap(), &case.tensors("expected"));
}

#[test]
fn s_2_a_stripped_engine_is_bound_from_two_files_alone() {
    let (case, folder) = (Case::open("tiny_gpt2"), tempfile::tempdir().unwrap());
    let engine = case.compile();
    let stripped = through_a_file(&engine.clone().stripped(), folder.path());
    let held: usize = stripped.sources.iter().flatten().map(|t| t.bytes().len()).sum();
    assert!(held < engine.source_bytes() / 2, "only what no state dict holds is left");
    let bound = case.model(stripped);
    bound.refit(&own_weights(&engine), &FULL).unwrap();
    let full = case.model(engine);
    assert_same_slots("bound", &bound, &full);
    bound.refit(&case.weights_b(), &FULL).unwrap();
    assert_close("bound again", &bound.run(&case.tensors("input")).unwrap(), &case.tensors("expected_b"));
}

#[test]
fn s_3_an_identical_engine_takes_only_its_own_weights() {
    let (case, folder) = (Case::open("linear"), tempfile::tempdir().unwrap());
    let imported = regraft_import::import_pt2(case.program()).unwrap();
    let options = Options { identical: true, ..Options::default() };
    let output = build(imported.graph, &imported.weights, Isa::detect(), options).unwrap();
    let engine = output.engine;
    let own = own_weights(&engine);
    let stripped = through_a_file(&engine.stripped(), folder.path());
    let model = regraft::model(stripped, backend(Isa::detect())).unwrap();
    let refused = problems(model.refit(&case.weights_b(), &FULL));
    assert_eq!(refused.len(), own.len(), "each source is named");
    assert!(refused.iter().all(|p| matches!(p, Problem::NotIdentical { .. })), "{refused:?}");
    model.refit(&own, &FULL).unwrap();
    assert_close("bound", &model.run(&case.tensors("input")).unwrap(), &case.tensors("expected"));
}

#[test]
fn unchanged_sources_are_found_and_their_slots_shared() {
    let case = Case::open("tiny_bert");
    let engine = case.compile();
    let own = own_weights(&engine);
    let model = case.model(engine);
    let report = model.refit(&own, &FULL).unwrap();
    assert!(report.applied.is_empty() && report.recomputed_slots.is_empty(), "{:?}", report.applied);
    assert_eq!(report.unchanged.len(), own.len());
    assert_eq!(report.shared_slots.len(), model.plan().slots.len());
}

#[test]
fn a_generation_that_was_overtaken_is_not_published() {
    let case = Case::open("linear");
    let model = case.model(case.compile());
    let staged = model.stage(&case.weights_b(), &FULL).unwrap();
    model.refit(&case.weights_b(), &FULL).unwrap();
    let error = staged.publish().expect_err("the model moved on");
    assert!(matches!(error.kind(), RuntimeErrorKind::Stale));
}

#[test]
fn r_2_back_and_forth_gives_the_first_bits() {
    let case = Case::open("tiny_resnet");
    let engine = case.compile();
    let (a, b) = (own_weights(&engine), case.weights_b());
    let model = case.model(engine);
    let inputs = case.tensors("input");
    let first = model.run(&inputs).unwrap();
    model.refit(&b, &FULL).unwrap();
    assert_close("B", &model.run(&inputs).unwrap(), &case.tensors("expected_b"));
    model.refit(&a, &FULL).unwrap();
    assert_same("A again", &model.run(&inputs).unwrap(), &first);
}

#[test]
fn r_4_every_kind_of_layer_is_refitted() {
    let layers = [
        "conv1x1",
        "conv_bn",
        "conv_bn_decomp",
        "layer_norm",
        "group_norm",
        "linear",
        "linear_nobias",
        "conv_transpose",
        "embedding",
        "lstm",
    ];
    for name in layers {
        let case = Case::open(name);
        let model = case.model(case.compile());
        model.refit(&case.weights_b(), &FULL).unwrap_or_else(|e| panic!("{name}: {e}"));
        let outputs = model.run(&case.tensors("input")).unwrap();
        assert_close(name, &outputs, &case.tensors("expected_b"));
        let built = case.model(case.compile_with(&case.weights_b(), Isa::detect()));
        assert_same(name, &outputs, &built.run(&case.tensors("input")).unwrap());
    }
}

#[test]
fn r_13_a_thousand_refits_leave_memory_flat() {
    let case = Case::open("conv_bn_relu_residual");
    let engine = case.compile();
    let (a, b) = (own_weights(&engine), case.weights_b());
    let model = case.model(engine);
    let inputs = case.tensors("input");
    let outputs_a = model.run(&inputs).unwrap();
    let mut waiting = Vec::new();
    for _ in 0..500 {
        model.refit(&b, &FULL).unwrap();
        model.refit(&a, &FULL).unwrap();
        assert_same("A", &model.run(&inputs).unwrap(), &outputs_a);
        waiting.push(model.slot_memory().free);
    }
    assert!(waiting[1..].iter().all(|bytes| *bytes == waiting[1]), "the pool neither grows nor shrinks");
}

#[test]
fn r_18_every_output_belongs_to_one_generation() {
    let case = Case::open("tiny_bert");
    let engine = case.compile();
    let (a, b) = (own_weights(&engine), case.weights_b());
    let model = case.model(engine);
    let inputs = case.tensors("input");
    let outputs_a = model.run(&inputs).unwrap();
    model.refit(&b, &FULL).unwrap();
    let outputs_b = model.run(&inputs).unwrap();
    let equal = |x: &[Tensor], y: &[Tensor]| x.iter().zip(y).all(|(x, y)| x.bit_equal(y));
    let done = &std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let runners: Vec<_> = (0..2)
            .map(|_| {
                let (model, inputs) = (model.clone(), inputs.clone());
                let (outputs_a, outputs_b) = (&outputs_a, &outputs_b);
                scope.spawn(move || {
                    let mut runs = 0;
                    while !done.load(std::sync::atomic::Ordering::Relaxed) || runs == 0 {
                        let outputs = model.run(&inputs).expect("no run fails while the model is refitted");
                        assert!(equal(&outputs, outputs_a) || equal(&outputs, outputs_b), "a mix of generations");
                        runs += 1;
                    }
                })
            })
            .collect();
        for _ in 0..50 {
            model.refit(&a, &FULL).expect("A fits");
            model.refit(&b, &FULL).expect("B fits");
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        runners.into_iter().for_each(|r| r.join().expect("the runner saw no mix"));
    });
}

#[test]
fn a_model_that_has_run_is_freed_when_it_is_dropped() {
    let case = Case::open("linear");
    let model = case.model(case.compile());
    let generation = std::sync::Arc::downgrade(&model.generation().unwrap());
    model.run(&case.tensors("input")).unwrap();
    drop(model);
    assert!(generation.upgrade().is_none(), "nothing keeps it alive");
}

#[test]
fn a_checkpoint_without_unread_buffers_binds_and_survives_a_file() {
    let (case, folder) = (Case::open("conv_bn"), tempfile::tempdir().unwrap());
    let read: StateDict = case
        .weights_b()
        .iter()
        .filter(|(name, _)| !name.ends_with("num_batches_tracked"))
        .map(|(name, tensor)| (name.to_owned(), tensor.clone()))
        .collect();
    let bound = case.model(case.compile().stripped());
    bound.refit(&read, &FULL).unwrap();
    let loaded =
        case.model(through_a_file(&bound.to_engine(Mode::Refittable, KeepSources::default()).unwrap(), folder.path()));
    assert_close("bound", &loaded.run(&case.tensors("input")).unwrap(), &case.tensors("expected_b"));
}

#[test]
fn sizes_that_do_not_work_out_are_an_error() {
    let program = "program \"halves\" {
        dims s0 in 1..=8 (opt 4)
        input %0 : f32[s0, 6] = \"x\"
        %1 = reshape %0 {shape = [(s0)//(2), 2, 6]} : f32[(s0)//(2), 2, 6]
        output %1 = \"y\"
    }";
    let model = model_of(program, &[]);
    let input = |rows: usize| Tensor::from_slice(&[rows, 6], &vec![1f32; rows * 6]);
    assert_eq!(model.run(&[input(4)]).unwrap()[0].shape(), [2, 2, 6]);
    let error = model.run(&[input(3)]).expect_err("three rows are not pairs");
    assert!(matches!(error.kind(), RuntimeErrorKind::Sizes { op: "reshape", .. }), "{error}");
}

#[test]
fn results_that_are_declared_with_other_sizes_are_an_error() {
    let program = "program \"rows\" {
        dims s0 in 1..=8 (opt 4)
        input %0 : f32[s0, 6] = \"x\"
        %1 = softmax %0 {axis = 1} : f32[s0 + 1, 6]
        output %1 = \"y\"
    }";
    let backend = backend(Isa::detect());
    for kernel in ["reference", "softmax.rows"] {
        let graph = regraft::ir::text::parse(program).unwrap();
        let plan = Plan { graph, kernels: vec![KernelId::new(kernel)], slots: vec![] };
        let engine =
            Engine { mode: Mode::Refittable, ..Engine::new(backend.codegen().target(), plan, RefitMap::default()) };
        let model = regraft::model(engine, backend.clone()).unwrap();
        let error = model.run(&[Tensor::from_slice(&[2, 6], &[1f32; 12])]).expect_err("two rows are not three");
        assert!(matches!(error.kind(), RuntimeErrorKind::Sizes { op: "softmax", .. }), "{kernel}: {error}");
    }
}
