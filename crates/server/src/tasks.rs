//! Tasks of connections: tokio's threads poll them, or the thread that wakes them, where it says that it has the time.
//!
//! A request's task is woken by the worker that has its answer. A worker that would only wait for the next request polls the task
//! itself, and so writes the answer: another thread would have to wake up first, which takes longer than all the rest.

use std::{
    cell::RefCell,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use tokio::runtime::Handle;

/// Starts tasks, on the threads of a runtime.
#[derive(Clone, Debug)]
pub(crate) struct Tasks(Handle);

impl Tasks {
    pub(crate) fn new(runtime: &Handle) -> Tasks {
        Tasks(runtime.clone())
    }

    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let future: Polled = Box::pin(future);
        let (future, state) = (Mutex::new(Some(future)), AtomicU8::new(READY));
        Arc::new(Task { future, state, runtime: self.0.clone() }).hand_over();
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, future: F) {
        self.spawn(future);
    }
}

/// Tasks that one call of [`poll_woken`] polls: that of a request over HTTP/2, and that of its connection, and some to spare.
const OWN: usize = 4;

thread_local! {
    /// Tasks that this thread has woken and is going to poll, while it does that.
    static WOKEN: RefCell<Option<VecDeque<Arc<Task>>>> = const { RefCell::new(None) };
}

/// Does `work`, and then polls the tasks that it woke on this thread, and those that these wake, as far as they are few. None is
/// polled here twice, so that no connection, whatever its client sends, keeps this thread.
pub(crate) fn poll_woken(work: impl FnOnce()) {
    WOKEN.set(Some(VecDeque::new()));
    work();
    let next = || WOKEN.with_borrow_mut(|woken| woken.as_mut().and_then(VecDeque::pop_front));
    for _ in 0..OWN {
        let Some(task) = next() else { break };
        task.poll();
    }
    WOKEN.take().into_iter().flatten().for_each(Task::hand_over);
}

/// It waits to be woken.
const IDLE: u8 = 0;
/// It was woken, and will be polled.
const READY: u8 = 1;
/// It is being polled, or is over.
const POLLED: u8 = 2;
/// It was woken while it was being polled.
const AGAIN: u8 = 3;

type Polled = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Task {
    /// Nothing once it is over.
    future: Mutex<Option<Polled>>,
    state: AtomicU8,
    runtime: Handle,
}

impl Task {
    /// Lets the runtime poll it. Where that has ended, so has the task.
    fn hand_over(self: Arc<Self>) {
        let runtime = self.runtime.clone();
        runtime.spawn(async move { self.poll() });
    }

    fn poll(self: Arc<Self>) {
        self.state.store(POLLED, Ordering::Release);
        let waker = Waker::from(self.clone());
        let mut future = self.future.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(polled) = future.as_mut() else { return };
        // For timers; a worker's thread is none of the runtime's.
        let _inside = self.runtime.enter();
        // A panic is a bug, and was told; it ends this task alone.
        let outcome = catch_unwind(AssertUnwindSafe(|| polled.as_mut().poll(&mut Context::from_waker(&waker))));
        if !matches!(outcome, Ok(Poll::Pending)) {
            *future = None;
            return;
        }
        drop(future);
        if self.state.compare_exchange(POLLED, IDLE, Ordering::AcqRel, Ordering::Acquire).is_err() {
            self.state.store(READY, Ordering::Release);
            self.clone().hand_over();
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let next = |state| match state {
            IDLE => Some(READY),
            POLLED => Some(AGAIN),
            _ => None,
        };
        if self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, next) != Ok(IDLE) {
            return;
        }
        let left = WOKEN.with_borrow_mut(|woken| match woken {
            Some(woken) => {
                woken.push_back(self);
                None
            }
            None => Some(self),
        });
        left.into_iter().for_each(Task::hand_over);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::mpsc,
        thread::{self, ThreadId},
    };

    use tokio::sync::oneshot;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    #[test]
    fn the_thread_that_wakes_a_task_polls_it_where_it_says_so() {
        let runtime = runtime();
        let tasks = Tasks::new(runtime.handle());
        let ask = |is_own: bool| -> ThreadId {
            let ((tell, told), (wake, woken)) = (mpsc::channel(), oneshot::channel::<()>());
            let (began, begun) = mpsc::channel();
            tasks.spawn(async move {
                began.send(()).unwrap();
                woken.await.unwrap();
                let thread = thread::current().id();
                // Timers are there on each.
                tokio::time::sleep(std::time::Duration::ZERO).await;
                tell.send(thread).unwrap();
            });
            begun.recv().unwrap();
            thread::sleep(std::time::Duration::from_millis(20));
            match is_own {
                true => poll_woken(|| wake.send(()).unwrap()),
                false => wake.send(()).unwrap(),
            }
            told.recv().unwrap()
        };
        assert_eq!(ask(true), thread::current().id());
        assert_ne!(ask(false), thread::current().id());
    }

    #[test]
    fn a_task_that_wakes_itself_goes_on_elsewhere_and_one_that_panics_ends() {
        let runtime = runtime();
        let tasks = Tasks::new(runtime.handle());
        let (wake, woken) = oneshot::channel::<()>();
        let (tell, told) = mpsc::channel();
        let mut woken = Box::pin(woken);
        let mut polls = 0;
        tasks.spawn(poll_fn(move |context| {
            polls += usize::from(polls > 0 || woken.as_mut().poll(context).is_ready());
            if polls > 0 {
                tell.send(thread::current().id()).unwrap();
                context.waker().wake_by_ref();
            }
            assert!(polls < 1000, "a bug");
            Poll::Pending
        }));
        thread::sleep(std::time::Duration::from_millis(20));
        poll_woken(|| wake.send(()).unwrap());
        let ids: Vec<ThreadId> = told.iter().collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().skip(1).all(|id| *id != thread::current().id()));
    }
}
