//! The recurrent part of an LSTM.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, OperandType};
use regraft_ir::{Op, TensorType, ops::Lstm};

use super::{
    CpuKernel, Cx, Family,
    support::{Seen, Types, Why, elements_mut, expect_plain, never_strided, operand, plain, unsupported},
};
use crate::{
    Isa, Scratch,
    nn::lstm::{LstmArgs, LstmShape, lstm},
    simd::{Float, FloatType},
};

const STEPS: &str = "lstm.steps";

pub(super) const FAMILY: Family = Family { ids: &[STEPS], candidates, reads_strided: never_strided, prepare };

fn accept<'a>(node: &Seen<'a>) -> Result<&'a Lstm, Why> {
    match node.op {
        Op::Lstm(op) => node.all_floats().map(|()| op),
        _ => Err(Why("it is not an LSTM")),
    }
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)).map(|_| STEPS))
}

struct Prepared {
    cx: Cx,
    types: Types,
    /// Steps, sequences, elements of the state.
    sizes: [usize; 3],
    reverse: bool,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let op = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, 0..node.inputs.len())?;
    let types = Types::expect(node, 0..node.inputs.len())?;
    let (gates, state) = (operand(node, 0)?, operand(node, 1)?);
    let sizes = [gates.shape[0], gates.shape[1], state.shape[1]];
    Ok(Box::new(Prepared { cx: cx.clone(), types, sizes, reverse: op.reverse }))
}

impl Prepared {
    fn compute<T: Float>(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) {
        let ([time, batch, hidden], types) = (self.sizes, &self.types);
        let args = LstmArgs {
            time,
            batch,
            hidden,
            reverse: self.reverse,
            gates: types.read(inputs, 0),
            h: types.read(inputs, 1),
            c: types.read(inputs, 2),
            weight: types.read(inputs, 3).first(4 * hidden * hidden),
            bias: types.optional(inputs, 4).map(|b| b.first(4 * hidden)),
        };
        if let [y, h, c] = outputs {
            let results = [elements_mut::<T>(y), elements_mut(h), elements_mut(c)];
            lstm(&self.cx.threads, self.cx.isa, &args, results, &mut Scratch::new(scratch));
        }
    }
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        let [_, batch, hidden] = self.sizes;
        LstmShape { batch, hidden, weight: self.types.of(3) }.scratch(self.cx.isa, &self.cx.threads)
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        match self.types.out() {
            FloatType::F32 => self.compute::<f32>(inputs, outputs, scratch),
            FloatType::F16 => self.compute::<half::f16>(inputs, outputs, scratch),
            FloatType::Bf16 => self.compute::<half::bf16>(inputs, outputs, scratch),
        }
        Ok(())
    }
}
