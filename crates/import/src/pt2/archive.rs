//! The container: a zip file, mapped into memory and checked before anything in it is used.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use regraft_checkpoint::{self as checkpoint, ArchiveError};
use regraft_tensor::{Buffer, MappedFile};

use crate::{At, ImportError, ImportErrorKind};

/// The version of the archive format that torch 2.9 to 2.15 write.
const ARCHIVE_VERSION: u64 = 0;

const SAVE_AGAIN: &str = "load it with torch.export.load and save it with torch.export.save of torch 2.9 or newer";

/// A `.pt2` file whose zip structure is sound, in the folder that everything stands in, and of a supported version.
///
/// Contents are checked (length and CRC-32) when they are read.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    files: checkpoint::Archive,
}

impl Archive {
    /// Maps the file at `path` and checks its structure and its format and version marks.
    ///
    /// # Errors
    /// When the file cannot be mapped, is not a sound zip file, or no archive of a supported version and byte order.
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        let file = MappedFile::open(path).map_err(|e| ImportError::new(path, e.into()))?;
        let mut files = checkpoint::Archive::new(file).map_err(|e| error(path, e))?;
        let root = root_folder(path, files.names())?;
        files.enter(&root);
        let archive = Archive { path: path.to_path_buf(), files };
        archive.check_marks()?;
        Ok(archive)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file in bytes.
    pub(crate) fn file_len(&self) -> u64 {
        self.files.file_len()
    }

    /// The names of all entries, without the root folder.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.names()
    }

    /// Bytes of the entry, uncompressed; `None` when there is no such entry.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.files.size(name)
    }

    /// The name of the only model, or of the one called `model`.
    ///
    /// # Errors
    /// When there is none, or when there are several and none is called `model`.
    pub fn model_name(&self) -> Result<&str, ImportError> {
        let names: Vec<&str> = self
            .names()
            .filter_map(|n| n.strip_prefix("models/")?.strip_suffix(".json"))
            .filter(|n| !n.contains('/'))
            .collect();
        match names.as_slice() {
            [] if self.names().any(|n| n.starts_with("data/aotinductor/")) => Err(self.error(
                "models/",
                "it holds code compiled by AOTInductor and no exported program",
                "save the ExportedProgram itself with torch.export.save",
            )),
            [] => Err(self.error(
                "models/",
                "expected an exported program, found none",
                "save the program with torch.export.save",
            )),
            [name] => Ok(name),
            names => names.iter().find(|n| **n == "model").copied().ok_or_else(|| {
                self.error(
                    "models/",
                    format!("expected one program or one called `model`, found {}", list(names)),
                    "save one program to a file of its own with torch.export.save",
                )
            }),
        }
    }

    /// The bytes of a JSON or text entry, checked; `None` when there is no such entry.
    pub(crate) fn text(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>, ImportError> {
        self.files.text(name).map_err(|e| error(&self.path, e))
    }

    /// The bytes of an entry, checked: a range of the mapped file when they are stored, in memory when compressed.
    pub(crate) fn buffer(&self, name: &str) -> Result<Buffer, ImportError> {
        self.files.buffer(name).map_err(|e| error(&self.path, e))
    }

    /// Bytes of memory that reading the entry takes.
    pub(crate) fn memory_for(&self, name: &str) -> u64 {
        self.files.memory_for(name)
    }

    /// The marks beside the program: format, version, byte order.
    fn check_marks(&self) -> Result<(), ImportError> {
        let mark = |name: &str| self.files.mark(name).map_err(|e| error(&self.path, e));
        match mark("archive_format")?.as_deref() {
            Some("pt2") => {}
            Some(other) => {
                return Err(self.error("archive_format", format!("expected `pt2`, found `{other}`"), SAVE_AGAIN));
            }
            None if self.size("data.pkl").is_some() => {
                return Err(self.error(
                    "data.pkl",
                    "it was written by torch.save or torch.jit.save and holds no exported program",
                    "export the model with torch.export.export and save it with torch.export.save",
                ));
            }
            None => return Err(self.error("archive_format", "it is missing", SAVE_AGAIN)),
        }
        // An archive without a version is of the first one.
        let version = mark("archive_version")?.unwrap_or_else(|| ARCHIVE_VERSION.to_string());
        if version.parse() != Ok(ARCHIVE_VERSION) {
            return Err(self.error(
                "archive_version",
                format!("found version `{version}`, supported is {ARCHIVE_VERSION} (torch 2.9 to 2.15)"),
                "save the program with a torch of that range, or use a newer Regraft",
            ));
        }
        self.files.check_byte_order().map_err(|e| error(&self.path, e))
    }

    pub(crate) fn error(&self, name: &str, problem: impl Into<String>, help: &str) -> ImportError {
        error(&self.path, self.files.error(name, problem, help))
    }

    /// The name as tools list it.
    pub(crate) fn full_name(&self, name: &str) -> String {
        self.files.full_name(name)
    }
}

/// An error about the archive at `path`.
fn error(path: &Path, ArchiveError { entry, problem, help }: ArchiveError) -> ImportError {
    ImportError::new(path, ImportErrorKind::Archive { entry, problem, help })
}

/// The one folder of an archive that holds a program.
fn root_folder<'a>(path: &Path, names: impl Iterator<Item = &'a str> + Clone) -> Result<String, ImportError> {
    let error = |kind: fn(String, String) -> ImportErrorKind, what: String, help: &str| {
        ImportError::new(path, kind(what, help.to_owned()))
    };
    let archive = |problem, help| ImportErrorKind::Archive { entry: String::new(), problem, help };
    let old = |what, help| ImportErrorKind::Unsupported { at: At::default(), what, help };
    let roots: BTreeSet<&str> = names
        .clone()
        .filter_map(|name| name.split_once('/'))
        .filter(|(_, inner)| matches!(*inner, "archive_format" | "data.pkl") || inner.starts_with("models/"))
        .map(|(root, _)| root)
        .collect();
    let mut roots = roots.into_iter();
    match (roots.next(), roots.next()) {
        (Some(root), None) if !root.is_empty() => Ok(root.to_owned()),
        (Some(a), Some(b)) => {
            Err(error(archive, format!("expected one folder with a program, found `{a}` and `{b}`"), SAVE_AGAIN))
        }
        _ if names.clone().any(|n| n.rsplit('/').next() == Some("serialized_exported_program.json")) => Err(error(
            old,
            "the layout of torch 2.7 and before (serialized_exported_program.json)".to_owned(),
            SAVE_AGAIN,
        )),
        _ => {
            let found: Vec<&str> = names.take(5).collect();
            Err(error(
                archive,
                format!("expected a folder with `archive_format` and `models/`, found {}", list(&found)),
                SAVE_AGAIN,
            ))
        }
    }
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { format!("`{}`", names.join("`, `")) }
}
