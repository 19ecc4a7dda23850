use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use regraft_backend::Device;
use regraft_engine::{Engine, KeepSources, Mode, Plan};
use regraft_ir::eval::bind_symbols_to;
use regraft_tensor::{DType, Tensor};
use regraft_weights::{Digest, RefitMap, RefitReport, StateDict};

use crate::{
    Adapters, Generation, PoolMemory, Refit, RefitOptions, RuntimeError, RuntimeErrorKind, Session, Staged, Variants,
    bind::BoundPlan,
    generation::SlotPool,
    program::{Program, WeightReader},
    refit,
    serving::{Empty, NoPrevious, Serving},
    session::Lane,
    siblings::Siblings,
    sync::{AtomicBool, Ordering},
};

/// An engine with a serving generation: what runs, and what is refitted.
///
/// Cloning is cheap and gives the same model; [`Model::fork`] gives another one that shares everything until it is
/// refitted. A model may be run and refitted from many threads at once: a run sees one generation from start to end, a
/// refit never blocks a run, and a run never blocks a refit.
///
/// ```no_run
/// # use regraft_runtime::{Model, RefitOptions, RuntimeError};
/// # use regraft_tensor::Tensor;
/// # use regraft_weights::StateDict;
/// # fn f(model: &Model, weights: &StateDict, inputs: &[Tensor]) -> Result<(), RuntimeError> {
/// let before = model.run(inputs)?;
/// let candidate = model.fork();
/// let report = candidate.refit(weights, &RefitOptions::new())?;
/// println!("{report}");
/// let after = candidate.run(inputs)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Model {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) program: Arc<Program>,
    pub(crate) serving: Serving<Generation>,
    pub(crate) variants: Variants,
    pub(crate) siblings: Siblings,
    keep_previous: AtomicBool,
}

impl Model {
    /// A model of `engine` on `device`. Slots that the engine does not bring are made here, at the speed of a refit. `reader`
    /// reads the weight files that sources are kept in by [reference](KeepSources::Reference).
    ///
    /// The weights of an engine that [`Engine::open`] gave are compared with their digests after this, in the background: the
    /// first run waits for those that it reads, the first refit and [`Model::check_file`] for all.
    ///
    /// # Errors
    /// When the engine was built for another machine, is malformed, or a recipe fails.
    pub fn new(engine: Engine, device: Arc<dyn Device>, reader: WeightReader) -> Result<Model, RuntimeError> {
        let (program, slots) = Program::new(engine, device, reader)?;
        let first = program.first_generation(slots)?.map(Arc::new);
        // Not before: it would take the cores and the memory that slots are made with.
        program.file_check.start();
        Ok(Model { shared: Arc::new(Shared::new(Arc::new(program), first)) })
    }

    /// Waits until the weights of the engine's file were compared with their digests.
    ///
    /// # Errors
    /// [`RuntimeErrorKind::DamagedFile`].
    pub fn check_file(&self) -> Result<(), RuntimeError> {
        self.shared.program.file_check.wait()
    }

    /// Another model that starts with the same generation: it shares the engine, memory for slots and scratch, and every
    /// slot that neither changes. It starts without variants.
    pub fn fork(&self) -> Model {
        let fork = Shared::new(self.shared.program.clone(), self.generation());
        fork.keep_previous.store(self.shared.keep_previous.load(Ordering::SeqCst), Ordering::SeqCst);
        let fork = Model { shared: Arc::new(fork) };
        self.shared.siblings.all().iter().for_each(|sibling| fork.link(sibling));
        fork
    }

    /// What the engine held when it was loaded; a bound stripped engine stays [`Mode::Stripped`] here.
    pub fn mode(&self) -> Mode {
        self.shared.program.mode
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.shared.program.plan
    }

    /// The refit map; its list of recipes is empty in a frozen engine.
    pub fn refit_map(&self) -> &RefitMap {
        &self.shared.program.refit_map
    }

    /// How the engine kept its sources when it was loaded.
    pub fn keep_sources(&self) -> KeepSources {
        self.shared.program.keep_sources
    }

    /// The serving generation; `None` for a stripped engine that is not bound. See [`Model::check_file`] before its bytes
    /// are used for anything.
    pub fn generation(&self) -> Option<Arc<Generation>> {
        self.shared.serving.load()
    }

    /// The device that it runs on.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.shared.program.device
    }

    /// The adapters of the serving generation, and how to change them.
    pub fn adapters(&self) -> Adapters<'_> {
        Adapters::new(self)
    }

    /// Named models that share this one's engine, chosen per run.
    pub fn variants(&self) -> &Variants {
        &self.shared.variants
    }

    /// Memory of slots, of this model and all its forks and variants.
    pub fn slot_memory(&self) -> PoolMemory {
        self.shared.program.in_flight.prune();
        self.pool().memory()
    }

    /// Sets the most bytes that slots may take, of this model and all its forks and variants. A stage that does not fit is
    /// refused before anything is computed. A refit needs room for the slots that it rebuilds beside those that serve;
    /// see [`Model::refit_exclusive`] for machines that do not have it.
    pub fn set_memory_limit(&self, limit: Option<usize>) {
        self.pool().set_limit(limit);
    }

    /// Gives memory of retired slots and of past runs, which waits for the next ones, back to the device.
    pub fn trim(&self) {
        self.shared.program.in_flight.prune();
        self.pool().trim();
        lock(self.lanes()).clear();
    }

    /// Whether publishing keeps the generation before, for [`Model::rollback`]. Off at first: it holds the memory of all
    /// slots that differ.
    pub fn set_keep_previous(&self, keep: bool) {
        self.shared.keep_previous.store(keep, Ordering::SeqCst);
    }

    pub(crate) fn keeps_previous(&self) -> bool {
        self.shared.keep_previous.load(Ordering::SeqCst)
    }

    pub(crate) fn pool(&self) -> &Arc<SlotPool> {
        &self.shared.program.pool
    }

    pub(crate) fn is_of_one_program(&self, other: &Model) -> bool {
        Arc::ptr_eq(&self.shared.program, &other.shared.program)
    }

    /// Scratch memory and state of a new sequence of runs.
    pub fn session(&self) -> Session {
        Session::new(self.clone(), None)
    }

    /// Runs the program once, with fresh state, in scratch memory that is kept for the next call.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RuntimeError> {
        self.run_with_generation(inputs).map(|(outputs, _)| outputs)
    }

    /// As [`Model::run`], with the generation that the run saw: for answers that say what they were computed from.
    ///
    /// # Errors
    /// As [`Model::run`].
    pub fn run_with_generation(&self, inputs: &[Tensor]) -> Result<(Vec<Tensor>, Arc<Generation>), RuntimeError> {
        let generation = self.pin()?;
        let outputs = self.run_on(&generation, inputs)?;
        Ok((outputs, generation))
    }

    /// The digest of all sources of a generation of this model under their names, each in the dtype that the engine has it in: the
    /// same whatever file they came from, and whether at once or in parts. Adapters are not in it. The digests of sources are
    /// computed where they are not known yet.
    ///
    /// # Errors
    /// When sources cannot be read back from the device.
    pub fn weights_digest(&self, generation: &Generation) -> Result<Digest, RuntimeError> {
        let mut text = String::new();
        for (info, content) in self.refit_map().sources.iter().zip(&generation.sources) {
            let digest = content.digest()?;
            text.push_str(&info.name);
            text.push('\0');
            text.push_str(&digest.map(|d| d.to_string()).unwrap_or_default());
            text.push('\n');
        }
        Ok(Digest::of_bytes(text.as_bytes()))
    }

    /// Runs the program once on a generation of it, whether it serves or not.
    pub(crate) fn run_on(&self, generation: &Generation, inputs: &[Tensor]) -> Result<Vec<Tensor>, RuntimeError> {
        let mut session = self.session_in_lane();
        let outputs = session.run_on(generation, inputs);
        self.keep_lane(session);
        outputs
    }

    /// Queues and memory of this process's past runs.
    fn lanes(&self) -> &Mutex<Vec<Lane>> {
        self.shared.program.lanes.get_or_init(Mutex::default)
    }

    /// A session in scratch memory of past runs, where there is some.
    pub(crate) fn session_in_lane(&self) -> Session {
        let lane = lock(self.lanes()).pop();
        Session::new(self.clone(), lane)
    }

    /// Keeps the scratch memory of a session for the next run.
    pub(crate) fn keep_lane(&self, session: Session) {
        let lane = session.into_lane();
        lock(self.lanes()).extend(lane);
    }

    /// The serving generation for a run, which holds it to its end.
    pub(crate) fn pin(&self) -> Result<Arc<Generation>, RuntimeError> {
        self.shared.program.file_check.wait_for_runs()?;
        self.shared.serving.pin().map_err(|empty| match empty {
            Empty::ChangingInPlace => RuntimeErrorKind::ChangingInPlace.into(),
            Empty::NotBound => RuntimeErrorKind::NotBound.into(),
        })
    }

    /// Checks `weights` and computes a new generation from them, which does not serve yet.
    ///
    /// # Errors
    /// Every reason why they do not fit, at once; the serving generation is untouched.
    pub fn stage(&self, weights: &StateDict, options: &RefitOptions) -> Result<Staged, RuntimeError> {
        Refit::new().weights(weights, options).stage(self)
    }

    pub(crate) fn stage_refit(&self, refit: &Refit<'_>) -> Result<Staged, RuntimeError> {
        self.check_refittable()?;
        self.check_file()?;
        let program = &self.shared.program;
        program.in_flight.prune();
        let base = if refit.weights.is_none() { Some(self.pin()?) } else { self.generation() };
        let parts = refit::Parts { pace: refit.pace, ..program.parts() };
        let mut report = RefitReport::default();
        let change = refit::check(&parts, base.as_deref(), &program.carried, refit, &mut report)?;
        let to = refit::To { pool: &program.pool, siblings: &self.shared.siblings.all() };
        let generation = refit::compute(&parts, to, base.as_deref(), change, refit.observer, &mut report)?;
        Ok(Staged { model: self.clone(), generation: Arc::new(generation), base, report })
    }

    pub(crate) fn check_refittable(&self) -> Result<(), RuntimeError> {
        if self.mode() == Mode::Frozen { Err(RuntimeErrorKind::Frozen.into()) } else { Ok(()) }
    }

    /// Stages and publishes: all or nothing. When another refit comes first, this one is staged again on top of it.
    ///
    /// # Errors
    /// As [`Model::stage`].
    pub fn refit(&self, weights: &StateDict, options: &RefitOptions) -> Result<RefitReport, RuntimeError> {
        Refit::new().weights(weights, options).run(self)
    }

    /// Publishes the generation before the serving one again, which becomes the one before.
    ///
    /// # Errors
    /// [`RuntimeErrorKind::NoPrevious`] when none was kept.
    pub fn rollback(&self) -> Result<(), RuntimeError> {
        self.shared.serving.rollback().map_err(|NoPrevious| RuntimeErrorKind::NoPrevious.into())
    }

    /// Releases the tensors that the serving generation was made from, and keeps their digests. Later refits must bring
    /// every source of a slot that they change, and saving as a refittable engine is no longer possible.
    ///
    /// # Errors
    /// [`RuntimeErrorKind::NotBound`] when nothing serves, [`RuntimeErrorKind::Stale`] when a refit came between.
    pub fn release_sources(&self) -> Result<(), RuntimeError> {
        self.check_file()?;
        let base = self.pin()?;
        let sources = base.sources.iter().map(|s| s.released().map(Arc::new)).collect::<Result<_, _>>()?;
        let generation = Generation { sources, ..Generation::clone(&base) };
        let staged = Staged {
            model: self.clone(),
            generation: Arc::new(generation),
            base: Some(base),
            report: RefitReport::default(),
        };
        staged.publish().map(drop)
    }

    /// The plan bound to the sizes of inputs of these types.
    pub(crate) fn bound_to(&self, types: &[(DType, &[usize])]) -> Result<Arc<BoundPlan>, RuntimeError> {
        let symbols = bind_symbols_to(&self.plan().graph, types).map_err(RuntimeErrorKind::Input)?;
        self.bound(&symbols)
    }

    /// The plan bound to these sizes.
    fn bound(&self, symbols: &[i64]) -> Result<Arc<BoundPlan>, RuntimeError> {
        let program = &self.shared.program;
        let known = program.bound.get_or_init(Mutex::default);
        if let Some(plan) = lock(known).get(symbols) {
            return Ok(plan);
        }
        let plan = Arc::new(BoundPlan::new(&program.plan, symbols, &*program.device)?);
        lock(known).insert(symbols, plan.clone());
        Ok(plan)
    }
}

impl Shared {
    fn new(program: Arc<Program>, first: Option<Arc<Generation>>) -> Self {
        Shared {
            program,
            serving: Serving::new(first),
            variants: Variants::default(),
            siblings: Siblings::default(),
            keep_previous: AtomicBool::new(false),
        }
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = &self.shared.program;
        write!(
            f,
            "Model({}, {} sources, {} slots, {})",
            program.mode,
            program.refit_map.sources.len(),
            program.plan.slots.len(),
            program.target
        )
    }
}

/// The data behind these locks is whole after any panic: lists that are pushed to and popped from.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
