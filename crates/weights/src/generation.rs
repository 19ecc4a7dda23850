use std::sync::{Arc, Mutex, Weak};

use regraft_tensor::{AlignedVec, Tensor};

/// One slot's bytes in their pack format. When the last generation that holds it lets go, its memory goes back to the
/// pool it came from.
#[derive(Debug)]
pub struct Slot {
    data: AlignedVec,
    pool: Weak<SlotPool>,
}

impl Slot {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.data.bytes()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.give_back(std::mem::take(&mut self.data));
        }
    }
}

/// Memory of retired slots, kept for the next refit: fresh pages cost more than packing into them.
#[derive(Debug, Default)]
pub struct SlotPool {
    free: Mutex<Vec<AlignedVec>>,
}

impl SlotPool {
    /// A buffer of `len` bytes; contents are unspecified.
    pub fn take(&self, len: usize) -> AlignedVec {
        let mut free = self.lock();
        // Slots of one engine come back in the sizes they are asked for again.
        let fit = free.iter().position(|v| v.capacity() == len.div_ceil(64) * 64);
        let reused = fit.map(|at| free.swap_remove(at));
        drop(free);
        match reused {
            Some(mut data) => {
                data.resize(len);
                data
            }
            None => AlignedVec::zeroed(len),
        }
    }

    /// A slot of `data` that comes back to this pool.
    pub fn slot(self: &Arc<Self>, data: AlignedVec) -> Arc<Slot> {
        Arc::new(Slot { data, pool: Arc::downgrade(self) })
    }

    /// Bytes of memory that wait for reuse.
    pub fn free_bytes(&self) -> usize {
        self.lock().iter().map(AlignedVec::capacity).sum()
    }

    /// Takes back memory that was not made a slot after all, or that a slot gave up.
    pub fn give_back(&self, data: AlignedVec) {
        self.lock().push(data);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<AlignedVec>> {
        // A list of buffers is whole after any panic.
        self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// An immutable set of slots with the sources they were made of. Cloning shares everything.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Number of this generation: counts up with each refit of a model.
    pub id: u64,
    /// One buffer per slot.
    pub slots: Vec<Arc<Slot>>,
    /// The source tensors, where they are at hand: `None` in engines that keep no sources.
    pub sources: Vec<Option<Tensor>>,
}
