use std::collections::BTreeSet;

use regraft_weights::{Constants, Phase, Rename};

/// How a refit treats the weights that it is given. By default all weights must be given, under the engine's names.
///
/// ```
/// # use regraft_runtime::RefitOptions;
/// let options = RefitOptions::new().partial(true).reject_non_finite(true);
/// assert!(options.partial && !options.ignore_unknown);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefitOptions {
    /// Take the keys that are there and keep the other sources; otherwise all must be given.
    pub partial: bool,
    /// Ignore names that the engine does not have; otherwise they are an error.
    pub ignore_unknown: bool,
    /// Refuse infinite values and NaN.
    pub reject_non_finite: bool,
    /// Which of the sources that no state dict contains may be changed.
    pub constants: Constants,
    /// Renames names of the weights before they are matched.
    pub renames: Vec<Rename>,
    /// Which of the given sources differ from what serves.
    pub changed: Changed,
}

impl RefitOptions {
    /// The default.
    pub const fn new() -> Self {
        RefitOptions {
            partial: false,
            ignore_unknown: false,
            reject_non_finite: false,
            constants: Constants::Keep,
            renames: Vec::new(),
            changed: Changed::Detect,
        }
    }

    /// Sets [`RefitOptions::partial`].
    #[must_use]
    pub const fn partial(mut self, partial: bool) -> Self {
        self.partial = partial;
        self
    }

    /// Sets [`RefitOptions::ignore_unknown`].
    #[must_use]
    pub const fn ignore_unknown(mut self, ignores: bool) -> Self {
        self.ignore_unknown = ignores;
        self
    }

    /// Sets [`RefitOptions::reject_non_finite`].
    #[must_use]
    pub const fn reject_non_finite(mut self, rejects: bool) -> Self {
        self.reject_non_finite = rejects;
        self
    }

    /// Sets [`RefitOptions::constants`].
    #[must_use]
    pub fn constants(mut self, constants: Constants) -> Self {
        self.constants = constants;
        self
    }

    /// Sets [`RefitOptions::renames`].
    #[must_use]
    pub fn renames(mut self, renames: impl IntoIterator<Item = Rename>) -> Self {
        self.renames = renames.into_iter().collect();
        self
    }

    /// Sets [`RefitOptions::changed`].
    #[must_use]
    pub fn changed(mut self, changed: Changed) -> Self {
        self.changed = changed;
        self
    }
}

/// Which of the given sources are new, and so which slots are rebuilt.
///
/// ```
/// use regraft_runtime::{Changed, RefitOptions};
///
/// // A caller that knows what it trained saves the comparison.
/// let trained = Changed::Keys(["fc.weight".to_owned(), "fc.bias".to_owned()].into());
/// let options = RefitOptions::new().changed(trained);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Changed {
    /// Find out. A tensor that is the same as before costs one comparison and saves making its slots.
    #[default]
    Detect,
    /// These names are new, whatever they hold; other given tensors are ignored, and those that serve are kept.
    Keys(BTreeSet<String>),
    /// All are new.
    All,
}

/// Watches the progress of a refit. Methods do nothing by default; `()` ignores everything.
///
/// ```
/// use regraft_runtime::{Refit, RefitObserver, RefitOptions};
/// use regraft_weights::Phase;
///
/// struct Progress;
///
/// impl RefitObserver for Progress {
///     fn phase(&self, phase: Phase) {
///         println!("{phase:?}");
///     }
///
///     fn staged(&self, done: usize, total: usize) {
///         println!("{done} of {total} bytes");
///     }
/// }
///
/// # fn f(weights: &regraft_weights::StateDict) {
/// let options = RefitOptions::new();
/// let refit = Refit::new().weights(weights, &options).observe(&Progress);
/// # }
/// ```
pub trait RefitObserver: Sync {
    /// A phase begins.
    fn phase(&self, phase: Phase) {
        let _ = phase;
    }

    /// `done` of `total` bytes of slots are made. Called from several threads, after each slot.
    fn staged(&self, done: usize, total: usize) {
        let _ = (done, total);
    }
}

impl RefitObserver for () {}
