//! Where a refittable engine has its sources, through files.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{fs, path::Path, sync::Arc};

use regraft::{
    Adapter, Constants, Engine, KeepSources, Kept, MatchOptions, Mode, Model, ModelExt as _, Problem, StateDict,
    Tensor, adapter::AdapterOptions,
};
use regraft_backend_cpu::Isa;
use regraft_conformance::{
    Case, FULL, PARTIAL, assert_same, assert_same_slots, backend, one, own_weights, problems, through_a_file,
};
use regraft_tensor::AlignedVec;

fn open(path: &Path) -> Model {
    regraft::model(Engine::open(path).unwrap(), backend(Isa::detect())).unwrap()
}

/// A model that was saved with its sources kept so, beside a weight file that they came from.
fn saved(case: &Case, keep: KeepSources, folder: &Path) -> Model {
    let weights = folder.join("weights.safetensors");
    save_weights(&own_weights(&case.compile()), &weights);
    let model = case.model(case.compile().stripped());
    model.refit(&regraft::open_weights(&weights).unwrap(), &FULL).unwrap();
    let path = folder.join("engine.rgf");
    model.save_as(&path, Mode::Refittable, keep).unwrap();
    let loaded = open(&path);
    assert_eq!(loaded.keep_sources(), keep);
    loaded
}

fn save_weights(weights: &StateDict, path: &Path) {
    let view = |tensor: &Tensor| {
        let dtype = match tensor.dtype() {
            regraft::DType::F32 => safetensors::Dtype::F32,
            regraft::DType::I64 => safetensors::Dtype::I64,
            other => panic!("{other} is not used by these tests"),
        };
        let bytes: &'static [u8] = Box::leak(tensor.bytes().to_vec().into_boxed_slice());
        safetensors::tensor::TensorView::new(dtype, tensor.shape().to_vec(), bytes).unwrap()
    };
    let views: Vec<(String, _)> = weights.iter().map(|(name, tensor)| (name.to_owned(), view(tensor))).collect();
    safetensors::serialize_to_file(views, None, path).unwrap();
}

#[test]
fn every_way_gives_the_same_slots_and_complete_refits() {
    for name in ["conv_bn", "mlp_gelu", "tied", "two_layouts", "constants", "lstm_state"] {
        let case = Case::open(name);
        let plain = case.model(case.compile());
        let refitted = case.model(case.compile());
        refitted.refit(&case.weights_b(), &FULL).unwrap();
        for keep in KeepSources::ALL {
            let folder = tempfile::tempdir().unwrap();
            let model = saved(&case, keep, folder.path());
            assert_same_slots(name, &model, &plain);
            let inputs = case.tensors("input");
            assert_same(name, &model.run(&inputs).unwrap(), &plain.run(&inputs).unwrap());
            model.refit(&case.weights_b(), &FULL).unwrap();
            assert_same_slots(name, &model, &refitted);
            // What was kept is kept again.
            let again = folder.path().join("again.rgf");
            model.save_as(&again, Mode::Refittable, keep).unwrap();
            assert_same_slots(name, &open(&again), &refitted);
        }
    }
}

#[test]
fn siblings_come_from_where_they_are_kept() {
    let case = Case::open("conv_bn");
    let part = one("bn.weight", case.weights_b().get("bn.weight").unwrap().clone());
    let want = case.model(case.compile());
    want.refit(&part, &PARTIAL).unwrap();
    for keep in [KeepSources::Embedded, KeepSources::Prepacked, KeepSources::Reference] {
        let folder = tempfile::tempdir().unwrap();
        let model = saved(&case, keep, folder.path());
        model.refit(&part, &PARTIAL).unwrap();
        assert_same_slots(keep.name(), &model, &want);
    }
}

#[test]
fn without_sources_a_refit_must_bring_the_siblings_by_name() {
    let (case, folder) = (Case::open("conv_bn"), tempfile::tempdir().unwrap());
    let model = saved(&case, KeepSources::None, folder.path());
    let before = case.model(case.compile());
    let part = one("bn.weight", case.weights_b().get("bn.weight").unwrap().clone());
    let found = problems(model.refit(&part, &PARTIAL));
    let mut missing: Vec<&str> = found.iter().map(Problem::name).collect();
    missing.sort_unstable();
    assert_eq!(missing, ["bn.bias", "bn.running_mean", "bn.running_var", "conv.weight"]);
    assert!(found.iter().all(|p| matches!(p, Problem::SiblingMissing { .. })), "{found:?}");
    assert_same_slots("after a refusal", &model, &before);
    // What is the same as before is known by its digest.
    let all = own_weights(&case.compile());
    let report = model.refit(&all, &FULL).unwrap();
    assert!(report.recomputed_slots.is_empty(), "{:?}", report.recomputed_slots);
}

#[test]
fn constants_that_a_refit_changed_are_kept_as_they_are_now() {
    let (case, folder) = (Case::open("constants"), tempfile::tempdir().unwrap());
    let model = case.model(case.compile());
    let sources = &model.refit_map().sources;
    let index = sources.iter().position(|s| !s.kind.in_state_dict() && s.dtype == regraft::DType::F32).unwrap();
    let before = model.generation().unwrap().sources[index].converted().unwrap().unwrap();
    let values: Vec<f32> = before.to_f64_vec().iter().map(|v| (v + 1.0) as f32).collect();
    let after = Tensor::from_slice(before.shape(), &values);
    let options = PARTIAL.constants(Constants::ChangeAll);
    model.refit(&one(&sources[index].name, after.clone()), &options).unwrap();
    let path = folder.path().join("engine.rgf");
    model.save_as(&path, Mode::Refittable, KeepSources::None).unwrap();
    assert!(Engine::read(&path).unwrap().sources[index].as_ref().unwrap().bit_equal(&after));
    assert_same_slots("constants", &open(&path), &model);
    model.release_sources().unwrap();
    model.save_as(&path, Mode::Refittable, KeepSources::None).unwrap();
    assert!(Engine::read(&path).unwrap().sources[index].is_none(), "it is neither available nor the engine's own");
}

#[test]
fn sources_kept_by_reference_are_found_beside_the_engine() {
    let (case, folder) = (Case::open("conv_bn"), tempfile::tempdir().unwrap());
    saved(&case, KeepSources::Reference, folder.path());
    // Both files are moved together.
    let elsewhere = tempfile::tempdir().unwrap();
    for file in ["engine.rgf", "weights.safetensors"] {
        fs::rename(folder.path().join(file), elsewhere.path().join(file)).unwrap();
    }
    let engine = Engine::read(elsewhere.path().join("engine.rgf")).unwrap();
    assert!(engine.sources.iter().zip(&engine.refit_map.sources).all(|(t, s)| t.is_none() || !s.kind.in_state_dict()));
    let kept = engine.manifest().iter().filter(|entry| matches!(entry.kept, Kept::File(_))).count();
    assert_eq!(kept, own_weights(&case.compile()).len());
    let part = one("bn.weight", case.weights_b().get("bn.weight").unwrap().clone());
    open(&elsewhere.path().join("engine.rgf")).refit(&part, &PARTIAL).unwrap();
}

#[test]
fn a_weight_file_that_is_gone_or_changed_is_told_by_name() {
    let case = Case::open("conv_bn");
    let part = one("bn.weight", case.weights_b().get("bn.weight").unwrap().clone());
    let spoil: [(&str, fn(&Path)); 4] = [
        ("cannot be read (it is not a regular file)", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        ("cannot be read", |path| fs::remove_file(path).unwrap()),
        ("cannot be read", |path| fs::write(path, b"something else").unwrap()),
        ("has changed", |path| {
            let mut bytes = fs::read(path).unwrap();
            let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            bytes[header..].iter_mut().for_each(|byte| *byte ^= 1);
            fs::write(path, bytes).unwrap();
        }),
    ];
    for (why, spoil) in spoil {
        let folder = tempfile::tempdir().unwrap();
        let model = saved(&case, KeepSources::Reference, folder.path());
        let before = case.model(case.compile());
        spoil(&folder.path().join("weights.safetensors"));
        let found = problems(model.refit(&part, &PARTIAL));
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found.iter().all(|p| p.what().contains(why) && p.what().contains("give this source too")), "{found:?}");
        assert_same_slots("after a refusal", &model, &before);
        // A complete refit needs nothing from the file.
        model.refit(&case.weights_b(), &FULL).unwrap();
    }
}

#[test]
fn what_no_file_holds_is_embedded_by_an_engine_that_keeps_references() {
    let (case, folder) = (Case::open("mlp_gelu"), tempfile::tempdir().unwrap());
    let model = saved(&case, KeepSources::Reference, folder.path());
    let (name, tensor) = case.weights_b().iter().next().map(|(n, t)| (n.to_owned(), t.clone())).unwrap();
    // In memory, not in a file.
    let in_memory =
        Tensor::new(tensor.dtype(), tensor.shape().to_vec(), AlignedVec::copy_of(tensor.bytes()).into()).unwrap();
    model.refit(&one(&name, in_memory), &PARTIAL).unwrap();
    let path = folder.path().join("mixed.rgf");
    model.save_as(&path, Mode::Refittable, KeepSources::Reference).unwrap();
    let engine = Engine::read(&path).unwrap();
    let embedded: Vec<&str> =
        engine.manifest().iter().filter(|e| e.kept == Kept::Embedded).map(|e| e.info.name.as_str()).collect();
    assert_eq!(embedded, [name]);
    assert_same_slots("mixed", &open(&path), &model);
}

#[test]
fn adapters_become_part_of_what_is_kept() {
    let case = Case::open("mlp_gelu");
    let base = own_weights(&case.compile());
    let (name, weight) = base.iter().find(|(_, tensor)| tensor.shape().len() == 2).unwrap();
    let (rows, cols) = (weight.shape()[0], weight.shape()[1]);
    let stem = name.strip_suffix(".weight").unwrap();
    let ramp = |n: usize| (0..n).map(|i| (i % 7) as f32 * 0.01).collect::<Vec<_>>();
    let factors = StateDict::from_iter([
        (format!("base_model.model.{stem}.lora_A.weight"), Tensor::from_slice(&[2, cols], &ramp(2 * cols))),
        (format!("base_model.model.{stem}.lora_B.weight"), Tensor::from_slice(&[rows, 2], &ramp(2 * rows))),
    ]);
    for keep in KeepSources::ALL {
        let folder = tempfile::tempdir().unwrap();
        let model = saved(&case, keep, folder.path());
        if keep == KeepSources::None {
            // The pristine weight is needed to merge with.
            model.refit(&base, &FULL.changed(regraft::Changed::All)).unwrap();
        }
        let adapter =
            Adapter::from_state_dict("style", &factors, AdapterOptions::new().alpha(2.0), model.refit_map()).unwrap();
        model.adapters().set(&[(Arc::new(adapter), 1.0)]).unwrap();
        let path = folder.path().join("styled.rgf");
        model.save_as(&path, Mode::Refittable, keep).unwrap();
        let loaded = open(&path);
        assert_same_slots(keep.name(), &loaded, &model);
        assert!(loaded.adapters().active().is_empty());
    }
}

#[test]
fn damaged_weights_of_an_opened_engine_are_refused_before_they_are_used() {
    for keep in [KeepSources::Embedded, KeepSources::None] {
        let (case, folder) = (Case::open("mlp_gelu"), tempfile::tempdir().unwrap());
        saved(&case, keep, folder.path());
        let path = folder.path().join("engine.rgf");
        let mut bytes = fs::read(&path).unwrap();
        // Weights lie on pages, after the section that says what they are for.
        let at = 4096 + 20;
        bytes[at] ^= 1;
        let damaged = folder.path().join("damaged.rgf");
        fs::write(&damaged, bytes).unwrap();
        assert!(Engine::read(&damaged).is_err());
        let model = open(&damaged);
        let error = model.run(&case.tensors("input")).unwrap_err().to_string();
        assert!(error.contains("damaged.rgf") && error.contains("section"), "{error}");
        assert!(model.check_file().is_err());
        assert!(model.refit(&case.weights_b(), &FULL).is_err());
        assert!(model.to_engine(Mode::Refittable, KeepSources::Embedded).is_err());
    }
}

#[test]
fn runs_of_a_prepacked_engine_need_its_slots_and_refits_its_sources() {
    let (case, folder) = (Case::open("mlp_gelu"), tempfile::tempdir().unwrap());
    saved(&case, KeepSources::Prepacked, folder.path());
    let path = folder.path().join("engine.rgf");
    let mut bytes = fs::read(&path).unwrap();
    // Sources come before slots, on a page of their own.
    bytes[4096 + 20] ^= 1;
    let damaged = folder.path().join("damaged.rgf");
    fs::write(&damaged, bytes).unwrap();
    let model = open(&damaged);
    let plain = case.model(case.compile());
    let inputs = case.tensors("input");
    assert_same("its slots are sound", &model.run(&inputs).unwrap(), &plain.run(&inputs).unwrap());
    let error = model.refit(&case.weights_b(), &FULL).unwrap_err().to_string();
    assert!(error.contains("section `sources`"), "{error}");
    assert!(model.check_file().is_err());
}

#[test]
fn digests_travel_with_engines() {
    let case = Case::open("conv_bn");
    let folder = tempfile::tempdir().unwrap();
    let engine = through_a_file(&case.compile(), folder.path());
    assert!(engine.digests.iter().all(Option::is_some));
    let stripped = through_a_file(&engine.stripped(), folder.path());
    let own = own_weights(&case.compile());
    let options = MatchOptions::default();
    let given = |weights: &StateDict, same| stripped.check(weights, same, &options).map(|found| found.given);
    assert_eq!(given(&own, true), Ok(own.len()));
    assert_eq!(given(&case.weights_b(), false), Ok(own.len()));
    let differing = given(&case.weights_b(), true).unwrap_err().problems;
    assert!(differing.iter().all(|p| matches!(p, Problem::NotIdentical { .. })), "{differing:?}");
    let mut other = StateDict::new();
    other.insert("conv.weight", Tensor::from_slice(&[1], &[0f32]));
    other.insert("conv.wieght", Tensor::from_slice(&[1], &[0f32]));
    let found = given(&other, false).unwrap_err().problems;
    assert!(found.iter().any(|p| matches!(p, Problem::Mismatch { name, .. } if name == "conv.weight")));
    assert!(found.iter().any(|p| matches!(p, Problem::Unknown { .. })));
    assert!(found.iter().any(|p| matches!(p, Problem::Missing { name, .. } if name == "bn.bias")));
}
