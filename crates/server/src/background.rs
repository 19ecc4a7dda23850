//! Work on weights beside runs: on separate threads of low priority, so that runs are hardly slowed down.

use std::{
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::Instant,
};

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::oneshot;

use crate::{
    ServeError,
    error::{Kind, Refusal},
    served::Served,
};

/// Threads for one piece of work at a time: one, and one more for each 4 cores beyond. What the work does in parallel stays on them.
pub(crate) struct Background(ThreadPool);

impl Background {
    pub(crate) fn start(name: &str) -> Result<Background, ServeError> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let named = name.to_owned();
        let threads = ThreadPoolBuilder::new()
            .num_threads((cores / 4).max(1))
            .thread_name(move |number| format!("{named}-{number}"))
            .start_handler(|_| lower_priority());
        let failed = |error| ServeError::System { what: "threads cannot be started", error };
        threads.build().map(Background).map_err(|error| failed(std::io::Error::other(error)))
    }

    /// Does work that takes its time.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (tell, told) = oneshot::channel();
        // Who asked may have gone.
        self.0.spawn(move || _ = tell.send(or_bug(work)));
        told.await.map_err(|_| Refusal::new(Kind::Unavailable, "the server is being stopped"))?
    }
}

/// A panic is a bug; the server goes on, and says so to the one who asked.
fn or_bug<T>(work: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    // Generations are immutable: what work leaves behind is its own, or whole.
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Refusal::new(Kind::Internal, "the work panicked: this is a bug in regraft")))
}

/// Lets other threads go first. It is not an error where the system does not allow it.
fn lower_priority() {
    // Elsewhere it would be the whole process.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(10);
}

/// Makes the variants that jobs of `served` wait for, or will, until none will. Jobs that can run do not wait for this.
pub(crate) fn make_variants(served: &Served, background: &Background) {
    while let Some((adapter, is_used)) = served.queue.next_aside() {
        let since = Instant::now();
        let Served { model, generations, variants, .. } = served;
        let made = or_bug(|| background.0.install(|| variants.get(model, generations, &adapter, is_used)));
        // Those who came meanwhile can have it, too, where no other weights were published by then.
        let now = Instant::now();
        let is_current = made.as_ref().is_ok_and(|variant| variant.is_current(model));
        served.queue.made(&adapter, if is_current { now } else { since }, made);
    }
}

#[cfg(test)]
#[path = "background_tests.rs"]
mod tests;
