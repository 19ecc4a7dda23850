//! What never changes of a model, shared by its forks, and the first generation that an engine gives.

use std::{
    collections::BTreeMap,
    error::Error,
    path::Path,
    sync::{Arc, Mutex},
};

use regraft_adapter::AdapterSet;
use regraft_backend::{Device, Pace, Packer, QueueClass, Target};
use regraft_engine::{Engine, EngineErrorKind, KeepSources, Mode, Plan};
use regraft_tensor::{Buffer, PerProcess, Tensor};
use regraft_weights::{BakedAdapter, Digest, RefitMap, StateDict};

use crate::{
    Generation, RuntimeError, RuntimeErrorKind, Slot, SourceContent,
    file_check::FileCheck,
    generation::SlotPool,
    lent::InFlight,
    refit,
    session::{BoundCache, Lane},
};

/// Reads a weight file: how a model finds sources that its engine keeps by reference.
///
/// ```
/// use std::{path::Path, sync::Arc};
///
/// use regraft_runtime::WeightReader;
///
/// let none: WeightReader = Arc::new(|path: &Path| Err(format!("{} is not read here", path.display()).into()));
/// ```
pub type WeightReader = Arc<dyn Fn(&Path) -> Result<StateDict, Box<dyn Error + Send + Sync>> + Send + Sync>;

pub(crate) struct Program {
    pub(crate) mode: Mode,
    pub(crate) target: Target,
    pub(crate) plan: Plan,
    pub(crate) refit_map: RefitMap,
    /// The digest of each source of an identical engine.
    pub(crate) identical: Option<Vec<Option<Digest>>>,
    pub(crate) keep_sources: KeepSources,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) packer: Arc<dyn Packer>,
    /// Plans for sizes that were met. Each process has its own, as of `lanes`: another thread may hold the lock when this one forks, and
    /// would never give it back in the child.
    pub(crate) bound: PerProcess<Mutex<BoundCache>>,
    /// What the engine brings of each source.
    pub(crate) carried: Vec<Arc<SourceContent>>,
    /// Adapters that are part of that.
    pub(crate) baked: Arc<[BakedAdapter]>,
    pub(crate) pool: Arc<SlotPool>,
    /// Queues and memory of past runs, for the next ones.
    pub(crate) lanes: PerProcess<Mutex<Vec<Lane>>>,
    /// What runs hold that are on their way.
    pub(crate) in_flight: InFlight,
    pub(crate) reader: WeightReader,
    pub(crate) file_check: FileCheck,
}

impl Program {
    /// The program of `engine`, with the slots that the engine brings.
    pub(crate) fn new(
        engine: Engine,
        device: Arc<dyn Device>,
        reader: WeightReader,
    ) -> Result<(Program, Option<Vec<Buffer>>), RuntimeError> {
        if !device.runs(&engine.target) {
            let (expected, found) = (Box::new(engine.target), Box::new(device.codegen().target()));
            return Err(EngineErrorKind::Target { expected, found }.into());
        }
        engine.plan.check()?;
        check_layouts(&engine.plan, &*device)?;
        let keep_sources = engine.keep_sources();
        let Engine { mode, target, plan, refit_map, identical, digests, sources, files, slots, baked, unverified } =
            engine;
        let identical = identical.then(|| digests.clone());
        // The digest of an available tensor is computed when it is asked for: what a file says of it may be wrong.
        let content = |(i, tensor): (usize, Option<Tensor>)| {
            let info = &refit_map.sources[i];
            let content = match (tensor, mode) {
                (Some(tensor), _) => SourceContent::new(info.dtype, Some(refit::owned(&tensor, &info.name)?)),
                // Which weights a stripped engine was made from says nothing of those that it will get.
                (None, Mode::Stripped) => SourceContent::new(info.dtype, None),
                (None, Mode::Frozen | Mode::Refittable) => {
                    SourceContent::known(info.dtype, digests[i], files[i].clone())
                }
            };
            Ok::<_, RuntimeError>(Arc::new(content))
        };
        let packer = device.packer(&refit_map, &plan.slots)?;
        let carried = sources.into_iter().enumerate().map(content).collect::<Result<_, _>>()?;
        let program = Program {
            mode,
            target,
            plan,
            identical,
            keep_sources,
            bound: PerProcess::new(),
            carried,
            baked: baked.into(),
            pool: Arc::new(SlotPool::new(device.clone())),
            device,
            packer,
            lanes: PerProcess::new(),
            in_flight: InFlight::default(),
            reader,
            refit_map,
            file_check: FileCheck::of(unverified),
        };
        Ok((program, slots))
    }

    /// The generation that the engine itself gives: none when it is stripped.
    pub(crate) fn first_generation(&self, slots: Option<Vec<Buffer>>) -> Result<Option<Generation>, RuntimeError> {
        let slots = match (self.mode, slots) {
            (Mode::Stripped, _) => return Ok(None),
            // Copied, so that they lie in memory like that of a refittable engine's: huge pages, no page cache.
            (Mode::Frozen, Some(slots)) => self.copies(&slots)?,
            (Mode::Frozen, None) => {
                return Err(EngineErrorKind::Malformed("a frozen engine without slots".into()).into());
            }
            (Mode::Refittable, Some(slots)) => {
                let adopt = |s: Buffer| Ok(Arc::new(self.pool.adopt(&s)?));
                slots.into_iter().map(adopt).collect::<Result<_, RuntimeError>>()?
            }
            (Mode::Refittable, None) => {
                let all: Vec<usize> = (0..self.refit_map.recipes.len()).collect();
                refit::make(
                    &self.parts(),
                    &self.carried,
                    &AdapterSet::default(),
                    &all,
                    &BTreeMap::new(),
                    &self.pool,
                    &(),
                    &mut |_| (),
                )?
            }
        };
        let (sources, baked) = (self.carried.clone(), self.baked.clone());
        Ok(Some(Generation { id: 0, slots, sources, adapters: Arc::default(), baked }))
    }

    /// Slots with these contents.
    fn copies(&self, contents: &[Buffer]) -> Result<Vec<Arc<Slot>>, RuntimeError> {
        let wanted: Vec<_> = contents.iter().map(Buffer::len).enumerate().collect();
        let slots = self.pool.reserve(&wanted).map_err(RuntimeErrorKind::Memory)?;
        let queue = self.device.queue(QueueClass::Stage)?;
        let copied = slots.into_iter().zip(contents).map(|(mut slot, content)| {
            queue.write(content.bytes(), slot.region_mut());
            Arc::new(slot)
        });
        let copied = copied.collect();
        queue.fence().wait().map_err(|error| RuntimeErrorKind::Run(error.kind))?;
        Ok(copied)
    }

    pub(crate) fn parts(&self) -> refit::Parts<'_> {
        refit::Parts {
            plan: &self.plan,
            map: &self.refit_map,
            identical: self.identical.as_deref(),
            packer: &self.packer,
            reader: &self.reader,
            pace: Pace::Fast,
        }
    }
}

/// The device must have every format, and agree on the bytes of each slot.
fn check_layouts(plan: &Plan, device: &dyn Device) -> Result<(), EngineErrorKind> {
    for (slot, layout) in plan.graph.sources.iter().zip(&plan.slots) {
        let ty = plan.graph.ty(slot.value);
        let format = device.codegen().format(&layout.format);
        let bytes = format.and_then(|format| format.byte_len(ty.dtype, &layout.shape));
        if bytes != Some(layout.bytes) {
            let why = format!("slot {}: {ty} does not lie as {} in {} bytes", slot.name, layout.format, layout.bytes);
            return Err(EngineErrorKind::Malformed(why));
        }
    }
    Ok(())
}
