//! What the compiler and the runtime ask of a backend; no implementation.
//!
//! The compiler asks [`Backend::candidates`] how a node can run and in which [`PackFormat`] each weight is wanted. The
//! runtime asks [`Backend::prepare`] for a [`Kernel`] once sizes are known, and [`Backend::pack`] to make slots.
#![forbid(unsafe_code)]

use std::fmt;

pub use regraft_adapter as adapter;
use regraft_adapter::Overlay;
use regraft_ir::{Op, TensorType};
use regraft_tensor::{DType, Tensor};
pub use regraft_weights::PackFormat;
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
    /// The reference evaluator, which runs any op.
    pub const REFERENCE: &'static str = "reference";
    /// No kernel: the result is another view of the operand's memory, copied only where strides cannot express it.
    pub const VIEW: &'static str = "view";

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

/// An operand of a node that a backend is asked about.
#[derive(Clone, Copy, Debug)]
pub struct OperandType<'a> {
    /// Its type; sizes may be symbolic.
    pub ty: &'a TensorType,
    /// Whether it is known from sources, and so can be a slot in any format.
    pub known: bool,
}

/// How a kernel wants an operand that is known from sources.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightLayout {
    /// The operand.
    pub operand: usize,
    /// Ops that the recipe appends to the operand's value, such as a transpose.
    pub prepare: Vec<Op>,
    /// The format that the result is packed in.
    pub format: PackFormat,
}

/// One way to run a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The kernel.
    pub kernel: KernelId,
    /// Layouts of weights; operands not named are plain.
    pub weights: Vec<WeightLayout>,
}

impl Candidate {
    /// A kernel that takes all operands plain.
    pub fn plain(kernel: &str) -> Self {
        Candidate { kernel: KernelId::new(kernel), weights: Vec::new() }
    }
}

/// The layout of a slot in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotLayout {
    /// Logical shape of what is packed, after the preparing ops.
    pub shape: Vec<usize>,
    /// The format.
    pub format: PackFormat,
}

/// An operand with known sizes.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// Element type.
    pub dtype: DType,
    /// Sizes, as the op sees them.
    pub shape: &'a [usize],
    /// Strides in elements. Row-major for slots, whose memory is in their layout.
    pub strides: &'a [usize],
    /// The layout, when the operand is a slot.
    pub slot: Option<&'a SlotLayout>,
}

/// A result with known sizes; its memory is row-major.
#[derive(Clone, Copy, Debug)]
pub struct ResultType<'a> {
    /// Element type.
    pub dtype: DType,
    /// Sizes.
    pub shape: &'a [usize],
}

/// A node with known sizes, to be prepared.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// The kernel chosen at build time.
    pub kernel: &'a KernelId,
    /// The op; no symbols are left in its attributes.
    pub op: &'a Op,
    /// Operands.
    pub inputs: &'a [Option<Operand<'a>>],
    /// Results.
    pub outputs: &'a [ResultType<'a>],
}

/// A kernel ready to run one node at one set of sizes. May be run from several threads at once.
pub trait Kernel: Send + Sync {
    /// Runs. `inputs[i]` starts at the first element of operand `i` and reaches at least to its last one; `outputs[i]` has
    /// exactly the bytes of result `i`, contents unspecified before.
    ///
    /// # Errors
    /// When a value is out of range, such as an index.
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]]) -> Result<(), KernelError>;
}

/// A piece of a packed matrix with its data; see [`regraft_weights::Piece`].
#[derive(Clone, Debug)]
pub struct PieceData<'a> {
    /// Element type of `data`: a float.
    pub dtype: DType,
    /// The whole source.
    pub data: &'a [u8],
    /// First element.
    pub offset: usize,
    /// Sizes and strides of the parts of the row index, outermost first.
    pub k_dims: &'a [(usize, usize)],
    /// Number of columns.
    pub n_len: usize,
    /// Distance of neighbouring columns.
    pub n_stride: usize,
    /// Factor per column.
    pub scale: Option<&'a [f32]>,
    /// What adapters do to the source before it is packed; see [`regraft_weights::Piece::tiles`] for when that is possible
    /// here.
    pub overlay: Option<&'a Overlay>,
}

/// An error of a run.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// An index lies outside of its axis.
    #[error("index {index} is out of range for an axis of size {size}")]
    Index {
        /// The index found.
        index: i64,
        /// Size of the axis.
        size: usize,
    },
    /// The reference evaluator refused.
    #[error(transparent)]
    Eval(#[from] regraft_ir::EvalError),
}

/// An error of a backend about a node or a slot.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// There is no such kernel in this version.
    #[error("there is no kernel `{0}` in this version")]
    UnknownKernel(KernelId),
    /// The kernel does not take this problem.
    #[error("kernel `{kernel}` does not take this {op}: {why}")]
    Unsupported {
        /// The kernel.
        kernel: KernelId,
        /// The op.
        op: &'static str,
        /// What does not fit.
        why: String,
    },
    /// Adapters cannot be applied to a source.
    #[error("cannot apply adapters: {0}")]
    Merge(&'static str),
    /// A slot cannot be packed.
    #[error("cannot pack as {format}: {why}")]
    Pack {
        /// The format.
        format: PackFormat,
        /// What does not fit.
        why: String,
    },
}

/// A machine that runs kernels and packs weights.
pub trait Backend: Send + Sync {
    /// What engines built for this backend need.
    fn target(&self) -> Target;

    /// The processor that runs kernels, as its maker calls it: what times of kernels depend on besides the target.
    fn processor(&self) -> String;

    /// Whether an engine built for `target` runs here.
    fn runs(&self, target: &Target) -> bool;

    /// The ways to run a node, best first. None: the reference evaluator runs it.
    fn candidates(&self, op: &Op, inputs: &[Option<OperandType<'_>>], outputs: &[&TensorType]) -> Vec<Candidate>;

    /// Whether a kernel can read operand `index` with these strides; otherwise it is copied to row-major first.
    fn reads_strided(&self, kernel: &KernelId, op: &Op, index: usize, operand: &Operand<'_>) -> bool;

    /// The kernel for a node at known sizes. All sizes are checked here, so that running cannot go wrong.
    ///
    /// # Errors
    /// When the kernel is unknown or does not take the problem.
    fn prepare(&self, problem: &Problem<'_>) -> Result<Box<dyn Kernel>, BackendError>;

    /// Copies a strided operand of `size`-byte elements to row-major memory, on the threads of runs.
    fn copy_strided(&self, size: usize, shape: &[usize], strides: &[usize], from: &[u8], to: &mut [u8]);

    /// Packs matrices, each given by its pieces side by side, into a slot, on the threads of refits.
    ///
    /// # Errors
    /// When the pieces do not make up the slot.
    fn pack(&self, layout: &SlotLayout, matrices: &[Vec<PieceData<'_>>], out: &mut [u8]) -> Result<(), BackendError>;

    /// Writes a part of `source` with `overlay` applied, in the source's dtype, starting at element `first`; on the threads
    /// of refits.
    ///
    /// # Errors
    /// When the source is of no float type or another size, or the part reaches beyond it.
    fn merge(&self, overlay: &Overlay, source: &Tensor, first: usize, out: &mut [u8]) -> Result<(), BackendError>;

    /// Fills in the factors of the overlay's terms that have norms, from `source`; on the threads of refits.
    ///
    /// # Errors
    /// When the source is of no float type or another size.
    fn fill_norms(&self, overlay: &mut Overlay, source: &Tensor) -> Result<(), BackendError>;

    /// Calls `task` with every number below `count`, on the threads of refits.
    fn for_each_staged(&self, count: usize, task: &(dyn Fn(usize) + Sync));

    /// Copies bytes, on the threads of refits.
    fn copy_staged(&self, from: &[u8], to: &mut [u8]);

    /// Calls `run` inside the thread pool of runs, so that the kernels it runs do not pay for entering it. Kernels may be run
    /// outside of it too.
    fn enter(&self, run: &mut (dyn FnMut() + Send));

    /// Threads of a run.
    fn threads(&self) -> usize;
}
