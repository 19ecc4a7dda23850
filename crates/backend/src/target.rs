//! Names of machines and kernels.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The machine that an engine is built for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    /// Name of the backend: `cpu`.
    pub backend: String,
    /// Architecture: `x86_64`.
    pub arch: String,
    /// Instruction-set level that kernels are chosen and weights are packed for: `avx512`.
    pub level: String,
    /// Features of the processor that the level's kernels use, such as `avx512bw`, in order.
    #[serde(default)]
    pub features: Vec<String>,
}

impl Target {
    /// The features that this target needs and `machine` does not have.
    pub fn missing_on<'a>(&'a self, machine: &Target) -> Vec<&'a str> {
        self.features.iter().filter(|feature| !machine.features.contains(feature)).map(String::as_str).collect()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.backend, self.arch, self.level)
    }
}

/// The name of a kernel of this version, such as `linear.panels`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KernelId(pub String);

impl KernelId {
    /// The reference evaluator, which runs any op, on the host.
    pub const REFERENCE: &'static str = "reference";
    /// No kernel: the result is another view of the operand's memory, copied only where strides cannot express it.
    pub const VIEW: &'static str = "view";
    /// Makes a strided value row-major. Every device has it; plans do not name it.
    pub const COPY: &'static str = "copy";

    /// A kernel of this name.
    pub fn new(name: impl Into<String>) -> Self {
        KernelId(name.into())
    }
}

impl fmt::Display for KernelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
