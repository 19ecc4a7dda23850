use std::sync::Arc;

use regraft_adapter::{Adapter, AdapterSet};
use regraft_backend::Pace;
use regraft_weights::{RefitReport, StateDict};

use super::{RefitObserver, RefitOptions};
use crate::{Model, RuntimeError, RuntimeErrorKind, Staged};

/// Builds a refit: new weights, other adapters, or both in one step, with an observer.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use regraft_runtime::{Model, Refit, RefitOptions};
/// # use regraft_adapter::Adapter;
/// # use regraft_weights::StateDict;
/// # fn f(model: &Model, weights: &StateDict, style: Arc<Adapter>) -> Result<(), regraft_runtime::RuntimeError> {
/// let staged = Refit::new()
///     .weights(weights, &RefitOptions::default())
///     .adapters(&[(style, 0.7)])?
///     .stage(model)?;
/// staged.publish()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Refit<'a> {
    pub(crate) weights: Option<(&'a StateDict, &'a RefitOptions)>,
    /// The adapters from now on; otherwise those of the generation that serves.
    pub(crate) adapters: Option<AdapterSet>,
    /// Infinite values and NaN are refused, in adapters too.
    rejects_non_finite: bool,
    pub(crate) pace: Pace,
    pub(crate) observer: &'a dyn RefitObserver,
}

impl<'a> Refit<'a> {
    /// Changes nothing.
    pub fn new() -> Self {
        Refit { weights: None, adapters: None, rejects_non_finite: false, pace: Pace::Fast, observer: &() }
    }

    /// Brings weights.
    pub fn weights(self, weights: &'a StateDict, options: &'a RefitOptions) -> Self {
        Refit { weights: Some((weights, options)), ..self }
    }

    /// Serves these adapters, with these scales, and no others. The order does not matter.
    ///
    /// # Errors
    /// [`RuntimeErrorKind::AdapterTwice`] when two have one name.
    pub fn adapters(self, adapters: &[(Arc<Adapter>, f64)]) -> Result<Self, RuntimeError> {
        let adapters = AdapterSet::new(adapters.iter().cloned()).map_err(RuntimeErrorKind::AdapterTwice)?;
        Ok(Refit { adapters: Some(adapters), ..self })
    }

    /// Refuses infinite values and NaN in adapters; those of weights are refused by [`RefitOptions::reject_non_finite`], which
    /// does both.
    #[must_use]
    pub fn reject_non_finite(self, rejects: bool) -> Self {
        Refit { rejects_non_finite: rejects, ..self }
    }

    pub(crate) fn rejects_non_finite(&self) -> bool {
        self.rejects_non_finite || self.weights.is_some_and(|(_, options)| options.reject_non_finite)
    }

    /// How much of the machine making slots may use beside runs. In the [background](Pace::Background) slots are made on the
    /// calling thread, and on the other threads of its rayon pool if it is in one; such threads usually have low priority. On a
    /// GPU they use a small part of the device.
    #[must_use]
    pub fn pace(self, pace: Pace) -> Self {
        Refit { pace, ..self }
    }

    /// Reports progress to `observer`.
    pub fn observe(self, observer: &'a dyn RefitObserver) -> Self {
        Refit { observer, ..self }
    }

    /// Checks everything and computes a new generation, which does not serve yet.
    ///
    /// # Errors
    /// Every reason why the weights do not fit, at once; the serving generation is untouched.
    pub fn stage(&self, model: &Model) -> Result<Staged, RuntimeError> {
        model.stage_refit(self)
    }

    /// Stages and publishes: all or nothing. When another refit comes first, this one is staged again on top of it.
    ///
    /// # Errors
    /// As [`Refit::stage`].
    pub fn run(&self, model: &Model) -> Result<RefitReport, RuntimeError> {
        loop {
            match self.stage(model)?.publish() {
                Err(error) if matches!(error.kind(), RuntimeErrorKind::Stale) => {}
                outcome => return outcome,
            }
        }
    }
}

impl Default for Refit<'_> {
    fn default() -> Self {
        Refit::new()
    }
}
