//! Publication: which generation serves, and how that changes while runs go on.
//!
//! Runs read one pointer and hold what they got; nothing they do waits for a refit. Everything that replaces the pointer
//! holds `previous`, so that a check of what serves and its replacement are one step for all other writers.

use std::sync::Arc;

use crate::sync::{ArcCell, AtomicUsize, Mutex, MutexGuard, Ordering, lock};

/// The serving generation of a model, and the one before where it is kept.
pub(crate) struct Serving<T> {
    current: ArcCell<T>,
    previous: Mutex<Option<Arc<T>>>,
    /// Counts beginnings and ends of refits in place: while it is odd, `current` is empty because of one.
    in_place: AtomicUsize,
}

/// A generation to be published in place of the one it was made from.
pub(crate) struct Next<T> {
    /// What serves now; `None` when nothing does.
    pub(crate) base: Option<Arc<T>>,
    pub(crate) generation: Arc<T>,
    /// Whether `base` is kept for [`Serving::rollback`].
    pub(crate) keep_base: bool,
}

/// Another generation serves than the one that a change was made from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stale;

/// Why nothing serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Empty {
    /// Nothing does until weights are bound.
    NotBound,
    /// Nothing does until a refit in place is done.
    ChangingInPlace,
}

/// There is no generation to go back to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoPrevious;

impl<T> Serving<T> {
    pub(crate) fn new(first: Option<Arc<T>>) -> Self {
        Serving { current: ArcCell::new(first), previous: Mutex::new(None), in_place: AtomicUsize::new(0) }
    }

    /// What a run that starts now sees from start to end.
    pub(crate) fn load(&self) -> Option<Arc<T>> {
        self.current.load()
    }

    /// As [`Serving::load`], and why nothing serves where nothing does.
    pub(crate) fn pin(&self) -> Result<Arc<T>, Empty> {
        let before = self.in_place.load(Ordering::SeqCst);
        self.load().ok_or_else(|| {
            // A refit in place may have begun or ended since the count was read.
            let unchanged = before == self.in_place.load(Ordering::SeqCst);
            if unchanged && before.is_multiple_of(2) { Empty::NotBound } else { Empty::ChangingInPlace }
        })
    }

    /// Replaces what serves. What nothing needs any more is returned, so that the caller drops it outside of all locks.
    pub(crate) fn publish(&self, next: Next<T>) -> Result<Retired<T>, Stale> {
        let mut previous = lock(&self.previous);
        self.check(next.base.as_ref())?;
        Ok(self.replace(&mut previous, next))
    }

    /// Replaces what serves in several models: in all of them, or in none when one has changed since. Each model changes in
    /// one step; between the first and the last step others may see some of them changed.
    pub(crate) fn publish_together(all: Vec<(&Self, Next<T>)>) -> Result<Vec<Retired<T>>, Stale> {
        // Locks are taken in the order of addresses, so that two such calls do not wait for each other.
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by_key(|&i| std::ptr::from_ref(all[i].0).addr());
        if order.windows(2).any(|pair| std::ptr::eq(all[pair[0]].0, all[pair[1]].0)) {
            return Err(Stale);
        }
        let mut guards: Vec<Option<MutexGuard<'_, Option<Arc<T>>>>> = all.iter().map(|_| None).collect();
        for i in order {
            guards[i] = Some(lock(&all[i].0.previous));
        }
        all.iter().try_for_each(|(serving, next)| serving.check(next.base.as_ref()))?;
        let replaced = all.into_iter().zip(guards.iter_mut().flatten());
        Ok(replaced.map(|((serving, next), previous)| serving.replace(previous, next)).collect())
    }

    /// Publishes the generation before the serving one again, which takes its place as the one before.
    pub(crate) fn rollback(&self) -> Result<(), NoPrevious> {
        let mut previous = lock(&self.previous);
        let before = previous.take().ok_or(NoPrevious)?;
        *previous = self.current.swap(Some(before));
        Ok(())
    }

    /// Takes what serves out, so that its memory can be used for what comes next. Until [`InPlace::finish`] nothing serves,
    /// and other writers wait.
    pub(crate) fn take_out(&self, base: &Arc<T>) -> Result<InPlace<'_, T>, Stale> {
        let mut previous = lock(&self.previous);
        self.check(Some(base))?;
        self.in_place.fetch_add(1, Ordering::SeqCst);
        *previous = None;
        drop(self.current.swap(None));
        Ok(InPlace { serving: self, _previous: previous })
    }

    fn check(&self, base: Option<&Arc<T>>) -> Result<(), Stale> {
        let same = match (self.current.load(), base) {
            (Some(serving), Some(base)) => Arc::ptr_eq(&serving, base),
            (None, None) => true,
            _ => false,
        };
        if same { Ok(()) } else { Err(Stale) }
    }

    fn replace(&self, previous: &mut Option<Arc<T>>, next: Next<T>) -> Retired<T> {
        let replaced = self.current.swap(Some(next.generation));
        let kept = if next.keep_base { replaced.clone() } else { None };
        let before = std::mem::replace(previous, kept);
        Retired { _generations: [replaced, next.base, before] }
    }
}

/// Generations that a model no longer serves; runs may still hold them. Dropping this frees those that nothing holds.
pub(crate) struct Retired<T> {
    _generations: [Option<Arc<T>>; 3],
}

/// A refit in place: while this is held, nothing serves.
pub(crate) struct InPlace<'a, T> {
    serving: &'a Serving<T>,
    _previous: MutexGuard<'a, Option<Arc<T>>>,
}

impl<T> InPlace<'_, T> {
    /// Serves `next` from now on.
    pub(crate) fn finish(self, next: Arc<T>) {
        self.serving.current.swap(Some(next));
    }
}

impl<T> Drop for InPlace<'_, T> {
    fn drop(&mut self) {
        self.serving.in_place.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
