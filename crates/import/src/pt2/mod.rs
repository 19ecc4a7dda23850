//! `.pt2` archives: programs that `torch.export.save` wrote.
//!
//! [`Pt2Archive::open`] maps the file and returns it checked and typed:
//!
//! - [`archive`]: the zip container, with every used entry verified by its CRC-32;
//! - [`schema`]: the program, as its JSON has it;
//! - [`symbols`]: symbolic sizes as [`regraft_tensor::Dim`];
//! - [`spec`]: names for the flattened inputs and outputs;
//! - [`weights`]: parameters, buffers and constants as tensors over the mapped file;
//! - [`import`]: the translation of the program into a graph of the IR.
//!
//! [`read_pt2_weights`] reads the state dict alone.

pub mod archive;
mod args;
pub mod import;
mod ops;
pub mod schema;
pub mod spec;
pub mod symbols;
pub mod weights;

use std::path::{Path, PathBuf};

use regraft_tensor::{DType, Dim};
use regraft_weights::StateDict;
use serde::Deserialize;

use crate::{At, ImportError, ImportErrorKind};
use archive::Archive;
use schema::{ExportedProgram, Graph, InputSpec, SchemaVersion, TensorMeta};
use spec::CallSpec;
use symbols::{SymbolProblem, SymbolTable};
use weights::{Values, Weights};

/// A checked and typed `.pt2` archive.
#[derive(Debug)]
pub struct Pt2Archive {
    /// The file.
    pub path: PathBuf,
    /// The model's name in the archive, mostly `model`.
    pub model: String,
    /// The program.
    pub program: ExportedProgram,
    /// Its symbols.
    pub symbols: SymbolTable,
    /// How it is called.
    pub call: CallSpec,
    /// Its parameters, buffers and constants.
    pub weights: Weights,
}

/// Dtype and shape of a tensor of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<Dim>,
}

impl Pt2Archive {
    /// Opens the archive at `path` and reads its only model, or the one called `model`.
    ///
    /// # Errors
    /// When the file is not a sound archive of a supported version, when the program does not follow its schema, or when
    /// weights are missing or damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ImportError> {
        Pt2Archive::read(path.as_ref(), Values::Read)
    }

    /// [`Pt2Archive::open`] without the values of the weights: what the archive holds of them is not looked at. Which of them
    /// are tied is known.
    ///
    /// # Errors
    /// As [`Pt2Archive::open`].
    pub fn open_program(path: impl AsRef<Path>) -> Result<Self, ImportError> {
        Pt2Archive::read(path.as_ref(), Values::Skip)
    }

    fn read(path: &Path, values: Values) -> Result<Self, ImportError> {
        let archive = Archive::open(path)?;
        let (model, program) = read_model(&archive)?;
        let symbols = SymbolTable::collect(&program).map_err(|p| symbol_error(path, p))?;
        let call = CallSpec::of(&program);
        let weights = Weights::load(&archive, &model, &program, values)?;
        Ok(Pt2Archive { path: path.to_path_buf(), model, program, symbols, call, weights })
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.program.graph_module.graph
    }

    /// The inputs that the caller gives, or gave as constants, with their names: `(name, spec)` in order.
    pub fn user_inputs(&self) -> impl Iterator<Item = (&str, &InputSpec)> {
        let specs = self.program.graph_module.signature.input_specs.iter();
        let user = specs.filter(|spec| matches!(spec, InputSpec::UserInput(_) | InputSpec::ConstantInput(_)));
        self.call.input_names.iter().map(String::as_str).zip(user)
    }

    /// Dtype and shape of a tensor of `graph`, which is this program's or one inside of it.
    ///
    /// # Errors
    /// An unknown name, a dtype that Regraft has not, or a size that is not an integer expression.
    pub fn tensor_type(&self, graph: &Graph, name: &str) -> Result<TensorType, ImportError> {
        let Some(meta) = graph.tensor_values.get(name) else {
            return Err(self.schema_error(name, "the graph has no tensor of this name"));
        };
        let dtype = meta.dtype.dtype().ok_or_else(|| {
            ImportError::new(
                &self.path,
                ImportErrorKind::Unsupported {
                    at: name.into(),
                    what: format!("the dtype {:?}", meta.dtype),
                    help: "convert the model to a dtype that Regraft has before exporting it".to_owned(),
                },
            )
        })?;
        Ok(TensorType { dtype, shape: self.shape(name, meta)? })
    }

    /// The shape that `meta` says of the tensor `name`.
    fn shape(&self, name: &str, meta: &TensorMeta) -> Result<Vec<Dim>, ImportError> {
        let shape = meta.sizes.iter().map(|size| self.symbols.dim(size)).collect::<Result<_, _>>();
        shape.map_err(|p| symbol_error(&self.path, SymbolProblem { at: name.to_owned(), ..p }))
    }

    /// The value of a symbolic integer of `graph`.
    ///
    /// # Errors
    /// An unknown name, or a value that is not an integer expression.
    pub fn sym_int(&self, graph: &Graph, name: &str) -> Result<Dim, ImportError> {
        let Some(value) = graph.sym_int_values.get(name) else {
            return Err(self.schema_error(name, "the graph has no symbolic integer of this name"));
        };
        self.symbols.dim(value).map_err(|p| symbol_error(&self.path, SymbolProblem { at: name.to_owned(), ..p }))
    }

    /// An error about the program at the node or value `at`.
    pub fn schema_error(&self, at: impl Into<At>, problem: impl Into<String>) -> ImportError {
        let entry = format!("models/{}.json", self.model);
        ImportError::new(&self.path, schema_kind(entry, at.into(), problem.into()))
    }
}

/// Reads the tensors of the state dict in the `.pt2` file at `path`: parameters and persistent buffers by their fully
/// qualified names, tied ones under each of their names. What the program does with them does not matter.
///
/// # Errors
/// When the file is damaged or malformed, or was saved without its weights.
pub fn read_pt2_weights(path: impl AsRef<Path>) -> Result<StateDict, ImportError> {
    let path = path.as_ref();
    let archive = Archive::open(path)?;
    let (model, program) = read_model(&archive)?;
    Weights::load(&archive, &model, &program, Values::Read)?
        .into_state_dict()
        .map_err(|missing| ImportError::new(path, ImportErrorKind::Weights(missing)))
}

/// The name of the model in the archive, and its program.
fn read_model(archive: &Archive) -> Result<(String, ExportedProgram), ImportError> {
    let model = archive.model_name()?.to_owned();
    let entry = format!("models/{model}.json");
    let program = read_program(archive, &entry)?;
    check_signature(archive, &entry, &program)?;
    Ok((model, program))
}

fn read_program(archive: &Archive, entry: &str) -> Result<ExportedProgram, ImportError> {
    #[derive(Deserialize)]
    struct Version {
        schema_version: SchemaVersion,
    }
    let text = archive.text(entry)?.ok_or_else(|| archive.error(entry, "it is missing", "save the program again"))?;
    let program = schema::from_json::<ExportedProgram>(&text);
    // A program of another version most likely does not parse; the version is then the better message.
    let version = match &program {
        Ok(program) => Some(program.schema_version),
        Err(_) => schema::from_json::<Version>(&text).ok().map(|v| v.schema_version),
    };
    if let Some(SchemaVersion { major, minor }) = version
        && major != schema::MAJOR_VERSION
    {
        let (supported, help) = (schema::MAJOR_VERSION, "save the program with torch 2.9 to 2.15");
        let problem = format!("found version {major}.{minor}, supported is {supported}");
        let (entry, at) = (archive.full_name(entry), "schema_version".into());
        let kind = ImportErrorKind::Schema { entry, at, problem, help: help.to_owned() };
        return Err(ImportError::new(archive.path(), kind));
    }
    program.map_err(|p| ImportError::new(archive.path(), schema_kind(archive.full_name(entry), p.at.into(), p.problem)))
}

/// The signature has one line for every input and output of the graph.
fn check_signature(archive: &Archive, entry: &str, program: &ExportedProgram) -> Result<(), ImportError> {
    let module = &program.graph_module;
    let error = |at: String, problem: String| {
        Err(ImportError::new(archive.path(), schema_kind(archive.full_name(entry), at.into(), problem)))
    };
    for (what, specs, values) in [
        ("input", module.signature.input_specs.len(), module.graph.inputs.len()),
        ("output", module.signature.output_specs.len(), module.graph.outputs.len()),
    ] {
        if specs != values {
            let problem = format!("expected {values}, as the graph has {what}s, found {specs}");
            return error(format!("graph_module.signature.{what}_specs"), problem);
        }
    }
    for (i, (spec, value)) in module.signature.input_specs.iter().zip(&module.graph.inputs).enumerate() {
        if let (Some(name), Some(input)) = (spec.graph_name(), value.first_name())
            && name != input
        {
            let problem = format!("expected `{input}`, the name of that graph input, found `{name}`");
            return error(format!("graph_module.signature.input_specs[{i}]"), problem);
        }
    }
    Ok(())
}

fn schema_kind(entry: String, at: At, problem: String) -> ImportErrorKind {
    let help = "export and save the program again with torch 2.9 to 2.15".to_owned();
    ImportErrorKind::Schema { entry, at, problem, help }
}

fn symbol_error(path: &Path, SymbolProblem { at, expr, why }: SymbolProblem) -> ImportError {
    let help = "make this dimension static, or compute it with +, -, *, //, %, min and max".to_owned();
    ImportError::new(path, ImportErrorKind::Symbol { at: at.into(), expr, problem: why, help })
}

#[cfg(test)]
mod tests;
