//! How compiling chooses between kernels, with the tuning cache around it.

use std::{path::PathBuf, sync::Arc};

use regraft_backend::Backend;
use regraft_compile::{
    CompileError,
    pipeline::Output,
    tune::{Records, TuneCache, TuneMode, Tuning},
};

/// How to choose between kernels that compute the same. The default is the order that they are known to be best in.
#[derive(Clone, Debug, Default)]
pub struct Tune {
    /// How thoroughly to measure problems that are new.
    pub mode: TuneMode,
    /// Records that decide alone, whatever the mode: the engine is the same each time.
    pub pinned: Option<Arc<Records>>,
    /// A folder of what was measured on this machine: nothing in it is measured again, and what is new is added.
    pub cache_dir: Option<PathBuf>,
}

impl Tune {
    /// Whether problems that are new are measured.
    pub(crate) fn measures(&self) -> bool {
        self.mode != TuneMode::Off && self.pinned.is_none()
    }
}

/// Calls `build` with what is known, and stores what it measured. Also returns what was wrong with the tuning cache: no
/// error, the engine is as good, but was or will be measured again.
pub(crate) fn tuned(
    tune: &Tune,
    backend: &dyn Backend,
    build: impl FnOnce(Tuning<'_>) -> Result<Output, CompileError>,
) -> Result<(Output, Vec<String>), CompileError> {
    let cache = tune.cache_dir.as_ref().filter(|_| tune.measures()).map(TuneCache::new);
    let (known, damage) = cache.as_ref().map(|cache| cache.load(backend)).unzip();
    let output = build(Tuning { mode: tune.mode, pinned: tune.pinned.as_deref(), known: known.as_ref() })?;
    let mut warnings: Vec<String> = damage.flatten().iter().map(ToString::to_string).collect();
    if let Some(cache) = cache.filter(|_| output.tune_report.measured > 0) {
        warnings.extend(cache.store(&output.records).err().map(|e| e.to_string()));
    }
    Ok((output, warnings))
}
