//! Memory that is used again once nobody holds it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{AlignedVec, TensorError};

/// Lends memory, and reuses it when it is dropped on any thread: getting new pages takes longer than writing a simple
/// operator's result to them.
#[derive(Debug)]
pub struct Shelf {
    free: Mutex<Free>,
    most_bytes: usize,
}

/// Memory that nobody holds.
#[derive(Debug, Default)]
struct Free {
    /// The oldest first.
    memory: Vec<AlignedVec>,
    /// How many pieces are kept.
    most: usize,
}

impl Shelf {
    /// A shelf that never has more than so many bytes.
    pub fn new(most_bytes: usize) -> Arc<Shelf> {
        Arc::new(Shelf { free: Mutex::default(), most_bytes })
    }

    /// Says how many pieces of memory are worth keeping.
    pub fn keep(&self, most: usize) {
        self.free().most = most;
    }

    /// `len` bytes, whose contents are unspecified, when the system gives them.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`](crate::ErrorKind::OutOfMemory).
    pub fn lend(self: &Arc<Self>, len: usize) -> Result<AlignedVec, TensorError> {
        let again = {
            let mut free = self.free();
            // What was used last may still be in a cache.
            let at = free.memory.iter().rposition(|memory| memory.len() == len);
            at.map(|at| free.memory.remove(at))
        };
        let memory = again.map_or_else(|| AlignedVec::try_zeroed(len), Ok)?;
        Ok(memory.of_shelf(self))
    }

    /// Takes back memory, and gives up the oldest where there is too much.
    pub(crate) fn put_back(&self, memory: AlignedVec) {
        if memory.capacity() == 0 {
            return;
        }
        let mut free = self.free();
        free.memory.push(memory);
        let bytes = |free: &Free| free.memory.iter().map(AlignedVec::capacity).sum::<usize>();
        while free.memory.len() > free.most || bytes(&free) > self.most_bytes {
            free.memory.remove(0);
        }
    }

    /// A list is whole after any panic.
    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_lent_again_once_it_is_dropped() {
        let shelf = Shelf::new(1 << 20);
        shelf.keep(2);
        let mut one = shelf.lend(100).unwrap();
        one.bytes_mut().fill(7);
        let at = one.bytes().as_ptr();
        assert_ne!(shelf.lend(100).unwrap().bytes().as_ptr(), at, "it is still held");
        drop(one);
        let (other, again) = (shelf.lend(99).unwrap(), shelf.lend(100).unwrap());
        assert_eq!(again.bytes().as_ptr(), at);
        assert_ne!(other.bytes().as_ptr(), at);
        // A copy is nobody's.
        drop(again.clone());
        assert_ne!(shelf.lend(100).unwrap().bytes().as_ptr(), at);
    }

    #[test]
    fn no_more_than_is_worth_keeping_lies_here() {
        let (shelf, lengths) = (Shelf::new(1000), |shelf: &Shelf| -> Vec<usize> {
            shelf.free().memory.iter().map(AlignedVec::len).collect()
        });
        shelf.keep(2);
        drop([64, 128, 192].map(|len| shelf.lend(len).unwrap()));
        assert_eq!(lengths(&shelf), [128, 192]);
        drop(shelf.lend(900).unwrap());
        assert_eq!(lengths(&shelf), [900]);
        drop(shelf.lend(2000).unwrap());
        assert!(lengths(&shelf).is_empty());
    }

    #[test]
    fn memory_outlives_its_shelf() {
        let shelf = Shelf::new(1 << 20);
        let memory = shelf.lend(10).unwrap();
        drop(shelf);
        assert_eq!(memory.bytes(), [0; 10]);
    }
}
