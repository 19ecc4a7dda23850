//! Nodes at known sizes become launches.

use regraft_backend::{BackendError, Kernel, KernelId, NodeSpec, Operand};
use regraft_ir::{
    Op, TensorType,
    ops::{Activation, Conv, FusedFn, FusedStep, Linear},
};

use super::{
    Cx,
    codegen::is_computed,
    kernel::{CudaKernel, Work},
    product::{self, Products, uniform_rows},
};
use crate::{
    CudaError,
    cudnn::ConvProblem,
    gemm::{self, Matrix, Product},
    kernels::{
        self, Node, Param, Spec, Why,
        conv::{self, Epilogue, WeightOrder},
        elementwise::{self, View},
        movement, specs,
    },
};

/// `x·Wᵀ` with an epilogue: cuBLASLt, or our own kernel for few rows.
pub(super) const LINEAR: &str = "linear.rows";
/// Products of computed values by cuBLASLt.
pub(super) const MATMUL: &str = "matmul.batched";
/// Convolutions with weights in PyTorch's order.
pub(super) const CONV_FIRST: &str = "conv.channels_first";
/// Convolutions with the channels of weights last: cuDNN, or our own kernel.
pub(super) const CONV_LAST: &str = "conv.channels_last";
/// Attention, on matrix units where types allow it.
pub(super) const ATTENTION: &str = "attention.tiles";
/// Ends the names of all other kernels, which begin with the op's.
pub(super) const OWN: &str = ".own";

/// Whether a kernel reads operand `index` with these strides.
pub(super) fn reads_strided(kernel: &KernelId, op: &Op, index: usize, operand: &Operand<'_>) -> bool {
    match kernel.0.as_str() {
        LINEAR => index == 0 && uniform_rows(operand).is_some(),
        MATMUL => product::reads(operand),
        CONV_FIRST | CONV_LAST => false,
        _ => kernels::reads_strided(op, index, operand.strides),
    }
}

/// The kernel for a node.
pub(super) fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn Kernel>, BackendError> {
    let unsupported = |why: String| BackendError::Unsupported { kernel: node.kernel.clone(), op: node.op.name(), why };
    let failed = |error: Failed| match error {
        Failed::Why(why) => unsupported(why.0),
        Failed::Cuda(CudaError::NoAlgorithm { library, problem }) => {
            unsupported(format!("{library} has no algorithm for {problem}"))
        }
        Failed::Cuda(error) => cx.failed(error),
    };
    if node.kernel.0 == KernelId::COPY {
        let [Some(from)] = node.inputs else { return Err(unsupported("a copy has one operand".into())) };
        if empty(node) {
            return Ok(kernel(cx, Vec::new(), 0, None));
        }
        let spec = movement::row_major(0, &view(from)).map_err(|why| unsupported(why.0))?;
        return own(cx, vec![spec], None).map_err(failed);
    }
    check(node).map_err(unsupported)?;
    if empty(node) {
        return Ok(kernel(cx, Vec::new(), 0, None));
    }
    let id = node.kernel.0.as_str();
    match (id, node.op) {
        (LINEAR, Op::Linear(op)) => linear(cx, node, op),
        (MATMUL, Op::Matmul(op)) => matmul(cx, node, op),
        (CONV_FIRST, Op::Conv(op)) => conv_node(cx, node, op, WeightOrder::ChannelsFirst),
        (CONV_LAST, Op::Conv(op)) => conv_node(cx, node, op, WeightOrder::ChannelsLast),
        (ATTENTION, Op::Attention(_)) => attention(cx, node),
        (id, op) if id.strip_suffix(OWN) == Some(op.name()) => {
            let specs = own_specs(node, false).map_err(Failed::Why);
            specs.and_then(|specs| own(cx, specs, in_place(node)))
        }
        _ => return Err(BackendError::UnknownKernel(node.kernel.clone())),
    }
    .map_err(failed)
}

/// What went wrong with preparing.
enum Failed {
    Why(Why),
    Cuda(CudaError),
}

impl From<Why> for Failed {
    fn from(why: Why) -> Failed {
        Failed::Why(why)
    }
}

impl From<CudaError> for Failed {
    fn from(error: CudaError) -> Failed {
        Failed::Cuda(error)
    }
}

/// Whatever the plan's file says: the op must take these operands and give these results.
fn check(node: &NodeSpec<'_>) -> Result<(), String> {
    let inputs: Vec<_> = node.inputs.iter().map(|o| o.map(|o| TensorType::of_sizes(o.dtype, o.shape))).collect();
    let inferred = node.op.infer(&inputs.iter().map(Option::as_ref).collect::<Vec<_>>()).map_err(|e| e.to_string())?;
    let same = inferred.len() == node.outputs.len()
        && inferred.iter().zip(node.outputs).all(|(a, b)| *a == TensorType::of_sizes(b.dtype, b.shape));
    if !same {
        return Err(format!("it gives {inferred:?}"));
    }
    match node.inputs.iter().flatten().find_map(|o| o.slot.filter(|slot| !slot.format.is_plain())) {
        Some(slot) => Err(format!("slots in the format {} are not of this target", slot.format)),
        None => Ok(()),
    }
}

fn empty(node: &NodeSpec<'_>) -> bool {
    node.outputs.iter().all(|o| o.shape.contains(&0))
}

fn view<'a>(operand: &Operand<'a>) -> View<'a> {
    View { dtype: operand.dtype, shape: operand.shape, strides: operand.strides }
}

fn operand<'a>(node: &NodeSpec<'a>, i: usize) -> Result<Operand<'a>, Why> {
    node.inputs.get(i).copied().flatten().ok_or_else(|| Why(format!("operand {i} is missing")))
}

fn maybe<'a>(node: &NodeSpec<'a>, i: usize) -> Option<Operand<'a>> {
    node.inputs.get(i).copied().flatten()
}

/// Operand `i`, which must lie in one piece.
fn whole<'a>(node: &NodeSpec<'a>, i: usize) -> Result<Operand<'a>, Why> {
    let operand = operand(node, i)?;
    let own = regraft_tensor::contiguous_strides(operand.shape);
    let fits = operand.shape.iter().zip(operand.strides.iter().zip(&own)).all(|(&n, (a, b))| n <= 1 || a == b);
    if fits { Ok(operand) } else { Err(Why(format!("operand {i} does not lie in one piece"))) }
}

fn kernel(cx: &Cx, work: Vec<Work>, scratch: usize, in_place: Option<usize>) -> Box<dyn Kernel> {
    Box::new(CudaKernel { cx: cx.clone(), work, scratch, in_place })
}

/// Launches of our own.
fn own(cx: &Cx, specs: Vec<Spec>, in_place: Option<usize>) -> Result<Box<dyn Kernel>, Failed> {
    let scratch = specs.iter().map(|s| s.scratch).max().unwrap_or(0);
    let steps = specs.iter().map(|s| Ok(Work::Own(cx.kernels.step(s)?)));
    let steps = steps.collect::<Result<Vec<_>, CudaError>>()?;
    Ok(kernel(cx, steps, scratch, in_place))
}

fn own_specs(node: &NodeSpec<'_>, matrix_units: bool) -> Result<Vec<Spec>, Why> {
    specs_in(node, WeightOrder::ChannelsFirst, matrix_units)
}

fn specs_in(node: &NodeSpec<'_>, weight_order: WeightOrder, matrix_units: bool) -> Result<Vec<Spec>, Why> {
    let inputs: Vec<Option<View<'_>>> = node.inputs.iter().map(|o| o.as_ref().map(view)).collect();
    let outputs: Vec<_> = node.outputs.iter().map(|o| (o.dtype, o.shape)).collect();
    specs(&Node { op: node.op, inputs: &inputs, outputs: &outputs, weight_order, matrix_units })
}

/// The operand that a node may overwrite: each element of it is read where the result is written.
fn in_place(node: &NodeSpec<'_>) -> Option<usize> {
    let out = node.outputs.first()?;
    let fits = |o: &Operand<'_>| {
        o.slot.is_none()
            && o.dtype.size() == out.dtype.size()
            && o.shape == out.shape
            && o.strides == regraft_tensor::contiguous_strides(o.shape)
    };
    if matches!(node.op, Op::IndexPut(_)) {
        return node.inputs.first()?.as_ref().is_some_and(fits).then_some(0);
    }
    elementwise::chain_of(node.op, node.inputs.len())?;
    node.inputs.iter().position(|o| o.as_ref().is_some_and(fits))
}

fn attention(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn Kernel>, Failed> {
    match own_specs(node, true) {
        Ok(specs) => own(cx, specs, None),
        Err(_) => own(cx, own_specs(node, false)?, None),
    }
}

/// What follows the product of a linear in an elementwise kernel: an activation that the library does not have, or a
/// residual that comes after it. Works on the result in place.
fn finish(op: &Linear, residual: Option<&Operand<'_>>, node: &NodeSpec<'_>) -> Result<Option<Spec>, Why> {
    let act = match op.act {
        Activation::None | Activation::Relu | Activation::GeluTanh => None,
        other => other.function(),
    };
    let after = residual.filter(|_| op.act_first && op.act != Activation::None);
    if act.is_none() && after.is_none() {
        return Ok(None);
    }
    let result = node.outputs[0];
    let strides = regraft_tensor::contiguous_strides(result.shape);
    let mut views = vec![View { dtype: result.dtype, shape: result.shape, strides: &strides }];
    views.extend(after.map(view));
    let mut steps = Vec::new();
    let mut last = 0;
    let mut push = |f: FusedFn, args: Vec<u32>, last: &mut u32| {
        steps.push(FusedStep { f, args });
        *last = views.len() as u32 + steps.len() as u32 - 1;
    };
    if let Some(f) = act {
        push(FusedFn::Unary(f), vec![last], &mut last);
    }
    if after.is_some() {
        push(FusedFn::Binary(regraft_ir::ops::BinaryFn::Add), vec![last, 1], &mut last);
    }
    let mut spec = elementwise::chain(&steps, &views, result.shape)?;
    for param in &mut spec.params {
        match param {
            Param::In(0, at) => *param = Param::Out(0, *at),
            Param::In(1, at) => *param = Param::In(3, *at),
            _ => {}
        }
    }
    Ok(Some(spec))
}

fn linear(cx: &Cx, node: &NodeSpec<'_>, op: &Linear) -> Result<Box<dyn Kernel>, Failed> {
    let (x, w) = (operand(node, 0)?, whole(node, 1)?);
    let (bias, residual) = (maybe(node, 2), maybe(node, 3));
    (2..4).filter(|&i| maybe(node, i).is_some()).try_for_each(|i| whole(node, i).map(|_| ()))?;
    let (n, k) = (w.shape[0], w.shape[1]);
    let (m, leading) = uniform_rows(&x).ok_or_else(|| Why("rows are not equally far apart".into()))?;
    let out = node.outputs[0];
    if m <= conv::MOST_ROWS && leading == k && k > 0 {
        let epilogue = Epilogue {
            bias: bias.map(|o| o.dtype),
            residual: residual.map(|o| o.dtype),
            act: op.act,
            act_first: op.act_first,
        };
        return own(cx, vec![conv::matvec(x.dtype, w.dtype, (m, n, k), epilogue, out.dtype)?], None);
    }
    if k == 0 {
        return Err(Why("a product of nothing".into()).into());
    }
    let finish = finish(op, residual.as_ref(), node)?;
    let later = op.act_first && op.act != Activation::None;
    let product = Product {
        m,
        n,
        k,
        batch: 1,
        x: Matrix { leading, turned: false, batch_stride: 0 },
        w: Matrix { leading: k, turned: true, batch_stride: 0 },
        out_leading: n,
        out_batch_stride: 0,
        dtype: x.dtype,
        out: out.dtype,
        bias: bias.is_some(),
        residual: residual.is_some() && !later,
        act: match op.act {
            Activation::Relu => gemm::Activation::Relu,
            Activation::GeluTanh => gemm::Activation::GeluTanh,
            _ => gemm::Activation::None,
        },
        tf32: cx.tf32,
    };
    let products = Products::new(cx, product, vec![[0; 3]])?;
    let scratch = products.workspace();
    let mut work = vec![Work::Products(products)];
    if let Some(spec) = finish {
        work.push(Work::Own(cx.kernels.step(&spec)?));
    }
    Ok(kernel(cx, work, scratch, None))
}

fn matmul(cx: &Cx, node: &NodeSpec<'_>, op: &regraft_ir::ops::Matmul) -> Result<Box<dyn Kernel>, Failed> {
    let (a, b, out) = (operand(node, 0)?, operand(node, 1)?, node.outputs[0]);
    if !is_computed(a.dtype) || a.shape.contains(&0) || b.shape.contains(&0) {
        return Err(Why("products take f32, f16 and bf16".into()).into());
    }
    let (product, places) = product::matmul(op, &a, &b, out.shape, out.dtype, cx.tf32)?;
    let products = Products::new(cx, product, places)?;
    let scratch = products.workspace();
    Ok(kernel(cx, vec![Work::Products(products)], scratch, None))
}

fn conv_node(cx: &Cx, node: &NodeSpec<'_>, op: &Conv, order: WeightOrder) -> Result<Box<dyn Kernel>, Failed> {
    let spec = specs_in(node, order, false)?.remove(0);
    let same_order = order == conv::order_for(op.layout);
    let (x, w, out) = (whole(node, 0)?, whole(node, 1)?, node.outputs[0]);
    let one_type = node.inputs.iter().flatten().all(|o| o.dtype == out.dtype);
    let problem = ConvProblem {
        op: op.clone(),
        dtype: x.dtype,
        x: x.shape.to_vec(),
        weight: w.shape.to_vec(),
        out: out.shape.to_vec(),
        bias: maybe(node, 2).is_some(),
        residual: maybe(node, 3).is_some(),
        tf32: cx.tf32,
    };
    let plan = match &cx.dnn {
        Some(dnn) if same_order && one_type => match dnn.conv_plans(&problem, 1) {
            Ok(mut plans) => plans.pop(),
            Err(CudaError::NoAlgorithm { .. }) => None,
            Err(error) => return Err(error.into()),
        },
        _ => None,
    };
    let Some(plan) = plan else { return own(cx, vec![spec], None) };
    let scratch = plan.workspace();
    let step = cx.kernels.step(&spec)?;
    Ok(kernel(cx, vec![Work::Conv(plan, step)], scratch, None))
}
