//! Recipes that compute small vectors from small vectors, such as the scales and shifts of folded batch norms.
//!
//! Such a recipe is a chain of elementwise functions. [`VectorPlan`] runs it block by block, without the tensor that the
//! reference evaluator makes at every node, and gives the same bits: every function is computed in f64 and rounded to f32.

use std::collections::HashMap;

use regraft_ir::{
    Def, Graph, Node, Op, ValueId,
    ops::{Binary, BinaryFn, Unary, UnaryFn},
};
use regraft_tensor::DType;

/// Elements that go through the whole chain together; those of the longest chain stay on the stack.
const BLOCK: usize = 32;
/// Chains are short; a longer one is left to the evaluator.
const MAX_STEPS: usize = 64;

/// A chain of elementwise functions over f32 vectors of one length, and literals.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorPlan {
    len: usize,
    steps: Vec<Step>,
}

/// What one step gives, from earlier steps by their numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// A source of the graph.
    Source(usize),
    Literal(f32),
    Unary(UnaryFn, usize),
    Binary(BinaryFn, usize, usize),
}

impl VectorPlan {
    /// Compiles the part of `graph` that computes `value`, or `None` when it is not such a chain.
    pub fn compile(graph: &Graph, value: ValueId) -> Option<VectorPlan> {
        let len = graph.ty(value).sizes()?.iter().product();
        let mut plan = VectorPlan { len, steps: Vec::new() };
        let last = plan.step(graph, value, 0, &mut HashMap::new())?;
        // Steps are made in order, so that the value is the last one unless it is a source itself.
        (last + 1 == plan.steps.len()).then_some(plan)
    }

    /// Computes the vector from the sources of the graph, halves in f32; `None` when one of them is not of the vector's length.
    pub fn run(&self, sources: &[&[f32]]) -> Option<Vec<f32>> {
        let fits = |step: &Step| match step {
            Step::Source(source) => sources.get(*source).is_some_and(|s| s.len() == self.len),
            Step::Literal(_) | Step::Unary(..) | Step::Binary(..) => true,
        };
        if !self.steps.iter().all(fits) {
            return None;
        }
        let mut values = [[0.0; BLOCK]; MAX_STEPS];
        let values = &mut values[..self.steps.len()];
        let mut result = Vec::with_capacity(self.len);
        for start in (0..self.len).step_by(BLOCK) {
            let len = BLOCK.min(self.len - start);
            for (at, step) in self.steps.iter().enumerate() {
                let (before, value) = values.split_at_mut(at);
                step.run(sources, start, before, &mut value[0][..len]);
            }
            result.extend_from_slice(&values.last()?[..len]);
        }
        Some(result)
    }

    /// The number of the step that gives `value`, for `depth` values that are to become steps after it.
    fn step(
        &mut self,
        graph: &Graph,
        value: ValueId,
        depth: usize,
        known: &mut HashMap<ValueId, usize>,
    ) -> Option<usize> {
        if let Some(step) = known.get(&value) {
            return Some(*step);
        }
        let ty = graph.ty(value);
        let len: usize = ty.sizes()?.iter().product();
        if ty.dtype != DType::F32 || self.steps.len() + depth >= MAX_STEPS {
            return None;
        }
        let step = match graph.value(value).def {
            Def::Source(source) if len == self.len => Step::Source(source as usize),
            Def::Node(id, 0) => match self.node(graph, graph.node(id), len, depth + 1, known)? {
                Made::Step(step) => step,
                Made::Same(step) => {
                    known.insert(value, step);
                    return Some(step);
                }
            },
            Def::Source(_) | Def::Node(..) | Def::Input(_) | Def::State(_) => return None,
        };
        self.steps.push(step);
        known.insert(value, self.steps.len() - 1);
        Some(self.steps.len() - 1)
    }

    fn node(
        &mut self,
        graph: &Graph,
        node: &Node,
        len: usize,
        depth: usize,
        known: &mut HashMap<ValueId, usize>,
    ) -> Option<Made> {
        // An operand of the result's shape, or one value for all of it.
        let shape = graph.ty(node.output()).sizes()?;
        let lines_up = |v: ValueId| {
            let sizes = graph.ty(v).sizes();
            sizes.is_some_and(|sizes| {
                sizes == shape || sizes.iter().all(|size| *size == 1) && sizes.len() <= shape.len()
            })
        };
        match &node.op {
            // Sources of halves are given in f32.
            Op::Cast(_) if len == self.len => {
                let source = graph.source_of(node.input(0))?;
                let is_half = matches!(graph.ty(node.input(0)).dtype, DType::F16 | DType::BF16);
                is_half.then_some(Made::Step(Step::Source(source as usize)))
            }
            Op::Full(full) => Some(Made::Step(Step::Literal(full.value.as_f64() as f32))),
            Op::Reshape(_) if len == self.len => Some(Made::Same(self.step(graph, node.input(0), depth, known)?)),
            Op::Unary(Unary { f }) if len == self.len => {
                Some(Made::Step(Step::Unary(*f, self.step(graph, node.input(0), depth, known)?)))
            }
            Op::Binary(Binary { f }) if len == self.len && lines_up(node.input(0)) && lines_up(node.input(1)) => {
                let a = self.step(graph, node.input(0), depth, known)?;
                Some(Made::Step(Step::Binary(*f, a, self.step(graph, node.input(1), depth, known)?)))
            }
            _ => None,
        }
    }
}

/// What a node comes down to.
enum Made {
    Step(Step),
    /// The value of an earlier step in another shape.
    Same(usize),
}

impl Step {
    fn run(&self, sources: &[&[f32]], start: usize, before: &[[f32; BLOCK]], out: &mut [f32]) {
        match *self {
            Step::Source(source) => out.copy_from_slice(&sources[source][start..start + out.len()]),
            Step::Literal(value) => out.fill(value),
            Step::Unary(f, x) => unary(f, &before[x], out),
            Step::Binary(f, a, b) => binary(f, &before[a], &before[b], out),
        }
    }
}

/// What the scales and shifts of norms are made of has loops of its own, which the compiler turns into vector instructions:
/// choosing among all functions at each element costs several times as much as these functions do.
fn unary(f: UnaryFn, x: &[f32], out: &mut [f32]) {
    fn each(x: &[f32], out: &mut [f32], f: impl Fn(f64) -> f64) {
        out.iter_mut().zip(x).for_each(|(y, x)| *y = f(f64::from(*x)) as f32);
    }
    match f {
        UnaryFn::Neg => each(x, out, |x| -x),
        UnaryFn::Sqrt => each(x, out, f64::sqrt),
        UnaryFn::Rsqrt => each(x, out, |x| 1.0 / x.sqrt()),
        f => each(x, out, |x| f.apply_f64(x)),
    }
}

/// As [`unary`].
fn binary(f: BinaryFn, a: &[f32], b: &[f32], out: &mut [f32]) {
    fn each(a: &[f32], b: &[f32], out: &mut [f32], f: impl Fn(f64, f64) -> f64) {
        out.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = f(f64::from(*a), f64::from(*b)) as f32);
    }
    match f {
        BinaryFn::Add => each(a, b, out, |a, b| a + b),
        BinaryFn::Sub => each(a, b, out, |a, b| a - b),
        BinaryFn::Mul => each(a, b, out, |a, b| a * b),
        BinaryFn::Div => each(a, b, out, |a, b| a / b),
        f => each(a, b, out, |a, b| f.apply_f64(a, b)),
    }
}

#[cfg(test)]
mod tests {
    use regraft_ir::{eval, text};
    use regraft_tensor::Tensor;

    use super::*;

    fn parse(body: &str) -> Graph {
        text::parse(&format!("program \"r\" {{\n{body}\n}}")).expect("a program")
    }

    #[test]
    fn a_folded_batch_norm_has_the_bits_of_the_reference() {
        for len in [1usize, 5, 128, 300] {
            let graph = parse(&format!(
                "source %0 : f32[{len}] = \"mean\" (buffer)
                 source %1 : f32[{len}] = \"var\" (buffer)
                 source %2 : f32[{len}] = \"gamma\" (parameter)
                 source %3 : f32[{len}] = \"beta\" (parameter)
                 %4 = full {{value = 0.001, dtype = f32, shape = []}} : f32[]
                 %5 = binary %1, %4 {{f = add}} : f32[{len}]
                 %6 = unary %5 {{f = rsqrt}} : f32[{len}]
                 %7 = binary %2, %6 {{f = mul}} : f32[{len}]
                 %8 = binary %0, %7 {{f = mul}} : f32[{len}]
                 %9 = binary %3, %8 {{f = sub}} : f32[{len}]
                 %10 = reshape %9 {{shape = [{len}, 1]}} : f32[{len}, 1]
                 output %10 = \"shift\""
            ));
            let numbers = |seed: usize| (0..len).map(|i| ((i * 31 + seed * 7) % 97) as f32 * 0.013 + 0.1).collect();
            let sources: Vec<Vec<f32>> = (0..4).map(numbers).collect();
            let tensors: Vec<Tensor> = sources.iter().map(|s| Tensor::from_slice(&[len], s)).collect();
            let given = eval::Bindings { inputs: &[], sources: &tensors, states: &[] };
            let want = eval::run(&graph, given).expect("it runs").outputs.remove(0);
            let plan = VectorPlan::compile(&graph, graph.outputs[0].value).expect("a chain");
            let mut sources: Vec<&[f32]> = sources.iter().map(Vec::as_slice).collect();
            assert_eq!(plan.run(&sources).as_deref(), want.as_slice::<f32>());
            sources[2] = &[];
            assert_eq!(plan.run(&sources), None);
        }
    }

    /// The program `f(.., f(a, b) .., b)`, with `count` times this function.
    fn chain(f: &str, count: usize) -> Graph {
        let sources = "source %0 : f32[3] = \"a\" (parameter)\nsource %1 : f32[3] = \"b\" (parameter)\n";
        let line = |i: usize| {
            let from = if i == 0 { 0 } else { i + 1 };
            match f {
                "div" | "min" => format!("%{} = binary %{from}, %1 {{f = {f}}} : f32[3]\n", i + 2),
                _ => format!("%{} = unary %{from} {{f = {f}}} : f32[3]\n", i + 2),
            }
        };
        let lines: String = (0..count).map(line).collect();
        parse(&format!("{sources}{lines}output %{} = \"x\"", count + 1))
    }

    #[test]
    fn every_function_has_the_bits_of_the_reference() {
        let values = [[1.5f32, 0.0, -2.0], [3.0, -0.0, f32::INFINITY]].map(|v| Tensor::from_slice(&[3], &v));
        let floats: Vec<&[f32]> = values.iter().filter_map(Tensor::as_slice).collect();
        for f in ["neg", "sqrt", "rsqrt", "abs", "div", "min"] {
            let graph = chain(f, 2);
            let given = eval::Bindings { inputs: &[], sources: &values, states: &[] };
            let want = eval::run(&graph, given).expect("it runs").outputs.remove(0);
            let plan = VectorPlan::compile(&graph, graph.outputs[0].value).expect("a chain");
            let got = Tensor::from_slice(&[3], &plan.run(&floats).expect("it fits"));
            assert!(got.bit_equal(&want), "{f}: {got:?}, not {want:?}");
        }
    }

    #[test]
    fn long_chains_are_left_to_the_evaluator() {
        let compiled = |count| {
            let graph = chain("neg", count);
            VectorPlan::compile(&graph, graph.outputs[0].value)
        };
        assert!(compiled(MAX_STEPS - 1).is_some_and(|plan| plan.steps.len() == MAX_STEPS));
        assert_eq!(compiled(MAX_STEPS), None);
        // One that would take more stack than there is.
        assert_eq!(compiled(50_000), None);
    }

    #[test]
    fn other_shapes_and_dtypes_are_left_to_the_evaluator() {
        let outer = parse(
            "source %0 : f32[4, 1] = \"a\" (parameter)
             source %1 : f32[1, 4] = \"b\" (parameter)
             %2 = binary %0, %1 {f = mul} : f32[4, 4]
             output %2 = \"x\"",
        );
        let wide = parse(
            "source %0 : f64[4] = \"a\" (parameter)
             %1 = unary %0 {f = exp} : f64[4]
             output %1 = \"x\"",
        );
        for graph in [outer, wide] {
            assert_eq!(VectorPlan::compile(&graph, graph.outputs[0].value), None);
        }
    }
}
