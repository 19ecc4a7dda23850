//! The files of a cache folder: where they are, how they appear, are locked and go.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use super::DiskEntry;
use crate::cache::CacheKey;

/// What entries are called after their key.
pub(super) const EXTENSION: &str = "rgf";

pub(super) fn entries(root: &Path) -> PathBuf {
    root.join("entries")
}

pub(super) fn claims(root: &Path) -> PathBuf {
    root.join("claims")
}

fn building(root: &Path) -> PathBuf {
    root.join("building")
}

/// Makes the folders of a cache, for this user alone.
pub(super) fn make_folders(root: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    [entries(root), claims(root), building(root)].iter().try_for_each(|folder| builder.create(folder))
}

/// Opens and locks a file that exists to be locked; waits for the holder.
pub(super) fn lock(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    file.lock()?;
    Ok(file)
}

/// Notes that an entry is used now. An entry of another user can be used even where its use cannot be noted.
pub(super) fn touch(path: &Path) {
    let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

/// Removes a file that may be gone already.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What lies in a cache folder.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// The entries, the one used longest ago first.
    pub(super) list: Vec<DiskEntry>,
    /// Bytes of all other files.
    pub(super) other_bytes: u64,
}

impl Entries {
    /// Looks at all files below `root`. Those that go meanwhile are not counted.
    pub(super) fn of(root: &Path) -> io::Result<Entries> {
        let mut found = Entries::default();
        found.add_folder(root)?;
        found.list.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
        Ok(found)
    }

    /// Bytes of all files.
    pub(super) fn total(&self) -> u64 {
        self.other_bytes + self.list.iter().map(|entry| entry.bytes).sum::<u64>()
    }

    fn add_folder(&mut self, folder: &Path) -> io::Result<()> {
        let Some(files) = unless_gone(fs::read_dir(folder))? else { return Ok(()) };
        for file in files {
            let file = file?;
            // Links are files here: what they point at is not in the cache.
            let Some(metadata) = unless_gone(file.metadata())? else { continue };
            let path = file.path();
            if metadata.is_dir() {
                self.add_folder(&path)?;
                continue;
            }
            match key_of(&path) {
                Some(key) if folder.ends_with("entries") => {
                    self.list.push(DiskEntry { key, path, bytes: metadata.len(), used: metadata.modified()? });
                }
                _ => self.other_bytes += metadata.len(),
            }
        }
        Ok(())
    }
}

fn key_of(path: &Path) -> Option<CacheKey> {
    let named = path.extension()?.to_str()? == EXTENSION;
    path.file_stem()?.to_str()?.parse().ok().filter(|_| named)
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes files that writers left who are gone: the lock that a writer holds on its file ends with it.
pub(super) fn remove_abandoned(root: &Path) -> io::Result<()> {
    let Some(files) = unless_gone(fs::read_dir(building(root)))? else { return Ok(()) };
    for file in files {
        let path = file?.path();
        let Some(open) = unless_gone(File::open(&path))? else { continue };
        match open.try_lock() {
            Ok(()) => remove(&path)?,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(())
}

/// An entry that is being written; removed when it is dropped before it has its place.
#[derive(Debug)]
pub(super) struct TempFile {
    path: PathBuf,
    /// Held open for its lock.
    _file: File,
}

impl TempFile {
    pub(super) fn write(root: &Path, key: &CacheKey, bytes: &[u8]) -> io::Result<TempFile> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = building(root).join(format!("{key}-{}-{count}", process::id()));
            let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => file,
                // Left by a killed process that had our number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            };
            file.lock()?;
            let mut temp = TempFile { path, _file: file };
            temp._file.write_all(bytes)?;
            // A process that looked for abandoned files between the creation and the lock has removed it.
            if temp.path.exists() {
                return Ok(temp);
            }
        }
    }

    /// Puts the entry in its place, where another of its key may be.
    pub(super) fn rename(self, to: &Path) -> io::Result<()> {
        // On success there is nothing left for `drop` to remove.
        fs::rename(&self.path, to)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // There is nobody to tell; the error that led here is the one to report.
        let _ = fs::remove_file(&self.path);
    }
}
