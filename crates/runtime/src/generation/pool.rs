//! Memory of slots.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use regraft_backend::{Device, Memory, MemoryKind, OutOfMemory, QueueClass, Region, RegionMut};
use regraft_tensor::{AlignedVec, Buffer};

use crate::{RuntimeError, RuntimeErrorKind};

/// One slot in its format. When the last generation that holds it is dropped, its memory returns to its pool.
///
/// ```
/// # fn f(model: &regraft_runtime::Model) {
/// if let Some(generation) = model.generation() {
///     for (index, slot) in generation.slots.iter().enumerate() {
///         println!("{}: {} bytes", model.plan().slot_name(index), slot.len());
///     }
/// }
/// # }
/// ```
pub struct Slot {
    /// `None` once it was given back.
    memory: Option<Box<dyn Memory>>,
    len: usize,
    /// Its number in the program; `None` where the pool does not count its memory, because it lies in an engine file.
    number: Option<usize>,
    pool: Arc<SlotPool>,
}

impl Slot {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory.
    pub fn region(&self) -> Region<'_> {
        Region::of(&**self.memory.as_ref().expect("kept until the slot is dropped")).part(0..self.len)
    }

    /// The memory of a slot that no generation holds yet; contents are unspecified.
    pub(crate) fn region_mut(&mut self) -> RegionMut<'_> {
        RegionMut::of(&mut **self.memory.as_mut().expect("kept until the slot is dropped")).part(0..self.len)
    }

    /// A copy of the bytes, from wherever they are.
    ///
    /// # Errors
    /// When there is not enough memory, or the device failed.
    pub fn read(&self) -> Result<AlignedVec, RuntimeError> {
        let mut bytes =
            AlignedVec::try_zeroed(self.len).map_err(|_| RuntimeErrorKind::no_host_memory(self.len, "a slot"))?;
        let queue = self.pool.device.queue(QueueClass::Stage)?;
        queue.read(self.region(), bytes.bytes_mut()).map_err(|error| RuntimeErrorKind::Run(error.kind))?;
        Ok(bytes)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let (Some(memory), Some(number)) = (self.memory.take(), self.number) {
            self.pool.give_back(memory, number);
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({} bytes)", self.len)
    }
}

/// Memory of slots: hands it out within a limit, and keeps that of retired slots for the next refit, because fresh memory
/// costs more than packing into it. A slot is given memory that held the same slot before, if there is some: where refits
/// follow one another, two generations alternate between the same two places, and launches that a device recorded for
/// either are used again.
pub(crate) struct SlotPool {
    device: Arc<dyn Device>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By footprint, then by the slot that it held last. Lists that are empty stay for the next refit.
    free: BTreeMap<(usize, usize), Vec<Box<dyn Memory>>>,
    free_bytes: usize,
    in_use: usize,
    limit: Option<usize>,
}

/// What a pool holds, in bytes.
///
/// ```
/// # fn f(model: &regraft_runtime::Model) {
/// println!("{}", model.slot_memory()); // 46.7 MB of slots in use, 12.5 MB free
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolMemory {
    /// Memory of slots, of all generations and of those being staged.
    pub in_use: usize,
    /// Memory of retired slots that waits for reuse.
    pub free: usize,
    /// The most that both together may be.
    pub limit: Option<usize>,
}

impl fmt::Display for PoolMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: usize| bytes as f64 / 1e6;
        write!(f, "{:.1} MB of slots in use, {:.1} MB free", megabytes(self.in_use), megabytes(self.free))?;
        self.limit.map_or(Ok(()), |limit| write!(f, ", at most {:.1} MB", megabytes(limit)))
    }
}

/// Memory for slots that could not be reserved. Nothing was computed.
///
/// ```
/// # use regraft_runtime::{Model, RefitOptions, ReserveError, RuntimeErrorKind};
/// # use regraft_weights::StateDict;
/// # fn f(model: &Model, weights: &StateDict) {
/// model.set_memory_limit(Some(100_000_000));
/// if let Err(error) = model.stage(weights, &RefitOptions::new())
///     && let RuntimeErrorKind::Memory(ReserveError::OverLimit { needed, limit, .. }) = error.kind()
/// {
///     println!("{needed} bytes do not fit into {limit}");
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReserveError {
    /// Slots do not fit into the memory limit.
    #[error("{needed} bytes of slots are needed beside {in_use} in use, and the limit is {limit}")]
    OverLimit {
        /// Bytes of the slots asked for.
        needed: usize,
        /// Bytes of slots in use.
        in_use: usize,
        /// The limit.
        limit: usize,
    },
    /// The device does not have the memory.
    #[error("{needed} bytes of slots are needed beside {in_use} in use: {error}")]
    OutOfMemory {
        /// Bytes of the slots asked for.
        needed: usize,
        /// Bytes of slots in use.
        in_use: usize,
        /// What the device says.
        error: OutOfMemory,
    },
}

impl SlotPool {
    pub(crate) fn new(device: Arc<dyn Device>) -> Self {
        SlotPool { device, state: Mutex::default() }
    }

    /// Slots of these numbers and lengths in bytes: all of them, or none.
    ///
    /// # Errors
    /// [`ReserveError`]; memory that waits for reuse is freed first where that helps.
    pub(crate) fn reserve(self: &Arc<Self>, wanted: &[(usize, usize)]) -> Result<Vec<Slot>, ReserveError> {
        let needed: usize = wanted.iter().map(|(_, len)| footprint(*len)).sum();
        let mut state = self.lock();
        let mut found: Vec<Option<Box<dyn Memory>>> =
            wanted.iter().map(|&(number, len)| state.take(number, len)).collect();
        // Otherwise memory that held another slot, which is free here.
        for (memory, (_, len)) in found.iter_mut().zip(wanted) {
            if memory.is_none() {
                *memory = state.take_any(*len);
            }
        }
        let in_use = state.in_use;
        let back = |state: &mut State, found: Vec<Option<Box<dyn Memory>>>| {
            let both = found.into_iter().zip(wanted);
            both.for_each(|(memory, (number, _))| memory.into_iter().for_each(|memory| state.put(memory, *number)));
        };
        if let Some(limit) = state.limit {
            if in_use + needed > limit {
                back(&mut state, found);
                return Err(ReserveError::OverLimit { needed, in_use, limit });
            }
            // What is left over fits none of these slots.
            if in_use + needed + state.free_bytes > limit {
                state.clear();
            }
        }
        for (memory, (_, len)) in found.iter_mut().zip(wanted) {
            if memory.is_none() {
                match self.alloc(&mut state, footprint(*len)) {
                    Ok(fresh) => *memory = Some(fresh),
                    Err(error) => {
                        back(&mut state, found);
                        return Err(ReserveError::OutOfMemory { needed, in_use, error });
                    }
                }
            }
        }
        state.in_use += needed;
        drop(state);
        let slot = |(memory, &(number, len)): (Option<Box<dyn Memory>>, &(usize, usize))| Slot {
            memory,
            len,
            number: Some(number),
            pool: self.clone(),
        };
        Ok(found.into_iter().zip(wanted).map(slot).collect())
    }

    /// Memory of the device, and once more without what waits for reuse.
    fn alloc(&self, state: &mut State, bytes: usize) -> Result<Box<dyn Memory>, OutOfMemory> {
        self.device.alloc(bytes, MemoryKind::Slot).or_else(|error| {
            if state.free_bytes == 0 {
                return Err(error);
            }
            state.clear();
            self.device.alloc(bytes, MemoryKind::Slot)
        })
    }

    /// A slot that lies in an engine file, where the device can read it there; its memory is not counted.
    pub(crate) fn adopt(self: &Arc<Self>, contents: &Buffer) -> Result<Slot, RuntimeError> {
        let memory = self.device.adopt(contents)?;
        Ok(Slot { memory: Some(memory), len: contents.len(), number: None, pool: self.clone() })
    }

    /// Sets the most bytes that slots, in use and waiting for reuse, may take from now on. What is in use already stays.
    pub(crate) fn set_limit(&self, limit: Option<usize>) {
        let mut state = self.lock();
        state.limit = limit;
        if limit.is_some_and(|limit| state.in_use + state.free_bytes > limit) {
            state.clear();
        }
    }

    /// Gives memory that waits for reuse back to the device.
    pub(crate) fn trim(&self) {
        self.lock().clear();
    }

    /// What the pool holds.
    pub(crate) fn memory(&self) -> PoolMemory {
        let state = self.lock();
        PoolMemory { in_use: state.in_use, free: state.free_bytes, limit: state.limit }
    }

    fn give_back(&self, memory: Box<dyn Memory>, number: usize) {
        let mut state = self.lock();
        state.in_use -= memory.len();
        if state.limit.is_none_or(|limit| state.in_use + state.free_bytes + memory.len() <= limit) {
            state.put(memory, number);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Lists and sums are whole after any panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Memory of this size that held this slot.
    fn take(&mut self, number: usize, len: usize) -> Option<Box<dyn Memory>> {
        self.take_at((footprint(len), number))
    }

    /// Memory of exactly this size: slots of one engine come back in the sizes they are asked for again.
    fn take_any(&mut self, len: usize) -> Option<Box<dyn Memory>> {
        let of_size = (footprint(len), 0)..=(footprint(len), usize::MAX);
        let (&at, _) = self.free.range(of_size).find(|(_, waiting)| !waiting.is_empty())?;
        self.take_at(at)
    }

    fn take_at(&mut self, at: (usize, usize)) -> Option<Box<dyn Memory>> {
        let memory = self.free.get_mut(&at)?.pop()?;
        self.free_bytes -= memory.len();
        Some(memory)
    }

    fn put(&mut self, memory: Box<dyn Memory>, number: usize) {
        self.free_bytes += memory.len();
        self.free.entry((memory.len(), number)).or_default().push(memory);
    }

    fn clear(&mut self) {
        self.free.clear();
        self.free_bytes = 0;
    }
}

/// Bytes that a slot takes: whole cache lines, at least one.
fn footprint(len: usize) -> usize {
    len.max(1).next_multiple_of(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Arc<SlotPool> {
        Arc::new(SlotPool::new(Arc::new(regraft_backend_cpu::CpuDevice::new(Some(1)))))
    }

    fn reserved(pool: &Arc<SlotPool>, lens: &[usize]) -> Vec<Slot> {
        let wanted: Vec<(usize, usize)> = lens.iter().copied().enumerate().collect();
        pool.reserve(&wanted).expect("it fits")
    }

    #[test]
    fn memory_comes_back_and_is_used_again() {
        let pool = pool();
        let slots = reserved(&pool, &[100, 200]);
        let at = slots[1].region().address();
        assert_eq!(pool.memory(), PoolMemory { in_use: 128 + 256, free: 0, limit: None });
        drop(slots);
        assert_eq!(pool.memory(), PoolMemory { in_use: 0, free: 128 + 256, limit: None });
        assert_eq!(reserved(&pool, &[199])[0].region().address(), at);
    }

    #[test]
    fn generations_take_turns_in_the_same_places() {
        let (pool, lens) = (pool(), [64, 64, 64, 128, 64]);
        let addresses = |slots: &[Slot]| slots.iter().map(|slot| slot.region().address()).collect::<Vec<_>>();
        let (mut serving, mut seen) = (reserved(&pool, &lens), Vec::new());
        for turn in 0..6 {
            let mut next = reserved(&pool, &lens);
            seen.push(addresses(&serving));
            std::mem::swap(&mut serving, &mut next);
            // They are dropped in any order.
            next.rotate_left(turn % lens.len());
        }
        assert_eq!((&seen[2], &seen[3]), (&seen[0], &seen[1]));
        assert_eq!((&seen[4], &seen[5]), (&seen[0], &seen[1]));
        // One slot alone leaves the places of the others to them.
        let third = pool.reserve(&[(2, 64)]).expect("it fits");
        assert_eq!(third[0].region().address(), seen[5][2]);
    }

    #[test]
    fn a_limit_refuses_all_or_nothing() {
        let pool = pool();
        pool.set_limit(Some(512));
        let held = reserved(&pool, &[256]);
        let refused = pool.reserve(&[(0, 128), (1, 256)]).expect_err("too much");
        assert_eq!(refused, ReserveError::OverLimit { needed: 384, in_use: 256, limit: 512 });
        assert_eq!(pool.memory().in_use, 256);
        drop(held);
        // What waits for reuse makes room for other sizes.
        assert_eq!(reserved(&pool, &[512]).len(), 1);
        assert!(pool.memory().free <= 512);
    }
}
