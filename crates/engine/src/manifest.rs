//! The weights manifest of an engine: what it takes, and how checkpoints are compared with it before anything is loaded.

use std::{fmt, path::Path};

use regraft_weights::{Digest, Ignored, MatchOptions, Misfit, NameRule, SourceInfo, StateDict, match_sources};

use crate::{Engine, Mode};

/// A source as the manifest lists it.
///
/// ```
/// # use regraft_engine::{Engine, Kept};
/// # fn f(engine: &Engine) {
/// for entry in engine.manifest().iter().filter(|entry| entry.kept == Kept::Nowhere) {
///     println!("a refit must bring {}", entry.info.name);
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ManifestEntry<'a> {
    /// Name, kind and type.
    pub info: &'a SourceInfo,
    /// Digest of the tensor that the engine was made with, where it is known.
    pub digest: Option<Digest>,
    /// Where that tensor is.
    pub kept: Kept<'a>,
}

/// Where an engine has the tensor of a source.
///
/// ```
/// # use regraft_engine::{Engine, Kept};
/// # fn f(engine: &Engine) {
/// for entry in engine.manifest() {
///     if let Kept::File(path) = entry.kept {
///         println!("{} is in {}", entry.info.name, path.display());
///     }
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept<'a> {
    /// In the engine.
    Embedded,
    /// In a weight file.
    File(&'a Path),
    /// Nowhere.
    Nowhere,
}

/// Weights that an engine would take.
///
/// ```
/// # use regraft_engine::Engine;
/// # use regraft_weights::{MatchOptions, StateDict};
/// # fn f(engine: &Engine, weights: &StateDict) {
/// match engine.check(weights, false, &MatchOptions::new()) {
///     Ok(checked) => println!("{checked}"),
///     Err(misfit) => println!("{misfit}"),
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Checked {
    /// How many sources they bring.
    pub given: usize,
    /// How their names become names of sources.
    pub rule: NameRule,
    /// Names that would change nothing.
    pub ignored: Vec<Ignored>,
}

/// One line: how many sources, by which rule, and how many names are left out.
impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sources are given", self.given)?;
        if !self.rule.is_identity() {
            write!(f, ", {}", self.rule)?;
        }
        match self.ignored.len() {
            0 => Ok(()),
            1 => f.write_str(", 1 name changes nothing"),
            count => write!(f, ", {count} names change nothing"),
        }
    }
}

impl Engine {
    /// The weights manifest: one entry per source.
    pub fn manifest(&self) -> Vec<ManifestEntry<'_>> {
        let kept = |index: usize| match (&self.sources[index], &self.files[index]) {
            (Some(_), _) => Kept::Embedded,
            (None, Some(file)) => Kept::File(file),
            (None, None) => Kept::Nowhere,
        };
        let entry = |(i, info)| ManifestEntry { info, digest: self.digests[i], kept: kept(i) };
        self.refit_map.sources.iter().enumerate().map(entry).collect()
    }

    /// Whether a bind or a complete refit would take `weights`: names, shapes and dtypes, and with `same` their contents,
    /// which must be those that the engine was made with. Contents of an identical engine are always compared; otherwise no
    /// tensor is read.
    ///
    /// A frozen engine takes no weights; the answer is what it would be if it did.
    ///
    /// # Errors
    /// Every reason why they do not fit.
    pub fn check(&self, weights: &StateDict, same: bool, options: &MatchOptions) -> Result<Checked, Misfit> {
        let digests = (self.identical || same).then_some(&*self.digests);
        let sources = &self.refit_map.sources;
        // A frozen engine has no recipes that say what is read.
        let used: Vec<bool> = match self.mode {
            Mode::Frozen => sources.iter().map(|source| !source.name.ends_with("num_batches_tracked")).collect(),
            Mode::Refittable | Mode::Stripped => self.refit_map.are_read(),
        };
        let names = match_sources(sources, &used, weights, options);
        let (rule, ignored) = (names.rule().clone(), names.ignored().to_vec());
        let matched = names.check(sources, digests, options)?;
        Ok(Checked { given: matched.len(), rule, ignored })
    }
}
