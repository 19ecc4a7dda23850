use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use regraft_weights::{Phase, RefitReport, StateDict};

use super::{Refit, To, check, compute, phase, slots_besides};
use crate::{
    Generation, Model, RefitOptions, RuntimeError, RuntimeErrorKind,
    serving::{Next, Retired, Serving, Stale},
};

/// A generation that is ready to serve, but does not serve yet. Dropping it changes nothing.
///
/// ```no_run
/// # use regraft_runtime::{Model, RefitOptions, RuntimeError};
/// # use regraft_tensor::Tensor;
/// # use regraft_weights::StateDict;
/// # fn f(model: &Model, weights: &StateDict, samples: &[Vec<Tensor>]) -> Result<(), RuntimeError> {
/// let staged = model.stage(weights, &RefitOptions::new())?;
/// println!("{}", staged.verify(samples)?);
/// staged.publish()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Staged {
    pub(crate) model: Model,
    pub(crate) generation: Arc<Generation>,
    /// The generation that it was made from; the pointer identifies it.
    pub(crate) base: Option<Arc<Generation>>,
    pub(crate) report: RefitReport,
}

impl Staged {
    /// The report of staging, without the publish phase.
    pub fn report(&self) -> &RefitReport {
        &self.report
    }

    /// The generation.
    pub fn generation(&self) -> &Arc<Generation> {
        &self.generation
    }

    /// The model that it was staged on.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Whether the model still serves what this was staged from, so that it can be published now.
    pub fn is_current(&self) -> bool {
        match (self.model.generation(), &self.base) {
            (Some(serving), Some(base)) => Arc::ptr_eq(&serving, base),
            (None, None) => true,
            _ => false,
        }
    }

    /// Makes it the serving generation of the model that it was staged on, in one atomic step. Runs under way finish with
    /// the one they began with.
    ///
    /// # Errors
    /// [`RuntimeErrorKind::Stale`] when the model was refitted since.
    pub fn publish(self) -> Result<RefitReport, RuntimeError> {
        let Staged { model, generation, base, mut report } = self;
        let next = Next { base, generation, keep_base: model.keeps_previous() };
        let retired = phase(Phase::Publish, &mut report, &(), |_| model.shared.serving.publish(next));
        let retired = retired.map_err(|Stale| RuntimeErrorKind::Stale)?;
        phase(Phase::Retire, &mut report, &(), |_| drop(retired));
        Ok(report)
    }
}

/// Publishes what was staged on several models: on all of them, or on none when one was refitted since. For a fleet that
/// changes together; each model changes in one step, one right after the other.
///
/// ```
/// # use regraft_runtime::{Model, RefitOptions, RuntimeError, publish_together};
/// # use regraft_weights::StateDict;
/// # fn f(models: &[Model], weights: &StateDict) -> Result<(), RuntimeError> {
/// let options = RefitOptions::new();
/// let staged: Result<Vec<_>, _> = models.iter().map(|model| model.stage(weights, &options)).collect();
/// for report in publish_together(staged?)? {
///     println!("{report}");
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`RuntimeErrorKind::Stale`] when one was refitted since, or two were staged on one model.
pub fn publish_together(all: Vec<Staged>) -> Result<Vec<RefitReport>, RuntimeError> {
    let mut reports: Vec<RefitReport> = all.iter().map(|s| s.report.clone()).collect();
    let models: Vec<Model> = all.iter().map(|s| s.model.clone()).collect();
    let next = |s: Staged| Next { base: s.base, generation: s.generation, keep_base: s.model.keeps_previous() };
    let nexts = models.iter().zip(all).map(|(model, staged)| (&model.shared.serving, next(staged))).collect();
    let mut all_of_them = RefitReport::default();
    let retired = phase(Phase::Publish, &mut all_of_them, &(), |_| Serving::publish_together(nexts));
    let retired: Vec<Retired<Generation>> = retired.map_err(|Stale| RuntimeErrorKind::Stale)?;
    phase(Phase::Retire, &mut all_of_them, &(), |_| drop(retired));
    for report in &mut reports {
        report.phases_ms.publish = all_of_them.phases_ms.publish;
        report.phases_ms.retire = all_of_them.phases_ms.retire;
    }
    Ok(reports)
}

impl Model {
    /// Refits in the memory of the serving generation, for machines that cannot hold two: the slots that change are given
    /// up before they are rebuilt. **Not atomic under load**: runs under way are waited for, and until the refit is done
    /// new runs fail with [`RuntimeErrorKind::ChangingInPlace`]. Everything is checked before anything is given up; when
    /// computing still fails, the old slots are made again from the old sources, or, where these were released, the
    /// model is left without weights.
    ///
    /// Sources that the serving generation keeps in the slots that are given up are copied to memory of their own first, for
    /// as long as the refit takes: as much memory as a generation has that keeps its sources outside of slots.
    ///
    /// Generations that others hold ([`Model::generation`], forks, variants) keep their slots; the generation before the
    /// serving one is released.
    ///
    /// # Errors
    /// As [`Model::stage`].
    pub fn refit_exclusive(&self, weights: &StateDict, options: &RefitOptions) -> Result<RefitReport, RuntimeError> {
        self.check_refittable()?;
        self.check_file()?;
        let refit = Refit::new().weights(weights, options);
        let base = self.pin()?;
        let (program, mut report) = (&self.shared.program, RefitReport::default());
        let parts = program.parts();
        let mut change = check(&parts, Some(&base), &program.carried, &refit, &mut report)?;
        // Refused when the slots in use are over the limit already: neither new slots nor the old ones would fit again.
        let empty = self.pool().reserve(&[(0, 0)]).map_err(RuntimeErrorKind::Memory)?.pop().map(Arc::new);
        let empty = empty.expect("as many slots as were asked for");
        let (stale, sources) = (change.stale.clone(), change.free_slots_of(&parts, &base)?);
        let place = self.shared.serving.take_out(&base).map_err(|Stale| RuntimeErrorKind::Stale)?;
        program.in_flight.settle();
        let (mut kept, held) = match alone(base) {
            Ok(base) => (base, None),
            Err(base) => (Generation::clone(&base), Some(base)),
        };
        kept.sources = sources;
        // Their memory is in the pool now, and is what the new slots are made in.
        stale.iter().for_each(|&slot| kept.slots[slot] = empty.clone());
        let to = To { pool: self.pool(), siblings: &[] };
        let made = compute(&parts, to, Some(&kept), change, refit.observer, &mut report);
        match made {
            Ok(generation) => {
                phase(Phase::Publish, &mut report, &(), |_| place.finish(Arc::new(generation)));
                Ok(report)
            }
            Err(error) => {
                if let Some(held) = held {
                    place.finish(held);
                    return Err(error);
                }
                let others = slots_besides(&kept.slots, &stale);
                let back =
                    super::make(&parts, &kept.sources, &kept.adapters, &stale, &others, self.pool(), &(), &mut |_| ());
                if let Ok(made) = back {
                    stale.iter().zip(made).for_each(|(&slot, data)| kept.slots[slot] = data);
                    place.finish(Arc::new(kept));
                }
                Err(error)
            }
        }
    }
}

/// The generation once no run holds it any more, or what was given when someone else keeps it for longer than runs take.
fn alone(mut generation: Arc<Generation>) -> Result<Generation, Arc<Generation>> {
    const PATIENCE: Duration = Duration::from_secs(10);
    const STEP: Duration = Duration::from_micros(50);
    let start = Instant::now();
    loop {
        match Arc::try_unwrap(generation) {
            Ok(generation) => return Ok(generation),
            Err(shared) if start.elapsed() >= PATIENCE => return Err(shared),
            Err(shared) => generation = shared,
        }
        thread::sleep(STEP);
    }
}
