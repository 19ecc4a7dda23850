//! Memory that the host cannot address, and what is in flight on it.
#![allow(unsafe_code)]

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex},
};

use regraft_backend::{Memory, Region, RegionMut};
use regraft_tensor::{AlignedVec, TensorError};

use crate::{
    queue::Progress,
    shared::{Shared, lock},
};

/// What memory holds before it is written. As f32 a number that no test expects.
pub(crate) const FRESH: u8 = 0xa5;

/// What memory holds after it was freed: NaNs.
const FREED: u8 = 0xff;

/// One memory of the device: its bytes are behind a lock, reached by its address alone.
pub(crate) struct Block {
    pub(crate) start: u64,
    pub(crate) len: usize,
    bytes: Mutex<AlignedVec>,
    /// Work that the host has not seen the end of, as far as it matters.
    uses: Mutex<Vec<Use>>,
}

/// Work that uses a part of a memory.
#[derive(Clone)]
pub(crate) struct Use {
    pub(crate) progress: Arc<Progress>,
    pub(crate) ticket: u64,
    pub(crate) range: Range<usize>,
    pub(crate) writes: bool,
}

impl Use {
    fn conflicts(&self, other: &Use) -> bool {
        let overlap = self.range.start < other.range.end && other.range.start < self.range.end;
        overlap && (self.writes || other.writes) && !Arc::ptr_eq(&self.progress, &other.progress)
    }
}

impl Block {
    pub(crate) fn new(start: u64, len: usize) -> Result<Self, TensorError> {
        let mut bytes = AlignedVec::try_zeroed(len)?;
        bytes.bytes_mut().fill(FRESH);
        Ok(Block { start, len, bytes: Mutex::new(bytes), uses: Mutex::default() })
    }

    /// Remembers a use; what `violation` makes of the first one in flight that it conflicts with.
    pub(crate) fn begin<T>(&self, new: Use, violation: impl FnOnce(&Use) -> T) -> Option<T> {
        let mut uses = lock(&self.uses);
        uses.retain(|old| !old.progress.has_seen(old.ticket));
        let found = uses.iter().find(|old| old.conflicts(&new)).map(violation);
        // A later use of the same bytes by the same queue stands for the ones before.
        uses.retain(|old| {
            let same = Arc::ptr_eq(&old.progress, &new.progress) && old.range == new.range && old.writes == new.writes;
            !same
        });
        uses.push(new);
        found
    }

    /// A queue whose work uses this memory and was not seen to end.
    pub(crate) fn in_flight(&self) -> Option<u64> {
        lock(&self.uses).iter().find(|u| !u.progress.has_seen(u.ticket)).map(|u| u.progress.queue)
    }

    pub(crate) fn poison(&self) {
        lock(&self.bytes).bytes_mut().fill(FREED);
    }
}

/// Bytes of a block.
#[derive(Clone)]
pub(crate) struct Span(Option<Arc<Block>>, Range<usize>);

impl Span {
    pub(crate) fn new(block: Arc<Block>, range: Range<usize>) -> Self {
        Span(Some(block), range)
    }

    pub(crate) fn empty() -> Self {
        Span(None, 0..0)
    }

    pub(crate) fn block(&self) -> Option<&Block> {
        self.0.as_deref()
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.1.clone()
    }

    pub(crate) fn load(&self, to: &mut [u8]) {
        if let Some(block) = &self.0 {
            to.copy_from_slice(&lock(&block.bytes).bytes()[self.range()]);
        }
    }

    pub(crate) fn store(&self, from: &[u8]) {
        if let Some(block) = &self.0 {
            lock(&block.bytes).bytes_mut()[self.range()].copy_from_slice(from);
        }
    }

    /// A copy, aligned as memory of a host device is.
    pub(crate) fn copy(&self) -> AlignedVec {
        let mut copy = AlignedVec::zeroed(self.1.len());
        self.load(copy.bytes_mut());
        copy
    }
}

/// What the runtime holds of a block.
pub(crate) struct MockMemory {
    shared: Arc<Shared>,
    block: Arc<Block>,
}

impl MockMemory {
    pub(crate) fn new(shared: Arc<Shared>, block: Arc<Block>) -> Self {
        MockMemory { shared, block }
    }
}

impl Drop for MockMemory {
    fn drop(&mut self) {
        self.shared.free(&self.block);
    }
}

// SAFETY: address and length are fixed; no address is given out twice, so the bytes that this one stands for are nobody else's.
// They cannot be reached from the host.
unsafe impl Memory for MockMemory {
    fn address(&self) -> u64 {
        self.block.start
    }

    fn len(&self) -> usize {
        self.block.len
    }

    fn is_host(&self) -> bool {
        false
    }
}

impl fmt::Debug for MockMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MockMemory({:#x}, {} bytes)", self.block.start, self.block.len)
    }
}

/// Host memory for the time of one piece of work, with bytes around it that nobody may change.
pub(crate) struct Guarded {
    bytes: AlignedVec,
    len: usize,
}

const GUARD: usize = 64;
const GUARD_BYTE: u8 = 0x6d;

impl Guarded {
    /// `len` bytes of rubbish.
    pub(crate) fn new(len: usize) -> Self {
        let mut bytes = AlignedVec::zeroed(GUARD + len + GUARD);
        bytes.bytes_mut().fill(GUARD_BYTE);
        bytes.bytes_mut()[GUARD..GUARD + len].fill(FRESH);
        Guarded { bytes, len }
    }

    /// The bytes of `span`.
    pub(crate) fn copy_of(span: &Span) -> Self {
        let mut copy = Guarded::new(span.range().len());
        let len = copy.len;
        span.load(&mut copy.bytes.bytes_mut()[GUARD..GUARD + len]);
        copy
    }

    pub(crate) fn region(&self) -> Region<'_> {
        Region::of_host(self.bytes())
    }

    pub(crate) fn region_mut(&mut self) -> RegionMut<'_> {
        let len = self.len;
        // Of all the bytes, so that a pointer that runs out of its part is at home here all the same.
        RegionMut::of_host(self.bytes.bytes_mut()).part(GUARD..GUARD + len)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes.bytes()[GUARD..GUARD + self.len]
    }

    /// Whether the bytes around it are as they were.
    pub(crate) fn is_intact(&self) -> bool {
        let bytes = self.bytes.bytes();
        bytes[..GUARD].iter().chain(&bytes[GUARD + self.len..]).all(|byte| *byte == GUARD_BYTE)
    }
}
