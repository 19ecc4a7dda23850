//! Files and names for models, where the runtime has engines and positions.

use std::{ops::Index, path::Path, sync::Arc};

use regraft_backend::Device;
use regraft_engine::{Engine, KeepSources, Mode};
use regraft_ir::Graph;
use regraft_runtime::Model;
use regraft_tensor::Tensor;

use crate::{Error, Threads, cpu};

/// A model of `engine` on a device. Sources kept by reference are found in every weight file that
/// [`open_weights`](crate::open_weights) reads.
///
/// ```
/// # use regraft::{Compiler, Threads};
/// # let path = "../conformance/fixtures/mlp_gelu.pt2";
/// let engine = Compiler::new().compile(path)?.engine;
/// let model = regraft::model(engine, regraft::cpu(Threads::Auto))?;
/// println!("{model:?}");
/// # Ok::<(), regraft::Error>(())
/// ```
///
/// # Errors
/// When the engine was built for another machine or is malformed.
pub fn model(engine: Engine, device: Arc<dyn Device>) -> Result<Model, Error> {
    Ok(Model::new(engine, device, Arc::new(|path: &Path| Ok(crate::open_weights(path)?)))?)
}

/// Files and names for a [`Model`], which itself takes engines, and tensors by position.
///
/// ```
/// use regraft::{Model, ModelExt as _, Tensor};
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("model.rgf");
/// # regraft::Compiler::new().compile("../conformance/fixtures/mlp_gelu.pt2")?.engine.write(&path)?;
/// let model = Model::load(&path)?;
/// let (input, output) = (model.input_names()[0], model.output_names()[0]);
/// let outputs = model.run_named([(input, Tensor::from_slice(&[3, 10], &[0.5f32; 30]))])?;
/// println!("{:?}", outputs[output].shape());
/// model.save(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait ModelExt: Sized {
    /// Loads an engine file for the CPU of this machine, with one thread per core for runs. Weights are mapped and checked for
    /// damage in the background; the first run or refit waits for that (see [`Model::check_file`]).
    ///
    /// # Errors
    /// When the file is damaged, of another version, or built for another machine.
    fn load(engine: impl AsRef<Path>) -> Result<Self, Error>;

    /// As [`ModelExt::load`], for a device: see [`cpu`] and [`device`](crate::device).
    ///
    /// # Errors
    /// As [`ModelExt::load`].
    fn load_on(engine: impl AsRef<Path>, device: Arc<dyn Device>) -> Result<Self, Error>;

    /// Saves a refittable engine with the weights that serve, which holds each source once. Returns the bytes written.
    ///
    /// # Errors
    /// When there are no weights yet, the engine is frozen, or the file cannot be written; what was there is kept then.
    fn save(&self, path: impl AsRef<Path>) -> Result<u64, Error>;

    /// As [`ModelExt::save`], as another mode; `keep` says how a refittable engine keeps its sources.
    ///
    /// # Errors
    /// As [`ModelExt::save`]; also when the mode does not fit.
    fn save_as(&self, path: impl AsRef<Path>, mode: Mode, keep: KeepSources) -> Result<u64, Error>;

    /// Names of the inputs, in the program's order.
    fn input_names(&self) -> Vec<&str>;

    /// Names of the outputs, in the program's order.
    fn output_names(&self) -> Vec<&str>;

    /// Runs the program once on inputs by name, in any order.
    ///
    /// # Errors
    /// [`Error::Inputs`] with every name that is missing, unknown or given twice; as [`Model::run`].
    fn run_named<'a>(&self, inputs: impl IntoIterator<Item = (&'a str, Tensor)>) -> Result<Outputs, Error>;
}

impl ModelExt for Model {
    fn load(engine: impl AsRef<Path>) -> Result<Self, Error> {
        Self::load_on(engine, cpu(Threads::Auto))
    }

    fn load_on(engine: impl AsRef<Path>, device: Arc<dyn Device>) -> Result<Self, Error> {
        model(Engine::open(engine)?, device)
    }

    fn save(&self, path: impl AsRef<Path>) -> Result<u64, Error> {
        self.save_as(path, Mode::Refittable, KeepSources::Embedded)
    }

    fn save_as(&self, path: impl AsRef<Path>, mode: Mode, keep: KeepSources) -> Result<u64, Error> {
        Ok(self.to_engine(mode, keep)?.write(path)?)
    }

    fn input_names(&self) -> Vec<&str> {
        self.plan().graph.inputs.iter().map(|input| &*input.name).collect()
    }

    fn output_names(&self) -> Vec<&str> {
        self.plan().graph.outputs.iter().map(|output| &*output.name).collect()
    }

    fn run_named<'a>(&self, inputs: impl IntoIterator<Item = (&'a str, Tensor)>) -> Result<Outputs, Error> {
        let inputs = in_order(&self.plan().graph, inputs)?;
        let tensors = self.run(&inputs)?;
        let names = self.output_names().into_iter().map(String::from);
        Ok(Outputs(names.zip(tensors).collect()))
    }
}

/// The outputs of a run by name, in the program's order: see [`ModelExt::run_named`].
///
/// ```
/// # fn print(outputs: &regraft::Outputs) {
/// for (name, tensor) in outputs {
///     println!("{name}: {:?}", tensor.shape());
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Outputs(Vec<(String, Tensor)>);

impl Outputs {
    /// The output called `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.iter().find(|(known, _)| *known == name).map(|(_, tensor)| tensor)
    }

    /// All outputs with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Number of outputs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Index<&str> for Outputs {
    type Output = Tensor;

    /// # Panics
    /// When there is no such output: see [`Outputs::get`].
    fn index(&self, name: &str) -> &Tensor {
        self.get(name).unwrap_or_else(|| panic!("there is no output `{name}`"))
    }
}

impl<'a> IntoIterator for &'a Outputs {
    type Item = (&'a str, &'a Tensor);
    type IntoIter = Box<dyn Iterator<Item = Self::Item> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl IntoIterator for Outputs {
    type Item = (String, Tensor);
    type IntoIter = std::vec::IntoIter<(String, Tensor)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Inputs by name that are not the ones the program takes.
///
/// ```
/// use regraft::{Compiler, Error, ModelExt as _};
///
/// # let path = "../conformance/fixtures/mlp_gelu.pt2";
/// let model = Compiler::new().compile(path)?.into_model()?;
/// assert!(matches!(model.run_named([]), Err(Error::Inputs(_))));
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the inputs do not fit: {}; the program takes {}", .problems.join(", "), .takes.join(", "))]
pub struct InputsError {
    problems: Vec<String>,
    takes: Vec<String>,
}

/// Inputs in the program's order.
fn in_order<'a>(graph: &Graph, given: impl IntoIterator<Item = (&'a str, Tensor)>) -> Result<Vec<Tensor>, InputsError> {
    let mut found: Vec<Option<Tensor>> = vec![None; graph.inputs.len()];
    let mut problems = Vec::new();
    for (name, tensor) in given {
        match graph.inputs.iter().position(|input| *input.name == *name) {
            Some(place) if found[place].is_none() => found[place] = Some(tensor),
            Some(_) => problems.push(format!("`{name}` is given twice")),
            None => problems.push(format!("`{name}` is unknown")),
        }
    }
    for (input, found) in graph.inputs.iter().zip(&found) {
        if found.is_none() {
            problems.push(format!("`{}` is missing", input.name));
        }
    }
    if problems.is_empty() {
        Ok(found.into_iter().flatten().collect())
    } else {
        Err(InputsError { problems, takes: graph.inputs.iter().map(|i| format!("`{}`", i.name)).collect() })
    }
}
