use std::sync::Arc;

use regraft_weights::{
    RefitReport,
    adapter::{Adapter, AdapterSet},
};

use crate::{Model, RefitObserver, RuntimeError, RuntimeErrorKind, Staged, refit::Request};

/// The adapters of a model: see [`Model::adapters`].
///
/// Adapters are applied from the pristine sources on the way to the slots. Setting others makes anew only the slots of the
/// layers that either touches, and taking all away leaves the bits of the first day. A refit of the weights keeps them.
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

    /// Serves these adapters, with these scales, and no others. The order does not matter.
    ///
    /// # Errors
    /// When two have one name, the engine is frozen or not bound, or the sources of a layer are not at hand; nothing has
    /// changed then.
    pub fn set(&self, adapters: &[(Arc<Adapter>, f64)]) -> Result<RefitReport, RuntimeError> {
        self.model.refit_request(&self.request(adapters, &())?)
    }

    /// Serves no adapters.
    ///
    /// # Errors
    /// As [`Adapters::set`].
    pub fn clear(&self) -> Result<RefitReport, RuntimeError> {
        self.set(&[])
    }

    /// Computes what [`Adapters::set`] would serve, to be published later.
    ///
    /// # Errors
    /// As [`Adapters::set`].
    pub fn stage(
        &self,
        adapters: &[(Arc<Adapter>, f64)],
        observer: &dyn RefitObserver,
    ) -> Result<Staged, RuntimeError> {
        self.model.stage_request(&self.request(adapters, observer)?)
    }

    fn request<'r>(
        &self,
        adapters: &[(Arc<Adapter>, f64)],
        observer: &'r dyn RefitObserver,
    ) -> Result<Request<'r>, RuntimeError> {
        self.model.check_refittable()?;
        self.model.pin()?;
        let adapters = AdapterSet::new(adapters.iter().cloned()).map_err(RuntimeErrorKind::AdapterTwice)?;
        Ok(Request { weights: None, adapters: Some(adapters), observer })
    }
}
