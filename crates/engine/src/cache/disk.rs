//! The cache on disk.

mod evict;
mod files;

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::SystemTime,
};

use regraft_tensor::{AlignedVec, Buffer};

use self::files::{Entries, TempFile, remove};
use super::{CacheError, CacheKey, Claim, EngineCache, MAX_ENTRY, Put};
use crate::Engine;

/// Stripped engines as files of one folder, shared by any number of processes.
///
/// ```text
/// entries/KEY.rgf   the entries; when one was used last is its time of change
/// building/...      entries being written, each locked by its writer until it is whole and renamed
/// claims/XYZ        locked while an engine is built whose key begins so
/// lock              locked while entries appear or go
/// ```
///
/// All locks are the system's and end with the process that holds them, so that a killed one leaves nothing behind but a
/// file in `building`, which the next writer removes. Entries appear by renaming, whole. Bytes are not synced to the disk:
/// what a power cut leaves of an entry does not match its digests, and is a miss.
#[derive(Clone, Debug)]
pub struct DiskCache {
    root: PathBuf,
    limit: u64,
}

/// An entry of a [`DiskCache`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskEntry {
    /// Its key.
    pub key: CacheKey,
    /// Its file.
    pub path: PathBuf,
    /// Size of the file.
    pub bytes: u64,
    /// When it was stored or used last.
    pub used: SystemTime,
}

/// What a [`DiskCache`] takes of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of entries.
    pub entries: usize,
    /// Bytes of all files, those being written included.
    pub bytes: u64,
}

impl DiskCache {
    /// The most that a cache holds unless told otherwise: 1 GB, several thousand engines.
    pub const DEFAULT_LIMIT: u64 = 1_000_000_000;

    /// The cache in the folder `root`, which is made when the first entry is stored. All files of it together may take
    /// `limit` bytes.
    pub fn new(root: impl Into<PathBuf>, limit: u64) -> Self {
        DiskCache { root: root.into(), limit }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The most bytes that all files together may take.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// All entries, the one used last first.
    ///
    /// # Errors
    /// When the folder cannot be read; one that is not there is an empty cache.
    pub fn entries(&self) -> Result<Vec<DiskEntry>, CacheError> {
        let mut entries = self.at(&self.root, Entries::of(&self.root))?.list;
        entries.reverse();
        Ok(entries)
    }

    /// What the cache takes of the disk.
    ///
    /// # Errors
    /// As [`DiskCache::entries`].
    pub fn usage(&self) -> Result<Usage, CacheError> {
        let entries = self.at(&self.root, Entries::of(&self.root))?;
        Ok(Usage { entries: entries.list.len(), bytes: entries.total() })
    }

    /// Removes what killed processes left, and the entries that were used longest ago until all files together take no more
    /// than `limit` bytes. Returns the removed entries.
    ///
    /// # Errors
    /// When the folder cannot be read or written.
    pub fn collect(&self, limit: u64) -> Result<Vec<DiskEntry>, CacheError> {
        if !self.root.exists() {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        self.at(&self.root, files::remove_abandoned(&self.root))?;
        self.at(&self.root, evict::down_to(&self.root, limit, None))
    }

    /// Removes all entries, and returns them.
    ///
    /// # Errors
    /// As [`DiskCache::collect`].
    pub fn clear(&self) -> Result<Vec<DiskEntry>, CacheError> {
        self.collect(0)
    }

    /// Reads every entry, and removes those that are damaged or that this version cannot read. Returns each of these with
    /// the reason, and how many are sound.
    ///
    /// # Errors
    /// As [`DiskCache::collect`].
    pub fn verify(&self) -> Result<(usize, Vec<(DiskEntry, String)>), CacheError> {
        let (mut sound, mut removed) = (0, Vec::new());
        for entry in self.entries()? {
            let Some(bytes) = self.at(&entry.path, read(&entry.path))? else { continue };
            match Engine::from_entry(&entry.path, bytes, &entry.key) {
                Ok(_) => sound += 1,
                Err(error) => {
                    self.remove(&entry.key)?;
                    removed.push((entry, error.to_string()));
                }
            }
        }
        Ok((sound, removed))
    }

    fn path(&self, key: &CacheKey) -> PathBuf {
        files::entries(&self.root).join(format!("{key}.{}", files::EXTENSION))
    }

    /// The right to let entries appear and go.
    fn lock(&self) -> Result<File, CacheError> {
        let path = self.root.join("lock");
        self.at(&path, files::lock(&path))
    }

    fn at<T>(&self, path: &Path, result: io::Result<T>) -> Result<T, CacheError> {
        result.map_err(|error| CacheError::new(path.display(), error))
    }
}

impl EngineCache for DiskCache {
    fn get(&self, key: &CacheKey) -> Result<Option<Buffer>, CacheError> {
        let path = self.path(key);
        let found = self.at(&path, read(&path))?;
        if found.is_some() {
            files::touch(&path);
        }
        Ok(found)
    }

    fn put(&self, key: &CacheKey, entry: &[u8]) -> Result<Put, CacheError> {
        let bytes = entry.len() as u64;
        if bytes > self.limit {
            return Ok(Put::TooLarge { limit: self.limit });
        }
        let path = self.path(key);
        self.at(&self.root, files::make_folders(&self.root))?;
        let temp = self.at(&path, TempFile::write(&self.root, key, entry))?;
        let _lock = self.lock()?;
        self.at(&self.root, files::remove_abandoned(&self.root))?;
        self.at(&self.root, evict::down_to(&self.root, self.limit, Some(key)))?;
        self.at(&path, temp.rename(&path))?;
        Ok(Put::Stored)
    }

    fn remove(&self, key: &CacheKey) -> Result<(), CacheError> {
        let path = self.path(key);
        if !path.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.at(&path, remove(&path))
    }

    fn claim(&self, key: &CacheKey) -> Result<Claim, CacheError> {
        self.at(&self.root, files::make_folders(&self.root))?;
        // A fixed set of files, so that none has to be removed under the eyes of those who wait for it. Two keys that begin
        // alike wait for each other once in four thousand.
        let path = files::claims(&self.root).join(&key.to_string()[..3]);
        self.at(&path, files::lock(&path)).map(Claim::new)
    }
}

/// The bytes of a file, or `None` when it is not there. Copied rather than mapped: it may be damaged under our eyes.
fn read(path: &Path) -> io::Result<Option<Buffer>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let len = file.metadata()?.len();
    if len > MAX_ENTRY {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the entry is larger than any engine without weights"));
    }
    let mut bytes = Vec::with_capacity(len as usize);
    file.take(MAX_ENTRY).read_to_end(&mut bytes)?;
    Ok(Some(AlignedVec::copy_of(&bytes).into()))
}
