//! What all parts of a device share: its memory, its violations, and the faults that a test injects.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use regraft_backend::{Device, MemoryKind, OutOfMemory};

use crate::{
    Failing, Violation,
    memory::{Block, MockMemory, Span, Use},
    queue::Progress,
};

pub(crate) const NAME: &str = "mock";

/// Where addresses begin: no pointer of a process looks like this.
const FIRST_ADDRESS: u64 = 1 << 60;

/// Bytes between two memories, so that what runs out of one does not run into the next.
const GAP: u64 = 1 << 16;

pub(crate) struct Shared {
    pub(crate) inner: Arc<dyn Device>,
    memory: Mutex<Registry>,
    violations: Mutex<Vec<Violation>>,
    gate: Gate,
    queues: AtomicU64,
    /// Whether fences say that work may refuse what it reads.
    pub(crate) may_refuse: AtomicBool,
    orders: Mutex<Vec<Order>>,
}

/// What a run was put behind, or in front of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// It waits for this queue of another library.
    WaitsFor(u64),
    /// That queue waits for it.
    Releases(u64),
}

/// Addresses are never used twice, so a stale one is always told.
struct Registry {
    next: u64,
    blocks: BTreeMap<u64, Arc<Block>>,
    freed: BTreeMap<u64, usize>,
    in_use: usize,
    limit: Option<usize>,
    failing: Option<Failing>,
    /// Allocations that still go well.
    left: usize,
}

/// A part of the device's memory that work is about to use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) address: u64,
    pub(crate) len: usize,
    pub(crate) writes: bool,
}

impl Shared {
    pub(crate) fn new(inner: Arc<dyn Device>) -> Self {
        let memory = Registry {
            next: FIRST_ADDRESS,
            blocks: BTreeMap::new(),
            freed: BTreeMap::new(),
            in_use: 0,
            limit: None,
            failing: None,
            left: 0,
        };
        let (violations, gate, queues) = (Mutex::default(), Gate::default(), AtomicU64::new(1));
        let (may_refuse, orders) = (AtomicBool::new(true), Mutex::default());
        Shared { inner, memory: Mutex::new(memory), violations, gate, queues, may_refuse, orders }
    }

    pub(crate) fn next_queue(&self) -> u64 {
        self.queues.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(crate) fn violate(&self, violation: Violation) {
        lock(&self.violations).push(violation);
    }

    pub(crate) fn order(&self, order: Order) {
        lock(&self.orders).push(order);
    }

    pub(crate) fn take_orders(&self) -> Vec<Order> {
        std::mem::take(&mut *lock(&self.orders))
    }

    pub(crate) fn take_violations(&self) -> Vec<Violation> {
        std::mem::take(&mut *lock(&self.violations))
    }

    pub(crate) fn set_limit(&self, limit: Option<usize>) {
        lock(&self.memory).limit = limit;
    }

    pub(crate) fn set_failing(&self, failing: Option<Failing>, good: usize) {
        let mut memory = lock(&self.memory);
        (memory.failing, memory.left) = (failing, good);
    }

    pub(crate) fn in_use(&self) -> usize {
        lock(&self.memory).in_use
    }

    pub(crate) fn alloc(self: &Arc<Self>, bytes: usize, kind: MemoryKind) -> Result<MockMemory, OutOfMemory> {
        let mut memory = lock(&self.memory);
        let refused = |free| OutOfMemory { device: NAME.into(), bytes, kind, free };
        if memory.fails() {
            return Err(refused(None));
        }
        let len = bytes.max(1);
        if let Some(limit) = memory.limit.filter(|limit| memory.in_use + len > *limit) {
            return Err(refused(Some(limit.saturating_sub(memory.in_use))));
        }
        let block = Arc::new(Block::new(memory.next, len).map_err(|_| refused(None))?);
        memory.next += len as u64 + GAP;
        memory.in_use += len;
        memory.blocks.insert(block.start, block.clone());
        Ok(MockMemory::new(self.clone(), block))
    }

    pub(crate) fn free(&self, block: &Block) {
        let mut memory = lock(&self.memory);
        memory.blocks.remove(&block.start);
        memory.freed.insert(block.start, block.len);
        memory.in_use -= block.len;
        drop(memory);
        if let Some(queue) = block.in_flight() {
            self.violate(Violation::FreedInFlight { memory: block.start, bytes: block.len, queue });
        }
        block.poison();
    }

    /// Finds the memory of an access, and tells when other work that is in flight forbids it. `None` when there is no such
    /// memory.
    pub(crate) fn find(&self, access: Access, progress: &Arc<Progress>, ticket: u64) -> Option<Span> {
        let Access { address, len, writes } = access;
        if len == 0 {
            return Some(Span::empty());
        }
        let found = lock(&self.memory).find(address, len);
        let span = found.map_err(|missing| self.violate(missing)).ok()?;
        let new = Use { progress: progress.clone(), ticket, range: span.range(), writes };
        let before_fence = |block: &Block, other: &Use| Violation::BeforeFence {
            memory: block.start,
            range: span.range(),
            queue: progress.queue,
            writes,
            other: other.progress.queue,
            other_writes: other.writes,
        };
        if let Some(violation) = span.block().and_then(|block| block.begin(new, |other| before_fence(block, other))) {
            self.violate(violation);
        }
        Some(span)
    }
}

impl Registry {
    fn fails(&mut self) -> bool {
        let Some(failing) = self.failing else { return false };
        if self.left > 0 {
            self.left -= 1;
            return false;
        }
        if failing == Failing::Once {
            self.failing = None;
        }
        true
    }

    fn find(&self, address: u64, len: usize) -> Result<Span, Violation> {
        let span = || {
            let (start, block) = self.blocks.range(..=address).next_back()?;
            let from = usize::try_from(address - start).ok()?;
            let to = from.checked_add(len).filter(|to| *to <= block.len)?;
            Some(Span::new(block.clone(), from..to))
        };
        span().ok_or_else(|| self.missing(address, len))
    }

    fn missing(&self, address: u64, bytes: usize) -> Violation {
        let last = self.freed.range(..=address).next_back();
        match last.is_some_and(|(start, len)| address - start < *len as u64) {
            true => Violation::Freed { address, bytes },
            false => Violation::NotOfDevice { address, bytes },
        }
    }
}

/// What all queues wait at before each piece of work.
#[derive(Default)]
pub(crate) struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(crate) fn close(&self) {
        *lock(&self.closed) = true;
    }

    pub(crate) fn open(&self) {
        *lock(&self.closed) = false;
        self.opened.notify_all();
    }

    pub(crate) fn pass(&self) {
        let closed = self.opened.wait_while(lock(&self.closed), |closed| *closed);
        drop(closed.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Lists and numbers are whole after any panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
