use std::{fmt, ops::Range, sync::Arc};

use bytemuck::{Pod, Zeroable};

use crate::MappedFile;

/// One cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Growable zero-initialised bytes that start on a 64-byte boundary.
#[derive(Clone, Default)]
pub struct AlignedVec {
    lines: Vec<Line>,
    len: usize,
}

impl AlignedVec {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        AlignedVec { lines: bytemuck::zeroed_vec(len.div_ceil(64)), len }
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut v = AlignedVec::zeroed(bytes.len());
        v.bytes_mut().copy_from_slice(bytes);
        v
    }

    /// A copy of the elements of `data`.
    pub fn from_slice<T: Pod>(data: &[T]) -> Self {
        AlignedVec::copy_of(bytemuck::cast_slice(data))
    }

    /// Makes the length `len`; contents are unspecified (old bytes or zeros) afterwards. Never shrinks its memory.
    pub fn resize(&mut self, len: usize) {
        let lines = len.div_ceil(64);
        if lines > self.lines.len() {
            self.lines = bytemuck::zeroed_vec(lines);
        }
        self.len = len;
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory held, which `resize` can use without allocating.
    pub fn capacity(&self) -> usize {
        self.lines.len() * 64
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl fmt::Debug for AlignedVec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedVec({} bytes)", self.len)
    }
}

/// Immutable shared bytes: owned and 64-byte aligned, or a range of a mapped file.
#[derive(Clone, Debug)]
pub enum Buffer {
    /// Bytes in memory of this process.
    Owned(Arc<AlignedVec>),
    /// A range of a mapped file.
    Mapped(MappedFile, Range<usize>),
}

impl Buffer {
    /// The part `range` of a mapped file, or `None` when the file is shorter.
    pub fn mapped(file: &MappedFile, range: Range<usize>) -> Option<Buffer> {
        file.bytes().get(range.clone())?;
        Some(Buffer::Mapped(file.clone(), range))
    }

    /// A part of these bytes that shares their memory (of owned bytes, a copy), or `None` when it reaches outside.
    pub fn slice(&self, range: Range<usize>) -> Option<Buffer> {
        let part = self.bytes().get(range.clone())?;
        match self {
            Buffer::Owned(_) => Some(AlignedVec::copy_of(part).into()),
            Buffer::Mapped(file, whole) => Buffer::mapped(file, whole.start + range.start..whole.start + range.end),
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Buffer::Owned(v) => v.bytes(),
            Buffer::Mapped(file, range) => &file.bytes()[range.clone()],
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes().len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The file behind mapped bytes.
    pub fn file(&self) -> Option<&std::path::Path> {
        match self {
            Buffer::Mapped(file, _) => Some(file.path()),
            Buffer::Owned(_) => None,
        }
    }

    /// The file behind mapped bytes, when it was changed since.
    pub fn changed_file(&self) -> Option<&std::path::Path> {
        match self {
            Buffer::Mapped(file, _) if !file.is_intact() => Some(file.path()),
            Buffer::Mapped(..) | Buffer::Owned(_) => None,
        }
    }

    /// Whether both are the same memory, so that their contents need no comparison.
    pub fn same_memory(&self, other: &Buffer) -> bool {
        std::ptr::eq(self.bytes(), other.bytes())
    }
}

impl From<MappedFile> for Buffer {
    fn from(file: MappedFile) -> Self {
        let all = 0..file.bytes().len();
        Buffer::Mapped(file, all)
    }
}

impl From<AlignedVec> for Buffer {
    fn from(v: AlignedVec) -> Self {
        Buffer::Owned(Arc::new(v))
    }
}
