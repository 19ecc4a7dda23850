//! What `compile` does about tuning.

use std::sync::Arc;

use regraft::{CacheUse, Compiled, Records, Tune, TuneMode};
use serde_json::json;

use super::{check_writable, path_json};
use crate::{
    args::CompileArgs,
    failure::Failure,
    output::{self, Output},
};

/// What the flags ask for. What is measured is kept for other builds of the user.
pub(super) fn options(args: &CompileArgs) -> Result<Tune, Failure> {
    let flags = &args.tune;
    flags.save_tune_records.as_deref().map_or(Ok(()), check_writable)?;
    let pinned = match &flags.tune_records {
        Some(path) => Some(Arc::new(Records::open(path).map_err(regraft::Error::from)?)),
        None => None,
    };
    let folder = if args.cache.no_cache { None } else { args.cache.cache_dir.clone().or_else(regraft::cache_folder) };
    let cache_dir = folder.map(|folder| folder.join("tuning"));
    Ok(Tune { mode: flags.tune.unwrap_or_default().into(), pinned, cache_dir })
}

/// Says how kernels were chosen, and saves the records where that is asked for.
pub(super) fn tell(args: &CompileArgs, tune: &Tune, compiled: &Compiled, out: &mut Output) -> Result<(), Failure> {
    compiled.tune_warnings.iter().for_each(|warning| out.note(warning));
    let report = &compiled.tune_report;
    let problems = |count| output::count(count, "problem");
    if matches!(compiled.cache, CacheUse::Hit { .. }) {
        // The same choices were made when it was built.
    } else if tune.pinned.is_some() {
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
            "records": compiled.records.as_ref().map(|records| records.digest().to_string()),
        }),
    );
    if let (Some(path), Some(records)) = (&args.tune.save_tune_records, &compiled.records) {
        records.save(path)?;
        out.line("saved", format!("{}, {}", path.display(), problems(records.len())));
        out.fact("tune_records", path_json(path));
    }
    Ok(())
}
