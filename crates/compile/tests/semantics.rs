//! Passes keep what a program computes: the program of every golden file, before and after its pass and after all passes,
//! gives the same results by the reference evaluator; so do random programs.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use proptest::prelude::{ProptestConfig, any, proptest};
use regraft_backend_cpu::{CpuCodegen, Isa};
use regraft_compile::lower::{PASSES, Precision, lower, run_pass};
use regraft_ir::{
    Graph, SourceKind, TensorType, ValueId,
    eval::{self, Bindings},
    ops::{
        Activation, AvgPool, Binary, BinaryFn, Concat, Conv, Expand, Linear, Matmul, Permute, Reduce, ReduceFn,
        Reshape, Slice, SpatialLayout, Unary, UnaryFn,
    },
    text,
};
use regraft_tensor::{DType, Dim, Tensor};

fn cpu() -> CpuCodegen {
    CpuCodegen::new(Isa::Portable)
}

/// Name of the file, its pass, and the program before it.
fn programs() -> Vec<(String, String, Graph)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/passes");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let read = |file: &std::path::PathBuf| {
        let content = fs::read_to_string(file).unwrap();
        let head = content.split("\n---- after ----\n").next().unwrap();
        let (first, rest) = head.split_once('\n').unwrap();
        let (_, program) = rest.split_once('\n').unwrap();
        let pass = first.strip_prefix("// pass: ").unwrap().trim().to_owned();
        (file.file_stem().unwrap().to_string_lossy().into_owned(), pass, text::parse(program).unwrap())
    };
    files.iter().map(read).collect()
}

/// SplitMix64: values that differ from call to call.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    fn tensor(&mut self, dtype: DType, shape: &[usize], positive: bool) -> Tensor {
        let count = shape.iter().product();
        let unit = |bits: u64| (bits >> 11) as f64 / (1u64 << 53) as f64;
        let value = |bits: u64| match dtype {
            DType::Bool => f64::from(!bits.is_multiple_of(3)),
            d if d.is_float() && positive => unit(bits) + 0.5,
            d if d.is_float() => unit(bits) * 8.0 - 4.0,
            _ => (bits % 7) as f64 - 3.0,
        };
        Tensor::from_f64(dtype, shape, &(0..count).map(|_| value(self.next())).collect::<Vec<_>>())
    }
}

/// One tensor per input and per source; sources go by name, as some may be gone after passes.
struct Given {
    inputs: Vec<Tensor>,
    sources: Vec<(String, Tensor)>,
}

fn given(graph: &Graph, seed: u64) -> Given {
    let mut random = Random(seed);
    let symbols: Vec<i64> = graph
        .symbols
        .iter()
        .map(|s| s.range.min + (random.next() % (s.range.max - s.range.min + 1).min(4) as u64) as i64)
        .collect();
    let mut make = |value, positive| {
        let ty = graph.ty(value);
        let shape: Vec<usize> = ty.shape.iter().map(|d| d.eval(&symbols).unwrap() as usize).collect();
        random.tensor(ty.dtype, &shape, positive)
    };
    let inputs = graph.inputs.iter().map(|i| make(i.value, false)).collect();
    let sources = graph.sources.iter().map(|s| (s.name.clone(), make(s.value, s.name == "var"))).collect();
    Given { inputs, sources }
}

fn results(graph: &Graph, given: &Given) -> Vec<Tensor> {
    let source = |name: &str| given.sources.iter().find(|(n, _)| n == name).unwrap().1.clone();
    let sources: Vec<Tensor> = graph.sources.iter().map(|s| source(&s.name)).collect();
    eval::run(graph, Bindings { inputs: &given.inputs, sources: &sources, states: &[] }).unwrap().outputs
}

fn assert_close(what: &str, expected: &[Tensor], found: &[Tensor]) {
    for (i, (e, f)) in expected.iter().zip(found).enumerate() {
        assert_eq!((e.dtype(), e.shape()), (f.dtype(), f.shape()), "{what}: output {i}");
        // Halves may be rounded at other places: by a few of their last bits.
        let tolerance = match e.dtype() {
            DType::F16 => 4e-3,
            DType::BF16 => 3e-2,
            _ => 1e-5,
        };
        let (e, f) = (e.to_f64_vec(), f.to_f64_vec());
        let largest = e.iter().filter(|v| v.is_finite()).fold(1e-3f64, |m, v| m.max(v.abs()));
        for (at, (e, f)) in e.iter().zip(&f).enumerate() {
            // A row of attention that the mask leaves nothing of is NaN without PyTorch's guard and zero in the op.
            let same = e == f || (e.is_nan() && (f.is_nan() || *f == 0.0)) || (e - f).abs() <= tolerance * largest;
            assert!(same, "{what}: output {i} at {at}: expected {e}, found {f}");
        }
    }
}

/// The results after each pass of the pipeline are those of the program.
fn check_lowering(what: &str, graph: &Graph, given: &Given, expected: &[Tensor]) {
    let mut all = graph.clone();
    let mut steps = Vec::new();
    lower(&mut all, &cpu(), Precision::default(), |name, graph| steps.push((name, graph.clone()))).unwrap();
    for (name, graph) in steps {
        assert_close(&format!("{what} lowered up to {name}"), expected, &results(&graph, given));
    }
}

fn check(seed: u64) {
    for (file, pass, graph) in programs() {
        let given = given(&graph, seed);
        let expected = results(&graph, &given);
        let mut one = graph.clone();
        run_pass(PASSES.iter().find(|p| p.name == pass).unwrap(), &mut one, &cpu()).unwrap();
        assert_close(&format!("{file} after {pass}"), &expected, &results(&one, &given));
        check_lowering(&file, &graph, &given, &expected);
    }
}

/// A program of random moves, products and elementwise ops on small values, axes of size 1 among them.
fn random_program(seed: u64) -> Graph {
    let mut random = Random(seed);
    let mut graph = Graph::new("random");
    let shapes: [&[usize]; 4] = [&[2, 3, 4], &[1, 4, 6], &[2, 1, 2, 6], &[1, 2, 4, 3]];
    let mut values: Vec<ValueId> = Vec::new();
    for i in 0..2 {
        let shape = shapes[random.below(shapes.len())];
        values.push(graph.add_input(format!("x{i}"), TensorType::of_sizes(DType::F32, shape)));
    }
    for _ in 0..14 {
        // Mostly the newest value, so that chains arise.
        let x = if random.below(3) == 0 { values[random.below(values.len())] } else { values[values.len() - 1] };
        values.extend(random_node(&mut graph, &mut random, &values, x));
    }
    for (i, &v) in values.iter().rev().take(1 + random.below(3)).enumerate() {
        graph.add_output(format!("y{i}"), v);
    }
    graph.compact().unwrap();
    graph.verify().unwrap();
    graph
}

/// A node on `x` of a random kind, or none where that kind does not fit.
fn random_node(graph: &mut Graph, random: &mut Random, values: &[ValueId], x: ValueId) -> Option<ValueId> {
    let shape = graph.ty(x).sizes().unwrap();
    let (rank, scope) = (shape.len(), "".into());
    let dims = |sizes: &[usize]| sizes.iter().map(|&d| Dim::from(d)).collect::<Vec<_>>();
    let axis = random.below(rank.max(1));
    let made = match random.below(12) {
        0 | 1 => {
            let mut perm: Vec<usize> = (0..rank).collect();
            (1..rank).for_each(|i| perm.swap(i, random.below(i + 1)));
            graph.add1(Permute { perm }, &[x], &scope)
        }
        2 | 3 => {
            // Any factors in any order, with some ones.
            let mut left: usize = shape.iter().product();
            let mut to = Vec::new();
            while left > 1 {
                let divisors: Vec<usize> = (2..=left).filter(|d| left.is_multiple_of(*d)).collect();
                let d = divisors[random.below(divisors.len())];
                to.push(d);
                left /= d;
            }
            if random.below(3) == 0 {
                to.insert(random.below(to.len() + 1), 1);
            }
            graph.add1(Reshape { shape: dims(&to) }, &[x], &scope)
        }
        4 if rank > 1 => {
            // One axis split, or merged with the next.
            let mut to = shape.clone();
            if shape[axis].is_multiple_of(2) {
                to[axis] = 2;
                to.insert(axis + 1, shape[axis] / 2);
            } else if axis + 1 < rank {
                to[axis] *= to.remove(axis + 1);
            }
            graph.add1(Reshape { shape: dims(&to) }, &[x], &scope)
        }
        5 if rank > 0 => {
            let start = random.below(shape[axis]);
            let end = start + 1 + random.below(shape[axis] - start);
            let step = 1 + random.below(2);
            graph.add1(Slice { axis, start: Dim::from(start), end: Dim::from(end), step }, &[x], &scope)
        }
        6 => {
            let f = [UnaryFn::Relu, UnaryFn::Tanh, UnaryFn::Neg, UnaryFn::Sigmoid, UnaryFn::Silu][random.below(5)];
            graph.add1(Unary { f }, &[x], &scope)
        }
        7 => {
            let f = [BinaryFn::Add, BinaryFn::Mul, BinaryFn::Max, BinaryFn::Add][random.below(4)];
            graph.add1(Binary { f }, &[x, values[random.below(values.len())]], &scope)
        }
        8 if rank > 0 => {
            let (n, k) = (1 + random.below(4), shape[rank - 1]);
            let name = format!("w{}", graph.value_count());
            let w = graph.add_source(name, SourceKind::Parameter, TensorType::of_sizes(DType::F32, &[n, k]));
            if rank > 1 && random.below(2) == 0 {
                let w = graph.add1(Permute { perm: vec![1, 0] }, &[w], &scope).unwrap();
                graph.add1(Matmul { transpose_b: false }, &[x, w], &scope)
            } else {
                graph.add1(Linear { act: Activation::None, act_first: false }, &[x, w], &scope)
            }
        }
        9 if (3..=5).contains(&rank) => {
            let (spatial, layout) = (rank - 2, SpatialLayout::Nchw);
            if random.below(3) == 0 {
                let (kernel, stride, padding) = (vec![1; spatial], vec![1; spatial], vec![0; spatial]);
                let op =
                    AvgPool { kernel, stride, padding, ceil: false, count_include_pad: true, divisor: None, layout };
                graph.add1(op, &[x], &scope)
            } else {
                let mut to = vec![1 + random.below(3), shape[1]];
                to.extend(vec![1; spatial]);
                let name = format!("c{}", graph.value_count());
                let w = graph.add_source(name, SourceKind::Parameter, TensorType::of_sizes(DType::F32, &to));
                let (stride, padding, dilation) = (vec![1; spatial], vec![0; spatial], vec![1; spatial]);
                let act = Activation::None;
                graph.add1(
                    Conv { stride, padding, dilation, groups: 1, layout, act, act_first: false },
                    &[x, w],
                    &scope,
                )
            }
        }
        10 if rank > 0 => {
            let keep = random.below(2) == 0;
            match random.below(3) {
                0 => graph.add1(Reduce { f: ReduceFn::Mean, axes: vec![axis], keep }, &[x], &scope),
                1 => graph.add1(Concat { axis }, &[x, x], &scope),
                _ => {
                    let to: Vec<usize> = shape.iter().map(|&d| if d == 1 { 2 } else { d }).collect();
                    graph.add1(Expand { shape: dims(&to) }, &[x], &scope)
                }
            }
        }
        _ => graph.add1(Matmul { transpose_b: true }, &[x, values[random.below(values.len())]], &scope),
    };
    made.ok().filter(|&v| graph.ty(v).sizes().is_some_and(|s| s.iter().product::<usize>() <= 2000 && s.len() <= 6))
}

#[test]
fn lowering_twice_changes_nothing_more() {
    for (file, _, mut graph) in programs() {
        lower(&mut graph, &cpu(), Precision::default(), |_, _| {}).unwrap();
        let once = text::print(&graph);
        lower(&mut graph, &cpu(), Precision::default(), |_, _| {}).unwrap();
        assert_eq!(text::print(&graph), once, "{file}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(8) })]

    #[test]
    fn results_stay(seed in any::<u64>()) {
        check(seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn results_of_random_programs_stay(seed in any::<u64>()) {
        let graph = random_program(seed);
        let given = given(&graph, seed ^ 1);
        check_lowering(&text::print(&graph), &graph, &given, &results(&graph, &given));
    }
}
