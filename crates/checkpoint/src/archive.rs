use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    io::{Cursor, Read},
    ops::Range,
};

use regraft_tensor::{AlignedVec, Buffer, Explanation, MappedFile};
use zip::{
    CompressionMethod, ZipArchive,
    read::{ArchiveOffset, Config},
};

/// No text entry may be larger than this, compressed or not.
const MAX_TEXT_BYTES: u64 = 512 << 20;
/// A compressed entry may grow to `MAX_RATIO` times its size, and to `RATIO_FREE` bytes at any ratio.
const MAX_RATIO: u64 = 256;
const RATIO_FREE: u64 = 1 << 20;
/// More entries than any model has.
const MAX_ENTRIES: usize = 1 << 20;

const DAMAGED: &str = "the file is truncated or damaged: copy it or save it again";
const FREE_MEMORY: &str = "free memory, or save the file again without compression";
const SAVE_AGAIN: &str = "load it with PyTorch and save it again";

/// A zip file, as PyTorch uses it for all its formats, whose structure is sound: entries are inside the file, do not
/// overlap, have one name each, and their local headers agree with the central directory.
///
/// Contents are checked (length and CRC-32) when they are read. Stored entries are parts of the mapped file.
#[derive(Debug)]
pub struct Archive {
    file: MappedFile,
    zip: ZipArchive<Cursor<Bytes>>,
    /// The folder that was entered, with its slash; empty before that.
    root: String,
    /// By the name inside of the root folder.
    entries: BTreeMap<String, Entry>,
}

/// What is wrong with an archive or one of its entries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.explained())]
pub struct ArchiveError {
    /// The entry as tools list it; empty for the archive as a whole.
    pub entry: String,
    /// What was expected and what was found.
    pub problem: String,
    /// What to do.
    pub help: String,
}

impl ArchiveError {
    /// In parts.
    pub fn explained(&self) -> Explanation {
        let explanation = Explanation::new(&self.problem).help(&self.help);
        if self.entry.is_empty() { explanation } else { explanation.about(&self.entry) }
    }
}

/// The order of bytes in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    /// The lowest byte first.
    Little,
    /// The highest byte first.
    Big,
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
    /// Checks the structure of the zip file `file`.
    ///
    /// # Errors
    /// When it is not a zip file, or no sound one.
    pub fn new(file: MappedFile) -> Result<Self, ArchiveError> {
        let bad = |problem: String| ArchiveError { entry: String::new(), problem, help: DAMAGED.to_owned() };
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let mut zip = ZipArchive::with_config(config, Cursor::new(Bytes(file.clone()))).map_err(|e| {
            if file.bytes().starts_with(b"PK") {
                bad(format!("its zip directory cannot be read: {e}"))
            } else {
                let help = "expected a file of torch.save or torch.export.save".to_owned();
                ArchiveError { help, ..bad(format!("it is not a zip file: {e}")) }
            }
        })?;
        if zip.len() > MAX_ENTRIES {
            return Err(bad(format!("it has {} entries, more than {MAX_ENTRIES}", zip.len())));
        }
        zip.validate_header_consistency().map_err(|e| bad(format!("its zip directory is not sound: {e}")))?;
        let mut entries = BTreeMap::new();
        for index in 0..zip.len() {
            let (name, entry) = read_entry(&mut zip, index, file.bytes()).map_err(bad)?;
            if !name.ends_with('/') {
                entries.insert(name, entry);
            }
        }
        Ok(Archive { file, zip, root: String::new(), entries })
    }

    /// Forgets all entries that do not stand in the folder `root`, and the folder in the names of those that do.
    pub fn enter(&mut self, root: &str) {
        self.root.push_str(root);
        self.root.push('/');
        let prefix = format!("{root}/");
        let inner = |(name, entry): (String, Entry)| Some((name.strip_prefix(&prefix)?.to_owned(), entry));
        self.entries = std::mem::take(&mut self.entries).into_iter().filter_map(inner).collect();
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.file.bytes().len() as u64
    }

    /// The names of all entries, without the folder that was entered.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.entries.keys().map(String::as_str)
    }

    /// Bytes of the entry, uncompressed; `None` when there is no such entry.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.entries.get(name).map(|e| e.size)
    }

    /// Bytes of memory that reading the entry takes: none when it is stored.
    pub fn memory_for(&self, name: &str) -> u64 {
        self.entries.get(name).filter(|e| e.method != CompressionMethod::Stored).map_or(0, |e| e.size)
    }

    /// The bytes of a text entry, checked; `None` when there is no such entry.
    ///
    /// # Errors
    /// When it is damaged, encrypted or larger than any text should be.
    pub fn text(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>, ArchiveError> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        if entry.size > MAX_TEXT_BYTES {
            let problem = format!("it has {} bytes, expected at most {MAX_TEXT_BYTES}", entry.size);
            return Err(self.error(name, problem, "export a smaller program"));
        }
        match self.stored(name, entry)? {
            Some(range) => Ok(self.file.bytes().get(range).map(Cow::Borrowed)),
            None => self.inflate(name, entry).map(|bytes| Some(Cow::Owned(bytes.bytes().to_vec()))),
        }
    }

    /// The content of an entry that holds a word or a number, such as `byteorder`; `None` when there is no such entry.
    ///
    /// # Errors
    /// When it is damaged, encrypted or longer than a word.
    pub fn mark(&self, name: &str) -> Result<Option<String>, ArchiveError> {
        match self.size(name) {
            Some(size) if size > 64 => {
                Err(self.error(name, format!("expected a short mark, found {size} bytes"), DAMAGED))
            }
            _ => Ok(self.text(name)?.map(|b| String::from_utf8_lossy(&b).trim().to_owned())),
        }
    }

    /// The order of bytes in its numbers, as its mark says.
    ///
    /// # Errors
    /// When it is neither of the two.
    pub fn byte_order(&self) -> Result<ByteOrder, ArchiveError> {
        match self.mark("byteorder")?.as_deref() {
            Some("little") | None => Ok(ByteOrder::Little),
            Some("big") => Ok(ByteOrder::Big),
            Some(other) => {
                Err(self.error("byteorder", format!("expected `little` or `big`, found `{other}`"), SAVE_AGAIN))
            }
        }
    }

    /// Refuses the archive when its mark says that its numbers are not little-endian.
    ///
    /// # Errors
    /// When they are not.
    pub fn check_byte_order(&self) -> Result<(), ArchiveError> {
        match self.byte_order()? {
            ByteOrder::Little => Ok(()),
            ByteOrder::Big => {
                let help = "save it on a little-endian machine (x86-64, AArch64)";
                Err(self.error("byteorder", "expected `little`, found `big`", help))
            }
        }
    }

    /// The bytes of an entry, checked: a range of the mapped file when they are stored, in memory when compressed.
    ///
    /// # Errors
    /// When there is no such entry, or it is damaged or encrypted.
    pub fn buffer(&self, name: &str) -> Result<Buffer, ArchiveError> {
        let missing = || self.error(name, "it is missing", DAMAGED);
        let entry = self.entries.get(name).ok_or_else(missing)?;
        match self.stored(name, entry)? {
            Some(range) => Buffer::mapped(&self.file, range).ok_or_else(missing),
            None => self.inflate(name, entry).map(Buffer::from),
        }
    }

    /// An error about the entry `name`.
    pub fn error(&self, name: &str, problem: impl Into<String>, help: &str) -> ArchiveError {
        ArchiveError { entry: self.full_name(name), problem: problem.into(), help: help.to_owned() }
    }

    /// The name as tools list it.
    pub fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.root)
    }

    /// Where the bytes of a stored entry stand, checked; `None` when it is compressed.
    fn stored(&self, name: &str, entry: &Entry) -> Result<Option<Range<usize>>, ArchiveError> {
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

    fn inflate(&self, name: &str, entry: &Entry) -> Result<AlignedVec, ArchiveError> {
        let packed = entry.data.len() as u64;
        if entry.size > RATIO_FREE && entry.size / MAX_RATIO > packed {
            let problem =
                format!("{packed} compressed bytes claim to hold {}, more than {MAX_RATIO} times as many", entry.size);
            return Err(self.error(name, problem, SAVE_AGAIN));
        }
        let damaged = |e: &dyn fmt::Display| self.error(name, format!("it cannot be decompressed: {e}"), DAMAGED);
        let size = usize::try_from(entry.size).map_err(|e| damaged(&e))?;
        // Cloning shares the directory and the mapping.
        let mut zip = self.zip.clone();
        let mut reader = zip.by_index(entry.index).map_err(|e| damaged(&e))?;
        let refused = |e: regraft_tensor::TensorError| self.error(name, format!("it cannot be read: {e}"), FREE_MEMORY);
        let mut bytes = AlignedVec::try_zeroed(size).map_err(refused)?;
        reader.read_exact(bytes.bytes_mut()).map_err(|e| damaged(&e))?;
        if reader.read(&mut [0]).map_err(|e| damaged(&e))? != 0 {
            return Err(damaged(&format!("it holds more than the {size} bytes it should")));
        }
        self.check_crc(name, entry, bytes.bytes())?;
        Ok(bytes)
    }

    fn check_crc(&self, name: &str, entry: &Entry, bytes: &[u8]) -> Result<(), ArchiveError> {
        let found = crc32fast::hash(bytes);
        if found == entry.crc {
            return Ok(());
        }
        let problem = format!("its bytes have changed: expected CRC-32 {:08x}, found {found:08x}", entry.crc);
        Err(self.error(name, problem, DAMAGED))
    }
}

/// The entry at `index` of the directory, with its name.
fn read_entry(zip: &mut ZipArchive<Cursor<Bytes>>, index: usize, file: &[u8]) -> Result<(String, Entry), String> {
    let entry = zip.by_index_raw(index).map_err(|e| format!("entry {index} of its zip directory: {e}"))?;
    let name = std::str::from_utf8(entry.name_raw()).map_err(|_| format!("the name of entry {index} is not UTF-8"))?;
    let data = entry
        .data_start()
        .and_then(|start| Some((start, start.checked_add(entry.compressed_size())?)))
        .and_then(|(start, end)| Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?))
        .filter(|range| file.get(range.clone()).is_some())
        .ok_or_else(|| format!("entry {name} reaches beyond the end of the file"))?;
    let parsed = Entry {
        index,
        data,
        size: entry.size(),
        crc: entry.crc32(),
        method: entry.compression(),
        encrypted: entry.encrypted(),
    };
    Ok((name.to_owned(), parsed))
}
