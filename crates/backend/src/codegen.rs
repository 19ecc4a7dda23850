//! The compile-time half of a backend: no device is needed to answer.

use std::sync::Arc;

use regraft_ir::{
    Op, TensorType,
    ops::{Fused, SpatialLayout, WeightFormat},
};
use regraft_tensor::DType;
use regraft_weights::FormatId;

use crate::{KernelId, SlotFormat, Target};

/// An operand of a node that a backend is asked about.
#[derive(Clone, Copy, Debug)]
pub struct OperandType<'a> {
    /// Its type; sizes may be symbolic.
    pub ty: &'a TensorType,
    /// Whether it depends on sources only, and so can be a slot in any format.
    pub known: bool,
}

/// How a kernel wants an operand that depends on sources only.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightLayout {
    /// The operand.
    pub operand: usize,
    /// Ops that the recipe appends to the operand's value, such as a transpose.
    pub prepare: Vec<Op>,
    /// The format that the result is packed in.
    pub format: FormatId,
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

/// What a backend asks of the passes.
pub trait Lowering: Send + Sync {
    /// Where the channels of images of this dtype should be.
    fn image_layout(&self, dtype: DType) -> SpatialLayout;

    /// Whether these elementwise steps on operands of these dtypes run well as one kernel.
    fn fuses(&self, op: &Fused, operands: &[DType]) -> bool;

    /// Whether `op`, a product or convolution with the epilogue that it now has, runs well as one kernel. `dtype` is that of
    /// its result.
    fn takes_epilogue(&self, op: &Op, dtype: DType) -> bool;

    /// Whether a convolution of single pixels and the depthwise one behind it run well as one kernel, a
    /// [`ConvPair`](regraft_ir::ops::ConvPair); `between` is the image between them.
    fn pairs_convs(&self, _between: &TensorType) -> bool {
        false
    }

    /// Whether rotary embeddings of this dtype run well as one kernel.
    fn rotates(&self, dtype: DType) -> bool;

    /// Whether there are kernels of linear layers for weights that are stored so.
    fn stores_weights(&self, _: WeightFormat) -> bool {
        false
    }
}

/// Chooses kernels and formats for one target.
pub trait Codegen: Send + Sync {
    /// What engines built by it need.
    fn target(&self) -> Target;

    /// What it asks of the passes.
    fn lowering(&self) -> &dyn Lowering;

    /// The ways to run a node, best first. None: the reference evaluator runs it, on the host.
    fn candidates(&self, op: &Op, inputs: &[Option<OperandType<'_>>], outputs: &[&TensorType]) -> Vec<Candidate>;

    /// The format of this name; `None` when this target has none.
    fn format(&self, id: &FormatId) -> Option<Arc<dyn SlotFormat>>;
}
