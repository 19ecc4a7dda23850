use regraft::{Engine, Kept, ManifestEntry, Mode, ir::text};
use serde_json::{Value, json};

use super::{file_size, histogram, inputs, named_types, open_engine, outputs, path_json, tell_engine_facts};
use crate::{
    args::InspectArgs,
    failure::Failure,
    output::{self, Output},
};

pub(super) fn run(args: &InspectArgs, out: &mut Output) -> Result<(), Failure> {
    let engine = open_engine(&args.engine)?;
    tell(args, &engine, out);
    if args.kernels {
        kernels(&engine, out);
    }
    if args.sources {
        sources(&engine, out);
    }
    if args.slots {
        slots(&engine, out);
    }
    if args.manifest {
        manifest(&engine, out);
    }
    if args.plan {
        let plan = text::print(&engine.plan.graph);
        if !out.is_json() {
            out.text(&format!("\n{plan}"));
        }
        out.fact("plan", plan);
    }
    Ok(())
}

fn tell(args: &InspectArgs, engine: &Engine, out: &mut Output) {
    let (graph, map) = (&engine.plan.graph, &engine.refit_map);
    let size = file_size(&args.engine);
    let identical = if engine.identical { ", identical" } else { "" };
    out.line("engine", format!("{}, {}{identical}, {}", args.engine.display(), engine.mode, output::bytes(size)));
    out.line("target", engine.target.to_string());
    for (i, symbol) in graph.symbols.iter().enumerate() {
        out.line(
            "dim",
            format!("s{i} in {}..={} (kernels chosen for {})", symbol.range.min, symbol.range.max, symbol.opt),
        );
    }
    for input in inputs(graph) {
        out.line("input", named_types(std::iter::once(input)));
    }
    for output in outputs(graph) {
        out.line("output", named_types(std::iter::once(output)));
    }
    for state in &graph.states {
        out.line("state", format!("{} {}", state.name, graph.ty(state.value)));
    }
    let held: usize = engine.sources.iter().flatten().map(|t| t.bytes().len()).sum();
    let kinds = histogram(map.sources.iter().map(|s| s.kind.name()), 4);
    let count = output::count(map.sources.len(), "source");
    let kinds = if kinds.is_empty() { String::new() } else { format!(" ({kinds})") };
    let total = output::bytes(engine.source_bytes() as u64);
    let mut sources = format!("{count}{kinds}, {total}; {} of them in the file", output::bytes(held as u64));
    let mut files: Vec<_> = engine.files.iter().flatten().map(|file| file.display().to_string()).collect();
    files.sort();
    files.dedup();
    if !files.is_empty() {
        let referenced = output::count(engine.files.iter().flatten().count(), "source");
        sources.push_str(&format!(", {referenced} in {}", files.join(", ")));
    }
    out.line("sources", sources);
    if !engine.baked.is_empty() {
        out.line("adapters", format!("{}, part of the weights", super::baked_text(&engine.baked)));
    }
    let formats: Vec<String> = engine.plan.slots.iter().map(|l| l.format.to_string()).collect();
    let formats = histogram(formats.iter().map(String::as_str), 4);
    let slots = output::count(engine.plan.slots.len(), "slot");
    out.line("slots", format!("{slots}, {} ({formats})", output::bytes(engine.slot_bytes() as u64)));
    if engine.mode != Mode::Frozen {
        let one_pass = map.recipes.iter().filter(|recipe| recipe.is_one_pass()).count();
        let recipes = output::count(map.recipes.len(), "recipe");
        out.line("refit", format!("{recipes}, {one_pass} of them one pass over memory"));
        out.fact("one_pass_recipes", one_pass);
    }
    let ops = histogram(graph.nodes().iter().map(|n| n.op.name()), 4);
    out.line("plan", format!("{} ({ops})", output::count(graph.nodes().len(), "node")));
    let kernels = histogram(engine.plan.kernels.iter().map(|k| k.0.as_str()), 6);
    out.line("kernels", kernels);
    out.fact("engine", path_json(&args.engine));
    out.fact("bytes", size);
    out.fact("held_source_bytes", held);
    tell_engine_facts(engine, out);
    let state = |s: &regraft::ir::State| super::type_json((s.name.clone(), graph.ty(s.value).clone()));
    out.fact("states", graph.states.iter().map(state).collect::<Vec<_>>());
    out.fact("refittable", engine.mode != Mode::Frozen);
}

fn kernels(engine: &Engine, out: &mut Output) {
    let graph = &engine.plan.graph;
    let nodes = graph.nodes().iter().zip(&engine.plan.kernels);
    let types = |values: &mut dyn Iterator<Item = regraft::ir::ValueId>| {
        values.map(|v| graph.ty(v).to_string()).collect::<Vec<_>>().join(", ")
    };
    let mut rows = Vec::new();
    let mut facts: Vec<Value> = Vec::new();
    for (node, kernel) in nodes {
        let reads = types(&mut node.inputs.iter().flatten().copied());
        let writes = types(&mut node.outputs.iter().copied());
        let op = node.op.name();
        facts.push(json!({
            "kernel": kernel.0, "op": op, "inputs": reads, "outputs": writes, "scope": node.scope.as_ref(),
        }));
        rows.push(vec![kernel.0.clone(), op.to_owned(), format!("{reads} → {writes}"), node.scope.to_string()]);
    }
    out.table(&["kernel", "op", "types", "module"], &rows);
    out.fact("kernels", facts);
}

fn sources(engine: &Engine, out: &mut Output) {
    let map = &engine.refit_map;
    let frozen = map.recipes.is_empty();
    let by_source = map.slots_by_source();
    let mut rows = Vec::new();
    let mut facts: Vec<Value> = Vec::new();
    for (i, source) in map.sources.iter().enumerate() {
        let slots: Vec<&str> = by_source[i].iter().map(|&slot| engine.plan.slot_name(slot)).collect();
        let shown = if frozen { "unknown: the engine is frozen".to_owned() } else { slots.join(", ") };
        let names: Vec<&str> = source.names().collect();
        rows.push(vec![
            names.join(" = "),
            if source.folded.is_some() { "compiled in" } else { source.kind.name() }.to_owned(),
            source.type_text(),
            output::bytes(source.byte_len() as u64),
            shown,
        ]);
        facts.push(json!({
            "name": source.name, "aliases": source.aliases, "kind": source.kind.name(), "dtype": source.dtype.name(),
            "shape": source.shape, "bytes": source.byte_len(), "in_state_dict": source.kind.in_state_dict(),
            "in_file": engine.sources[i].is_some(), "slots": slots, "compiled_in": source.folded,
        }));
    }
    out.table(&["source", "kind", "type", "bytes", "slots"], &rows);
    out.fact("source_list", facts);
}

fn manifest(engine: &Engine, out: &mut Output) {
    let mut rows = Vec::new();
    let mut facts: Vec<Value> = Vec::new();
    for ManifestEntry { info, digest, kept, .. } in engine.manifest() {
        let digest = digest.map(|digest| digest.to_string());
        let (kept, file) = match kept {
            Kept::Embedded => ("engine".to_owned(), None),
            Kept::File(file) => (file.display().to_string(), Some(path_json(file))),
            Kept::Nowhere => ("nowhere".to_owned(), None),
        };
        facts.push(json!({
            "name": info.name, "aliases": info.aliases, "dtype": info.dtype.name(), "shape": info.shape,
            "digest": digest, "in_engine": kept == "engine", "file": file,
        }));
        let short = digest.map_or_else(|| "unknown".to_owned(), |digest| digest[..12].to_owned());
        rows.push(vec![info.name.clone(), info.type_text(), short, kept]);
    }
    out.table(&["source", "type", "digest", "kept in"], &rows);
    out.fact("manifest", facts);
}

fn slots(engine: &Engine, out: &mut Output) {
    let (plan, map) = (&engine.plan, &engine.refit_map);
    let mut rows = Vec::new();
    let mut facts: Vec<Value> = Vec::new();
    for (i, layout) in plan.slots.iter().enumerate() {
        let recipe = map.recipes.get(i);
        let sources: Vec<&str> = recipe
            .map(|r| r.sources.iter().map(|&s| map.sources[s as usize].name.as_str()).collect())
            .unwrap_or_default();
        let dtype = plan.graph.ty(plan.graph.sources[i].value).dtype;
        let bytes = layout.bytes;
        rows.push(vec![
            plan.slot_name(i).to_owned(),
            layout.format.to_string(),
            format!("{dtype}{:?}", layout.shape),
            output::bytes(bytes as u64),
            if recipe.is_some() { sources.join(", ") } else { "unknown: the engine is frozen".to_owned() },
        ]);
        facts.push(json!({
            "name": plan.slot_name(i), "format": layout.format.to_string(), "dtype": dtype.name(),
            "shape": layout.shape, "bytes": bytes, "sources": sources,
            "one_pass": recipe.map(regraft::Recipe::is_one_pass),
        }));
    }
    out.table(&["slot", "format", "shape", "bytes", "sources"], &rows);
    out.fact("slot_list", facts);
}
