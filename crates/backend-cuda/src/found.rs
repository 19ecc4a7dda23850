//! What of NVIDIA's is on this machine, looked at without using any of it.

use std::path::{Path, PathBuf};

use crate::{
    CudaError,
    cudnn::Dnn,
    driver::{Driver, Info},
    gemm::Blas,
    library::{LibraryError, LibraryKind, Lookup, Opened, Version},
    nvrtc::Compiler,
};

/// A library that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its file.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
}

/// Where a library is, and its version: new enough or not.
///
/// # Errors
/// When it is nowhere, or is something else.
pub fn found(lookup: &Lookup, kind: LibraryKind) -> Result<Found, CudaError> {
    let of = |opened: &Opened, version| Found { path: full_path(opened.path()), version };
    Ok(match kind {
        LibraryKind::Driver => Driver::found(lookup).map(|(api, version)| of(&api.opened, version))?,
        LibraryKind::Nvrtc => Compiler::found(lookup).map(|(api, version)| of(&api.opened, version))?,
        LibraryKind::CublasLt => Blas::found(lookup).map(|(api, version)| of(&api.opened, version))?,
        LibraryKind::Cudnn => Dnn::found(lookup).map(|(api, version)| of(&api.opened, version))?,
    })
}

/// What is wrong with a library that was found.
pub fn too_old(kind: LibraryKind, found: &Found) -> Option<LibraryError> {
    let (needed, path) = (kind.needed(), found.path.clone());
    (found.version < needed).then_some(LibraryError::TooOld { kind, path, found: found.version, needed })
}

/// The GPUs of this machine.
///
/// # Errors
/// When there is no driver, it is too old, or it fails.
pub fn devices(lookup: &Lookup) -> Result<Vec<Info>, CudaError> {
    let driver = Driver::open(lookup)?;
    (0..driver.device_count()?).map(|index| driver.info(index)).collect()
}

/// The file that a bare name was opened as: it is mapped now.
fn full_path(path: &Path) -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    mapped(&maps, path).unwrap_or_else(|| path.to_owned())
}

/// The path in the text of `/proc/self/maps` of the file that `name` stands for: with more numbers behind, where it is a link.
fn mapped(maps: &str, name: &Path) -> Option<PathBuf> {
    let stem = name.to_str().filter(|name| !name.contains('/'))?.trim_end_matches(|c: char| c.is_ascii_digit());
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let mut paths = paths.filter(|path| path.file_name().and_then(|f| f.to_str()).is_some_and(|f| f.starts_with(stem)));
    paths.next().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_found_among_what_is_mapped() {
        let maps = "7f00-7f01 r-xp 00000000 08:01 1   /usr/lib/libcudart.so.13\n\
                    7f02-7f03 r-xp 00000000 08:01 2   /usr/lib/libcuda.so.580.159.04\n";
        assert_eq!(mapped(maps, Path::new("libcuda.so.1")), Some("/usr/lib/libcuda.so.580.159.04".into()));
        assert_eq!(mapped(maps, Path::new("libnvrtc.so.13")), None);
        assert_eq!(mapped(maps, Path::new("/usr/lib/libcudart.so.13")), None, "a path is what it is");
    }

    #[test]
    fn what_is_not_there_is_said() {
        let nowhere = Lookup { given: vec!["/nowhere".into()], site_packages: Vec::new() };
        for kind in LibraryKind::ALL {
            match found(&nowhere, kind) {
                Ok(found) => assert!(found.path.exists() || !found.path.is_absolute(), "{found:?}"),
                Err(error) => assert!(error.to_string().contains("was not found"), "{error}"),
            }
        }
    }

    #[test]
    fn an_old_library_is_one_error_with_its_file_and_both_versions() {
        let old = Found { path: "/lib/libcudnn.so.9".into(), version: Version([9, 1, 0]) };
        let said = too_old(LibraryKind::Cudnn, &old).map(|error| error.to_string()).unwrap_or_default();
        assert!(said.contains("cuDNN at /lib/libcudnn.so.9 is version 9.1; version 9.5 or later is needed"), "{said}");
        assert!(too_old(LibraryKind::Cudnn, &Found { version: LibraryKind::Cudnn.needed(), ..old }).is_none());
    }
}
