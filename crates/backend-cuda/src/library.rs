//! Where NVIDIA's libraries are found, and the errors when one is missing or too old.
//!
//! The order is: folders that are given, the `nvidia-*` wheels of the Python that loads us, the system. Libraries are
//! opened by absolute path where one is known, because the system's search path often holds an older release.

use std::{
    ffi::OsStr,
    fmt,
    mem::ManuallyDrop,
    path::{Path, PathBuf},
};

use libloading::os::unix;

/// A library of NVIDIA that Regraft opens at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LibraryKind {
    /// `libcuda`, which the driver installs.
    Driver,
    /// `libnvrtc`, which compiles kernels.
    Nvrtc,
    /// `libcublasLt`, matrix products.
    CublasLt,
    /// `libcudnn`, convolutions and attention.
    Cudnn,
}

/// Folders of PyPI's wheels below `site-packages`.
const WHEEL_FOLDERS: [&str; 5] =
    ["nvidia/cu13/lib", "nvidia/cudnn/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cublas/lib", "nvidia/cu12/lib"];

impl LibraryKind {
    /// All of them.
    pub const ALL: [LibraryKind; 4] =
        [LibraryKind::Driver, LibraryKind::Nvrtc, LibraryKind::CublasLt, LibraryKind::Cudnn];

    /// File names that are tried, newest first.
    pub const fn files(self) -> &'static [&'static str] {
        match self {
            LibraryKind::Driver => &["libcuda.so.1"],
            LibraryKind::Nvrtc => &["libnvrtc.so.13", "libnvrtc.so.12"],
            LibraryKind::CublasLt => &["libcublasLt.so.13", "libcublasLt.so.12"],
            LibraryKind::Cudnn => &["libcudnn.so.9"],
        }
    }

    /// The oldest version that is taken.
    pub const fn needed(self) -> Version {
        match self {
            LibraryKind::Driver => Version([12, 4, 0]),
            LibraryKind::Nvrtc => Version([12, 4, 0]),
            LibraryKind::CublasLt => Version([12, 4, 0]),
            LibraryKind::Cudnn => Version([9, 5, 0]),
        }
    }

    /// What brings it.
    pub const fn advice(self) -> &'static str {
        match self {
            LibraryKind::Driver => "install an NVIDIA driver",
            LibraryKind::Nvrtc => "pip install nvidia-cuda-nvrtc, or install the CUDA toolkit",
            LibraryKind::CublasLt => "pip install nvidia-cublas, or install the CUDA toolkit",
            LibraryKind::Cudnn => "pip install nvidia-cudnn-cu13, or install cuDNN",
        }
    }

    /// What does not work without it.
    pub const fn costs(self) -> &'static str {
        match self {
            LibraryKind::Driver => "no NVIDIA GPU can be used",
            LibraryKind::Nvrtc => "no kernel can be compiled: no NVIDIA GPU can be used",
            LibraryKind::CublasLt => "no matrix product can run: no NVIDIA GPU can be used",
            LibraryKind::Cudnn => "convolutions and attention run on kernels of our own, which are slower",
        }
    }
}

impl fmt::Display for LibraryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LibraryKind::Driver => "the NVIDIA driver",
            LibraryKind::Nvrtc => "NVRTC",
            LibraryKind::CublasLt => "cuBLASLt",
            LibraryKind::Cudnn => "cuDNN",
        })
    }
}

/// A version of a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub [u32; 3]);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}")?;
        if patch > 0 { write!(f, ".{patch}") } else { Ok(()) }
    }
}

/// A library that cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LibraryError {
    /// It is nowhere.
    #[error("{kind} ({file}, version {needed} or later) was not found; {}. Looked in: {}", kind.advice(), looked_in(tried))]
    Missing {
        /// Which.
        kind: LibraryKind,
        /// Its newest file name.
        file: &'static str,
        /// The version needed.
        needed: Version,
        /// What was tried, with what the loader said.
        tried: Vec<String>,
    },
    /// It is older than what is needed.
    #[error("{kind} at {} is version {found}; version {needed} or later is needed: {}", path.display(), kind.advice())]
    TooOld {
        /// Which.
        kind: LibraryKind,
        /// Where.
        path: PathBuf,
        /// Its version.
        found: Version,
        /// The version needed.
        needed: Version,
    },
    /// It lacks a function.
    #[error("{kind} at {} has no function `{symbol}`; version {needed} or later is needed: {}", path.display(), kind.advice())]
    Symbol {
        /// Which.
        kind: LibraryKind,
        /// Where.
        path: PathBuf,
        /// The function.
        symbol: &'static str,
        /// The version needed.
        needed: Version,
    },
}

fn looked_in(tried: &[String]) -> String {
    if tried.is_empty() { "nowhere".to_owned() } else { tried.join("; ") }
}

/// Where to look for libraries.
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    /// Folders that are given; searched first.
    pub given: Vec<PathBuf>,
    /// `site-packages` folders whose wheels are searched next.
    pub site_packages: Vec<PathBuf>,
}

/// The environment variable with folders to search first, separated by colons.
pub const PATH_VARIABLE: &str = "REGRAFT_CUDA_PATH";

impl Lookup {
    /// The folders of [`PATH_VARIABLE`], the `site-packages` of what this process has loaded, and those of an active
    /// virtual environment.
    pub fn from_environment() -> Lookup {
        let given = std::env::var_os(PATH_VARIABLE)
            .map(|v| std::env::split_paths(&v).filter(|p| !p.as_os_str().is_empty()).collect())
            .unwrap_or_default();
        let mut site_packages = loaded_site_packages(&std::fs::read_to_string("/proc/self/maps").unwrap_or_default());
        for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
            if let Some(root) = std::env::var_os(variable) {
                site_packages.extend(site_packages_of(Path::new(&root)));
            }
        }
        Lookup { given, site_packages }
    }

    /// Also the wheels of the Python environment at `root`, such as a virtual environment.
    pub fn with_environment(mut self, root: &Path) -> Lookup {
        self.site_packages.extend(site_packages_of(root));
        self
    }

    /// What is tried for `kind`, in order: absolute paths, and at the end bare names for the system's loader.
    pub fn candidates(&self, kind: LibraryKind) -> Vec<PathBuf> {
        let mut folders = self.given.clone();
        if kind != LibraryKind::Driver {
            for site in &self.site_packages {
                folders.extend(WHEEL_FOLDERS.iter().map(|folder| site.join(folder)));
            }
        }
        let files = kind.files();
        let within = |folder: &PathBuf| files.iter().map(|file| folder.join(file)).collect::<Vec<_>>();
        let mut all: Vec<PathBuf> = folders.iter().flat_map(within).filter(|path| path.exists()).collect();
        all.extend(files.iter().map(PathBuf::from));
        if kind != LibraryKind::Driver {
            let system = PathBuf::from("/usr/local/cuda/lib64");
            all.extend(within(&system).into_iter().filter(|path| path.exists()));
        }
        all
    }

    /// Opens the first candidate that can be opened.
    ///
    /// # Errors
    /// [`LibraryError::Missing`] with all that was tried.
    pub(crate) fn open(&self, kind: LibraryKind) -> Result<Opened, LibraryError> {
        let mut tried = Vec::new();
        for path in self.candidates(kind) {
            match open(&path) {
                Ok(library) => return Ok(Opened { kind, path, library: ManuallyDrop::new(library) }),
                Err(error) => tried.push(format!("{} ({error})", path.display())),
            }
        }
        Err(LibraryError::Missing { kind, file: kind.files()[0], needed: kind.needed(), tried })
    }
}

fn open(path: &Path) -> Result<libloading::Library, libloading::Error> {
    let flags = unix::RTLD_NOW | unix::RTLD_GLOBAL;
    // SAFETY: the initializers of NVIDIA's libraries are the only code that opening runs; they are made to be opened at any
    // time. The symbols are global so that cuDNN finds the cuBLASLt and NVRTC that were opened here.
    unsafe { unix::Library::open(Some::<&OsStr>(path.as_os_str()), flags) }.map(Into::into)
}

/// An opened library. It stays loaded until the process ends: NVIDIA's libraries start threads and leave destructors with
/// those that called them, which would run in memory that is no longer mapped.
pub(crate) struct Opened {
    kind: LibraryKind,
    path: PathBuf,
    library: ManuallyDrop<libloading::Library>,
}

impl Opened {
    /// The path that it was opened by.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The address of `symbol` as a function pointer of type `F`.
    ///
    /// # Safety
    /// `F` must be the type of that function.
    ///
    /// # Errors
    /// [`LibraryError::Symbol`] when there is none.
    pub(crate) unsafe fn function<F: Copy>(&self, symbol: &'static str) -> Result<F, LibraryError> {
        // SAFETY: the caller vouches for the type.
        let found = unsafe { self.library.get::<F>(symbol.as_bytes()) };
        found.map(|f| *f).map_err(|_| LibraryError::Symbol {
            kind: self.kind,
            path: self.path.clone(),
            symbol,
            needed: self.kind.needed(),
        })
    }

    /// An error if `found` is older than what is needed.
    pub(crate) fn require(&self, found: Version) -> Result<Version, LibraryError> {
        let needed = self.kind.needed();
        if found >= needed {
            return Ok(found);
        }
        Err(LibraryError::TooOld { kind: self.kind, path: self.path.clone(), found, needed })
    }
}

/// The `site-packages` folders that files mapped into this process lie in, from the text of `/proc/self/maps`.
fn loaded_site_packages(maps: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for line in maps.lines() {
        let Some(start) = line.find('/') else { continue };
        for folder in ["site-packages", "dist-packages"] {
            if let Some(at) = line.find(&format!("/{folder}/")) {
                let path = PathBuf::from(&line[start..at + 1 + folder.len()]);
                if !found.contains(&path) {
                    found.push(path);
                }
            }
        }
    }
    found
}

/// The `site-packages` folders of a Python environment.
fn site_packages_of(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(root.join("lib")) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("python3"))
        .map(|e| e.path().join("site-packages"))
        .filter(|p| p.is_dir())
        .collect();
    found.sort();
    found
}

/// Declares the functions of a library that are used, and loads all of them at once.
macro_rules! api {
    ($(#[$doc:meta])* struct $name:ident { $(fn $f:ident($($arg:ty),* $(,)?) -> $ret:ty;)* }) => {
        $(#[$doc])*
        #[allow(non_snake_case)]
        pub(crate) struct $name {
            $(pub(crate) $f: unsafe extern "C" fn($($arg),*) -> $ret,)*
            /// Keeps the functions loaded.
            pub(crate) opened: $crate::library::Opened,
        }

        impl $name {
            /// Looks up every function.
            pub(crate) fn load(opened: $crate::library::Opened) -> Result<Self, $crate::library::LibraryError> {
                // SAFETY: the declarations follow NVIDIA's headers, whose functions keep their signatures under one name.
                unsafe { Ok($name { $($f: opened.function(concat!(stringify!($f), "\0"))?,)* opened }) }
            }
        }
    };
}
pub(crate) use api;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_comes_before_wheels_and_the_system() {
        let root = tempfile::tempdir().expect("a folder");
        let given = root.path().join("given");
        let site = root.path().join("env/lib/python3.12/site-packages");
        for folder in [given.clone(), site.join("nvidia/cu13/lib")] {
            std::fs::create_dir_all(&folder).expect("folders");
            std::fs::write(folder.join("libnvrtc.so.13"), b"").expect("a file");
        }
        let lookup = Lookup { given: vec![given.clone()], site_packages: Vec::new() };
        let found = lookup.with_environment(&root.path().join("env")).candidates(LibraryKind::Nvrtc);
        assert_eq!(found[0], given.join("libnvrtc.so.13"));
        assert_eq!(found[1], site.join("nvidia/cu13/lib/libnvrtc.so.13"));
        assert_eq!(found[2], PathBuf::from("libnvrtc.so.13"));
    }

    #[test]
    fn loaded_files_tell_the_environment() {
        let maps = "7f00-7f01 r-xp 00000000 08:01 1   /env/lib/python3.12/site-packages/torch/lib/libtorch.so\n\
                    7f02-7f03 r-xp 00000000 08:01 2   /usr/lib/libc.so.6\n7f04-7f05 rw-p 00000000 00:00 0 \n";
        assert_eq!(loaded_site_packages(maps), [PathBuf::from("/env/lib/python3.12/site-packages")]);
    }

    #[test]
    fn a_missing_library_is_one_clear_error() {
        let error = LibraryError::Missing {
            kind: LibraryKind::Cudnn,
            file: "libcudnn.so.9",
            needed: LibraryKind::Cudnn.needed(),
            tried: vec!["libcudnn.so.9 (not found)".into()],
        };
        assert_eq!(
            error.to_string(),
            "cuDNN (libcudnn.so.9, version 9.5 or later) was not found; pip install nvidia-cudnn-cu13, or install cuDNN. \
             Looked in: libcudnn.so.9 (not found)"
        );
        let error = LibraryError::TooOld {
            kind: LibraryKind::Driver,
            path: "libcuda.so.1".into(),
            found: Version([11, 8, 0]),
            needed: LibraryKind::Driver.needed(),
        };
        assert!(error.to_string().contains("is version 11.8; version 12.4 or later is needed"));
    }
}
