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
pub mod quantize;

use regraft_backend::Lowering;
use regraft_ir::{Graph, IrError, ops::WeightFormat};
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

/// What a program of f32 is computed in, and its weights are stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Precision {
    /// The float, f16 or bf16, that a program of f32 is computed in; as it is if `None`.
    pub dtype: Option<DType>,
    /// The small integers that weights of linear layers are stored as; as they are if `None`.
    pub weights: Option<WeightFormat>,
}

/// All passes in order. Rotary embeddings come first: canonicalizing raises slices in front of the permute that shows heads, and the halves of
/// a head are no longer slices of it.
pub const PASSES: &[Pass] = &[
    passes::recompose_rotary::PASS,
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
    passes::pair_convs::PASS,
];

/// Runs all passes as the backend wants them; `observe` sees the graph after each. With a `dtype` a program of f32 is
/// [narrowed](narrow::narrow) to it, once batch norms have been folded: their factors are applied before weights are rounded. Weights
/// are [rounded](quantize::quantize) to small integers last.
///
/// # Errors
/// [`CompileError::Pass`] naming the pass; [`CompileError::Weights`] when the backend has no kernels for weights stored so.
pub fn lower(
    graph: &mut Graph,
    lowering: &dyn Lowering,
    precision: Precision,
    mut observe: impl FnMut(&'static str, &Graph),
) -> Result<(), CompileError> {
    let Precision { dtype, weights } = precision;
    if let Some(format) = weights.filter(|format| !lowering.stores_weights(*format)) {
        return Err(CompileError::Weights { format: format.name() });
    }
    for pass in PASSES {
        run_pass(pass, graph, lowering)?;
        observe(pass.name, graph);
        if let (Some(dtype), true) = (dtype, pass.name == passes::fold_batch_norm::PASS.name) {
            narrow::narrow(graph, dtype).map_err(|error| CompileError::Pass { pass: "narrow", error })?;
            run_pass(&passes::canonicalize::PASS, graph, lowering)?;
            observe("narrow", graph);
        }
    }
    if let Some(format) = weights {
        let at = |error| CompileError::Pass { pass: "quantize", error };
        quantize::quantize(graph, format).map_err(at)?;
        graph.compact().map_err(at)?;
        observe("quantize", graph);
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
