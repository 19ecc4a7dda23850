//! What callers in C can do wrong.

use std::{
    ffi::{CStr, CString, c_char},
    path::Path,
    ptr,
};

use regraft::Compiler;

use crate::*;

fn last() -> String {
    // SAFETY: a call of this thread has failed, and none comes before the message is copied.
    unsafe { CStr::from_ptr(regraft_last_error()) }.to_str().expect("UTF-8").to_owned()
}

/// A model that is freed at the end.
struct Loaded(*mut RegraftModel);

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: it was loaded, and is freed here alone.
        unsafe { regraft_model_free(self.0) };
    }
}

fn loaded() -> Loaded {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.rgf");
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/fixtures/mlp_gelu.pt2");
    Compiler::new().compile(program).expect("a program").engine.write(&path).expect("it is written");
    let path = CString::new(path.to_str().expect("UTF-8")).expect("no zero");
    let mut model = ptr::null_mut();
    // SAFETY: the path ends with a zero, and the model can be written to.
    let status = unsafe { regraft_model_load(path.as_ptr(), ptr::null(), 1, &mut model) };
    assert_eq!(status, RegraftStatus::Ok, "{}", last());
    Loaded(model)
}

const ONES: [f32; 30] = [1.0; 30];
const SHAPE: [usize; 2] = [3, 10];

/// The input that the program takes.
fn input(name: *const c_char) -> RegraftTensor {
    let (data, byte_count) = (ONES.as_ptr().cast(), size_of_val(&ONES));
    RegraftTensor { name, dtype: c"f32".as_ptr(), shape: SHAPE.as_ptr(), rank: 2, data, byte_count }
}

fn run(model: &Loaded, inputs: &[RegraftTensor]) -> (RegraftStatus, *mut RegraftOutputs) {
    let mut outputs = ptr::dangling_mut();
    // SAFETY: the model is loaded, and the tensors are those of `input` or refused before they are read.
    let status = unsafe { regraft_model_run(model.0, inputs.as_ptr(), inputs.len(), &mut outputs) };
    (status, outputs)
}

#[test]
fn null_pointers_are_refused_by_name() {
    let mut model = ptr::dangling_mut();
    // SAFETY: null pointers are allowed, and what is written to can be.
    unsafe {
        assert_eq!(regraft_model_load(ptr::null(), ptr::null(), 1, &mut model), RegraftStatus::Argument);
        assert!(model.is_null(), "a failure leaves no handle");
        assert_eq!(last(), "path is NULL");
        assert_eq!(regraft_model_load(c"x.rgf".as_ptr(), ptr::null(), 1, ptr::null_mut()), RegraftStatus::Argument);
        assert_eq!(last(), "model is NULL");
        let mut outputs = ptr::null_mut();
        assert_eq!(regraft_model_run(ptr::null(), ptr::null(), 0, &mut outputs), RegraftStatus::Argument);
        assert_eq!(last(), "model is NULL");
        assert_eq!(regraft_model_refit(ptr::null(), ptr::null(), false, ptr::null_mut()), RegraftStatus::Argument);
        assert_eq!(regraft_model_save(ptr::null(), ptr::null()), RegraftStatus::Argument);
        assert_eq!(regraft_outputs_get(ptr::null(), 0, ptr::null_mut()), RegraftStatus::Argument);
        assert_eq!((regraft_model_input_count(ptr::null()), regraft_outputs_count(ptr::null())), (0, 0));
        assert!(regraft_model_output_name(ptr::null(), 0).is_null());
        regraft_model_free(ptr::null_mut());
        regraft_outputs_free(ptr::null_mut());
    }
    let model = loaded();
    // SAFETY: as above, on a model that is loaded.
    unsafe {
        assert_eq!(regraft_model_run(model.0, ptr::null(), 1, &mut ptr::null_mut()), RegraftStatus::Argument);
        assert_eq!(last(), "inputs is NULL");
        assert_eq!(regraft_model_set_adapters(model.0, ptr::null(), 2, ptr::null_mut()), RegraftStatus::Argument);
        assert_eq!(last(), "adapters is NULL");
        let adapter = RegraftAdapter { path: ptr::null(), name: ptr::null(), scale: 1.0 };
        assert_eq!(regraft_model_set_adapters(model.0, &adapter, 1, ptr::null_mut()), RegraftStatus::Argument);
        assert_eq!(last(), "adapters[0].path is NULL");
    }
}

#[test]
fn engines_devices_and_texts_are_checked() {
    let mut model = ptr::null_mut();
    let mut load = |path: &CStr, device: *const c_char, threads| {
        // SAFETY: texts end with a zero, and the model can be written to.
        unsafe { regraft_model_load(path.as_ptr(), device, threads, &mut model) }
    };
    assert_eq!(load(c"missing.rgf", ptr::null(), 1), RegraftStatus::Engine);
    assert!(last().contains("missing.rgf"), "{}", last());
    assert_eq!(load(c"x.rgf", c"tpu".as_ptr(), 1), RegraftStatus::Argument);
    assert!(last().contains("`tpu`"), "{}", last());
    assert_eq!(load(c"x.rgf", ptr::null(), usize::MAX), RegraftStatus::Argument);
    assert_eq!(load(c"\xff", ptr::null(), 1), RegraftStatus::Argument);
    assert!(last().starts_with("path is not UTF-8"), "{}", last());
    assert!(model.is_null());
}

#[test]
fn inputs_are_checked_before_they_are_read() {
    let model = loaded();
    // SAFETY: the model is loaded.
    let name = unsafe { regraft_model_input_name(model.0, 0) };
    let good = input(name);
    let (status, outputs) = run(&model, &[good]);
    assert_eq!(status, RegraftStatus::Ok, "{}", last());
    // SAFETY: the outputs were given and are freed once; `tensor` can be written to.
    unsafe {
        assert_eq!(regraft_outputs_count(outputs), regraft_model_output_count(model.0));
        let mut tensor = input(ptr::null());
        assert_eq!(regraft_outputs_get(outputs, 0, &mut tensor), RegraftStatus::Ok);
        assert_eq!(CStr::from_ptr(tensor.name), CStr::from_ptr(regraft_model_output_name(model.0, 0)));
        assert_eq!(CStr::from_ptr(tensor.dtype), c"f32");
        assert_eq!(regraft_outputs_get(outputs, 99, &mut tensor), RegraftStatus::Argument);
        regraft_outputs_free(outputs);
    }
    let flag = [2u8];
    let refused = [
        (RegraftTensor { byte_count: 8, ..good }, "inputs[0]: f32[3, 10] takes 120 bytes, found 8"),
        (RegraftTensor { data: ptr::null(), ..good }, "inputs[0].data is NULL"),
        (RegraftTensor { dtype: c"f33".as_ptr(), ..good }, "inputs[0].dtype: there is no dtype `f33`"),
        (RegraftTensor { dtype: ptr::null(), ..good }, "inputs[0].dtype is NULL"),
        (RegraftTensor { rank: usize::MAX, ..good }, "inputs[0].shape: a count of"),
        (RegraftTensor { shape: SHAPE.as_ptr().cast::<u8>().wrapping_add(1).cast(), ..good }, "inputs[0].shape is not"),
        (
            RegraftTensor { dtype: c"bool".as_ptr(), rank: 0, data: flag.as_ptr().cast(), byte_count: 1, ..good },
            "inputs[0].data: an element of a bool tensor",
        ),
    ];
    for (tensor, message) in refused {
        let (status, outputs) = run(&model, &[tensor]);
        assert_eq!(status, RegraftStatus::Argument);
        assert!(outputs.is_null());
        assert!(last().starts_with(message), "{}", last());
    }
    for inputs in [vec![], vec![input(c"other".as_ptr())], vec![good, good]] {
        assert_eq!(run(&model, &inputs).0, RegraftStatus::Inputs, "{}", last());
    }
    assert_eq!(run(&model, &[good, input(ptr::null())]).0, RegraftStatus::Argument);
}

#[test]
fn a_refit_from_memory_keeps_nothing_of_the_caller() {
    let model = loaded();
    let sums = |model: &Loaded| {
        let (status, outputs) = run(model, &[input(ptr::null())]);
        assert_eq!(status, RegraftStatus::Ok, "{}", last());
        let mut tensor = input(ptr::null());
        // SAFETY: the outputs are freed after they were copied.
        unsafe {
            assert_eq!(regraft_outputs_get(outputs, 0, &mut tensor), RegraftStatus::Ok);
            let values = std::slice::from_raw_parts(tensor.data.cast::<f32>(), tensor.byte_count / 4).to_vec();
            regraft_outputs_free(outputs);
            values
        }
    };
    let before = sums(&model);
    let mut bias = vec![0.5f32; 16];
    let shape = [16];
    let tensor = RegraftTensor {
        name: c"0.bias".as_ptr(),
        dtype: c"f32".as_ptr(),
        shape: shape.as_ptr(),
        rank: 1,
        data: bias.as_ptr().cast(),
        byte_count: 64,
    };
    let mut done = RegraftRefit::default();
    let refit = |tensors: &[RegraftTensor], done: &mut RegraftRefit| {
        // SAFETY: the model is loaded, and the tensors say what they are.
        unsafe { regraft_model_refit_tensors(model.0, tensors.as_ptr(), tensors.len(), true, done) }
    };
    assert_eq!(refit(&[tensor], &mut done), RegraftStatus::Ok, "{}", last());
    assert_eq!(done.changed_sources, 1);
    let after = sums(&model);
    assert_ne!(before, after);
    bias.fill(f32::NAN);
    drop(bias);
    assert_eq!(sums(&model), after);

    let zeros = [0f32; 16];
    let zeros = RegraftTensor { data: zeros.as_ptr().cast(), ..tensor };
    assert_eq!(refit(&[zeros, zeros], &mut done), RegraftStatus::Argument);
    assert_eq!(last(), "two weights are called `0.bias`");
    assert_eq!(refit(&[RegraftTensor { name: ptr::null(), ..zeros }], &mut done), RegraftStatus::Argument);
    assert_eq!(refit(&[RegraftTensor { name: c"0.bais".as_ptr(), ..zeros }], &mut done), RegraftStatus::Weights);
    assert!(last().contains("0.bias"), "{}", last());
    assert_eq!(sums(&model), after);
}
