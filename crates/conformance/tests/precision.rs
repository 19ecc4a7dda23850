//! Programs of f32 computed in narrower floats, and with weights stored as small integers.

use std::sync::Arc;

use regraft::{
    DType, Model, Refit, StateDict, Tensor, WeightFormat,
    adapter::{Adapter, AdapterLayer, Factors, Update},
};
use regraft_backend_cpu::Isa;
use regraft_compile::lower::Precision;
use regraft_conformance::{Case, FULL, assert_same, assert_same_slots, backend};

const INT8: Precision = Precision { dtype: None, weights: Some(WeightFormat::Int8) };
const INT4: Precision = Precision { dtype: None, weights: Some(WeightFormat::Int4) };
const BF16: Precision = Precision { dtype: Some(DType::BF16), weights: None };
const F16: Precision = Precision { dtype: Some(DType::F16), weights: None };
const BOTH: Precision = Precision { dtype: Some(DType::BF16), weights: Some(WeightFormat::Int8) };

/// Whether the device has kernels for all of them.
fn is_cpu() -> bool {
    std::env::var_os("REGRAFT_TEST_DEVICE").is_none_or(|name| name.is_empty())
}

fn relative(got: &[Tensor], want: &[Tensor]) -> f64 {
    let pairs = got.iter().zip(want).flat_map(|(a, b)| a.to_f64_vec().into_iter().zip(b.to_f64_vec()));
    let (difference, size) = pairs.fold((0.0, 0.0), |(d, s), (a, b)| (d + (a - b) * (a - b), s + b * b));
    (difference / f64::max(size, f64::MIN_POSITIVE)).sqrt()
}

#[test]
fn r_8_a_refit_is_a_build_in_every_precision() {
    let cases = ["mlp_gelu", "tiny_bert", "tiny_gpt2", "tiny_resnet", "tied", "conv_transpose", "two_layouts", "mha"];
    for precision in [BF16, F16, INT8, INT4, BOTH] {
        if !is_cpu() && precision.weights.is_some() {
            continue;
        }
        for case in cases.map(Case::open) {
            let (name, inputs) = (format!("{} in {precision:?}", case.name), case.tensors("input"));
            let model = case.model(case.compile_in(&StateDict::new(), precision));
            let exact = relative(&model.run(&inputs).unwrap(), &case.tensors("expected"));
            assert!(exact < 0.15, "{name}: off by {exact}");
            let b = case.weights_b();
            let staged = Refit::new().weights(&b, &FULL).stage(&model).unwrap();
            staged.verify(std::slice::from_ref(&inputs)).unwrap_or_else(|e| panic!("{name}: {e}"));
            staged.publish().unwrap();
            let built = case.model(case.compile_in(&b, precision));
            assert_same(&name, &model.run(&inputs).unwrap(), &built.run(&inputs).unwrap());
            assert_same_slots(&name, &model, &built);
        }
    }
}

/// An engine of bf16 runs on every device that has its instruction set: by vectors, and in tiles where there are any.
#[test]
fn engines_run_with_tiles_and_without() {
    let isas: Vec<Isa> =
        Isa::available().into_iter().filter(|isa| isa.of_engines() == Isa::detect().of_engines()).collect();
    if isas.len() < 2 || !is_cpu() {
        eprintln!("skipped: this machine has no AMX");
        return;
    }
    for case in ["mlp_gelu", "tiny_bert", "tiny_gpt2", "tiny_resnet", "mha"].map(Case::open) {
        for precision in [BF16, INT8, BOTH] {
            let name = format!("{} in {precision:?}", case.name);
            let engine = case.compile_in(&StateDict::new(), precision);
            let [by_vectors, in_tiles] = [0, 1].map(|i| {
                let model = regraft::model(engine.clone(), backend(isas[i])).unwrap_or_else(|e| panic!("{name}: {e}"));
                model.run(&case.tensors("input")).unwrap_or_else(|e| panic!("{name}: {e}"))
            });
            let apart = relative(&in_tiles, &by_vectors);
            assert!(apart < 0.02, "{name}: apart by {apart}");
            // Sums of bytes are exact.
            assert!(precision != INT8 || apart == 0.0, "{name}: apart by {apart}");
        }
    }
}

/// Low-rank updates of every matrix.
fn everywhere(model: &Model, name: &str, rank: usize, seed: usize) -> Arc<Adapter> {
    let numbers = |len: usize, seed: usize| (0..len).map(move |i| ((i + seed * 31) * 7919 % 10007) as f32 * 2e-5 - 0.1);
    let matrix = |rows, cols, seed| Tensor::from_slice(&[rows, cols], &numbers(rows * cols, seed).collect::<Vec<_>>());
    let layer = |(source, info): (usize, &regraft::SourceInfo)| {
        let &[rows, cols] = info.shape.as_slice() else { return None };
        let factors = Factors { up: matrix(rows, rank, seed + source), down: matrix(rank, cols, seed + source + 1) };
        Some(AdapterLayer { source, update: Update::LowRank { factors, scale: 0.5, magnitude: None } })
    };
    let map = model.refit_map();
    Arc::new(Adapter::new(name, map.sources.iter().enumerate().filter_map(layer).collect()))
}

#[test]
fn a_2_a_thousand_cycles_in_bf16_and_int8() {
    for precision in [BF16, INT8] {
        if !is_cpu() && precision.weights.is_some() {
            continue;
        }
        let case = Case::open("mlp_gelu");
        let compiled = || case.model(case.compile_in(&StateDict::new(), precision));
        let (model, inputs) = (compiled(), case.tensors("input"));
        let day_one = model.run(&inputs).unwrap();
        let (a, b) = (everywhere(&model, "a", 4, 1), everywhere(&model, "b", 7, 50));
        let (mut memory, mut with_a) = (Vec::new(), None);
        for _ in 0..500 {
            model.adapters().set(&[(a.clone(), 1.0)]).unwrap();
            let outputs = model.run(&inputs).unwrap();
            assert_same("A", &outputs, with_a.get_or_insert(outputs.clone()));
            model.adapters().set(&[(a.clone(), 1.0), (b.clone(), 0.5)]).unwrap();
            model.adapters().clear().unwrap();
            memory.push(model.slot_memory());
        }
        assert!(!with_a.unwrap()[0].bit_equal(&day_one[0]), "the adapter makes a difference");
        assert_same("the first day", &model.run(&inputs).unwrap(), &day_one);
        assert_same_slots("the first day", &model, &compiled());
        assert!(memory[1..].iter().all(|m| *m == memory[1]), "memory is flat");
    }
}
