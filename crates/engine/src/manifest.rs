//! The weights manifest of an engine: what it takes, and how checkpoints are compared with it before anything is loaded.

use std::path::Path;

use regraft_weights::{Digest, MatchOptions, Problem, SourceInfo, StateDict, match_names};

use crate::{Engine, Mode};

/// A source as the manifest lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestEntry<'a> {
    /// Name, kind and type.
    pub info: &'a SourceInfo,
    /// Digest of the tensor that the engine was made with, where it is known.
    pub digest: Option<Digest>,
    /// Where that tensor is.
    pub kept: Kept<'a>,
}

/// Where an engine has the tensor of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept<'a> {
    /// In the engine.
    Embedded,
    /// In a weight file.
    File(&'a Path),
    /// Nowhere.
    Nowhere,
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
    /// tensor is read. Returns how many sources were given.
    ///
    /// A frozen engine takes no weights; the answer is what it would be if it did.
    ///
    /// # Errors
    /// Every reason why they do not fit.
    pub fn check(&self, weights: &StateDict, same: bool) -> Result<usize, Vec<Problem>> {
        let digests = (self.identical || same).then_some(&*self.digests);
        let options = MatchOptions::default();
        let names = match_names(&self.refit_map, weights, options);
        let mut problems = if self.mode == Mode::Frozen { self.missing(weights) } else { Vec::new() };
        match names.check(&self.refit_map, digests, options) {
            Ok(matched) if problems.is_empty() => Ok(matched.len()),
            Ok(_) => Err(problems),
            Err(found) => {
                problems.extend(found);
                Err(problems)
            }
        }
    }

    /// What a state dict lacks, when there are no recipes that say what is needed.
    fn missing(&self, weights: &StateDict) -> Vec<Problem> {
        let given = |info: &SourceInfo| info.names().any(|name| weights.get(name).is_some());
        let missing = self.refit_map.sources.iter().filter(|info| info.kind.in_state_dict() && !given(info));
        missing.map(|info| Problem::Missing { name: info.name.clone() }).collect()
    }
}
