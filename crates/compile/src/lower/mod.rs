//! Passes over the program, in the order of [`PASSES`].
//!
//! A pass is a function from graph to graph. What a machine likes is the [`Lowering`]'s to say. None looks at the values of sources, only at names, shapes and dtypes;
//! whatever folds is expressed as nodes over sources, which binding-time separation moves into recipes.

pub mod axes;
pub mod known;
pub mod matcher;
pub mod narrow;
pub mod passes;
pub mod pattern;

use regraft_backend::Lowering;
use regraft_ir::{Graph, IrError};
use regraft_tensor::DType;

use crate::CompileError;

/// A named pass.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Its name, as golden tests and `--dump` spell it.
    pub name: &'static str,
    /// Changes the graph. Dead nodes may be left behind; the pass manager compacts.
    pub run: fn(&mut Graph, &dyn Lowering) -> Result<(), IrError>,
}

/// All passes in order.
pub const PASSES: &[Pass] = &[
    passes::canonicalize::PASS,
    passes::recompose_activations::PASS,
    passes::recompose_attention::PASS,
    passes::fold_batch_norm::PASS,
    passes::join_linears::PASS,
    passes::channels_last::PASS,
    passes::canonicalize::PASS,
    passes::fuse_epilogue::PASS,
    passes::attention_layout::PASS,
    passes::common_subexpressions::PASS,
    passes::fuse_elementwise::PASS,
];

/// Runs all passes as the backend wants them; `observe` sees the graph after each. With `dtype`, f16 or bf16, a program of f32 is
/// [narrowed](narrow::narrow) to it, once batch norms have been folded: their factors are applied before weights are rounded.
///
/// # Errors
/// [`CompileError::Pass`] naming the pass.
pub fn lower(
    graph: &mut Graph,
    lowering: &dyn Lowering,
    dtype: Option<DType>,
    mut observe: impl FnMut(&'static str, &Graph),
) -> Result<(), CompileError> {
    for pass in PASSES {
        run_pass(pass, graph, lowering)?;
        observe(pass.name, graph);
        if let (Some(dtype), true) = (dtype, pass.name == passes::fold_batch_norm::PASS.name) {
            narrow::narrow(graph, dtype).map_err(|error| CompileError::Pass { pass: "narrow", error })?;
            run_pass(&passes::canonicalize::PASS, graph, lowering)?;
            observe("narrow", graph);
        }
    }
    Ok(())
}

/// Runs one pass, compacts the graph and, in debug and test builds, verifies it.
///
/// # Errors
/// [`CompileError::Pass`] naming the pass.
pub fn run_pass(pass: &Pass, graph: &mut Graph, lowering: &dyn Lowering) -> Result<(), CompileError> {
    let at = |error| CompileError::Pass { pass: pass.name, error };
    (pass.run)(graph, lowering).map_err(at)?;
    graph.compact().map_err(at)?;
    if cfg!(debug_assertions) {
        graph.verify().map_err(at)?;
    }
    Ok(())
}
