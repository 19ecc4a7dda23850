//! Compiling through an engine cache: the key of a program, and what a hit and a miss do.

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
};

use regraft_backend::{Device, Target};
use regraft_compile::{canonical::Canonical, pipeline::Observer};
use regraft_engine::{
    Engine, Mode,
    cache::{self, CacheError, CacheKey, Claim, DiskCache, EngineCache, KeyHasher, Loaded, Put},
};
use regraft_import::Imported;

use crate::{Compiler, Error, Tuned};

/// What a cache did for a compilation. A cache that fails costs time, and nothing else.
///
/// ```
/// use std::sync::Arc;
///
/// use regraft::{CacheUse, Compiler};
///
/// # let folder = tempfile::tempdir()?;
/// # let path = "../conformance/fixtures/mlp_gelu.pt2";
/// let compiler = Compiler::new().cache(Arc::new(regraft::disk_cache(folder.path(), 1_000_000_000)));
/// assert!(matches!(compiler.compile(path)?.cache, CacheUse::Built { stored: true, .. }));
/// assert!(matches!(compiler.compile(path)?.cache, CacheUse::Hit { .. }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
///
/// ```
/// if let Some(folder) = regraft::cache_folder() {
///     println!("{}", folder.display());
/// }
/// ```
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

/// The most bytes that the files of the disk cache may take together: `REGRAFT_CACHE_LIMIT`, otherwise
/// [`DiskCache::DEFAULT_LIMIT`].
///
/// ```
/// println!("{} bytes", regraft::cache_limit()?);
/// # Ok::<(), regraft::SizeError>(())
/// ```
///
/// # Errors
/// When the variable is set to something that is not a size.
pub fn cache_limit() -> Result<u64, SizeError> {
    const LIMIT: &str = "REGRAFT_CACHE_LIMIT";
    match env::var(LIMIT) {
        Ok(text) if !text.is_empty() => parse_size(&text).map_err(|_| SizeError(format!("{LIMIT}={text}: "))),
        _ => Ok(DiskCache::DEFAULT_LIMIT),
    }
}

/// A text that is not a number of bytes: see [`parse_size`].
///
/// ```
/// let error = regraft::parse_size("much").unwrap_err();
/// assert!(error.to_string().starts_with("expected a size such as 200MB"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}expected a size such as 200MB, 1.5GB or a number of bytes")]
pub struct SizeError(String);

/// Reads a number of bytes: `200MB`, `1.5GB` or plain digits.
///
/// ```
/// assert_eq!(regraft::parse_size("1.5GB"), Ok(1_500_000_000));
/// assert!(regraft::parse_size("much").is_err());
/// ```
///
/// # Errors
/// When it is not a size.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let units = [("kB", 1e3), ("KB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12), ("B", 1.0), ("", 1.0)];
    let parsed = units.iter().find_map(|(unit, factor)| {
        let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        (number.is_finite() && number >= 0.0).then_some((number * factor) as u64)
    });
    parsed.ok_or_else(|| SizeError(String::new()))
}

/// The engine cache in `folder`, such as [`cache_folder`] returns it, which keeps its files below `limit` bytes.
///
/// ```
/// let cache = regraft::disk_cache("cache", 10_000_000_000);
/// ```
pub fn disk_cache(folder: impl AsRef<Path>, limit: u64) -> DiskCache {
    DiskCache::new(folder.as_ref().join("engines"), limit)
}

/// Takes the engine of a program from the cache, or builds it and stores it there.
pub(crate) fn build(
    cache: &Arc<dyn EngineCache>,
    imported: Imported,
    compiler: &Compiler,
    device: &dyn Device,
    observer: &mut dyn Observer,
) -> Result<(Engine, Option<Tuned>, CacheUse), Error> {
    let Imported { graph, weights, .. } = imported;
    let canonical = Canonical::of(graph);
    let mut choices = compiler.tune.key(device);
    if let Some(dtype) = compiler.dtype {
        choices += &format!(" in {dtype}");
    }
    if let Some(format) = compiler.weights {
        choices += &format!(" with weights of {}", format.name());
    }
    let key = key(&canonical, &choices, &device.codegen().target(), env!("CARGO_PKG_VERSION"));
    let mut lookup = Lookup { cache: &**cache, key, canonical: &canonical, device, warnings: Vec::new() };
    let mut claim = None;
    let mut found = lookup.find();
    if found.is_none() {
        claim = lookup.tried(cache.claim(&key));
        // Another process may have built it while we waited.
        if claim.as_ref().is_some_and(Claim::is_held) {
            found = lookup.find();
        }
    }
    let (mut engine, tuned, cache_use) = match found {
        Some(engine) => (engine, None, CacheUse::Hit { key }),
        None => {
            let bare = Imported { graph: canonical.graph.clone(), weights: vec![None; weights.len()], ..imported };
            let (engine, tuned) = compiler.build(bare, device, observer)?;
            let stored = lookup.tried(cache::store(&**cache, &key, &engine));
            let stored = lookup.is_stored(stored);
            (engine, Some(tuned), CacheUse::Built { key, stored, warnings: lookup.warnings })
        }
    };
    drop(claim);
    canonical.name(&mut engine);
    Ok((engine.with_weights(weights, compiler.is_identical()), tuned, cache_use))
}

/// Everything that decides what is built. Identical engines are built like others: only what they accept differs.
fn key(canonical: &Canonical, tuning: &str, target: &Target, product: &str) -> CacheKey {
    KeyHasher::new()
        .part("program", canonical.text())
        .part("tuning", tuning)
        .part("target", format!("{target} {}", target.features.join(" ")))
        .part("product", product)
        .finish()
}

struct Lookup<'a> {
    cache: &'a dyn EngineCache,
    key: CacheKey,
    canonical: &'a Canonical,
    device: &'a dyn Device,
    warnings: Vec<String>,
}

impl Lookup<'_> {
    fn find(&mut self) -> Option<Engine> {
        match self.tried(cache::load(self.cache, &self.key))? {
            Loaded::Hit(engine) if self.canonical.fits(&engine) && self.device.runs(&engine.target) => {
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

#[cfg(test)]
mod tests {
    use regraft_ir::text;

    use super::*;

    fn target() -> Target {
        let features = vec!["avx2".into(), "fma".into()];
        Target { backend: "cpu".into(), arch: "x86_64".into(), level: "avx2+fma".into(), features }
    }

    fn key_of(program: &str) -> CacheKey {
        let graph = text::parse(program).unwrap_or_else(|e| panic!("{e}\n{program}"));
        key(&Canonical::of(graph), "off", &target(), "1.0.0")
    }

    const PROGRAM: &str = r#"program "net" {
  dims   s0 in 1..=8 (opt 2)
  input  %0 : f32[s0, 4] = "x"
  input  %1 : f32[s0, 4] = "y"
  source %2 : f32[4] = "bias" (parameter)
  %3 = binary %0, %1 {f = sub} : f32[s0, 4]  // net.difference
  %4 = binary %3, %2 {f = add} : f32[s0, 4]  // net.add
  %5 = softmax %4 {axis = 1} : f32[s0, 4]  // net.softmax
  output %5 = "probabilities"
}
"#;

    #[test]
    fn c_1_names_do_not_count() {
        let renamed = [
            ("\"net\"", "\"other\""),
            ("\"x\"", "\"first\""),
            ("\"bias\" (parameter)", "\"module.bias\" (parameter, \"module.tied\")"),
            ("net.difference", "module.0"),
            ("net.softmax", "module.2"),
            ("\"probabilities\"", "\"out\""),
        ];
        let other = renamed.iter().fold(PROGRAM.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        assert_eq!(key_of(PROGRAM), key_of(&other));
    }

    #[test]
    fn c_2_what_decides_the_code_counts() {
        let changes: [&[(&str, &str)]; 8] = [
            &[("axis = 1", "axis = 0")],
            &[("{axis = 1}", "{axis = 1, log = true}")],
            &[("binary %0, %1 {f = sub}", "binary %1, %0 {f = sub}")],
            &[("f = sub", "f = mul")],
            &[("f32[s0, 4]", "f32[s0, 5]"), ("f32[4]", "f32[5]")],
            &[("f32", "f64")],
            &[("1..=8", "1..=9")],
            &[("(opt 2)", "(opt 4)")],
        ];
        let mut keys = vec![key_of(PROGRAM)];
        for change in changes {
            let changed = change.iter().fold(PROGRAM.to_owned(), |text, (from, to)| text.replace(from, to));
            keys.push(key_of(&changed));
        }
        keys.push(key_of(&PROGRAM.replace("(parameter)", "(buffer_non_persistent)")));
        let canonical = Canonical::of(text::parse(PROGRAM).unwrap());
        keys.push(key(&canonical, "pinned 1234", &target(), "1.0.0"));
        keys.push(key(&canonical, "off", &target(), "1.0.1"));
        keys.push(key(&canonical, "off", &Target { level: "avx512".into(), ..target() }, "1.0.0"));
        keys.push(key(&canonical, "off", &Target { features: vec!["avx2".into()], ..target() }, "1.0.0"));
        keys.push(key(&canonical, "off", &Target { backend: "cuda".into(), ..target() }, "1.0.0"));
        for (i, a) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(a), "change {i} does not count");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("200MB"), Ok(200_000_000));
        assert_eq!(parse_size("1.5 GB"), Ok(1_500_000_000));
        assert_eq!(parse_size("17"), Ok(17));
        assert_eq!(parse_size("0"), Ok(0));
        for text in ["", "MB", "-1", "1MiB", "inf", "NaNkB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_cache_folder_is_the_users_unless_it_is_set() {
        // Tests run in one environment: only what it says can be looked at.
        let folder = cache_folder();
        match env::var_os("REGRAFT_CACHE_DIR").filter(|value| !value.is_empty()) {
            Some(set) => assert_eq!(folder, Some(PathBuf::from(set))),
            None => assert!(folder.is_none_or(|folder| folder.ends_with("regraft"))),
        }
    }
}
