use std::{
    fmt, mem,
    ops::Range,
    sync::{Arc, Weak},
};

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

use crate::{BorrowedBytes, ErrorKind, MappedFile, RemoteBytes, Shelf, TensorError};

/// One cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// From this size on memory that stays is asked for in huge pages.
const HUGE_FROM: usize = 1 << 20;

/// Growable zero-initialized bytes that start on a 64-byte boundary.
///
/// ```
/// use regraft_tensor::AlignedVec;
///
/// let bytes = AlignedVec::zeroed(100);
/// assert_eq!(bytes.bytes().len(), 100);
/// assert_eq!(bytes.bytes().as_ptr() as usize % 64, 0);
/// ```
#[derive(Default)]
pub struct AlignedVec {
    memory: Memory,
    len: usize,
    /// Where the memory goes when it is dropped.
    shelf: Option<Weak<Shelf>>,
}

enum Memory {
    Heap(Vec<Line>),
    /// Pages of our own, with how many lines of them are ours to use.
    Pages(MmapMut, usize),
}

impl AlignedVec {
    fn of(memory: Memory, len: usize) -> Self {
        AlignedVec { memory, len, shelf: None }
    }

    /// The same, to go to `shelf` when it is dropped.
    pub(crate) fn of_shelf(mut self, shelf: &Arc<Shelf>) -> Self {
        self.shelf = Some(Arc::downgrade(shelf));
        self
    }

    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        AlignedVec::of(Memory::Heap(bytemuck::zeroed_vec(len.div_ceil(64))), len)
    }

    /// `len` zero bytes, when the system gives them.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`].
    pub fn try_zeroed(len: usize) -> Result<Self, TensorError> {
        let lines = bytemuck::try_zeroed_vec(len.div_ceil(64)).map_err(|()| ErrorKind::OutOfMemory { bytes: len })?;
        Ok(AlignedVec::of(Memory::Heap(lines), len))
    }

    /// `len` zero bytes that stay for long, when the system gives them: large memory is in huge pages where the system has
    /// them. Bringing it into use then costs a fraction, and so does finding it.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`].
    pub fn try_to_stay(len: usize) -> Result<Self, TensorError> {
        let lines = len.div_ceil(64);
        if lines * 64 < HUGE_FROM {
            return AlignedVec::try_zeroed(len);
        }
        match MmapMut::map_anon(lines * 64) {
            Ok(pages) => Ok(AlignedVec::of(huge(pages, lines), len)),
            // Where the system gives no pages, the heap is used.
            Err(_) => AlignedVec::try_zeroed(len),
        }
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut v = AlignedVec::zeroed(bytes.len());
        v.bytes_mut().copy_from_slice(bytes);
        v
    }

    /// A copy of `bytes`, when the system gives the memory.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`].
    pub fn try_copy_of(bytes: &[u8]) -> Result<Self, TensorError> {
        let mut v = AlignedVec::try_zeroed(bytes.len())?;
        v.bytes_mut().copy_from_slice(bytes);
        Ok(v)
    }

    /// A copy of the elements of `data`.
    pub fn from_slice<T: Pod>(data: &[T]) -> Self {
        AlignedVec::copy_of(bytemuck::cast_slice(data))
    }

    /// Makes the length `len`; contents are unspecified (old bytes or zeros) afterwards. Never shrinks its memory.
    pub fn resize(&mut self, len: usize) {
        let lines = len.div_ceil(64);
        if lines * 64 > self.capacity() {
            self.memory = Memory::Heap(bytemuck::zeroed_vec(lines));
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
        match &self.memory {
            Memory::Heap(lines) => lines.len() * 64,
            Memory::Pages(_, lines) => lines * 64,
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap(lines) => &bytemuck::cast_slice(lines)[..self.len],
            Memory::Pages(pages, _) => &pages[..self.len],
        }
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap(lines) => &mut bytemuck::cast_slice_mut(lines)[..self.len],
            Memory::Pages(pages, _) => &mut pages[..self.len],
        }
    }
}

fn huge(pages: MmapMut, lines: usize) -> Memory {
    // Advice: a system that does not take it gives small pages.
    #[cfg(target_os = "linux")]
    let _ = pages.advise(memmap2::Advice::HugePage);
    Memory::Pages(pages, lines)
}

impl Default for Memory {
    fn default() -> Self {
        Memory::Heap(Vec::new())
    }
}

impl Drop for AlignedVec {
    fn drop(&mut self) {
        if let Some(shelf) = self.shelf.take().and_then(|shelf| shelf.upgrade()) {
            shelf.put_back(AlignedVec::of(mem::take(&mut self.memory), self.len));
        }
    }
}

impl Clone for AlignedVec {
    fn clone(&self) -> Self {
        AlignedVec::copy_of(self.bytes())
    }
}

impl fmt::Debug for AlignedVec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedVec({} bytes)", self.len)
    }
}

/// Immutable shared bytes: owned and 64-byte aligned, a range of a mapped file, or borrowed for a call.
///
/// ```
/// use regraft_tensor::{AlignedVec, Buffer};
///
/// let buffer = Buffer::from(AlignedVec::copy_of(b"weights"));
/// assert_eq!(buffer.slice(0..6).expect("it is inside").bytes(), b"weight");
/// assert!(buffer.slice(0..8).is_none());
/// ```
#[derive(Clone, Debug)]
pub enum Buffer {
    /// Bytes in memory of this process.
    Owned(Arc<AlignedVec>),
    /// A range of a mapped file.
    Mapped(MappedFile, Range<usize>),
    /// Memory of another owner, who may write to it once the call that it was given to is over. Nothing keeps it.
    Borrowed(BorrowedBytes),
    /// As [`Buffer::Borrowed`], in memory of a device: copied to the host when the bytes are first asked for.
    Remote(RemoteBytes),
}

impl Buffer {
    /// The part `range` of a mapped file, or `None` when the file is shorter.
    pub fn mapped(file: &MappedFile, range: Range<usize>) -> Option<Buffer> {
        file.bytes().get(range.clone())?;
        Some(Buffer::Mapped(file.clone(), range))
    }

    /// A part of these bytes that shares their memory (of owned and remote bytes, a copy), or `None` when it reaches outside.
    pub fn slice(&self, range: Range<usize>) -> Option<Buffer> {
        let part = self.bytes().get(range.clone())?;
        match self {
            Buffer::Owned(_) | Buffer::Remote(_) => Some(AlignedVec::copy_of(part).into()),
            Buffer::Mapped(file, whole) => Buffer::mapped(file, whole.start + range.start..whole.start + range.end),
            Buffer::Borrowed(bytes) => bytes.slice(range).map(Buffer::Borrowed),
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Buffer::Owned(v) => v.bytes(),
            Buffer::Mapped(file, range) => &file.bytes()[range.clone()],
            Buffer::Borrowed(bytes) => bytes.bytes(),
            Buffer::Remote(bytes) => bytes.bytes(),
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        if let Buffer::Remote(bytes) = self { bytes.len() } else { self.bytes().len() }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the bytes are on `device`, when they are in its memory.
    pub fn remote_on(&self, device: &str) -> Option<u64> {
        if let Buffer::Remote(bytes) = self { bytes.on(device) } else { None }
    }

    /// The file behind mapped bytes.
    pub fn file(&self) -> Option<&std::path::Path> {
        match self {
            Buffer::Mapped(file, _) => Some(file.path()),
            Buffer::Owned(_) | Buffer::Borrowed(_) | Buffer::Remote(_) => None,
        }
    }

    /// The file behind mapped bytes, when it was changed since.
    pub fn changed_file(&self) -> Option<&std::path::Path> {
        match self {
            Buffer::Mapped(file, _) if !file.is_intact() => Some(file.path()),
            Buffer::Mapped(..) | Buffer::Owned(_) | Buffer::Borrowed(_) | Buffer::Remote(_) => None,
        }
    }

    /// Whether the memory has another owner, who may write to it after the call that it was given to.
    pub fn is_borrowed(&self) -> bool {
        matches!(self, Buffer::Borrowed(_) | Buffer::Remote(_))
    }

    /// The same bytes in memory that stays as it is: a copy of those that are borrowed.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`] when the system does not give the memory of the copy; when the device fails that they are on.
    pub fn to_owned_memory(&self) -> Result<Buffer, TensorError> {
        let bytes = match self {
            Buffer::Owned(_) | Buffer::Mapped(..) => return Ok(self.clone()),
            Buffer::Borrowed(bytes) => bytes.bytes(),
            Buffer::Remote(bytes) => bytes.fetch()?,
        };
        let mut copy = AlignedVec::try_to_stay(bytes.len())?;
        copy.bytes_mut().copy_from_slice(bytes);
        Ok(copy.into())
    }

    /// Whether both are the same memory, so that their contents need no comparison.
    pub fn same_memory(&self, other: &Buffer) -> bool {
        match (self, other) {
            (Buffer::Remote(one), Buffer::Remote(other)) => one.is_same(other),
            (Buffer::Remote(_), _) | (_, Buffer::Remote(_)) => false,
            _ => std::ptr::eq(self.bytes(), other.bytes()),
        }
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
