//! The records of a machine, shared by all builds on it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use regraft_engine::atomic_file::WriteError;
use regraft_weights::Digest;

use super::{Records, RecordsError, RecordsErrorKind, TuneMode, check_target};
use crate::pipeline::Backend;

/// A folder of tuning records: one file for each target, machine and version of Regraft.
///
/// A cache is never in the way: what cannot be read counts as empty, and the caller learns why.
#[derive(Clone, Debug)]
pub struct TuneCache {
    directory: PathBuf,
}

/// Records could not be stored in a cache. What was there is still there.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The folder or its lock file cannot be used.
    #[error("{}: could not use the tuning cache: {error}", path.display())]
    Place {
        /// The folder or file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        error: io::Error,
    },
    /// The file of records cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl TuneCache {
    /// The cache in a folder, which need not be there yet.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        TuneCache { directory: directory.into() }
    }

    /// What is known of `backend`, and why that is nothing where the file is damaged or foreign.
    pub fn load(&self, backend: Backend<'_>) -> (Records, Option<RecordsError>) {
        self.read(Records::of(backend))
    }

    /// What is there for the target, machine and version of `empty`, or `empty` itself.
    fn read(&self, empty: Records) -> (Records, Option<RecordsError>) {
        let path = self.path(&empty);
        match Records::open(&path) {
            Ok(records) => match check_origin(&empty, &records) {
                Ok(()) => (records, None),
                Err(kind) => (empty, Some(RecordsError { path, kind })),
            },
            Err(RecordsError { kind: RecordsErrorKind::Read(e), .. }) if e.kind() == io::ErrorKind::NotFound => {
                (empty, None)
            }
            Err(error) => (empty, Some(error)),
        }
    }

    /// Adds those of `records` that were measured to what is there. Builds that store at the same time wait for each other,
    /// and none's records are lost; a file that is damaged is replaced.
    ///
    /// # Errors
    /// When the folder cannot be made or written to.
    pub fn store(&self, records: &Records) -> Result<(), CacheError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            |error| CacheError::Place { path, error }
        };
        fs::create_dir_all(&self.directory).map_err(at(&self.directory))?;
        let path = self.path(records);
        let lock_path = path.with_extension("lock");
        let lock = open_lock(&lock_path).map_err(at(&lock_path))?;
        // Let go when the file is closed, however this ends.
        lock.lock().map_err(at(&lock_path))?;
        let (mut all, _) = self.read(records.none());
        let mut measured = records.none();
        for (problem, record) in records.iter().filter(|(_, record)| record.mode != TuneMode::Off) {
            measured.insert(problem, record.clone());
        }
        all.merge(&measured).expect("what was read is for the same target");
        Ok(all.save(&path)?)
    }

    /// The file for the target, machine and version of `records`.
    fn path(&self, records: &Records) -> PathBuf {
        let name = Digest::of_bytes(origin(records).as_bytes()).to_string();
        self.directory.join(format!("{}.json", &name[..32]))
    }
}

/// What the times of records depend on besides the problem.
fn origin(records: &Records) -> String {
    format!("regraft {}, {}, {}", records.product(), records.target(), records.machine())
}

/// A file whose name fits but whose contents are from elsewhere was put there by hand.
fn check_origin(expected: &Records, found: &Records) -> Result<(), RecordsErrorKind> {
    check_target(expected.target(), found.target())?;
    let (expected, found) = (origin(expected), origin(found));
    if expected == found { Ok(()) } else { Err(RecordsErrorKind::Machine { expected, found }) }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).open(path)
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
