//! Least recently used entries go first.

use std::{io, path::Path};

use super::{
    DiskEntry,
    files::{Entries, remove},
};
use crate::cache::CacheKey;

/// Removes entries, the one used longest ago first, until all files together take no more than `limit` bytes. The entry
/// that is about to be replaced is not counted, nor removed for the sake of its successor. Asks for the lock of the cache.
pub(super) fn down_to(root: &Path, limit: u64, replaced: Option<&CacheKey>) -> io::Result<Vec<DiskEntry>> {
    let entries = Entries::of(root)?;
    let mut total = entries.total();
    let (old, others): (Vec<_>, Vec<_>) = entries.list.into_iter().partition(|entry| Some(&entry.key) == replaced);
    total -= old.iter().map(|entry| entry.bytes).sum::<u64>();
    let mut removed = Vec::new();
    for entry in others {
        if total <= limit {
            break;
        }
        remove(&entry.path)?;
        total -= entry.bytes;
        removed.push(entry);
    }
    Ok(removed)
}
