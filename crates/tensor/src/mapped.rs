//! The one place where files are mapped into memory.
#![allow(unsafe_code)]

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use crate::{Buffer, ErrorKind, TensorError};

/// A whole file mapped read-only into memory.
///
/// The pages are shared with the page cache. Changing or truncating a mapped file while it is in use breaks
/// the program that maps it, as with every memory-mapping tool; Regraft itself replaces files by renaming a new one
/// over the old, which leaves existing mappings intact.
#[derive(Debug, Clone)]
pub struct MappedFile {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    map: memmap2::Mmap,
    file: File,
    path: PathBuf,
    modified: Option<SystemTime>,
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// When the file cannot be opened or mapped; the error names the file.
    pub fn open(path: &Path) -> Result<Self, TensorError> {
        let io = |error| TensorError::from(ErrorKind::Io { path: path.to_path_buf(), error });
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if metadata.is_dir() {
            return Err(io(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
        }
        // SAFETY: the map is read-only and private to this process. That nobody else shrinks the file while it is
        // mapped cannot be enforced on this platform; the documentation of `MappedFile` states the condition.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        let modified = metadata.modified().ok();
        Ok(MappedFile { inner: Arc::new(Inner { map, file, path: path.to_path_buf(), modified }) })
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.inner.map
    }

    /// The path it was opened under.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Whether the file still has the length and the time of change that it had when it was mapped. One that was replaced
    /// by renaming another over it is intact: the mapping keeps the old file alive.
    pub fn is_intact(&self) -> bool {
        self.inner
            .file
            .metadata()
            .is_ok_and(|now| now.len() == self.inner.map.len() as u64 && now.modified().ok() == self.inner.modified)
    }
}

/// Whether files have changed since they were mapped, by where they are mapped. The system is asked once for each, however many
/// tensors it holds.
#[derive(Debug, Default)]
pub struct MappedFiles(HashMap<usize, bool>);

impl MappedFiles {
    /// Whether these bytes are of a file that has changed.
    pub fn have_changed(&mut self, buffer: &Buffer) -> bool {
        let Buffer::Mapped(file, _) = buffer else { return false };
        *self.0.entry(file.bytes().as_ptr().addr()).or_insert_with(|| !file.is_intact())
    }
}
