//! Passes keep what a program computes: the program of every golden file, before and after its pass and after all passes,
//! gives the same results by the reference evaluator.

use std::{fs, path::Path};

use proptest::prelude::{ProptestConfig, any, proptest};
use regraft_compile::lower::{PASSES, lower, run_pass};
use regraft_ir::{
    Graph,
    eval::{self, Bindings},
    text,
};
use regraft_tensor::{DType, Tensor};

/// Name of the file, its pass, and the program before it.
fn programs() -> Vec<(String, String, Graph)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/passes");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let read = |file: &std::path::PathBuf| {
        let content = fs::read_to_string(file).unwrap();
        let head = content.split("\n---- after ----\n").next().unwrap();
        let (first, program) = head.split_once('\n').unwrap();
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

    fn tensor(&mut self, dtype: DType, shape: &[usize], positive: bool) -> Tensor {
        let count = shape.iter().product();
        let unit = |bits: u64| (bits >> 11) as f64 / (1u64 << 53) as f64;
        let value = |bits: u64| match dtype {
            DType::Bool => f64::from(bits % 3 != 0),
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
        let (e, f) = (e.to_f64_vec(), f.to_f64_vec());
        let largest = e.iter().filter(|v| v.is_finite()).fold(1e-3f64, |m, v| m.max(v.abs()));
        for (at, (e, f)) in e.iter().zip(&f).enumerate() {
            // A row of attention that the mask leaves nothing of is NaN without PyTorch's guard and zero in the op.
            let same = e == f || (e.is_nan() && (f.is_nan() || *f == 0.0)) || (e - f).abs() <= 1e-5 * largest;
            assert!(same, "{what}: output {i} at {at}: expected {e}, found {f}");
        }
    }
}

fn check(seed: u64) {
    for (file, pass, graph) in programs() {
        let given = given(&graph, seed);
        let expected = results(&graph, &given);
        let mut one = graph.clone();
        run_pass(PASSES.iter().find(|p| p.name == pass).unwrap(), &mut one).unwrap();
        assert_close(&format!("{file} after {pass}"), &expected, &results(&one, &given));
        let mut all = graph.clone();
        let mut steps = Vec::new();
        lower(&mut all, |name, graph| steps.push((name, graph.clone()))).unwrap();
        for (name, graph) in steps {
            assert_close(&format!("{file} lowered up to {name}"), &expected, &results(&graph, &given));
        }
    }
}

#[test]
fn lowering_twice_changes_nothing_more() {
    for (file, _, mut graph) in programs() {
        lower(&mut graph, |_, _| {}).unwrap();
        let once = text::print(&graph);
        lower(&mut graph, |_, _| {}).unwrap();
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
