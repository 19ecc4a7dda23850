//! What a cache returns for a key: an engine file with right digests, or any bytes. A hit has no weights and is stored and
//! found again; anything else is removed.

#![no_main]

use std::sync::Mutex;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use regraft_engine::{
    Mode,
    cache::{CacheError, CacheKey, EngineCache, KeyHasher, Loaded, Put, load, store},
};
use regraft_fuzz::{Parts, engine};
use regraft_tensor::{AlignedVec, Buffer};

/// A cache of one key.
#[derive(Debug)]
struct OneEntry(Mutex<Option<Buffer>>);

impl OneEntry {
    fn new(entry: &[u8]) -> Self {
        OneEntry(Mutex::new(Some(Buffer::from(AlignedVec::copy_of(entry)))))
    }

    fn entry(&self) -> Option<Buffer> {
        self.0.lock().expect("no panic before").clone()
    }
}

impl EngineCache for OneEntry {
    fn get(&self, _: &CacheKey) -> Result<Option<Buffer>, CacheError> {
        Ok(self.entry())
    }

    fn put(&self, _: &CacheKey, entry: &[u8]) -> Result<Put, CacheError> {
        *self.0.lock().expect("no panic before") = Some(Buffer::from(AlignedVec::copy_of(entry)));
        Ok(Put::Stored)
    }

    fn remove(&self, _: &CacheKey) -> Result<(), CacheError> {
        *self.0.lock().expect("no panic before") = None;
        Ok(())
    }
}

fuzz_target!(|input: &[u8]| {
    let key = KeyHasher::new().part("program", "model").finish();
    let other = KeyHasher::new().part("program", "another").finish();
    let parts = Parts::of(input);
    // Bits 4 to 6 of the settings choose what is wrong before the sections are read; most often nothing.
    let (right_key, entry) = match parts.settings >> 4 & 7 {
        4 => (false, engine::sealed(&parts, Some(other.as_bytes()))),
        5 => (false, engine::sealed(&parts, None)),
        6 => (false, engine::sealed(&parts, parts.get("key"))),
        7 => (false, input[1..].to_vec()),
        _ => (true, engine::sealed(&parts, Some(key.as_bytes()))),
    };
    let cache = OneEntry::new(&entry);
    match load(&cache, &key).expect("memory can be read") {
        Loaded::Hit(engine) => {
            assert!(right_key && engine.mode == Mode::Stripped && engine.slots.is_none());
            assert!(engine.sources.iter().all(Option::is_none));
            engine::examine(&engine);
            store(&cache, &key, &engine).expect("memory can be written");
            assert!(matches!(load(&cache, &key), Ok(Loaded::Hit(_))));
        }
        Loaded::Damaged(error) => {
            assert!(!error.to_string().is_empty());
            assert!(cache.entry().is_none());
        }
        Loaded::Miss => panic!("there is an entry"),
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    engine::mutate(data, size, max_size, seed)
});
