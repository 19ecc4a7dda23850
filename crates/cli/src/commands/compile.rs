use std::{fs, path::Path, time::Instant};

use regraft::{
    AtomicFile, CacheUse, Compiled, Evaluated, KeepSources, Mode, Observer, WeightFormat,
    ir::{Graph, text},
};
use serde_json::{Value, json};

use super::{
    cache, check_writable, file_size, histogram, inputs, loss, named_types, path_json, tell_engine_facts, tune,
    write_engine,
};
use crate::{
    args::{CompileArgs, ModeArg},
    failure::Failure,
    output::{self, Busy, Output},
};

pub(super) fn run(args: &CompileArgs, out: &mut Output) -> Result<(), Failure> {
    args.output.as_deref().map_or(Ok(()), check_writable)?;
    let to_stdout = !args.dump.is_empty() && args.dump_dir.is_none();
    if to_stdout && !out.is_json() {
        out.lines_aside();
    }
    let mut stages = Stages::new(args);
    let mode = args.mode.unwrap_or(ModeArg::Refittable).into();
    // Stages and records are there only when the engine is built.
    let builds = !args.dump.is_empty() || args.dump_dir.is_some() || args.tune.save_tune_records.is_some();
    let tuning = tune::options(&args.tune, &args.cache)?;
    let mut compiler = loss::exact(args)
        .mode(mode)
        .keep_sources(args.keep_sources.map_or(KeepSources::default(), KeepSources::from))
        .identical(args.identical)
        .weights(args.weights.map(WeightFormat::from))
        .tune(tuning.clone());
    if !builds && let Some(cache) = cache::for_compile(&args.cache, out)? {
        compiler = compiler.cache(cache);
    }
    if args.keep_sources.is_some() && mode != Mode::Refittable {
        return Err(Failure::usage("--keep-sources is about refittable engines; the others keep no sources"));
    }
    let compiled = {
        stages.busy = Some(out.busy(format!("compiling {}", args.program.display())));
        let compiled = compiler.compile_observed(&args.program, &mut stages);
        stages.busy = None;
        compiled?
    };
    check_mode(args, &compiled)?;
    stages.add_engine(&compiled);
    stages.check_names(&args.dump)?;
    tell(args, &compiled, &stages, out);
    if args.weights.is_some() {
        loss::tell(args, &compiled, out)?;
    }
    if let Some(tuned) = &compiled.tuned {
        tune::tell(&args.tune, &tuning, tuned, out)?;
    }
    match (&args.dump_dir, to_stdout) {
        (Some(directory), _) => stages.write(directory, out)?,
        (None, true) => stages.print(out),
        (None, false) => {}
    }
    if let Some(path) = &args.output {
        let written = write_engine(&compiled.engine, path, out)?;
        out.line("wrote", format!("{}, {}", path.display(), output::bytes(written)));
        out.fact("engine", path_json(path));
        out.fact("bytes", written);
    }
    Ok(())
}

/// A program without weights can become a stripped engine only; say so unless that was asked for.
fn check_mode(args: &CompileArgs, compiled: &Compiled) -> Result<(), Failure> {
    let engine = &compiled.engine;
    let no_weights = |what: &str| {
        Failure::new(format!("the program was saved without weights, and {what} needs them"))
            .about(&args.program)
            .help("compile it with --mode stripped, then: regraft bind STRIPPED.rgf --weights MODEL.safetensors")
    };
    match args.mode {
        Some(ModeArg::Refittable) if engine.mode == Mode::Stripped => Err(no_weights("--mode refittable")),
        Some(ModeArg::Frozen) if engine.mode == Mode::Stripped => Err(no_weights("--mode frozen")),
        _ if args.identical && !engine.identical => Err(no_weights("--identical")),
        _ => Ok(()),
    }
}

fn tell(args: &CompileArgs, compiled: &Compiled, stages: &Stages<'_>, out: &mut Output) {
    let engine = &compiled.engine;
    let graph = &engine.plan.graph;
    let sources = output::count(engine.refit_map.sources.len(), "source");
    out.line(
        "imported",
        format!(
            "{}: {}, {sources}, {}, inputs {}",
            args.program.display(),
            output::count(compiled.nodes, "node"),
            output::bytes(engine.source_bytes() as u64),
            named_types(inputs(graph))
        ),
    );
    let ops = histogram(graph.nodes().iter().map(|n| n.op.name()), 4);
    out.line("lowered", format!("{} in the plan ({ops})", output::count(graph.nodes().len(), "node")));
    for (name, nodes, ms) in &stages.passes {
        out.detail("", format!("{name:<24} {nodes:>5} nodes after {}", output::milliseconds(*ms)));
    }
    let unused = if engine.refit_map.recipes.is_empty() {
        0
    } else {
        engine.refit_map.are_read().iter().filter(|is_read| !**is_read).count()
    };
    let unused = if unused == 0 { String::new() } else { format!(", {unused} of them not needed") };
    let slots = output::count(engine.plan.slots.len(), "slot");
    out.line("split", format!("{slots}, {}, from {sources}{unused}", output::bytes(engine.slot_bytes() as u64)));
    let identical = if engine.identical { ", identical" } else { "" };
    let seconds = output::milliseconds((compiled.import_seconds + compiled.build_seconds) * 1e3);
    let built = format!("{}{identical} for {} in {seconds}", engine.mode, engine.target);
    match &compiled.cache {
        CacheUse::Hit { .. } => out.line("cached", format!("{built}: the engine was in the cache")),
        CacheUse::Off | CacheUse::Built { .. } => out.line("built", built),
    }
    tell_cache(&compiled.cache, out);
    tell_evaluated(&engine.plan.evaluated(), out);
    if args.mode.is_none() && engine.mode == Mode::Stripped {
        out.note("the program was saved without weights, so the engine is stripped; regraft bind gives it weights");
    }
    tell_engine_facts(engine, out);
    out.fact("program", path_json(&args.program));
    out.fact("program_bytes", file_size(&args.program));
    out.fact("program_nodes", compiled.nodes);
    out.fact("import_seconds", compiled.import_seconds);
    out.fact("build_seconds", compiled.build_seconds);
}

/// What no kernel runs, with where it stands and what it costs.
fn tell_evaluated(groups: &[Evaluated], out: &mut Output) {
    let facts = groups.iter().map(
        |g| json!({"op": g.op, "dtype": g.dtype.name(), "nodes": g.nodes, "modules": g.modules, "bytes": g.bytes}),
    );
    out.fact("evaluated", facts.collect::<Vec<Value>>());
    if groups.is_empty() {
        return;
    }
    out.note("no kernel runs a part of the program; the reference evaluator does, far slower:");
    for group in groups {
        let named: Vec<&str> = group.modules.iter().take(3).map(String::as_str).collect();
        let rest = match group.modules.len() - named.len() {
            0 => String::new(),
            rest => format!(" and {rest} more"),
        };
        let (count, bytes) = (output::count(group.nodes, "node"), output::bytes(group.bytes));
        let place = if named == [""] { String::new() } else { format!(" in {}{rest}", named.join(", ")) };
        out.note(format!("  {} of {}: {count}, {bytes} a run,{place}", group.op, group.dtype).trim_end_matches(','));
    }
}

fn tell_cache(cache: &CacheUse, out: &mut Output) {
    let (name, key) = match cache {
        CacheUse::Off => ("off", None),
        CacheUse::Hit { key } => ("hit", Some(key)),
        CacheUse::Built { key, stored, warnings } => {
            warnings.iter().for_each(|warning| out.note(warning));
            (if *stored { "stored" } else { "not_stored" }, Some(key))
        }
    };
    if let Some(key) = key {
        out.detail("key", key.to_string());
        out.fact("cache_key", key.to_string());
    }
    out.fact("cache", name);
}

/// The texts of the stages that were asked for, in order, and a line per pass.
struct Stages<'a> {
    wanted: &'a [String],
    all: bool,
    texts: Vec<(String, String)>,
    passes: Vec<(&'static str, usize, f64)>,
    lowered: String,
    start: Instant,
    /// What the terminal shows meanwhile.
    busy: Option<Busy>,
}

impl<'a> Stages<'a> {
    fn new(args: &'a CompileArgs) -> Self {
        Stages {
            wanted: &args.dump,
            all: args.dump.is_empty() && args.dump_dir.is_some(),
            texts: Vec::new(),
            passes: Vec::new(),
            lowered: String::new(),
            start: Instant::now(),
            busy: None,
        }
    }

    fn wants(&self, stage: &str) -> bool {
        self.all || self.wanted.iter().any(|w| w == stage)
    }

    fn add(&mut self, stage: &str, text: String) {
        self.texts.push((stage.to_owned(), text));
    }

    /// What is known only once all is built.
    fn add_engine(&mut self, compiled: &Compiled) {
        if self.wants("lower") {
            let lowered = std::mem::take(&mut self.lowered);
            self.add("lower", lowered);
        }
        if self.wants("plan") {
            self.add("plan", text::print(&compiled.engine.plan.graph));
        }
        if self.wants("recipes") {
            let recipes: Vec<String> = compiled.engine.refit_map.recipes.iter().map(ToString::to_string).collect();
            self.add("recipes", recipes.join("\n"));
        }
    }

    fn check_names(&self, asked: &[String]) -> Result<(), Failure> {
        let known = |name: &String| self.texts.iter().any(|(stage, _)| stage == name);
        let Some(unknown) = asked.iter().find(|name| !known(name)) else { return Ok(()) };
        let mut names = vec!["imported"];
        names.extend(self.passes.iter().map(|(name, ..)| *name));
        names.extend(["lower", "plan", "recipes"]);
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(*name));
        Err(Failure::usage(format!("--dump {unknown}: there is no such stage"))
            .help(format!("one of {}", names.join(", "))))
    }

    fn print(&self, out: &mut Output) {
        if out.is_json() {
            let stage = |(name, text): &(String, String)| json!({"stage": name, "text": text});
            out.fact("dump", self.texts.iter().map(stage).collect::<Vec<Value>>());
            return;
        }
        for (stage, text) in &self.texts {
            if self.texts.len() > 1 {
                out.text(&format!("// {stage}\n"));
            }
            out.text(text);
        }
    }

    fn write(&self, directory: &Path, out: &mut Output) -> Result<(), Failure> {
        fs::create_dir_all(directory).map_err(|e| Failure::new(e.to_string()).about(directory))?;
        let mut files = Vec::new();
        for (number, (stage, text)) in self.texts.iter().enumerate() {
            let path = directory.join(format!("{number:02}-{stage}.txt"));
            AtomicFile::write(&path, |file| std::io::Write::write_all(file, text.as_bytes()))?;
            files.push(path_json(&path));
        }
        out.line("dumped", format!("{} to {}", output::count(files.len(), "stage"), directory.display()));
        out.fact("dump_files", files);
        Ok(())
    }
}

impl Observer for Stages<'_> {
    fn imported(&mut self, graph: &Graph) {
        if self.wants("imported") {
            self.add("imported", text::print(graph));
        }
    }

    fn pass(&mut self, name: &'static str, graph: &Graph) {
        self.passes.push((name, graph.nodes().len(), self.start.elapsed().as_secs_f64() * 1e3));
        if self.wants(name) {
            self.add(name, text::print(graph));
        }
        if self.wants("lower") {
            self.lowered = text::print(graph);
        }
    }

    fn measuring(&mut self, number: usize, count: usize, seconds: f64) {
        if let Some(busy) = &self.busy {
            busy.message(format!("tuning problem {number} of {count}, about {seconds:.0} s left"));
        }
    }
}
