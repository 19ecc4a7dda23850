//! The one place where devices are made.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use regraft_backend::Device;
use regraft_backend_cpu::CpuDevice;
use regraft_backend_cuda::{CudaDevice, CudaError, CudaOptions, library::Lookup};

use crate::{Error, Threads, cache_folder};

/// Which device of this machine: `cpu`, `cuda`, `cuda:1`.
///
/// ```
/// # use regraft::DeviceName;
/// assert_eq!("cuda:1".parse(), Ok(DeviceName::Cuda(1)));
/// assert_eq!(DeviceName::default().to_string(), "cpu");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceName {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(u32),
}

/// A name that no device has.
///
/// ```
/// let error = "tpu".parse::<regraft::DeviceName>().unwrap_err();
/// assert!(error.to_string().contains("tpu"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no device `{0}`: cpu, cuda and cuda:N are known")]
pub struct UnknownDevice(String);

impl FromStr for DeviceName {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        let number = |text: &str| text.parse().ok().map(DeviceName::Cuda);
        let found = match name.split_once(':') {
            None if name == "cpu" => Some(DeviceName::Cpu),
            None if name == "cuda" => Some(DeviceName::Cuda(0)),
            Some(("cuda", index)) => number(index),
            _ => None,
        };
        found.ok_or_else(|| UnknownDevice(name.to_owned()))
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Cpu => f.write_str("cpu"),
            DeviceName::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// A device that cannot be used.
///
/// ```
/// use regraft::{DeviceName, Error, Threads};
///
/// if let Err(Error::Device(error)) = regraft::device(DeviceName::Cuda(7), Threads::Auto) {
///     println!("{error}"); // what is missing, and what to do
/// }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[error("{device}: {error}")]
pub struct DeviceError {
    device: DeviceName,
    error: CudaError,
}

/// A device of this machine. `threads` are those of the host; GPUs use them where they do not make slots themselves.
///
/// A GPU is opened once and stays open until the process ends: every model on it shares its kernels and libraries.
///
/// ```
/// # use regraft::{DeviceName, Threads};
/// let device = regraft::device(DeviceName::Cpu, Threads::Count(1))?;
/// assert_eq!(device.name(), "cpu");
/// # Ok::<(), regraft::Error>(())
/// ```
///
/// # Errors
/// When there is no such device, or a library that it needs is missing or too old.
pub fn device(name: DeviceName, threads: Threads) -> Result<Arc<dyn Device>, Error> {
    let count = match threads {
        Threads::Auto => None,
        Threads::Count(n) => Some(n),
    };
    match name {
        DeviceName::Cpu => Ok(Arc::new(CpuDevice::new(count))),
        DeviceName::Cuda(index) => gpu(index, count),
    }
}

/// A GPU with so many threads of the host, as it was opened.
type Opened = ((u32, Option<usize>), Arc<dyn Device>);

fn gpu(index: u32, threads: Option<usize>) -> Result<Arc<dyn Device>, Error> {
    static OPENED: Mutex<Vec<Opened>> = Mutex::new(Vec::new());
    // A list that is pushed to is whole after any panic.
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, device)) = opened.iter().find(|(key, _)| *key == (index, threads)) {
        return Ok(device.clone());
    }
    let cubins = cache_folder().map(|folder| folder.join("cubins"));
    let options = CudaOptions { lookup: Lookup::from_environment(), cubins, tf32: false, threads };
    let failed = |error| DeviceError { device: DeviceName::Cuda(index), error };
    let device: Arc<dyn Device> = Arc::new(CudaDevice::open(index, &options).map_err(failed)?);
    opened.push(((index, threads), device.clone()));
    Ok(device)
}

/// The CPU of this machine.
///
/// ```
/// use regraft::{Device as _, Threads};
///
/// println!("{}", regraft::cpu(Threads::Auto).processor());
/// ```
pub fn cpu(threads: Threads) -> Arc<dyn Device> {
    Arc::new(match threads {
        Threads::Auto => CpuDevice::new(None),
        Threads::Count(n) => CpuDevice::new(Some(n)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for name in [DeviceName::Cpu, DeviceName::Cuda(0), DeviceName::Cuda(3)] {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        for other in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0"] {
            assert!(other.parse::<DeviceName>().is_err(), "{other}");
        }
    }
}
