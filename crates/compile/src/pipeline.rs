//! The stages in order: lower, split, select, write the recipes.

use regraft_backend::{Codegen, Device};
use regraft_engine::Engine;
use regraft_ir::Graph;
use regraft_tensor::Tensor;

use crate::{
    CompileError,
    build::{self, Built},
    lower::{self, Precision},
    tune::{Records, TuneReport, Tuner, Tuning},
};

/// The two halves of a backend.
#[derive(Clone, Copy)]
pub struct Backend<'a> {
    /// What the engine is compiled for.
    pub codegen: &'a dyn Codegen,
    /// A device of that kind, to measure on; tuning needs one.
    pub device: Option<&'a dyn Device>,
}

impl<'a> Backend<'a> {
    /// Both halves of a device.
    pub fn of(device: &'a dyn Device) -> Self {
        Backend { codegen: device.codegen(), device: Some(device) }
    }
}

/// What to compile to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options<'a> {
    /// Bind the engine to the weights it is built with.
    pub identical: bool,
    /// What a program of f32 is computed in, and its weights are stored as.
    pub precision: Precision,
    /// How to choose between kernels.
    pub tuning: Tuning<'a>,
}

/// What compiling gives.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Output {
    /// The engine.
    pub engine: Engine,
    /// The choices between kernels of this build: pinned, they give the same plan again.
    pub records: Records,
    /// How the choices were made.
    pub tune_report: TuneReport,
}

/// Something to look at between the stages.
///
/// ```
/// use regraft_compile::pipeline::Observer;
/// use regraft_ir::Graph;
///
/// struct Sizes;
///
/// impl Observer for Sizes {
///     fn pass(&mut self, name: &'static str, graph: &Graph) {
///         println!("{name}: {} nodes", graph.nodes().len());
///     }
/// }
/// ```
pub trait Observer {
    /// The program as it was imported.
    fn imported(&mut self, _graph: &Graph) {}
    /// The program after a pass.
    fn pass(&mut self, _name: &'static str, _graph: &Graph) {}
    /// Candidates for problem `number` of `count` are about to be measured, and about `seconds` are left for these and the rest.
    fn measuring(&mut self, _number: usize, _count: usize, _seconds: f64) {}
    /// The plan and the recipes.
    fn built(&mut self, _built: &Built) {}
}

/// Looks at nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// Compiles a program to a refittable engine that holds the available sources; to a stripped one when a source of the state dict
/// is not available. `weights[i]` belongs to source `i` of `graph`.
///
/// # Errors
/// [`CompileError`]; the program itself was checked when it was imported. Pinned tuning records must fit.
pub fn compile(
    mut graph: Graph,
    weights: &[Option<Tensor>],
    backend: Backend<'_>,
    options: Options<'_>,
    observer: &mut dyn Observer,
) -> Result<Output, CompileError> {
    observer.imported(&graph);
    lower::lower(&mut graph, backend.codegen.lowering(), options.precision, |name, graph| observer.pass(name, graph))?;
    let mut tuner = Tuner::new(backend, options.tuning, observer)?;
    let built = build::build(&graph, backend.codegen, &mut tuner)?;
    let (records, tune_report) = tuner.finish();
    observer.built(&built);
    let engine = Engine::new(backend.codegen.target(), built.plan, built.refit_map);
    let engine = engine.with_weights(weights.to_vec(), options.identical);
    Ok(Output { engine, records, tune_report })
}
