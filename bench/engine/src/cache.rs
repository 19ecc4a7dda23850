use std::{path::Path, sync::Arc};

use regraft::{CacheUse, Compiler, Model, TuneMode, cache::EngineCache};
use serde_json::{Value, json};

use crate::{Result, median, timed};

pub(crate) const HEADING: &str = "| model | build, tuned fast | build, untuned | hit | tuned build ÷ hit | untuned build ÷ hit |\n\
                                  |---|---|---|---|---|---|";

/// Milliseconds from a program's file to a model that is ready to run, weights bound.
pub(crate) struct Row {
    tuned: f64,
    untuned: f64,
    hit: f64,
}

pub(crate) fn measure(program: &Path, folder: &Path, rounds: usize) -> Result<Row> {
    let cache: Arc<dyn EngineCache> = Arc::new(regraft::disk_cache(folder.join("cache"), 1 << 30));
    // Without a folder for records, every tuning measures again.
    let tuned = Compiler::new().tune(TuneMode::Fast);
    let untuned = Compiler::new();
    let cached = tuned.clone().cache(cache);
    ready(program, &cached)?;
    let (mut tuned_ms, mut untuned_ms, mut hit_ms) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        // Tuning takes long: a few rounds tell.
        if round < 3 {
            tuned_ms.push(timed(|| ready(program, &tuned))?.0);
        }
        untuned_ms.push(timed(|| ready(program, &untuned))?.0);
        let (ms, (_model, cache)) = timed(|| ready(program, &cached))?;
        if !matches!(cache, CacheUse::Hit { .. }) {
            return Err(format!("{}: the engine was not in the cache", program.display()).into());
        }
        hit_ms.push(ms);
    }
    Ok(Row { tuned: median(&mut tuned_ms), untuned: median(&mut untuned_ms), hit: median(&mut hit_ms) })
}

/// Compiles, and makes the slots. The model is given back, so that letting it go is not measured.
fn ready(program: &Path, compiler: &Compiler) -> Result<(Model, CacheUse)> {
    let compiled = compiler.compile(program)?;
    let cache = compiled.cache.clone();
    let model = compiled.into_model()?;
    assert!(model.generation().is_some(), "the program has its weights");
    Ok((model, cache))
}

impl Row {
    pub(crate) fn markdown(&self, model: &str) -> String {
        let Row { tuned, untuned, hit } = self;
        format!(
            "| {model} | {tuned:.0} ms | {untuned:.0} ms | {hit:.0} ms | {:.1} | {:.2} |",
            tuned / hit,
            untuned / hit
        )
    }

    pub(crate) fn json(&self) -> Value {
        json!({"tuned": self.tuned, "untuned": self.untuned, "hit": self.hit})
    }
}
