//! Recipes of plain slots as strided moves, for devices that make many slots in one launch.

use std::collections::HashMap;

use regraft_ir::Graph;

use super::{
    Computation,
    views::{Part, StridedView, View, Views},
};

/// A plain slot as moves of its sources' elements: strided on both sides, scaled by a vector on the way where the recipe
/// has it, rounded once to the slot's dtype.
#[derive(Clone, Debug)]
pub struct MovePlan {
    /// Together they write every element of the slot once.
    pub moves: Vec<Move>,
    /// Each computes a small vector of factors in f32.
    pub scales: Vec<Computation>,
}

/// A strided view of one source, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Source index in the recipe.
    pub source: u32,
    /// First element in the source.
    pub from: usize,
    /// First element in the slot.
    pub to: usize,
    /// Axes, outermost first; none has size 1, neighbors that step as one are joined.
    pub axes: Vec<MoveAxis>,
    /// Factors: index into [`MovePlan::scales`] and the first element there.
    pub scale: Option<(u32, usize)>,
}

/// An axis that a [`Move`] runs over; strides are in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveAxis {
    /// Number of steps.
    pub size: usize,
    /// Stride in the source.
    pub from: usize,
    /// Stride in the slot.
    pub to: usize,
    /// Stride in the factors.
    pub by: usize,
}

impl Move {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.axes.iter().map(|axis| axis.size).product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it takes a run of neighbors as they are.
    pub fn is_run(&self) -> bool {
        self.scale.is_none() && matches!(self.axes.as_slice(), [] | [MoveAxis { from: 1, to: 1, .. }])
    }

    /// The element of the source behind the last one that is read; 0 where none is.
    pub fn source_end(&self) -> usize {
        if self.is_empty() {
            return 0;
        }
        self.from + self.axes.iter().map(|axis| (axis.size - 1) * axis.from).sum::<usize>() + 1
    }
}

impl MovePlan {
    /// Compiles the graph of a plain slot's recipe, or `None` when it does more than move, scale and cast.
    pub fn compile(graph: &Graph) -> Option<MovePlan> {
        let out = graph.outputs[0].value;
        let view = Views { graph, known: HashMap::new() }.view(out, 0)?;
        let shape = graph.ty(out).sizes()?;
        let strides = regraft_tensor::contiguous_strides(&shape);
        let View { axis: joined, parts } = view;
        let (mut moves, mut factors, mut at) = (Vec::new(), Vec::new(), 0);
        for part in &parts {
            let scale = part.scale.map(|by| {
                let known = factors.iter().position(|&f| f == by);
                let index = known.unwrap_or_else(|| {
                    factors.push(by);
                    factors.len() - 1
                });
                (index as u32, part.scale_offset)
            });
            let to = if parts.len() > 1 { at * strides[joined] } else { 0 };
            at += part.axes.get(joined).map_or(1, |axis| size(axis));
            moves.push(Move { source: part.source, from: part.offset, to, axes: axes(part, &strides), scale });
        }
        let fills = moves.iter().map(Move::len).sum::<usize>() == shape.iter().product::<usize>();
        let scales = factors.into_iter().map(|value| Computation::of(graph, value)).collect::<Option<_>>()?;
        fills.then_some(MovePlan { moves, scales })
    }

    /// The runs of sources that make up the slot, one after the other, when that is all: source, first element, number of
    /// elements.
    pub fn runs(&self) -> Option<Vec<(u32, usize, usize)>> {
        let run = |m: &Move| m.is_run().then(|| (m.source, m.from, m.len()));
        self.moves.iter().map(run).collect()
    }
}

fn size(axis: &[Part]) -> usize {
    axis.iter().map(|part| part.size).product()
}

/// The axes of a view in a target with these strides.
fn axes(view: &StridedView, strides: &[usize]) -> Vec<MoveAxis> {
    let mut all: Vec<MoveAxis> = Vec::new();
    for (axis, &stride) in view.axes.iter().zip(strides) {
        let mut inner = size(axis);
        for part in axis {
            inner /= part.size.max(1);
            let axis = MoveAxis { size: part.size, from: part.stride, to: stride * inner, by: part.scale_stride };
            push(&mut all, axis);
        }
    }
    all
}

/// Appends an axis, joined with the last one where both step as one.
fn push(axes: &mut Vec<MoveAxis>, axis: MoveAxis) {
    if axis.size == 1 {
        return;
    }
    match axes.last_mut() {
        Some(last)
            if last.from == axis.from * axis.size
                && last.to == axis.to * axis.size
                && last.by == axis.by * axis.size =>
        {
            *last = MoveAxis { size: last.size * axis.size, ..axis };
        }
        _ => axes.push(axis),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regraft_ir::{eval, text};
    use regraft_tensor::{DType, Tensor};

    use super::*;

    fn plan(body: &str) -> (Graph, Option<MovePlan>) {
        let graph = text::parse(&format!("program \"r\" {{\n{body}\n}}")).expect("a program");
        let plan = MovePlan::compile(&graph);
        (graph, plan)
    }

    fn scale(program: &Computation, sources: &[Tensor]) -> Tensor {
        let sources: Vec<Tensor> = program.sources.iter().map(|&s| sources[s as usize].clone()).collect();
        program.value(&sources).expect("it computes")
    }

    /// What the moves of an f32 recipe write.
    fn moved(plan: &MovePlan, sources: &[Tensor], len: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; len];
        let scales: Vec<Tensor> = plan.scales.iter().map(|p| scale(p, sources)).collect();
        for m in &plan.moves {
            let from: &[f32] = sources[m.source as usize].as_slice().expect("f32");
            for mut i in 0..m.len() {
                let (mut source, mut to, mut by) = (m.from, m.to, m.scale.map_or(0, |s| s.1));
                for axis in m.axes.iter().rev() {
                    let k = i % axis.size;
                    i /= axis.size;
                    source += k * axis.from;
                    to += k * axis.to;
                    by += k * axis.by;
                }
                let factor = m.scale.map_or(1.0, |s| scales[s.0 as usize].as_slice::<f32>().expect("f32")[by]);
                out[to] = from[source] * factor;
            }
        }
        out
    }

    proptest! {
        #[test]
        fn moves_write_what_the_evaluator_computes(
            o in 1usize..5, i in 1usize..5, h in 1usize..4, w in 1usize..4, m in 1usize..4, seed in 0u64..1000,
        ) {
            let (joined, len) = (o + m, (o + m) * i * h * w);
            let body = format!(
                "source %0 : f32[{o}, {i}, {h}, {w}] = \"a\" (parameter)
                 source %1 : f32[{m}, {i}, {h}, {w}] = \"b\" (parameter)
                 source %2 : f32[{o}] = \"s\" (parameter)
                 %3 = reshape %2 {{shape = [{o}, 1, 1, 1]}} : f32[{o}, 1, 1, 1]
                 %4 = binary %0, %3 {{f = mul}} : f32[{o}, {i}, {h}, {w}]
                 %5 = permute %4 {{perm = [2, 3, 1, 0]}} : f32[{h}, {w}, {i}, {o}]
                 %6 = permute %1 {{perm = [2, 3, 1, 0]}} : f32[{h}, {w}, {i}, {m}]
                 %7 = concat %5, %6 {{axis = 3}} : f32[{h}, {w}, {i}, {joined}]
                 output %7 = \"w\"",
            );
            let (graph, plan) = plan(&body);
            // A vector of one factor is not an axis.
            prop_assume!(o > 1);
            let plan = plan.expect("moves");
            let tensor = |shape: &[usize], salt: u64| {
                let n: usize = shape.iter().product();
                let values: Vec<f64> = (0..n as u64).map(|k| ((k * 7 + salt + seed) % 23) as f64 - 11.0).collect();
                Tensor::from_f64(DType::F32, shape, &values)
            };
            let sources = [tensor(&[o, i, h, w], 1), tensor(&[m, i, h, w], 2), tensor(&[o], 3)];
            let given = eval::Bindings { inputs: &[], sources: &sources, states: &[] };
            let want = eval::run(&graph, given).expect("it evaluates").outputs.remove(0);
            prop_assert_eq!(moved(&plan, &sources, len), want.as_slice::<f32>().expect("f32"));
        }
    }

    #[test]
    fn joined_runs_are_found() {
        let (_, plan) = plan(
            "source %0 : f16[7] = \"a\" (parameter)
             source %1 : f16[2] = \"b\" (parameter)
             %2 = concat %0, %1 {axis = 0} : f16[9]
             output %2 = \"w\"",
        );
        assert_eq!(plan.and_then(|plan| plan.runs()), Some(vec![(0, 0, 7), (1, 0, 2)]));
    }

    #[test]
    fn computed_values_are_no_moves() {
        let (_, plan) = plan(
            "source %0 : f32[4] = \"a\" (parameter)
             %1 = unary %0 {f = exp} : f32[4]
             output %1 = \"w\"",
        );
        assert!(plan.is_none());
    }
}
