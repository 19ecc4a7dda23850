//! GPUs as the compiler sees them; no device is needed.

use std::sync::Arc;

use regraft_backend::{
    Candidate, Codegen, FormatId, KernelId, Lowering, OperandType, Plain, SlotFormat, Target, WeightLayout,
};
use regraft_ir::{
    Op, TensorType,
    ops::{Activation, Fused, Permute, SpatialLayout},
};
use regraft_tensor::{DType, contiguous_strides};

use super::prepare::{ATTENTION, CONV_FIRST, CONV_LAST, LINEAR, MATMUL, OWN};
use crate::kernels::{Node, conv::WeightOrder, elementwise, elementwise::View, specs};

/// Chooses kernels for GPUs of one architecture.
#[derive(Clone, Debug)]
pub struct CudaCodegen {
    arch: String,
}

impl CudaCodegen {
    /// For an architecture, such as `sm_90`, which this machine need not have.
    pub fn new(arch: impl Into<String>) -> Self {
        CudaCodegen { arch: arch.into() }
    }
}

/// Sizes that stand for symbols when a kernel is asked whether it takes a node: whether it does depends on constants.
const STAND_INS: [i64; 3] = [4, 64, 1024];
/// More symbols than a program has.
const MOST_SYMBOLS: usize = 256;

/// Whether products and convolutions compute in it.
pub(super) const fn is_computed(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

impl Codegen for CudaCodegen {
    fn target(&self) -> Target {
        Target { backend: "cuda".into(), arch: self.arch.clone(), level: "1".into(), features: Vec::new() }
    }

    fn lowering(&self) -> &dyn Lowering {
        self
    }

    fn candidates(&self, op: &Op, inputs: &[Option<OperandType<'_>>], outputs: &[&TensorType]) -> Vec<Candidate> {
        let computed = inputs.iter().flatten().all(|o| is_computed(o.ty.dtype));
        match op {
            Op::Linear(_) if computed => return vec![Candidate::plain(LINEAR)],
            Op::Matmul(_) if computed => return vec![Candidate::plain(MATMUL)],
            Op::Conv(op) if computed => return vec![conv(op.layout, inputs)],
            _ => {}
        }
        let taken = STAND_INS.iter().find_map(|&size| takes(op, inputs, outputs, size)).unwrap_or(false);
        match op {
            _ if !taken => Vec::new(),
            Op::Attention(_) => vec![Candidate::plain(ATTENTION)],
            _ => vec![Candidate::plain(&format!("{}{OWN}", op.name()))],
        }
    }

    fn format(&self, id: &FormatId) -> Option<Arc<dyn SlotFormat>> {
        if id.is_plain() { Some(Arc::new(Plain)) } else { None }
    }
}

/// A convolution, whose weight has its channels where those of the images are.
fn conv(layout: SpatialLayout, inputs: &[Option<OperandType<'_>>]) -> Candidate {
    let weight = inputs.get(1).copied().flatten();
    let Some(weight) = weight.filter(|w| w.known && layout == SpatialLayout::Nhwc) else {
        return Candidate::plain(CONV_FIRST);
    };
    let perm: Vec<usize> = [0].into_iter().chain(2..weight.ty.rank()).chain([1]).collect();
    let layout = WeightLayout { operand: 1, prepare: vec![Permute { perm }.into()], format: FormatId::PLAIN };
    Candidate { kernel: KernelId::new(CONV_LAST), weights: vec![layout] }
}

/// Whether a kernel of our own takes the node when every symbol is `size`; `None` when sizes do not work out then.
fn takes(op: &Op, inputs: &[Option<OperandType<'_>>], outputs: &[&TensorType], size: i64) -> Option<bool> {
    let symbols = [size; MOST_SYMBOLS];
    let sizes = |ty: &TensorType| -> Option<Vec<usize>> {
        ty.shape.iter().map(|d| usize::try_from(d.eval(&symbols).ok()?).ok()).collect()
    };
    let op = op.bind(&symbols).ok()?;
    let shapes: Vec<Option<(DType, Vec<usize>)>> = inputs
        .iter()
        .map(|input| input.map(|o| Some((o.ty.dtype, sizes(o.ty)?))).map_or(Some(None), |o| o.map(Some)))
        .collect::<Option<_>>()?;
    let strides: Vec<Vec<usize>> =
        shapes.iter().map(|s| s.as_ref().map_or_else(Vec::new, |s| contiguous_strides(&s.1))).collect();
    let mut views = Vec::with_capacity(shapes.len());
    for (shape, strides) in shapes.iter().zip(&strides) {
        views.push(shape.as_ref().map(|(dtype, shape)| View { dtype: *dtype, shape, strides }));
    }
    let results: Vec<(DType, Vec<usize>)> =
        outputs.iter().map(|ty| Some((ty.dtype, sizes(ty)?))).collect::<Option<_>>()?;
    let results: Vec<(DType, &[usize])> = results.iter().map(|(d, s)| (*d, s.as_slice())).collect();
    let order = WeightOrder::ChannelsFirst;
    let node = Node { op: &op, inputs: &views, outputs: &results, weight_order: order, matrix_units: false };
    Some(specs(&node).is_ok())
}

impl Lowering for CudaCodegen {
    fn image_layout(&self, dtype: DType) -> SpatialLayout {
        if is_computed(dtype) { SpatialLayout::Nhwc } else { SpatialLayout::Nchw }
    }

    fn fuses(&self, op: &Fused, operands: &[DType]) -> bool {
        let views: Vec<View<'_>> = operands.iter().map(|&dtype| View { dtype, shape: &[4], strides: &[1] }).collect();
        elementwise::chain(&op.steps, &views, &[4]).is_ok()
    }

    fn takes_epilogue(&self, op: &Op, _: DType) -> bool {
        match op {
            Op::Linear(op) => {
                let first = op.act_first && op.act != Activation::None;
                !first && matches!(op.act, Activation::None | Activation::Relu | Activation::GeluTanh)
            }
            Op::Conv(op) => !matches!(op.act, Activation::Hardswish | Activation::Hardsigmoid),
            _ => true,
        }
    }

    fn rotates(&self, dtype: DType) -> bool {
        is_computed(dtype)
    }
}

#[cfg(test)]
mod tests {
    use regraft_ir::ops::{Embedding, LayerNorm, Linear};
    use regraft_tensor::{Dim, Symbol};

    use super::*;

    fn candidates(op: impl Into<Op>, inputs: &[&TensorType]) -> Vec<Candidate> {
        let op = op.into();
        let outputs = op.infer(&inputs.iter().map(|&t| Some(t)).collect::<Vec<_>>()).expect("they fit");
        let operands: Vec<_> = inputs.iter().map(|&ty| Some(OperandType { ty, known: true })).collect();
        CudaCodegen::new("sm_90").candidates(&op, &operands, &outputs.iter().collect::<Vec<_>>())
    }

    #[test]
    fn symbols_do_not_keep_a_kernel_away() {
        let s = Dim::sym(Symbol(0));
        let x = TensorType::new(DType::F16, [s.clone(), Dim::new(768)]);
        let w = TensorType::of_sizes(DType::F16, &[768]);
        assert_eq!(candidates(LayerNorm { axes: 1, eps: 1e-5 }, &[&x, &w, &w]).len(), 1);
        let table = TensorType::of_sizes(DType::F16, &[100, 768]);
        let ids = TensorType::new(DType::I64, [s]);
        assert_eq!(candidates(Embedding {}, &[&table, &ids])[0].kernel.0, "embedding.own");
        let weight = TensorType::of_sizes(DType::F16, &[96, 768]);
        let linear = Linear { act: Activation::None, act_first: false };
        assert_eq!(candidates(linear, &[&x, &weight])[0].kernel.0, LINEAR);
    }

    #[test]
    fn f64_is_left_to_the_evaluator() {
        let x = TensorType::of_sizes(DType::F64, &[4, 8]);
        assert!(candidates(LayerNorm { axes: 1, eps: 1e-5 }, &[&x]).is_empty());
        let linear = Linear { act: Activation::None, act_first: false };
        assert!(candidates(linear, &[&x, &x]).is_empty());
    }

    #[test]
    fn weights_of_convolutions_follow_the_images() {
        let op = regraft_ir::ops::Conv {
            stride: vec![1; 2],
            padding: vec![1; 2],
            dilation: vec![1; 2],
            groups: 1,
            layout: SpatialLayout::Nhwc,
            act: Activation::None,
            act_first: false,
        };
        let x = TensorType::of_sizes(DType::F16, &[1, 8, 8, 16]);
        let w = TensorType::of_sizes(DType::F16, &[32, 16, 3, 3]);
        let found = candidates(op, &[&x, &w]).remove(0);
        assert_eq!(found.kernel.0, CONV_LAST);
        assert_eq!(found.weights[0].prepare, [Permute { perm: vec![0, 2, 3, 1] }.into()]);
    }
}
