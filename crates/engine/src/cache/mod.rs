//! The engine cache: stripped engines by what they were built from.
//!
//! An [`EngineCache`] stores bytes by key, wherever it likes. What the bytes are worth is decided by [`load`], which reads
//! them as hostile as any engine file: a damaged entry is a miss with a warning, never a wrong engine.
//!
//! - [`CacheKey`]: a digest of the canonical program, options, target, tuning records and product version;
//! - [`EngineCache`]: what a cache does;
//! - [`DiskCache`]: entries as files, shared by processes.
//!
//! ```
//! use std::{collections::HashMap, sync::Mutex};
//!
//! use regraft_engine::cache::{CacheError, CacheKey, EngineCache, Put};
//! use regraft_tensor::{AlignedVec, Buffer};
//!
//! /// A cache that lives as long as this process.
//! #[derive(Debug, Default)]
//! struct InMemory(Mutex<HashMap<CacheKey, Vec<u8>>>);
//!
//! impl EngineCache for InMemory {
//!     fn get(&self, key: &CacheKey) -> Result<Option<Buffer>, CacheError> {
//!         let entries = self.0.lock().expect("no holder panics");
//!         Ok(entries.get(key).map(|entry| AlignedVec::from_slice(entry.as_slice()).into()))
//!     }
//!
//!     fn put(&self, key: &CacheKey, entry: &[u8]) -> Result<Put, CacheError> {
//!         self.0.lock().expect("no holder panics").insert(*key, entry.to_vec());
//!         Ok(Put::Stored)
//!     }
//!
//!     fn remove(&self, key: &CacheKey) -> Result<(), CacheError> {
//!         self.0.lock().expect("no holder panics").remove(key);
//!         Ok(())
//!     }
//! }
//! ```

mod disk;
mod entry;
mod error;
mod key;

use std::{any::Any, fmt};

use regraft_tensor::Buffer;

pub use self::{
    disk::{DiskCache, DiskEntry, Usage},
    entry::{Loaded, load, store},
    error::CacheError,
    key::{CacheKey, KeyHasher},
};

/// The largest entry that is read, in bytes: 1 GiB. An engine without its weights is far smaller.
pub const MAX_ENTRY: u64 = 1 << 30;

/// A place for stripped engines. Entries are immutable bytes that a cache need not understand.
///
/// A cache is shared by threads, and most are by processes too: a reader of a key that is being written sees the old entry,
/// the new one or none, never a part of one.
pub trait EngineCache: fmt::Debug + Send + Sync {
    /// The entry of `key`, which counts as a use of it.
    ///
    /// # Errors
    /// When the place cannot be read; an entry that is not there is not an error.
    fn get(&self, key: &CacheKey) -> Result<Option<Buffer>, CacheError>;

    /// Stores an entry; it replaces one of the same key. Others may be evicted to make room.
    ///
    /// # Errors
    /// When the place cannot be written; what was there before is still there then.
    fn put(&self, key: &CacheKey, entry: &[u8]) -> Result<Put, CacheError>;

    /// Removes the entry of `key`, if there is one.
    ///
    /// # Errors
    /// When the place cannot be written.
    fn remove(&self, key: &CacheKey) -> Result<(), CacheError>;

    /// Waits until nobody else builds what belongs to `key`, and keeps others waiting until the claim is dropped or its
    /// process ends. A cache that does not coordinate builders returns at once: two of them build the same engine then, and
    /// the later one's entry stays.
    ///
    /// # Errors
    /// When the place cannot be written.
    fn claim(&self, _key: &CacheKey) -> Result<Claim, CacheError> {
        Ok(Claim::none())
    }
}

/// The outcome of storing an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is stored.
    Stored,
    /// It is larger than all that the cache may hold, in bytes; nothing was evicted for it.
    TooLarge {
        /// The limit.
        limit: u64,
    },
}

/// The right to build what belongs to a key, until it is dropped.
pub struct Claim(Option<Box<dyn Any + Send>>);

impl Claim {
    /// A claim that holds something whose drop lets others go on.
    pub fn new(held: impl Any + Send) -> Self {
        Claim(Some(Box::new(held)))
    }

    /// Whether it keeps others waiting.
    pub fn is_held(&self) -> bool {
        self.0.is_some()
    }

    /// A claim that keeps nobody waiting.
    pub fn none() -> Self {
        Claim(None)
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_held() { "Claim(held)" } else { "Claim(none)" })
    }
}
