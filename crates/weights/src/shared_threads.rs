use std::sync::OnceLock;

use rayon::{ThreadPool, ThreadPoolBuilder};
use regraft_tensor::PerProcess;

/// Runs `work`, whose parallel parts run on the threads that all reading and checking of files shares: one for each core, and
/// others in a forked child, where the parent's are not.
pub fn on_shared_threads<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    static THREADS: OnceLock<PerProcess<Option<ThreadPool>>> = OnceLock::new();
    // On a thread of some pool already, which is then what its parts run on.
    if rayon::current_thread_index().is_some() {
        return work();
    }
    let named = || ThreadPoolBuilder::new().thread_name(|i| format!("regraft-files-{i}"));
    match THREADS.get_or_init(PerProcess::new).get_or_init(|| named().build().ok()) {
        Some(threads) => threads.install(work),
        None => work(),
    }
}
