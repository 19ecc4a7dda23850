//! Compiling through an engine cache.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use regraft::{
    CacheUse, Compiled, Compiler, Engine, Mode, RefitOptions,
    cache::{CacheError, CacheKey, DiskCache, EngineCache, Put},
};
use regraft_backend_cpu::Isa;
use regraft_conformance::{Case, assert_close, assert_same, assert_same_slots, backend};
use regraft_tensor::{AlignedVec, Buffer};

/// A cache of the user's own.
#[derive(Debug, Default)]
struct Memory {
    entries: Mutex<HashMap<CacheKey, Vec<u8>>>,
}

impl Memory {
    fn keys(&self) -> Vec<CacheKey> {
        self.entries.lock().unwrap().keys().copied().collect()
    }
}

impl EngineCache for Memory {
    fn get(&self, key: &CacheKey) -> Result<Option<Buffer>, CacheError> {
        Ok(self.entries.lock().unwrap().get(key).map(|bytes| AlignedVec::copy_of(bytes).into()))
    }

    fn put(&self, key: &CacheKey, entry: &[u8]) -> Result<Put, CacheError> {
        self.entries.lock().unwrap().insert(*key, entry.to_vec());
        Ok(Put::Stored)
    }

    fn remove(&self, key: &CacheKey) -> Result<(), CacheError> {
        self.entries.lock().unwrap().remove(key);
        Ok(())
    }
}

fn compile(program: &Path, cache: Option<Arc<dyn EngineCache>>) -> Compiled {
    let compiler = Compiler::new();
    let compiler = cache.map_or(compiler.clone(), |cache| compiler.cache(cache));
    compiler.compile(program).unwrap_or_else(|e| panic!("{}: {e}", program.display()))
}

fn is_hit(compiled: &Compiled) -> bool {
    matches!(compiled.cache, CacheUse::Hit { .. })
}

fn warnings(compiled: &Compiled) -> &[String] {
    match &compiled.cache {
        CacheUse::Built { warnings, .. } => warnings,
        CacheUse::Off | CacheUse::Hit { .. } => &[],
    }
}

#[test]
fn c_1_the_same_program_is_a_hit_in_another_file_and_process_object() {
    let folder = tempfile::tempdir().unwrap();
    let case = Case::open("conv_bn");
    let cache = || Some(Arc::new(DiskCache::new(folder.path().join("cache"), 1 << 20)) as Arc<dyn EngineCache>);
    let first = compile(&case.program(), cache());
    assert!(matches!(first.cache, CacheUse::Built { stored: true, .. }));
    let copy = folder.path().join("copy.pt2");
    fs::copy(case.program(), &copy).unwrap();
    assert!(is_hit(&compile(&copy, cache())));
}

#[test]
fn c_3_a_hit_is_the_engine_that_a_build_gives() {
    for case in Case::all() {
        let cache = Arc::new(Memory::default());
        let fresh = compile(&case.program(), None);
        let built = compile(&case.program(), Some(cache.clone()));
        let hit = compile(&case.program(), Some(cache.clone()));
        assert!(!is_hit(&built) && is_hit(&hit), "{}", case.name);
        let bytes = |compiled: &Compiled| compiled.engine.to_bytes().unwrap();
        assert!(bytes(&built) == bytes(&fresh), "{}: built through the cache", case.name);
        assert!(bytes(&hit) == bytes(&fresh), "{}: taken from the cache", case.name);
        let (fresh, hit) = (case.model(fresh.engine), case.model(hit.engine));
        let b = case.weights_b();
        fresh.refit(&b, &RefitOptions::default()).unwrap();
        hit.refit(&b, &RefitOptions::default()).unwrap();
        assert_same_slots(&case.name, &hit, &fresh);
        assert_close(&case.name, &hit.run(&case.tensors("input")).unwrap(), &case.tensors("expected_b"));
    }
}

#[test]
fn c_3_every_mode_comes_from_one_entry() {
    let case = Case::open("mlp_gelu");
    let cache = Arc::new(Memory::default());
    compile(&case.program(), Some(cache.clone()));
    for (mode, identical) in [(Mode::Frozen, false), (Mode::Stripped, false), (Mode::Refittable, true)] {
        let compiler = Compiler::new().mode(mode).identical(identical);
        let fresh = compiler.compile(case.program()).unwrap();
        let hit = compiler.cache(cache.clone()).compile(case.program()).unwrap();
        assert!(is_hit(&hit));
        assert!(hit.engine.to_bytes().unwrap() == fresh.engine.to_bytes().unwrap(), "{mode}");
    }
    assert_eq!(cache.keys().len(), 1);
}

#[test]
fn c_6_every_flipped_byte_of_an_entry_is_a_miss() {
    let case = Case::open("linear");
    let cache = Memory::default();
    let shared = Arc::new(Memory::default());
    compile(&case.program(), Some(shared.clone()));
    let key = shared.keys()[0];
    let whole = shared.entries.lock().unwrap()[&key].clone();
    let load = |bytes: Vec<u8>| {
        cache.put(&key, &bytes).unwrap();
        regraft::cache::load(&cache, &key).unwrap()
    };
    assert!(matches!(load(whole.clone()), regraft::cache::Loaded::Hit(_)));
    for at in 0..whole.len() {
        for flip in [1 << (at % 8), 0xff] {
            let mut damaged = whole.clone();
            damaged[at] ^= flip;
            assert!(matches!(load(damaged), regraft::cache::Loaded::Damaged(_)), "byte {at} ^ {flip}");
            assert!(cache.keys().is_empty(), "a damaged entry stays");
        }
    }
    for len in (0..whole.len()).step_by(61) {
        assert!(matches!(load(whole[..len].to_vec()), regraft::cache::Loaded::Damaged(_)), "{len} bytes");
    }
}

#[test]
fn c_6_a_damaged_file_is_built_again_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let case = Case::open("mlp_gelu");
    let cache = Arc::new(DiskCache::new(folder.path(), 1 << 20));
    let first = compile(&case.program(), Some(cache.clone()));
    let entry = cache.entries().unwrap().remove(0);
    let mut bytes = fs::read(&entry.path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&entry.path, bytes).unwrap();
    let again = compile(&case.program(), Some(cache.clone()));
    assert!(!is_hit(&again));
    let warnings = warnings(&again).join("\n");
    assert!(warnings.contains(&entry.key.to_string()) && warnings.contains("damaged"), "{warnings}");
    let run = |engine: &Engine| case.model(engine.clone()).run(&case.tensors("input")).unwrap();
    assert_same("after damage", &run(&again.engine), &run(&first.engine));
    assert!(is_hit(&compile(&case.program(), Some(cache))), "the entry is sound again");
}

#[test]
fn an_entry_of_another_program_is_not_used() {
    let cache = Arc::new(Memory::default());
    compile(&Case::open("linear").program(), Some(cache.clone()));
    let linear = cache.entries.lock().unwrap().values().next().unwrap().clone();
    let case = Case::open("mlp_gelu");
    let built = compile(&case.program(), Some(cache.clone()));
    let CacheUse::Built { key, .. } = built.cache else { panic!("it was not there") };
    cache.put(&key, &linear).unwrap();
    let again = compile(&case.program(), Some(cache));
    assert!(!is_hit(&again) && warnings(&again)[0].contains("another key"), "{:?}", again.cache);
}

#[test]
fn c_7_each_engine_has_its_entry_in_the_cache_that_the_user_gives() {
    let cache = Arc::new(Memory::default());
    for (count, name) in ["linear", "conv_bn", "embedding"].into_iter().enumerate() {
        let compiled = compile(&Case::open(name).program(), Some(cache.clone()));
        assert!(!is_hit(&compiled));
        assert_eq!(cache.keys().len(), count + 1);
    }
}

/// A cache whose place is gone.
#[derive(Debug)]
struct Broken;

impl EngineCache for Broken {
    fn get(&self, _: &CacheKey) -> Result<Option<Buffer>, CacheError> {
        Err(CacheError::new("nowhere", "the network is down"))
    }

    fn put(&self, _: &CacheKey, _: &[u8]) -> Result<Put, CacheError> {
        Err(CacheError::new("nowhere", "the network is down"))
    }

    fn remove(&self, _: &CacheKey) -> Result<(), CacheError> {
        Err(CacheError::new("nowhere", "the network is down"))
    }
}

#[test]
fn a_cache_that_fails_fails_no_compilation() {
    let case = Case::open("linear");
    let compiled = compile(&case.program(), Some(Arc::new(Broken)));
    assert!(warnings(&compiled).iter().any(|w| w == "engine cache: nowhere: the network is down"));
    let model = regraft::model(compiled.engine, backend(Isa::detect())).unwrap();
    assert_close("linear", &model.run(&case.tensors("input")).unwrap(), &case.tensors("expected"));
}

#[test]
fn an_entry_over_the_limit_is_told_and_not_stored() {
    let folder = tempfile::tempdir().unwrap();
    let compiled = compile(&Case::open("linear").program(), Some(Arc::new(DiskCache::new(folder.path(), 100))));
    assert!(matches!(compiled.cache, CacheUse::Built { stored: false, .. }));
    assert!(warnings(&compiled)[0].contains("larger than the limit of 100 bytes"), "{:?}", compiled.cache);
}
