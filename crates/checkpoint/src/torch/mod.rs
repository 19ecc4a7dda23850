//! What `torch.save` writes: a pickle, which says what there is, and the bytes of the storages. Since PyTorch 1.6 they are in a
//! zip file, before one after the other, and at first in a tar file.

mod bytes;
mod container;
mod globals;
mod legacy;
mod pickle;
mod rebuild;
mod tar;
mod value;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use rayon::prelude::*;
use regraft_tensor::{AlignedVec, Buffer, MappedFile, Tensor};
use regraft_weights::{StateDict, on_shared_threads};

use self::{
    container::State,
    pickle::Unpickled,
    value::{ObjectId, TensorRef},
};
pub(crate) use self::{legacy::MAGIC as LEGACY_MAGIC, tar::is_tar};
use crate::{Archive, ByteOrder, OpenOptions, check_memory, error::FileProblem};

/// No pickle of a state dict is larger: a tensor takes about 150 bytes of it. What a hostile one of this size makes in
/// memory is bounded too.
const MAX_PICKLE_BYTES: u64 = 8 << 20;

const SAVE_STATE: &str = "load it with PyTorch, and save its state_dict with torch.save(model.state_dict(), ...) or as \
                          .safetensors";

/// Where the bytes of storages are.
enum Storages {
    /// Entries of a zip file, with numbers in this order of bytes.
    Archive(Archive, ByteOrder),
    /// Places in the file, little-endian.
    Places(BTreeMap<String, Range<usize>>),
}

/// Reads the state dict of a zip file into `dict`.
pub(crate) fn read(file: &MappedFile, dict: &mut StateDict, options: &OpenOptions) -> Result<(), FileProblem> {
    let archive = open(file)?;
    check_stored(&archive, "data.pkl")?;
    let pickle = archive.buffer("data.pkl")?;
    let unpickled = pickle::read(pickle.bytes()).map_err(|refusal| {
        let place = archive.full_name("data.pkl");
        FileProblem::new(format!("{place}: byte {}: {}", refusal.at, refusal.why), SAVE_STATE)
    })?;
    let order = archive.byte_order()?;
    add(file, &unpickled, &Storages::Archive(archive, order), dict, options)
}

/// Reads the state dict of a file that PyTorch before version 1.6 wrote.
pub(crate) fn read_legacy(file: &MappedFile, dict: &mut StateDict, options: &OpenOptions) -> Result<(), FileProblem> {
    let (unpickled, storages) = legacy::read(file.bytes())?;
    add(file, &unpickled, &storages, dict, options)
}

/// Reads the state dict of a tar file.
pub(crate) fn read_tar(file: &MappedFile, dict: &mut StateDict, options: &OpenOptions) -> Result<(), FileProblem> {
    let names = tar::storage_names(file.bytes())?;
    let tar = tar::Tar::read(file.bytes(), &names)?;
    add(file, &tar.unpickle()?, &tar.storages, dict, options)
}

/// Adds the tensors that a pickle names.
fn add(
    file: &MappedFile,
    unpickled: &Unpickled<'_>,
    storages: &Storages,
    dict: &mut StateDict,
    options: &OpenOptions,
) -> Result<(), FileProblem> {
    let State { tensors: named, skipped } = container::find(unpickled, options)?;
    let wanted = named.iter().map(|(name, (id, tensor))| (*id, (name.as_str(), *tensor))).collect();
    let tensors = tensors(file, storages, wanted)?;
    for (name, (id, _)) in named {
        if let Some(tensor) = tensors.get(&id) {
            dict.insert(name, tensor.clone());
        }
    }
    skipped.into_iter().for_each(|(place, what)| dict.skip(place, what));
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

impl Storages {
    /// The bytes of a storage.
    fn buffer(&self, file: &MappedFile, key: &str) -> Result<Buffer, FileProblem> {
        match self {
            Storages::Archive(archive, _) => {
                let entry = format!("data/{key}");
                check_stored(archive, &entry)?;
                Ok(archive.buffer(&entry)?)
            }
            Storages::Places(places) => {
                let place = places.get(key).and_then(|place| Buffer::mapped(file, place.clone()));
                place.ok_or_else(|| FileProblem::new(format!("the storage {key} is missing"), SAVE_STATE))
            }
        }
    }

    fn is_big_endian(&self) -> bool {
        matches!(self, Storages::Archive(_, ByteOrder::Big))
    }
}

/// The tensors of a pickle, by object; the name of one that uses it is for messages.
fn tensors(
    file: &MappedFile,
    storages: &Storages,
    wanted: BTreeMap<ObjectId, (&str, &TensorRef<'_>)>,
) -> Result<BTreeMap<ObjectId, Tensor>, FileProblem> {
    let swapped = storages.is_big_endian();
    // The elements of a storage are as wide as those of its tensors: one storage has one dtype.
    let widths: BTreeMap<&str, usize> = wanted.values().map(|(_, t)| (t.key, t.view.dtype.size())).collect();
    let mixed = wanted.values().find(|(_, tensor)| widths.get(tensor.key) != Some(&tensor.view.dtype.size()));
    if let Some((name, _)) = mixed.filter(|_| swapped) {
        return Err(FileProblem::tensor(name, "its storage has elements of two widths"));
    }
    let mut needed = 0u64;
    if swapped {
        needed = file.bytes().len() as u64;
        check_memory(needed, file.bytes().len() as u64).map_err(|e| FileProblem::new(e, SAVE_STATE))?;
    }
    let keys: BTreeSet<&str> = widths.keys().copied().collect();
    let load = |key: &&'_ str| {
        let buffer = storages.buffer(file, key)?;
        let width = widths.get(*key).copied().unwrap_or(1);
        Ok(((*key).to_owned(), if swapped { swap(&buffer, width) } else { buffer }))
    };
    let loaded: BTreeMap<String, Buffer> =
        on_shared_threads(|| keys.par_iter().map(load).collect::<Result<_, FileProblem>>())?;
    let placed = wanted.into_iter().map(|(id, (name, tensor))| {
        let storage = loaded.get(tensor.key).ok_or_else(|| FileProblem::tensor(name, "its storage is missing"))?;
        let expected = tensor.numel.checked_mul(tensor.view.dtype.size());
        if expected != Some(storage.len()) {
            let found = format!("its storage has {} bytes, expected {} elements", storage.len(), tensor.numel);
            return Err(FileProblem::tensor(name, found));
        }
        Ok((id, name, &tensor.view, storage))
    });
    let placed = placed.collect::<Result<Vec<_>, FileProblem>>()?;
    needed = placed.iter().fold(needed, |sum, (_, _, view, storage)| sum.saturating_add(view.memory(storage)));
    check_memory(needed, file.bytes().len() as u64)
        .map_err(|e| FileProblem::new(e, "save it without broadcast views"))?;
    let make = |(id, name, view, storage): (ObjectId, &str, &crate::View, &Buffer)| {
        Ok((id, view.tensor(storage).map_err(|e| FileProblem::tensor(name, e))?))
    };
    on_shared_threads(|| placed.into_par_iter().map(make).collect())
}

/// Numbers of `width` bytes in the other order of bytes.
fn swap(buffer: &Buffer, width: usize) -> Buffer {
    let mut bytes = AlignedVec::copy_of(buffer.bytes());
    bytes.bytes_mut().chunks_exact_mut(width.max(1)).for_each(<[u8]>::reverse);
    bytes.into()
}
