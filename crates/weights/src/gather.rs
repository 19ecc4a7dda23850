//! Recipes compiled to one pass over memory.
//!
//! Most recipes only move elements: transpose, permute, slice, concatenate, scale by a vector, cast, pack. Such a
//! recipe is a set of strided views of its sources. [`GatherPlan::compile`] runs the recipe's graph over *views* in
//! place of tensors; when every node maps a view to a view, packing reads the sources once and writes the slot once.
//! A recipe of another form has no gather plan and is run by the reference evaluator, node by node.

mod moves;
mod views;

use std::{borrow::Cow, collections::HashMap};

use regraft_ir::{Graph, ValueId, eval};
use regraft_tensor::{DType, Tensor};

use self::views::Views;

pub use self::moves::{Move, MoveAxis, MovePlan};

use crate::{FormatId, VectorPlan};

/// A recipe as one pass over memory.
#[derive(Clone, Debug)]
pub enum GatherPlan {
    /// A plain slot: runs of sources of the slot's own dtype, one after the other.
    Copy {
        /// The runs: source index in the recipe, first element, number of elements.
        runs: Vec<(u32, usize, usize)>,
    },
    /// A plain f32 slot: a small vector that is computed.
    Vector(Computation),
    /// A slot of matrices, in whatever format.
    Matrices {
        /// For each matrix the pieces that make it up, side by side along `n`.
        matrices: Vec<Vec<Piece>>,
        /// Each computes a small vector that scales columns.
        scales: Vec<Computation>,
    },
}

/// A part of a recipe that is computed, not moved.
#[derive(Clone, Debug)]
pub struct Computation {
    /// Computes its one output.
    pub graph: Graph,
    /// For each source of `graph` its index in the recipe.
    pub sources: Vec<u32>,
    /// The same as a chain over vectors, when it is one.
    pub vector: Option<VectorPlan>,
}

/// Some columns of a packed matrix as a strided view of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Source index in the recipe.
    pub source: u32,
    /// First element.
    pub offset: usize,
    /// Sizes and strides of the parts of the row index, outermost first.
    pub k_dims: Vec<(usize, usize)>,
    /// Number of columns.
    pub n_len: usize,
    /// Distance of neighboring columns in the source.
    pub n_stride: usize,
    /// Factors per column: index into [`GatherPlan::Matrices::scales`] and the first element there.
    pub scale: Option<(u32, usize)>,
}

impl Piece {
    /// Whether packing meets whole stretches of rows of a source whose rows hold `cols` elements, so that adapters can be
    /// applied tile by tile on the way: either `k` or `n` runs inside a row, and the other one from row to row.
    pub fn tiles(&self, cols: usize) -> bool {
        if cols == 0 {
            return false;
        }
        let start = self.offset % cols;
        let steps_of_rows = |stride: usize| stride.is_multiple_of(cols);
        if self.n_stride == 1 {
            return self.k_dims.iter().all(|d| steps_of_rows(d.1)) && start + self.n_len <= cols;
        }
        let reach: usize = self.k_dims.iter().map(|(size, stride)| size.saturating_sub(1) * stride).sum();
        (self.n_len == 1 || steps_of_rows(self.n_stride)) && start + reach < cols
    }
}

impl GatherPlan {
    /// Compiles a recipe's graph, or `None` when it does more than move and scale.
    pub fn compile(graph: &Graph, format: &FormatId) -> Option<GatherPlan> {
        let out = graph.outputs[0].value;
        let mut views = Views { graph, known: HashMap::new() };
        match (format.is_plain(), views.view(out, 0)) {
            (true, Some(view)) => view.into_copy(graph, graph.ty(out).dtype),
            (false, Some(view)) => view.into_matrices(graph),
            (true, None) => {
                let program = Computation::of(graph, out)?;
                program.vector.is_some().then_some(GatherPlan::Vector(program))
            }
            (false, None) => None,
        }
    }
}

impl Computation {
    /// The part of `graph` that computes `value`.
    fn of(graph: &Graph, value: ValueId) -> Option<Computation> {
        let regraft_ir::Subgraph { mut graph, value, sources } = graph.part(value).ok()?;
        graph.add_output("scale", value);
        let vector = VectorPlan::compile(&graph, value);
        Some(Computation { graph, sources, vector })
    }

    /// What it computes from its sources, in the program's dtypes and the order of [`Computation::sources`].
    ///
    /// # Errors
    /// When the sources do not fit.
    pub fn value(&self, sources: &[Tensor]) -> Result<Tensor, String> {
        if let Some(vector) = &self.vector {
            fn wide(tensor: &Tensor) -> Cow<'_, Tensor> {
                match tensor.dtype() {
                    DType::F16 | DType::BF16 => Cow::Owned(tensor.cast(DType::F32)),
                    _ => Cow::Borrowed(tensor),
                }
            }
            let wide: Vec<Cow<'_, Tensor>> = sources.iter().map(wide).collect();
            let floats = wide.iter().map(|tensor| tensor.as_slice::<f32>()).collect::<Option<Vec<_>>>();
            if let Some(values) = floats.and_then(|floats| vector.run(&floats)) {
                return Ok(Tensor::from_slice(&[values.len()], &values));
            }
        }
        let given = eval::Bindings { inputs: &[], sources, states: &[] };
        let mut results = eval::run(&self.graph, given).map_err(|e| e.to_string())?;
        results.outputs.pop().ok_or_else(|| "the recipe yields nothing".into())
    }
}

#[cfg(test)]
mod tests {
    use regraft_ir::text;

    use super::*;

    fn compile(body: &str) -> Option<GatherPlan> {
        let graph = text::parse(&format!("program \"r\" {{\n{body}\n}}")).expect("a program");
        GatherPlan::compile(&graph, &FormatId::new("panels_f32<n16>"))
    }

    #[test]
    fn a_transposed_concat_reads_its_sources_once() {
        let plan = compile(
            "source %0 : f32[6, 4] = \"q\" (parameter)
             source %1 : f32[2, 4] = \"k\" (parameter)
             %2 = concat %0, %1 {axis = 0} : f32[8, 4]
             %3 = permute %2 {perm = [1, 0]} : f32[4, 8]
             output %3 = \"w\"",
        );
        let piece = |source, n_len| Piece { source, offset: 0, k_dims: vec![(4, 1)], n_len, n_stride: 4, scale: None };
        let Some(GatherPlan::Matrices { matrices, scales }) = plan else { panic!("one pass") };
        assert_eq!(matrices, [[piece(0, 6), piece(1, 2)]]);
        assert!(scales.is_empty());
    }

    #[test]
    fn a_grouped_convolution_with_folded_scale_is_one_pass() {
        let plan = compile(
            "source %0 : f32[8, 3, 2, 2] = \"w\" (parameter)
             source %1 : f32[8] = \"s\" (parameter)
             %2 = reshape %1 {shape = [8, 1, 1, 1]} : f32[8, 1, 1, 1]
             %3 = binary %0, %2 {f = mul} : f32[8, 3, 2, 2]
             %4 = reshape %3 {shape = [2, 4, 3, 2, 2]} : f32[2, 4, 3, 2, 2]
             %5 = permute %4 {perm = [0, 3, 4, 2, 1]} : f32[2, 2, 2, 3, 4]
             %6 = reshape %5 {shape = [2, 12, 4]} : f32[2, 12, 4]
             output %6 = \"w\"",
        );
        let Some(GatherPlan::Matrices { matrices, scales }) = plan else { panic!("one pass") };
        assert_eq!(scales.len(), 1);
        let second = &matrices[1][0];
        assert_eq!((second.offset, second.scale), (48, Some((0, 4))));
        assert_eq!(second.k_dims, [(4, 1), (3, 4)]);
        assert_eq!((second.n_len, second.n_stride), (4, 12));
    }

    #[test]
    fn columns_at_two_distances_are_several_pieces() {
        let plan = compile(
            "source %0 : f32[3, 5, 4] = \"w\" (parameter)
             %1 = reshape %0 {shape = [3, 5, 2, 2]} : f32[3, 5, 2, 2]
             %2 = permute %1 {perm = [2, 0, 3, 1]} : f32[2, 3, 2, 5]
             %3 = reshape %2 {shape = [1, 6, 10]} : f32[1, 6, 10]
             output %3 = \"w\"",
        );
        let piece =
            |offset| Piece { source: 0, offset, k_dims: vec![(2, 2), (3, 20)], n_len: 5, n_stride: 4, scale: None };
        let Some(GatherPlan::Matrices { matrices, .. }) = plan else { panic!("one pass") };
        assert_eq!(matrices, [[piece(0), piece(1)]]);
    }

    #[test]
    fn what_computes_is_left_to_the_evaluator() {
        let body = "source %0 : f32[4, 4] = \"w\" (parameter)
             %1 = unary %0 {f = exp} : f32[4, 4]
             output %1 = \"w\"";
        assert!(compile(body).is_none());
    }

    #[test]
    fn sources_of_two_dtypes_are_left_to_the_evaluator() {
        let body = "source %0 : f32[4, 4] = \"q\" (parameter)
             source %1 : f16[4, 4] = \"k\" (parameter)
             %2 = cast %1 {dtype = f32} : f32[4, 4]
             %3 = concat %0, %2 {axis = 0} : f32[8, 4]
             %4 = permute %3 {perm = [1, 0]} : f32[4, 8]
             output %4 = \"w\"";
        assert!(compile(body).is_none());
    }
}
