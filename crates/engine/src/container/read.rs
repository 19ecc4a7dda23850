use std::{
    fs, io,
    path::{Path, PathBuf},
};

use regraft_tensor::{Buffer, ErrorKind, MappedFile, TensorError};

use super::{
    ContainerError, ContainerErrorKind as Kind, Format, SectionClass, SectionKind,
    layout::{self, Entry, Table},
    sniff,
};

/// What [`Container::open`] compares with its digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Every byte of the file.
    #[default]
    All,
    /// Everything but the sections of [`SectionClass::Weights`], which stay unread; damage there goes unnoticed until
    /// [`Container::verify_section`] is asked.
    Metadata,
}

/// A container in memory, mostly mapped, of which everything has been checked but what [`Verify`] leaves out.
#[derive(Debug, Clone)]
pub struct Container {
    path: PathBuf,
    file: Buffer,
    table: Table,
}

/// Where a section is, and its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionInfo {
    /// Its kind.
    pub kind: SectionKind,
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// BLAKE3 digest of its bytes.
    pub digest: [u8; 32],
}

impl Container {
    /// Maps the file at `path`, which is of one of `formats`, and checks it.
    ///
    /// # Errors
    /// When the file cannot be read, is not a container, is one of another version, or is damaged.
    pub fn open(path: impl AsRef<Path>, formats: &[&Format], verify: Verify) -> Result<Self, ContainerError> {
        let path = path.as_ref();
        let file = map(path).map_err(|kind| ContainerError::new(path, kind))?;
        Self::from_buffer(path, file, formats, verify)
    }

    /// A container in memory; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Container::open`].
    pub fn from_buffer(
        name: impl AsRef<Path>,
        file: Buffer,
        formats: &[&Format],
        verify: Verify,
    ) -> Result<Self, ContainerError> {
        let path = name.as_ref();
        let error = |kind| ContainerError::new(path, kind);
        let table = layout::parse(file.bytes(), formats).map_err(error)?;
        let container = Container { path: path.to_path_buf(), file, table };
        for entry in &container.table.entries {
            if verify == Verify::All || entry.kind.class == SectionClass::Metadata {
                entry.verify(container.file.bytes()).map_err(error)?;
            }
        }
        Ok(container)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version of its format.
    pub fn version(&self) -> u32 {
        self.table.version
    }

    /// A digest of the whole content: it covers the digest of each section.
    pub fn digest(&self) -> [u8; 32] {
        self.table.digest
    }

    /// The sections in the order of the file.
    pub fn sections(&self) -> impl ExactSizeIterator<Item = SectionInfo> {
        self.table.entries.iter().map(|&Entry { kind, offset, len, digest }| SectionInfo { kind, offset, len, digest })
    }

    /// The bytes of a section, mapped and aligned as its class says.
    ///
    /// # Errors
    /// [`MissingSection`](super::ContainerErrorKind::MissingSection).
    pub fn section(&self, kind: SectionKind) -> Result<Buffer, ContainerError> {
        self.optional_section(kind).ok_or_else(|| self.missing(kind))
    }

    /// The bytes of a section if the file has it.
    pub fn optional_section(&self, kind: SectionKind) -> Option<Buffer> {
        self.file.slice(self.entry(kind)?.range()?)
    }

    /// Compares a section with its digest, which [`Verify::Metadata`] leaves out for weights. One that is not there is sound.
    ///
    /// # Errors
    /// When the section is damaged.
    pub fn verify_section(&self, kind: SectionKind) -> Result<(), ContainerError> {
        let Some(entry) = self.entry(kind) else { return Ok(()) };
        entry.verify(self.file.bytes()).map_err(|kind| ContainerError::new(&self.path, kind))
    }

    fn entry(&self, kind: SectionKind) -> Option<&Entry> {
        self.table.entries.iter().find(|entry| entry.kind == kind)
    }

    fn missing(&self, kind: SectionKind) -> ContainerError {
        ContainerError::new(&self.path, Kind::MissingSection { section: kind.name })
    }
}

/// Maps a regular file. Anything else is refused before it is opened: opening a pipe waits for its writer.
fn map(path: &Path) -> Result<Buffer, Kind> {
    let found = fs::metadata(path).map_err(Kind::reading)?;
    if found.is_dir() {
        return Err(sniff::directory());
    }
    if !found.is_file() {
        return Err(sniff::special_file());
    }
    MappedFile::open(path).map(Buffer::from).map_err(|error| Kind::reading(system_error(&error)))
}

/// The error of the system in `error`, which names the file a second time otherwise.
fn system_error(error: &TensorError) -> io::Error {
    match error.kind() {
        ErrorKind::Io { error, .. } => match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        },
        other => io::Error::other(other.to_string()),
    }
}
