//! Header and section table as bytes, and the checks that they describe the file they stand in.

use std::ops::Range;

use super::{ContainerErrorKind as Kind, Format, SectionKind, hash_into, sniff};

pub(super) const MAGIC: [u8; 8] = *b"\x89RGF\r\n\x1a\n";
pub(super) const HEADER_LEN: usize = 64;
pub(super) const ENTRY_LEN: usize = 56;
const DIGESTED: usize = 32;

pub(super) type Digest = [u8; 32];

/// What the header says, besides magic, version and flags.
#[derive(Clone, Copy, Debug)]
struct Header {
    file_len: u64,
    sections: u32,
    table_end: u32,
    digest: Digest,
}

/// A section of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: SectionKind,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) digest: Digest,
}

/// The checked table of a file.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Version of the format.
    pub(super) version: u32,
    pub(super) entries: Vec<Entry>,
    /// Digest of header and table, and so of everything in the file.
    pub(super) digest: Digest,
}

/// The least multiple of `alignment` (a power of two) that is not below `at`.
pub(super) fn align_up(at: u64, alignment: u64) -> Option<u64> {
    at.checked_next_multiple_of(alignment)
}

/// Bytes of header and section table.
pub(super) fn table_len(sections: usize) -> usize {
    HEADER_LEN + ENTRY_LEN * sections
}

/// Header and section table of a file of `file_len` bytes whose table has space until `table_end`.
pub(super) fn encode(version: u32, table_end: u32, file_len: u64, entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(table_len(entries.len()));
    bytes.extend(MAGIC);
    bytes.extend(version.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(file_len.to_le_bytes());
    bytes.extend((entries.len() as u32).to_le_bytes());
    bytes.extend(table_end.to_le_bytes());
    bytes.extend([0; 32]);
    for entry in entries {
        bytes.extend(entry.kind.id.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(entry.offset.to_le_bytes());
        bytes.extend(entry.len.to_le_bytes());
        bytes.extend(entry.digest);
    }
    seal(&mut bytes);
    bytes
}

/// Puts the digest of header and table, which `bytes` are, into its place.
pub(super) fn seal(bytes: &mut [u8]) {
    let digest = digest_of_table(bytes);
    bytes[DIGESTED..HEADER_LEN].copy_from_slice(&digest);
}

/// The digest of header and table: of everything in `bytes` but the digest itself.
fn digest_of_table(bytes: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..DIGESTED]);
    hasher.update(&bytes[HEADER_LEN..]);
    *hasher.finalize().as_bytes()
}

/// The digest of a section.
pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hash_into(&mut hasher, bytes);
    *hasher.finalize().as_bytes()
}

/// Reads header and section table of `file`, which is of one of `formats`, and checks everything in the file but the
/// digests of the sections.
pub(super) fn parse(file: &[u8], formats: &[&Format]) -> Result<Table, Kind> {
    let (header, format) = parse_header(file, formats)?;
    let table = checked_table(file, &header, format)?;
    check_length(file, header.file_len)?;
    let entries = parse_entries(table, format)?;
    check_layout(file, &header, &entries)?;
    Ok(Table { version: format.version, entries, digest: header.digest })
}

fn parse_header<'f>(file: &[u8], formats: &[&'f Format]) -> Result<(Header, &'f Format), Kind> {
    if !file.starts_with(&MAGIC) {
        return Err(sniff::other_file(file));
    }
    let Some(mut fields) = file.get(MAGIC.len()..HEADER_LEN).map(Fields) else {
        return Err(Kind::Truncated { expected: HEADER_LEN as u64, found: file.len() as u64 });
    };
    let version = fields.u32();
    let Some(format) = formats.iter().find(|format| format.version == version) else {
        let supported = formats.iter().map(|format| format.version).collect();
        return Err(Kind::Version { found: version, supported });
    };
    let flags = fields.u32();
    if flags != 0 {
        return Err(Kind::corrupt("header", format!("expected no flags, found {flags:#x}")));
    }
    let (file_len, sections, table_end) = (fields.u64(), fields.u32(), fields.u32());
    Ok((Header { file_len, sections, table_end, digest: fields.digest() }, format))
}

/// The entries of the section table as bytes, once the digest has shown that header and table are sound.
fn checked_table<'a>(file: &'a [u8], header: &Header, format: &Format) -> Result<&'a [u8], Kind> {
    let most = format.sections.len();
    if header.sections as usize > most {
        let what = format!("expected at most {most} sections, found {}", header.sections);
        return Err(Kind::corrupt("header", what));
    }
    let end = table_len(header.sections as usize);
    let Some(bytes) = file.get(..end) else {
        return Err(Kind::Truncated { expected: header.file_len.max(end as u64), found: file.len() as u64 });
    };
    if digest_of_table(bytes) != header.digest {
        return Err(Kind::corrupt("header or section table", "the bytes do not match their digest"));
    }
    Ok(&bytes[HEADER_LEN..])
}

fn check_length(file: &[u8], expected: u64) -> Result<(), Kind> {
    let found = file.len() as u64;
    if found < expected {
        return Err(Kind::Truncated { expected, found });
    }
    if found > expected {
        let what = format!("expected {expected} bytes, found {found}: something was appended");
        return Err(Kind::corrupt("length", what));
    }
    Ok(())
}

fn parse_entries(table: &[u8], format: &Format) -> Result<Vec<Entry>, Kind> {
    let mut entries: Vec<Entry> = Vec::new();
    for bytes in table.chunks_exact(ENTRY_LEN) {
        let entry = parse_entry(bytes, format)?;
        if entries.iter().any(|other| other.kind == entry.kind) {
            return Err(Kind::corrupt("section table", format!("section `{}` is there twice", entry.kind.name)));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn parse_entry(bytes: &[u8], format: &Format) -> Result<Entry, Kind> {
    let mut fields = Fields(bytes);
    let (id, reserved) = (fields.u32(), fields.u32());
    let Some(kind) = format.kind(id) else {
        let what = format!("section kind {id} is unknown to format version {}", format.version);
        return Err(Kind::corrupt("section table", what));
    };
    if reserved != 0 {
        return Err(Kind::corrupt("section table", format!("section `{}` has unknown fields", kind.name)));
    }
    Ok(Entry { kind, offset: fields.u64(), len: fields.u64(), digest: fields.digest() })
}

/// Checks that the sections follow each other with nothing but zeros between, up to the end of the file.
fn check_layout(file: &[u8], header: &Header, entries: &[Entry]) -> Result<(), Kind> {
    let table = table_len(entries.len()) as u64;
    let mut end = u64::from(header.table_end);
    check_zeros(file, table, end)?;
    for Entry { kind, offset, len, .. } in entries {
        let expected = align_up(end, kind.class.alignment());
        if expected != Some(*offset) {
            let what = format!("section `{}` begins at {offset}, which does not follow what precedes it", kind.name);
            return Err(Kind::corrupt("section table", what));
        }
        check_zeros(file, end, *offset)?;
        end = offset.checked_add(*len).filter(|&end| end <= header.file_len).ok_or_else(|| {
            let what = format!("section `{}` of {len} bytes at {offset} leaves the file", kind.name);
            Kind::corrupt("section table", what)
        })?;
    }
    if end != header.file_len {
        let what = format!("expected the file to end with its last section at {end}, found {}", header.file_len);
        return Err(Kind::corrupt("section table", what));
    }
    Ok(())
}

/// Checks that the bytes from `start` to `end` are in the file and all 0.
fn check_zeros(file: &[u8], start: u64, end: u64) -> Result<(), Kind> {
    let Some(padding) = range(start, end).and_then(|range| file.get(range)) else {
        let what = format!("a gap from {start} to {end} in a file of {} bytes", file.len());
        return Err(Kind::corrupt("section table", what));
    };
    match padding.iter().position(|&byte| byte != 0) {
        None => Ok(()),
        Some(at) => {
            let what = format!("expected 0 at byte {}, found {:#04x}", start + at as u64, padding[at]);
            Err(Kind::corrupt("padding", what))
        }
    }
}

fn range(start: u64, end: u64) -> Option<Range<usize>> {
    Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

impl Entry {
    /// Where the section is in a file that [`parse`] accepted.
    pub(super) fn range(&self) -> Option<Range<usize>> {
        range(self.offset, self.offset.checked_add(self.len)?)
    }

    /// Checks the digest of the section.
    pub(super) fn verify(&self, file: &[u8]) -> Result<(), Kind> {
        let sound = self.range().and_then(|range| file.get(range)).is_some_and(|b| digest_of(b) == self.digest);
        if sound {
            return Ok(());
        }
        let what = format!("its {} bytes at {} do not match their digest", self.len, self.offset);
        Err(Kind::corrupt(format!("section `{}`", self.kind.name), what))
    }
}

/// Takes numbers from the front of bytes whose length the caller has checked; bytes that lack read as 0.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((bytes, rest)) = self.0.split_first_chunk::<N>() else {
            debug_assert!(false, "a field reaches over the end of its bytes");
            return [0; N];
        };
        self.0 = rest;
        *bytes
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn digest(&mut self) -> Digest {
        self.take()
    }
}
