//! The adapters that requests may name: files and folders in one folder, read once and again when they changed.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    /// Of all that it does, whatever its name.
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
        Ok(Opened::new(adapter))
    }

    fn new(adapter: Adapter) -> Opened {
        let digest = adapter.digest();
        Opened { adapter: Arc::new(adapter), digest }
    }
}

/// The adapters in a folder.
pub(crate) struct AdapterStore {
    folder: Option<PathBuf>,
    opened: Mutex<HashMap<String, (Stamp, Opened)>>,
    /// Held while one is read: all requests that name a new one would read it, each on a thread of its own.
    reading: Arc<tokio::sync::Mutex<()>>,
}

/// What tells whether files are those that were read.
type Stamp = (PathBuf, u64, Option<SystemTime>);

/// What a file of an adapter may be called after its name.
const ENDINGS: [&str; 4] = ["safetensors", "pt", "bin", "pth"];
/// The configuration beside a file, which is read with it.
const CONFIG: &str = "adapter_config.json";
/// Adapters that are kept as they were read.
const KEPT: usize = 64;

impl AdapterStore {
    pub(crate) fn new(folder: Option<PathBuf>) -> AdapterStore {
        AdapterStore { folder, opened: Mutex::default(), reading: Arc::default() }
    }

    /// Waits until no other request reads an adapter.
    pub(crate) async fn turn(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.reading.clone().lock_owned().await
    }

    /// The adapter called `name`, where it was read already and its file has not changed.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn known(&self, name: &str) -> Result<Option<Opened>, Refusal> {
        let stamp = stamp(&self.path(name)?)?;
        Ok(self.lock().get(name).filter(|(read, _)| *read == stamp).map(|(_, opened)| opened.clone()))
    }

    /// The adapter called `name`, read for the engine of `model`.
    ///
    /// # Errors
    /// When there is none, it cannot be read or does not fit.
    pub(crate) fn get(&self, name: &str, model: &Model) -> Result<Opened, Refusal> {
        if let Some(opened) = self.known(name)? {
            return Ok(opened);
        }
        let path = self.path(name)?;
        let stamp = stamp(&path)?;
        let read = |file: &Path| regraft::open_weights(file);
        let mut adapter =
            Adapter::open(&path, &AdapterOptions::default(), model.refit_map(), read).map_err(regraft::Error::from)?;
        adapter.name = name.to_owned();
        let opened = Opened::new(adapter);
        let mut all = self.lock();
        if all.len() >= KEPT {
            all.clear();
        }
        all.insert(name.to_owned(), (stamp, opened.clone()));
        Ok(opened)
    }

    /// Names are put in and taken out: whole after any panic.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Stamp, Opened)>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The bytes and the newest of the files of an adapter: those in its folder, or its file and the configuration beside it.
fn stamp(path: &Path) -> Result<Stamp, Refusal> {
    let failed = |e: std::io::Error| Refusal::new(Kind::Internal, format!("the adapter cannot be read: {e}"));
    let own = fs::metadata(path).map_err(failed)?;
    let files: Vec<fs::Metadata> = match own.is_dir() {
        true => fs::read_dir(path).map_err(failed)?.flatten().filter_map(|entry| entry.metadata().ok()).collect(),
        false => fs::metadata(path.with_file_name(CONFIG)).into_iter().chain([own]).collect(),
    };
    let len = files.iter().map(fs::Metadata::len).sum();
    let newest = files.iter().map(|file| file.modified().ok()).max().flatten();
    Ok((path.to_owned(), len, newest))
}
