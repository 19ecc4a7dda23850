//! The tensors of an ONNX model: what its graph computes with and does not compute.
//!
//! Initializers of the graph itself are weights. Tensors that stand in nodes, in graphs inside of them and in functions belong to
//! the program: they are the constants of the state dict. The numbers are those of `onnx.proto`.

mod constants;
mod external;
mod tensor;
pub mod wire;

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    ops::Range,
};

use rayon::prelude::*;
use regraft_tensor::{Buffer, MappedFile, Tensor};

use self::{
    constants::{Held, HeldValues},
    external::External,
    tensor::{Initializer, Values},
    wire::{Field, Fields},
};
use super::{FileProblem, View, check_memory};
use regraft_weights::{StateDict, on_shared_threads};

pub use self::tensor::dtype_of;

/// `ModelProto.graph`.
const GRAPH: u64 = 7;
/// `ModelProto.functions`.
const FUNCTION: u64 = 25;
/// `GraphProto.initializer`.
const INITIALIZER: u64 = 5;
/// `GraphProto.sparse_initializer`.
const SPARSE_INITIALIZER: u64 = 15;

const SAVE_AGAIN: &str = "copy the file again, or save the model again with onnx.save";

/// The tensors of a model.
pub struct Tensors {
    /// The initializers, and the tensors in nodes as [`StateDict::constants`].
    pub dict: StateDict,
    /// What each of the constants is called, also of those that are [skipped](StateDict::skipped), by the byte of the file that
    /// its message begins at; the message of numbers is their attribute.
    pub names: HashMap<usize, String>,
}

/// Reads the tensors of the model in `file`, and of the files beside it that hold their bytes.
///
/// # Errors
/// When the file is damaged, or has tensors of a kind that is not read.
pub fn read_model(file: &MappedFile) -> Result<Tensors, FileProblem> {
    let mut dict = StateDict::new();
    let names = read(file, &mut dict)?;
    Ok(Tensors { dict, names })
}

/// As [`read_model`], into `dict`; returns [`Tensors::names`].
pub(super) fn read(file: &MappedFile, dict: &mut StateDict) -> Result<HashMap<usize, String>, FileProblem> {
    let initializers = initializers(file.bytes())?;
    let taken: Vec<&str> = initializers.keys().copied().collect();
    let held = constants::held(file.bytes(), &taken)?;
    let mut reader = Reader { file, external: External::of(file), needed: 0 };
    let mut placed = Vec::with_capacity(initializers.len() + held.len());
    for (name, initializer) in initializers {
        placed.push(reader.place(name.to_owned(), Content::Tensor(initializer))?);
    }
    let weights = placed.len();
    let mut names = HashMap::with_capacity(held.len());
    for Held { name, at, values } in held {
        names.insert(at, name.clone());
        let content = match values {
            HeldValues::Tensor(place) => {
                let message = tensor::Message::read(file.bytes(), place).map_err(damaged)?;
                if let Err(dtype) = message.dtype() {
                    dict.skip(name, format!("a tensor of {dtype}"));
                    continue;
                }
                Content::Tensor(Initializer::of(message, &name)?)
            }
            HeldValues::Numbers(tensor) => Content::Ready(tensor),
        };
        placed.push(reader.place(name, content)?);
    }
    check_memory(reader.needed, reader.external.file_len()).map_err(|e| FileProblem::new(e, SAVE_AGAIN))?;
    let tensors = placed.into_par_iter().map(|placed| placed.tensor(file));
    let mut tensors = on_shared_threads(|| tensors.collect::<Result<Vec<_>, FileProblem>>())?;
    dict.set_constants(tensors.split_off(weights).into_iter().collect());
    dict.extend(tensors);
    Ok(names)
}

/// Finds the bytes of tensors.
struct Reader<'a> {
    file: &'a MappedFile,
    external: External,
    /// Memory that the tensors take.
    needed: u64,
}

/// What a tensor is made of.
enum Content<'a> {
    Tensor(Initializer<'a>),
    Ready(Tensor),
}

/// A tensor whose bytes are found.
struct Placed<'a> {
    name: String,
    content: Content<'a>,
    storage: Option<Buffer>,
}

impl<'a> Reader<'a> {
    fn place(&mut self, name: String, content: Content<'a>) -> Result<Placed<'a>, FileProblem> {
        let storage = match &content {
            Content::Tensor(tensor) => storage(self.file, &mut self.external, tensor).map_err(|p| p.about(&name))?,
            Content::Ready(_) => None,
        };
        let bytes = match (&content, &storage) {
            (Content::Tensor(tensor), Some(storage)) => tensor.view.memory(storage),
            (Content::Tensor(tensor), None) => tensor.byte_len as u64,
            // They are in memory already.
            (Content::Ready(_), _) => 0,
        };
        self.needed = self.needed.saturating_add(bytes);
        Ok(Placed { name, content, storage })
    }
}

impl Placed<'_> {
    fn tensor(self, file: &MappedFile) -> Result<(String, Tensor), FileProblem> {
        let Placed { name, content, storage } = self;
        let tensor = match content {
            Content::Tensor(initializer) => {
                let bytes = storage.map_or_else(|| initializer.numbers(file.bytes()), Ok);
                let tensor = bytes.and_then(|storage| initializer.view.tensor(&storage));
                tensor.map_err(|e| FileProblem::tensor(&name, e))?
            }
            Content::Ready(tensor) => tensor,
        };
        Ok((name, tensor))
    }
}

/// All initializers of the model, by name.
fn initializers(file: &[u8]) -> Result<BTreeMap<&str, Initializer<'_>>, FileProblem> {
    let mut found = BTreeMap::new();
    let mut graphs = 0;
    for field in Fields::new(file, 0..file.len()) {
        let field = field.map_err(damaged)?;
        // A message that stands there in parts is the sum of them.
        if field.number == GRAPH {
            graphs += 1;
            let place = field.bytes().map_err(damaged)?;
            read_graph(file, place, &mut found)?;
        }
    }
    match graphs {
        0 => Err(damaged("it has no graph".to_owned())),
        _ => Ok(found),
    }
}

fn read_graph<'a>(
    file: &'a [u8],
    place: Range<usize>,
    found: &mut BTreeMap<&'a str, Initializer<'a>>,
) -> Result<(), FileProblem> {
    for field in Fields::new(file, place) {
        let field = field.map_err(damaged)?;
        match field.number {
            INITIALIZER => {
                let (name, initializer) = read_initializer(file, field)?;
                let Entry::Vacant(entry) = found.entry(name) else {
                    return Err(FileProblem::new(format!("it has two initializers called `{name}`"), SAVE_AGAIN));
                };
                entry.insert(initializer);
            }
            SPARSE_INITIALIZER => return Err(sparse(field.at, "initializer")),
            _ => {}
        }
    }
    Ok(())
}

fn read_initializer(file: &[u8], field: Field) -> Result<(&str, Initializer<'_>), FileProblem> {
    let at = field.at;
    let message = field.bytes().and_then(|place| tensor::Message::read(file, place)).map_err(damaged)?;
    if message.name.is_empty() {
        return Err(damaged(format!("byte {at}: an initializer has no name")));
    }
    let name = message.name;
    Ok((name, Initializer::of(message, name)?))
}

/// The bytes that an initializer is seen in; `None` when they stand there as numbers.
fn storage(
    file: &MappedFile,
    external: &mut External,
    initializer: &Initializer<'_>,
) -> Result<Option<Buffer>, FileProblem> {
    let bytes = match &initializer.values {
        Values::Numbers => return Ok(None),
        Values::Raw(place) => {
            Buffer::mapped(file, place.clone()).ok_or_else(|| damaged("it reaches beyond the end".to_owned()))?
        }
        Values::External(place) => external.bytes(place, initializer.byte_len)?,
    };
    let View { dtype, shape, .. } = &initializer.view;
    if bytes.len() != initializer.byte_len {
        let problem = format!("{dtype}{shape:?} needs {} bytes, found {}", initializer.byte_len, bytes.len());
        return Err(damaged(problem));
    }
    Ok(Some(bytes))
}

fn sparse(at: usize, what: &str) -> FileProblem {
    let problem = format!("byte {at}: it has a sparse {what}, which is not read");
    FileProblem::new(problem, "save the model with dense tensors")
}

fn damaged(problem: String) -> FileProblem {
    FileProblem::new(format!("no valid ONNX model: {problem}"), SAVE_AGAIN)
}
