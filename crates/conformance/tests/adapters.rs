//! Adapters on compiled models. Test names carry the id of the scenario in `docs/scenarios.md`.

use std::sync::Arc;

use regraft::{
    AlignedVec, DType, KeepSources, Mode, Model, Refit, Tensor,
    adapter::{Adapter, AdapterLayer, Factors, Magnitude, MagnitudeAxis, Update},
    ir::Role,
};
use regraft_backend_cpu::Isa;
use regraft_conformance::{Case, FULL, assert_close, assert_same, assert_same_slots, one, own_weights};

/// Programs whose weights are linear, convolutions of all kinds, embeddings, fused, concatenated, sliced, tied, transposed
/// and of other dtypes.
const CASES: [&str; 14] = [
    "linear",
    "conv1x1",
    "conv_bn",
    "conv_grouped",
    "conv_transpose",
    "conv_depthwise_bn_hardswish",
    "embedding",
    "mha",
    "tiny_bert",
    "tiny_gpt2",
    "tied",
    "two_layouts",
    "slices",
    "dtypes",
];

fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i + seed * 31) * 7919 % 10007) as f32 * 2e-5 - 0.1).collect()
}

fn matrix(rows: usize, cols: usize, seed: usize) -> Tensor {
    Tensor::from_slice(&[rows, cols], &numbers(rows * cols, seed))
}

fn factors(rows: usize, rank: usize, cols: usize, seed: usize) -> Factors {
    Factors { up: matrix(rows, rank, seed), down: matrix(rank, cols, seed + 1) }
}

fn lora(rows: usize, cols: usize, rank: usize, seed: usize) -> Update {
    Update::LowRank { factors: factors(rows, rank, cols, seed), scale: 0.5, magnitude: None }
}

/// A form of update for each layer in turn.
fn any_form(rows: usize, cols: usize, seed: usize) -> Update {
    match seed % 7 {
        0 => lora(rows, cols, 4, seed),
        1 => Update::LowRank {
            factors: factors(rows, 2, cols, seed),
            scale: 2.0,
            magnitude: Some(Magnitude {
                axis: MagnitudeAxis::Rows,
                values: Tensor::from_slice(&[rows], &numbers(rows, 3)),
            }),
        },
        2 => Update::Hadamard {
            first: factors(rows, 2, cols, seed),
            second: factors(rows, 3, cols, seed + 7),
            scale: 10.0,
            magnitude: None,
        },
        3 => {
            Update::Kronecker { left: matrix(1, 1, seed), right: matrix(rows, cols, seed), scale: 3.0, magnitude: None }
        }
        4 => Update::Replace { values: matrix(rows, cols, seed) },
        5 => {
            Update::Scaled { axis: MagnitudeAxis::Columns, factors: Tensor::from_slice(&[cols], &numbers(cols, seed)) }
        }
        _ => Update::Full { delta: matrix(rows, cols, seed), scale: 1.0 },
    }
}

/// An adapter on the float sources with at least two axes that `which` picks, counted from zero.
fn adapter(
    model: &Model,
    name: &str,
    which: impl Fn(usize) -> bool,
    update: impl Fn(usize, usize, usize) -> Update,
) -> Arc<Adapter> {
    let sources = model.refit_map().sources.iter().enumerate();
    let wide = sources.filter(|(_, s)| s.shape.len() >= 2 && s.dtype.is_float() && !s.shape.contains(&0));
    let layer = |(number, (source, info)): (usize, (usize, &regraft::SourceInfo))| {
        let (rows, cols) = (info.shape[0], info.shape[1..].iter().product());
        AdapterLayer { source, update: update(rows, cols, number) }
    };
    // A tied source is the same for each module that reads it.
    let everywhere =
        |(numbered, (source, info))| model.refit_map().uses(source).map(move |one| layer((numbered, (one, info))));
    let layers = wide.enumerate().filter(|(number, _)| which(*number)).flat_map(everywhere).collect();
    Arc::new(Adapter::new(name, layers))
}

fn everywhere(model: &Model, name: &str, update: impl Fn(usize, usize, usize) -> Update) -> Arc<Adapter> {
    adapter(model, name, |_| true, update)
}

#[test]
fn a_1_adapters_give_what_a_build_with_merged_weights_gives() {
    for name in CASES {
        let case = Case::open(name);
        let model = case.model(case.compile());
        let inputs = case.tensors("input");
        let before = model.run(&inputs).unwrap();
        let adapter = everywhere(&model, "a", any_form);
        assert!(!adapter.layers.is_empty(), "{name}");
        let report = model.adapters().set(&[(adapter.clone(), 0.7)]).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(report.adapters[0].layers, adapter.layers.len());
        assert!(report.applied.is_empty() && !report.adapted.is_empty(), "{name}: the weights themselves stay");

        let engine = model.to_engine(Mode::Refittable, KeepSources::default()).unwrap();
        for layer in &adapter.layers {
            let source = model.refit_map().source_of(layer.source).unwrap();
            let pristine = model.generation().unwrap().sources[source].converted().unwrap().unwrap();
            let want = layer.update.reference(&pristine.cast(DType::F64), 0.7);
            let got = engine.sources[source].clone().unwrap();
            let (got, want) = (got.to_f64_vec(), want.to_f64_vec());
            let largest = want.iter().fold(0f64, |m, v| m.max(v.abs()));
            let tolerance = if pristine.dtype().size() == 2 { 1e-2 } else { 1e-5 };
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= tolerance * largest), "{name}");
        }
        let merged = own_weights(&engine);
        let built = case.model(case.compile_with(&merged, Isa::detect()));
        assert_same_slots(name, &model, &built);
        assert_same(name, &model.run(&inputs).unwrap(), &built.run(&inputs).unwrap());

        model.adapters().clear().unwrap();
        assert_same_slots(name, &model, &case.model(case.compile()));
        assert_same(name, &model.run(&inputs).unwrap(), &before);
    }
}

#[test]
fn a_2_a_thousand_cycles_end_with_the_bits_of_the_first_day_and_flat_memory() {
    for name in ["tiny_bert", "dtypes"] {
        let case = Case::open(name);
        let model = case.model(case.compile());
        let inputs = case.tensors("input");
        let day_one = model.run(&inputs).unwrap();
        let a = everywhere(&model, "a", |rows, cols, seed| lora(rows, cols, 4, seed));
        let b = everywhere(&model, "b", |rows, cols, seed| lora(rows, cols, 7, seed + 50));
        let mut memory = Vec::new();
        let mut with_a = None;
        for _ in 0..250 {
            model.adapters().set(&[(a.clone(), 1.0)]).unwrap();
            let outputs = model.run(&inputs).unwrap();
            assert_same("A", &outputs, with_a.get_or_insert(outputs.clone()));
            model.adapters().set(&[(b.clone(), 0.5)]).unwrap();
            model.adapters().set(&[(a.clone(), 1.0), (b.clone(), 0.5)]).unwrap();
            model.adapters().clear().unwrap();
            memory.push(model.slot_memory());
        }
        assert_same(name, &model.run(&inputs).unwrap(), &day_one);
        assert_same_slots(name, &model, &case.model(case.compile()));
        assert!(memory[1..].iter().all(|m| *m == memory[1]), "{name}: memory is flat");
    }
}

#[test]
fn r_16_adapters_in_half_precision_are_verified() {
    let case = Case::open("dtypes");
    let model = case.model(case.compile());
    for scale in [0.3, 0.7, 1.0] {
        let adapter = everywhere(&model, "a", |rows, cols, seed| lora(rows, cols, 4, seed + 11));
        let staged = Refit::new().adapters(&[(adapter, scale)]).unwrap().stage(&model).unwrap();
        assert!(staged.verify(&[case.tensors("input")]).unwrap().slots > 0);
    }
}

#[test]
fn a_3_the_order_of_adapters_does_not_matter() {
    let case = Case::open("tiny_bert");
    let (one_way, other_way) = (case.model(case.compile()), case.model(case.compile()));
    let a = everywhere(&one_way, "a", any_form);
    let b = everywhere(&one_way, "b", |rows, cols, seed| any_form(rows, cols, seed + 2));
    one_way.adapters().set(&[(a.clone(), 0.3), (b.clone(), 0.7)]).unwrap();
    other_way.adapters().set(&[(b.clone(), 0.7), (a.clone(), 0.3)]).unwrap();
    assert_same_slots("either order", &one_way, &other_way);
    let report = other_way.adapters().set(&[(a.clone(), 0.3), (b, 0.7)]).unwrap();
    assert!(report.recomputed_slots.is_empty(), "nothing changes");
    let twice = other_way.adapters().set(&[(a.clone(), 0.3), (a, 0.7)]).expect_err("one name twice");
    assert!(twice.to_string().contains("two adapters are called `a`"), "{twice}");
}

#[test]
fn a_4_a_later_adapter_has_other_layers_and_another_rank() {
    let case = Case::open("tiny_bert");
    let model = case.model(case.compile());
    let first = adapter(&model, "first", |n| n.is_multiple_of(2), |rows, cols, seed| lora(rows, cols, 2, seed));
    let second = adapter(&model, "second", |n| n % 3 == 1, |rows, cols, seed| lora(rows, cols, 33, seed));
    model.adapters().set(&[(first, 1.0)]).unwrap();
    model.adapters().set(&[(second.clone(), 0.25)]).unwrap();
    let fresh = case.model(case.compile());
    fresh.adapters().set(&[(second, 0.25)]).unwrap();
    assert_same_slots("only the second", &model, &fresh);
}

#[test]
fn a_6_only_slots_of_touched_layers_are_rebuilt() {
    let case = Case::open("tiny_bert");
    let model = case.model(case.compile());
    let query = |info: &regraft::SourceInfo| info.name.ends_with("query.weight");
    let sources = model.refit_map().sources.clone();
    let layers = (sources.iter().enumerate().filter(|(_, s)| query(s)))
        .map(|(source, s)| AdapterLayer { source, update: lora(s.shape[0], s.shape[1], 4, source) })
        .collect();
    let adapter = Arc::new(Adapter::new("q", layers));
    let report = model.adapters().set(&[(adapter.clone(), 1.0)]).unwrap();
    let touched: Vec<usize> = sources.iter().enumerate().filter(|(_, s)| query(s)).map(|(i, _)| i).collect();
    let by_source = model.refit_map().slots_by_source();
    let expected: usize = touched.iter().map(|&s| by_source[s].len()).sum();
    assert_eq!(report.recomputed_slots.len(), expected);
    assert!(report.recomputed_slots.iter().all(|slot| slot.one_pass), "applied while packing");
    assert_eq!(report.shared_slots.len(), model.plan().slots.len() - expected);
    // Another scale touches the same slots, the same scale none.
    assert_eq!(model.adapters().set(&[(adapter.clone(), 0.5)]).unwrap().recomputed_slots.len(), expected);
    assert!(model.adapters().set(&[(adapter, 0.5)]).unwrap().recomputed_slots.is_empty());
}

/// An adapter is of a module: of a tied tensor it changes what that module reads, and saving the engine unties it.
#[test]
fn a_2_an_adapter_on_one_use_of_a_tied_tensor_leaves_the_other_alone() {
    let case = Case::open("tied");
    let model = case.model(case.compile());
    let inputs = case.tensors("input");
    let before = model.run(&inputs).unwrap();
    let map = model.refit_map();
    let uses = map.uses_by_name();
    let (table, head) = (uses["embed.weight"], uses["head.weight"]);
    assert_ne!(table, head, "each module has its use");
    assert_eq!((map.role(table), map.role(head)), (Role::Table, Role::Linear));
    let shape = &map.sources[map.source_of(head).unwrap()].shape;
    let one =
        |source| Arc::new(Adapter::new("a", vec![AdapterLayer { source, update: lora(shape[0], shape[1], 2, 1) }]));
    let mut answers = vec![before.clone()];
    for used_as in [table, head] {
        model.adapters().clear().unwrap();
        let report = model.adapters().set(&[(one(used_as), 1.0)]).unwrap();
        assert_eq!(report.adapted, [map.use_name(used_as)]);
        let changed = model.run(&inputs).unwrap();
        assert!(answers.iter().all(|other| !other[0].bit_equal(&changed[0])), "each use has an answer of its own");
        // What was saved is the same model, whose tensors are two now.
        let engine = model.to_engine(Mode::Refittable, KeepSources::default()).unwrap();
        assert_eq!(engine.refit_map.sources.len(), map.sources.len() + 1);
        let engine =
            regraft::Engine::from_bytes("untied", AlignedVec::copy_of(&engine.to_bytes().unwrap()).into()).unwrap();
        let untied = case.model(engine);
        assert_same("untied", &untied.run(&inputs).unwrap(), &changed);
        assert_eq!(untied.refit_map().uses_by_name()["head.weight"], map.sources.len());
        answers.push(changed);
    }
    model.adapters().clear().unwrap();
    assert_same_slots("the first day", &model, &case.model(case.compile()));
    assert_same("the first day", &model.run(&inputs).unwrap(), &before);
}

/// Two embeddings of one table, as an encoder and a decoder have them, are one slot unless an adapter is on one of them.
#[test]
fn a_2_slots_of_two_uses_are_one_while_they_hold_the_same() {
    let program = r#"program "shared" {
        input  %0 : i64[2] = "ids"
        source %1 : f32[5, 4] = "encoder.embed.weight" (parameter) as table
        source %2 : f32[5, 4] = "decoder.embed.weight" (parameter) as table twin of %1
        %3 = embedding %1, %0 : f32[2, 4]  // encoder.embed
        %4 = embedding %2, %0 : f32[2, 4]  // decoder.embed
        output %3 = "encoder"
        output %4 = "decoder"
    }"#;
    let model = regraft_conformance::model_of(program, &[Some(matrix(5, 4, 3)), None]);
    let is_one = |model: &Model| {
        let generation = model.generation().unwrap();
        Arc::ptr_eq(&generation.slots[0], &generation.slots[1])
    };
    assert!(is_one(&model));
    let ids = [Tensor::from_i64(DType::I64, &[2], &[1, 4])];
    let before = model.run(&ids).unwrap();
    for used_as in [0, 1] {
        let layer = AdapterLayer { source: used_as, update: lora(5, 4, 2, 1) };
        model.adapters().set(&[(Arc::new(Adapter::new("a", vec![layer])), 1.0)]).unwrap();
        assert!(!is_one(&model));
        let after = model.run(&ids).unwrap();
        assert!(!after[used_as].bit_equal(&before[used_as]) && after[1 - used_as].bit_equal(&before[1 - used_as]));
        model.adapters().clear().unwrap();
        assert!(is_one(&model), "and again after it");
        assert_same("the first day", &model.run(&ids).unwrap(), &before);
    }
}

#[test]
fn a_5_an_adapter_of_another_engine_is_refused() {
    let case = Case::open("tiny_bert");
    let model = case.model(case.compile());
    let inputs = case.tensors("input");
    let before = model.run(&inputs).unwrap();
    let sources = &model.refit_map().sources;
    let wide = sources.iter().position(|s| s.shape.len() == 2).expect("a matrix");
    let (rows, cols) = (sources[wide].shape[0], sources[wide].shape[1]);
    for layer in [
        AdapterLayer { source: sources.len() + model.refit_map().twins.len(), update: lora(rows, cols, 2, 0) },
        AdapterLayer { source: wide, update: lora(rows + 1, cols, 2, 0) },
        AdapterLayer { source: wide, update: Update::Full { delta: matrix(rows, cols + 1, 0), scale: 1.0 } },
    ] {
        let error = model.adapters().set(&[(Arc::new(Adapter::new("a", vec![layer])), 1.0)]).unwrap_err();
        assert!(error.to_string().contains("a: 1 of 1 keys does not fit; nothing was changed"), "{error}");
    }
    assert!(model.adapters().active().is_empty());
    let after = model.run(&inputs).unwrap();
    assert!(before.iter().zip(&after).all(|(a, b)| a.bit_equal(b)));
}

#[test]
fn a_7_adapters_reach_weights_that_are_fused_with_others() {
    // Projections of attention packed side by side, and convolutions with folded batch norms.
    for (name, part) in
        [("mha", "in_proj"), ("tiny_bert", "query"), ("conv_bn_relu_residual", "conv"), ("tiny_resnet", "conv")]
    {
        let case = Case::open(name);
        let model = case.model(case.compile());
        let sources = model.refit_map().sources.clone();
        let layers: Vec<AdapterLayer> = (sources.iter().enumerate())
            .filter(|(_, s)| s.name.contains(part) && s.shape.len() >= 2)
            .map(|(source, s)| {
                let update = lora(s.shape[0], s.shape[1..].iter().product(), 3, source);
                AdapterLayer { source, update }
            })
            .collect();
        assert!(!layers.is_empty(), "{name} has {part}");
        let report = model.adapters().set(&[(Arc::new(Adapter::new(part, layers)), 2.0)]).unwrap();
        assert!(report.recomputed_slots.iter().any(|slot| slot.sources.len() > 1 || name == "mha"), "{name}: fused");
        let merged = own_weights(&model.to_engine(Mode::Refittable, KeepSources::default()).unwrap());
        assert_same_slots(name, &model, &case.model(case.compile_with(&merged, Isa::detect())));
    }
}

#[test]
fn a_refit_of_the_weights_keeps_the_adapters() {
    let case = Case::open("tiny_bert");
    let model = case.model(case.compile());
    let adapter = everywhere(&model, "a", any_form);
    model.adapters().set(&[(adapter.clone(), 0.7)]).unwrap();
    model.refit(&case.weights_b(), &FULL).unwrap();
    assert_eq!(model.adapters().active().len(), 1);
    let other = case.model(case.compile_with(&case.weights_b(), Isa::detect()));
    other.adapters().set(&[(adapter, 0.7)]).unwrap();
    assert_same_slots("B with the adapter", &model, &other);
    model.adapters().clear().unwrap();
    assert_close("B", &model.run(&case.tensors("input")).unwrap(), &case.tensors("expected_b"));
}

#[test]
fn weights_of_another_width_take_adapters_in_the_engines_dtype() {
    let case = Case::open("linear");
    let model = case.model(case.compile());
    let info = model.refit_map().sources.iter().find(|s| s.shape.len() == 2).expect("a weight").clone();
    let values: Vec<f64> = numbers(info.shape.iter().product(), 1).iter().map(|v| f64::from(*v)).collect();
    let narrow = Tensor::from_f64(DType::BF16, &info.shape, &values);
    let adapter = everywhere(&model, "a", |rows, cols, seed| lora(rows, cols, 4, seed));
    let mut slots = Vec::new();
    for weight in [narrow.clone(), narrow.cast(DType::F32)] {
        let model = case.model(case.compile());
        let partial = regraft_conformance::PARTIAL;
        model.refit(&one(&info.name, weight), &partial).unwrap();
        model.adapters().set(&[(adapter.clone(), 1.0)]).unwrap();
        slots.push(model);
    }
    assert_same_slots("bf16 as it is and as f32", &slots[0], &slots[1]);
}

#[test]
fn adapters_of_engines_that_cannot_take_them_are_refused() {
    let case = Case::open("linear");
    let model = case.model(case.compile());
    let adapter = everywhere(&model, "a", any_form);
    let unbound = case.model(case.compile().stripped());
    assert!(unbound.adapters().set(&[(adapter.clone(), 1.0)]).is_err());
    let frozen = case.model(regraft_conformance::frozen(&model));
    assert!(frozen.adapters().set(&[(adapter.clone(), 1.0)]).is_err());
    model.release_sources().unwrap();
    assert!(model.adapters().set(&[(adapter, 1.0)]).is_err(), "adapters are applied from the sources");
}
