//! Pooling.

use regraft_backend::{BackendError, Candidate, Kernel, Operand, OperandType, Problem};
use regraft_ir::{Op, TensorType};

use super::{Cx, Family, support::unsupported};

pub(super) const FAMILY: Family = Family { ids: &[], candidates, reads_strided, prepare };

fn candidates(_: &Cx, _: &Op, _: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    Vec::new()
}

fn reads_strided(_: &Op, _: usize, _: &Operand<'_>) -> bool {
    false
}

fn prepare(_: &Cx, problem: &Problem<'_>) -> Result<Box<dyn Kernel>, BackendError> {
    Err(unsupported(problem, "not yet"))
}
