//! Where the time of a run goes, node by node, beside what the machine could do.

use std::{fmt, sync::Arc, time::Instant};

use regraft_backend::Device;
use regraft_compile::pipeline::{self, Backend};
use regraft_ir::{Graph, eval::bind_symbols_to, text};
use regraft_runtime::{Model, RuntimeErrorKind, StepTime};
use regraft_tensor::{DType, Tensor, TensorError};

use crate::{Error, model, random_inputs};

/// What the nodes of a run take: see [`profile`].
///
/// ```
/// # let model = regraft::Compiler::new().compile("../conformance/fixtures/mlp_gelu.pt2")?.into_model()?;
/// # let x = regraft::Tensor::from_slice(&[3, 10], &[0.5f32; 30]);
/// let profile = regraft::profile(&model, &[x], 5)?;
/// println!("{profile}");
/// let of_linear: f64 = profile.nodes.iter().filter(|node| node.op == "linear").map(|node| node.seconds).sum();
/// assert!(of_linear <= profile.nodes.iter().map(|node| node.seconds).sum::<f64>());
/// # Ok::<(), regraft::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Profile {
    /// Median seconds of a run as it is, whose steps are not timed.
    pub run_seconds: f64,
    /// The nodes that take time, in the order that they run in. Views, which take none, are not among them.
    pub nodes: Vec<NodeProfile>,
    /// What the device can do.
    pub roof: Roof,
}

/// What one node of a run takes.
///
/// ```
/// # fn print(profile: &regraft::Profile) {
/// for node in &profile.nodes {
///     let least = profile.roof.seconds(node.dtype, node.flops, node.bytes);
///     println!("{node}, at least {:.3} ms", 1e3 * least);
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NodeProfile {
    /// Number of the node in the plan's graph.
    pub node: usize,
    /// The op.
    pub op: &'static str,
    /// The kernel that runs it.
    pub kernel: String,
    /// The module that it comes from.
    pub scope: String,
    /// Type of its first result, with the sizes of the run.
    pub result: String,
    /// Element type of its first operand.
    pub dtype: DType,
    /// Seconds from the end of the node before to its end: the median of the runs.
    pub seconds: f64,
    /// Floating-point operations, a multiplication and an addition as two.
    pub flops: u64,
    /// Bytes of operands and results: weights as they are packed, and copies of operands that a kernel does not read as they lie.
    pub bytes: u64,
}

/// What a device reaches with the kernels of this version.
///
/// ```
/// # fn print(profile: &regraft::Profile) {
/// for (dtype, flops) in &profile.roof.flops {
///     println!("{dtype}: {:.0} GFLOP/s", flops / 1e9);
/// }
/// println!("memory: {:.1} GB/s", profile.roof.bytes / 1e9);
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Roof {
    /// Floating-point operations per second in a product of 1024 × 1024 matrices, for each element type of products in the program.
    pub flops: Vec<(DType, f64)>,
    /// Bytes per second that a sum of two tensors larger than caches reads and writes.
    pub bytes: f64,
}

/// A line for the run, and one for each of the ten nodes that take longest.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: f64 = self.nodes.iter().map(|node| node.seconds).sum();
        let mut nodes: Vec<&NodeProfile> = self.nodes.iter().collect();
        nodes.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        write!(f, "a run takes {:.3} ms, its nodes one by one {:.3} ms", 1e3 * self.run_seconds, 1e3 * all)?;
        nodes.iter().take(10).try_for_each(|node| write!(f, "\n  {node}, {:.1} %", 1e2 * node.seconds / all))
    }
}

/// One line: the op, its module, the kernel and the time.
impl fmt::Display for NodeProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NodeProfile { op, scope, kernel, seconds, .. } = self;
        write!(f, "{op} {scope} ({kernel}): {:.3} ms", 1e3 * seconds)
    }
}

impl Roof {
    /// The least seconds for this much work: the larger of the time to compute and the time to move. Tensors that stay in caches
    /// can be moved in less.
    pub fn seconds(&self, dtype: DType, flops: u64, bytes: u64) -> f64 {
        let peak = self.flops.iter().find(|(of, _)| *of == dtype).map_or(f64::INFINITY, |(_, peak)| *peak);
        (flops as f64 / peak).max(bytes as f64 / self.bytes)
    }
}

/// Times the nodes of `runs` runs with these inputs, after one that binds the plan, and measures the roof of the device.
///
/// # Errors
/// When a run fails.
///
/// ```no_run
/// use regraft::ModelExt as _;
///
/// let model = regraft::Model::load("model.rgf")?;
/// # let x = regraft::Tensor::from_slice(&[1], &[0f32]);
/// let profile = regraft::profile(&model, &[x], 20)?;
/// for node in &profile.nodes {
///     println!("{} {}: {:.3} ms", node.op, node.scope, 1e3 * node.seconds);
/// }
/// # Ok::<(), regraft::Error>(())
/// ```
pub fn profile(model: &Model, inputs: &[Tensor], runs: usize) -> Result<Profile, Error> {
    let graph = &model.plan().graph;
    let types: Vec<_> = inputs.iter().map(|t| (t.dtype(), t.shape())).collect();
    let symbols = bind_symbols_to(graph, &types).map_err(|e| Error::Runtime(RuntimeErrorKind::Input(e).into()))?;
    let mut session = model.session();
    session.run(inputs)?;
    let (mut whole, mut timed): (Vec<f64>, Vec<Vec<StepTime>>) = (Vec::new(), Vec::new());
    for _ in 0..runs.max(1) {
        session.reset_state();
        let start = Instant::now();
        session.run(inputs)?;
        whole.push(start.elapsed().as_secs_f64());
        session.reset_state();
        timed.push(session.run_timed(inputs)?.1);
    }
    let mut nodes: Vec<NodeProfile> = Vec::new();
    for step in 0..timed[0].len() {
        let of_step: Vec<f64> = timed.iter().map(|times| times[step].time.as_secs_f64()).collect();
        let (StepTime { node, bytes, .. }, seconds) = (timed[0][step], median(of_step));
        match nodes.last_mut().filter(|last| last.node == node) {
            // A copy that the node needs comes before it.
            Some(last) => (last.seconds, last.bytes) = (last.seconds + seconds, last.bytes + bytes as u64),
            None => nodes.push(node_profile(model, &symbols, node, seconds, bytes as u64)),
        }
    }
    Ok(Profile { run_seconds: median(whole), roof: roof(model.device(), &nodes)?, nodes })
}

fn node_profile(model: &Model, symbols: &[i64], index: usize, seconds: f64, bytes: u64) -> NodeProfile {
    let plan = model.plan();
    let Some(node) = plan.graph.nodes().get(index) else {
        let (kernel, dtype) = ("copy".to_owned(), DType::F32);
        let (scope, result) = (String::new(), String::new());
        return NodeProfile { node: index, op: "copy", kernel, scope, result, dtype, seconds, flops: 0, bytes };
    };
    let size = |dim: &regraft_tensor::Dim| dim.eval(symbols).ok().and_then(|v| usize::try_from(v).ok()).unwrap_or(0);
    let shape = |value| plan.graph.ty(value).shape.iter().map(size).collect::<Vec<_>>();
    let inputs: Vec<Option<Vec<usize>>> = node.inputs.iter().map(|input| input.map(shape)).collect();
    let inputs: Vec<Option<&[usize]>> = inputs.iter().map(Option::as_deref).collect();
    let outputs: Vec<Vec<usize>> = node.outputs.iter().map(|&output| shape(output)).collect();
    let outputs: Vec<&[usize]> = outputs.iter().map(Vec::as_slice).collect();
    let result = plan.graph.ty(node.outputs[0]).dtype;
    NodeProfile {
        node: index,
        op: node.op.name(),
        kernel: plan.kernels[index].0.clone(),
        scope: node.scope.to_string(),
        result: format!("{result}{:?}", outputs[0]),
        dtype: node.inputs.iter().flatten().next().map_or(result, |&first| plan.graph.ty(first).dtype),
        seconds,
        flops: node.op.flops(&inputs, &outputs),
        bytes,
    }
}

const PRODUCTS: [&str; 6] = ["matmul", "linear", "conv", "conv_pair", "conv_transpose", "attention"];

/// Measures what the device can do in the element types of the products of these nodes.
fn roof(device: &Arc<dyn Device>, nodes: &[NodeProfile]) -> Result<Roof, Error> {
    let mut dtypes: Vec<DType> = nodes.iter().filter(|n| PRODUCTS.contains(&n.op)).map(|n| n.dtype).collect();
    dtypes.sort_unstable_by_key(|dtype| dtype.name());
    dtypes.dedup();
    let mut flops = Vec::new();
    for dtype in dtypes.into_iter().filter(|dtype| dtype.is_float()) {
        let program = format!(
            r#"program "product" {{
  input %0 : {dtype}[1024, 1024] = "x"
  source %1 : {dtype}[1024, 1024] = "weight" (parameter)
  %2 = linear %0, %1 : {dtype}[1024, 1024]
  output %2 = "y"
}}"#
        );
        let weight = Tensor::zeros(dtype, &[1024, 1024]).map_err(no_memory)?;
        flops.push((dtype, 2.0 * 1024f64.powi(3) / best_seconds(device, &program, &[Some(weight)])?));
    }
    let elements = 16 << 20;
    let program = format!(
        r#"program "sum" {{
  input %0 : f32[{elements}] = "a"
  input %1 : f32[{elements}] = "b"
  %2 = binary %0, %1 {{f = add}} : f32[{elements}]
  output %2 = "y"
}}"#
    );
    Ok(Roof { flops, bytes: (3 * 4 * elements) as f64 / best_seconds(device, &program, &[])? })
}

fn no_memory(error: TensorError) -> Error {
    Error::Runtime(RuntimeErrorKind::Source { name: "a product to measure".into(), why: error.to_string() }.into())
}

/// The best of some timed runs of the step that takes longest in a program of this text.
fn best_seconds(device: &Arc<dyn Device>, program: &str, weights: &[Option<Tensor>]) -> Result<f64, Error> {
    let graph: Graph = text::parse(program).expect("a program of this version");
    let inputs = random_inputs(&graph, &[], 1, 0).expect("all sizes are known");
    let built = pipeline::compile(
        graph,
        weights,
        Backend::of(&**device),
        pipeline::Options::default(),
        &mut pipeline::Unobserved,
    )?;
    let mut session = model(built.engine, device.clone())?.session();
    let mut best = f64::INFINITY;
    for _ in 0..6 {
        let (_, times) = session.run_timed(&inputs)?;
        best = times.iter().map(|step| step.time.as_secs_f64()).fold(0.0, f64::max).min(best);
    }
    Ok(best)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roof_is_the_larger_of_two_times() {
        let roof = Roof { flops: vec![(DType::F32, 1e9)], bytes: 1e6 };
        assert_eq!(roof.seconds(DType::F32, 2_000_000_000, 1_000_000), 2.0);
        assert_eq!(roof.seconds(DType::F32, 1, 3_000_000), 3.0);
        // Integers have no products here.
        assert_eq!(roof.seconds(DType::I64, u64::MAX, 1_000_000), 1.0);
    }
}
