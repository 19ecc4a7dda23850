//! What `compile` does about tuning.

use std::{env, path::PathBuf, sync::Arc};

use regraft::{Compiled, Records, Tune, TuneMode};
use serde_json::json;

use super::{check_writable, path_json};
use crate::{
    args::TuneFlags,
    failure::Failure,
    output::{self, Output},
};

/// What the flags ask for. What is measured is kept for other builds of the user.
pub(super) fn options(flags: &TuneFlags) -> Result<Tune, Failure> {
    flags.save_tune_records.as_deref().map_or(Ok(()), check_writable)?;
    let pinned = match &flags.tune_records {
        Some(path) => Some(Arc::new(Records::open(path).map_err(regraft::Error::from)?)),
        None => None,
    };
    let cache_dir = cache_folder().map(|folder| folder.join("tuning"));
    Ok(Tune { mode: flags.tune.unwrap_or_default().into(), pinned, cache_dir })
}

/// `REGRAFT_CACHE_DIR`, otherwise `regraft` in the user's cache folder; `None` when the environment names neither.
fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let of_user = || set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    set("REGRAFT_CACHE_DIR").or_else(|| of_user().map(|folder| folder.join("regraft")))
}

/// Says how kernels were chosen, and saves the records where that is asked for.
pub(super) fn tell(flags: &TuneFlags, tune: &Tune, compiled: &Compiled, out: &mut Output) -> Result<(), Failure> {
    compiled.tune_warnings.iter().for_each(|warning| out.note(warning));
    let report = &compiled.tune_report;
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
            "records": compiled.records.digest().to_string(),
        }),
    );
    if let Some(path) = &flags.save_tune_records {
        compiled.records.save(path)?;
        out.line("saved", format!("{}, {}", path.display(), problems(compiled.records.len())));
        out.fact("tune_records", path_json(path));
    }
    Ok(())
}
