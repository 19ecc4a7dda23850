use std::collections::{BTreeMap, BTreeSet};

use regraft::{Digest, Engine, Mode, Model};
use serde_json::json;

use super::read_engine;
use crate::{args::DiffArgs, failure::Failure, output::Output};

/// A name with what it is in both engines; `None` where it is not.
type Difference = (String, Option<String>, Option<String>);

pub(super) fn run(args: &DiffArgs, out: &mut Output) -> Result<(), Failure> {
    let (a, b) = (read_engine(&args.a)?, read_engine(&args.b)?);
    let (sources_a, sources_b) = (sources(&a), sources(&b));
    let differing_sources = differing(&sources_a, &sources_b);
    let backend = regraft::cpu(args.threads.get());
    let model = |engine: Engine, path| -> Result<Option<Model>, Failure> {
        if engine.mode == Mode::Stripped {
            return Ok(None);
        }
        Model::new(engine, backend.clone()).map(Some).map_err(|e| Failure::from(e).about(path))
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
fn sources(engine: &Engine) -> BTreeMap<String, String> {
    let text = |(info, tensor): (&regraft::SourceInfo, &Option<regraft::Tensor>)| {
        let content = tensor.as_ref().map(|t| format!(" {}", short(Digest::of(t)))).unwrap_or_default();
        (info.name.clone(), format!("{}{content}", info.type_text()))
    };
    engine.refit_map.sources.iter().zip(&engine.sources).map(text).collect()
}

fn slots(model: &Model) -> BTreeMap<String, String> {
    let Some(generation) = model.generation() else { return BTreeMap::new() };
    let text = |(index, slot): (usize, &std::sync::Arc<regraft::Slot>)| {
        let layout = &model.plan().slots[index];
        let content = short(Digest::of_bytes(slot.bytes()));
        (model.plan().slot_name(index).to_owned(), format!("{}{:?} {content}", layout.format, layout.shape))
    };
    generation.slots.iter().enumerate().map(text).collect()
}

/// Enough of a digest to tell two tensors apart by eye.
fn short(digest: Digest) -> String {
    digest.to_string().chars().take(12).collect()
}

fn differing(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> Vec<Difference> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    names
        .into_iter()
        .filter(|name| a.get(*name) != b.get(*name))
        .map(|name| (name.clone(), a.get(name).cloned(), b.get(name).cloned()))
        .collect()
}

fn tell(what: &'static str, differing: &[Difference], total: usize, out: &mut Output) {
    out.line(what, format!("{} of {total} differ", differing.len()));
    let text = |side: &Option<String>| side.clone().unwrap_or_else(|| "-".into());
    if !differing.is_empty() {
        let rows: Vec<_> = differing.iter().map(|(name, a, b)| vec![name.clone(), text(a), text(b)]).collect();
        out.table(&[what, "in A", "in B"], &rows);
    }
    let facts: Vec<_> = differing.iter().map(|(name, a, b)| json!({"name": name, "a": a, "b": b})).collect();
    out.fact(what, json!({"total": total, "differing": facts}));
}
