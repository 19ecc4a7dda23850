use std::{path::Path, sync::Arc, time::SystemTime};

use regraft::{
    Engine,
    cache::{DiskCache, DiskEntry, EngineCache},
};
use serde_json::{Value, json};

use super::{inputs, named_types, path_json};
use crate::{
    args::{CacheAction, CacheArgs, CacheFlags},
    failure::Failure,
    output::{self, Output},
};

pub(super) fn run(args: &CacheArgs, out: &mut Output) -> Result<(), Failure> {
    let no_folder = || {
        Failure::new("there is no cache folder: neither REGRAFT_CACHE_DIR nor HOME is set").help("give --cache-dir DIR")
    };
    let cache = disk_cache(args.cache_dir.as_deref())?.ok_or_else(no_folder)?;
    match args.action {
        CacheAction::Ls => list(&cache, out),
        CacheAction::Info => info(&cache, out),
        CacheAction::Gc { limit } => removed(&cache, cache.collect(limit.unwrap_or(cache.limit()))?, out),
        CacheAction::Clear => removed(&cache, cache.clear()?, out),
        CacheAction::Verify => verify(&cache, out),
    }
}

/// The cache that `compile` uses.
pub(super) fn for_compile(flags: &CacheFlags, out: &mut Output) -> Result<Option<Arc<dyn EngineCache>>, Failure> {
    if flags.no_cache {
        return Ok(None);
    }
    #[cfg(feature = "object-cache")]
    if let Some(url) = &flags.cache_url {
        return Ok(Some(Arc::new(regraft::ObjectCache::open(url)?)));
    }
    let cache = disk_cache(flags.cache_dir.as_deref())?;
    if cache.is_none() {
        out.note("there is no cache folder: neither REGRAFT_CACHE_DIR nor HOME is set; the engine is not cached");
    }
    Ok(cache.map(|cache| Arc::new(cache) as Arc<dyn EngineCache>))
}

fn disk_cache(folder: Option<&Path>) -> Result<Option<DiskCache>, Failure> {
    let limit = regraft::cache_limit().map_err(|error| Failure::usage(error.to_string()))?;
    let folder = folder.map(Path::to_path_buf).or_else(regraft::cache_folder);
    Ok(folder.map(|folder| regraft::disk_cache(folder, limit)))
}

fn list(cache: &DiskCache, out: &mut Output) -> Result<(), Failure> {
    let entries = cache.entries()?;
    let mut rows = Vec::new();
    let mut facts: Vec<Value> = Vec::new();
    for entry in &entries {
        let what = Engine::read(&entry.path).map(|engine| describe(&engine));
        let what = what.unwrap_or_else(|_| "cannot be read; regraft cache verify removes it".to_owned());
        facts.push(json!({
            "key": entry.key.to_string(), "file": path_json(&entry.path), "bytes": entry.bytes,
            "used_seconds_ago": age(entry), "engine": what,
        }));
        let key = entry.key.to_string()[..12].to_owned();
        rows.push(vec![key, output::bytes(entry.bytes), output::ago(age(entry)), what]);
    }
    if rows.is_empty() {
        out.line("empty", cache.root().display().to_string());
    } else {
        out.table(&["key", "size", "last used", "engine"], &rows);
    }
    out.fact("entries", facts);
    Ok(())
}

/// What an engine without names can be told by.
fn describe(engine: &Engine) -> String {
    let graph = &engine.plan.graph;
    let nodes = output::count(graph.nodes().len(), "node");
    let weights = output::bytes(engine.source_bytes() as u64);
    format!("{nodes}, {weights} of weights, takes {} for {}", named_types(inputs(graph)), engine.target)
}

fn age(entry: &DiskEntry) -> u64 {
    SystemTime::now().duration_since(entry.used).map_or(0, |age| age.as_secs())
}

fn info(cache: &DiskCache, out: &mut Output) -> Result<(), Failure> {
    let usage = cache.usage()?;
    out.line("cache", cache.root().display().to_string());
    out.line("holds", format!("{}, {}", output::engines(usage.entries), output::bytes(usage.bytes)));
    out.line("limit", format!("{} (REGRAFT_CACHE_LIMIT)", output::bytes(cache.limit())));
    out.fact("folder", path_json(cache.root()));
    out.fact("entries", usage.entries);
    out.fact("bytes", usage.bytes);
    out.fact("limit", cache.limit());
    Ok(())
}

fn removed(cache: &DiskCache, removed: Vec<DiskEntry>, out: &mut Output) -> Result<(), Failure> {
    let bytes: u64 = removed.iter().map(|entry| entry.bytes).sum();
    let left = cache.usage()?;
    out.line("removed", format!("{}, {}", output::engines(removed.len()), output::bytes(bytes)));
    out.line("left", format!("{}, {}", output::engines(left.entries), output::bytes(left.bytes)));
    out.fact("removed", removed.iter().map(|entry| entry.key.to_string()).collect::<Vec<_>>());
    out.fact("removed_bytes", bytes);
    out.fact("entries", left.entries);
    out.fact("bytes", left.bytes);
    Ok(())
}

fn verify(cache: &DiskCache, out: &mut Output) -> Result<(), Failure> {
    let (sound, damaged) = {
        let _busy = out.busy("reading the cache");
        cache.verify()?
    };
    out.line("sound", output::engines(sound));
    for (entry, why) in &damaged {
        let key = &entry.key.to_string()[..12];
        out.line("removed", format!("{key}: {}", why.lines().next().unwrap_or_default()));
    }
    let fact = |(entry, why): &(DiskEntry, String)| json!({"key": entry.key.to_string(), "why": why});
    out.fact("sound", sound);
    out.fact("removed", damaged.iter().map(fact).collect::<Vec<_>>());
    Ok(())
}
