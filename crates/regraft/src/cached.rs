//! Compiling through an engine cache: the key of a program, and what a hit and a miss do.

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
};

use regraft_backend::Backend;
use regraft_compile::{canonical::Canonical, pipeline::Observer, tune::TuneReport};
use regraft_engine::{
    Engine, Mode,
    cache::{self, CacheError, CacheKey, DiskCache, EngineCache, KeyHasher, Loaded, Put},
};
use regraft_import::Imported;

use crate::{
    CompileOptions, Error, Tune,
    compile::{self, Built},
};

/// What a cache did for a compilation. A cache that fails costs time, and nothing else.
#[derive(Clone, Debug, Default)]
pub enum CacheUse {
    /// There was none.
    #[default]
    Off,
    /// The engine came from the cache.
    Hit {
        /// Key of the entry.
        key: CacheKey,
    },
    /// The engine was built.
    Built {
        /// Key of the entry.
        key: CacheKey,
        /// Whether it is in the cache now.
        stored: bool,
        /// What went wrong, each with the place.
        warnings: Vec<String>,
    },
}

/// The folder for everything that Regraft keeps for the user: `REGRAFT_CACHE_DIR`, otherwise `regraft` in the user's cache
/// folder. `None` when the environment names neither.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let of_user = || match () {
        _ if cfg!(windows) => set("LOCALAPPDATA"),
        _ if cfg!(target_os = "macos") => set("HOME").map(|home| home.join("Library/Caches")),
        _ => set("XDG_CACHE_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| set("HOME").map(|home| home.join(".cache"))),
    };
    set("REGRAFT_CACHE_DIR").or_else(|| of_user().map(|folder| folder.join("regraft")))
}

/// The engine cache below `folder`, as [`cache_folder`] gives it.
pub fn disk_cache(folder: &Path, limit: u64) -> DiskCache {
    DiskCache::new(folder.join("engines"), limit)
}

/// Takes the engine of a program from the cache, or builds it and stores it there.
pub(crate) fn build(
    cache: &Arc<dyn EngineCache>,
    imported: Imported,
    options: &CompileOptions,
    backend: &dyn Backend,
    observer: &mut dyn Observer,
) -> Result<(Built, CacheUse), Error> {
    let Imported { graph, weights, .. } = imported;
    let canonical = Canonical::of(graph);
    let key = key(&canonical, &options.tune, backend);
    let mut lookup = Lookup { cache: &**cache, key, canonical: &canonical, backend, warnings: Vec::new() };
    let mut claim = None;
    let mut found = lookup.find();
    if found.is_none() {
        claim = lookup.tried(cache.claim(&key));
        // Somebody else may have built it while we waited.
        found = lookup.find();
    }
    let (mut built, cache_use) = match found {
        Some(engine) => {
            let (records, tune_report, tune_warnings) = (None, TuneReport::default(), Vec::new());
            (Built { engine, records, tune_report, tune_warnings }, CacheUse::Hit { key })
        }
        None => {
            let bare = Imported { graph: canonical.graph.clone(), weights: vec![None; weights.len()], ..imported };
            let built = compile::build(bare, options, backend, observer)?;
            let stored = lookup.tried(cache::store(&**cache, &key, &built.engine));
            let stored = lookup.is_stored(stored);
            (built, CacheUse::Built { key, stored, warnings: lookup.warnings })
        }
    };
    drop(claim);
    canonical.name(&mut built.engine);
    let engine = built.engine.with_weights(weights, options.identical);
    Ok((Built { engine, ..built }, cache_use))
}

/// Everything that decides what is built. Identical engines are built alike: only what they accept differs.
fn key(canonical: &Canonical, tune: &Tune, backend: &dyn Backend) -> CacheKey {
    let target = backend.target();
    KeyHasher::new()
        .part("program", canonical.text())
        .part("target", format!("{target} {}", target.features.join(" ")))
        .part("tuning", tune.pinned.as_ref().map_or_else(|| "off".to_owned(), |pinned| pinned.digest().to_string()))
        .part("product", env!("CARGO_PKG_VERSION"))
        .finish()
}

struct Lookup<'a> {
    cache: &'a dyn EngineCache,
    key: CacheKey,
    canonical: &'a Canonical,
    backend: &'a dyn Backend,
    warnings: Vec<String>,
}

impl Lookup<'_> {
    fn find(&mut self) -> Option<Engine> {
        match self.tried(cache::load(self.cache, &self.key))? {
            Loaded::Hit(engine) if self.canonical.fits(&engine) && self.backend.runs(&engine.target) => {
                debug_assert_eq!(engine.mode, Mode::Stripped);
                Some(*engine)
            }
            Loaded::Hit(_) => {
                self.warnings.push(format!("cache entry {}: it is of another program; it is built again", self.key));
                None
            }
            Loaded::Miss => None,
            Loaded::Damaged(error) => {
                self.warnings.push(format!("{error}\nit was removed and is built again"));
                None
            }
        }
    }

    fn tried<T>(&mut self, result: Result<T, CacheError>) -> Option<T> {
        result.map_err(|error| self.warnings.push(error.to_string())).ok()
    }

    fn is_stored(&mut self, put: Option<Put>) -> bool {
        match put {
            Some(Put::Stored) => true,
            Some(Put::TooLarge { limit }) => {
                let text =
                    format!("cache entry {}: it is larger than the limit of {limit} bytes: not stored", self.key);
                self.warnings.push(text);
                false
            }
            None => false,
        }
    }
}
