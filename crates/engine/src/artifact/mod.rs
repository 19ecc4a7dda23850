//! The `.rgf` file: an [`Engine`] in a [`container`](crate::container).
//!
//! | section | what |
//! |---|---|
//! | `compat` | JSON: product version, target, mode; read before anything that may depend on them |
//! | `about` | JSON: kernels, layouts, sources with their digests, recipes, where weights lie, adapters that are part of them |
//! | `plan` | the plan's graph in text form |
//! | `recipes` | the recipes' graphs in text form, one after the other |
//! | `sources` | the sources that the engine holds, each on a cache line |
//! | `slots` | the packed slots, each on a cache line |
//! | `key` | an entry of the [engine cache](crate::cache): its key |
//!
//! Graphs are text because the text form is verified as it is read, bounded in depth, and can be looked at.
//!
//! This version writes format 2 and reads 1 and 2. Format 1 had no `compat`: it was part of `about`.

mod about;
mod compat;
mod read;
mod write;

use std::{path::Path, sync::Arc};

use regraft_tensor::Buffer;

use crate::{
    Engine, EngineError, EngineErrorKind, Mode,
    cache::CacheKey,
    container::{Container, ContainerWriter, Format, SectionClass, SectionKind, Verify},
};

const ABOUT: SectionKind = SectionKind { id: 1, name: "about", class: SectionClass::Metadata };
const PLAN: SectionKind = SectionKind { id: 2, name: "plan", class: SectionClass::Metadata };
const RECIPES: SectionKind = SectionKind { id: 3, name: "recipes", class: SectionClass::Metadata };
const SOURCES: SectionKind = SectionKind { id: 4, name: "sources", class: SectionClass::Weights };
const SLOTS: SectionKind = SectionKind { id: 5, name: "slots", class: SectionClass::Weights };
const KEY: SectionKind = SectionKind { id: 7, name: "key", class: SectionClass::Metadata };
const COMPAT: SectionKind = SectionKind { id: 6, name: "compat", class: SectionClass::Metadata };

/// The version before: read, but no longer written.
static BEFORE: Format = Format { version: 1, sections: &[ABOUT, PLAN, RECIPES, SOURCES, SLOTS] };

/// The version that is written.
static FORMAT: Format = Format { version: 2, sections: &[COMPAT, ABOUT, PLAN, RECIPES, SOURCES, SLOTS, KEY] };

/// All versions that are read.
const READ: [&Format; 2] = [&BEFORE, &FORMAT];

/// Weights of a file that were not compared with their digests yet.
#[derive(Clone, Debug)]
pub struct Unverified(Arc<Container>);

impl Unverified {
    /// Compares what runs read: the packed slots, or the sources where slots are made of them. One pass over these bytes, on
    /// the shared threads of the process.
    ///
    /// # Errors
    /// When they are damaged.
    pub fn verify_for_runs(&self) -> Result<(), EngineErrorKind> {
        let has_slots = self.0.optional_section(SLOTS).is_some();
        Ok(self.0.verify_section(if has_slots { SLOTS } else { SOURCES })?)
    }

    /// Compares what [`Unverified::verify_for_runs`] leaves out: sources beside packed slots.
    ///
    /// # Errors
    /// When they are damaged.
    pub fn verify_rest(&self) -> Result<(), EngineErrorKind> {
        match self.0.optional_section(SLOTS) {
            Some(_) => Ok(self.0.verify_section(SOURCES)?),
            None => Ok(()),
        }
    }
}

impl Engine {
    /// Writes the engine to `path`, which is replaced in one step once all is on the disk. Returns the bytes written.
    ///
    /// # Errors
    /// When the file cannot be written; the old file at `path` is then still there.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<u64, EngineError> {
        let path = path.as_ref();
        let folder = std::path::absolute(path).ok().and_then(|path| path.parent().map(Path::to_path_buf));
        let write = || -> Result<_, EngineErrorKind> {
            let mut writer = ContainerWriter::create(path, &FORMAT)?;
            write::engine(self, &mut writer, folder.as_deref())?;
            Ok(writer.finish()?)
        };
        write().map_err(|kind| error(path, kind))
    }

    /// The bytes of the engine's file.
    ///
    /// # Errors
    /// When a source is kept by reference to a file whose path is not Unicode.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EngineError> {
        let name = Path::new("engine in memory");
        let write = || -> Result<_, EngineErrorKind> {
            let mut writer = ContainerWriter::in_memory(name, &FORMAT)?;
            write::engine(self, &mut writer, None)?;
            Ok(writer.into_bytes()?)
        };
        write().map_err(|kind| error(name, kind))
    }

    /// Reads the engine at `path`. Every byte is verified; weights are mapped, not copied.
    ///
    /// # Errors
    /// When the file cannot be read, is not an engine of a version that is read here, or is damaged or malformed.
    pub fn read(path: impl AsRef<Path>) -> Result<Engine, EngineError> {
        let path = path.as_ref();
        let container = Container::open(path, &READ, Verify::All).map_err(|e| error(path, e))?;
        read::engine(path, &container)
    }

    /// Reads the engine at `path`. Its weights are mapped, and [`Engine::unverified`] is there to compare them
    /// with their digests. The time depends on the plan, not on the size of the weights.
    ///
    /// # Errors
    /// As [`Engine::read`], but for damage in weights.
    pub fn open(path: impl AsRef<Path>) -> Result<Engine, EngineError> {
        let path = path.as_ref();
        let container = Container::open(path, &READ, Verify::Metadata).map_err(|e| error(path, e))?;
        let mut engine = read::engine(path, &container)?;
        let has_weights = container.sections().any(|section| section.kind.class == SectionClass::Weights);
        engine.unverified = has_weights.then(|| Unverified(Arc::new(container)));
        Ok(engine)
    }

    /// Reads an engine from the bytes of its file; `name` is what errors call it. Every byte is verified.
    ///
    /// # Errors
    /// As [`Engine::read`].
    pub fn from_bytes(name: impl AsRef<Path>, bytes: Buffer) -> Result<Engine, EngineError> {
        let name = name.as_ref();
        let container = Container::from_buffer(name, bytes, &READ, Verify::All).map_err(|e| error(name, e))?;
        read::engine(name, &container)
    }
}

/// Entries of the engine cache.
impl Engine {
    /// The engine as the entry of `key`: its file without any weights.
    pub(crate) fn to_entry(&self, key: &CacheKey) -> Result<Vec<u8>, EngineError> {
        let name = Path::new("cache entry");
        let count = self.sources.len();
        let bare = Engine { sources: vec![None; count], digests: vec![None; count], ..self.clone() };
        let bare = Engine { identical: false, ..bare.stripped() };
        let write = || -> Result<_, EngineErrorKind> {
            let mut writer = ContainerWriter::in_memory(name, &FORMAT)?;
            writer.section(KEY, key.as_bytes())?;
            write::engine(&bare, &mut writer, None)?;
            Ok(writer.into_bytes()?)
        };
        write().map_err(|kind| error(name, kind))
    }

    /// Reads what [`Engine::to_entry`] wrote for this key and this version of Regraft, and nothing else.
    pub(crate) fn from_entry(name: &Path, bytes: Buffer, key: &CacheKey) -> Result<Engine, EngineError> {
        let container = Container::from_buffer(name, bytes, &READ, Verify::All).map_err(|e| error(name, e))?;
        let found = container.section(KEY).map_err(|e| error(name, e))?;
        let malformed = |why: &str| Err(error(name, EngineErrorKind::Malformed(why.to_owned())));
        if found.bytes() != key.as_bytes() {
            return malformed("it is the entry of another key");
        }
        let engine = read::engine(name, &container)?;
        if engine.mode != Mode::Stripped || engine.sources.iter().any(Option::is_some) {
            return malformed("an entry with weights");
        }
        Ok(engine)
    }
}

fn error(path: &Path, kind: impl Into<EngineErrorKind>) -> EngineError {
    EngineError { path: path.to_path_buf(), kind: kind.into() }
}
