//! Reads sources that a generation knows by digest and file, where the tensor is needed.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs,
    path::Path,
    sync::Arc,
};

use regraft_tensor::Tensor;
use regraft_weights::{Digest, Problem, SourceInfo, StateDict};

use super::{Parts, none_of};
use crate::{RuntimeError, SourceContent};

/// The `sources`, with the tensors of those in `needed` that are kept in a weight file read from there and compared with their
/// digests.
///
/// # Errors
/// Every source that its file does not give.
pub(crate) fn loaded(
    parts: &Parts<'_>,
    mut sources: Vec<Arc<SourceContent>>,
    needed: &BTreeSet<usize>,
) -> Result<Vec<Arc<SourceContent>>, RuntimeError> {
    let mut files: BTreeMap<Arc<Path>, Result<StateDict, String>> = BTreeMap::new();
    let mut problems = Vec::new();
    for &index in needed {
        let (info, content) = (&parts.map.sources[index], sources[index].clone());
        let Some(path) = content.file() else { continue };
        let file = files.entry(path.clone()).or_insert_with(|| open(parts, path).map_err(|e| cannot_be_read(&*e)));
        let digest = content.digest()?;
        let found = file.as_ref().map_err(String::clone).and_then(|weights| find(info, weights, digest));
        match found {
            Ok(tensor) => sources[index] = Arc::new(SourceContent::new(info.dtype, Some(tensor.clone()))),
            Err(why) => problems.push(Problem::NotInFile { name: info.name.clone(), path: path.to_path_buf(), why }),
        }
    }
    none_of(problems, parts.map)?;
    Ok(sources)
}

/// The tensor of a source in the weights of a file, under any of its names.
pub(crate) fn named<'a>(info: &SourceInfo, weights: &'a StateDict) -> Option<&'a Tensor> {
    info.names().find_map(|name| weights.get(name))
}

fn find<'a>(info: &SourceInfo, weights: &'a StateDict, digest: Option<Digest>) -> Result<&'a Tensor, String> {
    let tensor = named(info, weights).ok_or("no longer has it")?;
    let fits = tensor.shape() == info.shape && tensor.dtype().same_class(info.dtype);
    if fits && digest == Some(Digest::of(&tensor.cast(info.dtype))) { Ok(tensor) } else { Err("has changed".into()) }
}

/// Opens a weight file that an engine names. Opening anything but a regular file may wait forever, or have side effects.
fn open(parts: &Parts<'_>, path: &Path) -> Result<StateDict, Box<dyn Error + Send + Sync>> {
    if !fs::metadata(path)?.is_file() {
        return Err("it is not a regular file".into());
    }
    (parts.reader)(path)
}

fn cannot_be_read(error: &dyn Error) -> String {
    let text = error.to_string();
    format!("cannot be read ({})", text.lines().next().unwrap_or_default())
}
