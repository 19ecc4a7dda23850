//! Models, as handles.

use std::{
    ffi::{CString, c_char},
    ptr,
    sync::Arc,
};

use regraft::{
    Adapter, AdapterOptions, DeviceName, Model, ModelExt as _, RefitOptions, RefitReport, StateDict, Threads,
};

use crate::{
    failure::{Failure, RegraftStatus, guarded, quiet},
    pointers::{Place, elements, free, text},
    tensor::{RegraftOutputs, RegraftTensor, read_all, state_dict},
};

/// The largest number of threads that a caller may ask for.
const MOST_THREADS: usize = 1024;

/// An engine with the weights that serve. All functions on it but regraft_model_free may be called from several threads at once: a
/// run sees one set of weights from start to end, and a refit blocks no run.
pub struct RegraftModel {
    model: Model,
    inputs: Vec<CString>,
    outputs: Vec<CString>,
}

const fn is_shared<T: Send + Sync>() {}
const _: () = is_shared::<RegraftModel>();
const _: () = is_shared::<RegraftOutputs>();

/// An adapter to serve. The texts stay the caller's, and are read during the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RegraftAdapter {
    /// Its file or folder.
    pub path: *const c_char,
    /// Its name, which no other adapter may have; NULL for the name of the file or folder.
    pub name: *const c_char,
    /// Its scale; 1 as it was trained.
    pub scale: f64,
}

/// What a refit did.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RegraftRefit {
    /// The number of sources that were given and differ from before.
    pub changed_sources: usize,
    /// The number of slots that were rebuilt.
    pub rebuilt_slots: usize,
    /// The bytes of these slots.
    pub bytes: usize,
    /// How long the refit took, in milliseconds; reading of files is not in it.
    pub milliseconds: f64,
}

impl From<RefitReport> for RegraftRefit {
    fn from(report: RefitReport) -> Self {
        RegraftRefit {
            changed_sources: report.applied.len(),
            rebuilt_slots: report.recomputed_slots.len(),
            bytes: report.bytes,
            milliseconds: report.phases_ms.total(),
        }
    }
}

/// The model of a handle.
///
/// # Safety
/// `model` is NULL, or comes from `regraft_model_load` and is not freed during `'a`.
unsafe fn handle<'a>(model: *const RegraftModel) -> Result<&'a RegraftModel, Failure> {
    // SAFETY: the caller's promise.
    unsafe { model.as_ref() }.ok_or_else(|| Failure::null("model"))
}

/// Loads an engine file, and writes the model to `model`; on failure, NULL. The caller frees it with regraft_model_free. `device` is
/// "cpu", "cuda" or "cuda:N", or NULL for the CPU. `threads` is the number of threads of a run; 0 stands for one per core.
///
/// # Safety
/// `path` and `device` are NULL or end with a zero; `model` is NULL or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regraft_model_load(
    path: *const c_char,
    device: *const c_char,
    threads: usize,
    model: *mut *mut RegraftModel,
) -> RegraftStatus {
    guarded(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { Place::for_handle(model, "model") }?;
        // SAFETY: the caller's promise.
        let path = unsafe { text(path, "path") }?;
        let device = if device.is_null() {
            DeviceName::Cpu
        } else {
            // SAFETY: the caller's promise.
            let name = unsafe { text(device, "device") }?;
            name.parse().map_err(|error: regraft::UnknownDevice| Failure::argument(error.to_string()))?
        };
        place.give(load(path, device, threads)?);
        Ok(())
    })
}

fn load(path: &str, device: DeviceName, threads: usize) -> Result<RegraftModel, Failure> {
    let threads = match threads {
        0 => Threads::Auto,
        1..=MOST_THREADS => Threads::Count(threads),
        _ => return Err(Failure::argument(format!("threads: {threads} is more than {MOST_THREADS}"))),
    };
    let model = Model::load_on(path, regraft::device(device, threads)?)?;
    let c_names = |names: Vec<&str>| names.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
    let with_zero =
        |error| Failure::argument(format!("{path}: a name of an input or an output contains a zero: {error}"));
    let inputs = c_names(model.input_names()).map_err(with_zero)?;
    let outputs = c_names(model.output_names()).map_err(with_zero)?;
    Ok(RegraftModel { model, inputs, outputs })
}

/// Frees a model; does nothing for NULL. Outputs of its runs stay valid.
///
/// # Safety
/// `model` is NULL, or comes from regraft_model_load and was not freed; no other call uses it, in any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regraft_model_free(model: *mut RegraftModel) {
    // SAFETY: the caller's promise.
    quiet((), || unsafe { free(model) });
}

/// The number of inputs that the program takes; 0 for NULL.
///
/// # Safety
/// `model` is NULL, or comes from regraft_model_load and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regraft_model_input_count(model: *const RegraftModel) -> usize {
    // SAFETY: the caller's promise.
    quiet(0, || unsafe { handle(model) }.map_or(0, |model| model.inputs.len()))
}

/// The name of input number `index`, valid until the model is freed; NULL when there is none.
///
/// # Safety
/// As for regraft_model_input_count.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regraft_model_input_name(model: *const RegraftModel, index: usize) -> *const c_char {
    // SAFETY: the caller's promise.
    quiet(ptr::null(), || unsafe { handle(model) }.map_or(ptr::null(), |model| name_of(&model.inputs, index)))
}

/// The number of outputs that a run returns; 0 for NULL.
///
/// # Safety
/// As for regraft_model_input_count.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regraft_model_output_count(model: *const RegraftModel) -> usize {
    // SAFETY: the caller's promise.
    quiet(0, || unsafe { handle(model) }.map_or(0, |model| model.outputs.len()))
}

/// The name of output number `index`, valid until the model is freed; NULL when there is none.
///
/// # Safety
/// As for regraft_model_input_count.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regraft_model_output_name(model: *const RegraftModel, index: usize) -> *const c_char {
    // SAFETY: the caller's promise.
    quiet(ptr::null(), || unsafe { handle(model) }.map_or(ptr::null(), |model| name_of(&model.outputs, index)))
}

fn name_of(names: &[CString], index: usize) -> *const c_char {
    names.get(index).map_or(ptr::null(), |name| name.as_ptr())
}

/// Runs the program once, and writes the outputs to `outputs`; on failure, NULL. The caller frees them with regraft_outputs_free.
/// Either all inputs have names, and may be in any order, or none has one, and they are in the program's order.
///
/// # Safety
/// `model` is as for regraft_model_input_count; `inputs` is NULL or points to `count` tensors whose pointers are valid for what they
/// state, and nobody writes to them during the call; `outputs` is NULL or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regraft_model_run(
    model: *const RegraftModel,
    inputs: *const RegraftTensor,
    count: usize,
    outputs: *mut *mut RegraftOutputs,
) -> RegraftStatus {
    guarded(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { Place::for_handle(outputs, "outputs") }?;
        // SAFETY: the caller's promise.
        let model = unsafe { handle(model) }?;
        // SAFETY: the caller's promise.
        let inputs = unsafe { read_all(inputs, count, "inputs") }?;
        let tensors = if inputs.iter().all(|(name, _)| name.is_none()) {
            model.model.run(&inputs.into_iter().map(|(_, tensor)| tensor).collect::<Vec<_>>())?
        } else {
            let mixed = || Failure::argument("some inputs have names and some have none");
            let named = inputs.into_iter().map(|(name, tensor)| Ok((name.ok_or_else(mixed)?, tensor)));
            let named = named.collect::<Result<Vec<_>, Failure>>()?;
            model.model.run_named(named)?.into_iter().map(|(_, tensor)| tensor).collect()
        };
        place.give(RegraftOutputs::new(tensors, &model.outputs));
        Ok(())
    })
}

/// Gives the model the weights of a file or folder, all or nothing. It also binds a stripped engine. With `partial` the file may hold
/// some of them, and the others are kept. What was done is written to `done`, unless that is NULL.
///
/// # Safety
/// `model` is as for regraft_model_input_count; `weights` is NULL or ends with a zero; `done` is NULL or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regraft_model_refit(
    model: *const RegraftModel,
    weights: *const c_char,
    partial: bool,
    done: *mut RegraftRefit,
) -> RegraftStatus {
    guarded(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { Place::optional(done, "done") }?;
        // SAFETY: the caller's promise.
        let (model, path) = unsafe { (handle(model)?, text(weights, "weights")?) };
        refit(model, &regraft::open_weights(path)?, partial, place)
    })
}

/// As regraft_model_refit, with weights in memory, by name. They are read during the call, and what the model needs later is copied.
///
/// # Safety
/// `model` is as for regraft_model_input_count; `weights` is NULL or points to `count` tensors whose pointers are valid for what they
/// state, and nobody writes to them during the call; `done` is NULL or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regraft_model_refit_tensors(
    model: *const RegraftModel,
    weights: *const RegraftTensor,
    count: usize,
    partial: bool,
    done: *mut RegraftRefit,
) -> RegraftStatus {
    guarded(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { Place::optional(done, "done") }?;
        // SAFETY: the caller's promise.
        let (model, weights) = unsafe { (handle(model)?, state_dict(weights, count)?) };
        refit(model, &weights, partial, place)
    })
}

fn refit(
    model: &RegraftModel,
    weights: &StateDict,
    partial: bool,
    done: Option<Place<RegraftRefit>>,
) -> Result<(), Failure> {
    let options = RefitOptions::new().partial(partial);
    let report = model.model.refit(weights, &options)?;
    if let Some(done) = done {
        done.write(report.into());
    }
    Ok(())
}

/// Serves these adapters and no others, applied to the weights without any; a `count` of 0 takes all away. What was done is written to
/// `done`, unless that is NULL.
///
/// # Safety
/// `model` is as for regraft_model_input_count; `adapters` is NULL or points to `count` of them, whose texts are NULL or end with a
/// zero; `done` is NULL or can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regraft_model_set_adapters(
    model: *const RegraftModel,
    adapters: *const RegraftAdapter,
    count: usize,
    done: *mut RegraftRefit,
) -> RegraftStatus {
    guarded(|| {
        // SAFETY: the caller's promise.
        let place = unsafe { Place::optional(done, "done") }?;
        // SAFETY: the caller's promise.
        let model = unsafe { handle(model) }?;
        // SAFETY: the caller's promise.
        let given = unsafe { elements(adapters, count, "adapters") }?;
        // SAFETY: the caller's promise.
        let open = |(index, adapter)| unsafe { open_adapter(model, adapter, index) };
        let opened = given.iter().enumerate().map(open).collect::<Result<Vec<_>, _>>()?;
        let report = model.model.adapters().set(&opened)?;
        if let Some(place) = place {
            place.write(report.into());
        }
        Ok(())
    })
}

/// # Safety
/// The texts of `given` are NULL or end with a zero.
unsafe fn open_adapter(
    model: &RegraftModel,
    given: &RegraftAdapter,
    index: usize,
) -> Result<(Arc<Adapter>, f64), Failure> {
    // SAFETY: the caller's promise.
    let path = unsafe { text(given.path, &format!("adapters[{index}].path")) }?;
    let mut adapter = regraft::open_adapter(path, &AdapterOptions::default(), model.model.refit_map())?;
    if !given.name.is_null() {
        // SAFETY: the caller's promise.
        adapter.name = unsafe { text(given.name, &format!("adapters[{index}].name")) }?.to_owned();
    }
    Ok((Arc::new(adapter), given.scale))
}

/// Saves the model as a refittable engine file with the weights that serve; adapters become part of them. A file that is there is
/// replaced once the new one is whole.
///
/// # Safety
/// `model` is as for regraft_model_input_count; `path` is NULL or ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regraft_model_save(model: *const RegraftModel, path: *const c_char) -> RegraftStatus {
    guarded(|| {
        // SAFETY: the caller's promise.
        let (model, path) = unsafe { (handle(model)?, text(path, "path")?) };
        model.model.save(path)?;
        Ok(())
    })
}
