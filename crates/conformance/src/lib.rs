//! The suite that every backend runs: small programs exported from PyTorch with inputs, two sets of weights and PyTorch's
//! outputs for each (`fixtures/`), and the checks that hold for all of them.
#![forbid(unsafe_code)]
#![allow(clippy::missing_panics_doc, reason = "a test suite speaks by panicking")]

mod spoiled;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use regraft::{
    Engine, KeepSources, Mode, Model, Problem, RefitMap, RefitOptions, RefitReport, RuntimeError, RuntimeErrorKind,
    StateDict, Tensor, Threads, WeightsErrorKind, ir::Graph,
};
use regraft_backend::Device;
use regraft_backend_cpu::{CpuDevice, Isa};
use regraft_backend_mock::MockDevice;
use regraft_compile::{
    lower::Precision,
    pipeline::{Backend, Options, Output, Unobserved, compile},
    tune::Tuning,
};
use serde::Deserialize;

pub use self::spoiled::Spoiled;

/// All keys must be given.
pub const FULL: RefitOptions = RefitOptions::new();

/// Some keys may be given.
pub const PARTIAL: RefitOptions = RefitOptions::new().partial(true);

/// A program with its tensors.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name.
    pub name: String,
    tensors: StateDict,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
}

/// Where the fixtures are: in `REGRAFT_FIXTURES`, where tests run that were built elsewhere.
pub fn fixtures() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    std::env::var_os("REGRAFT_FIXTURES").map_or_else(built, PathBuf::from)
}

impl Case {
    /// The case called `name`.
    pub fn open(name: &str) -> Case {
        let path = fixtures().join(format!("{name}.safetensors"));
        let tensors = regraft::open_weights(&path).unwrap_or_else(|e| panic!("{e}"));
        Case { name: name.to_owned(), tensors }
    }

    /// All cases.
    pub fn all() -> Vec<Case> {
        let text = std::fs::read_to_string(fixtures().join("cases.json")).expect("the list of cases");
        let listed: Vec<Listed> = serde_json::from_str(&text).expect("a list of cases");
        listed.iter().map(|c| Case::open(&c.name)).collect()
    }

    /// The exported program.
    pub fn program(&self) -> PathBuf {
        fixtures().join(format!("{}.pt2", self.name))
    }

    /// The tensors `prefix.0`, `prefix.1`, ...
    pub fn tensors(&self, prefix: &str) -> Vec<Tensor> {
        (0..).map_while(|i| self.tensors.get(&format!("{prefix}.{i}")).cloned()).collect()
    }

    /// The second set of weights, by name.
    pub fn weights_b(&self) -> StateDict {
        self.tensors.iter().filter_map(|(n, t)| Some((n.strip_prefix("b/")?.to_owned(), t.clone()))).collect()
    }

    /// Compiles the program with its own weights (A).
    pub fn compile(&self) -> Engine {
        self.compile_with(&StateDict::new(), Isa::detect())
    }

    /// Compiles the program with weights of its own replaced by `weights`, for an instruction set.
    pub fn compile_with(&self, weights: &StateDict, isa: Isa) -> Engine {
        self.compile_tuned(weights, isa, Tuning::default()).engine
    }

    /// As [`Case::compile_with`], with kernels chosen by `tuning`.
    pub fn compile_tuned(&self, weights: &StateDict, isa: Isa, tuning: Tuning<'_>) -> Output {
        self.compile_by(weights, isa, Options { tuning, ..Options::default() })
    }

    /// As [`Case::compile_with`], computed and stored in narrower types.
    pub fn compile_in(&self, weights: &StateDict, precision: Precision) -> Engine {
        self.compile_by(weights, Isa::detect(), Options { precision, ..Options::default() }).engine
    }

    fn compile_by(&self, weights: &StateDict, isa: Isa, options: Options<'_>) -> Output {
        let imported = regraft_import::import_pt2(self.program()).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let mut tensors = imported.weights;
        for (source, tensor) in RefitMap::uses_of(&imported.graph).0.iter().zip(&mut tensors) {
            if let Some(given) = source.names().find_map(|name| weights.get(name)) {
                *tensor = Some(given.cast(source.dtype));
            }
        }
        build(imported.graph, &tensors, isa, options).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// The model of an engine that was compiled for this machine.
    pub fn model(&self, engine: Engine) -> Model {
        regraft::model(engine, backend(Isa::detect())).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
}

/// Compiles a program for the device of the suite, with the values of its sources.
///
/// # Errors
/// What the build refuses.
pub fn build(
    graph: Graph,
    weights: &[Option<Tensor>],
    isa: Isa,
    options: Options<'_>,
) -> Result<Output, regraft_compile::CompileError> {
    compile(graph, weights, Backend::of(&*backend(isa)), options, &mut Unobserved)
}

/// The model of a program in text form, for this machine.
pub fn model_of(program: &str, weights: &[Option<Tensor>]) -> Model {
    let graph = regraft::ir::text::parse(program).unwrap_or_else(|e| panic!("{e}"));
    let isa = Isa::detect();
    let built = build(graph, weights, isa, Options::default()).unwrap_or_else(|e| panic!("{e}"));
    regraft::model(built.engine, backend(isa)).unwrap_or_else(|e| panic!("{e}"))
}

/// The device of the suite: the CPU with two threads, or what `REGRAFT_TEST_DEVICE` names, whatever the instruction set. The tests
/// of `tests/mock.rs` run on a mock device around the CPU.
pub fn backend(isa: Isa) -> Arc<dyn Device> {
    static OTHER: OnceLock<Option<Arc<dyn Device>>> = OnceLock::new();
    let open = || {
        let name = std::env::var("REGRAFT_TEST_DEVICE").ok().filter(|name| !name.is_empty() && !is_on_mock())?;
        let name = name.parse().unwrap_or_else(|e| panic!("REGRAFT_TEST_DEVICE: {e}"));
        Some(regraft::device(name, Threads::Count(2)).unwrap_or_else(|e| panic!("REGRAFT_TEST_DEVICE: {e}")))
    };
    OTHER.get_or_init(open).clone().unwrap_or_else(|| around(CpuDevice::with_isa(isa, Some(2))))
}

/// The CPU, or a mock device around it in `tests/mock.rs`, which holds the tests of the other programs once more. A mock device
/// panics when it is dropped after anything broke the contract of devices.
pub fn around(cpu: CpuDevice) -> Arc<dyn Device> {
    let cpu = Arc::new(cpu);
    if is_on_mock() { Arc::new(MockDevice::new(cpu)) } else { cpu }
}

/// Whether this is the test program of the mock device.
pub fn is_on_mock() -> bool {
    let program = std::env::current_exe().ok();
    let name = program.as_deref().and_then(Path::file_stem).and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("mock-"))
}

/// Panics unless `got` is close to PyTorch's `want`: max |Δ| ≤ 1e-4 · max |want| and cosine ≥ 0.99999; integers are equal.
pub fn assert_close(what: &str, got: &[Tensor], want: &[Tensor]) {
    assert_eq!(got.len(), want.len(), "{what}: number of outputs");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()), "{what}: output {i}");
        let (a, b) = (got.to_f64_vec(), want.to_f64_vec());
        // Equal infinities and NaNs are not a difference.
        let apart = |(a, b): (&f64, &f64)| if a == b || (a.is_nan() && b.is_nan()) { 0.0 } else { (a - b).abs() };
        let difference = a.iter().zip(&b).map(apart).fold(0.0, |m: f64, d| if d.is_nan() { d } else { m.max(d) });
        let scale = b.iter().filter(|v| v.is_finite()).fold(0.0, |m: f64, v| m.max(v.abs()));
        let bound = if want.dtype().is_float() { 1e-4 * scale } else { 0.0 };
        assert!(difference <= bound, "{what}: output {i} differs by {difference:e}, largest value {scale:e}");
    }
}

/// Panics unless both are the same, bit for bit.
pub fn assert_same(what: &str, got: &[Tensor], want: &[Tensor]) {
    assert_eq!(got.len(), want.len(), "{what}: number of outputs");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(got.bit_equal(want), "{what}: output {i} is not the same");
    }
}

/// Panics unless two models' slots are the same, bit for bit.
pub fn assert_same_slots(what: &str, got: &Model, want: &Model) {
    let slots = |model: &Model| -> BTreeMap<String, Vec<u8>> {
        let generation = model.generation().expect("the model has weights");
        let named = generation.slots.iter().enumerate();
        named
            .map(|(i, slot)| {
                (model.plan().slot_name(i).to_owned(), slot.read().expect("the slot can be read").bytes().to_vec())
            })
            .collect()
    };
    let (got, want) = (slots(got), slots(want));
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{what}: slots");
    for (name, bytes) in &got {
        assert!(*bytes == want[name], "{what}: slot {name} is not the same");
    }
}

/// Stores an engine in a file and reads it again.
pub fn through_a_file(engine: &Engine, folder: &Path) -> Engine {
    let path = folder.join("engine.rgf");
    engine.write(&path).unwrap_or_else(|e| panic!("{e}"));
    Engine::read(&path).unwrap_or_else(|e| panic!("{e}"))
}

/// The model as a frozen engine.
pub fn frozen(model: &Model) -> Engine {
    model.to_engine(Mode::Frozen, KeepSources::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// The problems of weights that do not fit.
pub fn problems(result: Result<RefitReport, RuntimeError>) -> Vec<Problem> {
    let error = result.expect_err("the weights do not fit");
    match error.kind() {
        RuntimeErrorKind::Weights(WeightsErrorKind::Fit(misfit)) => misfit.problems.clone(),
        other => panic!("{other}"),
    }
}

/// A state dict of one tensor.
pub fn one(name: &str, tensor: Tensor) -> StateDict {
    StateDict::from_iter([(name.to_owned(), tensor)])
}

/// The state dict of the weights that an engine holds.
pub fn own_weights(engine: &Engine) -> StateDict {
    (engine.refit_map.sources.iter().zip(&engine.sources))
        .filter(|(info, _)| info.kind.in_state_dict())
        .map(|(info, tensor)| (info.name.clone(), tensor.clone().expect("the engine holds its sources")))
        .collect()
}
