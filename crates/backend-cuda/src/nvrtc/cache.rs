//! Compiled kernels in a folder.
//!
//! An entry is named by a digest of the source, the architecture and the compiler, and begins with a digest of what
//! follows. Damaged entries are compiled again; a folder that cannot be written costs time and nothing else.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use super::{Compiler, Source, options};
use crate::error::CudaError;

/// A folder of compiled kernels.
#[derive(Clone, Debug)]
pub struct CubinCache {
    folder: Option<PathBuf>,
}

const DIGEST: usize = 32;
/// No kernel of ours is larger.
const MOST_BYTES: u64 = 64 << 20;

impl CubinCache {
    /// The cache in `folder`, which is made when it is needed.
    pub fn new(folder: impl Into<PathBuf>) -> CubinCache {
        CubinCache { folder: Some(folder.into()) }
    }

    /// No cache: everything is compiled.
    pub fn none() -> CubinCache {
        CubinCache { folder: None }
    }

    /// The folder.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The cubin of `source` for `arch`, from the folder or compiled now.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn cubin(&self, compiler: &Compiler, source: &Source, arch: &str) -> Result<Vec<u8>, CudaError> {
        let Some(folder) = &self.folder else { return compiler.compile(source, arch) };
        let path = folder.join(format!("{}.cubin", key(source, arch, &compiler.version().to_string())));
        if let Some(cubin) = read(&path) {
            return Ok(cubin);
        }
        let cubin = compiler.compile(source, arch)?;
        if let Err(error) = write(folder, &path, &cubin) {
            tracing::debug!(path = %path.display(), %error, "a compiled kernel was not kept");
        }
        Ok(cubin)
    }
}

fn key(source: &Source, arch: &str, compiler: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [env!("CARGO_PKG_VERSION"), compiler, arch, &options(), &source.text] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..40].to_owned()
}

fn read(path: &Path) -> Option<Vec<u8>> {
    if fs::metadata(path).ok()?.len() > MOST_BYTES {
        return None;
    }
    let mut bytes = fs::read(path).ok()?;
    let body = bytes.get(DIGEST..)?;
    if blake3::hash(body).as_bytes() != bytes.get(..DIGEST)? {
        return None;
    }
    bytes.drain(..DIGEST);
    Some(bytes)
}

/// Writes beside and renames, so that readers see all of an entry or none.
fn write(folder: &Path, path: &Path, cubin: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let beside = path.with_extension(format!("{}.{:?}.part", std::process::id(), std::thread::current().id()));
    let mut file = fs::File::create(&beside)?;
    let written = file.write_all(blake3::hash(cubin).as_bytes()).and_then(|()| file.write_all(cubin));
    written.and_then(|()| fs::rename(&beside, path)).inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_entries_are_not_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.cubin");
        write(folder.path(), &path, b"machine code").expect("it is written");
        assert_eq!(read(&path).as_deref(), Some(&b"machine code"[..]));
        let mut bytes = fs::read(&path).expect("it is there");
        *bytes.last_mut().expect("bytes") ^= 1;
        fs::write(&path, &bytes).expect("it is written");
        assert_eq!(read(&path), None);
        fs::write(&path, b"short").expect("it is written");
        assert_eq!(read(&path), None);
    }

    #[test]
    fn the_key_tells_sources_architectures_and_compilers_apart() {
        let source = |text: &str| Source { name: "k".into(), text: text.into() };
        let keys = [
            key(&source("a"), "sm_80", "13.0"),
            key(&source("b"), "sm_80", "13.0"),
            key(&source("a"), "sm_90", "13.0"),
            key(&source("a"), "sm_80", "13.2"),
        ];
        assert!((0..4).all(|i| (0..i).all(|j| keys[i] != keys[j])));
    }
}
