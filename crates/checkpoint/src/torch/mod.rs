//! State dicts as `torch.save` writes them since PyTorch 1.6: a zip file with a pickle, which says what there is, and one
//! stored entry per storage.

mod bytes;
mod globals;
mod pickle;
mod rebuild;
mod state;
mod value;

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use regraft_tensor::{Buffer, MappedFile, Tensor};

use self::value::{ObjectId, TensorRef};
use super::{Archive, FileProblem, check_memory};
use regraft_weights::{StateDict, on_shared_threads};

/// No pickle of a state dict is larger: a tensor takes about 150 bytes of it. What a hostile one of this size makes in
/// memory is bounded too.
const MAX_PICKLE_BYTES: u64 = 8 << 20;

const SAVE_STATE: &str = "load it with PyTorch, and save its state_dict with torch.save(model.state_dict(), ...) or as \
                          .safetensors";

/// Reads the state dict of `file` into `dict`.
pub(super) fn read(file: &MappedFile, dict: &mut StateDict) -> Result<(), FileProblem> {
    let archive = open(file)?;
    check_stored(&archive, "data.pkl")?;
    let pickle = archive.buffer("data.pkl")?;
    let unpickled = pickle::read(pickle.bytes()).map_err(|refusal| {
        let place = archive.full_name("data.pkl");
        FileProblem::new(format!("{place}: byte {}: {}", refusal.at, refusal.why), SAVE_STATE)
    })?;
    let named = state::find(&unpickled)?;
    let tensors = tensors(&archive, named.iter().map(|(name, (id, tensor))| (*id, (*name, *tensor))).collect())?;
    for (name, (id, _)) in named {
        if let Some(tensor) = tensors.get(&id) {
            dict.insert(name, tensor.clone());
        }
    }
    Ok(())
}

/// The archive, in the folder that everything stands in.
fn open(file: &MappedFile) -> Result<Archive, FileProblem> {
    let mut archive = Archive::new(file.clone())?;
    let root = root_of(&archive)?;
    archive.enter(&root);
    if archive.names().any(|name| name == "constants.pkl" || name.starts_with("code/")) {
        let problem = "it is a TorchScript program of torch.jit.save, which is not read";
        return Err(FileProblem::new(problem, "load it with torch.jit.load, and save its state_dict with torch.save"));
    }
    archive.check_byte_order()?;
    match archive.size("data.pkl") {
        Some(size) if size > MAX_PICKLE_BYTES => {
            let problem = format!("data.pkl has {size} bytes, expected at most {MAX_PICKLE_BYTES}");
            Err(FileProblem::new(problem, "save the model in shards"))
        }
        _ => Ok(archive),
    }
}

/// The folder that everything stands in.
fn root_of(archive: &Archive) -> Result<String, FileProblem> {
    let mut roots = archive.names().filter_map(|n| n.strip_suffix("/data.pkl")).filter(|root| !root.contains('/'));
    match (roots.next(), roots.next()) {
        (Some(root), None) => Ok(root.to_owned()),
        (None, _) => Err(FileProblem::new("it is a zip file, but none of torch.save: data.pkl is missing", SAVE_STATE)),
        (Some(a), Some(b)) => {
            Err(FileProblem::new(format!("expected one folder with data.pkl, found `{a}` and `{b}`"), SAVE_STATE))
        }
    }
}

/// What torch.save writes is stored as it is; a small file must not unfold to a large program.
fn check_stored(archive: &Archive, entry: &str) -> Result<(), FileProblem> {
    if archive.memory_for(entry) == 0 {
        return Ok(());
    }
    Err(archive.error(entry, "it is compressed, which torch.save never does", SAVE_STATE).into())
}

/// The tensors of a pickle, by object; the name of one that uses it is for messages.
fn tensors(
    archive: &Archive,
    wanted: BTreeMap<ObjectId, (&str, &TensorRef<'_>)>,
) -> Result<BTreeMap<ObjectId, Tensor>, FileProblem> {
    let keys: BTreeSet<&str> = wanted.values().map(|(_, tensor)| tensor.key).collect();
    let load = |key: &&'_ str| {
        let entry = format!("data/{key}");
        check_stored(archive, &entry)?;
        Ok(((*key).to_owned(), archive.buffer(&entry)?))
    };
    let storages: BTreeMap<String, Buffer> =
        on_shared_threads(|| keys.par_iter().map(load).collect::<Result<_, FileProblem>>())?;
    let placed = wanted.into_iter().map(|(id, (name, tensor))| {
        let storage = storages.get(tensor.key).ok_or_else(|| FileProblem::tensor(name, "its storage is missing"))?;
        let expected = tensor.numel.checked_mul(tensor.view.dtype.size());
        if expected != Some(storage.len()) {
            let found = format!("its storage has {} bytes, expected {} elements", storage.len(), tensor.numel);
            return Err(FileProblem::tensor(name, found));
        }
        Ok((id, name, &tensor.view, storage))
    });
    let placed = placed.collect::<Result<Vec<_>, FileProblem>>()?;
    let needed = placed.iter().fold(0u64, |sum, (_, _, view, storage)| sum.saturating_add(view.memory(storage)));
    check_memory(needed, archive.file_len()).map_err(|e| FileProblem::new(e, "save it without broadcast views"))?;
    let make = |(id, name, view, storage): (ObjectId, &str, &super::View, &Buffer)| {
        Ok((id, view.tensor(storage).map_err(|e| FileProblem::tensor(name, e))?))
    };
    on_shared_threads(|| placed.into_par_iter().map(make).collect())
}
