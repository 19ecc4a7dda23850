//! Kernels: one file per op family, binding nodes of the IR to the routines of this crate.
//!
//! A file holds when it can run the op, its candidates with the pack format each wants, and the prepared kernel.

mod attention;
mod conv;
mod conv_pair;
mod copy;
mod create;
mod depthwise;
mod direct;
mod double;
mod embedding;
mod fused;
mod joined;
mod linear;
mod lstm;
mod matmul;
mod moves;
mod norm;
mod points;
mod pool;
mod put;
mod quantized;
mod reduce;
mod resize;
mod rotary;
mod softmax;
mod sort;
mod strided;
mod support;
mod transposed;
mod walk;
mod winograd;

use regraft_backend::{
    BackendError, Candidate, DataError, Kernel, KernelId, Launch, NodeSpec, Operand, OperandType, Queue, RunError,
};
use regraft_ir::{Op, TensorType};

pub(crate) use self::{conv_pair::pairs, fused::fuses};
use crate::{Isa, Threads, queue::CpuQueue};

/// What kernels are prepared with.
#[derive(Clone, Debug)]
pub(crate) struct Cx {
    pub(crate) isa: Isa,
    pub(crate) threads: Threads,
}

/// A kernel over bytes of the host.
pub(crate) trait CpuKernel: Send + Sync {
    /// Bytes of scratch memory that a run needs.
    fn scratch(&self) -> usize {
        0
    }

    /// The operand whose memory may be that of the result; see [`Kernel::in_place`].
    fn in_place(&self) -> Option<usize> {
        None
    }

    /// Runs. `inputs[i]` starts at the first element of operand `i` and reaches at least to its last one; `outputs[i]` has
    /// exactly the bytes of result `i`.
    ///
    /// # Errors
    /// When a value is out of range, such as an index.
    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError>;
}

/// A [`CpuKernel`] as the contract has it: memory becomes bytes, and work has run when it was launched.
struct Bound(Box<dyn CpuKernel>);

impl Kernel for Bound {
    fn scratch(&self) -> usize {
        self.0.scratch()
    }

    fn in_place(&self) -> Option<usize> {
        self.0.in_place()
    }

    fn launch(&self, queue: &dyn Queue, mut launch: Launch<'_, '_>) {
        if queue.as_any().downcast_ref::<CpuQueue>().is_some_and(CpuQueue::has_failed) {
            return;
        }
        // Few kernels have more operands; a vector for each launch would be felt in small programs.
        let (mut few, many): ([Option<&[u8]>; 8], Vec<Option<&[u8]>>);
        let inputs = if launch.inputs.len() <= 8 {
            few = [None; 8];
            few.iter_mut().zip(launch.inputs).for_each(|(to, from)| *to = from.map(|region| region.host_bytes()));
            &few[..launch.inputs.len()]
        } else {
            many = launch.inputs.iter().map(|region| region.map(|region| region.host_bytes())).collect();
            &many
        };
        let scratch = launch.scratch.host_bytes();
        let done = match launch.outputs {
            [one] => self.0.run(inputs, &mut [one.host_bytes()], scratch),
            outputs => {
                let mut outputs: Vec<&mut [u8]> = outputs.iter_mut().map(|output| output.host_bytes()).collect();
                self.0.run(inputs, &mut outputs, scratch)
            }
        };
        if let Err(error) = done {
            queue.report(RunError { node: Some(launch.node), kind: error.into() });
        }
    }
}

/// A kernel family: some ids, and what belongs to them.
struct Family {
    /// The ids it prepares.
    ids: &'static [&'static str],
    /// The ways to run a node, best first.
    candidates: fn(Isa, &Op, &[Option<OperandType<'_>>], &[&TensorType]) -> Vec<Candidate>,
    /// Whether operand `index` is read with these strides.
    reads_strided: fn(&Op, usize, &Operand<'_>) -> bool,
    /// The kernel for a node.
    prepare: fn(&Cx, &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError>,
}

const FAMILIES: &[Family] = &[
    fused::FAMILY,
    linear::FAMILY,
    matmul::FAMILY,
    double::FAMILY,
    depthwise::FAMILY,
    winograd::FAMILY,
    conv::FAMILY,
    conv::OF_LINES,
    conv_pair::FAMILY,
    direct::FAMILY,
    attention::FAMILY,
    rotary::FAMILY,
    norm::FAMILY,
    softmax::FAMILY,
    embedding::FAMILY,
    pool::FAMILY,
    reduce::FAMILY,
    copy::FAMILY,
    lstm::FAMILY,
    moves::FAMILY,
    resize::FAMILY,
    transposed::FAMILY,
    sort::FAMILY,
    put::FAMILY,
    create::FAMILY,
    quantized::FAMILY,
];

pub(crate) fn candidates(
    isa: Isa,
    op: &Op,
    inputs: &[Option<OperandType<'_>>],
    outputs: &[&TensorType],
) -> Vec<Candidate> {
    FAMILIES.iter().flat_map(|f| (f.candidates)(isa, op, inputs, outputs)).collect()
}

fn family(kernel: &KernelId) -> Option<&'static Family> {
    FAMILIES.iter().find(|f| f.ids.contains(&kernel.0.as_str()))
}

pub(crate) fn reads_strided(kernel: &KernelId, op: &Op, index: usize, operand: &Operand<'_>) -> bool {
    family(kernel).is_some_and(|f| (f.reads_strided)(op, index, operand))
}

pub(crate) fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn Kernel>, BackendError> {
    if node.kernel.0 == KernelId::COPY {
        return Ok(Box::new(Bound(strided::prepare(cx, node)?)));
    }
    let family = family(node.kernel).ok_or_else(|| BackendError::UnknownKernel(node.kernel.clone()))?;
    // Whatever the plan's file says: the op must take these operands and give these results.
    let inputs: Vec<_> = node.inputs.iter().map(|o| o.map(|o| TensorType::of_sizes(o.dtype, o.shape))).collect();
    let inferred = node
        .op
        .infer(&inputs.iter().map(Option::as_ref).collect::<Vec<_>>())
        .map_err(|e| support::unsupported(node, e.to_string()))?;
    let same = inferred.len() == node.outputs.len()
        && inferred.iter().zip(node.outputs).all(|(a, b)| *a == TensorType::of_sizes(b.dtype, b.shape));
    if !same {
        return Err(support::unsupported(node, format!("it gives {inferred:?}")));
    }
    Ok(Box::new(Bound((family.prepare)(cx, node)?)))
}

/// Launches a kernel on bytes of the host and waits for it.
#[cfg(test)]
pub(crate) fn run_on_host(
    kernel: &dyn Kernel,
    inputs: &[Option<&[u8]>],
    outputs: &mut [&mut [u8]],
) -> Result<(), RunError> {
    use regraft_backend::{Region, RegionMut};
    let queue = CpuQueue::new(Threads::single());
    let mut scratch = regraft_tensor::AlignedVec::zeroed(kernel.scratch());
    let inputs: Vec<_> = inputs.iter().map(|bytes| bytes.map(Region::of_host)).collect();
    let mut outputs: Vec<_> = outputs.iter_mut().map(|bytes| RegionMut::of_host(bytes)).collect();
    let scratch = RegionMut::of_host(scratch.bytes_mut());
    kernel.launch(&queue, Launch { node: 0, inputs: &inputs, outputs: &mut outputs, scratch });
    queue.fence().wait()
}

#[cfg(test)]
mod tests;
