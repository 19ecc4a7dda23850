use std::collections::{BTreeMap, BTreeSet};

use regraft::{Digest, Engine, Mode, Model};
use serde_json::json;

use super::read_engine;
use crate::{args::DiffArgs, failure::Failure, output::Output};

/// The type of a source or slot, and the digest of its content where there is one.
type Held = (String, Option<Digest>);

/// A name with what it is in both engines; `None` where it is not.
type Difference = (String, Option<Held>, Option<Held>);

pub(super) fn run(args: &DiffArgs, out: &mut Output) -> Result<(), Failure> {
    let (a, b) = (read_engine(&args.a)?, read_engine(&args.b)?);
    let (sources_a, sources_b) = (sources(&a), sources(&b));
    let differing_sources = differing(&sources_a, &sources_b);
    let backend = args.threads.open()?;
    let model = |engine: Engine, path| -> Result<Option<Model>, Failure> {
        if engine.mode == Mode::Stripped {
            return Ok(None);
        }
        regraft::model(engine, backend.clone()).map(Some).map_err(|e| Failure::from(e).about(path))
    };
    let slots = {
        let _busy = out.busy("comparing slots");
        model(a, &args.a)?.zip(model(b, &args.b)?).map(|(a, b)| (slots(&a), slots(&b)))
    };
    tell("sources", &differing_sources, sources_a.len().max(sources_b.len()), out);
    let mut same = differing_sources.is_empty();
    if let Some((slots_a, slots_b)) = slots {
        let differing = differing(&slots_a, &slots_b);
        tell("slots", &differing, slots_a.len().max(slots_b.len()), out);
        same &= differing.is_empty();
    } else {
        out.line("slots", "not compared: a stripped engine has none");
    }
    out.fact("same", same);
    Ok(())
}

/// Type and content of each source. Where an engine holds no tensor the type alone is known.
fn sources(engine: &Engine) -> BTreeMap<String, Held> {
    let held = |(info, tensor): (&regraft::SourceInfo, &Option<regraft::Tensor>)| {
        (info.name.clone(), (info.type_text(), tensor.as_ref().map(Digest::of)))
    };
    engine.refit_map.sources.iter().zip(&engine.sources).map(held).collect()
}

fn slots(model: &Model) -> BTreeMap<String, Held> {
    let Some(generation) = model.generation() else { return BTreeMap::new() };
    let held = |(index, slot): (usize, &std::sync::Arc<regraft::Slot>)| {
        let layout = &model.plan().slots[index];
        let ty = format!("{}{:?}", layout.format, layout.shape);
        (model.plan().slot_name(index).to_owned(), (ty, slot.read().ok().map(|bytes| Digest::of_bytes(bytes.bytes()))))
    };
    generation.slots.iter().enumerate().map(held).collect()
}

/// The type, and enough of the digest to tell two tensors apart by eye.
fn text((ty, digest): &Held) -> String {
    match digest {
        Some(digest) => format!("{ty} {}", digest.to_string().chars().take(12).collect::<String>()),
        None => ty.clone(),
    }
}

fn differing(a: &BTreeMap<String, Held>, b: &BTreeMap<String, Held>) -> Vec<Difference> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    names
        .into_iter()
        .filter(|name| a.get(*name) != b.get(*name))
        .map(|name| (name.clone(), a.get(name).cloned(), b.get(name).cloned()))
        .collect()
}

fn tell(what: &'static str, differing: &[Difference], total: usize, out: &mut Output) {
    out.line(what, format!("{} of {total} differ", differing.len()));
    let told: Vec<[Option<String>; 2]> =
        differing.iter().map(|(_, a, b)| [a, b].map(|side| side.as_ref().map(text))).collect();
    if !differing.is_empty() {
        let cell = |side: &Option<String>| side.clone().unwrap_or_else(|| "-".into());
        let row = |((name, ..), [a, b]): (&Difference, &[Option<String>; 2])| vec![name.clone(), cell(a), cell(b)];
        let rows: Vec<_> = differing.iter().zip(&told).map(row).collect();
        out.table(&[what, "in A", "in B"], &rows);
    }
    let fact = |((name, ..), [a, b]): (&Difference, &[Option<String>; 2])| json!({"name": name, "a": a, "b": b});
    let facts: Vec<_> = differing.iter().zip(&told).map(fact).collect();
    out.fact(what, json!({"total": total, "differing": facts}));
}
