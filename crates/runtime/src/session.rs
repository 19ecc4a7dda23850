use std::sync::Arc;

use regraft_backend::{Bindings, Device, Memory, MemoryKind, Queue, QueueClass, Region, RegionMut, RunError};
use regraft_ir::eval::bind_symbols_to;
use regraft_tensor::{AlignedVec, Buffer, Tensor};

use crate::{
    Generation, Model, RuntimeError, RuntimeErrorKind, Slot,
    bind::{BoundPlan, Output},
    recordings::Recordings,
};

/// A queue with an arena for what runs on it. Contents of the arena mean nothing between runs.
pub(crate) struct Lane {
    queue: Arc<dyn Queue>,
    arena: Box<dyn Memory>,
    /// Of runs in this arena.
    recordings: Recordings,
    /// Memory of earlier outputs.
    given: Given,
}

impl Lane {
    pub(crate) fn new(device: &dyn Device) -> Result<Lane, RuntimeError> {
        let queue = device.queue(QueueClass::Run)?;
        let arena = device.alloc(1, MemoryKind::Arena).map_err(RuntimeErrorKind::from)?;
        Ok(Lane { queue, arena, recordings: Recordings::default(), given: Given::default() })
    }

    /// Makes the arena hold `bytes`, and never smaller.
    fn grow(&mut self, device: &dyn Device, bytes: usize) -> Result<(), RuntimeError> {
        if self.arena.len() < bytes {
            self.recordings = Recordings::default();
            // The old one goes first: a device may not have room for both.
            self.arena = device.alloc(1, MemoryKind::Arena).map_err(RuntimeErrorKind::from)?;
            self.arena = device.alloc(bytes, MemoryKind::Arena).map_err(RuntimeErrorKind::from)?;
        }
        Ok(())
    }
}

/// The scratch memory of a sequence of runs, and the state that the program keeps between them.
///
/// A session belongs to one thread at a time; a model may have many. State starts from the generation that serves at the
/// first run and is the session's own from then on, in memory of the device.
pub struct Session {
    model: Model,
    lane: Option<Lane>,
    states: States,
}

/// The states of a session.
enum States {
    /// The next run starts from the weights.
    Fresh,
    Kept(Vec<Box<dyn Memory>>),
    /// A run failed after it had changed them.
    Lost,
}

impl Session {
    pub(crate) fn new(model: Model, lane: Option<Lane>) -> Self {
        Session { model, lane, states: States::Fresh }
    }

    /// The lane, for another session.
    pub(crate) fn into_lane(self) -> Option<Lane> {
        self.lane
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
        let model = self.model.clone();
        let device = &**model.device();
        let mut lane = match self.lane.take() {
            Some(lane) => lane,
            None => Lane::new(device)?,
        };
        // All memory comes before anything is computed.
        let grown = lane.grow(device, bound.sequence.sizes().arena);
        let reserved = grown.and_then(|()| lane.given.reserve(&bound.outputs));
        let outputs = reserved.and_then(|data| {
            let mut states = self.states(device, &lane, generation)?;
            let run = Run { device, bound: &bound, generation, inputs: &inputs };
            let outputs = run.run(&mut lane, &mut states, data);
            // Outputs are read after the states were changed: they do not differ in what they leave.
            let lost = outputs.is_err() && bound.changes_states_early;
            self.states = if lost { States::Lost } else { States::Kept(states) };
            outputs.map_err(|error| self.at_node(error))
        });
        if let Ok(outputs) = &outputs {
            lane.given.keep(outputs);
        }
        self.lane = Some(lane);
        outputs
    }

    /// Forgets the state: the next run starts from the weights again.
    pub fn reset_state(&mut self) {
        self.states = States::Fresh;
    }

    /// The states, taken from the session for a run.
    fn states(
        &mut self,
        device: &dyn Device,
        lane: &Lane,
        generation: &Generation,
    ) -> Result<Vec<Box<dyn Memory>>, RuntimeError> {
        match std::mem::replace(&mut self.states, States::Fresh) {
            States::Kept(states) => Ok(states),
            States::Fresh => self.first_states(device, lane, generation),
            States::Lost => {
                self.states = States::Lost;
                Err(RuntimeErrorKind::StateLost.into())
            }
        }
    }

    fn first_states(
        &self,
        device: &dyn Device,
        lane: &Lane,
        generation: &Generation,
    ) -> Result<Vec<Box<dyn Memory>>, RuntimeError> {
        let slots: Vec<&Slot> =
            self.model.plan().graph.states.iter().map(|state| &*generation.slots[state.init as usize]).collect();
        let alloc = |slot: &&Slot| device.alloc(slot.len(), MemoryKind::Arena).map_err(RuntimeErrorKind::from);
        // All of them before the first copy: what is being written must not be given back when a later one is refused.
        let mut states = slots.iter().map(alloc).collect::<Result<Vec<_>, _>>()?;
        for (memory, slot) in states.iter_mut().zip(slots) {
            lane.queue.copy(slot.region(), RegionMut::of(&mut **memory).part(0..slot.len()));
        }
        Ok(states)
    }

    fn at_node(&self, error: RunError) -> RuntimeError {
        let graph = &self.model.plan().graph;
        match error.node.and_then(|node| graph.nodes().get(node)) {
            Some(node) => {
                RuntimeErrorKind::Node { op: node.op.name(), scope: node.scope.to_string(), error: error.kind }.into()
            }
            None => RuntimeErrorKind::Run(error.kind).into(),
        }
    }
}

/// One run.
struct Run<'a> {
    device: &'a dyn Device,
    bound: &'a Arc<BoundPlan>,
    generation: &'a Generation,
    inputs: &'a [Tensor],
}

impl Run<'_> {
    /// Runs, and leaves the outputs in `data`.
    fn run(
        &self,
        lane: &mut Lane,
        states: &mut [Box<dyn Memory>],
        mut data: Vec<AlignedVec>,
    ) -> Result<Vec<Tensor>, RunError> {
        let Lane { queue, arena, recordings, .. } = lane;
        // Nothing of this run may be given to anyone else before it is over, whatever becomes of it.
        let in_flight = InFlight(&**queue);
        let staged = self.bound.staged_inputs.iter().zip(self.inputs);
        for (part, input) in staged.filter_map(|(part, input)| Some((part.as_ref()?, input))) {
            queue.write(input.bytes(), RegionMut::of(&mut **arena).part(part.range()));
        }
        let direct = self.bound.staged_inputs.iter().zip(self.inputs).filter(|(part, _)| part.is_none());
        let inputs: Vec<Region<'_>> = direct.map(|(_, input)| Region::of_host(input.bytes())).collect();
        let slots = |index: usize| self.generation.slots[index].region();
        // Memory of outputs that are computed in it stands behind the states; others are read into theirs when the run is over.
        let outputs = &self.bound.outputs;
        let mut beside: Vec<AlignedVec> = data.iter_mut().map(|_| AlignedVec::default()).collect();
        for ((data, beside), output) in data.iter_mut().zip(&mut beside).zip(outputs) {
            if output.in_place {
                std::mem::swap(data, beside);
            }
        }
        let mut places: Vec<RegionMut<'_>> = states.iter_mut().map(|state| RegionMut::of(&mut **state)).collect();
        if outputs.iter().any(|output| output.in_place) {
            places.extend(beside.iter_mut().map(|data| RegionMut::of_host(data.bytes_mut())));
        }
        let arena = RegionMut::of(&mut **arena);
        let mut memory = Bindings { arena, states: places, inputs: &inputs, slots: &slots };
        if !recordings.launch(self.device, &**queue, self.bound, &mut memory) {
            queue.submit(self.bound.extent, &mut || self.bound.sequence.launch(&**queue, &mut memory));
        }
        in_flight.wait()?;
        for (data, output) in data.iter_mut().zip(outputs).filter(|(_, output)| !output.in_place) {
            queue.read(memory.part(output.from), data.bytes_mut())?;
        }
        drop(memory);
        let whole = |((data, beside), output): ((AlignedVec, AlignedVec), &Output)| {
            let data = if output.in_place { beside } else { data };
            Tensor::new(output.dtype, output.shape.clone(), data.into()).expect("as many bytes as the shape has")
        };
        Ok(data.into_iter().zip(beside).zip(outputs).map(whole).collect())
    }
}

/// Work on a queue that is waited for, also when the thread that put it there panics.
struct InFlight<'a>(&'a dyn Queue);

impl InFlight<'_> {
    fn wait(self) -> Result<(), RunError> {
        let fence = self.0.fence();
        std::mem::forget(self);
        fence.wait()
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        // The panic is what is told.
        let _ = self.0.fence().wait();
    }
}

/// Bytes of earlier outputs that a lane keeps.
const MOST_KEPT: usize = 256 << 20;

/// Memory of outputs that were given away: what nobody holds any more is given again. Finding new pages takes longer than writing a
/// simple operator's result to them.
#[derive(Default)]
struct Given {
    /// The oldest first.
    outputs: Vec<Arc<AlignedVec>>,
}

impl Given {
    /// Memory of the host for the outputs.
    fn reserve(&mut self, outputs: &[Output]) -> Result<Vec<AlignedVec>, RuntimeError> {
        let one = |output: &Output| {
            let bytes = output.from.len;
            let free = self.outputs.iter().position(|o| o.len() == bytes && Arc::strong_count(o) == 1);
            if let Some(again) = free.and_then(|at| Arc::into_inner(self.outputs.remove(at))) {
                return Ok(again);
            }
            AlignedVec::try_zeroed(bytes).map_err(|_| RuntimeErrorKind::no_host_memory(bytes, "an output").into())
        };
        outputs.iter().map(one).collect()
    }

    /// Remembers outputs. Callers mostly hold those of one run while they ask for the next.
    fn keep(&mut self, outputs: &[Tensor]) {
        for output in outputs {
            if let Buffer::Owned(memory) = output.buffer() {
                self.outputs.push(memory.clone());
            }
        }
        let bytes = |outputs: &[Arc<AlignedVec>]| outputs.iter().map(|o| o.len()).sum::<usize>();
        while self.outputs.len() > 2 * outputs.len() || bytes(&self.outputs) > MOST_KEPT {
            self.outputs.remove(0);
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.lane.as_ref().map_or(0, |lane| lane.arena.len());
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
