//! Runs the jobs of a queue: alone, or the rows of several together.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use regraft::{AlignedVec, DType, Generation, Model, RuntimeError, Tensor};

use crate::{
    error::{Kind, Refusal},
    generations::Label,
    queue::{Group, Job},
    served::Served,
    tasks::poll_woken,
    variants::Variant,
};

/// What a request gets.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) outputs: Vec<Output>,
    /// The weights that it was computed from.
    pub(crate) label: Arc<Label>,
    pub(crate) timing: Timing,
}

/// When a request ran.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) queued: Instant,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    /// Rows of the run, with those of the requests that ran together with it.
    pub(crate) rows: usize,
}

/// An output, or some rows of one.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Bytes,
}

/// A tensor's bytes, to be sent without a copy.
struct Sent(Tensor);

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// Runs what comes out of the queue of `served` until it is closed and empty.
pub(crate) fn work(served: &Served) {
    while let Some(Group { jobs, variant }) = served.queue.next() {
        let variant = match &jobs[0].adapter {
            Some(adapter) => match variant.or_else(|| served.variants.find(&served.model, adapter)) {
                Some(variant) => Some(variant),
                // Others need not wait until it is made.
                None => {
                    served.queue.set_aside(jobs);
                    continue;
                }
            },
            None => None,
        };
        run(served, jobs, variant.as_deref());
    }
}

fn run(served: &Served, jobs: Vec<Job>, variant: Option<&Variant>) {
    let begin = Instant::now();
    jobs.iter().for_each(|job| served.metrics.waited(begin.duration_since(job.queued)));
    if jobs.len() == 1 {
        return jobs.into_iter().for_each(|job| run_alone(served, job, variant));
    }
    let rows: Vec<usize> = jobs.iter().map(Job::rows).collect();
    let together = join(&jobs).and_then(|inputs| outputs_of(served, variant, &inputs));
    let (ended, all) = (Instant::now(), rows.iter().sum());
    served.metrics.ran(ended - begin, all);
    match together {
        Ok((outputs, label)) => {
            let parts = split(outputs, &rows);
            for (job, outputs) in jobs.into_iter().zip(parts) {
                let timing = Timing { queued: job.queued, began: begin, ended, rows: all };
                answer(job, Ok(Answer { outputs, label: label.clone(), timing }));
            }
        }
        // What is wrong with one must not be told to the others.
        Err(_) => jobs.into_iter().for_each(|job| run_alone(served, job, variant)),
    }
}

fn run_alone(served: &Served, job: Job, variant: Option<&Variant>) {
    let began = Instant::now();
    let outcome = outputs_of(served, variant, &job.inputs);
    let timing = Timing { queued: job.queued, began, ended: Instant::now(), rows: job.rows() };
    served.metrics.ran(timing.ended - began, timing.rows);
    let outputs = |outputs: Vec<Tensor>| outputs.into_iter().map(whole).collect();
    let outcome = outcome.map(|(all, label)| Answer { outputs: outputs(all), label, timing });
    match served.queue.len() {
        0 => poll_woken(|| answer(job, outcome)),
        _ => answer(job, outcome),
    }
}

fn answer(job: Job, outcome: Result<Answer, Refusal>) {
    // The client may have gone.
    let _ = job.answer.send(outcome);
}

fn outputs_of(
    served: &Served,
    variant: Option<&Variant>,
    inputs: &[Tensor],
) -> Result<(Vec<Tensor>, Arc<Label>), Refusal> {
    match variant {
        Some(variant) => Ok((run_once(&variant.model, inputs)?.0, variant.label.clone())),
        None => {
            let (outputs, generation) = run_once(&served.model, inputs)?;
            Ok((outputs, served.generations.label(&generation)))
        }
    }
}

/// A run that panics is a bug; the server goes on, and says so to the one who asked.
fn run_once(model: &Model, inputs: &[Tensor]) -> Result<(Vec<Tensor>, Arc<Generation>), Refusal> {
    // Whatever a run leaves behind is its own: generations are immutable, and a lane that was not given back is dropped.
    let outcome = catch_unwind(AssertUnwindSafe(|| model.run_with_generation(inputs)));
    match outcome {
        Ok(outcome) => outcome.map_err(|error: RuntimeError| Refusal::from(error)),
        Err(_) => Err(Refusal::new(Kind::Internal, "the run panicked: this is a bug in regraft")),
    }
}

fn whole(tensor: Tensor) -> Output {
    Output { dtype: tensor.dtype(), shape: tensor.shape().to_vec(), bytes: Bytes::from_owner(Sent(tensor)) }
}

/// The inputs of all jobs, one under the other.
fn join(jobs: &[Job]) -> Result<Vec<Tensor>, Refusal> {
    let inputs = jobs[0].inputs.iter().enumerate();
    let joined = inputs.map(|(index, first)| {
        let parts = || jobs.iter().map(|job| &job.inputs[index]);
        stack(first, parts())
    });
    joined.collect()
}

/// Tensors that differ in their first size only, one under the other.
pub(crate) fn stack<'a>(first: &Tensor, parts: impl Iterator<Item = &'a Tensor> + Clone) -> Result<Tensor, Refusal> {
    let no_memory = || Refusal::new(Kind::Memory, "there is not enough memory to run the requests together");
    let len = parts.clone().map(|part| part.bytes().len()).sum();
    let mut data = AlignedVec::try_zeroed(len).map_err(|_| no_memory())?;
    let (mut shape, mut at) = (first.shape().to_vec(), 0);
    shape[0] = parts.clone().map(|part| part.shape()[0]).sum();
    for part in parts {
        let bytes = part.bytes();
        data.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    }
    Ok(Tensor::new(first.dtype(), shape, data.into()).expect("as many bytes as the parts have"))
}

/// The rows of each job, in the memory of all.
fn split(outputs: Vec<Tensor>, rows: &[usize]) -> Vec<Vec<Output>> {
    let all: usize = rows.iter().sum();
    let outputs: Vec<Output> = outputs.into_iter().map(whole).collect();
    let mut first = 0;
    let mut parts = Vec::with_capacity(rows.len());
    for &count in rows {
        let part = |output: &Output| {
            let row = output.bytes.len() / all.max(1);
            let mut shape = output.shape.clone();
            shape[0] = count;
            Output { dtype: output.dtype, shape, bytes: output.bytes.slice(first * row..(first + count) * row) }
        };
        parts.push(outputs.iter().map(part).collect());
        first += count;
    }
    parts
}
