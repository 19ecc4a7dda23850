use std::sync::Arc;

use regraft_backend::{
    Bindings, Device, Fence, ForeignQueue, Lent, Memory, MemoryKind, Queue, QueueClass, Region, RegionMut, RunError,
    RunErrorKind,
};
use regraft_tensor::{AlignedVec, Shelf, Tensor};

use crate::{
    Generation, Input, Model, RuntimeError, RuntimeErrorKind, Slot,
    bind::{BoundPlan, Output},
    lent,
    recordings::Recordings,
    watch::{StepTime, Watch},
};

/// A queue with an arena for what runs on it. Contents of the arena mean nothing between runs.
pub(crate) struct Lane {
    queue: Arc<dyn Queue>,
    arena: Box<dyn Memory>,
    /// Of runs in this arena.
    recordings: Recordings,
    /// The end of the last run that was not waited for.
    last: Fence,
    /// Memory of earlier outputs.
    outputs: OutputMemory,
}

impl Lane {
    pub(crate) fn new(device: &dyn Device) -> Result<Lane, RuntimeError> {
        let queue = device.queue(QueueClass::Run)?;
        let arena = device.alloc(1, MemoryKind::Arena).map_err(RuntimeErrorKind::from)?;
        let (recordings, outputs) = (Recordings::default(), OutputMemory::default());
        Ok(Lane { queue, arena, recordings, last: Fence::done(), outputs })
    }

    /// Makes the arena hold `bytes`, and never smaller.
    fn grow(&mut self, device: &dyn Device, bytes: usize) -> Result<(), RuntimeError> {
        if self.arena.len() < bytes {
            self.settle();
            self.recordings = Recordings::default();
            // The old one goes first: a device may not have room for both.
            self.arena = device.alloc(1, MemoryKind::Arena).map_err(RuntimeErrorKind::from)?;
            self.arena = device.alloc(bytes, MemoryKind::Arena).map_err(RuntimeErrorKind::from)?;
        }
        Ok(())
    }

    /// Waits for runs that were not waited for.
    fn settle(&mut self) {
        // An error of a device shows in all work that follows.
        let _ = std::mem::take(&mut self.last).wait();
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.settle();
    }
}

/// The scratch memory of a sequence of runs, and the state that the program keeps between them.
///
/// A session belongs to one thread at a time; a model may have many. State starts from the generation that serves at the
/// first run and is the session's own from then on, in memory of the device.
///
/// ```no_run
/// # use regraft_runtime::{Model, RuntimeError};
/// # use regraft_tensor::Tensor;
/// # fn f(model: &Model, tokens: &[Tensor]) -> Result<(), RuntimeError> {
/// let mut session = model.session();
/// for token in tokens {
///     let outputs = session.run(std::slice::from_ref(token))?;
/// }
/// session.reset_state();
/// # Ok(())
/// # }
/// ```
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
    pub(crate) fn into_lane(mut self) -> Option<Lane> {
        self.settle_states();
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

    /// As [`Session::run`], step by step: each is waited for, and what it took is returned beside the outputs. Slower than a
    /// run on devices whose queues run behind.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_timed(&mut self, inputs: &[Tensor]) -> Result<(Vec<Tensor>, Vec<StepTime>), RuntimeError> {
        let mut watch = Watch::default();
        let generation = self.model.pin()?;
        let outputs = self.run_how(&generation, inputs, How { watch: Some(&mut watch), behind: None })?;
        Ok((outputs, watch.times))
    }

    pub(crate) fn run_on(&mut self, generation: &Generation, inputs: &[Tensor]) -> Result<Vec<Tensor>, RuntimeError> {
        self.run_how(generation, inputs, How::default())
    }

    fn run_how(
        &mut self,
        generation: &Generation,
        inputs: &[Tensor],
        how: How<'_>,
    ) -> Result<Vec<Tensor>, RuntimeError> {
        let types: Vec<_> = inputs.iter().map(|t| (t.dtype(), t.shape())).collect();
        let bound = self.model.bound_to(&types)?;
        let inputs: Vec<Tensor> = inputs.iter().map(Tensor::aligned).collect();
        let given: Vec<Given<'_>> = inputs.iter().map(|input| Given::Host(input.bytes())).collect();
        // All memory comes before anything is computed.
        let mut data = self.lane()?.outputs.reserve(&bound.outputs)?;
        // Outputs that are computed where they leave; others are read into their memory when the run is over.
        let mut in_place: Vec<AlignedVec> = Vec::new();
        if bound.outputs.iter().any(|output| output.in_place) {
            let own = |(output, data): (&Output, &mut AlignedVec)| {
                if output.in_place { std::mem::take(data) } else { AlignedVec::default() }
            };
            in_place.extend(bound.outputs.iter().zip(&mut data).map(own));
        }
        self.launch(generation, &bound, &given, how, &mut in_place, |queue, memory, in_flight| {
            in_flight.fence().wait()?;
            let mut read = bound.outputs.iter().zip(&mut data).filter(|(output, _)| !output.in_place);
            read.try_for_each(|(output, data)| queue.read(memory.part(output.from), data.bytes_mut()))
        })?;
        for (data, in_place) in data.iter_mut().zip(in_place).filter(|(_, in_place)| !in_place.is_empty()) {
            *data = in_place;
        }
        let whole = |(output, data): (&Output, AlignedVec)| {
            Tensor::new(output.dtype, output.shape.clone(), data.into()).expect("as many bytes as the shape has")
        };
        Ok(bound.outputs.iter().zip(data).map(whole).collect())
    }

    /// The lane, made when there is none.
    fn lane(&mut self) -> Result<&mut Lane, RuntimeError> {
        match &mut self.lane {
            Some(lane) => Ok(lane),
            none => Ok(none.insert(Lane::new(&**self.model.device())?)),
        }
    }

    /// Runs the program over memory that is lent, behind what is on the lender's queue, which waits for the outputs on the
    /// device. Returns before the run is over, unless the program may refuse values that it reads (an index out of range), or
    /// works on the host in between.
    ///
    /// # Errors
    /// As [`Session::run`]; also when an output is not as large as its memory, or the device is the host.
    pub fn run_lent(
        &mut self,
        inputs: &[Input],
        outputs: &mut [Lent],
        queue: ForeignQueue,
    ) -> Result<(), RuntimeError> {
        let generation = self.model.pin()?;
        let types: Vec<_> = inputs.iter().map(Input::ty).collect();
        let bound = self.model.bound_to(&types)?;
        self.check_lent(&bound, outputs)?;
        let aligned = |input: &Input| if let Input::Host(tensor) = input { Some(tensor.aligned()) } else { None };
        let aligned: Vec<Option<Tensor>> = inputs.iter().map(aligned).collect();
        let given = inputs.iter().zip(&aligned).filter_map(|(input, aligned)| match input {
            Input::Host(_) => Some(Given::Host(aligned.as_ref()?.bytes())),
            Input::Lent { memory, .. } => Some(Given::Lent(memory.region())),
        });
        let given: Vec<Given<'_>> = given.collect();
        let how = How { behind: Some(queue), watch: None };
        let fence = self.launch(&generation, &bound, &given, how, &mut [], |own, memory, in_flight| {
            for (output, lent) in bound.outputs.iter().zip(outputs) {
                own.copy(memory.part(output.from), lent.region_mut());
            }
            own.release(queue);
            let fence = in_flight.fence();
            if fence.may_refuse() {
                fence.wait()?;
            }
            Ok(fence)
        })?;
        if let Some(lane) = &mut self.lane {
            lane.last = fence.clone();
        }
        self.model.shared.program.in_flight.hold(fence, generation);
        Ok(())
    }

    fn check_lent(&self, bound: &BoundPlan, outputs: &[Lent]) -> Result<(), RuntimeError> {
        let device = self.model.device();
        if device.reads_host() {
            let kind =
                RunErrorKind::Device { device: device.name(), why: "it has no memory that could be lent".into() };
            return Err(RuntimeErrorKind::Run(kind).into());
        }
        let expected: usize = bound.outputs.iter().map(|output| output.from.len).sum();
        let fit = outputs.len() == bound.outputs.len()
            && bound.outputs.iter().zip(outputs).all(|(output, lent)| output.from.len == lent.len());
        if fit { Ok(()) } else { Err(lent::misfit(expected, outputs.iter().map(Lent::len).sum())) }
    }

    /// Puts a run on a queue; `finish` gets what it leaves. `in_place` is memory of the host for each
    /// output, where outputs are computed in it.
    fn launch<T>(
        &mut self,
        generation: &Generation,
        bound: &Arc<BoundPlan>,
        inputs: &[Given<'_>],
        how: How<'_>,
        in_place: &mut [AlignedVec],
        finish: impl FnOnce(&dyn Queue, &Bindings<'_>, InFlight<'_>) -> Result<T, RunError>,
    ) -> Result<T, RuntimeError> {
        let model = self.model.clone();
        let device = &**model.device();
        let mut lane = match self.lane.take() {
            Some(lane) => lane,
            None => Lane::new(device)?,
        };
        let outputs = lane.grow(device, bound.sequence.sizes().arena).and_then(|()| {
            let mut states = self.states(device, &lane, generation)?;
            let run = Run { device, bound, generation, inputs, how };
            let outputs = run.run(&mut lane, &mut states, in_place, finish);
            // Outputs are read after the states were changed: they do not differ in what they leave.
            let lost = outputs.is_err() && bound.changes_states_early;
            self.states = if lost { States::Lost } else { States::Kept(states) };
            outputs.map_err(|error| self.at_node(error))
        });
        self.lane = Some(lane);
        outputs
    }

    /// Forgets the state: the next run starts from the weights again.
    pub fn reset_state(&mut self) {
        self.settle_states();
        self.states = States::Fresh;
    }

    /// Waits for runs that may still use the states.
    fn settle_states(&mut self) {
        if let (States::Kept(states), Some(lane)) = (&self.states, &mut self.lane)
            && !states.is_empty()
        {
            lane.settle();
        }
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
    inputs: &'a [Given<'a>],
    how: How<'a>,
}

/// What is particular to a run.
#[derive(Default)]
struct How<'a> {
    /// Behind whose work it comes.
    behind: Option<ForeignQueue>,
    /// Takes the time of each step.
    watch: Option<&'a mut Watch>,
}

/// What a run reads.
enum Given<'a> {
    /// Bytes of the host.
    Host(&'a [u8]),
    /// Memory of the device.
    Lent(Region<'a>),
}

impl Run<'_> {
    /// Puts the run on the lane's queue, and lets `finish` take what it leaves.
    fn run<T>(
        self,
        lane: &mut Lane,
        states: &mut [Box<dyn Memory>],
        in_place: &mut [AlignedVec],
        finish: impl FnOnce(&dyn Queue, &Bindings<'_>, InFlight<'_>) -> Result<T, RunError>,
    ) -> Result<T, RunError> {
        let Lane { queue, arena, recordings, .. } = lane;
        // No memory of this run may be reused before it is over, even if it fails.
        let in_flight = InFlight(&**queue);
        if let Some(other) = self.how.behind {
            queue.wait_for(other);
        }
        let staged = self.bound.staged_inputs.iter().zip(self.inputs);
        // Recordings hold addresses, so what is lent is copied, too: on the device.
        for (part, input) in staged.filter_map(|(part, input)| Some((part.as_ref()?, input))) {
            let to = RegionMut::of(&mut **arena).part(part.range());
            match input {
                Given::Host(bytes) => queue.write(bytes, to),
                Given::Lent(region) => queue.copy(*region, to),
            }
        }
        let direct = self.bound.staged_inputs.iter().zip(self.inputs).filter(|(part, _)| part.is_none());
        let direct = direct.map(|(_, input)| match input {
            Given::Host(bytes) => Region::of_host(bytes),
            Given::Lent(region) => *region,
        });
        let inputs: Vec<Region<'_>> = direct.collect();
        let slots = |index: usize| self.generation.slots[index].region();
        // Memory of outputs that are computed in it stands behind the states.
        let mut places: Vec<RegionMut<'_>> = states.iter_mut().map(|state| RegionMut::of(&mut **state)).collect();
        places.extend(in_place.iter_mut().map(|data| RegionMut::of_host(data.bytes_mut())));
        let arena = RegionMut::of(&mut **arena);
        let mut memory = Bindings { arena, states: places, inputs: &inputs, slots: &slots };
        if let Some(watch) = self.how.watch {
            queue.submit(self.bound.extent, &mut || watch.launch(&self.bound.sequence, &**queue, &mut memory));
        } else if !recordings.launch(self.device, &**queue, self.bound, &mut memory) {
            queue.submit(self.bound.extent, &mut || self.bound.sequence.launch(&**queue, &mut memory));
        }
        finish(&**queue, &memory, in_flight)
    }
}

/// Work on a queue that is waited for, also when the thread that put it there panics.
struct InFlight<'a>(&'a dyn Queue);

impl InFlight<'_> {
    /// The end of the work, which is the caller's to wait for.
    fn fence(self) -> Fence {
        let fence = self.0.fence();
        std::mem::forget(self);
        fence
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        // The panic is what is reported.
        let _ = self.0.fence().wait();
    }
}

/// Bytes of earlier outputs that a lane keeps.
const MOST_KEPT: usize = 256 << 20;

/// Memory of returned outputs: memory that no caller holds any more is reused.
struct OutputMemory(Arc<Shelf>);

impl Default for OutputMemory {
    fn default() -> Self {
        OutputMemory(Shelf::new(MOST_KEPT))
    }
}

impl OutputMemory {
    /// Memory of the host for the outputs. Callers mostly hold those of one run while they ask for the next.
    fn reserve(&self, outputs: &[Output]) -> Result<Vec<AlignedVec>, RuntimeError> {
        self.0.keep(2 * outputs.len());
        let one = |output: &Output| {
            let bytes = output.from.len;
            self.0.lend(bytes).map_err(|_| RuntimeErrorKind::no_host_memory(bytes, "an output").into())
        };
        outputs.iter().map(one).collect()
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
