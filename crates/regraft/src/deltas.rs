//! Deltas of weights, applied to what a model serves.

use std::{collections::HashMap, sync::Arc};

use regraft_delta::{Base, Delta};
use regraft_runtime::{Generation, Model, RuntimeError, RuntimeErrorKind};
use regraft_tensor::{DType, Tensor};
use regraft_weights::StateDict;

use crate::Error;

/// The weights that `delta` changes in what `model` serves, for a partial refit. Adapters do not matter: a delta is between
/// weights without them.
///
/// ```no_run
/// use regraft::{Model, ModelExt as _, RefitOptions, delta::Delta};
///
/// let model = Model::load("model.rgf")?;
/// let changes = regraft::apply_delta(&Delta::open("step.rgd")?, &model)?;
/// model.refit(&changes, &RefitOptions::new().partial(true))?;
/// # Ok::<(), regraft::Error>(())
/// ```
///
/// # Errors
/// When the delta was made from other weights, or is damaged; when the model has no weights.
pub fn apply_delta(delta: &Delta, model: &Model) -> Result<StateDict, Error> {
    model.check_file()?;
    let serving = model.generation().ok_or_else(|| RuntimeError::from(RuntimeErrorKind::NotBound))?;
    let map = model.refit_map();
    let shapes = map.sources.iter().map(|source| source.shape.as_slice()).collect();
    Ok(delta.apply(&Serving { serving, names: map.by_name(), shapes })?)
}

/// The sources of a generation under all their names.
struct Serving<'m> {
    serving: Arc<Generation>,
    names: HashMap<&'m str, usize>,
    shapes: Vec<&'m [usize]>,
}

impl Base for Serving<'_> {
    fn tensor(&self, name: &str, dtype: DType) -> Result<Option<Tensor>, String> {
        let Some(&index) = self.names.get(name) else { return Ok(None) };
        let tensor = self.serving.sources[index].tensor().map_err(|error| error.to_string())?;
        let tensor = tensor.ok_or("the model keeps no copy of it")?;
        // A source is kept as it was given, or in the engine's dtype where it is kept in a slot.
        Ok(Some(if tensor.dtype().same_class(dtype) { tensor.cast(dtype) } else { tensor }))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.names.get(name).map(|&index| self.shapes[index].to_vec())
    }
}
