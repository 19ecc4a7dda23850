use std::sync::OnceLock;

use rayon::{ThreadPool, ThreadPoolBuilder};
use regraft_tensor::PerProcess;

/// Runs `work`, whose parallel parts run on the threads that all reading and checking of files shares: one for each core, and
/// others in a forked child, where the parent's are not. Where the system gives no threads, the calling one does everything.
pub fn on_shared_threads<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    static THREADS: OnceLock<PerProcess<Option<ThreadPool>>> = OnceLock::new();
    // On a thread of some pool already, which is then what its parts run on.
    if rayon::current_thread_index().is_some() {
        return work();
    }
    let named = || ThreadPoolBuilder::new().thread_name(|i| format!("regraft-files-{i}"));
    match THREADS.get_or_init(PerProcess::new).get_or_init(|| named().build().ok()) {
        Some(threads) => threads.install(work),
        None => {
            use_calling_thread();
            work()
        }
    }
}

/// Makes the calling thread a pool of its own. Otherwise parallel parts would ask for the threads that all users of rayon share,
/// which panics where the system gives none.
fn use_calling_thread() {
    let alone = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
    // The thread stays what it is now. It starts no other, so nothing can be refused.
    if let Ok(pool) = alone {
        std::mem::forget(pool);
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    #[test]
    fn a_thread_can_do_everything_alone() {
        let alone = || {
            use_calling_thread();
            let own = std::thread::current().id();
            let sum: usize =
                (0..1000).into_par_iter().map(|i| if std::thread::current().id() == own { i } else { 0 }).sum();
            (sum, on_shared_threads(|| (0..1000).into_par_iter().sum::<usize>()))
        };
        assert_eq!(std::thread::spawn(alone).join().expect("no panic"), (499_500, 499_500));
    }
}
