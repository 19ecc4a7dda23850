//! Views of sources: what the nodes of a recipe are while they only move and scale elements.

use std::collections::HashMap;

use regraft_ir::{
    Def, Graph, Node, Op, ValueId,
    ops::{Binary, BinaryFn},
};
use regraft_tensor::DType;

use super::{Computation, GatherPlan, Piece};

/// One part of an axis: its size, its stride in the source, its stride in the scale vector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Part {
    pub(super) size: usize,
    pub(super) stride: usize,
    pub(super) scale_stride: usize,
}

/// A logical axis: parts, outermost first.
pub(super) type Axis = Vec<Part>;

/// A strided view of one source.
#[derive(Clone, Debug)]
pub(super) struct StridedView {
    pub(super) source: u32,
    pub(super) offset: usize,
    pub(super) scale: Option<ValueId>,
    pub(super) scale_offset: usize,
    pub(super) axes: Vec<Axis>,
}

/// More matrices than this, as no convolution has groups, are left to the evaluator.
const MAX_MATRICES: usize = 1 << 16;

/// Views joined along an axis.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) axis: usize,
    pub(super) parts: Vec<StridedView>,
}

pub(super) struct Views<'a> {
    pub(super) graph: &'a Graph,
    pub(super) known: HashMap<ValueId, View>,
}

impl Views<'_> {
    /// Recipes are short; a deeper one is left to the evaluator.
    const MAX_DEPTH: usize = 64;

    pub(super) fn view(&mut self, value: ValueId, depth: usize) -> Option<View> {
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
    pub(super) fn into_copy(self, graph: &Graph, dtype: DType) -> Option<GatherPlan> {
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

    pub(super) fn into_matrices(self, graph: &Graph) -> Option<GatherPlan> {
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
pub(super) fn merge(axis: &[Part]) -> Vec<Part> {
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
pub(super) fn offsets(parts: &[Part]) -> Vec<(usize, usize)> {
    parts.iter().fold(vec![(0, 0)], |all, part| {
        let steps = |(at, scale_at): (usize, usize)| {
            (0..part.size).map(move |i| (at + i * part.stride, scale_at + i * part.scale_stride))
        };
        all.into_iter().flat_map(steps).collect()
    })
}
