use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::FileProblem;

/// The part of a `model.safetensors.index.json` or `pytorch_model.bin.index.json` that matters: where each tensor is.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files that the index at `path` names, beside it, each with the tensors that it should hold.
pub(super) fn shards(path: &Path) -> Result<BTreeMap<PathBuf, Vec<String>>, FileProblem> {
    const HELP: &str = "expected a model.safetensors.index.json or pytorch_model.bin.index.json beside its shards";
    let text = std::fs::read_to_string(path).map_err(|e| FileProblem::new(e.to_string(), HELP))?;
    let index: Index =
        serde_json::from_str(&text).map_err(|e| FileProblem::new(format!("no valid index of shards: {e}"), HELP))?;
    let mut shards: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in index.weight_map {
        shards.entry(beside(path, &shard)?).or_default().push(tensor);
    }
    Ok(shards)
}

/// The file called `name` in the folder of `path`. A file from outside must not reach files elsewhere.
pub(super) fn beside(path: &Path, name: &str) -> Result<PathBuf, FileProblem> {
    if name.is_empty() || name.contains(['/', '\\', ':', '\0']) || name.starts_with('.') {
        let problem = format!("it names the file `{name}`, which is not a plain file name");
        return Err(FileProblem::new(problem, "put the file beside it and name it without folders"));
    }
    Ok(path.parent().unwrap_or(Path::new("")).join(name))
}
