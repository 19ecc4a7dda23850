//! One file per command, and what they share.

mod bench;
mod bind;
mod cache;
mod check;
mod compile;
mod completions;
mod delta;
mod diff;
mod doctor;
mod inspect;
mod loss;
mod profile;
mod refit;
mod run;
mod samples;
mod serve;
mod strip;
mod tune;

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use regraft::{
    AdapterReport, AtomicFile, BakedAdapter, Engine, Ignored, KeepSources, Mode, Model, RefitReport, StateDict,
    ir::{Graph, TensorType},
};
use serde_json::{Value, json};

use crate::{
    args::{Command, NameFlags, ThreadArgs},
    failure::{Failure, misfit_of},
    output::{self, Output},
};

/// As many names stand in one line.
const SHOWN: usize = 4;

/// Runs a command.
pub(crate) fn run(command: &Command, out: &mut Output) -> Result<(), Failure> {
    match command {
        Command::Compile(args) => compile::run(args, out),
        Command::Run(args) => run::run(args, out),
        Command::Refit(args) => refit::run(args, out),
        Command::Bind(args) => bind::run(args, out),
        Command::Strip(args) => strip::run(args, out),
        Command::Check(args) => check::run(args, out),
        Command::Delta(args) => delta::run(args, out),
        Command::Diff(args) => diff::run(args, out),
        Command::Inspect(args) => inspect::run(args, out),
        Command::Bench(args) => bench::run(args, out),
        Command::Profile(args) => profile::run(args, out),
        Command::Serve(args) => serve::run(args, out),
        Command::Cache(args) => cache::run(args, out),
        Command::Doctor(args) => doctor::run(args, out),
        Command::Completions(args) => completions::run(args, out),
    }
}

/// Reads an engine file, every byte of it.
fn read_engine(path: &Path) -> Result<Engine, Failure> {
    Engine::read(path).map_err(|e| Failure::from(regraft::Error::from(e)).about(path))
}

/// Opens an engine file without reading its weights.
fn open_engine(path: &Path) -> Result<Engine, Failure> {
    Engine::open(path).map_err(|e| Failure::from(regraft::Error::from(e)).about(path))
}

/// Loads an engine for this machine.
fn load(path: &Path, machine: ThreadArgs, out: &Output) -> Result<Model, Failure> {
    let _busy = out.busy(format!("loading {}", path.display()));
    let model = regraft::model(open_engine(path)?, machine.open()?).map_err(|e| Failure::from(e).about(path))?;
    model.check_file().map_err(|e| Failure::from(e).about(path))?;
    Ok(model)
}

/// Fails now when `path` cannot be written, rather than after all the work.
fn check_writable(path: &Path) -> Result<(), Failure> {
    AtomicFile::create(path).map(drop).map_err(Failure::from)
}

/// Writes an engine; returns its size.
fn write_engine(engine: &Engine, path: &Path, out: &Output) -> Result<u64, Failure> {
    let _busy = out.busy(format!("writing {}", path.display()));
    engine.write(path).map_err(|e| regraft::Error::from(e).into())
}

/// Saves a model with its report: both files or, when anything fails before the end, none.
fn save(
    model: &Model,
    (mode, keep): (Mode, KeepSources),
    path: &Path,
    report: Option<(&Path, &RefitReport)>,
    out: &Output,
) -> Result<u64, Failure> {
    let report = report.map(|(path, report)| begin_report(path, report)).transpose()?;
    let written = write_engine(&model.to_engine(mode, keep)?, path, out)?;
    report.map(AtomicFile::commit).transpose()?;
    Ok(written)
}

fn begin_report(path: &Path, report: &RefitReport) -> Result<AtomicFile, Failure> {
    let text = serde_json::to_string_pretty(report).map_err(|e| not_written(path, e))?;
    begin_text(path, &(text + "\n"))
}

/// A file with this text, which appears when it is committed.
fn begin_text(path: &Path, text: &str) -> Result<AtomicFile, Failure> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(text.as_bytes()).map_err(|e| not_written(path, e))?;
    Ok(file)
}

fn not_written(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::new(format!("could not write the file: {error}")).about(path)
}

/// Reads a weight file, and says what of it was not read.
fn open_weights(path: &Path, names: &NameFlags, out: &mut Output) -> Result<StateDict, Failure> {
    let weights = regraft::open_weights_with(path, &names.open())?;
    let skipped = weights.skipped();
    for (place, what) in skipped.iter().take(SHOWN) {
        out.note(format!("{}: {place} is {what}, which was not read", path.display()));
    }
    if skipped.len() > SHOWN {
        out.note(format!("{}: {} other places were not read", path.display(), skipped.len() - SHOWN));
    }
    if !skipped.is_empty() {
        out.fact("skipped", json!(skipped));
    }
    Ok(weights)
}

/// How names were matched, and which of them change nothing.
fn tell_names(naming: &str, ignored: &[Ignored], out: &mut Output) {
    if !naming.is_empty() {
        out.line("names", format!("match {naming}"));
    }
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    ignored.iter().for_each(|i| by_reason.entry(i.why()).or_default().push(i.name()));
    for (why, names) in by_reason {
        let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
        let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
        out.line("ignored", format!("{shown}{more}: {why}"));
    }
}

/// The error of a file or of weights that do not fit, with advice in the words of the command line.
fn about_weights(error: regraft::Error, weights: &Path) -> Failure {
    let name = weights.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    match misfit_of(&error) {
        Some(misfit) => Failure::misfit(misfit, Some(&name)).unchanged(),
        None => error.into(),
    }
}

/// The lines and facts of a refit or a bind.
fn tell_refit(report: &RefitReport, sources: usize, out: &mut Output) {
    let given = report.applied.len() + report.unchanged.len();
    let mut matched = format!("{given} of {}", output::count(sources, "source"));
    for (names, what) in [(&report.unchanged, "unchanged"), (&report.kept, "kept")] {
        if !names.is_empty() {
            matched.push_str(&format!(", {} {what}", names.len()));
        }
    }
    out.line("matched", matched);
    tell_names(&report.naming, &report.ignored, out);
    tell_adapters(report, out);
    let shared = match report.shared_slots.len() {
        0 => String::new(),
        n => format!("; {n} shared"),
    };
    let slots = output::count(report.recomputed_slots.len(), "slot");
    let time = output::milliseconds(report.phases_ms.total());
    out.line("staged", format!("{slots}, {} in {time}{shared}", output::bytes(report.bytes as u64)));
    out.detail("phases", phases(&report.phases_ms));
    if out.is_verbose() {
        let slot = |s: &regraft::SlotReport| vec![s.name.clone(), output::bytes(s.bytes as u64), s.sources.join(", ")];
        let rows: Vec<_> = report.recomputed_slots.iter().map(slot).collect();
        out.table(&["slot", "bytes", "sources"], &rows);
    }
    out.fact("sources", sources);
    out.fact("milliseconds", report.phases_ms.total());
    out.fact("report", serde_json::to_value(report).unwrap_or_default());
}

/// What adapters did, and what their user may not expect.
fn tell_adapters(report: &RefitReport, out: &mut Output) {
    if !report.adapters.is_empty() {
        let adapters: Vec<String> = report.adapters.iter().map(|a| format!("{} ×{}", a.name, a.scale)).collect();
        out.line("adapted", format!("{} with {}", output::count(report.adapted.len(), "source"), adapters.join(", ")));
    }
    if !report.baked.is_empty() {
        let is_added = if report.adapters.is_empty() { "" } else { "; those that were given are added to that" };
        out.line("baked in", format!("{}{is_added}", baked_text(&report.baked)));
    }
    for AdapterReport { name, unread, non_finite, .. } in &report.adapters {
        if *unread > 0 {
            out.note(format!("{name}: the program never reads {unread} of its sources, so that these have no effect"));
        }
        if *non_finite > 0 {
            let what = "of its values are infinite or not a number, and so are the weights that it is for";
            out.note(format!("{name}: {non_finite} {what} (--reject-non-finite refuses it)"));
        }
    }
}

/// `style ×0.7 in 12 sources, detail ×1 in 4 sources`.
fn baked_text(baked: &[BakedAdapter]) -> String {
    let one = |b: &BakedAdapter| format!("{} ×{} in {}", b.name, b.scale, output::count(b.sources.len(), "source"));
    baked.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn phases(times: &regraft::PhaseTimes) -> String {
    times.named().map(|(name, ms)| format!("{name} {}", output::milliseconds(ms))).join(", ")
}

/// `48 linear, 25 layer_norm, 12 attention, 88 others`: the most frequent first.
fn histogram<'a>(names: impl Iterator<Item = &'a str>, shown: usize) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    names.for_each(|n| *counts.entry(n).or_default() += 1);
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|&(name, n)| (std::cmp::Reverse(n), name));
    let others: usize = counts.iter().skip(shown).map(|(_, n)| n).sum();
    let mut parts: Vec<String> = counts.iter().take(shown).map(|(name, n)| format!("{n} {name}")).collect();
    match others {
        0 => {}
        1 => parts.push("1 other".into()),
        n => parts.push(format!("{n} others")),
    }
    parts.join(", ")
}

/// `ids i64[s0, s1], mask i64[s0, s1]`
fn named_types(values: impl Iterator<Item = (String, TensorType)>) -> String {
    values.map(|(name, ty)| format!("{name} {ty}")).collect::<Vec<_>>().join(", ")
}

fn inputs(graph: &Graph) -> impl Iterator<Item = (String, TensorType)> {
    graph.inputs.iter().map(|i| (i.name.clone(), graph.ty(i.value).clone()))
}

fn outputs(graph: &Graph) -> impl Iterator<Item = (String, TensorType)> {
    graph.outputs.iter().map(|o| (o.name.clone(), graph.ty(o.value).clone()))
}

/// A name with its type for JSON; symbolic sizes are strings.
fn type_json((name, ty): (String, TensorType)) -> Value {
    let dim = |d: &_| -> Value {
        let text = format!("{d}");
        text.parse::<i64>().map_or(Value::from(text), Value::from)
    };
    let shape: Vec<Value> = ty.shape.iter().map(dim).collect();
    json!({"name": name, "dtype": ty.dtype.name(), "shape": shape, "type": ty.to_string()})
}

/// The facts about an engine's interface and contents.
fn tell_engine_facts(engine: &Engine, out: &mut Output) {
    let graph = &engine.plan.graph;
    let dims: Vec<Value> = (graph.symbols.iter().enumerate())
        .map(|(i, s)| json!({"name": format!("s{i}"), "min": s.range.min, "max": s.range.max, "opt": s.opt}))
        .collect();
    out.fact("mode", engine.mode.to_string());
    let target = &engine.target;
    out.fact(
        "target",
        json!({"backend": target.backend, "arch": target.arch, "level": target.level, "features": target.features}),
    );
    out.fact("identical", engine.identical);
    out.fact("adapters", serde_json::to_value(&engine.baked).unwrap_or_default());
    if engine.mode == Mode::Refittable {
        out.fact("keep_sources", engine.keep_sources().name());
    }
    out.fact("dims", dims);
    out.fact("inputs", inputs(graph).map(type_json).collect::<Vec<_>>());
    out.fact("outputs", outputs(graph).map(type_json).collect::<Vec<_>>());
    out.fact("sources", engine.refit_map.sources.len());
    out.fact("source_bytes", engine.source_bytes());
    out.fact("slots", engine.plan.slots.len());
    out.fact("slot_bytes", engine.slot_bytes());
    out.fact("nodes", graph.nodes().len());
}

/// Size of a file, 0 when it cannot be told.
fn file_size(path: &Path) -> u64 {
    fs::metadata(path).map(|m| m.len()).unwrap_or(0)
}

/// A path as JSON.
fn path_json(path: &Path) -> Value {
    path.display().to_string().into()
}
