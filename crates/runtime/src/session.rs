use std::sync::Arc;

use regraft_ir::eval::bind_symbols_to;
use regraft_tensor::{AlignedVec, Tensor};

use crate::{
    Model, RuntimeError, RuntimeErrorKind,
    bind::{BoundPlan, Leaving, Place, Read, Step, Work},
    generation::Generation,
};

/// The buffers of a session; their contents mean nothing between runs.
pub(crate) type Scratch = Vec<AlignedVec>;

/// The scratch memory of a sequence of runs, and the state that the program keeps between them.
///
/// A session belongs to one thread at a time; a model may have many. State starts from the generation that serves at the
/// first run and is the session's own from then on.
pub struct Session {
    model: Model,
    buffers: Scratch,
    states: Option<Vec<Tensor>>,
}

impl Session {
    pub(crate) fn new(model: Model, scratch: Scratch) -> Self {
        Session { model, buffers: scratch, states: None }
    }

    /// The scratch memory, for another session.
    pub(crate) fn into_scratch(self) -> Scratch {
        self.buffers
    }

    /// Runs the program; outputs come in the program's order. The whole run sees one generation.
    ///
    /// # Errors
    /// When an input has the wrong type, an index is out of range, or the engine has no weights yet.
    pub fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RuntimeError> {
        let generation = self.model.pin()?;
        self.run_on(&generation, inputs)
    }

    pub(crate) fn run_on(&mut self, generation: &Generation, inputs: &[Tensor]) -> Result<Vec<Tensor>, RuntimeError> {
        let graph = &self.model.plan().graph;
        let shapes: Vec<_> = inputs.iter().map(|t| (t.dtype(), t.shape())).collect();
        let symbols = bind_symbols_to(graph, &shapes).map_err(RuntimeErrorKind::Input)?;
        let inputs: Vec<Tensor> = inputs.iter().map(Tensor::aligned).collect();
        let bound = self.model.bound(&symbols)?;
        if self.states.is_none() {
            self.states = Some(self.first_states(generation));
        }
        self.buffers.resize_with(bound.buffers.len().max(self.buffers.len()), AlignedVec::default);
        for (buffer, &bytes) in self.buffers.iter_mut().zip(&bound.buffers) {
            buffer.resize_to_stay(bytes.max(buffer.len()));
        }
        if bound.is_small(&inputs) {
            return self.steps(&bound, generation, &inputs);
        }
        let model = self.model.clone();
        let mut result = Ok(Vec::new());
        model.backend().enter(&mut || result = self.steps(&bound, generation, &inputs));
        result
    }

    /// Forgets the state: the next run starts from the weights again.
    pub fn reset_state(&mut self) {
        self.states = None;
    }

    fn first_states(&self, generation: &Generation) -> Vec<Tensor> {
        let graph = &self.model.plan().graph;
        let first = |state: &regraft_ir::State| {
            let ty = graph.ty(state.value);
            let shape = ty.sizes().expect("slots have known sizes");
            let data = AlignedVec::copy_of(generation.slots[state.init as usize].bytes());
            Tensor::new(ty.dtype, shape, data.into()).expect("a plain slot has the bytes of its type")
        };
        graph.states.iter().map(first).collect()
    }

    fn steps(
        &mut self,
        bound: &BoundPlan,
        generation: &Generation,
        inputs: &[Tensor],
    ) -> Result<Vec<Tensor>, RuntimeError> {
        for step in &bound.steps {
            self.step(step, generation, inputs)?;
        }
        let outputs = bound.outputs.iter().map(|l| self.leave(l, generation, inputs)).collect();
        let states = bound.next_states.iter().map(|l| self.leave(l, generation, inputs)).collect();
        self.states = Some(states);
        Ok(outputs)
    }

    fn step(&mut self, step: &Step, generation: &Generation, inputs: &[Tensor]) -> Result<(), RuntimeError> {
        // Results are taken out of the session, so that operands can be borrowed from it meanwhile.
        let mut results: Vec<AlignedVec> = step.writes.iter().map(|w| std::mem::take(&mut self.buffers[w.0])).collect();
        let outcome = {
            let mut outputs: Vec<&mut [u8]> =
                results.iter_mut().zip(&step.writes).map(|(buffer, w)| &mut buffer.bytes_mut()[..w.1]).collect();
            let reads: Vec<_> = step.reads.iter().map(|r| r.map(|r| self.bytes(&r, generation, inputs))).collect();
            match &step.work {
                Work::Kernel(kernel) => kernel.run(&reads, &mut outputs),
                Work::Copy { size, shape, strides } => {
                    let from = reads[0].expect("a copy has one operand");
                    self.model.backend().copy_strided(*size, shape, strides, from, outputs[0]);
                    Ok(())
                }
            }
        };
        for (buffer, write) in results.into_iter().zip(&step.writes) {
            self.buffers[write.0] = buffer;
        }
        outcome.map_err(|error| {
            let node = &self.model.plan().graph.nodes()[step.node];
            RuntimeErrorKind::Node { op: node.op.name(), scope: node.scope.to_string(), error }.into()
        })
    }

    fn bytes<'a>(&'a self, read: &Read, generation: &'a Generation, inputs: &'a [Tensor]) -> &'a [u8] {
        let bytes = match read.place {
            Place::Buffer(i) => self.buffers[i].bytes(),
            Place::Slot(i) => generation.slots[i].bytes(),
            Place::Input(i) => inputs[i].bytes(),
            Place::State(i) => self.states.as_ref().expect("set before the first step")[i].bytes(),
        };
        &bytes[read.start..]
    }

    fn leave(&self, leaving: &Leaving, generation: &Generation, inputs: &[Tensor]) -> Tensor {
        let len = leaving.shape.iter().product::<usize>() * leaving.dtype.size();
        let data = AlignedVec::copy_of(&self.bytes(&leaving.read, generation, inputs)[..len]);
        Tensor::new(leaving.dtype, leaving.shape.clone(), data.into()).expect("as many bytes as the shape has")
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes: usize = self.buffers.iter().map(AlignedVec::capacity).sum();
        write!(f, "Session({:?}, {bytes} bytes of scratch memory)", self.model)
    }
}

/// Plans bound to sizes, kept for the next run with the same ones.
#[derive(Default)]
pub(crate) struct BoundCache {
    plans: Vec<(Vec<i64>, Arc<BoundPlan>)>,
}

impl BoundCache {
    /// Enough for a few batch sizes times a few dozen sequence lengths.
    const LIMIT: usize = 64;

    pub(crate) fn get(&mut self, symbols: &[i64]) -> Option<Arc<BoundPlan>> {
        let at = self.plans.iter().position(|(key, _)| key == symbols)?;
        let entry = self.plans.remove(at);
        self.plans.push(entry);
        self.plans.last().map(|(_, plan)| plan.clone())
    }

    pub(crate) fn insert(&mut self, symbols: &[i64], plan: Arc<BoundPlan>) {
        if self.plans.len() == Self::LIMIT {
            self.plans.remove(0);
        }
        self.plans.push((symbols.to_vec(), plan));
    }
}
