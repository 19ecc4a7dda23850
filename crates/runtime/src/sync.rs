//! The shared state that publication is made of. Tests of this crate swap it for one whose every step is scheduled by the
//! model checker, so that what is checked is the code that ships.

#[cfg(not(test))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

#[cfg(test)]
pub(crate) use shuttle::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use std::sync::Arc;

/// A pointer that is read and replaced in one step each.
#[cfg(not(test))]
pub(crate) struct ArcCell<T>(arc_swap::ArcSwapOption<T>);

#[cfg(not(test))]
impl<T> ArcCell<T> {
    pub(crate) fn new(value: Option<Arc<T>>) -> Self {
        ArcCell(value.into())
    }

    pub(crate) fn load(&self) -> Option<Arc<T>> {
        self.0.load_full()
    }

    pub(crate) fn swap(&self, value: Option<Arc<T>>) -> Option<Arc<T>> {
        self.0.swap(value)
    }
}

#[cfg(test)]
pub(crate) struct ArcCell<T>(Mutex<Option<Arc<T>>>);

#[cfg(test)]
impl<T> ArcCell<T> {
    pub(crate) fn new(value: Option<Arc<T>>) -> Self {
        ArcCell(Mutex::new(value))
    }

    pub(crate) fn load(&self) -> Option<Arc<T>> {
        lock(&self.0).clone()
    }

    pub(crate) fn swap(&self, value: Option<Arc<T>>) -> Option<Arc<T>> {
        std::mem::replace(&mut *lock(&self.0), value)
    }
}

/// The data behind these locks is whole after any panic: lists and pointers that are replaced in one step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
