//! Elements in order along an axis.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, OperandType};
use regraft_ir::{Op, TensorType, ops::Sort};
use regraft_tensor::DType;

use super::{
    CpuKernel, Cx, Family,
    support::{
        Seen, Why, around, elements, elements_mut, expect_plain, never_strided, operand, plain, read, unsupported,
        with_elements,
    },
};
use crate::{
    Isa, Scratch,
    nn::sort::{positions, sort_scratch, take_positions},
};

const AXIS: &str = "sort.axis";

pub(super) const FAMILY: Family = Family { ids: &[AXIS], candidates, reads_strided: never_strided, prepare };

fn accept<'a>(node: &Seen<'a>) -> Result<&'a Sort, Why> {
    match node.op {
        Op::Sort(op) => Ok(op),
        _ => Err(Why("it sorts nothing")),
    }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)).map(|_| AXIS))
}

struct Prepared {
    cx: Cx,
    dtype: DType,
    sizes: [usize; 3],
    descending: bool,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let op = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, [0])?;
    let x = operand(node, 0)?;
    if u32::try_from(x.shape[op.axis]).is_err() {
        return Err(unsupported(node, "the axis has more than 2^32 elements"));
    }
    let sizes = around(x.shape, op.axis);
    Ok(Box::new(Prepared { cx: cx.clone(), dtype: x.dtype, sizes, descending: op.descending }))
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        with_elements!(self.dtype, T => sort_scratch::<T>(&self.cx.threads, self.sizes[1]))
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let ([values, places], threads, isa) = (outputs, &self.cx.threads, self.cx.isa) else { return Ok(()) };
        let (x, places) = (read(inputs, 0), elements_mut::<i64>(places));
        with_elements!(self.dtype, T => {
            let x = elements::<T>(x);
            positions(threads, isa, self.descending, x, self.sizes, places, &mut Scratch::new(scratch));
            take_positions(threads, x, self.sizes, places, elements_mut(values));
        });
        Ok(())
    }
}
