//! The initialisers of an ONNX model: what its graph computes with and does not compute.
//!
//! Only the graph of the model itself is looked at; constants inside of nodes and their subgraphs are not weights. The
//! numbers are those of `onnx.proto`.

mod external;
mod tensor;
pub mod wire;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Range,
};

use rayon::prelude::*;
use regraft_tensor::{Buffer, MappedFile, Tensor};

use self::{
    external::External,
    tensor::{Initializer, Values},
    wire::{Field, Fields},
};
use super::{FileProblem, View, check_memory};
use regraft_weights::{StateDict, on_shared_threads};

pub use self::tensor::dtype_of;

/// `ModelProto.graph`.
const GRAPH: u64 = 7;
/// `GraphProto.initializer`.
const INITIALIZER: u64 = 5;
/// `GraphProto.sparse_initializer`.
const SPARSE_INITIALIZER: u64 = 15;

const SAVE_AGAIN: &str = "copy the file again, or save the model again with onnx.save";

/// Reads the initialisers of the model in `file`, and of the files beside it that hold their bytes, into `dict`.
pub(super) fn read(file: &MappedFile, dict: &mut StateDict) -> Result<(), FileProblem> {
    let initializers = initializers(file.bytes())?;
    let mut external = External::of(file);
    let mut placed = Vec::with_capacity(initializers.len());
    let mut needed = 0u64;
    for (name, initializer) in &initializers {
        let storage = storage(file, &mut external, initializer).map_err(|p| p.about(name))?;
        let bytes = match &storage {
            Some(storage) => initializer.view.memory(storage),
            None => initializer.byte_len as u64,
        };
        needed = needed.saturating_add(bytes);
        placed.push((*name, initializer, storage));
    }
    check_memory(needed, external.file_len()).map_err(|e| FileProblem::new(e, SAVE_AGAIN))?;
    let tensors = placed.into_par_iter().map(|(name, initializer, storage)| {
        let tensor = storage.map_or_else(|| initializer.numbers(file.bytes()), Ok);
        let tensor = tensor.and_then(|storage| initializer.view.tensor(&storage));
        Ok((name, tensor.map_err(|e| FileProblem::tensor(name, e))?))
    });
    for (name, tensor) in on_shared_threads(|| tensors.collect::<Result<Vec<_>, FileProblem>>())? {
        dict.insert(name, tensor);
    }
    Ok(())
}

/// All initialisers of the model, by name.
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
                    return Err(FileProblem::new(format!("it has two initialisers called `{name}`"), SAVE_AGAIN));
                };
                entry.insert(initializer);
            }
            SPARSE_INITIALIZER => {
                let problem = format!("byte {}: it has a sparse initialiser, which is not read", field.at);
                return Err(FileProblem::new(problem, "save the model with dense initialisers"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn read_initializer(file: &[u8], field: Field) -> Result<(&str, Initializer<'_>), FileProblem> {
    let at = field.at;
    let message = field.bytes().and_then(|place| tensor::Message::read(file, place)).map_err(damaged)?;
    if message.name.is_empty() {
        return Err(damaged(format!("byte {at}: an initialiser has no name")));
    }
    Ok((message.name, Initializer::of(message)?))
}

/// Reads tensors anywhere in a model, also those whose bytes stand in files beside it.
pub struct TensorReader {
    file: MappedFile,
    external: External,
}

impl TensorReader {
    /// A reader for the model in `file`.
    pub fn of(file: &MappedFile) -> Self {
        TensorReader { file: file.clone(), external: External::of(file) }
    }

    /// The tensor whose message stands at `place`. Memory stays in proportion to the message.
    ///
    /// # Errors
    /// When it is damaged, or of a kind that is not read.
    pub fn tensor(&mut self, place: Range<usize>) -> Result<Tensor, FileProblem> {
        let message = tensor::Message::read(self.file.bytes(), place).map_err(damaged)?;
        let (name, initializer) = (message.name, Initializer::of(message)?);
        let of_tensor = |e: String| FileProblem::tensor(name, e);
        let bytes = match storage(&self.file, &mut self.external, &initializer)? {
            Some(bytes) => bytes,
            None => initializer.numbers(self.file.bytes()).map_err(of_tensor)?,
        };
        initializer.view.tensor(&bytes).map_err(of_tensor)
    }
}

/// The bytes that an initialiser is seen in; `None` when they stand there as numbers.
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

fn damaged(problem: String) -> FileProblem {
    FileProblem::new(format!("no valid ONNX model: {problem}"), SAVE_AGAIN)
}
