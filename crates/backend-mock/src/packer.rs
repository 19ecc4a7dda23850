//! The packer of the host device, run on a queue over copies of slots.

use std::{fmt, sync::Arc};

use regraft_backend::{
    Comparison, Given, KeptSource, Pace, PackError, PackJob, Packer, RunError, RunErrorKind, StageObserver,
    adapter::Overlay,
};
use regraft_tensor::Tensor;

use crate::{
    Violation,
    memory::{Guarded, Span},
    queue::{MockQueue, read, written},
    shared::{Access, NAME, Shared},
};

pub(crate) struct MockPacker {
    shared: Arc<Shared>,
    inner: Arc<dyn Packer>,
    queue: MockQueue,
}

impl MockPacker {
    pub(crate) fn new(shared: Arc<Shared>, inner: Arc<dyn Packer>, queue: MockQueue) -> Self {
        MockPacker { shared, inner, queue }
    }

    /// Calls `work` with the packer on the queue's thread, and waits for what it gives.
    fn call<T: Send + 'static>(
        &self,
        accesses: &[Access],
        work: impl FnOnce(&dyn Packer, &[Span]) -> Result<T, PackError> + Send + 'static,
    ) -> Result<T, PackError> {
        let (inner, mut outcome) = (self.inner.clone(), None);
        let run = move |_: &mut _, spans: Vec<Span>, send: &mut dyn FnMut(_)| send(work(&*inner, &spans));
        self.queue.call(accesses, run, |told| outcome = Some(told)).map_err(of_run)?;
        outcome.unwrap_or_else(|| Err(not_done()))
    }
}

impl fmt::Debug for MockPacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MockPacker({:?})", self.inner)
    }
}

/// What the thread of a pack tells.
enum Told {
    Staged(usize, usize),
    Done(Result<(), PackError>),
}

/// A job that does not borrow.
struct OwnJob {
    slot: usize,
    given: Vec<(Tensor, Option<Overlay>)>,
    out: Guarded,
}

impl Packer for MockPacker {
    fn pack(&self, jobs: Vec<PackJob<'_>>, pace: Pace, observer: &dyn StageObserver) -> Result<(), PackError> {
        let mut accesses: Vec<Access> = jobs.iter().map(|job| written(&job.out)).collect();
        accesses.extend(jobs.iter().flat_map(|job| &job.given).filter_map(|given| remote(given.tensor)));
        let own = |job: PackJob<'_>| OwnJob {
            slot: job.slot,
            given: job.given.iter().map(|given| (given.tensor.clone(), given.overlay.cloned())).collect(),
            out: Guarded::new(job.out.len()),
        };
        let mut jobs: Vec<OwnJob> = jobs.into_iter().map(own).collect();
        let (shared, inner, mut outcome) = (self.shared.clone(), self.inner.clone(), None);
        let work = move |_: &mut _, spans: Vec<Span>, send: &mut dyn FnMut(Told)| {
            let mut here = spans.iter().skip(jobs.len());
            let given = jobs.iter_mut().flat_map(|job| &mut job.given);
            given.for_each(|(tensor, _)| bring(tensor, &mut here));
            let (staged, progress) = std::sync::mpsc::channel();
            let done = inner.pack(jobs.iter_mut().map(OwnJob::lend).collect(), pace, &Reporter(staged));
            progress.into_iter().for_each(|(bytes, of)| send(Told::Staged(bytes, of)));
            for (job, span) in jobs.iter().zip(&spans) {
                if !job.out.is_intact() {
                    let what = format!("the packer of slot {}", job.slot);
                    shared.violate(Violation::Outside { what, bytes: span.range().len() });
                }
                span.store(job.out.bytes());
            }
            // Memory that was lent for the call is released before its end is reported.
            drop(jobs);
            send(Told::Done(done));
        };
        let hear = |told| match told {
            Told::Staged(bytes, of) => observer.staged(bytes, of),
            Told::Done(done) => outcome = Some(done),
        };
        self.queue.call(&accesses, work, hear).map_err(of_run)?;
        outcome.unwrap_or_else(|| Err(not_done()))
    }

    fn is_one_pass(&self, slot: usize, given: &[Given<'_>]) -> bool {
        self.inner.is_one_pass(slot, given)
    }

    fn keeps(&self, slot: usize, source: usize) -> bool {
        self.inner.keeps(slot, source)
    }

    fn reads_remote(&self, _: usize, _: usize) -> bool {
        true
    }

    fn read_back(&self, kept: &[KeptSource<'_>]) -> Result<Vec<Tensor>, PackError> {
        let accesses: Vec<Access> = kept.iter().map(|kept| read(&kept.memory)).collect();
        let places: Vec<(usize, usize)> = kept.iter().map(|kept| (kept.slot, kept.source)).collect();
        self.call(&accesses, move |packer, spans| {
            let copies: Vec<Guarded> = spans.iter().map(Guarded::copy_of).collect();
            let kept = places.iter().zip(&copies).map(|(&(slot, source), copy)| at(slot, source, copy));
            packer.read_back(&kept.collect::<Vec<_>>())
        })
    }

    fn differ(&self, pairs: &[Comparison<'_>]) -> Result<Vec<bool>, PackError> {
        let mut accesses = Vec::new();
        let own = |pair: &Comparison<'_>| match pair {
            Comparison::Tensors(a, b) => OwnPair::Tensors((*a).clone(), (*b).clone()),
            Comparison::Kept(kept, tensor) => {
                accesses.push(read(&kept.memory));
                accesses.extend(remote(tensor));
                OwnPair::Kept(kept.slot, kept.source, (*tensor).clone())
            }
        };
        let mut pairs: Vec<OwnPair> = pairs.iter().map(own).collect();
        self.call(&accesses, move |packer, spans| {
            let mut copies: Vec<Guarded> = Vec::new();
            let mut span = spans.iter();
            for pair in &mut pairs {
                if let OwnPair::Kept(_, _, tensor) = pair {
                    copies.extend(span.next().map(Guarded::copy_of));
                    bring(tensor, &mut span);
                }
            }
            let mut copy = copies.iter();
            let mut lent = Vec::with_capacity(pairs.len());
            for pair in &pairs {
                lent.push(match pair {
                    OwnPair::Tensors(a, b) => Comparison::Tensors(a, b),
                    OwnPair::Kept(slot, source, tensor) => {
                        let copy = copy.next().expect("one for each pair of this kind");
                        Comparison::Kept(at(*slot, *source, copy), tensor)
                    }
                });
            }
            packer.differ(&lent)
        })
    }

    fn merge(&self, overlay: &Overlay, source: &Tensor) -> Result<Tensor, PackError> {
        self.inner.merge(overlay, source)
    }

    fn fill_norms(&self, overlay: &mut Overlay, source: &Tensor) -> Result<(), PackError> {
        self.inner.fill_norms(overlay, source)
    }
}

impl OwnJob {
    fn lend(&mut self) -> PackJob<'_> {
        let OwnJob { slot, given, out } = self;
        let given = given.iter().map(|(tensor, overlay)| Given { tensor, overlay: overlay.as_ref() }).collect();
        PackJob { slot: *slot, given, out: out.region_mut() }
    }
}

enum OwnPair {
    Tensors(Tensor, Tensor),
    Kept(usize, usize, Tensor),
}

/// The memory of a tensor that is on this device.
fn remote(tensor: &Tensor) -> Option<Access> {
    tensor.remote_on(NAME).map(|address| Access { address, len: tensor.byte_count(), writes: false })
}

/// Makes a tensor that is on this device one of the host: its bytes are the next of `spans`.
fn bring<'a>(tensor: &mut Tensor, spans: &mut impl Iterator<Item = &'a Span>) {
    if remote(tensor).is_some()
        && let Some(span) = spans.next()
    {
        let copy = Tensor::new(tensor.dtype(), tensor.shape().to_vec(), span.copy().into());
        *tensor = copy.expect("as many bytes as the shape has");
    }
}

fn at(slot: usize, source: usize, copy: &Guarded) -> KeptSource<'_> {
    KeptSource { slot, source, memory: copy.region() }
}

/// Passes progress on from the threads that pack.
struct Reporter(std::sync::mpsc::Sender<(usize, usize)>);

impl StageObserver for Reporter {
    fn staged(&self, bytes: usize, of: usize) {
        // The receiver lives as long as the pack.
        let _ = self.0.send((bytes, of));
    }
}

fn of_run(error: RunError) -> PackError {
    match error.kind {
        RunErrorKind::Memory(error) => error.into(),
        kind => PackError::Device { device: NAME.into(), why: kind.to_string() },
    }
}

fn not_done() -> PackError {
    PackError::Device { device: NAME.into(), why: "a pack was not done".into() }
}
