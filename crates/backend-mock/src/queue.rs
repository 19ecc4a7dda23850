//! Queues that run later: each on a thread that ends with it.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use regraft_backend::{
    BackendError, Extent, Fence, ForeignQueue, PendingFence, Queue, QueueClass, Region, RegionMut, RunError,
    RunErrorKind,
};

use crate::{
    Violation,
    memory::Span,
    shared::{Access, NAME, Order, Shared, lock},
};

/// How far the host has seen a queue get. Work has a ticket, which counts from one.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) queue: u64,
    seen: AtomicU64,
}

impl Progress {
    pub(crate) fn has_seen(&self, ticket: u64) -> bool {
        self.seen.load(Ordering::Acquire) >= ticket
    }

    fn see(&self, ticket: u64) {
        self.seen.fetch_max(ticket, Ordering::AcqRel);
    }
}

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

pub(crate) struct MockQueue {
    shared: Arc<Shared>,
    progress: Arc<Progress>,
    line: Mutex<Line>,
}

/// The end of a queue where work is put.
struct Line {
    /// The ticket of the last work.
    last: u64,
    jobs: mpsc::Sender<Job>,
}

/// The thread's side of a queue.
pub(crate) struct Worker {
    /// A queue of the host device, for its kernels.
    pub(crate) host: Arc<dyn Queue>,
    error: Option<RunError>,
}

impl Worker {
    /// Says that work failed; the first error stays.
    fn fail(&mut self, error: RunError) {
        self.error.get_or_insert(error);
    }
}

impl MockQueue {
    pub(crate) fn new(shared: Arc<Shared>, class: QueueClass) -> Result<Self, BackendError> {
        let queue = shared.next_queue();
        let mut worker = Worker { host: shared.inner.queue(class)?, error: None };
        let (jobs, received) = mpsc::channel::<Job>();
        let gate = shared.clone();
        let work = move || {
            for job in received {
                gate.gate().pass();
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(&mut worker))) {
                    let what = said(&*panic);
                    worker.fail(failed(None, format!("work panicked: {what}")));
                    gate.violate(Violation::Panicked { queue, what });
                }
            }
        };
        // Not waited for: a queue that is dropped finishes its work.
        let started = thread::Builder::new().name(format!("mock-queue-{queue}")).spawn(work);
        let refused = |e| BackendError::Device { device: NAME.into(), why: format!("no thread for a queue: {e}") };
        drop(started.map_err(refused)?);
        let progress = Arc::new(Progress { queue, seen: AtomicU64::new(0) });
        Ok(MockQueue { shared, progress, line: Mutex::new(Line { last: 0, jobs }) })
    }

    /// Puts a job on the queue, which gets the memory that it uses: `None` where there is no such memory. Returns its ticket.
    fn put(&self, accesses: &[Access], job: impl FnOnce(&mut Worker, Option<Vec<Span>>) + Send + 'static) -> u64 {
        let mut line = lock(&self.line);
        line.last += 1;
        let ticket = line.last;
        // All of them, so that all violations are reported.
        let found: Vec<_> = accesses.iter().map(|access| self.shared.find(*access, &self.progress, ticket)).collect();
        let spans: Option<Vec<Span>> = found.into_iter().collect();
        // The thread is there as long as this end of the line is.
        let _ = line.jobs.send(Box::new(move |worker| job(worker, spans)));
        ticket
    }

    /// Puts work on the queue that is left out when work before it failed.
    pub(crate) fn work(
        &self,
        accesses: &[Access],
        node: Option<usize>,
        work: impl FnOnce(&mut Worker, Vec<Span>) -> Result<(), RunError> + Send + 'static,
    ) {
        self.put(accesses, move |worker, spans| {
            if worker.error.is_some() {
                return;
            }
            let done = spans.ok_or_else(|| no_memory(node)).and_then(|spans| work(worker, spans));
            if let Err(error) = done {
                worker.fail(error);
            }
        });
    }

    /// Does work on the queue's thread, behind all that is on the queue, and waits for it: what it sends goes to `hear` as it
    /// comes.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        accesses: &[Access],
        work: impl FnOnce(&mut Worker, Vec<Span>, &mut dyn FnMut(T)) + Send + 'static,
        mut hear: impl FnMut(T),
    ) -> Result<(), RunError> {
        let (sender, receiver) = mpsc::channel::<Result<T, RunError>>();
        let ticket = self.put(accesses, move |worker, spans| {
            // Nobody is left to hear it only when the caller panicked.
            let send = |told| _ = sender.send(told);
            match (worker.error.take(), spans) {
                (Some(error), _) => send(Err(error)),
                (None, None) => send(Err(no_memory(None))),
                (None, Some(spans)) => work(worker, spans, &mut |told| send(Ok(told))),
            }
        });
        let mut outcome = Ok(());
        for told in receiver {
            match told {
                Ok(told) => hear(told),
                Err(error) => outcome = Err(error),
            }
        }
        self.progress.see(ticket);
        outcome
    }
}

impl Queue for MockQueue {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn submit(&self, _: Extent, work: &mut (dyn FnMut() + Send)) {
        work();
    }

    fn write(&self, from: &[u8], to: RegionMut<'_>) {
        assert_eq!(from.len(), to.len(), "a copy has the size of what it copies");
        let bytes = from.to_vec();
        self.work(&[written(&to)], None, move |_, spans| {
            spans[0].store(&bytes);
            Ok(())
        });
    }

    fn copy(&self, from: Region<'_>, to: RegionMut<'_>) {
        assert_eq!(from.len(), to.len(), "a copy has the size of what it copies");
        self.work(&[read(&from), written(&to)], None, |_, spans| {
            spans[1].store(spans[0].copy().bytes());
            Ok(())
        });
    }

    fn read(&self, from: Region<'_>, to: &mut [u8]) -> Result<(), RunError> {
        assert_eq!(from.len(), to.len(), "a copy has the size of what it copies");
        let mut found = None;
        self.call(&[read(&from)], |_, spans, send| send(spans[0].copy()), |copy| found = Some(copy))?;
        let copy = found.ok_or_else(|| failed(None, "a read was not done".into()))?;
        to.copy_from_slice(copy.bytes());
        Ok(())
    }

    fn wait_for(&self, other: ForeignQueue) {
        self.shared.order(Order::WaitsFor(other.handle()));
    }

    fn release(&self, other: ForeignQueue) {
        self.shared.order(Order::Releases(other.handle()));
    }

    fn report(&self, error: RunError) {
        self.put(&[], |worker, _| worker.fail(error));
    }

    fn fence(&self) -> Fence {
        let end = Arc::new(End { outcome: Mutex::new(None), told: Condvar::new() });
        let own = end.clone();
        let ticket = self.put(&[], move |worker, _| {
            *lock(&end.outcome) = Some(worker.error.take().map_or(Ok(()), Err));
            end.told.notify_all();
        });
        let may_refuse = self.shared.may_refuse.load(Ordering::SeqCst);
        Fence::pending(Arc::new(MockFence { end: own, progress: self.progress.clone(), ticket, may_refuse }))
    }
}

/// The end of some work, as its queue tells it.
struct End {
    outcome: Mutex<Option<Result<(), RunError>>>,
    told: Condvar,
}

struct MockFence {
    end: Arc<End>,
    progress: Arc<Progress>,
    ticket: u64,
    may_refuse: bool,
}

impl PendingFence for MockFence {
    fn is_done(&self) -> bool {
        let done = lock(&self.end.outcome).is_some();
        if done {
            self.progress.see(self.ticket);
        }
        done
    }

    fn may_refuse(&self) -> bool {
        self.may_refuse
    }

    fn wait(&self) -> Result<(), RunError> {
        let pending = self.end.told.wait_while(lock(&self.end.outcome), |outcome| outcome.is_none());
        let outcome = pending.unwrap_or_else(PoisonError::into_inner).clone();
        self.progress.see(self.ticket);
        outcome.unwrap_or(Ok(()))
    }
}

pub(crate) fn read(region: &Region<'_>) -> Access {
    Access { address: region.address(), len: region.len(), writes: false }
}

pub(crate) fn written(region: &RegionMut<'_>) -> Access {
    Access { address: region.address(), len: region.len(), writes: true }
}

pub(crate) fn failed(node: Option<usize>, why: String) -> RunError {
    RunError { node, kind: RunErrorKind::Device { device: NAME.into(), why } }
}

fn no_memory(node: Option<usize>) -> RunError {
    failed(node, "an address is not memory of this device".into())
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_else(|| "nothing".into())
}
