//! The adapters that requests may name: files and folders in one folder, read once and again when they changed.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use regraft::{Adapter, AdapterOptions, Digest, Model, StateDict};

use crate::{
    error::{Kind, Refusal},
    files::is_plain_name,
};

/// An adapter that was read for an engine.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) adapter: Arc<Adapter>,
    /// Of its tensors.
    pub(crate) digest: Digest,
}

impl Opened {
    /// An adapter from tensors.
    pub(crate) fn from_weights(
        name: &str,
        weights: &StateDict,
        options: AdapterOptions,
        model: &Model,
    ) -> Result<Opened, Refusal> {
        let adapter =
            Adapter::from_state_dict(name, weights, options, model.refit_map()).map_err(regraft::Error::from)?;
        Ok(Opened { adapter: Arc::new(adapter), digest: digest_of(weights) })
    }
}

/// The digest of named tensors.
pub(crate) fn digest_of(weights: &StateDict) -> Digest {
    let mut text = String::new();
    for (name, tensor) in weights.iter() {
        text.push_str(&format!("{name}\0{}\n", Digest::of(tensor)));
    }
    Digest::of_bytes(text.as_bytes())
}

/// The adapters in a folder.
pub(crate) struct AdapterStore {
    folder: Option<PathBuf>,
    opened: Mutex<HashMap<String, (Stamp, Opened)>>,
}

/// What tells whether a file is the one that was read.
type Stamp = (PathBuf, u64, Option<SystemTime>);

/// What a file of an adapter may be called after its name.
const ENDINGS: [&str; 4] = ["safetensors", "pt", "bin", "pth"];
/// Adapters that are kept as they were read.
const KEPT: usize = 64;

impl AdapterStore {
    pub(crate) fn new(folder: Option<PathBuf>) -> AdapterStore {
        AdapterStore { folder, opened: Mutex::default() }
    }

    /// The adapter called `name`, read for the engine of `model`.
    ///
    /// # Errors
    /// When there is none, it cannot be read or does not fit.
    pub(crate) fn get(&self, name: &str, model: &Model) -> Result<Opened, Refusal> {
        let path = self.path(name)?;
        let stamp = stamp(&path)?;
        let known = self.opened.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if let Some((_, opened)) = known.filter(|(read, _)| *read == stamp) {
            return Ok(opened);
        }
        let mut digest = None;
        let read = |file: &Path| {
            let weights = regraft::open_weights(file)?;
            digest = Some(digest_of(&weights));
            Ok::<_, regraft::Error>(weights)
        };
        let mut adapter =
            Adapter::open(&path, &AdapterOptions::default(), model.refit_map(), read).map_err(regraft::Error::from)?;
        adapter.name = name.to_owned();
        let digest = digest.ok_or_else(|| Refusal::new(Kind::Internal, "the adapter was not read"))?;
        let opened = Opened { adapter: Arc::new(adapter), digest };
        let mut all = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KEPT {
            all.clear();
        }
        all.insert(name.to_owned(), (stamp, opened.clone()));
        Ok(opened)
    }

    /// The names of all adapters, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = self.folder.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        let name = |entry: fs::DirEntry| {
            let path = entry.path();
            let name = if path.is_dir() { path.file_name() } else { path.file_stem().filter(|_| has_ending(&path)) };
            name.and_then(|name| name.to_str()).filter(|name| is_plain_name(name)).map(str::to_owned)
        };
        let mut names: Vec<String> = entries.filter_map(name).collect();
        names.sort();
        names.dedup();
        names
    }

    fn path(&self, name: &str) -> Result<PathBuf, Refusal> {
        let Some(folder) = &self.folder else {
            return Err(Refusal::bad("the server was started without adapters").help("--adapters names their folder"));
        };
        if !is_plain_name(name) {
            return Err(Refusal::bad("an adapter's name has letters, digits, `.`, `_` and `-` only"));
        }
        let files = ENDINGS.iter().map(|ending| folder.join(format!("{name}.{ending}")));
        let mut all = std::iter::once(folder.join(name)).filter(|path| path.is_dir()).chain(files);
        all.find(|path| path.exists()).ok_or_else(|| {
            Refusal::bad(format!("there is no adapter `{name}`")).help(match &self.names()[..] {
                [] => "the folder of adapters has none".to_owned(),
                names => format!("there are {}", names[..names.len().min(20)].join(", ")),
            })
        })
    }
}

fn has_ending(path: &Path) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| ENDINGS.contains(&e))
}

/// Of a file, or of the newest file in a folder.
fn stamp(path: &Path) -> Result<Stamp, Refusal> {
    let failed = |e: std::io::Error| Refusal::new(Kind::Internal, format!("the adapter cannot be read: {e}"));
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_dir() {
        return Ok((path.to_owned(), metadata.len(), metadata.modified().ok()));
    }
    let files = fs::read_dir(path).map_err(failed)?.flatten().filter_map(|entry| entry.metadata().ok());
    let (mut len, mut newest) = (0, None);
    for file in files {
        len += file.len();
        newest = newest.max(file.modified().ok());
    }
    Ok((path.to_owned(), len, newest))
}
