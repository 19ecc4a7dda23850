//! The weights of an engine file are compared with their digests beside everything else: whoever is about to use what was
//! computed from them waits for the result first.

use std::{
    sync::{Arc, OnceLock},
    thread,
};

use regraft_engine::Unverified;

use crate::{RuntimeError, RuntimeErrorKind};

/// What is wrong with the file, once it is known.
type Outcome = Arc<OnceLock<Result<(), String>>>;

/// A comparison under way or done.
#[derive(Clone, Debug, Default)]
pub(crate) struct FileCheck(Option<Outcome>);

impl FileCheck {
    /// Begins to compare; there is nothing to wait for when the weights were compared before.
    pub(crate) fn start(unverified: Option<Unverified>) -> FileCheck {
        let Some(unverified) = unverified else { return FileCheck(None) };
        let outcome = Outcome::default();
        let (other, weights) = (outcome.clone(), unverified.clone());
        let check = move || other.get_or_init(|| weights.verify().map_err(|e| e.to_string())).is_ok();
        if thread::Builder::new().name("regraft-check".into()).spawn(check).is_err() {
            outcome.get_or_init(|| unverified.verify().map_err(|e| e.to_string()));
        }
        FileCheck(Some(outcome))
    }

    /// Waits for the result.
    pub(crate) fn wait(&self) -> Result<(), RuntimeError> {
        match self.0.as_ref().map(|outcome| outcome.wait()) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(why)) => Err(RuntimeErrorKind::DamagedFile(why.clone()).into()),
        }
    }
}
