//! The cache on disk: eviction, and processes that write it at once or are killed while they do.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    env, fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use regraft_engine::cache::{CacheKey, DiskCache, EngineCache, KeyHasher, Put};

fn key(name: &str) -> CacheKey {
    KeyHasher::new().part("name", name).finish()
}

fn names(cache: &DiskCache, all: &[&str]) -> Vec<String> {
    let found: Vec<CacheKey> = cache.entries().unwrap().iter().map(|entry| entry.key).collect();
    all.iter().filter(|name| found.contains(&key(name))).map(|name| (*name).to_owned()).collect()
}

fn bytes_below(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap());
    files
        .map(|file| if file.path().is_dir() { bytes_below(&file.path()) } else { file.metadata().unwrap().len() })
        .sum()
}

#[test]
fn what_is_stored_is_found_until_it_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::new(folder.path().join("not/there/yet"), 1000);
    assert!(cache.get(&key("a")).unwrap().is_none());
    assert!(cache.entries().unwrap().is_empty());
    assert!(cache.clear().unwrap().is_empty());
    assert_eq!(cache.put(&key("a"), b"first").unwrap(), Put::Stored);
    assert_eq!(cache.get(&key("a")).unwrap().unwrap().bytes(), b"first");
    assert_eq!(cache.put(&key("a"), b"second").unwrap(), Put::Stored);
    assert_eq!(cache.get(&key("a")).unwrap().unwrap().bytes(), b"second");
    cache.remove(&key("a")).unwrap();
    cache.remove(&key("a")).unwrap();
    assert!(cache.get(&key("a")).unwrap().is_none());
}

#[test]
fn c_4_what_was_used_longest_ago_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    // Two objects on one folder are what two processes have.
    let (one, other) = (DiskCache::new(folder.path(), 350), DiskCache::new(folder.path(), 350));
    for name in ["a", "b", "c"] {
        one.put(&key(name), &[0; 100]).unwrap();
    }
    assert!(other.get(&key("a")).unwrap().is_some());
    other.put(&key("d"), &[0; 100]).unwrap();
    assert_eq!(names(&one, &["a", "b", "c", "d"]), ["a", "c", "d"]);
    assert!(one.get(&key("c")).unwrap().is_some());
    one.put(&key("e"), &[0; 200]).unwrap();
    assert_eq!(names(&other, &["a", "b", "c", "d", "e"]), ["c", "e"]);
    assert!(bytes_below(folder.path()) <= 350);
}

#[test]
fn c_4_the_limit_counts_every_file_and_an_overwritten_entry_once() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::new(folder.path(), 1000);
    for _ in 0..5 {
        cache.put(&key("a"), &[1; 400]).unwrap();
        cache.put(&key("b"), &[2; 400]).unwrap();
    }
    assert_eq!(names(&cache, &["a", "b"]), ["a", "b"]);
    let usage = cache.usage().unwrap();
    assert_eq!((usage.entries, usage.bytes), (2, 800));
    // A file that is not an entry counts too, and is not ours to remove.
    fs::write(folder.path().join("entries/notes.txt"), [0; 300]).unwrap();
    cache.put(&key("c"), &[3; 200]).unwrap();
    assert_eq!(names(&cache, &["a", "b", "c"]), ["b", "c"]);
    assert!(folder.path().join("entries/notes.txt").exists());
    assert!(bytes_below(folder.path()) <= 1000);
}

#[test]
fn c_4_an_entry_over_the_limit_evicts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::new(folder.path(), 1000);
    cache.put(&key("a"), &[1; 600]).unwrap();
    assert_eq!(cache.put(&key("b"), &[2; 1001]).unwrap(), Put::TooLarge { limit: 1000 });
    assert_eq!(names(&cache, &["a", "b"]), ["a"]);
    assert_eq!(cache.collect(500).unwrap().len(), 1);
    assert!(cache.entries().unwrap().is_empty());
}

#[test]
fn a_claim_keeps_others_waiting_until_it_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::new(folder.path(), 1000);
    let claim = cache.claim(&key("a")).unwrap();
    let other = DiskCache::new(folder.path(), 1000);
    let waiting = thread::spawn(move || drop(other.claim(&key("a")).unwrap()));
    thread::sleep(Duration::from_millis(50));
    assert!(!waiting.is_finished());
    drop(claim);
    waiting.join().unwrap();
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let cache = DiskCache::new(folder.path().join("file/cache"), 1000);
    let error = cache.put(&key("a"), b"x").unwrap_err();
    assert!(error.place().contains("file"), "{error}");
    assert!(error.to_string().starts_with("engine cache: "), "{error}");
}

/// What tells a process of [`c_5_killed_writers_leave_whole_entries_or_none`] where to write, and its number.
const WRITER: (&str, &str) = ("REGRAFT_TEST_WRITER_FOLDER", "REGRAFT_TEST_WRITER_SEED");
const LIMIT: u64 = 8 << 20;
const KEYS: u64 = 5;

/// An entry whose bytes all follow from its first sixteen, so that a part of one, or two mixed, shows.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut bytes = seed.to_le_bytes().to_vec();
    bytes.extend((len as u64).to_le_bytes());
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn assert_whole(bytes: &[u8]) {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    assert_eq!(bytes.len() as u64, number(8), "the entry is cut short");
    assert!(bytes == pattern(number(0), bytes.len()), "the entry is not what was written");
}

/// No test of its own but the process that is killed: writes, reads and evicts until then.
#[test]
fn writer() {
    let (Ok(folder), Ok(seed)) = (env::var(WRITER.0), env::var(WRITER.1)) else { return };
    let cache = DiskCache::new(folder, LIMIT);
    let mut seed: u64 = seed.parse().unwrap();
    loop {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(12_345);
        let name = key(&((seed >> 40) % KEYS).to_string());
        let _claim = cache.claim(&name).unwrap();
        cache.put(&name, &pattern(seed, (1 << 20) + (seed >> 44) as usize)).unwrap();
        if let Some(bytes) = cache.get(&name).unwrap() {
            assert_whole(bytes.bytes());
        }
    }
}

fn start_writer(folder: &Path, seed: u64) -> Child {
    Command::new(env::current_exe().expect("the test's own program"))
        .args(["--exact", "writer", "--nocapture", "--test-threads=1"])
        .env(WRITER.0, folder)
        .env(WRITER.1, seed.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the process starts")
}

#[test]
fn c_5_killed_writers_leave_whole_entries_or_none() {
    const ROUNDS: u64 = 120;
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::new(folder.path(), LIMIT);
    let mut state = 88_172_645_463_325_252u64;
    let (mut found, mut abandoned) = (0, 0);
    for round in 0..ROUNDS {
        // Two at once, so that they also meet each other's locks.
        let mut writers = [start_writer(folder.path(), 2 * round), start_writer(folder.path(), 2 * round + 1)];
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        thread::sleep(Duration::from_micros(4_000 + state % 30_000));
        for writer in &mut writers {
            // A writer that ended before it was killed has found a mistake.
            assert!(writer.try_wait().unwrap().is_none(), "a writer failed");
            writer.kill().unwrap();
        }
        for mut writer in writers {
            writer.wait().unwrap();
        }
        abandoned += fs::read_dir(folder.path().join("building")).map_or(0, Iterator::count);
        for number in 0..KEYS {
            if let Some(bytes) = cache.get(&key(&number.to_string())).unwrap() {
                assert_whole(bytes.bytes());
                found += 1;
            }
        }
        let start = Instant::now();
        cache.put(&key("0"), &pattern(round, 1000)).unwrap();
        drop(cache.claim(&key("0")).unwrap());
        assert!(start.elapsed() < Duration::from_secs(5), "a lock outlived its process");
        assert_eq!(fs::read_dir(folder.path().join("building")).unwrap().count(), 0, "abandoned files stay");
        assert!(bytes_below(folder.path()) <= LIMIT);
    }
    // The kills must have hit something: entries were there to be read, and some were half written.
    assert!(found > ROUNDS && abandoned > ROUNDS as usize / 10, "{found} entries found, {abandoned} half written");
}
