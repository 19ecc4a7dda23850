use std::{mem::ManuallyDrop, process, sync::OnceLock};

/// A value that each process has of its own: after a fork, the child makes another when it first asks.
///
/// For things that a child does not inherit, such as threads. The parent's value is neither used nor dropped there.
#[derive(Debug)]
pub struct PerProcess<T> {
    process: u32,
    value: OnceLock<T>,
    /// Of a child, and of its children after it.
    next: OnceLock<Box<PerProcess<T>>>,
}

impl<T> PerProcess<T> {
    /// No value yet.
    pub fn new() -> Self {
        PerProcess { process: process::id(), value: OnceLock::new(), next: OnceLock::new() }
    }

    /// This process's value; `make` makes it where there is none. What is being made in the parent while it forks is made
    /// again in the child.
    pub fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        self.of(process::id()).value.get_or_init(make)
    }

    /// The value that was made by this process or, before the fork, by an ancestor.
    pub fn get_inherited(&self) -> Option<&T> {
        self.value.get().or_else(|| self.next.get()?.get_inherited())
    }

    fn of(&self, process: u32) -> &PerProcess<T> {
        let mut at = self;
        while at.process != process {
            at =
                at.next.get_or_init(|| Box::new(PerProcess { process, value: OnceLock::new(), next: OnceLock::new() }));
        }
        at
    }
}

impl<T> Default for PerProcess<T> {
    fn default() -> Self {
        PerProcess::new()
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        if self.process != process::id()
            && let Some(value) = self.value.take()
        {
            // Dropping it might wait for threads that are not here.
            let _ = ManuallyDrop::new(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_makes_one_value() {
        let value = PerProcess::new();
        assert_eq!(value.get_inherited(), None);
        let own = value.get_or_init(|| 1);
        assert_eq!((own, value.get_or_init(|| 2)), (&1, &1));
        // As a child's, whose number is another.
        let child = value.of(process::id() + 1);
        assert_eq!(child.value.get_or_init(|| 3), &3);
        assert_eq!((value.get_or_init(|| 4), value.of(process::id() + 1).value.get()), (&1, Some(&3)));
    }
}
