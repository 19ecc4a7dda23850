//! A versioned, sectioned, checksummed file: the outside of an engine file. It knows sections and their bytes, and
//! nothing of what they mean; a [`Format`] tells it which kinds of section a version has.
//!
//! All numbers are little endian.
//!
//! | bytes | header |
//! |---|---|
//! | 0..8 | magic, `89 52 47 46 0D 0A 1A 0A`; transfers in text mode and 7-bit channels damage it |
//! | 8..12 | version of the format |
//! | 12..16 | flags, all 0 |
//! | 16..24 | length of the file |
//! | 24..28 | number of sections |
//! | 28..32 | end of the space of the section table |
//! | 32..64 | BLAKE3 digest of bytes 0..32 and of the section table |
//!
//! The section table follows, one entry per section in the order of the file:
//!
//! | bytes | entry |
//! |---|---|
//! | 0..4 | kind; no two sections have the same |
//! | 4..8 | 0 |
//! | 8..16 | offset in the file |
//! | 16..24 | length |
//! | 24..56 | BLAKE3 digest of the bytes |
//!
//! Each section begins at the first multiple of its alignment after what precedes it, the bytes between are 0, and the
//! file ends with its last section. So every byte of the file is either under a digest or known to be 0, and a flipped
//! bit anywhere is found.

mod error;
mod layout;
mod read;
mod sniff;
#[cfg(test)]
mod tests;
mod write;

use regraft_weights::on_shared_threads;

pub use error::{ContainerError, ContainerErrorKind};
pub use read::{Container, SectionInfo, Verify};
pub use write::ContainerWriter;

/// A version of a container's content: which sections there are. A reader takes a list of them, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Version.
    pub version: u32,
    /// The kinds of section that this version has. Each stands in a file at most once.
    pub sections: &'static [SectionKind],
}

/// A kind of section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SectionKind {
    /// Number in the file.
    pub id: u32,
    /// Name in messages.
    pub name: &'static str,
    /// What it holds, which decides its alignment and when it is verified.
    pub class: SectionClass,
}

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SectionClass {
    /// Small descriptions, aligned to a cache line.
    Metadata,
    /// Many bytes that are used where they lie, aligned to a page.
    Weights,
}

impl SectionClass {
    /// Alignment of such a section in the file and, mapped, in memory.
    pub fn alignment(self) -> u64 {
        match self {
            SectionClass::Metadata => CHUNK_ALIGNMENT,
            SectionClass::Weights => 4096,
        }
    }
}

impl Format {
    fn kind(&self, id: u32) -> Option<SectionKind> {
        self.sections.iter().copied().find(|kind| kind.id == id)
    }
}

/// Alignment of the chunks inside a section.
pub const CHUNK_ALIGNMENT: u64 = 64;

/// From this size on a digest is computed by several threads; below, waking them costs more.
const RAYON_FROM: usize = 128 << 10;

fn hash_into(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    if bytes.len() < RAYON_FROM {
        hasher.update(bytes);
    } else {
        on_shared_threads(|| _ = hasher.update_rayon(bytes));
    }
}
