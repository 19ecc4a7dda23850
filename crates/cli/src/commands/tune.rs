//! What `compile` does about tuning.

use std::sync::Arc;

use regraft::{Records, Tune, TuneMode, Tuned};
use serde_json::json;

use super::{check_writable, path_json};
use crate::{
    args::{CacheFlags, TuneFlags},
    failure::Failure,
    output::{self, Output},
};

/// What the flags ask for. What is measured is kept for other builds of the user.
pub(super) fn options(flags: &TuneFlags, cache: &CacheFlags) -> Result<Tune, Failure> {
    flags.save_tune_records.as_deref().map_or(Ok(()), check_writable)?;
    let pinned = match &flags.tune_records {
        Some(path) => Some(Arc::new(Records::open(path).map_err(regraft::Error::from)?)),
        None => None,
    };
    let folder = cache.cache_dir.clone().or_else(regraft::cache_folder).filter(|_| !cache.no_cache);
    let mode = TuneMode::from(flags.tune.unwrap_or_default());
    let mut tune = Tune::from(mode).cache_dir(folder.map(|folder| folder.join("tuning")));
    tune.pinned = pinned;
    Ok(tune)
}

/// Says how kernels were chosen, and saves the records where that is asked for.
pub(super) fn tell(flags: &TuneFlags, tune: &Tune, tuned: &Tuned, out: &mut Output) -> Result<(), Failure> {
    tuned.warnings.iter().for_each(|warning| out.note(warning));
    let report = &tuned.report;
    let problems = |count| output::count(count, "problem");
    if tune.pinned.is_some() {
        let missing = match report.unpinned_missing {
            0 => String::new(),
            missing => format!(", {missing} not in the records"),
        };
        out.line("tuned", format!("{} pinned{missing}", problems(report.pinned)));
    } else if tune.mode != TuneMode::Off {
        let seconds = output::milliseconds(report.seconds * 1e3);
        let measured = problems(report.measured);
        out.line("tuned", format!("{measured} measured, {} from the cache, {seconds}", report.reused));
    }
    out.fact(
        "tuning",
        json!({
            "mode": tune.mode,
            "measured": report.measured,
            "reused": report.reused,
            "pinned": report.pinned,
            "unpinned_missing": report.unpinned_missing,
            "seconds": report.seconds,
            "records": tuned.records.digest().to_string(),
        }),
    );
    if let Some(path) = &flags.save_tune_records {
        tuned.records.save(path)?;
        out.line("saved", format!("{}, {}", path.display(), problems(tuned.records.len())));
        out.fact("tune_records", path_json(path));
    }
    Ok(())
}
