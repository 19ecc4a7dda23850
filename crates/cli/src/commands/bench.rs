use std::time::{Duration, Instant};

use regraft::{
    Mode, Model, PhaseTimes, RefitOptions, RuntimeError, RuntimeErrorKind, SlotCopier, StateDict, Tensor, ir::Graph,
};
use serde_json::{Value, json};

use super::{load, path_json, phases};
use crate::{
    args::BenchArgs,
    failure::Failure,
    output::{self, Output},
};

/// How long a series takes when the number of runs is left to us, and how long it may be.
const SERIES: Duration = Duration::from_secs(2);
const RUNS: std::ops::RangeInclusive<usize> = 5..=1_000;
/// Rounds of refit and copy; the first ones bring memory into use and are not counted.
const REFITS: usize = 12;
const WARM_UP: usize = 2;
/// How far the other weights lie off; more than the rounding of bf16.
const STEP: f64 = 1e-2;

pub(super) fn run(args: &BenchArgs, out: &mut Output) -> Result<(), Failure> {
    let model = load(&args.engine, args.threads, out)?;
    bound(&model, &args.engine)?;
    let against = match &args.against {
        Some(path) => {
            let other = load(path, args.threads, out)?;
            bound(&other, path)?;
            same_interface(&model, &other, path)?;
            Some(other)
        }
        None => None,
    };
    let symbols = sizes(&model.plan().graph, &args.dims)?;
    let inputs = working_inputs(&model, &symbols).map_err(|f| f.about(&args.engine))?;
    let threads = model.device().threads();
    let target = model.device().codegen().target();
    let on = output::count(threads, "thread");
    out.line("engine", format!("{}: {}, {target}, {on}", args.engine.display(), model.mode()));
    let shapes = model.plan().graph.inputs.iter().zip(&inputs);
    let shapes: Vec<String> = shapes.map(|(i, t)| format!("{} {}{:?}", i.name, t.dtype(), t.shape())).collect();
    out.line("inputs", shapes.join(", "));
    out.fact("engine", path_json(&args.engine));
    out.fact("mode", model.mode().to_string());
    out.fact("threads", threads);
    out.fact("target", target.to_string());
    out.fact("inputs", shapes);

    let latency = latency(&model, &inputs, args, out)?;
    out.line("latency", latency.text(true));
    out.fact("latency_ms", latency.json());
    if let (Some(other), Some(path)) = (&against, &args.against) {
        let (ours, theirs) = compare(&model, other, &inputs, args, out)?;
        let ratio = ours.median() / theirs.median();
        out.line("this", ours.text(true));
        out.line("against", format!("{}: {}", path.display(), theirs.text(true)));
        out.line("ratio", format!("{ratio:.3} of the medians, runs interleaved"));
        out.fact(
            "against",
            json!({
                "engine": path_json(path), "mode": other.mode().to_string(), "latency_ms": theirs.json(),
                "this_latency_ms": ours.json(), "ratio_of_medians": ratio,
            }),
        );
    }
    if model.mode() == Mode::Refittable {
        refits(&model, out)?;
    } else {
        out.line("refit", format!("the engine is {}: nothing to measure", model.mode()));
    }
    Ok(())
}

/// Fails when a stripped engine has no weights yet.
pub(super) fn bound(model: &Model, path: &std::path::Path) -> Result<(), Failure> {
    if model.generation().is_some() {
        return Ok(());
    }
    let help = format!("bind it first: regraft bind {} --weights MODEL.safetensors -o BOUND.rgf", path.display());
    Err(Failure::new("the engine is stripped: it has no weights yet").about(path).help(help))
}

fn same_interface(model: &Model, other: &Model, path: &std::path::Path) -> Result<(), Failure> {
    let types = |m: &Model| super::inputs(&m.plan().graph).map(|(_, ty)| ty.to_string()).collect::<Vec<_>>();
    if types(model) == types(other) {
        return Ok(());
    }
    let found = super::named_types(super::inputs(&other.plan().graph));
    let failure = Failure::new("the engines take different inputs").about(path);
    let expected = super::named_types(super::inputs(&model.plan().graph));
    Err(failure.problem("this engine", expected).problem("the other", found))
}

// ------------------------------------------------------------------------------------------------------------- inputs

/// The size of every symbol: what was asked for, else what the program was exported with.
pub(super) fn sizes(graph: &Graph, asked: &[(String, i64)]) -> Result<Vec<i64>, Failure> {
    let mut sizes: Vec<i64> = graph.symbols.iter().map(|s| s.opt).collect();
    for (name, size) in asked {
        let number = name.strip_prefix('s').and_then(|n| n.parse::<usize>().ok());
        let Some((at, symbol)) = number.and_then(|n| Some((n, graph.symbols.get(n)?))) else {
            let failure = Failure::usage(format!("--dims {name}={size}: the program has no such dim"));
            let list = |f: Failure, (i, s): (usize, &regraft::ir::SymbolInfo)| {
                f.problem(format!("s{i}"), format!("in {}..={}", s.range.min, s.range.max))
            };
            return Err(graph.symbols.iter().enumerate().fold(failure, list));
        };
        if !(symbol.range.min..=symbol.range.max).contains(size) {
            let range = format!("{}..={}", symbol.range.min, symbol.range.max);
            return Err(Failure::usage(format!("--dims {name}={size}: {name} lies in {range}")));
        }
        sizes[at] = *size;
    }
    Ok(sizes)
}

/// Random inputs that the program takes: integers may be ids, and tables have any number of rows.
pub(super) fn working_inputs(model: &Model, symbols: &[i64]) -> Result<Vec<Tensor>, Failure> {
    let mut last = None;
    for limit in [100, 2, 1] {
        let inputs = regraft::random_inputs(&model.plan().graph, symbols, limit, 0)
            .map_err(|error| Failure::new(error.to_string()))?;
        match model.run(&inputs) {
            Ok(_) => return Ok(inputs),
            Err(error) if is_index(&error) => last = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last.map_or_else(|| Failure::new("no inputs were found that the program takes"), Failure::from))
}

fn is_index(error: &RuntimeError) -> bool {
    matches!(error.kind(), RuntimeErrorKind::Node { .. })
}

// ------------------------------------------------------------------------------------------------------------ latency

/// Milliseconds of repeated runs, in order of size.
struct Times(Vec<f64>);

impl Times {
    fn new(mut ms: Vec<f64>) -> Self {
        ms.sort_by(f64::total_cmp);
        Times(ms)
    }

    fn at(&self, part: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((part * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
    }

    fn median(&self) -> f64 {
        self.at(0.5)
    }

    fn best(&self) -> f64 {
        self.at(0.0)
    }

    /// What a rate over many runs is compared with: the median leaves out what slow runs take.
    fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    fn text(&self, spread: bool) -> String {
        let ms = output::milliseconds;
        let runs = output::count(self.0.len(), "run");
        if spread {
            let [median, mean, p10, p90] = [self.median(), self.mean(), self.at(0.1), self.at(0.9)].map(ms);
            format!("median {median}, mean {mean}, p10 {p10}, p90 {p90} ({runs})")
        } else {
            format!("median {}, best {} ({runs})", ms(self.median()), ms(self.best()))
        }
    }

    fn json(&self) -> Value {
        json!({
            "median": self.median(), "mean": self.mean(), "p10": self.at(0.1), "p90": self.at(0.9), "best": self.best(),
            "runs": self.0.len(),
        })
    }
}

fn time(work: impl FnOnce() -> Result<Vec<Tensor>, RuntimeError>) -> Result<f64, Failure> {
    let start = Instant::now();
    let outputs = work()?;
    let ms = start.elapsed().as_secs_f64() * 1e3;
    drop(outputs);
    Ok(ms)
}

/// How many runs: what was asked for, else as many as fit in a series after one that warms up.
fn number_of_runs(args: &BenchArgs, one_ms: f64) -> usize {
    let fitting = (SERIES.as_secs_f64() * 1e3 / one_ms.max(1e-3)) as usize;
    args.runs.map_or(fitting.clamp(*RUNS.start(), *RUNS.end()), std::num::NonZero::get)
}

fn latency(model: &Model, inputs: &[Tensor], args: &BenchArgs, out: &Output) -> Result<Times, Failure> {
    let mut session = model.session();
    // The first run binds the plan and touches the memory; the second is like all others.
    time(|| session.run(inputs))?;
    let runs = number_of_runs(args, time(|| session.run(inputs))?);
    let busy = out.rounds("latency", runs);
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        session.reset_state();
        times.push(time(|| session.run(inputs))?);
        busy.step();
    }
    Ok(Times::new(times))
}

/// Interleaves runs of both, A B B A, so that what changes with time falls on both.
fn compare(
    model: &Model,
    other: &Model,
    inputs: &[Tensor],
    args: &BenchArgs,
    out: &Output,
) -> Result<(Times, Times), Failure> {
    let (mut a, mut b) = (model.session(), other.session());
    time(|| a.run(inputs))?;
    time(|| b.run(inputs))?;
    let rounds = number_of_runs(args, time(|| a.run(inputs))? + time(|| b.run(inputs))?);
    let busy = out.rounds("against", rounds);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        a.reset_state();
        b.reset_state();
        if round % 2 == 0 {
            ours.push(time(|| a.run(inputs))?);
            theirs.push(time(|| b.run(inputs))?);
        } else {
            theirs.push(time(|| b.run(inputs))?);
            ours.push(time(|| a.run(inputs))?);
        }
        busy.step();
    }
    Ok((Times::new(ours), Times::new(theirs)))
}

// -------------------------------------------------------------------------------------------------------------- refit

/// Refits back and forth between two sets of weights that differ in every float tensor, each refit followed by a copy of
/// all slots.
fn refits(model: &Model, out: &mut Output) -> Result<(), Failure> {
    let (one, other) = {
        let _busy = out.busy("making other weights");
        (weights(model, 0.0), weights(model, STEP))
    };
    let copier = SlotCopier::new(model, 0..model.plan().slots.len())?;
    let (mut totals, mut copies, mut all_phases) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    {
        let busy = out.rounds("refit", REFITS + WARM_UP);
        for round in 0..REFITS + WARM_UP {
            let weights = if round % 2 == 0 { &other } else { &one };
            let report = model.refit(weights, &RefitOptions::default())?;
            let copy =
                copier.copy(&*model.generation().ok_or(RuntimeErrorKind::NotBound).map_err(RuntimeError::from)?)?;
            if round >= WARM_UP {
                totals.push(report.phases_ms.total());
                all_phases.push(report.phases_ms);
                copies.push(copy.as_secs_f64() * 1e3);
            }
            last = Some(report);
            busy.step();
        }
    }
    let Some(report) = last else { return Ok(()) };
    let best = all_phases.iter().copied().min_by(|a, b| a.total().total_cmp(&b.total())).unwrap_or_default();
    let (refit, copy) = (Times::new(totals), Times::new(copies));
    let (ratio, best_ratio) = (refit.median() / copy.median(), refit.best() / copy.best());
    let (slots, bytes) = (report.recomputed_slots.len(), report.bytes);
    let amount = format!("{}, {}", output::count(slots, "slot"), output::bytes(bytes as u64));
    out.line("refit", format!("{amount}: {}", refit.text(false)));
    out.line("", format!("best: {}", phases(&best)));
    out.line("copy", format!("the same bytes on the same threads: {}", copy.text(false)));
    out.line("ratio", format!("a refit takes {ratio:.2} × the copy (best {best_ratio:.2} ×)"));
    out.fact(
        "refit",
        json!({
            "ms": refit.json(), "best_phases_ms": phases_json(&best), "slots": slots, "shared_slots":
            report.shared_slots.len(), "bytes": bytes, "copy_ms": copy.json(), "ratio_of_medians": ratio,
            "ratio_of_bests": best_ratio, "gigabytes_per_second": bytes as f64 / refit.median() / 1e6,
        }),
    );
    Ok(())
}

fn phases_json(times: &PhaseTimes) -> Value {
    serde_json::to_value(times).unwrap_or_default()
}

/// The serving weights with every float moved by about `step`, in memory of our own.
fn weights(model: &Model, step: f64) -> StateDict {
    let Some(generation) = model.generation() else { return StateDict::new() };
    let infos = model.refit_map().sources.iter();
    infos
        .zip(&generation.sources)
        .filter_map(|(info, tensor)| Some((info.name.clone(), moved(&tensor.tensor().ok()??, step))))
        .collect()
}

/// Variances stay positive, and zeros do not stay zero.
fn moved(tensor: &Tensor, step: f64) -> Tensor {
    if !tensor.dtype().is_float() {
        return tensor.clone();
    }
    let values: Vec<f64> = tensor.to_f64_vec().into_iter().map(|v| v + step * v + step).collect();
    Tensor::from_f64(tensor.dtype(), tensor.shape(), &values)
}

#[cfg(test)]
mod tests {
    use regraft::DType;

    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_times() {
        let times = Times::new((0..=10).rev().map(f64::from).collect());
        assert_eq!([times.best(), times.at(0.1), times.median(), times.at(0.9)], [0.0, 1.0, 5.0, 9.0]);
        assert!(Times::new(Vec::new()).median().is_nan());
    }

    #[test]
    fn a_slow_run_counts_in_the_mean() {
        let times = Times::new(vec![9.0, 1.0, 2.0]);
        assert_eq!((times.median(), times.mean()), (2.0, 4.0));
        assert!(Times::new(Vec::new()).mean().is_nan());
    }

    #[test]
    fn every_float_moves() {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let tensor = Tensor::from_f64(dtype, &[4], &[0.0, 1.0, -3.0, 100.0]);
            let moved = moved(&tensor, STEP).to_f64_vec();
            assert!(moved.iter().zip(tensor.to_f64_vec()).all(|(a, b)| *a != b), "{dtype}: {moved:?}");
        }
    }

    #[test]
    fn dims_are_known_and_in_range() {
        let program = "program \"p\" {
            dims   s0 in 1..=8 (opt 4)
            input  %0 : f32[s0] = \"x\"
            output %0 = \"y\"
        }";
        let graph = regraft::ir::text::parse(program).unwrap();
        assert_eq!(sizes(&graph, &[]).unwrap(), [4]);
        assert_eq!(sizes(&graph, &[("s0".into(), 8)]).unwrap(), [8]);
        assert!(sizes(&graph, &[("s0".into(), 9)]).is_err() && sizes(&graph, &[("s1".into(), 1)]).is_err());
        let inputs = regraft::random_inputs(&graph, &[3], 10, 0).unwrap();
        assert_eq!(inputs[0].shape(), [3]);
    }
}
