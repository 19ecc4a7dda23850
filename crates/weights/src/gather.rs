//! Recipes compiled to one pass over memory.
//!
//! Most recipes only move elements: transpose, permute, slice, concatenate, scale by a vector, cast, pack. Such a
//! recipe is a set of strided views of its sources. [`GatherPlan::compile`] runs the recipe's graph over *views* in
//! place of tensors; when every node maps a view to a view, packing reads the sources once and writes the slot once.
//! A recipe of another form has no gather plan and is run by the reference evaluator, node by node.

mod moves;

use std::{borrow::Cow, collections::HashMap};

use regraft_ir::{
    Def, Graph, Node, Op, ValueId, eval,
    ops::{Binary, BinaryFn},
};
use regraft_tensor::{DType, Tensor};

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

/// One part of an axis: its size, its stride in the source, its stride in the scale vector.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Part {
    size: usize,
    stride: usize,
    scale_stride: usize,
}

/// A logical axis: parts, outermost first.
type Axis = Vec<Part>;

/// A strided view of one source.
#[derive(Clone, Debug)]
struct StridedView {
    source: u32,
    offset: usize,
    scale: Option<ValueId>,
    scale_offset: usize,
    axes: Vec<Axis>,
}

/// More matrices than this, as no convolution has groups, are left to the evaluator.
const MAX_MATRICES: usize = 1 << 16;

/// Views joined along an axis.
#[derive(Clone, Debug)]
struct View {
    axis: usize,
    parts: Vec<StridedView>,
}

struct Views<'a> {
    graph: &'a Graph,
    known: HashMap<ValueId, View>,
}

impl Views<'_> {
    /// Recipes are short; a deeper one is left to the evaluator.
    const MAX_DEPTH: usize = 64;

    fn view(&mut self, value: ValueId, depth: usize) -> Option<View> {
        if depth > Self::MAX_DEPTH {
            return None;
        }
        if let Some(view) = self.known.get(&value) {
            return Some(view.clone());
        }
        let view = match self.graph.value(value).def {
            Def::Source(source) => View::of_source(source, &self.graph.ty(value).sizes()?),
            Def::Node(id, 0) => self.node(self.graph.node(id), depth + 1)?,
            Def::Node(..) | Def::Input(_) | Def::State(_) => return None,
        };
        self.known.insert(value, view.clone());
        Some(view)
    }

    fn node(&mut self, node: &Node, depth: usize) -> Option<View> {
        let shape = self.graph.ty(node.output()).sizes()?;
        match &node.op {
            Op::Permute(op) => Some(self.view(node.input(0), depth)?.permute(&op.perm)),
            Op::Reshape(_) => self.view(node.input(0), depth)?.reshape(&shape),
            Op::Slice(op) if op.step == 1 => {
                self.view(node.input(0), depth)?.slice(op.axis, op.start.as_usize()?, shape[op.axis])
            }
            Op::Concat(op) => {
                let views = node.inputs.iter().map(|v| self.view((*v)?, depth)).collect::<Option<Vec<_>>>()?;
                View::concat(op.axis, views)
            }
            // Packing reads any float type as f32; a cast to anything else is a computation.
            Op::Cast(op) if op.dtype == DType::F32 => {
                let from = self.graph.ty(node.input(0)).dtype;
                let is_source = self.graph.source_of(node.input(0)).is_some();
                if from.is_float() && is_source { self.view(node.input(0), depth) } else { None }
            }
            // What packing rounds to is the slot's dtype: a cast to it is what packing does last.
            Op::Cast(op) if op.dtype == self.slot_dtype() && matches!(op.dtype, DType::F16 | DType::BF16) => {
                if self.graph.ty(node.input(0)).dtype == DType::F32 { self.view(node.input(0), depth) } else { None }
            }
            Op::Binary(Binary { f: BinaryFn::Mul }) => self.scaled(node, &shape, depth),
            _ => None,
        }
    }

    fn slot_dtype(&self) -> DType {
        self.graph.ty(self.graph.outputs[0].value).dtype
    }

    /// `view * vector`, the vector running along one axis.
    fn scaled(&mut self, node: &Node, shape: &[usize], depth: usize) -> Option<View> {
        let scale = node.input(1);
        let sizes = self.graph.ty(scale).sizes()?;
        if sizes.len() > shape.len() || self.graph.ty(node.output()).dtype != DType::F32 {
            return None;
        }
        let mut padded = vec![1; shape.len() - sizes.len()];
        padded.extend(&sizes);
        let wide: Vec<usize> = (0..shape.len()).filter(|&i| padded[i] != 1).collect();
        let &[axis] = wide.as_slice() else { return None };
        if self.graph.ty(node.input(0)).sizes()? != shape {
            return None;
        }
        self.view(node.input(0), depth)?.scale(axis, scale)
    }
}

impl View {
    fn of_source(source: u32, shape: &[usize]) -> View {
        let strides = regraft_tensor::contiguous_strides(shape);
        let axes = shape.iter().zip(strides).map(|(&size, stride)| vec![Part { size, stride, scale_stride: 0 }]);
        let view = StridedView { source, offset: 0, scale: None, scale_offset: 0, axes: axes.collect() };
        View { axis: 0, parts: vec![view] }
    }

    fn permute(mut self, perm: &[usize]) -> View {
        for part in &mut self.parts {
            part.axes = perm.iter().map(|&i| part.axes[i].clone()).collect();
        }
        self.axis = perm.iter().position(|&i| i == self.axis).unwrap_or(0);
        self
    }

    fn reshape(self, shape: &[usize]) -> Option<View> {
        let [part] = self.parts.as_slice() else { return None };
        let mut flat: Vec<Part> = part.axes.iter().flatten().copied().filter(|p| p.size != 1).collect();
        if flat.iter().any(|p| p.size == 0) || shape.contains(&0) {
            return None;
        }
        flat.reverse();
        let mut axes = Vec::with_capacity(shape.len());
        for &size in shape {
            let (mut axis, mut left) = (Vec::new(), size);
            while left > 1 {
                let part = flat.pop()?;
                if part.size <= left {
                    if left % part.size != 0 {
                        return None;
                    }
                    left /= part.size;
                    axis.push(part);
                } else {
                    if part.size % left != 0 {
                        return None;
                    }
                    let inner = part.size / left;
                    flat.push(Part { size: inner, ..part });
                    axis.push(Part {
                        size: left,
                        stride: part.stride * inner,
                        scale_stride: part.scale_stride * inner,
                    });
                    left = 1;
                }
            }
            axes.push(axis);
        }
        flat.is_empty().then(|| View { axis: 0, parts: vec![StridedView { axes, ..part.clone() }] })
    }

    fn slice(mut self, axis: usize, start: usize, len: usize) -> Option<View> {
        let [view] = self.parts.as_mut_slice() else { return None };
        let merged = merge(&view.axes[axis]);
        let [part] = merged.as_slice() else { return None };
        view.offset += start * part.stride;
        view.scale_offset += start * part.scale_stride;
        view.axes[axis] = vec![Part { size: len, ..*part }];
        Some(self)
    }

    fn concat(axis: usize, views: Vec<View>) -> Option<View> {
        let fits = views.iter().all(|v| v.parts.len() == 1 || v.axis == axis);
        fits.then(|| View { axis, parts: views.into_iter().flat_map(|v| v.parts).collect() })
    }

    fn scale(mut self, axis: usize, by: ValueId) -> Option<View> {
        let [view] = self.parts.as_mut_slice() else { return None };
        if view.scale.is_some() {
            return None;
        }
        view.scale = Some(by);
        let mut stride = 1;
        for part in view.axes[axis].iter_mut().rev() {
            part.scale_stride = stride;
            stride *= part.size;
        }
        Some(self)
    }

    /// Runs in order, when each view is contiguous and the join is along the outermost axis.
    fn into_copy(self, graph: &Graph, dtype: DType) -> Option<GatherPlan> {
        let mut runs = Vec::with_capacity(self.parts.len());
        let outermost = self.parts.len() == 1
            || self.parts.iter().all(|p| p.axes[..self.axis].iter().flatten().all(|part| part.size == 1));
        for view in &self.parts {
            let parts = merge(&view.axes.concat());
            let len: usize = parts.iter().map(|p| p.size).product();
            let contiguous = matches!(parts.as_slice(), [] | [Part { stride: 1, .. }]);
            let same_dtype = graph.ty(graph.sources[view.source as usize].value).dtype == dtype;
            if !outermost || !contiguous || view.scale.is_some() || !same_dtype {
                return None;
            }
            runs.push((view.source, view.offset, len));
        }
        Some(GatherPlan::Copy { runs })
    }

    fn into_matrices(self, graph: &Graph) -> Option<GatherPlan> {
        let rank = self.parts[0].axes.len();
        if rank < 2 || (self.parts.len() > 1 && self.axis != rank - 1) {
            return None;
        }
        let dtype = |view: &StridedView| graph.ty(graph.sources[view.source as usize].value).dtype;
        let empty = |view: &StridedView| view.axes.iter().flatten().any(|part| part.size == 0);
        if self.parts.iter().any(|view| dtype(view) != dtype(&self.parts[0]) || empty(view)) {
            return None;
        }
        let mut scales: Vec<ValueId> = Vec::new();
        let lead: Vec<Vec<Part>> = self.parts.iter().map(|p| p.axes[..rank - 2].concat()).collect();
        let count: usize = lead[0].iter().map(|p| p.size).product();
        if count > MAX_MATRICES {
            return None;
        }
        let mut matrices = vec![Vec::new(); count];
        for (view, lead) in self.parts.iter().zip(&lead) {
            let scale = view.scale.map(|by| match scales.iter().position(|&s| s == by) {
                Some(at) => at as u32,
                None => {
                    scales.push(by);
                    scales.len() as u32 - 1
                }
            });
            for (matrix, (at, scale_at)) in matrices.iter_mut().zip(offsets(lead)) {
                matrix.extend(view.pieces(at, scale.map(|s| (s, scale_at)))?);
            }
        }
        if matrices.iter().map(Vec::len).sum::<usize>() > MAX_MATRICES {
            return None;
        }
        let scales = scales.into_iter().map(|v| Computation::of(graph, v)).collect::<Option<_>>()?;
        Some(GatherPlan::Matrices { matrices, scales })
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

impl StridedView {
    /// The last two axes as rows and columns, for one index of the leading axes: a piece for each stretch of columns that are at one
    /// distance.
    fn pieces(&self, at: usize, scale: Option<(u32, usize)>) -> Option<Vec<Piece>> {
        let [.., k, n] = self.axes.as_slice() else { return None };
        let (k, mut stretches) = (merge(k), merge(n));
        let column = stretches.pop().unwrap_or(Part { size: 1, stride: 0, scale_stride: 1 });
        if scale.is_some() && (k.iter().any(|p| p.scale_stride != 0) || column.scale_stride != 1) {
            return None;
        }
        let piece = |(first, scale_first): (usize, usize)| Piece {
            source: self.source,
            offset: self.offset + at + first,
            k_dims: k.iter().map(|p| (p.size, p.stride)).collect(),
            n_len: column.size,
            n_stride: column.stride,
            scale: scale.map(|(index, at)| (index, self.scale_offset + at + scale_first)),
        };
        Some(offsets(&stretches).into_iter().map(piece).collect())
    }
}

/// Joins neighboring parts that step through memory as one; drops parts of size 1.
fn merge(axis: &[Part]) -> Vec<Part> {
    let mut merged: Vec<Part> = Vec::with_capacity(axis.len());
    for part in axis.iter().filter(|p| p.size != 1) {
        match merged.last_mut() {
            Some(last)
                if last.stride == part.stride * part.size && last.scale_stride == part.scale_stride * part.size =>
            {
                *last = Part { size: last.size * part.size, ..*part };
            }
            _ => merged.push(*part),
        }
    }
    merged
}

/// Offsets in source and scale of every index of some axes, row-major.
fn offsets(parts: &[Part]) -> Vec<(usize, usize)> {
    parts.iter().fold(vec![(0, 0)], |all, part| {
        let steps = |(at, scale_at): (usize, usize)| {
            (0..part.size).map(move |i| (at + i * part.stride, scale_at + i * part.scale_stride))
        };
        all.into_iter().flat_map(steps).collect()
    })
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
