//! `act(conv(x, W) + bias + residual)` or `act(conv(x, W) + bias) + residual` as one plan.

use std::sync::Arc;

use regraft_ir::ops::{Activation, Conv, SpatialLayout};
use regraft_tensor::{DType, contiguous_strides};

use super::{
    Dnn, Inner,
    descriptor::Descriptor,
    ffi::{kind, name, note, ty},
};
use crate::{
    driver::{Span, Stream},
    error::CudaError,
};

/// A convolution with its sizes. Weights have the layout of the images: `[out, taps..., channels]` for channels last.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvProblem {
    /// Strides, padding, groups, activation and layout.
    pub op: Conv,
    /// Element type of all operands and the result.
    pub dtype: DType,
    /// Sizes of `x` in its layout.
    pub x: Vec<usize>,
    /// Sizes of the weight, `[out, channels, taps...]` whatever its layout.
    pub weight: Vec<usize>,
    /// Sizes of the result in the layout.
    pub out: Vec<usize>,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether there is a residual.
    pub residual: bool,
    /// Whether f32 operands may be rounded to TF32.
    pub tf32: bool,
}

/// A convolution ready to run.
pub struct ConvPlan {
    library: Arc<Inner>,
    plan: Descriptor,
    /// Kept because descriptors refer to those that they were made from.
    _parts: Vec<Descriptor>,
    workspace: usize,
    sizes: [usize; 5],
}

/// Names of tensors in a graph.
mod id {
    pub(super) const X: i64 = 1;
    pub(super) const W: i64 = 2;
    pub(super) const BIAS: i64 = 3;
    pub(super) const RESIDUAL: i64 = 4;
    pub(super) const OUT: i64 = 5;
    pub(super) const FIRST_INNER: i64 = 100;
}

fn data_type(dtype: DType) -> Option<i32> {
    match dtype {
        DType::F32 => Some(0),
        DType::F16 => Some(2),
        DType::BF16 => Some(9),
        _ => None,
    }
}

/// The number of an activation that the library has.
fn pointwise(act: Activation) -> Option<i32> {
    match act {
        Activation::Relu | Activation::Relu6 => Some(100),
        Activation::Tanh => Some(101),
        Activation::Sigmoid => Some(102),
        Activation::Gelu => Some(104),
        Activation::Silu => Some(106),
        Activation::GeluTanh => Some(107),
        Activation::None | Activation::Hardswish | Activation::Hardsigmoid => None,
    }
}

const ADD: i32 = 0;

impl ConvProblem {
    /// Why the library does not take it, if it does not.
    pub fn refused(&self) -> Option<String> {
        if data_type(self.dtype).is_none() {
            return Some(format!("convolutions of {}", self.dtype));
        }
        if self.op.act != Activation::None && pointwise(self.op.act).is_none() {
            return Some(format!("the activation {}", self.op.act.name()));
        }
        if !(4..=5).contains(&self.x.len()) {
            return Some(format!("{} axes", self.x.len()));
        }
        None
    }

    /// Sizes and strides with the channels second, as the library wants them.
    fn dims(&self, shape: &[usize]) -> (Vec<i64>, Vec<i64>) {
        let strides = contiguous_strides(shape);
        let order: Vec<usize> = match self.op.layout {
            SpatialLayout::Nchw => (0..shape.len()).collect(),
            SpatialLayout::Nhwc => [0, shape.len() - 1].into_iter().chain(1..shape.len() - 1).collect(),
        };
        (order.iter().map(|&i| shape[i] as i64).collect(), order.iter().map(|&i| strides[i] as i64).collect())
    }

    /// The weight's sizes as they lie in memory.
    fn weight_shape(&self) -> Vec<usize> {
        let w = &self.weight;
        self.op.layout.shape(&w[0], &w[1], &w[2..])
    }
}

/// The builder of a graph.
struct Graph<'a> {
    library: &'a Arc<Inner>,
    problem: &'a ConvProblem,
    parts: Vec<Descriptor>,
    ops: Vec<usize>,
    inner: i64,
}

impl Graph<'_> {
    fn tensor(
        &mut self,
        id: i64,
        dims: &[i64],
        strides: &[i64],
        dtype: DType,
        inner: bool,
    ) -> Result<usize, CudaError> {
        let tensor = Descriptor::new(self.library, kind::TENSOR)?;
        tensor.choice(name::TENSOR_TYPE, ty::DATA_TYPE, data_type(dtype).unwrap_or(0))?;
        tensor.numbers(name::TENSOR_SIZES, dims)?;
        tensor.numbers(name::TENSOR_STRIDES, strides)?;
        tensor.numbers(name::TENSOR_ID, &[id])?;
        tensor.numbers(name::TENSOR_ALIGNMENT, &[16])?;
        tensor.boolean(name::TENSOR_VIRTUAL, inner)?;
        tensor.finalize()?;
        self.parts.push(tensor);
        Ok(self.parts.len() - 1)
    }

    /// A value of the result's size that never reaches memory, in f32.
    fn between(&mut self) -> Result<usize, CudaError> {
        let (dims, strides) = self.problem.dims(&self.problem.out);
        self.inner += 1;
        self.tensor(self.inner, &dims, &strides, DType::F32, true)
    }

    fn out(&mut self) -> Result<usize, CudaError> {
        let (dims, strides) = self.problem.dims(&self.problem.out);
        self.tensor(id::OUT, &dims, &strides, self.problem.dtype, false)
    }

    fn conv(&mut self, x: usize, w: usize, y: usize) -> Result<(), CudaError> {
        let op = &self.problem.op;
        let numbers = |v: &[usize]| v.iter().map(|&n| n as i64).collect::<Vec<i64>>();
        let conv = Descriptor::new(self.library, kind::CONVOLUTION)?;
        conv.choice(name::CONV_COMPUTE, ty::DATA_TYPE, 0)?;
        conv.choice(name::CONV_MODE, ty::CONVOLUTION_MODE, 1)?;
        conv.numbers(name::CONV_SPATIAL, &[op.stride.len() as i64])?;
        conv.numbers(name::CONV_STRIDES, &numbers(&op.stride))?;
        conv.numbers(name::CONV_DILATIONS, &numbers(&op.dilation))?;
        conv.numbers(name::CONV_PRE_PADDINGS, &numbers(&op.padding))?;
        conv.numbers(name::CONV_POST_PADDINGS, &numbers(&op.padding))?;
        conv.finalize()?;
        let forward = Descriptor::new(self.library, kind::CONVOLUTION_FORWARD)?;
        forward.descriptors(name::FORWARD_CONV, &[&conv])?;
        forward.descriptors(name::FORWARD_X, &[&self.parts[x]])?;
        forward.descriptors(name::FORWARD_W, &[&self.parts[w]])?;
        forward.descriptors(name::FORWARD_Y, &[&self.parts[y]])?;
        forward.float(name::FORWARD_ALPHA, 1.0)?;
        forward.float(name::FORWARD_BETA, 0.0)?;
        forward.finalize()?;
        self.parts.push(conv);
        self.parts.push(forward);
        self.ops.push(self.parts.len() - 1);
        Ok(())
    }

    fn pointwise(&mut self, mode: i32, clip: bool, x: usize, b: Option<usize>, y: usize) -> Result<(), CudaError> {
        let function = Descriptor::new(self.library, kind::POINTWISE)?;
        function.choice(name::POINTWISE_MODE, ty::POINTWISE_MODE, mode)?;
        function.choice(name::POINTWISE_PRECISION, ty::DATA_TYPE, 0)?;
        if clip {
            function.double(name::RELU_UPPER, 6.0)?;
        }
        function.finalize()?;
        let op = Descriptor::new(self.library, kind::POINTWISE_OP)?;
        op.descriptors(name::OP_POINTWISE, &[&function])?;
        op.descriptors(name::OP_POINTWISE_X, &[&self.parts[x]])?;
        if let Some(b) = b {
            op.descriptors(name::OP_POINTWISE_B, &[&self.parts[b]])?;
        }
        op.descriptors(name::OP_POINTWISE_Y, &[&self.parts[y]])?;
        op.finalize()?;
        self.parts.push(function);
        self.parts.push(op);
        self.ops.push(self.parts.len() - 1);
        Ok(())
    }

    /// The whole operation; each step's result is inner but for the last one's.
    fn build(&mut self) -> Result<(), CudaError> {
        let p = self.problem;
        let mut steps: Vec<(i32, bool, Option<usize>)> = Vec::new();
        let (dims, strides) = p.dims(&p.x);
        let x = self.tensor(id::X, &dims, &strides, p.dtype, false)?;
        let (dims, strides) = p.dims(&p.weight_shape());
        let w = self.tensor(id::W, &dims, &strides, p.dtype, false)?;
        if p.bias {
            let channels = p.weight[0] as i64;
            let mut dims = vec![1; p.out.len()];
            dims[1] = channels;
            let mut strides = vec![1; p.out.len()];
            strides[0] = channels;
            if p.op.layout == SpatialLayout::Nhwc {
                strides[2..].fill(channels);
            }
            steps.push((ADD, false, Some(self.tensor(id::BIAS, &dims, &strides, p.dtype, false)?)));
        }
        let act = pointwise(p.op.act).map(|mode| (mode, p.op.act == Activation::Relu6, None));
        let residual = if p.residual {
            let (dims, strides) = p.dims(&p.out);
            Some((ADD, false, Some(self.tensor(id::RESIDUAL, &dims, &strides, p.dtype, false)?)))
        } else {
            None
        };
        if p.op.act_first {
            steps.extend(act.into_iter().chain(residual));
        } else {
            steps.extend(residual.into_iter().chain(act));
        }
        let mut last = if steps.is_empty() { self.out()? } else { self.between()? };
        self.conv(x, w, last)?;
        let count = steps.len();
        for (i, (mode, clip, b)) in steps.into_iter().enumerate() {
            let to = if i + 1 == count { self.out()? } else { self.between()? };
            self.pointwise(mode, clip, last, b, to)?;
            last = to;
        }
        Ok(())
    }
}

impl Dnn {
    /// At most `count` plans for a convolution, what the library thinks best first. All of them are deterministic.
    ///
    /// # Errors
    /// When it has none.
    pub fn conv_plans(&self, problem: &ConvProblem, count: usize) -> Result<Vec<ConvPlan>, CudaError> {
        let refused = |problem: String| CudaError::NoAlgorithm { library: "cuDNN", problem };
        if let Some(why) = problem.refused() {
            return Err(refused(why));
        }
        let library = &self.inner;
        library.with_handle(None, |handle| {
            let mut plans = Vec::new();
            // Mode A, then what always works.
            for mode in [3, 2] {
                if !plans.is_empty() {
                    break;
                }
                for at in 0..count.max(8) {
                    if plans.len() == count {
                        break;
                    }
                    match self.plan(problem, handle, mode, at) {
                        Ok(Some(plan)) => plans.push(plan),
                        Ok(None) => {}
                        Err(CudaError::NoAlgorithm { .. }) => break,
                        Err(error) => tracing::debug!(%error, mode, at, "a plan was refused"),
                    }
                }
            }
            if plans.is_empty() { Err(refused(format!("{problem:?}"))) } else { Ok(plans) }
        })
    }

    /// The plan of heuristic result `at`; `None` when it is not deterministic or not exact enough.
    fn plan(
        &self,
        problem: &ConvProblem,
        handle: super::Handle,
        mode: i32,
        at: usize,
    ) -> Result<Option<ConvPlan>, CudaError> {
        let library = &self.inner;
        let mut graph = Graph { library, problem, parts: Vec::new(), ops: Vec::new(), inner: id::FIRST_INNER };
        graph.build()?;
        let whole = Descriptor::new(library, kind::GRAPH)?;
        whole.library_handle(name::GRAPH_HANDLE, handle)?;
        whole.descriptors(name::GRAPH_OPS, &graph.ops.iter().map(|&i| &graph.parts[i]).collect::<Vec<_>>())?;
        whole.finalize()?;
        let heuristics = Descriptor::new(library, kind::HEURISTICS)?;
        heuristics.descriptors(name::HEURISTICS_GRAPH, &[&whole])?;
        heuristics.choice(name::HEURISTICS_MODE, ty::HEURISTICS_MODE, mode)?;
        heuristics.finalize()?;
        let mut configs =
            (0..=at).map(|_| Descriptor::new(library, kind::ENGINE_CONFIG)).collect::<Result<Vec<_>, _>>()?;
        if heuristics.fill(name::HEURISTICS_RESULTS, &configs)? <= at {
            return Err(CudaError::NoAlgorithm { library: "cuDNN", problem: "no further engine".into() });
        }
        let config = configs.pop().expect("there is one");
        if !allowed(library, &config, problem)? {
            return Ok(None);
        }
        let plan = Descriptor::new(library, kind::PLAN)?;
        plan.library_handle(name::PLAN_HANDLE, handle)?;
        plan.descriptors(name::PLAN_CONFIG, &[&config])?;
        plan.finalize()?;
        let workspace = usize::try_from(plan.number(name::PLAN_WORKSPACE)?).unwrap_or(usize::MAX);
        if workspace > 1 << 30 {
            return Ok(None);
        }
        let mut parts = graph.parts;
        parts.extend([whole, heuristics, config]);
        parts.extend(configs);
        let bytes = |n: usize| n * problem.dtype.size();
        let numel = |s: &[usize]| s.iter().product::<usize>();
        let sizes = [
            bytes(numel(&problem.x)),
            bytes(numel(&problem.weight)),
            if problem.bias { bytes(problem.weight[0]) } else { 0 },
            if problem.residual { bytes(numel(&problem.out)) } else { 0 },
            bytes(numel(&problem.out)),
        ];
        Ok(Some(ConvPlan { library: library.clone(), plan, _parts: parts, workspace, sizes }))
    }
}

/// Whether an engine gives the same bits every time, from operands in their own precision.
fn allowed(library: &Arc<Inner>, config: &Descriptor, problem: &ConvProblem) -> Result<bool, CudaError> {
    let engines = [Descriptor::new(library, kind::ENGINE)?];
    config.fill(name::CONFIG_ENGINE, &engines)?;
    let notes = engines[0].choices(name::ENGINE_NUMERICAL_NOTE, ty::NUMERICAL_NOTE)?;
    // Matrix units take f32 as TF32, and not every engine that uses them says that it converts.
    let rounds = notes.contains(&note::DOWN_CONVERT_INPUTS) || notes.contains(&note::TENSOR_CORE);
    let exact = problem.dtype != DType::F32 || problem.tf32 || !rounds;
    Ok(exact && !notes.contains(&note::NONDETERMINISTIC) && !notes.contains(&note::REDUCED_PRECISION_REDUCTION))
}

impl ConvPlan {
    /// Bytes of scratch memory.
    pub fn workspace(&self) -> usize {
        self.workspace
    }

    /// Puts the convolution into the stream.
    ///
    /// # Errors
    /// When a region is too small, or the library refuses.
    pub fn launch(
        &self,
        stream: &Stream,
        operands: [Option<Span>; 4],
        out: Span,
        workspace: Option<Span>,
    ) -> Result<(), CudaError> {
        let library = &self.library;
        let mut ids = Vec::with_capacity(5);
        let mut pointers = Vec::with_capacity(5);
        let all = operands.into_iter().chain([Some(out)]);
        for ((region, needed), id) in all.zip(self.sizes).zip([id::X, id::W, id::BIAS, id::RESIDUAL, id::OUT]) {
            if needed == 0 {
                continue;
            }
            let found = region.map_or(0, Span::len);
            let region = region.filter(|r| r.len() >= needed).ok_or(CudaError::Region { found, needed })?;
            ids.push(id);
            pointers.push(region.address());
        }
        let scratch = workspace.map_or(0, Span::len);
        if scratch < self.workspace {
            return Err(CudaError::Region { found: scratch, needed: self.workspace });
        }
        library.with_handle(Some(stream), |handle| {
            let pack = Descriptor::new(library, kind::VARIANT_PACK)?;
            pack.numbers(name::PACK_IDS, &ids)?;
            pack.pointers(name::PACK_POINTERS, &pointers)?;
            pack.pointers(name::PACK_WORKSPACE, &[workspace.map_or(0, Span::address)])?;
            pack.finalize()?;
            // SAFETY: the regions hold what the plan reads and writes, which was compared above.
            library.check("cudnnBackendExecute", unsafe {
                (library.api.cudnnBackendExecute)(handle, self.plan.handle, pack.handle)
            })
        })
    }
}
