//! The cache in folders and in memory, and addresses that name neither.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    thread,
};

use regraft_engine::cache::{CacheKey, EngineCache, Put};
use regraft_object_cache::{MAX_ENTRY, ObjectCache};
use url::Url;

const KEY: &str = "abababababababababababababababababababababababababababababababab";

fn key() -> CacheKey {
    KEY.parse().expect("a key")
}

fn cache_in(folder: &Path) -> ObjectCache {
    let url = Url::from_directory_path(folder).expect("it is an absolute path");
    ObjectCache::open(url.as_str()).expect("a folder needs no options")
}

/// The file of [`key`]'s entry.
fn file_in(folder: &Path) -> PathBuf {
    folder.join("ab").join(format!("{}.rgf", key()))
}

fn get(cache: &ObjectCache) -> Option<Vec<u8>> {
    let entry = cache.get(&key()).expect("the place can be read");
    entry.map(|entry| entry.bytes().to_vec())
}

fn stores_replaces_and_removes(cache: &ObjectCache) {
    let other: CacheKey = "0".repeat(64).parse().expect("a key");
    assert_eq!(get(cache), None);
    for entry in [&b"one"[..], b"", b"another"] {
        assert_eq!(cache.put(&key(), entry).expect("the place can be written"), Put::Stored);
        assert_eq!(get(cache).as_deref(), Some(entry));
    }
    assert!(cache.get(&other).expect("the place can be read").is_none());
    for _ in 0..2 {
        cache.remove(&key()).expect("the place can be written");
        assert_eq!(get(cache), None);
    }
    cache.claim(&key()).expect("nothing is asked");
}

#[test]
fn entries_in_memory() {
    for address in ["memory://", "memory:///", "memory:///a/prefix"] {
        stores_replaces_and_removes(&ObjectCache::open(address).unwrap());
    }
}

#[test]
fn entries_in_a_folder() {
    let parent = tempfile::tempdir().unwrap();
    for name in ["plain", "with space", "100%20 ü#?", "not/there/yet"] {
        let folder = parent.path().join(name);
        let cache = cache_in(&folder);
        stores_replaces_and_removes(&cache);
        cache.put(&key(), b"entry").unwrap();
        assert_eq!(fs::read(file_in(&folder)).unwrap(), b"entry", "{name}");
        let files = fs::read_dir(folder.join("ab")).unwrap().count();
        assert_eq!(files, 1, "{name}: something else is left");
    }
}

#[test]
fn caches_of_one_folder_share_its_entries() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (cache_in(folder.path()), cache_in(folder.path()));
    a.put(&key(), b"from a").unwrap();
    assert_eq!(get(&b).as_deref(), Some(&b"from a"[..]));
    b.remove(&key()).unwrap();
    assert_eq!(get(&a), None);
}

#[test]
fn readers_see_whole_entries_while_others_write() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (cache_in(folder.path()), cache_in(folder.path()));
    let entries = [vec![1; 300_000], vec![2; 200_000]];
    thread::scope(|scope| {
        let writers: Vec<_> = [&a, &b]
            .into_iter()
            .zip(&entries)
            .map(|(cache, entry)| {
                scope.spawn(|| {
                    for _ in 0..50 {
                        cache.put(&key(), entry).unwrap();
                    }
                })
            })
            .collect();
        while !writers.iter().all(|writer| writer.is_finished()) {
            if let Some(entry) = get(&a) {
                assert!(entries.contains(&entry), "a part of an entry: {} bytes", entry.len());
            }
        }
    });
}

#[test]
fn damaged_entries_are_returned_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_in(folder.path());
    cache.put(&key(), b"entry").unwrap();
    fs::write(file_in(folder.path()), b"ent").unwrap();
    assert_eq!(get(&cache).as_deref(), Some(&b"ent"[..]));
}

#[test]
fn damaged_folders_are_errors_that_name_the_object() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_in(folder.path());
    // A file where the folder should be.
    fs::write(folder.path().join("ab"), "").unwrap();
    let errors =
        [cache.get(&key()).unwrap_err(), cache.put(&key(), b"entry").unwrap_err(), cache.remove(&key()).unwrap_err()];
    for error in errors {
        assert!(error.place().starts_with("file:///"), "{error}");
        assert!(error.place().ends_with(&format!("/ab/{}.rgf", key())), "{error}");
    }
    // A folder where the file should be.
    fs::remove_file(folder.path().join("ab")).unwrap();
    fs::create_dir_all(file_in(folder.path()).join("something")).unwrap();
    assert_eq!(get(&cache), None);
    cache.put(&key(), b"entry").unwrap_err();
    cache.remove(&key()).unwrap_err();
}

#[test]
fn entries_that_are_too_large_are_neither_stored_nor_read() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache_in(folder.path());
    cache.put(&key(), b"entry").unwrap();
    let large = vec![0; MAX_ENTRY as usize + 1];
    assert_eq!(cache.put(&key(), &large).unwrap(), Put::TooLarge { limit: MAX_ENTRY });
    assert_eq!(get(&cache).as_deref(), Some(&b"entry"[..]));
    // Sparse: it takes no space.
    File::create(file_in(folder.path())).unwrap().set_len(MAX_ENTRY + 1).unwrap();
    let error = cache.get(&key()).unwrap_err().to_string();
    assert!(error.ends_with("expected an entry of at most 1073741824 bytes, found 1073741825"), "{error}");
}

#[test]
fn calls_from_inside_a_runtime_are_answered() {
    async fn work(folder: PathBuf) {
        let cache = cache_in(&folder);
        stores_replaces_and_removes(&cache);
        drop(cache);
    }
    let folder = tempfile::tempdir().unwrap();
    let mut runtimes = [tokio::runtime::Builder::new_current_thread(), tokio::runtime::Builder::new_multi_thread()];
    for runtime in &mut runtimes {
        let runtime = runtime.build().unwrap();
        runtime.block_on(work(folder.path().to_owned()));
        runtime.block_on(runtime.spawn(work(folder.path().to_owned()))).unwrap();
    }
}

#[test]
fn wrong_addresses_are_refused() {
    let cases = [
        ("", "found no address: relative URL without a base"),
        ("/var/cache", "found no address: relative URL without a base"),
        ("file://folder", "file://folder"),
        ("memory://name", "memory://name"),
        ("ftp://host/folder", "ftp://host/folder"),
        ("s3:///folder", "s3:///folder"),
        ("https://host/folder", "found https"),
        ("file:///a//b", "empty"),
    ];
    for (address, found) in cases {
        let error = ObjectCache::open(address).unwrap_err();
        assert_eq!(error.place(), address);
        let error = error.to_string();
        assert!(error.contains("expected an address like file:///folder or memory:///"), "{address}: {error}");
        assert!(error.contains(found), "{address}: {error}");
    }
}

#[test]
fn services_that_this_build_leaves_out_are_refused() {
    let services = [("s3", cfg!(feature = "aws")), ("gs", cfg!(feature = "gcp")), ("az", cfg!(feature = "azure"))];
    for (scheme, _) in services.into_iter().filter(|(_, known)| !known) {
        let error = ObjectCache::open(&format!("{scheme}://bucket/prefix")).unwrap_err().to_string();
        assert!(error.ends_with(&format!("found {scheme}, which this build leaves out")), "{error}");
    }
}

#[test]
fn options_of_a_folder_are_refused() {
    for address in ["file:///folder", "memory:///"] {
        let error = ObjectCache::open_with(address, &[("region", "x")]).unwrap_err().to_string();
        assert!(error.contains("expected no options for") && error.contains("found region"), "{error}");
    }
}

#[test]
fn secrets_in_an_address_are_not_printed() {
    for address in ["s3://id:secret@bucket/", "s3://bucket/?key=secret", "file:///folder#secret"] {
        let error = ObjectCache::open(address).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        assert!(error.to_string().contains("options are taken from the environment"), "{error}");
    }
}
