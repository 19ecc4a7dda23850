//! The queue of a model: bounded, and emptied by workers in groups that can run together.
//!
//! Requests that name an adapter run on a variant. Where it was not made yet a worker sets them aside, and goes on with others; the
//! thread that makes variants hands it over with those that waited for it. So a variant is held by requests only while it is
//! handed over and while they run, however many wait and however often weights are published meanwhile.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use regraft::Tensor;
use tokio::sync::oneshot;

use crate::{
    error::{Kind, Refusal},
    run::Answer,
    variants::{Scaled, Variant},
};

/// A request that waits for its run.
pub(crate) struct Job {
    pub(crate) inputs: Vec<Tensor>,
    /// The adapter that it asks for, in place of those that serve.
    pub(crate) adapter: Option<Scaled>,
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
        let same_rows = |(a, b): (&Tensor, &Tensor)| a.dtype() == b.dtype() && a.shape().get(1..) == b.shape().get(1..);
        self.adapter == other.adapter && self.inputs.iter().zip(&other.inputs).all(same_rows)
    }

    /// Answers it when it is too late, or drops it when its client is gone; otherwise returns it.
    fn still_wanted(self, now: Instant) -> Option<Job> {
        if self.answer.is_closed() {
            return None;
        }
        if self.deadline > now {
            return Some(self);
        }
        self.refuse(Refusal::new(Kind::Deadline, "the request waited in the queue to its deadline"));
        None
    }

    fn refuse(self, why: Refusal) {
        // Nobody may be left to tell.
        let _ = self.answer.send(Err(why));
    }
}

/// Jobs to run together, at least one.
pub(crate) struct Group {
    pub(crate) jobs: Vec<Job>,
    /// What they are to run on, where it was made for them.
    pub(crate) variant: Option<Arc<Variant>>,
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
    /// For workers: there is something to run, or nothing any more.
    runnable: Condvar,
    /// For the thread that makes variants: jobs were set aside, or those of the last variant were taken.
    aside: Condvar,
    capacity: usize,
    grouping: Grouping,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Those whose variant must be made.
    aside: VecDeque<Job>,
    /// What is to be made before a job asks for it.
    ahead: VecDeque<Scaled>,
    /// Those whose variant was made for them.
    made: Option<(Arc<Variant>, VecDeque<Job>)>,
    /// Whether a variant is being made.
    making: bool,
    closed: bool,
    finished: bool,
    /// Workers that wait for a first job, and for more to go with the ones that they have.
    idle: usize,
    gathering: usize,
}

impl State {
    fn len(&self) -> usize {
        self.jobs.len() + self.aside.len() + self.made.as_ref().map_or(0, |(_, jobs)| jobs.len())
    }

    /// Drops jobs that nobody waits for any more, wherever they wait.
    fn prune(&mut self) {
        let now = Instant::now();
        let made = self.made.as_mut().map(|(_, jobs)| jobs);
        [&mut self.jobs, &mut self.aside].into_iter().chain(made).for_each(|jobs| keep_wanted(jobs, now));
    }
}

/// Drops those of `jobs` that nobody waits for any more.
fn keep_wanted(jobs: &mut VecDeque<Job>, now: Instant) {
    *jobs = std::mem::take(jobs).into_iter().filter_map(|job| job.still_wanted(now)).collect();
}

impl Queue {
    pub(crate) fn new(capacity: usize, grouping: Grouping) -> Queue {
        Queue { state: Mutex::default(), runnable: Condvar::new(), aside: Condvar::new(), capacity, grouping }
    }

    /// Lets a job wait; refuses it when too many do.
    pub(crate) fn push(&self, job: Job) -> Result<(), Refusal> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refusal::new(Kind::Unavailable, "the server is being stopped"));
        }
        if state.len() >= self.capacity {
            state.prune();
        }
        if state.len() >= self.capacity {
            return Err(Refusal::new(Kind::Overloaded, format!("{} requests wait already", self.capacity)));
        }
        state.jobs.push_back(job);
        let (idle, gathering) = (state.idle, state.gathering);
        drop(state);
        // Each call costs the system one, so none is made where nobody waits.
        match (gathering, idle) {
            (0, 0) => {}
            (0, _) => self.runnable.notify_one(),
            _ => self.runnable.notify_all(),
        }
        Ok(())
    }

    /// Jobs to run together, as soon as there are any; `None` once the queue is closed and empty.
    pub(crate) fn next(&self) -> Option<Group> {
        let mut state = self.lock();
        let mut jobs = loop {
            if let Some(group) = self.take_made(&mut state) {
                return Some(group);
            }
            match state.jobs.pop_front() {
                Some(job) => match job.still_wanted(Instant::now()) {
                    Some(job) => break vec![job],
                    None => continue,
                },
                None if state.closed && state.aside.is_empty() && !state.making => return None,
                None => {
                    state.idle += 1;
                    state = self.runnable.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.idle -= 1;
                }
            }
        };
        let until = jobs[0].queued + self.grouping.wait;
        loop {
            let is_full = self.gather(&mut state.jobs, &mut jobs);
            let left = until.saturating_duration_since(Instant::now());
            if is_full || left.is_zero() || state.closed {
                return Some(Group { jobs, variant: None });
            }
            state.gathering += 1;
            state = self.runnable.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.gathering -= 1;
        }
    }

    /// Some of the jobs that a variant was made for.
    fn take_made(&self, state: &mut State) -> Option<Group> {
        let (variant, waiting) = state.made.as_mut()?;
        let now = Instant::now();
        let first = std::iter::from_fn(|| waiting.pop_front()).find_map(|job| job.still_wanted(now));
        let group = first.map(|job| {
            let mut jobs = vec![job];
            self.gather(waiting, &mut jobs);
            Group { jobs, variant: Some(variant.clone()) }
        });
        if waiting.is_empty() {
            state.made = None;
            self.aside.notify_all();
        }
        group
    }

    /// Takes jobs that go with the group; whether it is full.
    fn gather(&self, waiting: &mut VecDeque<Job>, group: &mut Vec<Job>) -> bool {
        let mut rows: usize = group.iter().map(Job::rows).sum();
        let now = Instant::now();
        let mut at = 0;
        while rows < self.grouping.rows && at < waiting.len() {
            let job = &waiting[at];
            if !job.goes_with(&group[0]) || rows.saturating_add(job.rows()) > self.grouping.rows {
                at += 1;
                continue;
            }
            if let Some(job) = waiting.remove(at).and_then(|job| job.still_wanted(now)) {
                rows += job.rows();
                group.push(job);
            }
        }
        rows >= self.grouping.rows
    }

    /// Lets jobs wait for their variant.
    pub(crate) fn set_aside(&self, jobs: Vec<Job>) {
        self.lock().aside.extend(jobs);
        self.aside.notify_all();
    }

    /// Has variants made before jobs ask for them, in the place of those that it was asked for last.
    pub(crate) fn make_ahead(&self, adapters: Vec<Scaled>) {
        self.lock().ahead = adapters.into();
        self.aside.notify_all();
    }

    /// The adapter whose variant is to be made, and whether a job waits for it, as soon as there is one; `None` once there will be
    /// none. For one thread, which says by [`Queue::made`] how that ended before it asks again.
    pub(crate) fn next_aside(&self) -> Option<(Scaled, bool)> {
        let mut state = self.lock();
        loop {
            keep_wanted(&mut state.aside, Instant::now());
            if let Some(adapter) = state.aside.iter().find_map(|job| job.adapter.clone()) {
                state.making = true;
                return Some((adapter, true));
            }
            if state.closed {
                state.ahead.clear();
            }
            if let Some(adapter) = state.ahead.pop_front() {
                state.making = true;
                return Some((adapter, false));
            }
            if state.finished {
                return None;
            }
            if state.closed {
                self.runnable.notify_all();
            }
            state = self.aside.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives the variant that was made for `adapter` to the jobs that have waited for it since `until`, or tells them why there is
    /// none. Waits until those of the last one were taken: a variant that is handed over takes memory of its own.
    pub(crate) fn made(&self, adapter: &Scaled, until: Instant, outcome: Result<Arc<Variant>, Refusal>) {
        let mut state = self.lock();
        while state.made.is_some() && !state.finished {
            state = self.aside.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let is_for = |job: &Job| job.queued <= until && job.adapter.as_ref() == Some(adapter);
        let (jobs, others): (VecDeque<Job>, _) = std::mem::take(&mut state.aside).into_iter().partition(is_for);
        state.aside = others;
        state.making = false;
        match outcome {
            Ok(variant) if !jobs.is_empty() => state.made = Some((variant, jobs)),
            Ok(_) => {}
            Err(why) => jobs.into_iter().for_each(|job| job.refuse(why.clone())),
        }
        drop(state);
        self.runnable.notify_all();
    }

    /// How many jobs wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Takes no more jobs; those that wait are still handed out.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.runnable.notify_all();
        self.aside.notify_all();
    }

    /// No worker is left that could set jobs aside.
    pub(crate) fn finish(&self) {
        self.lock().finished = true;
        self.aside.notify_all();
    }

    /// The lists are whole after any panic: jobs are pushed and popped.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use regraft::{Adapter, DType, Digest};

    use super::*;
    use crate::adapters::Opened;

    fn queue(capacity: usize, rows: usize) -> Queue {
        Queue::new(capacity, Grouping { rows, wait: Duration::ZERO })
    }

    fn job(rows: usize, width: usize) -> (Job, oneshot::Receiver<Result<Answer, Refusal>>) {
        let (answer, receiver) = oneshot::channel();
        let inputs = vec![Tensor::zeros(DType::F32, &[rows, width]).unwrap()];
        let now = Instant::now();
        (Job { inputs, adapter: None, queued: now, deadline: now + Duration::from_secs(60), answer }, receiver)
    }

    #[test]
    fn groups_hold_jobs_of_one_width_up_to_the_limit() {
        let queue = queue(16, 4);
        let sizes = [(1, 2), (2, 2), (1, 3), (2, 2), (1, 2)];
        let (jobs, _receivers): (Vec<_>, Vec<_>) = sizes.iter().map(|&(rows, width)| job(rows, width)).unzip();
        jobs.into_iter().for_each(|job| queue.push(job).unwrap());
        let next = || queue.next().unwrap().jobs.iter().map(|job| job.inputs[0].shape().to_vec()).collect::<Vec<_>>();
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
    fn jobs_that_wait_for_a_variant_let_others_pass_and_are_told_together() {
        let queue = queue(8, 1);
        let adapter = |name: &str| {
            let opened = Opened { adapter: Arc::new(Adapter::new(name, vec![])), digest: Digest::of_bytes(b"none") };
            Some(Scaled { opened, scale: 1.0 })
        };
        let asked = [adapter("a"), None, adapter("a"), adapter("b")];
        let mut told: Vec<_> = (asked.into_iter())
            .map(|adapter| {
                let (job, receiver) = job(1, 1);
                queue.push(Job { adapter, ..job }).unwrap();
                receiver
            })
            .collect();
        // A worker that finds no variant.
        let mut plain = 0;
        for _ in 0..4 {
            let jobs = queue.next().unwrap().jobs;
            match &jobs[0].adapter {
                Some(_) => queue.set_aside(jobs),
                None => plain += 1,
            }
        }
        assert_eq!((plain, queue.len()), (1, 3));
        let a = queue.next_aside().unwrap().0;
        queue.made(&a, Instant::now(), Err(Refusal::bad("a cannot be made")));
        let is_told = |receiver: &mut oneshot::Receiver<Result<Answer, Refusal>>| receiver.try_recv().is_ok();
        assert_eq!([is_told(&mut told[0]), is_told(&mut told[2]), is_told(&mut told[3])], [true, true, false]);
        // What was made for those before is not for one that came later.
        let (b, before) = (queue.next_aside().unwrap().0, Instant::now() - Duration::from_secs(60));
        queue.made(&b, before, Err(Refusal::bad("b cannot be made")));
        assert!(!is_told(&mut told[3]) && queue.len() == 1);
        // Jobs come before what nobody waits for.
        queue.make_ahead(vec![a.clone()]);
        assert!(queue.next_aside().unwrap() == (b.clone(), true));
        queue.made(&b, Instant::now(), Err(Refusal::bad("b cannot be made")));
        assert!(is_told(&mut told[3]) && queue.next_aside().unwrap() == (a, false));
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
