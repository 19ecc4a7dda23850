//! Weight files of every format, good ones and damaged ones.

mod formats;
mod onnx;
mod torch;
mod wire;

use std::{
    io::{Cursor, Read as _, Write as _},
    path::{Path, PathBuf},
};

use regraft_tensor::Tensor;
use regraft_weights::StateDict;
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

/// A file that stands beside these tests.
fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files").join(name)
}

fn open(path: &Path) -> Result<StateDict, String> {
    regraft_checkpoint::open(path).map_err(|e| {
        let text = e.to_string();
        assert!(text.contains("help: "), "no advice in: {text}");
        text
    })
}

/// Opens a file called `name` with these bytes.
fn open_as(name: &str, bytes: &[u8]) -> Result<StateDict, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("a write");
    open(&path)
}

#[track_caller]
fn refused(result: Result<StateDict, String>, expected: &str) {
    let error = result.expect_err(expected);
    assert!(error.contains(expected), "expected `{expected}` in: {error}");
}

#[track_caller]
fn tensor<'a>(dict: &'a StateDict, name: &str) -> &'a Tensor {
    dict.get(name).unwrap_or_else(|| panic!("{name} is missing"))
}

fn names(dict: &StateDict) -> Vec<&str> {
    dict.iter().map(|(name, _)| name).collect()
}

/// Gives `open` the bytes with each of them changed, and with each end cut off. Reading them may fail, but no more.
fn damage(good: &[u8], open: impl Fn(&[u8]) -> Result<StateDict, String>) {
    open(good).expect("a good file");
    for at in 0..good.len() {
        for mask in [0x01, 0x20, 0x80, 0xff] {
            let mut bytes = good.to_vec();
            bytes[at] ^= mask;
            drop(open(&bytes));
        }
        drop(open(&good[..at]));
    }
}

/// The entries of a zip file.
fn entries(path: &Path) -> Vec<(String, Vec<u8>)> {
    let file = std::fs::read(path).expect("a file");
    let mut zip = ZipArchive::new(Cursor::new(file)).expect("a zip file");
    let len = zip.len();
    let entry = |index| {
        let mut entry = zip.by_index(index).expect("an entry");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("its bytes");
        (entry.name().expect("a name").into_owned(), bytes)
    };
    (0..len).map(entry).collect()
}

/// A zip file of these entries.
fn zipped(entries: &[(String, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        let options = SimpleFileOptions::default().compression_method(method);
        zip.start_file(name.as_str(), options).expect("a new entry");
        zip.write_all(bytes).expect("a write to memory");
    }
    zip.finish().expect("a directory").into_inner()
}
