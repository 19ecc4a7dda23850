//! The container: a zip file, mapped into memory and checked before anything in it is believed.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    io::{Cursor, Read},
    ops::Range,
    path::{Path, PathBuf},
};

use regraft_tensor::{AlignedVec, Buffer, MappedFile};
use zip::{
    CompressionMethod, ZipArchive,
    read::{ArchiveOffset, Config},
};

use crate::{ImportError, ImportErrorKind};

/// The version of the archive format that torch 2.9 to 2.15 write.
const ARCHIVE_VERSION: u64 = 0;
/// No JSON entry may be larger than this, compressed or not.
const MAX_JSON_BYTES: u64 = 512 << 20;
/// A compressed entry may grow to `MAX_RATIO` times its size, and to `RATIO_FREE` bytes at any ratio.
const MAX_RATIO: u64 = 256;
const RATIO_FREE: u64 = 1 << 20;
/// More entries than any model has.
const MAX_ENTRIES: usize = 1 << 20;

const DAMAGED: &str = "the file is truncated or damaged: copy it or save it again";
const SAVE_AGAIN: &str = "load it with torch.export.load and save it with torch.export.save of torch 2.9 or newer";

/// A `.pt2` file whose zip structure is sound: entries are inside the file, do not overlap, have one name each, and
/// their local headers agree with the central directory.
///
/// Contents are checked (length and CRC-32) when they are read.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    file: MappedFile,
    zip: ZipArchive<Cursor<Bytes>>,
    /// The folder that everything stands in, as every archive of PyTorch has one.
    root: String,
    /// By the name inside of the root folder.
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    index: usize,
    /// Where the stored or compressed bytes stand in the file.
    data: Range<usize>,
    size: u64,
    crc: u32,
    method: CompressionMethod,
    encrypted: bool,
}

/// A mapped file as the zip reader wants it.
#[derive(Debug, Clone)]
struct Bytes(MappedFile);

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl Archive {
    /// Maps the file at `path` and checks its structure and its format and version marks.
    ///
    /// # Errors
    /// When the file cannot be mapped, is no sound zip file, or no archive of a supported version and byte order.
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        let file = MappedFile::open(path).map_err(|e| ImportError::new(path, e.into()))?;
        let bad = |problem: String, help: &str| {
            ImportError::new(path, ImportErrorKind::Archive { entry: String::new(), problem, help: help.to_owned() })
        };
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let mut zip = ZipArchive::with_config(config, Cursor::new(Bytes(file.clone()))).map_err(|e| {
            if file.bytes().starts_with(b"PK") {
                bad(format!("its zip directory cannot be read: {e}"), DAMAGED)
            } else {
                bad(format!("it is no zip file: {e}"), "expected a .pt2 file written by torch.export.save")
            }
        })?;
        if zip.len() > MAX_ENTRIES {
            return Err(bad(format!("it has {} entries, more than {MAX_ENTRIES}", zip.len()), DAMAGED));
        }
        zip.validate_header_consistency().map_err(|e| bad(format!("its zip directory is not sound: {e}"), DAMAGED))?;

        let mut named = Vec::with_capacity(zip.len());
        for index in 0..zip.len() {
            let entry = zip
                .by_index_raw(index)
                .map_err(|e| bad(format!("entry {index} of its zip directory: {e}"), DAMAGED))?;
            let name = std::str::from_utf8(entry.name_raw())
                .map_err(|_| bad(format!("the name of entry {index} is not UTF-8"), DAMAGED))?
                .to_owned();
            if name.ends_with('/') {
                continue;
            }
            let data = entry
                .data_start()
                .and_then(|start| Some((start, start.checked_add(entry.compressed_size())?)))
                .and_then(|(start, end)| Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?))
                .filter(|range| file.bytes().get(range.clone()).is_some())
                .ok_or_else(|| bad(format!("entry {name} reaches beyond the end of the file"), DAMAGED))?;
            let entry = Entry {
                index,
                data,
                size: entry.size(),
                crc: entry.crc32(),
                method: entry.compression(),
                encrypted: entry.encrypted(),
            };
            named.push((name, entry));
        }
        let root = root_folder(path, named.iter().map(|(name, _)| name.as_str()))?;
        let prefix = format!("{root}/");
        let entries =
            named.into_iter().filter_map(|(name, e)| Some((name.strip_prefix(&prefix)?.to_owned(), e))).collect();
        let archive = Archive { path: path.to_path_buf(), file, zip, root, entries };
        archive.check_marks()?;
        Ok(archive)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file in bytes.
    pub(crate) fn file_len(&self) -> u64 {
        self.file.bytes().len() as u64
    }

    /// The names of all entries, without the root folder.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Bytes of the entry, uncompressed; `None` when there is no such entry.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.entries.get(name).map(|e| e.size)
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
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        if entry.size > MAX_JSON_BYTES {
            return Err(self.error(
                name,
                format!("it has {} bytes, expected at most {MAX_JSON_BYTES}", entry.size),
                "export a smaller program",
            ));
        }
        match self.stored(name, entry)? {
            Some(range) => Ok(self.file.bytes().get(range).map(Cow::Borrowed)),
            None => self.inflate(name, entry).map(|bytes| Some(Cow::Owned(bytes.bytes().to_vec()))),
        }
    }

    /// The bytes of an entry, checked: a range of the mapped file when they are stored, in memory when compressed.
    pub(crate) fn buffer(&self, name: &str) -> Result<Buffer, ImportError> {
        let missing = || self.error(name, "it is missing", DAMAGED);
        let entry = self.entries.get(name).ok_or_else(missing)?;
        match self.stored(name, entry)? {
            Some(range) => Buffer::mapped(&self.file, range).ok_or_else(missing),
            None => self.inflate(name, entry).map(Buffer::from),
        }
    }

    /// Bytes of memory that reading the entry takes.
    pub(crate) fn memory_for(&self, name: &str) -> u64 {
        self.entries.get(name).filter(|e| e.method != CompressionMethod::Stored).map_or(0, |e| e.size)
    }

    /// Where the bytes of a stored entry stand, checked.
    fn stored(&self, name: &str, entry: &Entry) -> Result<Option<Range<usize>>, ImportError> {
        if entry.encrypted {
            return Err(self.error(name, "it is encrypted", SAVE_AGAIN));
        }
        match entry.method {
            CompressionMethod::Stored => {}
            CompressionMethod::Deflated => return Ok(None),
            method => {
                let problem = format!("expected stored or deflated bytes, found compression {method}");
                return Err(self.error(name, problem, SAVE_AGAIN));
            }
        }
        let bytes = self.file.bytes().get(entry.data.clone()).unwrap_or_default();
        if bytes.len() as u64 != entry.size {
            let problem = format!("expected {} bytes, found {}", entry.size, bytes.len());
            return Err(self.error(name, problem, DAMAGED));
        }
        self.check_crc(name, entry, bytes)?;
        Ok(Some(entry.data.clone()))
    }

    fn inflate(&self, name: &str, entry: &Entry) -> Result<AlignedVec, ImportError> {
        let packed = entry.data.len() as u64;
        if entry.size > RATIO_FREE && entry.size / MAX_RATIO > packed {
            return Err(self.error(
                name,
                format!("{packed} compressed bytes claim to hold {}, more than {MAX_RATIO} times as many", entry.size),
                SAVE_AGAIN,
            ));
        }
        let damaged = |e: &dyn std::fmt::Display| self.error(name, format!("it cannot be decompressed: {e}"), DAMAGED);
        let size = usize::try_from(entry.size).map_err(|e| damaged(&e))?;
        // Cloning shares the directory and the mapping.
        let mut zip = self.zip.clone();
        let mut reader = zip.by_index(entry.index).map_err(|e| damaged(&e))?;
        let mut bytes = AlignedVec::zeroed(size);
        reader.read_exact(bytes.bytes_mut()).map_err(|e| damaged(&e))?;
        if reader.read(&mut [0]).map_err(|e| damaged(&e))? != 0 {
            return Err(damaged(&format!("it holds more than the {size} bytes it should")));
        }
        self.check_crc(name, entry, bytes.bytes())?;
        Ok(bytes)
    }

    fn check_crc(&self, name: &str, entry: &Entry, bytes: &[u8]) -> Result<(), ImportError> {
        let found = crc32fast::hash(bytes);
        if found == entry.crc {
            return Ok(());
        }
        let problem = format!("its bytes have changed: expected CRC-32 {:08x}, found {found:08x}", entry.crc);
        Err(self.error(name, problem, DAMAGED))
    }

    /// The marks beside the program: format, version, byte order.
    fn check_marks(&self) -> Result<(), ImportError> {
        let mark = |name: &str| -> Result<Option<String>, ImportError> {
            match self.size(name) {
                Some(size) if size > 64 => {
                    Err(self.error(name, format!("expected a short mark, found {size} bytes"), DAMAGED))
                }
                _ => Ok(self.text(name)?.map(|b| String::from_utf8_lossy(&b).trim().to_owned())),
            }
        };
        match mark("archive_format")?.as_deref() {
            Some("pt2") => {}
            Some(other) => {
                return Err(self.error("archive_format", format!("expected `pt2`, found `{other}`"), SAVE_AGAIN));
            }
            None if self.names().any(|n| n == "data.pkl") => {
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
        match mark("byteorder")?.as_deref() {
            Some("little") | None => Ok(()),
            Some(other) => Err(self.error(
                "byteorder",
                format!("expected `little`, found `{other}`"),
                "save the program on a little-endian machine (x86-64, AArch64)",
            )),
        }
    }

    pub(crate) fn error(&self, name: &str, problem: impl Into<String>, help: &str) -> ImportError {
        let (entry, problem, help) = (self.full_name(name), problem.into(), help.to_owned());
        ImportError::new(&self.path, ImportErrorKind::Archive { entry, problem, help })
    }

    /// The name as tools list it.
    pub(crate) fn full_name(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }
}

/// The one folder of an archive that holds a program.
fn root_folder<'a>(path: &Path, names: impl Iterator<Item = &'a str> + Clone) -> Result<String, ImportError> {
    let error = |kind: fn(String, String) -> ImportErrorKind, what: String, help: &str| {
        ImportError::new(path, kind(what, help.to_owned()))
    };
    let archive = |problem, help| ImportErrorKind::Archive { entry: String::new(), problem, help };
    let old = |what, help| ImportErrorKind::Unsupported { at: String::new(), what, help };
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
