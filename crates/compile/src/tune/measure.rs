//! Measures the candidates of a problem against each other.
//!
//! Weights come from memory in a model, because every layer has its own; here each run reads the next part of a pool that is
//! larger than caches. Candidates are interleaved, forwards and backwards (A B C C B A), so that a machine that grows slower for a
//! while is unfair to none.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use regraft_backend::{
    Candidate, Device, Extent, FormatId, Kernel, KernelId, Launch, Memory, MemoryKind, NodeSpec, Operand, Queue,
    QueueClass, Region, RegionMut, ResultType, SlotLayout,
};
use regraft_ir::TensorType;
use regraft_tensor::{AlignedVec, DType, Tensor, contiguous_strides};

use super::{
    TuneMode,
    problem::{NodeProblem, ProblemOperand},
};

/// A candidate must be this much faster than the backend's first one, in the median and at its best: less is noise, and
/// choices should be stable.
const MARGIN: f64 = 0.98;

/// Bytes of the pool that weights are read from: more than the share that a core has of the last cache.
const COLD: usize = 32 << 20;

/// What operands and results may take at most; larger problems are not measured.
const MOST: usize = 4 << 30;

/// A fast measurement drops candidates that are slower than the fastest by this; a smaller difference may be noise.
const HOPELESS: f64 = 1.5;

/// Rounds that are made though time is up, if it is not twice up.
const FEW_ROUNDS: usize = 3;

/// A sample takes at least so long: several runs where one is shorter, which clocks and wake-ups would blur.
const SAMPLE: Duration = Duration::from_micros(50);

/// More rounds than this make no median better.
const ROUNDS: usize = 200;

/// How fast a candidate was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Timing {
    /// Median of the samples, in nanoseconds for one run.
    pub(super) median_ns: u64,
    /// The fastest sample, in the same unit.
    pub(super) fastest_ns: u64,
    /// Runs in all samples.
    pub(super) runs: u64,
}

/// The candidate to take: the fastest of those that are faster than the first by more than noise, or the first. What else
/// the machine does only ever adds to a time, so that of the fastest samples says most.
pub(super) fn fastest(timings: &[Option<Timing>]) -> usize {
    let Some(Some(first)) = timings.first() else { return 0 };
    let clearly = |ns: u64, than: u64| (ns as f64) < than as f64 * MARGIN;
    let faster = |t: &Timing| clearly(t.median_ns, first.median_ns) && clearly(t.fastest_ns, first.fastest_ns);
    let candidates = timings.iter().enumerate().filter_map(|(i, t)| Some((i, t.filter(faster)?.fastest_ns)));
    candidates.min_by_key(|(_, ns)| *ns).map_or(0, |(i, _)| i)
}

/// What candidates are measured with.
pub(super) struct Bench<'a> {
    device: &'a dyn Device,
    /// For each type the floats that weights are read from, whatever their format.
    pools: HashMap<DType, Box<dyn Memory>>,
}

impl<'a> Bench<'a> {
    pub(super) fn new(device: &'a dyn Device) -> Self {
        Bench { device, pools: HashMap::new() }
    }

    /// The timings of `candidates`, `None` for those that do not take the problem or were not measured; `None` for all when it is too
    /// large to measure or the first candidate does not take it.
    pub(super) fn measure(
        &mut self,
        problem: &NodeProblem,
        candidates: &[Candidate],
        mode: TuneMode,
    ) -> Option<Vec<Option<Timing>>> {
        let (device, mut runs) = (self.device, Vec::<Runs>::new());
        for (index, candidate) in candidates.iter().enumerate() {
            // A candidate that does not take these sizes is not a choice for them.
            if let Some((kernel, weights)) = prepare(device, problem, candidate) {
                let id = candidate.kernel.clone();
                runs.push(Runs { index, id, kernel, weights, repeat: 0, samples: Vec::new() });
            }
        }
        if runs.first().is_none_or(|first| first.index != 0) {
            return None;
        }
        let queue = device.queue(QueueClass::Run).ok()?;
        let pool = self.pool(&*queue, problem, &runs)?;
        let mut data = Data::new(device, &*queue, pool, problem, &runs)?;
        let mut measured = Some(());
        let extent = Extent { steps: ROUNDS, bytes: data.pool.len() };
        queue.submit(extent, &mut || measured = take_turns(&mut runs, &mut data, &*queue, mode));
        measured?;
        let mut timings = vec![None; candidates.len()];
        for run in runs {
            let index = run.index;
            timings[index] = run.timing();
        }
        Some(timings)
    }

    /// The pool for the weights of these runs; `None` when it would be too large. Another problem's will do if it is as long.
    fn pool(&mut self, queue: &dyn Queue, problem: &NodeProblem, runs: &[Runs]) -> Option<&dyn Memory> {
        let pooled = |run: &Runs| run.weights.iter().flatten().map(|bytes| lines(*bytes)).sum::<usize>();
        let bytes = runs.iter().map(pooled).max()?.max(COLD);
        // Halves of floats are floats, and bytes of them are small integers.
        let weight = problem.inputs.iter().flatten().find(|o| o.known && o.dtype.is_float());
        let dtype = weight.map_or(DType::F32, |operand| operand.dtype);
        if bytes > MOST {
            return None;
        }
        if self.pools.get(&dtype).is_none_or(|pool| pool.len() < bytes) {
            self.pools.insert(dtype, in_memory(self.device, queue, dtype, bytes)?);
        }
        self.pools.get(&dtype).map(|pool| &**pool)
    }
}

/// Memory of the device with `bytes` bytes of [`filled`].
fn in_memory(device: &dyn Device, queue: &dyn Queue, dtype: DType, bytes: usize) -> Option<Box<dyn Memory>> {
    let mut memory = device.alloc(bytes, MemoryKind::Arena).ok()?;
    queue.write(filled(dtype, bytes).bytes(), RegionMut::of(&mut *memory).part(0..bytes));
    Some(memory)
}

/// A candidate's kernel, and what was measured of it.
struct Runs {
    index: usize,
    id: KernelId,
    kernel: Box<dyn Kernel>,
    /// Bytes of each operand that is read from the pool.
    weights: Vec<Option<usize>>,
    /// Runs in a sample; none before it is warm.
    repeat: u32,
    /// Nanoseconds of a run.
    samples: Vec<u64>,
}

impl Runs {
    fn timing(mut self) -> Option<Timing> {
        self.samples.sort_unstable();
        let (fastest_ns, median_ns) = (*self.samples.first()?, self.samples[(self.samples.len() - 1) / 2]);
        Some(Timing { median_ns, fastest_ns, runs: self.samples.len() as u64 * u64::from(self.repeat) })
    }

    /// The fastest sample.
    fn best(&self) -> u64 {
        self.samples.iter().min().copied().unwrap_or(u64::MAX)
    }

    /// Runs until memory is found and caches are as they will be, and finds how many runs make a sample.
    fn warm_up(&mut self, data: &mut Data<'_>, queue: &dyn Queue) -> Option<()> {
        if self.repeat > 0 {
            return Some(());
        }
        self.repeat = 1;
        let first = self.sample(data, queue)?;
        let estimate = if first < Duration::from_millis(1) { self.sample(data, queue)? } else { first };
        self.repeat = SAMPLE.as_nanos().div_ceil(estimate.as_nanos().max(1)).clamp(1, 1000) as u32;
        Some(())
    }

    /// Time of a run, the mean of a sample; `None` when the kernel refuses the values.
    fn sample(&self, data: &mut Data<'_>, queue: &dyn Queue) -> Option<Duration> {
        let start = Instant::now();
        for _ in 0..self.repeat {
            data.launch(queue, &*self.kernel, &self.weights);
        }
        queue.fence().wait().ok()?;
        Some(start.elapsed() / self.repeat)
    }
}

/// Measures as thoroughly as `mode` says; `None` when a kernel refuses. A fast measurement compares the first candidates of each kernel,
/// and then all of the fastest kernel.
fn take_turns(runs: &mut [Runs], data: &mut Data<'_>, queue: &dyn Queue, mode: TuneMode) -> Option<()> {
    let time = Duration::from_secs_f64(mode.seconds());
    if mode == TuneMode::Full {
        return rounds(runs, (0..runs.len()).collect(), data, queue, time, f64::INFINITY);
    }
    let is_first = |i: &usize| runs[..*i].iter().all(|run| run.id != runs[*i].id);
    rounds(runs, (0..runs.len()).filter(is_first).collect(), data, queue, time / 2, HOPELESS)?;
    let fastest = (0..runs.len()).min_by_key(|i| runs[*i].best())?;
    let others = (0..runs.len()).filter(|i| *i == 0 || runs[*i].id == runs[fastest].id).collect();
    rounds(runs, others, data, queue, time / 2, HOPELESS)
}

/// Runs `those` in turns until time is up, or the first is alone. Those that are so many times slower than the fastest, `hopeless`, are
/// given up; the first stays, to be compared with.
fn rounds(
    runs: &mut [Runs],
    mut those: Vec<usize>,
    data: &mut Data<'_>,
    queue: &dyn Queue,
    time: Duration,
    hopeless: f64,
) -> Option<()> {
    let start = Instant::now();
    for i in &those {
        runs[*i].warm_up(data, queue)?;
    }
    for round in 0..ROUNDS {
        // A few rounds are worth waiting for, but not for long.
        let most = if round < FEW_ROUNDS { 2 * time } else { time };
        if those.len() < 2 || round > 0 && start.elapsed() >= most {
            break;
        }
        for i in those.iter().chain(those.iter().rev()) {
            let took = runs[*i].sample(data, queue)?;
            runs[*i].samples.push(took.as_nanos() as u64);
        }
        let best = those.iter().map(|i| runs[*i].best()).min().unwrap_or(u64::MAX);
        those.retain(|i| *i == 0 || runs[*i].best() as f64 <= best as f64 * hopeless);
    }
    Some(())
}

/// The candidate's kernel, and the bytes of each operand that comes from the pool.
fn prepare(
    device: &dyn Device,
    problem: &NodeProblem,
    candidate: &Candidate,
) -> Option<(Box<dyn Kernel>, Vec<Option<usize>>)> {
    let slots = problem.inputs.iter().enumerate().map(|(i, operand)| match operand {
        Some(operand) if operand.known => slot(device, operand, i, candidate).map(Some),
        _ => Some(None),
    });
    let slots: Vec<Option<SlotLayout>> = slots.collect::<Option<_>>()?;
    let strides: Vec<Vec<usize>> =
        problem.inputs.iter().map(|o| o.as_ref().map_or_else(Vec::new, |o| contiguous_strides(&o.shape))).collect();
    let operand = |i: usize| {
        let o = problem.inputs[i].as_ref()?;
        Some(Operand { dtype: o.dtype, shape: &o.shape, strides: &strides[i], slot: slots[i].as_ref() })
    };
    let inputs: Vec<Option<Operand<'_>>> = (0..problem.inputs.len()).map(operand).collect();
    let outputs: Vec<_> = problem.outputs.iter().map(|(dtype, shape)| ResultType { dtype: *dtype, shape }).collect();
    let node = NodeSpec { kernel: &candidate.kernel, op: &problem.op, inputs: &inputs, outputs: &outputs };
    let kernel = device.prepare(&node).ok()?;
    let bytes = problem.inputs.iter().zip(&slots).map(|(operand, slot)| {
        Some(slot.as_ref()?.bytes).filter(|_| operand.as_ref().is_some_and(|operand| operand.dtype.is_float()))
    });
    Some((kernel, bytes.collect()))
}

/// How operand `index` lies as the candidate wants it.
fn slot(device: &dyn Device, operand: &ProblemOperand, index: usize, candidate: &Candidate) -> Option<SlotLayout> {
    let mut ty = TensorType::of_sizes(operand.dtype, &operand.shape);
    let mut format = FormatId::PLAIN;
    if let Some(wanted) = candidate.weights.iter().find(|w| w.operand == index) {
        for op in &wanted.prepare {
            ty = op.infer(&[Some(&ty)]).ok()?.into_iter().next()?;
        }
        format = wanted.format.clone();
    }
    let shape = ty.sizes()?;
    let bytes = device.codegen().format(&format)?.byte_len(ty.dtype, &shape)?;
    Some(SlotLayout { shape, format, bytes })
}

/// Operands and results of a problem. Times do not depend on values, so these are any that are in range.
struct Data<'a> {
    /// Operands that are not read from the pool.
    operands: Vec<Option<Box<dyn Memory>>>,
    /// What weights are read from.
    pool: &'a dyn Memory,
    /// Where the next weight starts.
    at: usize,
    results: Vec<Box<dyn Memory>>,
    scratch: Box<dyn Memory>,
}

impl<'a> Data<'a> {
    /// `None` when there is too much of it.
    fn new(
        device: &dyn Device,
        queue: &dyn Queue,
        pool: &'a dyn Memory,
        problem: &NodeProblem,
        runs: &[Runs],
    ) -> Option<Self> {
        let bytes = |dtype, shape: &[usize]| Tensor::byte_len(dtype, shape).ok();
        let scratch = runs.iter().map(|run| run.kernel.scratch()).max()?;
        let mut total = pool.len().checked_add(scratch)?;
        let operands = problem.inputs.iter().flatten().map(|o| bytes(o.dtype, &o.shape));
        for size in operands.chain(problem.outputs.iter().map(|(dtype, shape)| bytes(*dtype, shape))) {
            total = total.checked_add(size?)?;
        }
        if total > MOST {
            return None;
        }
        let empty = |bytes: usize| device.alloc(bytes, MemoryKind::Arena).ok();
        let mut operands = Vec::with_capacity(problem.inputs.len());
        for operand in &problem.inputs {
            operands.push(match operand.as_ref().filter(|o| !(o.known && o.dtype.is_float())) {
                Some(o) => Some(in_memory(device, queue, o.dtype, bytes(o.dtype, &o.shape)?)?),
                None => None,
            });
        }
        let results = problem.outputs.iter().map(|(dtype, shape)| empty(bytes(*dtype, shape)?));
        let results = results.collect::<Option<_>>()?;
        Some(Data { operands, pool, at: 0, results, scratch: empty(scratch)? })
    }

    /// Launches a kernel once; operand `i` comes from the pool where `weights[i]` says how many bytes it has.
    fn launch(&mut self, queue: &dyn Queue, kernel: &dyn Kernel, weights: &[Option<usize>]) {
        let all: usize = weights.iter().flatten().map(|bytes| lines(*bytes)).sum();
        if self.at + all > self.pool.len() {
            self.at = 0;
        }
        let mut inputs = Vec::with_capacity(weights.len());
        for (bytes, operand) in weights.iter().zip(&self.operands) {
            inputs.push(match bytes {
                Some(bytes) => {
                    let start = self.at;
                    self.at += lines(*bytes);
                    Some(Region::of(self.pool).part(start..start + bytes))
                }
                None => operand.as_ref().map(|operand| Region::of(&**operand)),
            });
        }
        let mut outputs: Vec<RegionMut<'_>> =
            self.results.iter_mut().map(|result| RegionMut::of(&mut **result)).collect();
        let scratch = RegionMut::of(&mut *self.scratch).part(0..kernel.scratch());
        kernel.launch(queue, Launch { node: 0, inputs: &inputs, outputs: &mut outputs, scratch });
    }
}

/// Bytes rounded up to cache lines, where slots start.
fn lines(bytes: usize) -> usize {
    bytes.next_multiple_of(64)
}

/// Values of `dtype`: floats between a quarter and a half with either sign, which neither overflow nor vanish; other numbers
/// are zero, which is an index of any axis.
fn filled(dtype: DType, bytes: usize) -> AlignedVec {
    let mut data = AlignedVec::zeroed(bytes);
    if dtype.is_float() {
        // The sign is the top bit of the last byte; what is below it is the exponent of numbers from 1/4 to 1/2.
        let size = dtype.size();
        let top: &[u8] = match dtype {
            DType::F64 => &[0xd0, 0x3f],
            DType::F16 => &[0x34],
            _ => &[0x80, 0x3e],
        };
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for element in data.bytes_mut().chunks_exact_mut(size) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let random = (state >> 16).to_le_bytes();
            let (low, high) = element.split_at_mut(size - top.len());
            low.copy_from_slice(&random[..low.len()]);
            high.copy_from_slice(top);
            high[top.len() - 1] |= random[5] & 0x80;
        }
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(median_ns: u64) -> Option<Timing> {
        Some(Timing { median_ns, fastest_ns: median_ns - 100, runs: 9 })
    }

    #[test]
    fn the_first_candidate_stays_unless_another_is_clearly_faster() {
        assert_eq!(fastest(&[timing(1000), timing(985), timing(990)]), 0);
        assert_eq!(fastest(&[timing(1000), timing(970), timing(960), None]), 2);
        assert_eq!(fastest(&[timing(1000), None, None]), 0);
        assert_eq!(fastest(&[timing(1000)]), 0);
        let disturbed = Timing { median_ns: 1500, fastest_ns: 900, runs: 9 };
        assert_eq!(fastest(&[Some(disturbed), timing(1000)]), 0, "at its best the first is as fast");
    }

    #[test]
    fn values_are_finite_and_indices_in_range() {
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let data = filled(dtype, 4096 * dtype.size());
            let values = Tensor::new(dtype, vec![4096], data.into()).unwrap().to_f64_vec();
            assert!(values.iter().all(|v| (0.25..0.5).contains(&v.abs())), "{dtype}");
            assert!(values.iter().any(|v| *v < 0.0) && values.iter().any(|v| *v > 0.0), "{dtype}");
        }
        assert!(filled(DType::I64, 80).bytes().iter().all(|b| *b == 0));
    }
}
