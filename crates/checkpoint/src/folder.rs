//! Folders as `save_pretrained` of Hugging Face writes them.

use std::path::{Path, PathBuf};

use crate::error::FileProblem;

/// The names of weights in such a folder. The first that is there is meant, as for its libraries.
const NAMES: [&str; 8] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
];
/// Extensions of weight files.
const WEIGHTS: [&str; 7] = ["safetensors", "bin", "pt", "pth", "ckpt", "pt2", "onnx"];
/// As many files are named in a message.
const SHOWN: usize = 8;

/// The weight file in a folder: one of the usual names, or the only one that there is.
pub(crate) fn weights_in(folder: &Path) -> Result<PathBuf, FileProblem> {
    if let Some(found) = NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
        return Ok(found);
    }
    let entries = std::fs::read_dir(folder).map_err(|e| FileProblem::Io(e.to_string()))?;
    let is_weights = |path: &PathBuf| {
        let is_named = path.to_string_lossy().ends_with(".index.json");
        is_named || path.extension().is_some_and(|e| WEIGHTS.iter().any(|known| e == *known))
    };
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(is_weights).filter(|path| path.is_file()).collect();
    files.sort();
    let names = || {
        let names: Vec<String> = files
            .iter()
            .take(SHOWN)
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect();
        names.join(", ")
    };
    match files.as_slice() {
        [] => Err(FileProblem::new(
            "it is a folder without weight files",
            "expected model.safetensors, pytorch_model.bin or the index of their shards",
        )),
        [one] => Ok(one.clone()),
        _ => Err(FileProblem::new(
            format!("it is a folder with {} weight files, none of a name that says which is meant", files.len()),
            &format!("name one of them: {}", names()),
        )),
    }
}
