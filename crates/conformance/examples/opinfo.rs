//! Imports and runs the samples of PyTorch's operator database that `tests/opinfo/export.py` wrote, or the node cases of ONNX
//! that `tests/onnx_cases/export.py` wrote:
//! `cargo run -p regraft-conformance --example opinfo -- FOLDER [--expected LIST] [--bless] [--only TEXT] [--results FILE]`
//!
//! Each program runs on the reference evaluator and on the CPU backend. A sample is *right*, *refused* by the importer, or
//! *wrong*. LIST has a line for each operator of which samples are refused: `operator`, `dtype=count ...`, why, and for what
//! no engine for inference can give (`NOT_APPLICABLE`) of which kind it is, with tabs between. A wrong answer, or a refusal that is
//! not in the list, fails the run; so does a list that could be shorter, unless
//! `--bless` shortens it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
};

use regraft::{StateDict, Tensor};
use regraft_backend_cpu::Isa;
use regraft_compile::pipeline::Options;
use regraft_conformance::{backend, build};
use regraft_ir::{
    Graph,
    eval::{self, Bindings},
};
use regraft_tensor::DType;

/// The outcome of a sample.
enum Outcome {
    Right,
    /// The importer's reason, in one line.
    Refused(String),
    Wrong(String),
}

/// What a program that is compiled once and gives tensors of known sizes cannot do, by what the importer says of it. Samples of
/// these kinds are refused like all others, and counted apart: whatever a model may use when it serves belongs in none of them.
const NOT_APPLICABLE: &[(&str, &[&str])] = &[
    // The answer is another one at each run; models are given random numbers as inputs.
    ("random", &["a random number generator", "dropout in training mode", "rrelu in training mode", "with dropout"]),
    // The size of the result is known only when the values are.
    ("values", &["depends on the values of a tensor"]),
    // Engines give real numbers: inside of a program complex ones are pairs.
    ("complex", &["complex numbers", "aten.chalf."]),
    // Memory of another size behind the same tensor.
    ("storage", &["resizing the memory of a tensor"]),
    // The backward pass of an operator.
    ("gradient", &["_backward.", "_backward_data."]),
];

/// The kind of [`NOT_APPLICABLE`] that a refusal is of.
fn kind_of(reason: &str) -> Option<&'static str> {
    NOT_APPLICABLE.iter().find(|(_, marks)| marks.iter().any(|mark| reason.contains(mark))).map(|(kind, _)| *kind)
}

/// The counts of an operator, and a reason for its refusals.
#[derive(Default)]
struct Counts {
    refused: BTreeMap<String, usize>,
    reason: String,
}

type List = BTreeMap<String, Counts>;

struct Args {
    folder: PathBuf,
    expected: Option<PathBuf>,
    bless: bool,
    only: String,
    /// Where the number of right, of all and of inapplicable samples goes, by operator and dtype.
    results: Option<PathBuf>,
}

fn arguments() -> Option<Args> {
    let mut args = std::env::args().skip(1);
    let mut parsed = Args { folder: PathBuf::new(), expected: None, bless: false, only: String::new(), results: None };
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--expected" => parsed.expected = Some(args.next()?.into()),
            "--results" => parsed.results = Some(args.next()?.into()),
            "--only" => parsed.only = args.next()?,
            "--bless" => parsed.bless = true,
            _ => parsed.folder = arg.into(),
        }
    }
    parsed.folder.is_dir().then_some(parsed)
}

fn main() -> ExitCode {
    let Some(args) = arguments() else {
        eprintln!("usage: opinfo FOLDER [--expected LIST] [--bless] [--only TEXT]");
        return ExitCode::from(2);
    };
    // A panic is an outcome here, told in a line of its own.
    std::panic::set_hook(Box::new(|_| {}));
    let (mut list, mut totals, mut failed) = (List::new(), [0usize; 3], false);
    let mut kinds: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut results: BTreeMap<(String, String), [usize; 3]> = BTreeMap::new();
    for path in programs(&args.folder, &args.only) {
        let (operator, sample) = names(&path);
        let dtype = sample.split('-').next().unwrap_or_default().to_owned();
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&path)))
            .unwrap_or_else(|panic| Outcome::Wrong(format!("panicked: {}", message(&*panic))));
        let counts = results.entry((operator.clone(), dtype.clone())).or_insert([0usize; 3]);
        counts[0] += usize::from(matches!(outcome, Outcome::Right));
        counts[1] += 1;
        match outcome {
            Outcome::Right => totals[0] += 1,
            Outcome::Refused(reason) => {
                totals[1] += 1;
                if let Some(kind) = kind_of(&reason) {
                    *kinds.entry(kind).or_default() += 1;
                    counts[2] += 1;
                }
                println!("refused {operator} {sample}: {reason}");
                let counts = list.entry(operator).or_default();
                *counts.refused.entry(dtype).or_default() += 1;
                if counts.reason.is_empty() {
                    counts.reason = reason;
                }
            }
            Outcome::Wrong(how) => {
                totals[2] += 1;
                failed = true;
                println!("WRONG {operator} {sample}: {how}");
            }
        }
    }
    let all: usize = totals.iter().sum();
    println!("{all} samples: {} right, {} refused, {} wrong", totals[0], totals[1], totals[2]);
    let apart: usize = kinds.values().sum();
    let named: Vec<String> = kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    println!("not applicable: {apart} ({})", named.join(", "));
    println!("right of all: {}, right of applicable: {}", percent(totals[0], all), percent(totals[0], all - apart));
    if let Some(path) = &args.results {
        let lines = results
            .iter()
            .map(|((operator, dtype), [right, all, apart])| format!("{operator}\t{dtype}\t{right}\t{all}\t{apart}\n"));
        if let Err(error) = std::fs::write(path, lines.collect::<String>()) {
            eprintln!("{}: {error}", path.display());
            failed = true;
        }
    }
    if let Some(path) = &args.expected {
        failed |= !compare_with(path, list, &args);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn percent(part: usize, whole: usize) -> String {
    format!("{part} of {whole} ({:.1} %)", 100.0 * part as f64 / whole.max(1) as f64)
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    one_line(text.unwrap_or("without a message"))
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

/// The programs below `folder` with `only` in their paths, in order.
fn programs(folder: &Path, only: &str) -> Vec<PathBuf> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let mut found: Vec<PathBuf> = entries(folder)
        .flat_map(|operator| entries(&operator).collect::<Vec<_>>())
        .filter(|p| p.extension().is_some_and(|e| e == "pt2" || e == "onnx") && p.to_string_lossy().contains(only))
        .collect();
    found.sort();
    found
}

/// The operator and the sample, from the path.
fn names(path: &Path) -> (String, String) {
    let name = |p: Option<&std::ffi::OsStr>| p.unwrap_or_default().to_string_lossy().into_owned();
    (name(path.parent().and_then(Path::file_name)), name(path.file_stem()))
}

fn numbered(tensors: &StateDict, prefix: &str) -> Vec<Tensor> {
    (0..).map_while(|i| tensors.get(&format!("{prefix}.{i}")).cloned()).collect()
}

fn check(path: &Path) -> Outcome {
    let imported = match regraft_import::import(path) {
        Ok(imported) => imported,
        Err(error) => return Outcome::Refused(reason(&error.to_string())),
    };
    let tensors = match regraft::open_weights(path.with_extension("safetensors")) {
        Ok(tensors) => tensors,
        Err(error) => return Outcome::Wrong(format!("no answers: {}", one_line(&error.to_string()))),
    };
    let inputs = numbered(&tensors, "input");
    let mut answers = Answers {
        expected: numbered(&tensors, "expected"),
        wide: numbered(&tensors, "wide"),
        first: UNSPECIFIED.contains(&names(path).0.as_str()).then(|| tensors.get("input.0").cloned()).flatten(),
    };
    if let Err(how) = answers.add_written(&imported.graph, &tensors, &inputs) {
        return Outcome::Wrong(how);
    }
    let Some(sources) = imported.weights.iter().cloned().collect::<Option<Vec<_>>>() else {
        return Outcome::Wrong("a source has no value".to_owned());
    };
    let states: Vec<Tensor> = imported.graph.states.iter().map(|s| sources[s.init as usize].clone()).collect();
    let bindings = Bindings { inputs: &inputs, sources: &sources, states: &states };
    let reference = eval::run(&imported.graph, bindings).map(|r| r.outputs).map_err(|e| e.to_string());
    let result = reference.and_then(|found| answers.compare("reference", &found)).and_then(|()| {
        let found = on_the_cpu(imported, &inputs)?;
        answers.compare("cpu", &found)
    });
    match result {
        Ok(()) => Outcome::Right,
        Err(how) => Outcome::Wrong(one_line(&how)),
    }
}

fn on_the_cpu(imported: regraft_import::Imported, inputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
    let isa = Isa::detect();
    let compiled = build(imported.graph, &imported.weights, isa, Options::default()).map_err(|e| e.to_string())?;
    let model = regraft::model(compiled.engine, backend(isa)).map_err(|e| e.to_string())?;
    model.run(inputs).map_err(|e| e.to_string())
}

/// The importer's error in one line, without the path of the file and advice.
fn reason(error: &str) -> String {
    let mut unknown: Vec<&str> =
        error.split_whitespace().filter(|w| w.starts_with("torch.ops.") || w.starts_with("ai.onnx.")).collect();
    if error.contains("no translation") && !unknown.is_empty() {
        unknown.dedup();
        return format!("no translation of {}", unknown.join(", "));
    }
    let line = one_line(error);
    let line = [".pt2: ", ".onnx: "].iter().find_map(|e| line.split_once(e)).map_or(line.as_str(), |(_, rest)| rest);
    let line = line.split_once("; help: ").map_or(line, |(what, _)| what);
    line.replace('\t', " ")
}

/// How far a result may be from PyTorch's: relative, and as a part of the greatest value.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-7,
        DType::F32 => 1e-4,
        DType::F16 => 4e-3,
        DType::BF16 => 2e-2,
        _ => 0.0,
    }
}

/// Operators that leave open which of equal elements they give the position of.
const UNSPECIFIED: &[&str] = &["argsort", "kthvalue", "sort", "topk", "mode", "median", "nanmedian", "masked_median"];

/// What PyTorch gives.
struct Answers {
    expected: Vec<Tensor>,
    /// What PyTorch gives in a wider type, of half-precision samples mostly: its kernels for halves round, and lose, more than
    /// ours.
    wide: Vec<Tensor>,
    /// The first input, where positions of equal elements may differ.
    first: Option<Tensor>,
}

impl Answers {
    /// Adds what is in the inputs afterwards that the program says it writes to: outputs behind its own, called after them.
    fn add_written(&mut self, graph: &Graph, tensors: &StateDict, inputs: &[Tensor]) -> Result<(), String> {
        for (i, (input, before)) in graph.inputs.iter().zip(inputs).enumerate() {
            let after = tensors.get(&format!("after.{i}"));
            if graph.outputs.iter().any(|output| output.name == format!("{}.new", input.name)) {
                let after = after.ok_or("no answer for what it writes to an input: export the sample again")?;
                self.expected.push(after.clone());
                self.wide.extend(tensors.get(&format!("wide_after.{i}")).cloned());
            } else if after.is_some_and(|after| !after.bit_equal(before)) {
                return Err(format!("it writes to input {i}, which is not among the outputs"));
            }
        }
        Ok(())
    }

    fn compare(&self, what: &str, found: &[Tensor]) -> Result<(), String> {
        if found.len() != self.expected.len() {
            return Err(format!("{what}: {} outputs, expected {}", found.len(), self.expected.len()));
        }
        for (i, (found, expected)) in found.iter().zip(&self.expected).enumerate() {
            if (found.dtype(), found.shape()) != (expected.dtype(), expected.shape()) {
                let (fd, fs, ed, es) = (found.dtype(), found.shape(), expected.dtype(), expected.shape());
                return Err(format!("{what}: output {i} is {fd}{fs:?}, expected {ed}{es:?}"));
            }
            let Some(at) = difference(found, expected) else { continue };
            let like_f32 = self.wide.get(i).is_some_and(|wide| difference(found, wide).is_none());
            let of_equals = self.first.as_ref().is_some_and(|x| same_elements(x, found, expected));
            if !like_f32 && !of_equals {
                let (found, expected) = (found.to_f64_vec()[at], expected.to_f64_vec()[at]);
                return Err(format!("{what}: output {i}[{at}] is {found}, expected {expected}"));
            }
        }
        Ok(())
    }
}

/// The first element that is further from `expected` than its dtype allows.
fn difference(found: &Tensor, expected: &Tensor) -> Option<usize> {
    let tolerance = tolerance(found.dtype());
    let (a, b) = (found.to_f64_vec(), expected.to_f64_vec());
    let scale = b.iter().filter(|v| v.is_finite()).fold(1e-6f64, |m, v| m.max(v.abs())).min(1.0);
    let same = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * (b.abs() + scale);
    if a.len() != b.len() {
        return Some(0);
    }
    (0..a.len()).find(|&at| !same(a[at], b[at]))
}

/// Whether positions along some axis of `x`, which may have gone, lead to equal elements of it.
fn same_elements(x: &Tensor, found: &Tensor, expected: &Tensor) -> bool {
    if found.dtype() != DType::I64 {
        return false;
    }
    let (values, a, b) = (x.to_f64_vec(), found.to_i64_vec(), expected.to_i64_vec());
    (0..x.shape().len()).any(|axis| {
        let mut shape = found.shape().to_vec();
        if shape.len() + 1 == x.shape().len() {
            shape.insert(axis, 1);
        }
        let fits = shape.len() == x.shape().len() && (0..shape.len()).all(|i| i == axis || x.shape()[i] == shape[i]);
        let (size, inner): (usize, usize) = (x.shape()[axis], x.shape()[axis + 1..].iter().product());
        let element = |at: usize, index: i64| {
            let index = usize::try_from(index).ok().filter(|&i| i < size)?;
            let value = values.get((at / inner / shape[axis] * size + index) * inner + at % inner)?;
            Some(value.to_bits())
        };
        fits && (0..a.len()).all(|at| element(at, a[at]).is_some_and(|v| element(at, b[at]) == Some(v)))
    })
}

/// Reads the list at `path`.
fn read_list(path: &Path) -> List {
    let mut list = List::new();
    for line in std::fs::read_to_string(path).unwrap_or_default().lines().filter(|l| !l.starts_with('#')) {
        let mut parts = line.splitn(4, '\t');
        let (Some(operator), Some(counts), reason) = (parts.next(), parts.next(), parts.next()) else { continue };
        let pairs = counts.split(' ').filter_map(|pair| pair.split_once('='));
        let refused = pairs.filter_map(|(d, n)| Some((d.to_owned(), n.parse().ok()?))).collect();
        list.insert(operator.to_owned(), Counts { refused, reason: reason.unwrap_or_default().to_owned() });
    }
    list
}

fn write_list(path: &Path, list: &List) -> std::io::Result<()> {
    // The list says itself what it is of.
    let before = std::fs::read_to_string(path).unwrap_or_default();
    let mut text: String = before.lines().take_while(|l| l.starts_with('#')).map(|l| format!("{l}\n")).collect();
    if text.is_empty() {
        text.push_str(
            "# What the importer refuses: operator, number for each dtype, reason; lines only go or shrink.\n",
        );
    }
    for (operator, counts) in list {
        let pairs: Vec<String> = counts.refused.iter().map(|(d, n)| format!("{d}={n}")).collect();
        let kind = kind_of(&counts.reason).map_or(String::new(), |kind| format!("\t{kind}"));
        let _ = writeln!(text, "{operator}\t{}\t{}{kind}", pairs.join(" "), counts.reason);
    }
    std::fs::write(path, text)
}

/// Whether everything that was refused is expected.
fn compare_with(path: &Path, found: List, args: &Args) -> bool {
    if args.bless && !path.exists() {
        return write_list(path, &found).is_ok();
    }
    let mut expected = read_list(path);
    let mut fine = true;
    for (operator, counts) in &found {
        for (dtype, &n) in &counts.refused {
            let listed = expected.get(operator).and_then(|c| c.refused.get(dtype)).copied().unwrap_or(0);
            if n > listed {
                fine = false;
                println!("UNEXPECTED {operator} {dtype}: {n} refused, {listed} in the list: {}", counts.reason);
            }
        }
    }
    if args.bless && fine {
        // Only operators of which samples were run can have changed.
        let run: Vec<String> = programs(&args.folder, &args.only).iter().map(|p| names(p).0).collect();
        expected.retain(|operator, _| found.contains_key(operator) || !run.contains(operator));
        for (operator, counts) in found {
            expected.insert(operator, counts);
        }
        fine = write_list(path, &expected).is_ok();
    }
    fine
}
