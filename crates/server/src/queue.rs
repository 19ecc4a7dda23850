//! The queue of a model: bounded, and emptied by workers in groups that can run together.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use regraft::{DType, Tensor};
use tokio::sync::oneshot;

use crate::{
    error::{Kind, Refusal},
    run::Answer,
    variants::Variant,
};

/// A request that waits for its run.
pub(crate) struct Job {
    pub(crate) inputs: Vec<Tensor>,
    /// The weights with an adapter that it asks for, unless it is those that serve.
    pub(crate) variant: Option<Arc<Variant>>,
    pub(crate) queued: Instant,
    pub(crate) deadline: Instant,
    pub(crate) answer: oneshot::Sender<Result<Answer, Refusal>>,
}

impl Job {
    /// Rows, where the first axis of the first input counts them.
    pub(crate) fn rows(&self) -> usize {
        self.inputs.first().and_then(|input| input.shape().first()).copied().unwrap_or(1)
    }

    /// Whether both can run together as rows of one run.
    fn goes_with(&self, other: &Job) -> bool {
        let one = |job: &Job| job.variant.as_ref().map(|variant| variant.id);
        let row = |t: &Tensor| -> (DType, Vec<usize>) { (t.dtype(), t.shape().iter().skip(1).copied().collect()) };
        one(self) == one(other) && self.inputs.iter().zip(&other.inputs).all(|(a, b)| row(a) == row(b))
    }

    /// Answers it when it is too late, or drops it when its client is gone; otherwise returns it.
    fn still_wanted(self, now: Instant) -> Option<Job> {
        if self.answer.is_closed() {
            return None;
        }
        if self.deadline > now {
            return Some(self);
        }
        // Nobody may be left to tell.
        let _ = self.answer.send(Err(Refusal::new(Kind::Deadline, "the request waited in the queue to its deadline")));
        None
    }
}

/// How jobs are grouped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grouping {
    /// The most rows together; 1 runs each job alone.
    pub(crate) rows: usize,
    /// How long the first of a group waits for others.
    pub(crate) wait: Duration,
}

/// Jobs in the order in which they came.
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    capacity: usize,
    grouping: Grouping,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Queue {
    pub(crate) fn new(capacity: usize, grouping: Grouping) -> Queue {
        Queue { state: Mutex::default(), changed: Condvar::new(), capacity, grouping }
    }

    /// Lets a job wait; refuses it when too many do.
    pub(crate) fn push(&self, job: Job) -> Result<(), Refusal> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refusal::new(Kind::Unavailable, "the server is being stopped"));
        }
        if state.jobs.len() >= self.capacity {
            let now = Instant::now();
            state.jobs = std::mem::take(&mut state.jobs).into_iter().filter_map(|job| job.still_wanted(now)).collect();
        }
        if state.jobs.len() >= self.capacity {
            return Err(Refusal::new(Kind::Overloaded, format!("{} requests wait already", self.capacity)));
        }
        state.jobs.push_back(job);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Jobs to run together, at least one, as soon as there are any; `None` once the queue is closed and empty.
    pub(crate) fn next(&self) -> Option<Vec<Job>> {
        let mut state = self.lock();
        let mut group = loop {
            let now = Instant::now();
            match state.jobs.pop_front() {
                Some(job) => match job.still_wanted(now) {
                    Some(job) => break vec![job],
                    None => continue,
                },
                None if state.closed => return None,
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        let until = group[0].queued + self.grouping.wait;
        loop {
            let is_full = self.gather(&mut state, &mut group);
            let left = until.saturating_duration_since(Instant::now());
            if is_full || left.is_zero() || state.closed {
                return Some(group);
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes jobs that go with the group; whether it is full.
    fn gather(&self, state: &mut State, group: &mut Vec<Job>) -> bool {
        let mut rows: usize = group.iter().map(Job::rows).sum();
        let now = Instant::now();
        let mut at = 0;
        while rows < self.grouping.rows && at < state.jobs.len() {
            let job = &state.jobs[at];
            if !job.goes_with(&group[0]) || rows.saturating_add(job.rows()) > self.grouping.rows {
                at += 1;
                continue;
            }
            if let Some(job) = state.jobs.remove(at).and_then(|job| job.still_wanted(now)) {
                rows += job.rows();
                group.push(job);
            }
        }
        rows >= self.grouping.rows
    }

    /// How many jobs wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Takes no more jobs; those that wait are still handed out.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The list is whole after any panic: jobs are pushed and popped.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(capacity: usize, rows: usize) -> Queue {
        Queue::new(capacity, Grouping { rows, wait: Duration::ZERO })
    }

    fn job(rows: usize, width: usize) -> (Job, oneshot::Receiver<Result<Answer, Refusal>>) {
        let (answer, receiver) = oneshot::channel();
        let inputs = vec![Tensor::zeros(DType::F32, &[rows, width]).unwrap()];
        let now = Instant::now();
        (Job { inputs, variant: None, queued: now, deadline: now + Duration::from_secs(60), answer }, receiver)
    }

    #[test]
    fn groups_hold_jobs_of_one_width_up_to_the_limit() {
        let queue = queue(16, 4);
        let sizes = [(1, 2), (2, 2), (1, 3), (2, 2), (1, 2)];
        let (jobs, _receivers): (Vec<_>, Vec<_>) = sizes.iter().map(|&(rows, width)| job(rows, width)).unzip();
        jobs.into_iter().for_each(|job| queue.push(job).unwrap());
        let next = || queue.next().unwrap().iter().map(|job| job.inputs[0].shape().to_vec()).collect::<Vec<_>>();
        // The third is of another width, and the fourth would be too many.
        assert_eq!(next(), [[1, 2], [2, 2], [1, 2]]);
        assert_eq!(next(), [[1, 3]]);
        assert_eq!(next(), [[2, 2]]);
    }

    #[test]
    fn a_full_queue_refuses_and_forgets_those_nobody_waits_for() {
        let queue = queue(1, 1);
        let (first, receiver) = job(1, 1);
        queue.push(first).unwrap();
        let (second, _kept) = job(1, 1);
        assert_eq!(queue.push(second).unwrap_err().kind, Kind::Overloaded);
        drop(receiver);
        let (third, _kept) = job(1, 1);
        queue.push(third).unwrap();
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn a_late_job_is_answered_and_a_closed_queue_ends() {
        let queue = queue(4, 1);
        let (mut late, mut receiver) = job(1, 1);
        late.deadline = late.queued;
        queue.push(late).unwrap();
        queue.close();
        assert!(queue.next().is_none());
        assert_eq!(receiver.try_recv().unwrap().unwrap_err().kind, Kind::Deadline);
        let (after, _kept) = job(1, 1);
        assert_eq!(queue.push(after).unwrap_err().kind, Kind::Unavailable);
    }
}
