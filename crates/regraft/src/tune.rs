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

/// How to choose between kernels that compute the same. By default nothing is measured: the backend's first choice is taken.
///
/// ```
/// use std::path::PathBuf;
///
/// use regraft::{Compiler, Tune, TuneMode};
///
/// let tune = Tune::from(TuneMode::Fast).cache_dir(PathBuf::from("tuning"));
/// let compiler = Compiler::new().tune(tune);
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Tune {
    /// How thoroughly to measure problems that are new.
    pub mode: TuneMode,
    /// Records that decide alone, whatever the mode: the engine is the same each time.
    pub pinned: Option<Arc<Records>>,
    /// A folder of what was measured on this machine: nothing in it is measured again, and what is new is added.
    pub cache_dir: Option<PathBuf>,
}

impl Tune {
    /// Sets [`Tune::cache_dir`].
    #[must_use]
    pub fn cache_dir(mut self, folder: impl Into<Option<PathBuf>>) -> Self {
        self.cache_dir = folder.into();
        self
    }
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
///
/// ```
/// # use regraft::{Compiler, TuneMode};
/// # let path = "../conformance/fixtures/mlp_gelu.pt2";
/// let first = Compiler::new().tune(TuneMode::Off).compile(path)?;
/// let tuned = first.tuned.expect("no cache was asked");
/// println!("{}", tuned.report);
/// let again = Compiler::new().tune(tuned.records).compile(path)?;
/// # Ok::<(), regraft::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Tuned {
    /// The choices; pinned, they give the same engine again.
    pub records: Records,
    /// How they were made.
    pub report: TuneReport,
    /// What was wrong with the tuning cache. It is not an error: the engine is as good, but was or will be measured again.
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
    let Output { engine, records, tune_report: report, .. } =
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
