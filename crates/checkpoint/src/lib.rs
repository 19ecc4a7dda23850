//! Readers of weight files: which format a file has, and the tensors in it.
//!
//! [`open`] reads every format but exported programs, which the importer reads with the [`Archive`] and the [`View`] of this
//! crate. Every byte of a file is hostile until checked; nothing is executed, and memory stays in proportion to the file.
//!
//! ```no_run
//! let dict = regraft_checkpoint::open("pytorch_model.bin".as_ref())?;
//! for (name, tensor) in dict.iter() {
//!     println!("{name}: {}{:?}", tensor.dtype(), tensor.shape());
//! }
//! # Ok::<(), regraft_checkpoint::CheckpointError>(())
//! ```
#![forbid(unsafe_code)]

mod archive;
mod error;
mod folder;
mod index;
pub mod onnx;
mod options;
mod safetensors;
mod torch;
mod view;

use std::path::Path;

use regraft_tensor::{ErrorKind, MappedFile};
use regraft_weights::StateDict;

pub use self::{
    archive::{Archive, ArchiveError, ByteOrder},
    error::{CheckpointError, CheckpointErrorKind},
    options::{OpenOptions, part_of},
    view::{View, check_memory},
};
use self::{
    error::FileProblem,
    options::{prefixes, without_prefix},
};

/// What a weight file is; its content tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// `.safetensors`.
    Safetensors,
    /// `.pt`, `.pth` or `.bin`: a zip file as `torch.save` writes it.
    Torch,
    /// The same before PyTorch 1.6: pickles, then storages.
    TorchLegacy,
    /// The same before PyTorch 0.1.10: a tar file.
    TorchTar,
    /// `.pt2`: a program as `torch.export.save` writes it.
    ExportedProgram,
    /// `.onnx`.
    Onnx,
}

impl Format {
    fn of(file: &MappedFile) -> Result<Self, FileProblem> {
        match file.bytes() {
            // Eight bytes with the length of the header, then the header: JSON. The length may spell anything, `PK` too.
            [_, _, _, _, _, _, _, _, b'{', ..] => Ok(Format::Safetensors),
            [b'P', b'K', ..] => {
                let archive = Archive::new(file.clone())?;
                Ok(if archive.names().any(is_of_program) { Format::ExportedProgram } else { Format::Torch })
            }
            bytes if bytes.starts_with(torch::LEGACY_MAGIC) => Ok(Format::TorchLegacy),
            bytes if torch::is_tar(bytes) => Ok(Format::TorchTar),
            // The version of the format is a model's first field.
            [0x08, ..] => Ok(Format::Onnx),
            other => Err(unknown(other)),
        }
    }
}

/// Whether only archives of `torch.export.save` have an entry of this name; the last is of PyTorch 2.7 and before.
fn is_of_program(name: &str) -> bool {
    let inner = name.split_once('/').map_or("", |(_, inner)| inner);
    inner.starts_with("models/")
        || inner == "archive_format"
        || name.rsplit('/').next() == Some("serialized_exported_program.json")
}

/// Whether the file at `path` is a program as `torch.export.save` writes it (`.pt2`), whose weights the importer reads.
pub fn is_exported_program(path: &Path) -> bool {
    MappedFile::open(path).is_ok_and(|file| matches!(Format::of(&file), Ok(Format::ExportedProgram)))
}

/// Why Regraft does not read a file.
fn unknown(bytes: &[u8]) -> FileProblem {
    match bytes {
        [] => FileProblem::new("it is empty", "copy it or save it again"),
        // The opcode of a pickle's protocol.
        [0x80, 0..=5, ..] => FileProblem::new(
            "it is a pickle that torch.save did not write",
            "load it in Python, and save its tensors with torch.save or as .safetensors",
        ),
        [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' ', rest @ ..] if rest.starts_with(b"https://git-lfs") => {
            FileProblem::new("it is a pointer of Git LFS, not the file itself", "fetch the file with `git lfs pull`")
        }
        [b'G', b'G', b'U', b'F', ..] => FileProblem::new(
            "it is a GGUF file, which Regraft does not read: its weights are quantized, and named otherwise",
            "give the model's .safetensors, which it was made of",
        ),
        _ => FileProblem::new(
            "it is not a weight file: it begins like none of the known formats",
            "known are .safetensors, .pt, .pth and .bin of torch.save, .pt2, .onnx, and an index.json of shards",
        ),
    }
}

/// Reads a weight file, by mapping where its bytes are stored as they are: `.safetensors`, a state dict or a checkpoint that
/// `torch.save` wrote (`.pt`, `.pth`, `.bin`, `.ckpt`, of any version; nothing in it is executed), the initializers of an
/// `.onnx`, the shards that an `.index.json` names, or a folder as Hugging Face writes it. What a file is, its content tells.
///
/// # Errors
/// When the file cannot be read, is of no such format, is damaged, or holds several sets of weights.
pub fn open(path: &Path) -> Result<StateDict, CheckpointError> {
    open_with(path, &OpenOptions::default())
}

/// As [`open`], of which part the options say.
///
/// # Errors
/// As [`open`]; also when the part is not there.
pub fn open_with(path: &Path, options: &OpenOptions) -> Result<StateDict, CheckpointError> {
    if path.is_dir() {
        let file = folder::weights_in(path).map_err(|p| p.of_file(path))?;
        return open_with(&file, options);
    }
    let mut dict = StateDict::new();
    if path.extension().is_some_and(|e| e == "json") {
        read_shards(path, &mut dict)?;
        return part_of(dict, path, options);
    }
    // What a checkpoint of torch.save holds is a tree: its reader finds the part.
    match read_one(path, &mut dict, options)? {
        Format::Torch | Format::TorchLegacy | Format::TorchTar => Ok(dict),
        Format::Safetensors | Format::Onnx | Format::ExportedProgram => part_of(dict, path, options),
    }
}

/// Reads the tensors of the shards that the index at `path` names into `dict`.
fn read_shards(path: &Path, dict: &mut StateDict) -> Result<(), CheckpointError> {
    for (shard, tensors) in index::shards(path).map_err(|p| p.of_file(path))? {
        let mut held = StateDict::new();
        read_one(&shard, &mut held, &OpenOptions::default())?;
        let is_there = |name: &str| held.get(name).is_some() || held.skipped().contains_key(name);
        if let Some(missing) = tensors.iter().find(|name| !is_there(name)) {
            let problem = format!("the index says that it holds `{missing}`, which it does not");
            return Err(FileProblem::new(problem, "fetch the shards and their index again").of_file(&shard));
        }
        dict.append(held);
    }
    Ok(())
}

fn read_one(path: &Path, dict: &mut StateDict, options: &OpenOptions) -> Result<Format, CheckpointError> {
    let file = map(path)?;
    let read = |format| {
        match format {
            Format::Safetensors => safetensors::read(&file, dict),
            Format::Torch => torch::read(&file, dict, options),
            Format::TorchLegacy => torch::read_legacy(&file, dict, options),
            Format::TorchTar => torch::read_tar(&file, dict, options),
            Format::Onnx => onnx::read(&file, dict).map(drop),
            Format::ExportedProgram => Err(FileProblem::new(
                "it is an exported program",
                "the importer reads its weights: use regraft::open_weights, or save the state_dict as .safetensors",
            )),
        }?;
        Ok(format)
    };
    Format::of(&file).and_then(read).map_err(|p: FileProblem| p.of_file(path))
}

fn map(path: &Path) -> Result<MappedFile, CheckpointError> {
    MappedFile::open(path).map_err(|e| match e.kind() {
        ErrorKind::Io { error, .. } => CheckpointErrorKind::Io(error.to_string()).of_file(path),
        _ => CheckpointErrorKind::Io(e.to_string()).of_file(path),
    })
}
