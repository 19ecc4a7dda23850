//! Kernels: one file per op family, binding nodes of the IR to the routines of this crate.
//!
//! A file holds when it can run the op, its candidates with the pack format each wants, and the prepared kernel.

mod attention;
mod conv;
mod copy;
mod depthwise;
mod embedding;
mod fused;
mod linear;
mod matmul;
mod norm;
mod pool;
mod reduce;
mod softmax;
mod support;

use regraft_backend::{BackendError, Candidate, Kernel, KernelId, Operand, OperandType, Problem};
use regraft_ir::{Op, TensorType};

use crate::{Isa, Threads};

/// What kernels are prepared with.
#[derive(Clone, Debug)]
pub(crate) struct Cx {
    pub(crate) isa: Isa,
    pub(crate) threads: Threads,
}

/// A kernel family: some ids, and what belongs to them.
struct Family {
    /// The ids it prepares.
    ids: &'static [&'static str],
    /// The ways to run a node, best first.
    candidates: fn(&Cx, &Op, &[Option<OperandType<'_>>], &[&TensorType]) -> Vec<Candidate>,
    /// Whether operand `index` is read with these strides.
    reads_strided: fn(&Op, usize, &Operand<'_>) -> bool,
    /// The kernel for a node.
    prepare: fn(&Cx, &Problem<'_>) -> Result<Box<dyn Kernel>, BackendError>,
}

const FAMILIES: &[Family] = &[
    fused::FAMILY,
    linear::FAMILY,
    matmul::FAMILY,
    depthwise::FAMILY,
    conv::FAMILY,
    attention::FAMILY,
    norm::FAMILY,
    softmax::FAMILY,
    embedding::FAMILY,
    pool::FAMILY,
    reduce::FAMILY,
    copy::FAMILY,
];

pub(crate) fn candidates(
    cx: &Cx,
    op: &Op,
    inputs: &[Option<OperandType<'_>>],
    outputs: &[&TensorType],
) -> Vec<Candidate> {
    FAMILIES.iter().flat_map(|f| (f.candidates)(cx, op, inputs, outputs)).collect()
}

fn family(kernel: &KernelId) -> Option<&'static Family> {
    FAMILIES.iter().find(|f| f.ids.contains(&kernel.0.as_str()))
}

pub(crate) fn reads_strided(kernel: &KernelId, op: &Op, index: usize, operand: &Operand<'_>) -> bool {
    family(kernel).is_some_and(|f| (f.reads_strided)(op, index, operand))
}

pub(crate) fn prepare(cx: &Cx, problem: &Problem<'_>) -> Result<Box<dyn Kernel>, BackendError> {
    let family = family(problem.kernel).ok_or_else(|| BackendError::UnknownKernel(problem.kernel.clone()))?;
    // Whatever the plan's file says: the op must take these operands and give these results.
    let inputs: Vec<_> = problem.inputs.iter().map(|o| o.map(|o| TensorType::of_sizes(o.dtype, o.shape))).collect();
    let inferred = problem
        .op
        .infer(&inputs.iter().map(Option::as_ref).collect::<Vec<_>>())
        .map_err(|e| support::unsupported(problem, e.to_string()))?;
    let same = inferred.len() == problem.outputs.len()
        && inferred.iter().zip(problem.outputs).all(|(a, b)| *a == TensorType::of_sizes(b.dtype, b.shape));
    if !same {
        return Err(support::unsupported(problem, format!("it gives {inferred:?}")));
    }
    (family.prepare)(cx, problem)
}
