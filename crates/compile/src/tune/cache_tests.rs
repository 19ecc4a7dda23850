use regraft_backend_cpu::CpuDevice;

use super::*;
use crate::tune::{CandidateName, Record};

fn record(mode: TuneMode, choice: &str) -> Record {
    Record { mode, choice: CandidateName(choice.into()), measured: Vec::new() }
}

#[test]
fn stores_add_up_by_thread_count() {
    let folder = tempfile::tempdir().unwrap();
    let cache = TuneCache::new(folder.path().join("a/b"));
    let (one, two) = (CpuDevice::new(Some(1)), CpuDevice::new(Some(2)));
    let (empty, warning) = cache.load(Backend::of(&one));
    assert!(empty.is_empty() && warning.is_none());
    for problem in ["x", "y"] {
        let mut records = Records::of(Backend::of(&one));
        records.insert(problem, record(TuneMode::Fast, "k()"));
        records.insert("untuned", record(TuneMode::Off, "k()"));
        cache.store(&records).unwrap();
    }
    let (stored, warning) = cache.load(Backend::of(&one));
    assert!(warning.is_none());
    assert_eq!(stored.iter().map(|(problem, _)| problem).collect::<Vec<_>>(), ["x", "y"]);
    assert!(cache.load(Backend::of(&two)).0.is_empty(), "another number of threads has times of its own");
}

#[test]
fn builds_that_store_at_once_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cache = TuneCache::new(folder.path());
    let backend = CpuDevice::new(Some(1));
    std::thread::scope(|scope| {
        for i in 0..8 {
            let (cache, backend) = (&cache, &backend);
            scope.spawn(move || {
                let mut records = Records::of(Backend::of(backend));
                records.insert(format!("problem {i}"), record(TuneMode::Full, "k()"));
                cache.store(&records).unwrap();
            });
        }
    });
    assert_eq!(cache.load(Backend::of(&backend)).0.len(), 8);
}

#[test]
fn a_damaged_file_is_a_warning_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let cache = TuneCache::new(folder.path());
    let backend = CpuDevice::new(Some(1));
    let mut records = Records::of(Backend::of(&backend));
    records.insert("x", record(TuneMode::Fast, "k()"));
    let path = cache.path(&records);
    fs::write(&path, "{\"format\": ").unwrap();
    let (empty, warning) = cache.load(Backend::of(&backend));
    assert!(empty.is_empty());
    let warning = warning.unwrap().to_string();
    assert!(warning.contains(".json: expected tuning records, found at line 1"), "{warning}");
    cache.store(&records).unwrap();
    assert_eq!(cache.load(Backend::of(&backend)).0, records);
    // Records of another machine under this name.
    Records::of(Backend::of(&CpuDevice::new(Some(3)))).save(&path).unwrap();
    let (empty, warning) = cache.load(Backend::of(&backend));
    assert!(empty.is_empty());
    assert!(warning.unwrap().to_string().contains("1 threads, found some of"));
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error =
        TuneCache::new(file.join("cache")).store(&Records::of(Backend::of(&CpuDevice::new(Some(1))))).unwrap_err();
    assert!(error.to_string().contains("could not use the tuning cache"), "{error}");
}
