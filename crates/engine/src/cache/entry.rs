//! Engines as entries: what a cache returns is read like any file from outside.

use std::path::PathBuf;

use super::{CacheError, CacheKey, EngineCache, Put};
use crate::{Engine, EngineError};

/// What a cache had.
#[derive(Debug)]
pub enum Loaded {
    /// The engine, without any weights.
    Hit(Box<Engine>),
    /// Nothing.
    Miss,
    /// Something that is not a sound entry of this key; it was removed.
    Damaged(EngineError),
}

/// The engine of `key` in `cache`. An entry that is damaged, of another version or of another key is removed.
///
/// # Errors
/// When the cache cannot be read.
pub fn load(cache: &dyn EngineCache, key: &CacheKey) -> Result<Loaded, CacheError> {
    let Some(bytes) = cache.get(key)? else { return Ok(Loaded::Miss) };
    let name = PathBuf::from(format!("cache entry {key}"));
    match Engine::from_entry(&name, bytes, key) {
        Ok(engine) => Ok(Loaded::Hit(Box::new(engine))),
        Err(error) => {
            cache.remove(key)?;
            Ok(Loaded::Damaged(error))
        }
    }
}

/// Stores `engine` without its weights as the entry of `key`.
///
/// # Errors
/// When the cache cannot be written.
pub fn store(cache: &dyn EngineCache, key: &CacheKey, engine: &Engine) -> Result<Put, CacheError> {
    let bytes = engine.to_entry(key).map_err(|error| CacheError::new(key, error))?;
    cache.put(key, &bytes)
}
