//! Work without the interpreter's lock, and the end of the interpreter.
//!
//! A thread that comes back for the lock of an interpreter that is ending is ended by it in the middle of its stack, which
//! aborts the process where the stack has frames of Rust or C++. Python waits for no daemon threads, so they are held here:
//! when the interpreter is about to end, calls under way are waited for, and threads that come to this module then, or come
//! back from it later, stay until the process is gone.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use pyo3::prelude::*;

/// How long calls under way are waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time for threads between two calls to come to the next one.
const GRACE: Duration = Duration::from_millis(20);

/// Calls under way.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
/// The thread that ends the interpreter, once it does.
static ENDING: OnceLock<ThreadId> = OnceLock::new();
/// Whether no call is waited for any more.
static OVER: AtomicBool = AtomicBool::new(false);

/// Does `work` without the interpreter's lock.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    let _call = Call::begin();
    py.detach(|| {
        if is_of_another_thread() {
            stay();
        }
        let result = work();
        if OVER.load(Ordering::SeqCst) && is_of_another_thread() {
            stay();
        }
        result
    })
}

/// Called as the interpreter is about to end.
#[pyfunction]
pub(crate) fn before_exit(py: Python<'_>) {
    // Once: who calls it later is of an interpreter that is ending already.
    if ENDING.set(thread::current().id()).is_err() {
        return;
    }
    py.detach(|| {
        let until = Instant::now() + PATIENCE;
        thread::sleep(if UNDER_WAY.load(Ordering::SeqCst) > 0 { GRACE } else { Duration::ZERO });
        while UNDER_WAY.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        OVER.store(true, Ordering::SeqCst);
    });
}

/// Whether the interpreter is ending, and not by this thread.
fn is_of_another_thread() -> bool {
    ENDING.get().is_some_and(|ending| *ending != thread::current().id())
}

/// Stays until the process is gone.
fn stay() -> ! {
    UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
    loop {
        thread::park();
    }
}

struct Call;

impl Call {
    fn begin() -> Call {
        UNDER_WAY.fetch_add(1, Ordering::SeqCst);
        Call
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
    }
}
