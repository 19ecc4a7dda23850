use std::sync::Arc;

use regraft_adapter::Adapter;
use regraft_weights::RefitReport;

use crate::{Model, Refit, RuntimeError};

/// The adapters of a model: see [`Model::adapters`].
///
/// Adapters are applied from the pristine sources on the way to the slots. Setting others rebuilds only the slots of the
/// layers that either touches, and removing all of them restores the original bits. A refit of the weights keeps them.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use regraft_adapter::Adapter;
/// # use regraft_runtime::{Model, RuntimeError};
/// # fn f(model: &Model, ink: Arc<Adapter>, oil: Arc<Adapter>) -> Result<(), RuntimeError> {
/// model.adapters().set(&[(ink, 0.7), (oil, 0.3)])?;
/// for (adapter, scale) in model.adapters().active() {
///     println!("{} at {scale}", adapter.name);
/// }
/// model.adapters().clear()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Adapters<'a> {
    model: &'a Model,
}

impl<'a> Adapters<'a> {
    pub(crate) fn new(model: &'a Model) -> Self {
        Adapters { model }
    }

    /// The adapters of the serving generation with their scales, by name.
    pub fn active(&self) -> Vec<(Arc<Adapter>, f64)> {
        let generation = self.model.generation();
        generation.iter().flat_map(|g| g.adapters.iter()).map(|(adapter, scale)| (adapter.clone(), scale)).collect()
    }

    /// Serves these adapters, with these scales, and no others. The order does not matter. [`Refit`] does the same in steps,
    /// or together with new weights.
    ///
    /// # Errors
    /// When two have one name, the engine is frozen or not bound, or the sources of a layer are not available; nothing has
    /// changed then.
    pub fn set(&self, adapters: &[(Arc<Adapter>, f64)]) -> Result<RefitReport, RuntimeError> {
        Refit::new().adapters(adapters)?.run(self.model)
    }

    /// Serves no adapters.
    ///
    /// # Errors
    /// As [`Adapters::set`].
    pub fn clear(&self) -> Result<RefitReport, RuntimeError> {
        self.set(&[])
    }
}
