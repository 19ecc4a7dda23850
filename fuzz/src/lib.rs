//! What the fuzz targets share: files that live in memory, archives and engine files with right checksums around wrong
//! contents, and changes that leave JSON and programs readable.

pub mod engine;
pub mod json;
mod parts;
mod random;
mod text;

use std::{
    fs,
    io::{Cursor, Write as _},
    path::{Path, PathBuf},
    sync::LazyLock,
};

use regraft_checkpoint::{CheckpointErrorKind, OpenOptions};
use regraft_weights::StateDict;
use zip::{ZipWriter, write::SimpleFileOptions};

pub use self::parts::Parts;

/// The program whose requests are read: inputs of most types, with sizes that vary.
pub const PORTS: &str = "program \"p\" {
  dims   s0 in 1..=8 (opt 4)
  dims   s1 in 1..=16 (opt 4)
  input  %0 : f32[s0, 2] = \"x\"
  input  %1 : i64[s0, s1] = \"ids\"
  input  %2 : bool[s0] = \"mask\"
  input  %3 : f16[2] = \"half\"
  output %0 = \"y\"
  output %1 = \"z\"
}";

/// The folder of this process's files: in memory where the system has such a place.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    let folder = base.join(format!("regraft-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for the files");
    // What indexes of shards and ONNX models may point to.
    fs::write(folder.join("x.bin"), [7; 64]).expect("a file of bytes");
    let header = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let shard = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat();
    fs::write(folder.join("x.safetensors"), shard).expect("a shard");
    folder
});

/// Writes a file called `name` with these bytes; each call replaces the one before.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = FOLDER.join(name);
    fs::write(&path, bytes).expect("a write to memory");
    path
}

/// A zip file of these entries, stored.
pub fn zipped<'a>(entries: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(name, options).expect("a new entry");
        zip.write_all(bytes).expect("a write to memory");
    }
    zip.finish().expect("a directory").into_inner()
}

/// The text of a program with changes that leave it words. `None` when it is none, or longer than `most` then.
pub fn mutated_text(input: &[u8], seed: u32, most: usize) -> Option<Vec<u8>> {
    let mut text = input.to_vec();
    (text::mutate(&mut text, &mut random::Random::new(seed)) && text.len() <= most).then_some(text)
}

/// Opens a file called `name` with these bytes and reads what it holds; where that is several sets of weights, each of them.
pub fn open(name: &str, bytes: &[u8]) {
    let path = file(name, bytes);
    let error = match regraft_checkpoint::open(&path) {
        Ok(dict) => return read_all(&dict),
        Err(error) => error,
    };
    assert!(!error.to_string().is_empty());
    let CheckpointErrorKind::Several { keys } = error.kind() else { return };
    for key in keys.iter().take(8) {
        let options = OpenOptions::new().key(key.clone());
        match regraft_checkpoint::open_with(&path, &options) {
            Ok(dict) => read_all(&dict),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// Reads every byte of every tensor.
pub fn read_all(dict: &StateDict) {
    let mut sum = 0u64;
    for (name, tensor) in dict.iter() {
        let bytes = tensor.bytes();
        assert_eq!(bytes.len(), tensor.numel() * tensor.dtype().size(), "{name}");
        sum = bytes.iter().fold(sum, |sum, byte| sum.wrapping_add(u64::from(*byte)));
        if tensor.numel() < 4096 {
            assert_eq!(tensor.to_f64_vec().len(), tensor.numel(), "{name}");
        }
    }
    std::hint::black_box(sum);
}
