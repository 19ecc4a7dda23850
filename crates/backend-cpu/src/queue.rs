//! The queue of the CPU: work has run when it was launched.

use std::{
    any::Any,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use regraft_backend::{Extent, Fence, Queue, Region, RegionMut, RunError};

use crate::Threads;

/// Work on no more bytes than this is done before another thread has woken up.
const SMALL_BYTES: usize = 64 << 10;

/// Bytes that one task copies.
const COPY_CHUNK: usize = 1 << 20;

/// With more launches, those that are split over threads all the same would each pay for a hand-over.
const SMALL_STEPS: usize = 4;

/// Runs work at once, on the threads of runs.
#[derive(Debug)]
pub(crate) struct CpuQueue {
    threads: Threads,
    /// Whether there is an error; spares the lock.
    failed: AtomicBool,
    error: Mutex<Option<RunError>>,
}

impl CpuQueue {
    pub(crate) fn new(threads: Threads) -> Self {
        CpuQueue { threads, failed: AtomicBool::new(false), error: Mutex::default() }
    }

    /// Whether work failed, and what is behind it is not done.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    fn take_error(&self) -> Option<RunError> {
        if !self.failed.swap(false, Ordering::AcqRel) {
            return None;
        }
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Queue for CpuQueue {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn submit(&self, extent: Extent, work: &mut (dyn FnMut() + Send)) {
        if extent.steps <= SMALL_STEPS && extent.bytes <= SMALL_BYTES {
            return work();
        }
        // So that the kernels do not pay for entering the pool one by one.
        self.threads.install(work);
    }

    fn write(&self, from: &[u8], mut to: RegionMut<'_>) {
        if self.has_failed() {
            return;
        }
        let to = to.host_bytes();
        assert_eq!(from.len(), to.len(), "a copy has the size of what it copies");
        if from.len() <= COPY_CHUNK {
            return to.copy_from_slice(from);
        }
        self.threads.for_each_chunk(to, COPY_CHUNK, |i, chunk| {
            let start = i * COPY_CHUNK;
            chunk.copy_from_slice(&from[start..start + chunk.len()]);
        });
    }

    fn copy(&self, from: Region<'_>, to: RegionMut<'_>) {
        self.write(from.host_bytes(), to);
    }

    fn read(&self, from: Region<'_>, to: &mut [u8]) -> Result<(), RunError> {
        if let Some(error) = self.take_error() {
            return Err(error);
        }
        to.copy_from_slice(from.host_bytes());
        Ok(())
    }

    fn report(&self, error: RunError) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    fn fence(&self) -> Fence {
        self.take_error().map_or_else(Fence::done, Fence::failed)
    }
}
