//! The stages in order: lower, split, select, write the recipes.

use regraft_backend::Backend;
use regraft_engine::{Engine, Mode};
use regraft_ir::Graph;
use regraft_tensor::Tensor;

use crate::{
    CompileError,
    build::{self, Built},
    lower,
};

/// What to compile to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Bind the engine to the weights it is built with.
    pub identical: bool,
}

/// Something to look at between the stages.
pub trait Observer {
    /// The program as it was imported.
    fn imported(&mut self, _graph: &Graph) {}
    /// The program after a pass.
    fn pass(&mut self, _name: &'static str, _graph: &Graph) {}
    /// The plan and the recipes.
    fn built(&mut self, _built: &Built) {}
}

impl Observer for () {}

/// Compiles a program to a refittable engine that holds the sources at hand; to a stripped one when a state dict's source
/// is not at hand. `weights[i]` belongs to source `i` of `graph`.
///
/// # Errors
/// [`CompileError`]; the program itself was checked when it was imported.
pub fn compile(
    mut graph: Graph,
    weights: &[Option<Tensor>],
    backend: &dyn Backend,
    options: Options,
    observer: &mut dyn Observer,
) -> Result<Engine, CompileError> {
    observer.imported(&graph);
    lower::lower(&mut graph, |name, graph| observer.pass(name, graph))?;
    let built = build::build(&graph, backend)?;
    observer.built(&built);
    let count = built.refit_map.sources.len();
    let engine = Engine {
        mode: Mode::Stripped,
        target: backend.target(),
        plan: built.plan,
        refit_map: built.refit_map,
        identical: false,
        digests: vec![None; count],
        sources: vec![None; count],
        files: vec![None; count],
        slots: None,
        unverified: None,
    };
    Ok(engine.with_weights(weights.to_vec(), options.identical))
}
