//! Errors of the device.

use crate::library::LibraryError;

/// What can go wrong with a device.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CudaError {
    /// A library is missing or too old.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// There is no such device.
    #[error("there is no CUDA device {index}; {count} found")]
    NoDevice {
        /// The device asked for.
        index: u32,
        /// Devices of this machine.
        count: u32,
    },
    /// The device has no room.
    #[error(
        "the device is out of memory: {bytes} bytes were asked for, {free} of {total} are free; a smaller batch, fewer resident \
         variants or sources kept on the host would help. Nothing was lost"
    )]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes free on the device.
        free: usize,
        /// Bytes of the device.
        total: usize,
    },
    /// A call of the driver failed.
    #[error("{call} failed: {name}: {text}")]
    Driver {
        /// The function.
        call: &'static str,
        /// Its code.
        code: i32,
        /// Name of the code.
        name: String,
        /// What the driver says about it.
        text: String,
    },
    /// A call of a library failed.
    #[error("{call} of {library} failed with status {code}")]
    Status {
        /// The library.
        library: &'static str,
        /// The function.
        call: &'static str,
        /// Its status.
        code: i32,
    },
    /// A kernel does not compile: an error of Regraft.
    #[error("kernel `{name}` does not compile for {arch}:\n{log}")]
    Compile {
        /// The kernel.
        name: String,
        /// The architecture.
        arch: String,
        /// What the compiler says.
        log: String,
    },
    /// A library has no algorithm for a problem.
    #[error("{library} has no algorithm for {problem}")]
    NoAlgorithm {
        /// The library.
        library: &'static str,
        /// The problem.
        problem: String,
    },
    /// A region of memory is smaller than what it is used for.
    #[error("a region of {found} bytes is used as {needed} bytes")]
    Region {
        /// Its bytes.
        found: usize,
        /// Bytes that are needed.
        needed: usize,
    },
    /// The device is used in a child of the process that opened it.
    #[error(
        "a CUDA device cannot be used after fork: the child process has no access to it. Start the process with `spawn`, or \
         open the device in the child only"
    )]
    Forked,
}
