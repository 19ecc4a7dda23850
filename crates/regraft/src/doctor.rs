//! What this machine has, and what is missing.

use std::{fmt, path::PathBuf};

use regraft_backend::Device as _;
use regraft_backend_cpu::CpuDevice;
use regraft_backend_cuda::{
    driver::Info,
    found::{devices, found, too_old},
    library::{LibraryKind, Lookup, PATH_VARIABLE},
};
use serde::Serialize;

use crate::cache_folder;

/// What Regraft finds on this machine: see [`doctor`].
///
/// ```
/// let found = regraft::doctor();
/// println!("{} {}, {} GPUs", found.version, found.cpu.target, found.gpus.len());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Doctor {
    /// Version of Regraft.
    pub version: &'static str,
    /// The processor.
    pub cpu: Processor,
    /// The GPUs that can be named.
    pub gpus: Vec<Gpu>,
    /// Libraries of NVIDIA's.
    pub libraries: Vec<Library>,
    /// Folders that are kept for the user, and what for.
    pub caches: Vec<Folder>,
}

/// The processor of this machine.
///
/// ```
/// let cpu = regraft::doctor().cpu;
/// println!("{}: engines for {}, {} threads", cpu.name, cpu.target, cpu.threads);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Processor {
    /// As its maker calls it.
    pub name: String,
    /// What engines are built for here: architecture and instruction set.
    pub target: String,
    /// Threads of a run, unless it is told otherwise.
    pub threads: usize,
}

/// A GPU.
///
/// ```
/// for gpu in regraft::doctor().gpus {
///     println!("{}: {}, {} bytes", gpu.device, gpu.name, gpu.memory);
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Gpu {
    /// What it is called here: `cuda:0`.
    pub device: String,
    /// As its maker calls it.
    pub name: String,
    /// What engines are built for: `sm_90`.
    pub arch: String,
    /// Bytes of its memory.
    pub memory: usize,
}

/// A library of NVIDIA's.
///
/// ```
/// for library in regraft::doctor().libraries {
///     if let Some(problem) = &library.problem {
///         println!("{problem}; without it: {}", library.without_it);
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Library {
    /// What it is.
    pub name: String,
    /// Its file, where it was found.
    pub path: Option<PathBuf>,
    /// Its version, where it was found.
    pub version: Option<String>,
    /// The oldest version that is taken.
    pub needed: String,
    /// What is wrong: that it is missing, or too old, with what to do.
    pub problem: Option<String>,
    /// What does not work without it.
    pub without_it: &'static str,
}

/// A folder that is kept for the user.
///
/// ```
/// for folder in regraft::doctor().caches {
///     println!("{}: {}", folder.holds, folder.path.display());
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Folder {
    /// What for.
    pub holds: &'static str,
    /// Where.
    pub path: PathBuf,
}

/// Looks at this machine: its processor, its GPUs, and the libraries that these need. No device is opened.
///
/// ```
/// println!("{}", regraft::doctor());
/// ```
pub fn doctor() -> Doctor {
    let lookup = Lookup::from_environment();
    let cpu = CpuDevice::new(None);
    let cpu = Processor { name: cpu.processor(), target: cpu.codegen().target().to_string(), threads: cpu.threads() };
    let folders = [("engines", "engines"), ("measurements of kernels", "tuning"), ("kernels of GPUs", "cubins")];
    let root = cache_folder();
    let caches =
        folders.into_iter().filter_map(|(holds, name)| Some(Folder { holds, path: root.as_ref()?.join(name) }));
    Doctor {
        version: env!("CARGO_PKG_VERSION"),
        cpu,
        gpus: devices(&lookup).map_or_else(|_| Vec::new(), |found| found.iter().map(gpu).collect()),
        libraries: LibraryKind::ALL.into_iter().map(|kind| library(&lookup, kind)).collect(),
        caches: caches.collect(),
    }
}

fn gpu(info: &Info) -> Gpu {
    Gpu { device: format!("cuda:{}", info.index), name: info.name.clone(), arch: info.arch(), memory: info.memory }
}

fn library(lookup: &Lookup, kind: LibraryKind) -> Library {
    let (found, problem) = match found(lookup, kind) {
        Ok(found) => {
            let problem = too_old(kind, &found).map(|error| error.to_string());
            (Some(found), problem)
        }
        Err(error) => (None, Some(error.to_string())),
    };
    Library {
        name: kind.to_string(),
        version: found.as_ref().map(|found| found.version.to_string()),
        path: found.map(|found| found.path),
        needed: kind.needed().to_string(),
        problem,
        without_it: kind.costs(),
    }
}

impl Doctor {
    /// What stands in front of each line, and the line.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let cpu = &self.cpu;
        let threads = if cpu.threads == 1 { "thread" } else { "threads" };
        let mut lines = vec![
            ("regraft", self.version.to_owned()),
            ("cpu", format!("{}, {}, {} {threads}", cpu.name, cpu.target, cpu.threads)),
        ];
        let gpu = |gpu: &Gpu| format!("{}: {}, {}, {:.1} GB", gpu.device, gpu.name, gpu.arch, gpu.memory as f64 / 1e9);
        lines.extend(self.gpus.iter().map(|found| ("gpu", gpu(found))));
        if self.gpus.is_empty() {
            lines.push(("gpu", "none that can be used".to_owned()));
        }
        for library in &self.libraries {
            let Library { name, path, version, needed, .. } = library;
            if let (Some(path), Some(version)) = (path, version) {
                lines.push(("library", format!("{name} {version} (needed {needed}) at {}", path.display())));
            }
            if let Some(problem) = &library.problem {
                lines.push(("missing", problem.clone()));
                lines.push(("", format!("without it: {}", library.without_it)));
            }
        }
        if self.libraries.iter().any(|library| library.problem.is_some()) {
            lines.push(("help", format!("{PATH_VARIABLE} names folders to look in first")));
        }
        lines
            .extend(self.caches.iter().map(|folder| ("cache", format!("{}: {}", folder.holds, folder.path.display()))));
        lines
    }
}

impl fmt::Display for Doctor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines().iter().try_for_each(|(what, text)| writeln!(f, "  {what:<9}  {text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_says_what_that_costs() {
        let found = doctor();
        assert!(!found.cpu.target.is_empty() && found.cpu.threads > 0);
        assert_eq!(found.libraries.len(), LibraryKind::ALL.len());
        let text = found.to_string();
        for library in &found.libraries {
            assert_eq!(library.problem.is_some(), text.contains(library.without_it), "{text}");
        }
        assert_eq!(found.gpus.is_empty(), text.contains("none that can be used"));
    }
}
