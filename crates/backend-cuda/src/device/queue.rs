//! A stream as a queue, and its work recorded as a graph.

use std::{
    any::Any,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use regraft_backend::{
    BackendError, DataError, Extent, Fence, ForeignQueue, PendingFence, Queue, Recording, Region, RegionMut, RunError,
    RunErrorKind,
};

use super::Cx;
use crate::{
    CudaError,
    driver::{self, Event, Executable, Pinned, Priority, Span, Stream, Updated},
};

/// Bytes of a report: whether there is one, the index, the size of its axis, the node and 1.
const REPORT: usize = 32;
/// Fences that may be waited for at once.
const FENCES: usize = 64;
/// Bytes of page-locked memory that inputs, and as many that results go through.
const RING: usize = 4 << 20;

/// A queue of a GPU.
pub(super) struct CudaQueue {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    cx: Cx,
    stream: Stream,
    /// What kernels found out of range.
    report: driver::Region,
    /// Whether a kernel that reports was launched since the last fence.
    reports: AtomicBool,
    /// Copies of the report on the host, one for each fence.
    copies: Pinned,
    next_copy: AtomicUsize,
    failed: AtomicBool,
    error: Mutex<Option<RunError>>,
    ring: Mutex<Ring>,
    /// Page-locked memory that results go through.
    results: Mutex<Option<Pinned>>,
}

/// Page-locked memory that is filled from the front; when it is full, what was copied is waited for.
struct Ring {
    memory: Option<Pinned>,
    used: usize,
}

impl CudaQueue {
    pub(super) fn new(cx: &Cx, priority: Priority) -> Result<CudaQueue, CudaError> {
        let stream = Stream::new(&cx.context, priority)?;
        let report = driver::Buffer::new(&cx.context, REPORT)?.region();
        stream.fill(&report, 0)?;
        let inner = Inner {
            cx: cx.clone(),
            stream,
            report,
            reports: AtomicBool::new(false),
            copies: Pinned::new(&cx.context, REPORT * FENCES)?,
            next_copy: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            error: Mutex::default(),
            ring: Mutex::new(Ring { memory: None, used: 0 }),
            results: Mutex::default(),
        };
        Ok(CudaQueue { inner: Arc::new(inner) })
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.inner.stream
    }

    /// Where kernels report, for `node`.
    pub(super) fn report_for(&self, node: usize) -> (Span, usize) {
        self.inner.reports.store(true, Ordering::Relaxed);
        // One more, so that nothing and node 0 differ.
        (self.inner.report.span(), node + 1)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.inner.failed.load(Ordering::Acquire)
    }

    /// What comes after in `second` waits for what is in `first`.
    fn order(&self, first: &Stream, second: &Stream) {
        let ordered = || {
            let end = Event::new(&self.inner.cx.context)?;
            first.record(&end)?;
            second.wait(&end)
        };
        if let Err(error) = ordered() {
            self.fail(None, &error);
        }
    }

    /// Reports what went wrong with a launch of `node`.
    pub(super) fn fail(&self, node: Option<usize>, error: &CudaError) {
        self.report(RunError { node, kind: self.inner.cx.run_failed(error) });
    }
}

impl Inner {
    fn take_error(&self) -> Option<RunError> {
        if !self.failed.swap(false, Ordering::AcqRel) {
            return None;
        }
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The stream of another library.
    fn foreign(&self, queue: ForeignQueue) -> Stream {
        // SAFETY: who made the queue promised that it is a stream of this device, and lives while calls are given it.
        unsafe { Stream::borrowed(&self.cx.context, queue.handle() as usize) }
    }

    fn device_failed(&self, error: &CudaError) -> RunError {
        RunError { node: None, kind: self.cx.run_failed(error) }
    }

    /// Marks the end of the work so far, behind a copy of the report where there may be one.
    fn mark(&self) -> Result<(Event, Option<usize>), CudaError> {
        let event = Event::new(&self.cx.context)?;
        let copy = self.reports.swap(false, Ordering::AcqRel).then(|| {
            let at = self.next_copy.fetch_add(1, Ordering::Relaxed) % FENCES * REPORT;
            self.stream.download(&self.report, &self.copies, at).map(|()| at)
        });
        let copy = copy.transpose()?;
        self.stream.record(&event)?;
        Ok((event, copy))
    }

    /// Waits for the work so far, and copies its result to the host.
    fn download(&self, from: Region<'_>, to: &mut [u8]) -> Result<(), CudaError> {
        if to.is_empty() {
            return self.stream.synchronize();
        }
        if to.len() > RING {
            return self.stream.download_slice(from, to);
        }
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = match &mut *results {
            Some(memory) => memory,
            none => none.insert(Pinned::new(&self.cx.context, RING)?),
        };
        self.stream.download(Span::from(from).part(0, to.len())?, memory, 0)?;
        self.stream.synchronize()?;
        to.copy_from_slice(&memory.bytes()[..to.len()]);
        Ok(())
    }

    /// What the report that was copied to `at` says; the work that made it is over.
    fn reported(&self, at: usize) -> Option<RunError> {
        let word = |i: usize| {
            let bytes = &self.copies.bytes()[at + 8 * i..at + 8 * i + 8];
            i64::from_ne_bytes(bytes.try_into().expect("eight bytes"))
        };
        if word(0) == 0 {
            return None;
        }
        if let Err(error) = self.stream.fill(&self.report, 0) {
            return Some(self.device_failed(&error));
        }
        let node = usize::try_from(word(3)).ok().and_then(|n| n.checked_sub(1));
        let size = usize::try_from(word(2)).unwrap_or(0);
        Some(RunError { node, kind: DataError::Index { index: word(1), size }.into() })
    }
}

impl Queue for CudaQueue {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn submit(&self, _: Extent, work: &mut (dyn FnMut() + Send)) {
        work();
    }

    fn write(&self, from: &[u8], to: RegionMut<'_>) {
        if self.has_failed() || from.is_empty() {
            return;
        }
        let inner = &self.inner;
        let copy = || -> Result<(), CudaError> {
            let to = Span::from(&to);
            let mut ring = inner.ring.lock().unwrap_or_else(PoisonError::into_inner);
            if from.len() > RING {
                return inner.stream.upload_slice(from, to);
            }
            if ring.memory.is_none() {
                ring.memory = Some(Pinned::new(&inner.cx.context, RING)?);
            }
            if ring.used + from.len() > RING {
                inner.stream.synchronize()?;
                ring.used = 0;
            }
            let at = ring.used;
            ring.used += from.len().next_multiple_of(64);
            let Some(memory) = ring.memory.as_mut() else { return Ok(()) };
            memory.bytes_mut()[at..at + from.len()].copy_from_slice(from);
            inner.stream.upload(memory, at, to)
        };
        if let Err(error) = copy() {
            self.fail(None, &error);
        }
    }

    fn copy(&self, from: Region<'_>, to: RegionMut<'_>) {
        if self.has_failed() || from.is_empty() {
            return;
        }
        if let Err(error) = self.inner.stream.copy(from, &to) {
            self.fail(None, &error);
        }
    }

    fn read(&self, from: Region<'_>, to: &mut [u8]) -> Result<(), RunError> {
        if let Some(error) = self.inner.take_error() {
            return Err(error);
        }
        let inner = &self.inner;
        let failed = |error: CudaError| inner.device_failed(&error);
        let (_, copy) = inner.mark().map_err(failed)?;
        inner.download(from, to).map_err(failed)?;
        copy.and_then(|at| inner.reported(at)).map_or(Ok(()), Err)
    }

    fn wait_for(&self, other: ForeignQueue) {
        let other = self.inner.foreign(other);
        self.order(&other, &self.inner.stream);
    }

    fn release(&self, other: ForeignQueue) {
        let other = self.inner.foreign(other);
        self.order(&self.inner.stream, &other);
    }

    fn report(&self, error: RunError) {
        self.inner.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.inner.failed.store(true, Ordering::Release);
    }

    fn fence(&self) -> Fence {
        if let Some(error) = self.inner.take_error() {
            // What was launched before it still uses memory: a failed fence is one of work that is over.
            return match self.inner.stream.synchronize() {
                Ok(()) => Fence::failed(error),
                Err(other) => Fence::failed(self.inner.device_failed(&other)),
            };
        }
        match self.inner.mark() {
            Ok((event, copy)) => {
                let pending = Pending { queue: self.inner.clone(), event, copy, outcome: Mutex::new(None) };
                Fence::pending(Arc::new(pending))
            }
            Err(error) => Fence::failed(self.inner.device_failed(&error)),
        }
    }
}

/// The end of work in a stream.
struct Pending {
    queue: Arc<Inner>,
    event: Event,
    copy: Option<usize>,
    outcome: Mutex<Option<Result<(), RunError>>>,
}

impl PendingFence for Pending {
    fn is_done(&self) -> bool {
        self.event.is_done().unwrap_or(true)
    }

    fn may_refuse(&self) -> bool {
        self.copy.is_some()
    }

    fn wait(&self) -> Result<(), RunError> {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = &*outcome {
            return outcome.clone();
        }
        let found = match self.event.wait() {
            Err(error) => Err(self.queue.device_failed(&error)),
            Ok(()) => self.copy.and_then(|at| self.queue.reported(at)).map_or(Ok(()), Err),
        };
        *outcome = Some(found.clone());
        found
    }
}

/// Work recorded as a graph.
struct CudaRecording {
    cx: Cx,
    executable: Executable,
    reports: bool,
    queue: CudaQueue,
}

/// Records `work`; `None` when it does something that a graph cannot hold.
pub(super) fn record(cx: &Cx, work: &mut dyn FnMut(&dyn Queue)) -> Result<Option<Box<dyn Recording>>, BackendError> {
    let queue = CudaQueue::new(cx, Priority::High).map_err(|e| cx.failed(e))?;
    let graph = capture(&queue, work).map_err(|e| cx.failed(e))?;
    let executable = graph.instantiate().map_err(|e| cx.failed(e))?;
    executable.upload(queue.stream()).map_err(|e| cx.failed(e))?;
    let reports = queue.inner.reports.swap(false, Ordering::AcqRel);
    queue.stream().synchronize().map_err(|e| cx.failed(e))?;
    Ok(Some(Box::new(CudaRecording { cx: cx.clone(), executable, reports, queue })))
}

fn capture(queue: &CudaQueue, work: &mut dyn FnMut(&dyn Queue)) -> Result<driver::Graph, CudaError> {
    let graph = queue.stream().capture(|| {
        work(queue);
        Ok::<(), CudaError>(())
    });
    let failed = queue.inner.take_error();
    match (graph, failed) {
        (Ok(graph), None) => Ok(graph),
        (Err(error), _) => Err(error),
        (Ok(_), Some(error)) => Err(CudaError::NoAlgorithm { library: "CUDA graphs", problem: error.to_string() }),
    }
}

impl Recording for CudaRecording {
    fn update(&mut self, work: &mut dyn FnMut(&dyn Queue)) -> Result<(), BackendError> {
        let graph = capture(&self.queue, work).map_err(|e| self.cx.failed(e))?;
        match self.executable.update(&graph).map_err(|e| self.cx.failed(e))? {
            Updated::Done => {}
            Updated::Differs => self.executable = graph.instantiate().map_err(|e| self.cx.failed(e))?,
        }
        self.executable.upload(self.queue.stream()).map_err(|e| self.cx.failed(e))?;
        self.queue.stream().synchronize().map_err(|e| self.cx.failed(e))
    }

    fn launch(&mut self, queue: &dyn Queue) {
        let Some(cuda) = queue.as_any().downcast_ref::<CudaQueue>() else {
            let kind =
                RunErrorKind::Device { device: self.cx.name.to_string(), why: "a queue of another device".into() };
            return queue.report(RunError { node: None, kind });
        };
        if cuda.has_failed() {
            return;
        }
        if let Err(error) = self.executable.launch(cuda.stream()) {
            return cuda.fail(None, &error);
        }
        if self.reports {
            // Recorded kernels report in the memory of the queue that they were recorded on.
            if let Err(error) = cuda.stream().copy(&self.queue.inner.report, &cuda.inner.report) {
                return cuda.fail(None, &error);
            }
            if let Err(error) = cuda.stream().fill(&self.queue.inner.report, 0) {
                return cuda.fail(None, &error);
            }
            cuda.inner.reports.store(true, Ordering::Relaxed);
        }
    }
}
