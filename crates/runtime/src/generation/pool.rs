use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use regraft_tensor::{AlignedVec, Buffer};

/// One slot's bytes in their pack format. When the last generation that holds it lets go, its memory goes back to the
/// pool it came from.
#[derive(Debug)]
pub struct Slot(Memory);

#[derive(Debug)]
enum Memory {
    Pooled {
        data: AlignedVec,
        len: usize,
        pool: Arc<SlotPool>,
    },
    /// Of an engine file: shared with the page cache, and no pool's.
    Mapped(Buffer),
}

impl Slot {
    /// A slot that lies in an engine file, whose memory no pool counts.
    pub fn mapped(buffer: Buffer) -> Slot {
        Slot(Memory::Mapped(buffer))
    }

    fn pooled(data: AlignedVec, len: usize, pool: &Arc<SlotPool>) -> Slot {
        Slot(Memory::Pooled { data, len, pool: pool.clone() })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Memory::Pooled { data, .. } => data.bytes(),
            Memory::Mapped(buffer) => buffer.bytes(),
        }
    }

    /// The bytes of a slot that no generation holds yet; contents are unspecified. Memory that the pool had none of is
    /// allocated by the first call, on the thread that fills it.
    ///
    /// # Panics
    /// When the slot lies in a file: such are made full, and never written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::Pooled { data, len, .. } => {
                data.resize_to_stay(*len);
                data.bytes_mut()
            }
            Memory::Mapped(_) => panic!("a slot of a file is not written"),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Memory::Pooled { data, len, pool } = &mut self.0 {
            pool.give_back(std::mem::take(data), *len);
        }
    }
}

/// Memory of slots: hands it out within a limit, and keeps that of retired slots for the next refit, because fresh pages
/// cost more than packing into them.
#[derive(Debug, Default)]
pub struct SlotPool {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<AlignedVec>,
    free_bytes: usize,
    in_use: usize,
    limit: Option<usize>,
}

/// What a pool holds, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolMemory {
    /// Memory of slots, of all generations and of those being staged.
    pub in_use: usize,
    /// Memory of retired slots that waits for reuse.
    pub free: usize,
    /// The most that both together may be.
    pub limit: Option<usize>,
}

/// Slots do not fit into the memory limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed} bytes of slots are needed beside {in_use} in use, and the limit is {limit}")]
pub struct OverLimit {
    /// Bytes of the slots asked for.
    pub needed: usize,
    /// Bytes of slots in use.
    pub in_use: usize,
    /// The limit.
    pub limit: usize,
}

impl SlotPool {
    /// Slots of these lengths in bytes: all of them, or none when they do not fit into the limit.
    ///
    /// # Errors
    /// [`OverLimit`]; memory that waits for reuse is freed first where that helps.
    pub fn reserve(self: &Arc<Self>, lens: &[usize]) -> Result<Vec<Slot>, OverLimit> {
        let needed: usize = lens.iter().map(|len| footprint(*len)).sum();
        let mut state = self.lock();
        let found: Vec<Option<AlignedVec>> = lens.iter().map(|len| state.take(*len)).collect();
        let reused: usize = found.iter().flatten().map(AlignedVec::capacity).sum();
        if let Some(limit) = state.limit {
            if state.in_use + needed > limit {
                let in_use = state.in_use;
                found.into_iter().flatten().for_each(|data| state.put(data));
                return Err(OverLimit { needed, in_use, limit });
            }
            // What is left over fits none of these slots.
            if state.in_use + needed + state.free_bytes > limit {
                state.clear();
            }
        }
        state.in_use += needed;
        debug_assert!(reused <= needed);
        drop(state);
        let slot = |(data, len): (Option<AlignedVec>, &usize)| Slot::pooled(data.unwrap_or_default(), *len, self);
        Ok(found.into_iter().zip(lens).map(slot).collect())
    }

    /// Sets the most bytes that slots, in use and waiting for reuse, may take from now on. What is in use already stays.
    pub fn set_limit(&self, limit: Option<usize>) {
        let mut state = self.lock();
        state.limit = limit;
        if limit.is_some_and(|limit| state.in_use + state.free_bytes > limit) {
            state.clear();
        }
    }

    /// Gives memory that waits for reuse back to the system.
    pub fn trim(&self) {
        self.lock().clear();
    }

    /// What the pool holds.
    pub fn memory(&self) -> PoolMemory {
        let state = self.lock();
        PoolMemory { in_use: state.in_use, free: state.free_bytes, limit: state.limit }
    }

    fn give_back(&self, data: AlignedVec, len: usize) {
        let mut state = self.lock();
        state.in_use -= footprint(len);
        if state.limit.is_none_or(|limit| state.in_use + state.free_bytes + data.capacity() <= limit) {
            state.put(data);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Lists and sums are whole after any panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Memory of exactly this size: slots of one engine come back in the sizes they are asked for again.
    fn take(&mut self, len: usize) -> Option<AlignedVec> {
        let at = self.free.iter().position(|data| data.capacity() == footprint(len))?;
        let data = self.free.swap_remove(at);
        self.free_bytes -= data.capacity();
        Some(data)
    }

    fn put(&mut self, data: AlignedVec) {
        if data.capacity() > 0 {
            self.free_bytes += data.capacity();
            self.free.push(data);
        }
    }

    fn clear(&mut self) {
        self.free.clear();
        self.free_bytes = 0;
    }
}

/// Bytes that a slot takes: whole cache lines.
fn footprint(len: usize) -> usize {
    len.next_multiple_of(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(pool: &Arc<SlotPool>, lens: &[usize]) -> Vec<Slot> {
        let mut slots = pool.reserve(lens).expect("it fits");
        slots.iter_mut().for_each(|slot| slot.bytes_mut().fill(1));
        slots
    }

    #[test]
    fn memory_comes_back_and_is_used_again() {
        let pool = Arc::new(SlotPool::default());
        let slots = filled(&pool, &[100, 200]);
        let at = slots[1].bytes().as_ptr();
        assert_eq!(pool.memory(), PoolMemory { in_use: 128 + 256, free: 0, limit: None });
        drop(slots);
        assert_eq!(pool.memory(), PoolMemory { in_use: 0, free: 128 + 256, limit: None });
        assert_eq!(filled(&pool, &[199])[0].bytes().as_ptr(), at);
    }

    #[test]
    fn a_limit_refuses_all_or_nothing() {
        let pool = Arc::new(SlotPool::default());
        pool.set_limit(Some(512));
        let held = filled(&pool, &[256]);
        let refused = pool.reserve(&[128, 256]).expect_err("too much");
        assert_eq!(refused, OverLimit { needed: 384, in_use: 256, limit: 512 });
        assert_eq!(pool.memory().in_use, 256);
        drop(held);
        // What waits for reuse makes room for other sizes.
        assert_eq!(filled(&pool, &[512]).len(), 1);
        assert!(pool.memory().free <= 512);
    }

    #[test]
    fn a_slot_that_was_never_filled_gives_back_its_share() {
        let pool = Arc::new(SlotPool::default());
        drop(pool.reserve(&[64, 64]).expect("no limit"));
        assert_eq!(pool.memory(), PoolMemory { in_use: 0, free: 0, limit: None });
    }
}
