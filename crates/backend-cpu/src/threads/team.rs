//! Threads for many short pieces of work in a row, as the nodes of a run are: they wait for the next piece without sleeping, so that
//! splitting a piece costs less than a microsecond.
//!
//! Who has work to split does a share of it and waits for nobody to come: helpers that are awake join while there is something left.
//! So work is done even where the system gives helpers no time, and a caller whose helpers are busy with the work of another does all
//! of it alone.

use std::{
    any::Any,
    cell::Cell,
    hint, io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a helper looks out for work between runs before it sleeps.
const PATIENCE: Duration = Duration::from_micros(100);

/// The same within a run. Longer than a scheduler needs to see that two threads share a processor while another is idle: it often puts
/// a helper that it wakes on the processor of its caller, and moves it only if it stays awake.
const PATIENCE_IN_RUN: Duration = Duration::from_millis(10);

/// Looks at shared memory between two looks at the clock.
const LOOKS: usize = 64;

/// Looks at helpers that are still at work before the processor is offered to others, such as them.
const IMPATIENT: usize = 1 << 12;

/// In [`Shared::door`]: whether work may be joined. Below it helpers at work are counted; above it is the number of the last helper that
/// may join, and above that the number of the work, which begins again when all have been used.
const OPEN: u64 = 1 << 16;
const LAST: u64 = OPEN << 1;
const WORK: u64 = 1 << 32;
const AT_WORK: u64 = OPEN - 1;

thread_local! {
    /// The team that this thread has work of: what it starts there it does alone.
    static WORKS_FOR: Cell<*const Shared> = const { Cell::new(ptr::null()) };
    /// The team whose run this thread is in.
    static RUNS_ON: Cell<*const Shared> = const { Cell::new(ptr::null()) };
}

/// A share of a piece of work; it is given the number of who does it.
type Share<'a> = &'a (dyn Fn(usize) + Sync);

/// Helpers, and the place where work is handed to them.
#[derive(Debug)]
pub(super) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Whether there is work that helpers may join, and who does it.
    door: AtomicU64,
    /// The work, behind an open door or one with helpers inside.
    work: AtomicPtr<Share<'static>>,
    /// Whether somebody splits work.
    taken: AtomicBool,
    /// Runs that are under way.
    runs: AtomicUsize,
    /// Helpers that sleep, or are about to.
    sleepers: AtomicUsize,
    /// Whether the helpers are to end.
    ends: AtomicBool,
    bed: Mutex<()>,
    bell: Condvar,
    /// What a helper panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Team {
    /// One with `count` members, of whom the caller is one.
    pub(super) fn new(count: usize) -> io::Result<Team> {
        let mut team = Team { shared: Arc::default(), helpers: Vec::new() };
        for i in 1..count {
            let helper = Helper { shared: Arc::clone(&team.shared), number: i, last: 0 };
            let started = thread::Builder::new().name(format!("regraft-{i}")).spawn(move || helper.help());
            team.helpers.push(started?);
        }
        Ok(team)
    }

    /// Whether the calling thread is in a [run](Self::run) on this team, and so in the process that has its threads.
    pub(super) fn is_run_here(&self) -> bool {
        ptr::eq(RUNS_ON.get(), &*self.shared)
    }

    /// Calls `f`, which will have work to [split](Self::split) many times.
    pub(super) fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        let shared = &*self.shared;
        let _running = Running { shared, before: RUNS_ON.replace(shared) };
        shared.runs.fetch_add(1, Ordering::Relaxed);
        shared.wake();
        f()
    }

    /// Calls `share` with 0 here, and with 1 and more on up to `helpers` helpers, each of which always has the same number: what it worked
    /// on before may still be in its caches. All calls have returned when this does.
    pub(super) fn split(&self, helpers: usize, share: impl Fn(usize) + Sync) {
        let shared = &*self.shared;
        // Threads that are in runs of their own are not to be outnumbered by helpers.
        let others = shared.runs.load(Ordering::Relaxed).saturating_sub(1);
        let helpers = helpers.min(self.helpers.len().saturating_sub(others));
        let busy = ptr::eq(WORKS_FOR.get(), shared);
        if helpers == 0 || busy || shared.taken.swap(true, Ordering::Acquire) {
            return share(0);
        }
        let work: Share<'_> = &share;
        let open = Opened::new(shared, &work, helpers);
        share(0);
        if let Some(panic) = open.close() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        self.shared.wake();
        for helper in self.helpers.drain(..) {
            helper.join().expect("helpers catch the panics of the work");
        }
    }
}

/// A run that ends with its scope.
struct Running<'a> {
    shared: &'a Shared,
    before: *const Shared,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.shared.runs.fetch_sub(1, Ordering::Relaxed);
        RUNS_ON.set(self.before);
    }
}

/// Work that helpers may join. When this is dropped, also by a panic, nobody is at work.
struct Opened<'a> {
    shared: &'a Shared,
    before: *const Shared,
}

impl<'a> Opened<'a> {
    /// `shared` has been taken by the caller.
    fn new(shared: &'a Shared, work: &'a Share<'a>, helpers: usize) -> Self {
        shared.work.store(ptr::from_ref(work).cast_mut().cast(), Ordering::Relaxed);
        let work = (shared.door.load(Ordering::Relaxed) / WORK) as u32;
        let door = u64::from(work.wrapping_add(1)) * WORK + helpers as u64 * LAST + OPEN;
        shared.door.store(door, Ordering::SeqCst);
        shared.wake();
        Opened { shared, before: WORKS_FOR.replace(shared) }
    }

    /// What a helper panicked with, once nobody is at work.
    fn close(self) -> Option<Box<dyn Any + Send>> {
        self.wait();
        self.panic()
    }

    fn panic(&self) -> Option<Box<dyn Any + Send>> {
        self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Lets nobody else in, and waits until all have left.
    fn wait(&self) {
        let door = &self.shared.door;
        let mut left = door.fetch_and(!OPEN, Ordering::AcqRel) & AT_WORK;
        for looks in 0.. {
            if left == 0 {
                break;
            }
            if looks < IMPATIENT {
                hint::spin_loop()
            } else {
                thread::yield_now()
            }
            left = door.load(Ordering::Acquire) & AT_WORK;
        }
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.wait();
        WORKS_FOR.set(self.before);
        // If there still is one, the caller panicked as well, and that is what is reported.
        drop(self.panic());
        self.shared.taken.store(false, Ordering::Release);
    }
}

impl Shared {
    /// Wakes helpers that sleep. What they are to see was stored before, in an order that all agree on.
    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
            self.bell.notify_all();
        }
    }
}

/// A helper, on its thread.
struct Helper {
    shared: Arc<Shared>,
    /// From 1 on.
    number: usize,
    /// The work that it did a share of last.
    last: u32,
}

impl Helper {
    /// What it does all its life.
    fn help(mut self) {
        WORKS_FOR.set(&*self.shared);
        while !self.shared.ends.load(Ordering::Relaxed) {
            if !self.await_work() {
                self.sleep();
            }
        }
    }

    /// Whether it may join the work behind the door: it does one share of each.
    fn may_join(&self, door: u64) -> bool {
        door & OPEN != 0 && door % WORK / LAST >= self.number as u64 && (door / WORK) as u32 != self.last
    }

    /// Joins work as long as there is some; whether there was any before patience ended.
    fn await_work(&mut self) -> bool {
        let began = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if self.join() {
                    return true;
                }
                hint::spin_loop();
            }
            let patience = if self.shared.runs.load(Ordering::Relaxed) > 0 { PATIENCE_IN_RUN } else { PATIENCE };
            if began.elapsed() >= patience {
                return false;
            }
        }
    }

    /// Does a share of the work, if there is some.
    fn join(&mut self) -> bool {
        let shared = &*self.shared;
        if !self.may_join(shared.door.load(Ordering::Relaxed)) {
            return false;
        }
        let enters = |door| self.may_join(door).then(|| door + 1);
        let Ok(door) = shared.door.fetch_update(Ordering::Acquire, Ordering::Relaxed, enters) else { return false };
        self.last = (door / WORK) as u32;
        // SAFETY: `Opened::new` has stored a reference before it opened the door; it stays valid until `Opened` is dropped, which waits
        // until this thread has left.
        let share = unsafe { *shared.work.load(Ordering::Relaxed) };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| share(self.number))) {
            _ = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
        shared.door.fetch_sub(1, Ordering::Release);
        true
    }

    /// Sleeps until there may be something to do.
    fn sleep(&self) {
        let shared = &*self.shared;
        let bed = shared.bed.lock().unwrap_or_else(PoisonError::into_inner);
        shared.sleepers.fetch_add(1, Ordering::SeqCst);
        // Who opens the door or begins to end after this has seen a sleeper, and rings when the bed's lock is free: in the sleep.
        let bed = if !self.may_join(shared.door.load(Ordering::SeqCst)) && !shared.ends.load(Ordering::SeqCst) {
            shared.bell.wait(bed).unwrap_or_else(PoisonError::into_inner)
        } else {
            bed
        };
        shared.sleepers.fetch_sub(1, Ordering::SeqCst);
        drop(bed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    /// Splits work until as many take part as there are members, and returns how often each number did a share.
    fn all_take_part(team: &Team, count: usize) -> Vec<usize> {
        let (shares, all) = (Mutex::new(vec![0; count]), Barrier::new(count));
        team.split(count - 1, |number| {
            all.wait();
            shares.lock().unwrap()[number] += 1;
        });
        shares.into_inner().unwrap()
    }

    #[test]
    fn every_member_does_a_share_under_its_own_number() {
        let team = Team::new(4).unwrap();
        for pause in [0, 1] {
            team.run(|| {
                for _ in 0..100 {
                    assert_eq!(all_take_part(&team, 4), [1; 4]);
                }
            });
            // Longer than the helpers' patience.
            thread::sleep(Duration::from_millis(pause));
        }
    }

    #[test]
    fn a_share_that_splits_does_so_alone() {
        let team = Team::new(2).unwrap();
        let both = Barrier::new(2);
        team.run(|| {
            team.split(1, |_| {
                both.wait();
                let here = thread::current().id();
                team.split(1, |number| assert_eq!((number, thread::current().id()), (0, here)));
            });
        });
    }

    #[test]
    fn the_panic_of_a_share_is_that_of_the_split() {
        let team = Team::new(3).unwrap();
        for panics in 0..3 {
            let all = Barrier::new(3);
            let split = || {
                team.split(2, |number| {
                    all.wait();
                    assert!(number != panics, "number {number}");
                });
            };
            let panic = catch_unwind(AssertUnwindSafe(|| team.run(split))).unwrap_err();
            assert!(panic.downcast::<String>().unwrap().contains(&format!("number {panics}")));
            assert!(!team.is_run_here());
            team.run(|| assert_eq!(all_take_part(&team, 3), [1; 3]));
        }
    }

    #[test]
    fn callers_do_not_wait_for_each_other() {
        let team = Team::new(2).unwrap();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let done = AtomicUsize::new(0);
                        team.run(|| team.split(1, |_| _ = done.fetch_add(1, Ordering::Relaxed)));
                        assert!((1..=2).contains(&done.load(Ordering::Relaxed)));
                    }
                });
            }
        });
    }
}
