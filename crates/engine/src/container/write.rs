use std::{
    io::{self, Cursor, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::{
    CHUNK_ALIGNMENT, ContainerError, ContainerErrorKind as Kind, Format, SectionKind, hash_into,
    layout::{self, Entry},
};
use crate::atomic_file::AtomicFile;

/// Bytes that are hashed and then written while they are in the cache.
const PIECE: usize = 4 << 20;

/// Writes a container, section after section: to a file under a temporary name that [`ContainerWriter::finish`] puts in its
/// place, or to memory.
///
/// Dropping the writer, or any error, removes the temporary file and leaves what was at the path before.
#[derive(Debug)]
pub struct ContainerWriter<W = AtomicFile> {
    path: PathBuf,
    /// `None` after an error.
    encoder: Option<Encoder<W>>,
}

impl ContainerWriter {
    /// Begins a container that will be at `path`.
    ///
    /// # Errors
    /// When no file can be created there.
    pub fn create(path: impl AsRef<Path>, format: &'static Format) -> Result<Self, ContainerError> {
        let path = path.as_ref().to_path_buf();
        let file = AtomicFile::create(&path)?;
        Self::new(path, file, format)
    }

    /// Writes the header, brings everything to the disk, and the file to its place. Returns its length in bytes.
    ///
    /// # Errors
    /// When it cannot be written; the temporary file is gone then.
    pub fn finish(mut self) -> Result<u64, ContainerError> {
        let (file, len) = self.take()?.finish().map_err(|kind| ContainerError::new(&self.path, kind))?;
        file.commit()?;
        Ok(len)
    }
}

impl ContainerWriter<Cursor<Vec<u8>>> {
    /// Begins a container in memory; `name` is what errors call it.
    ///
    /// # Errors
    /// None in practice: memory takes what it is given.
    pub fn in_memory(name: impl AsRef<Path>, format: &'static Format) -> Result<Self, ContainerError> {
        Self::new(name.as_ref().to_path_buf(), Cursor::default(), format)
    }

    /// Writes the header, and returns the bytes of the container.
    ///
    /// # Errors
    /// After an error of a section.
    pub fn into_bytes(mut self) -> Result<Vec<u8>, ContainerError> {
        let (bytes, _) = self.take()?.finish().map_err(|kind| ContainerError::new(&self.path, kind))?;
        Ok(bytes.into_inner())
    }
}

impl<W: Write + Seek> ContainerWriter<W> {
    fn new(path: PathBuf, out: W, format: &'static Format) -> Result<Self, ContainerError> {
        match Encoder::new(out, format) {
            Ok(encoder) => Ok(ContainerWriter { path, encoder: Some(encoder) }),
            Err(kind) => Err(ContainerError::new(path, kind)),
        }
    }

    /// Writes a section that is one piece.
    ///
    /// # Errors
    /// When it cannot be written; the temporary file is gone then.
    ///
    /// # Panics
    /// When the format lacks `kind` or the section has been written before, which is a mistake in the caller.
    pub fn section(&mut self, kind: SectionKind, bytes: &[u8]) -> Result<(), ContainerError> {
        self.chunked_section(kind, [Ok(bytes)]).map(drop)
    }

    /// Writes a section made of chunks, each on a multiple of [`CHUNK_ALIGNMENT`], and returns the offset of each
    /// inside the section. A chunk is asked for when the one before it is written.
    ///
    /// # Errors
    /// The first error of `chunks`, or when the section cannot be written; the temporary file is gone then.
    ///
    /// # Panics
    /// As [`ContainerWriter::section`].
    pub fn chunked_section<C: AsRef<[u8]>>(
        &mut self,
        kind: SectionKind,
        chunks: impl IntoIterator<Item = io::Result<C>>,
    ) -> Result<Vec<u64>, ContainerError> {
        let mut encoder = self.take()?;
        // On an error the encoder is dropped here, and the temporary file with it.
        let offsets = encoder.section(kind, chunks).map_err(|kind| ContainerError::new(&self.path, kind))?;
        self.encoder = Some(encoder);
        Ok(offsets)
    }

    fn take(&mut self) -> Result<Encoder<W>, ContainerError> {
        let failed = || Kind::writing("go on writing the file", io::Error::other("an earlier section failed"));
        self.encoder.take().ok_or_else(|| ContainerError::new(&self.path, failed()))
    }
}

/// Lays a container out on anything that can be written to.
#[derive(Debug)]
pub(super) struct Encoder<W> {
    out: W,
    format: &'static Format,
    entries: Vec<Entry>,
    table_end: u32,
    /// Bytes written.
    end: u64,
}

impl<W: Write + Seek> Encoder<W> {
    /// Leaves space for the header and a table of all sections that the format has.
    pub(super) fn new(out: W, format: &'static Format) -> Result<Self, Kind> {
        let space = vec![0; layout::table_len(format.sections.len())];
        let mut encoder = Encoder { out, format, entries: Vec::new(), table_end: space.len() as u32, end: 0 };
        encoder.write(&space).map_err(|cause| Kind::writing("write the header", cause))?;
        Ok(encoder)
    }

    pub(super) fn section<C: AsRef<[u8]>>(
        &mut self,
        kind: SectionKind,
        chunks: impl IntoIterator<Item = io::Result<C>>,
    ) -> Result<Vec<u64>, Kind> {
        assert!(self.format.sections.contains(&kind), "the format has no section `{}`", kind.name);
        assert!(self.entries.iter().all(|entry| entry.kind != kind), "section `{}` is written twice", kind.name);
        self.write_section(kind, chunks).map_err(|cause| Kind::writing(format!("write section `{}`", kind.name), cause))
    }

    fn write_section<C: AsRef<[u8]>>(
        &mut self,
        kind: SectionKind,
        chunks: impl IntoIterator<Item = io::Result<C>>,
    ) -> io::Result<Vec<u64>> {
        self.pad(kind.class.alignment())?;
        let (offset, mut hasher, mut offsets) = (self.end, blake3::Hasher::new(), Vec::new());
        for chunk in chunks {
            let chunk = chunk?;
            // Sections begin on such a multiple, so chunks lie on them in the section as well as in the file.
            hasher.update(self.pad(CHUNK_ALIGNMENT)?);
            offsets.push(self.end - offset);
            self.write_hashed(&mut hasher, chunk.as_ref())?;
        }
        let digest = *hasher.finalize().as_bytes();
        self.entries.push(Entry { kind, offset, len: self.end - offset, digest });
        Ok(offsets)
    }

    fn write_hashed(&mut self, hasher: &mut blake3::Hasher, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PIECE) {
            hash_into(hasher, piece);
            self.write(piece)?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Writes zeros up to a multiple of `alignment`, and returns them.
    fn pad(&mut self, alignment: u64) -> io::Result<&'static [u8]> {
        static ZEROS: [u8; 4096] = [0; 4096];
        let end = layout::align_up(self.end, alignment).ok_or(io::ErrorKind::FileTooLarge)?;
        let zeros = &ZEROS[..(end - self.end) as usize];
        self.write(zeros)?;
        Ok(zeros)
    }

    /// Writes header and table; returns the output and the length of the file.
    pub(super) fn finish(mut self) -> Result<(W, u64), Kind> {
        let header = layout::encode(self.format.version, self.table_end, self.end, &self.entries);
        self.write_header(&header).map_err(|cause| Kind::writing("write the header", cause))?;
        Ok((self.out, self.end))
    }

    fn write_header(&mut self, header: &[u8]) -> io::Result<()> {
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(header)?;
        self.out.flush()
    }
}
