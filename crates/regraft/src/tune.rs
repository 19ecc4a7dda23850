//! How compiling chooses between kernels, with the tuning cache around it.

use std::{path::PathBuf, sync::Arc};

use regraft_backend::Device;
use regraft_compile::pipeline::Backend;
use regraft_compile::{
    CompileError,
    pipeline::Output,
    tune::{Records, TuneCache, TuneMode, TuneReport, Tuning},
};
use regraft_engine::Engine;

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

impl From<TuneMode> for Tune {
    fn from(mode: TuneMode) -> Self {
        Tune { mode, ..Tune::default() }
    }
}

impl From<Records> for Tune {
    fn from(records: Records) -> Self {
        Tune { pinned: Some(Arc::new(records)), ..Tune::default() }
    }
}

/// How the kernels of a build were chosen.
#[derive(Clone, Debug)]
pub struct Tuned {
    /// The choices; pinned, they give the same engine again.
    pub records: Records,
    /// How they were made.
    pub report: TuneReport,
    /// What was wrong with the tuning cache. It is no error: the engine is as good, but was or will be measured again.
    pub warnings: Vec<String>,
}

/// Calls `build` with what is known, and stores what it measured.
pub(crate) fn tuned(
    tune: &Tune,
    device: &dyn Device,
    build: impl FnOnce(Tuning<'_>) -> Result<Output, CompileError>,
) -> Result<(Engine, Tuned), CompileError> {
    let measures = tune.mode != TuneMode::Off && tune.pinned.is_none();
    let cache = tune.cache_dir.as_ref().filter(|_| measures).map(TuneCache::new);
    let (known, damage) = cache.as_ref().map(|cache| cache.load(Backend::of(device))).unzip();
    let Output { engine, records, tune_report: report } =
        build(Tuning { mode: tune.mode, pinned: tune.pinned.as_deref(), known: known.as_ref() })?;
    let mut warnings: Vec<String> = damage.flatten().iter().map(ToString::to_string).collect();
    if let Some(cache) = cache.filter(|_| report.measured > 0) {
        warnings.extend(cache.store(&records).err().map(|e| e.to_string()));
    }
    Ok((engine, Tuned { records, report, warnings }))
}

impl Tune {
    /// What of this decides the engine: pinned records alone, or how and where problems are measured. Two engines that were
    /// measured alike may differ, and either is as good as the other.
    pub(crate) fn key(&self, device: &dyn Device) -> String {
        match (&self.pinned, self.mode) {
            (Some(records), _) => format!("pinned {}", records.digest()),
            (None, TuneMode::Off) => "off".into(),
            (None, mode) => format!("{mode:?} on {:?}", Records::of(Backend::of(device)).machine()),
        }
    }
}
