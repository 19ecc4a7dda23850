use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use arc_swap::ArcSwapOption;
use regraft_backend::Backend;
use regraft_engine::{Engine, EngineErrorKind, Mode, Plan};
use regraft_tensor::{AlignedVec, Tensor};
use regraft_weights::{Digest, Generation, Phase, RefitMap, RefitReport, SlotPool, StateDict};

use crate::{
    RefitOptions, RuntimeError, RuntimeErrorKind, Session, Staged,
    bind::BoundPlan,
    refit,
    session::{BoundCache, Scratch},
};

/// An engine with a serving generation: what runs, and what is refitted.
///
/// Cloning is cheap and gives the same model; [`Model::fork`] gives another one that shares everything until it is
/// refitted. A model may be run and refitted from many threads at once: a run sees one generation from start to end, a
/// refit never blocks a run, and a run never blocks a refit.
#[derive(Clone)]
pub struct Model {
    shared: Arc<Shared>,
}

/// What never changes, shared by forks.
struct Program {
    mode: Mode,
    target: regraft_backend::Target,
    plan: Plan,
    refit_map: RefitMap,
    identical: Option<Vec<Digest>>,
    backend: Arc<dyn Backend>,
    bound: Mutex<BoundCache>,
}

struct Shared {
    program: Arc<Program>,
    serving: ArcSwapOption<Generation>,
    /// Sources that an unbound stripped engine brings itself.
    carried: Vec<Option<Tensor>>,
    pool: Arc<SlotPool>,
    /// Scratch memory of past runs, for the next ones.
    scratch: Mutex<Vec<Scratch>>,
    /// Held while a generation is published; nothing else happens meanwhile.
    publish: Mutex<()>,
}

impl Model {
    /// A model of `engine` on `backend`. A refittable engine's slots are made here, at the speed of a refit.
    ///
    /// # Errors
    /// When the engine was built for another machine, is malformed, or a recipe fails.
    pub fn new(engine: Engine, backend: Arc<dyn Backend>) -> Result<Model, RuntimeError> {
        if !backend.runs(&engine.target) {
            return Err(EngineErrorKind::Target {
                expected: Box::new(engine.target),
                found: Box::new(backend.target()),
            }
            .into());
        }
        engine.plan.check()?;
        let Engine { mode, target, plan, refit_map, identical, sources, slots } = engine;
        let program = Program { mode, target, plan, refit_map, identical, backend, bound: Mutex::default() };
        let pool = Arc::new(SlotPool::default());
        let slots = match (mode, slots) {
            // Copied, so that slots lie in memory of the same kind whatever the mode: huge pages, no page cache.
            (Mode::Frozen, Some(slots)) => {
                Some(slots.iter().map(|s| pool.slot(AlignedVec::copy_of(s.bytes()))).collect())
            }
            (Mode::Frozen, None) => {
                return Err(EngineErrorKind::Malformed("a frozen engine without slots".into()).into());
            }
            (Mode::Stripped, _) => None,
            (Mode::Refittable, _) => Some(refit::make_all(&program.parts(), &sources, &pool)?),
        };
        let serving = slots.map(|slots| Arc::new(Generation { id: 0, slots, sources: sources.clone() }));
        Ok(Model { shared: Arc::new(Shared::new(Arc::new(program), serving, sources, pool)) })
    }

    /// Another model that starts with the same generation: it shares the engine and every slot that neither changes.
    pub fn fork(&self) -> Model {
        let shared = &self.shared;
        Model {
            shared: Arc::new(Shared::new(
                shared.program.clone(),
                self.generation(),
                shared.carried.clone(),
                shared.pool.clone(),
            )),
        }
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

    /// The serving generation; `None` for a stripped engine that is not bound.
    pub fn generation(&self) -> Option<Arc<Generation>> {
        self.shared.serving.load_full()
    }

    /// The pool that memory of retired slots waits in.
    pub fn pool(&self) -> &Arc<SlotPool> {
        &self.shared.pool
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.shared.program.backend
    }

    /// Scratch memory and state of a new sequence of runs.
    pub fn session(&self) -> Session {
        Session::new(self.clone(), Scratch::default())
    }

    /// Runs the program once, with fresh state, in scratch memory that is kept for the next call.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RuntimeError> {
        let scratch = lock(&self.shared.scratch).pop().unwrap_or_default();
        let mut session = Session::new(self.clone(), scratch);
        let outputs = session.run(inputs);
        lock(&self.shared.scratch).push(session.into_scratch());
        outputs
    }

    /// Checks `weights` and computes a new generation from them, which does not serve yet.
    ///
    /// # Errors
    /// Every reason why they do not fit, at once; the serving generation is untouched.
    pub fn stage(&self, weights: &StateDict, options: RefitOptions) -> Result<Staged, RuntimeError> {
        if self.mode() == Mode::Frozen {
            return Err(RuntimeErrorKind::Frozen.into());
        }
        let base = self.generation();
        let program = &self.shared.program;
        refit::stage(&program.parts(), &self.shared.pool, base, &self.shared.carried, weights, options)
    }

    /// Makes a staged generation the serving one, in one atomic step. Runs under way finish with the one they began with.
    ///
    /// # Errors
    /// [`RuntimeErrorKind::Stale`] when the model was refitted since.
    pub fn publish(&self, staged: Staged) -> Result<RefitReport, RuntimeError> {
        let Staged { generation, base, mut report } = staged;
        let start = Instant::now();
        let guard = lock(&self.shared.publish);
        let serving = self.generation();
        let same = match (&serving, &base) {
            (Some(serving), Some(base)) => Arc::ptr_eq(serving, base),
            // Nothing serves yet: what was staged must at least be of this program.
            (None, None) => generation.slots.len() == self.plan().slots.len(),
            _ => false,
        };
        if !same {
            return Err(RuntimeErrorKind::Stale.into());
        }
        self.shared.serving.store(Some(Arc::new(generation)));
        drop(guard);
        report.phases_ms.set(Phase::Publish, start.elapsed());
        let start = Instant::now();
        drop((serving, base));
        report.phases_ms.set(Phase::Retire, start.elapsed());
        Ok(report)
    }

    /// Stages and publishes: all or nothing. When another refit comes first, this one is staged again on top of it.
    ///
    /// # Errors
    /// As [`Model::stage`].
    pub fn refit(&self, weights: &StateDict, options: RefitOptions) -> Result<RefitReport, RuntimeError> {
        loop {
            let published = self.publish(self.stage(weights, options)?);
            match published {
                Err(error) if matches!(error.kind(), RuntimeErrorKind::Stale) => {}
                outcome => return outcome,
            }
        }
    }

    /// The engine with the serving generation's weights, to be saved as `mode`.
    ///
    /// # Errors
    /// When there are no weights yet, or the engine is frozen and cannot become anything else.
    pub fn to_engine(&self, mode: Mode) -> Result<Engine, RuntimeError> {
        let program = &self.shared.program;
        if program.mode == Mode::Frozen && mode != Mode::Frozen {
            return Err(RuntimeErrorKind::Frozen.into());
        }
        let mut engine = Engine {
            mode,
            target: program.target.clone(),
            plan: program.plan.clone(),
            refit_map: program.refit_map.clone(),
            identical: program.identical.clone(),
            sources: self.shared.carried.clone(),
            slots: None,
        };
        if mode == Mode::Stripped {
            return Ok(engine.stripped());
        }
        let generation = self.generation().ok_or(RuntimeErrorKind::NotBound)?;
        if mode == Mode::Frozen {
            engine.slots = Some(generation.slots.iter().map(|s| AlignedVec::copy_of(s.bytes()).into()).collect());
            engine.sources = vec![None; engine.refit_map.sources.len()];
            engine.refit_map.recipes.clear();
        } else {
            refit::check_intact(&engine.refit_map, &generation)?;
            engine.sources.clone_from(&generation.sources);
        }
        Ok(engine)
    }

    /// The plan bound to these sizes.
    pub(crate) fn bound(&self, symbols: &[i64]) -> Result<Arc<BoundPlan>, RuntimeError> {
        let program = &self.shared.program;
        if let Some(plan) = lock(&program.bound).get(symbols) {
            return Ok(plan);
        }
        let plan = Arc::new(BoundPlan::new(&program.plan, symbols, &*program.backend)?);
        lock(&program.bound).insert(symbols, plan.clone());
        Ok(plan)
    }
}

impl Program {
    fn parts(&self) -> refit::Parts<'_> {
        refit::Parts {
            plan: &self.plan,
            map: &self.refit_map,
            identical: self.identical.as_deref(),
            backend: &*self.backend,
        }
    }
}

impl Shared {
    fn new(
        program: Arc<Program>,
        serving: Option<Arc<Generation>>,
        carried: Vec<Option<Tensor>>,
        pool: Arc<SlotPool>,
    ) -> Self {
        Shared {
            program,
            serving: ArcSwapOption::from(serving),
            carried,
            pool,
            scratch: Mutex::default(),
            publish: Mutex::default(),
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
