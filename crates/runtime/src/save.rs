//! From a model back to an engine, to be written to a file.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use regraft_engine::{Engine, KeepSources, Mode};
use regraft_tensor::{Buffer, Tensor};
use regraft_weights::{BakedAdapter, Digest, RefitMap, StateDict, Twin};

use crate::{Generation, Model, RuntimeError, RuntimeErrorKind, refit};

impl Model {
    /// The engine with the serving generation's weights, to be saved as `mode`. Adapters become part of the weights. How a
    /// refittable engine keeps its sources is given by `keep`; the other modes keep none.
    ///
    /// By [reference](KeepSources::Reference) are kept the sources that were read from weight files and that no adapter
    /// changes; the engine holds the others.
    ///
    /// # Errors
    /// When there are no weights yet, the engine is frozen and cannot become anything else, the file that the weights came
    /// from is damaged, or sources that the engine is to hold were released.
    pub fn to_engine(&self, mode: Mode, keep: KeepSources) -> Result<Engine, RuntimeError> {
        let program = &self.shared.program;
        if program.mode == Mode::Frozen && mode != Mode::Frozen {
            return Err(RuntimeErrorKind::Frozen.into());
        }
        program.file_check.wait()?;
        let count = program.refit_map.sources.len();
        let mut engine = Engine {
            mode,
            target: program.target.clone(),
            plan: program.plan.clone(),
            refit_map: program.refit_map.clone(),
            identical: program.identical.is_some(),
            digests: program.identical.clone().unwrap_or_else(|| vec![None; count]),
            sources: program.carried.iter().map(|s| s.converted()).collect::<Result<_, _>>()?,
            files: vec![None; count],
            slots: None,
            baked: Vec::new(),
            unverified: None,
        };
        if mode == Mode::Stripped {
            return Ok(engine.stripped());
        }
        let generation = self.pin()?;
        engine.baked = baked(&program.refit_map, &generation);
        if mode == Mode::Frozen || keep != KeepSources::Embedded {
            let slots = generation.slots.iter().map(|slot| slot.read().map(Buffer::from));
            engine.slots = Some(slots.collect::<Result<_, _>>()?);
        }
        match (mode, keep) {
            (Mode::Frozen, _) => {
                self.fill_digests(&mut engine, &generation)?;
                engine.sources = vec![None; count];
                engine.refit_map.recipes.clear();
            }
            (_, KeepSources::Embedded | KeepSources::Prepacked) => {
                engine.sources = refit::merged_sources(&program.parts(), &generation, |_| true)?;
            }
            (_, KeepSources::Reference) => {
                self.fill_references(&mut engine, &generation)?;
                // No file has any of them: all are embedded, and slots are made of them.
                if engine.files.iter().all(Option::is_none) {
                    engine.slots = None;
                }
            }
            (_, KeepSources::None) => {
                self.fill_digests(&mut engine, &generation)?;
                self.keep_what_no_state_dict_brings(&mut engine, &generation)?;
            }
        }
        if mode != Mode::Frozen {
            self.untie(&mut engine, &generation, keep)?;
        }
        Ok(engine)
    }

    /// An engine holds each source once: one that is tied, and that adapters change for some of its modules only, becomes
    /// several.
    fn untie(&self, engine: &mut Engine, generation: &Generation, keep: KeepSources) -> Result<(), RuntimeError> {
        let map = &self.shared.program.refit_map;
        let is_apart =
            |(i, twin): &(usize, &Twin)| !generation.adapters.treats_alike(twin.of as usize, map.sources.len() + i);
        let apart: BTreeSet<usize> = map.twins.iter().enumerate().filter(is_apart).map(|(i, _)| i).collect();
        let unnamed = || {
            let names = apart.iter().map(|&i| map.twins[i].name.clone());
            let why = "an adapter changes the module's weight and not where it is read besides, which a refittable engine \
                       cannot hold; take the adapter away, or save a frozen engine";
            RuntimeErrorKind::Source { name: names.collect::<Vec<_>>().join(", "), why: why.into() }
        };
        engine.refit_map = map.untied(&apart).ok_or_else(unnamed)?;
        for &twin in &apart {
            let tensor = refit::merged_use(&self.shared.program.parts(), generation, map.sources.len() + twin)?;
            let digest = tensor.as_ref().map(Digest::of).filter(|_| keep == KeepSources::None || engine.identical);
            engine.digests.push(digest);
            engine.sources.push(tensor.filter(|_| keep != KeepSources::None));
            engine.files.push(None);
        }
        Ok(())
    }

    /// The digests of the generation's sources with its adapters applied, as far as they can be known.
    fn fill_digests(&self, engine: &mut Engine, generation: &Generation) -> Result<(), RuntimeError> {
        let adapted = adapted(&self.shared.program.refit_map, generation);
        let merged = refit::merged_sources(&self.shared.program.parts(), generation, |i| adapted.contains(&i))?;
        for (i, (digest, content)) in engine.digests.iter_mut().zip(&generation.sources).enumerate() {
            *digest = if adapted.contains(&i) { merged[i].as_ref().map(Digest::of) } else { content.digest()? };
        }
        Ok(())
    }

    /// The generation's, which a refit may have changed; released ones are the engine's own where those are still the same.
    fn keep_what_no_state_dict_brings(&self, engine: &mut Engine, generation: &Generation) -> Result<(), RuntimeError> {
        let (carried, packer) = (&self.shared.program.carried, &*self.shared.program.packer);
        for (i, info) in engine.refit_map.sources.iter().enumerate() {
            let content = &generation.sources[i];
            if info.kind.in_state_dict() {
                engine.sources[i] = None;
                continue;
            }
            engine.sources[i] = match (content.converted()?, carried[i].converted()?) {
                (None, Some(own)) if content.is(packer, &own)? => Some(own),
                (kept, _) => kept,
            };
        }
        Ok(())
    }

    fn fill_references(&self, engine: &mut Engine, generation: &Generation) -> Result<(), RuntimeError> {
        let adapted = adapted(&self.shared.program.refit_map, generation);
        let mut weights = WeightFiles { model: self, open: BTreeMap::new() };
        engine.files = (0..generation.sources.len())
            .map(|i| if adapted.contains(&i) { None } else { weights.file_of(generation, i) })
            .collect();
        let files = &engine.files;
        engine.sources = refit::merged_sources(&self.shared.program.parts(), generation, |i| files[i].is_none())?;
        for (i, digest) in engine.digests.iter_mut().enumerate().filter(|(i, _)| files[*i].is_some()) {
            *digest = generation.sources[i].digest()?;
        }
        Ok(())
    }
}

/// The adapters that are part of a generation's weights once its own are.
fn baked(map: &RefitMap, generation: &Generation) -> Vec<BakedAdapter> {
    let own = generation.adapters.iter().map(|(adapter, scale)| {
        let sources: BTreeSet<&str> = adapter.layers.iter().map(|layer| map.use_name(layer.source)).collect();
        let sources = sources.into_iter().map(str::to_owned).collect();
        BakedAdapter { name: adapter.name.clone(), scale, sources }
    });
    generation.baked.iter().cloned().chain(own).collect()
}

/// Sources that adapters change.
fn adapted(map: &RefitMap, generation: &Generation) -> BTreeSet<usize> {
    generation.adapters.differing_uses(&Default::default()).into_iter().filter_map(|one| map.source_of(one)).collect()
}

/// Weight files by path, each opened once.
struct WeightFiles<'a> {
    model: &'a Model,
    open: BTreeMap<Arc<Path>, Option<StateDict>>,
}

impl WeightFiles<'_> {
    /// The weight file that gives source `index` of `generation` when it is read again.
    fn file_of(&mut self, generation: &Generation, index: usize) -> Option<Arc<Path>> {
        let content = &generation.sources[index];
        if let Some(file) = content.file() {
            return Some(file.clone());
        }
        let tensor = content.held()?;
        let path: Arc<Path> = tensor.buffer().file()?.into();
        let program = &self.model.shared.program;
        let read = || (program.reader)(&path).ok();
        let weights = self.open.entry(path.clone()).or_insert_with(read).as_ref()?;
        let again: &Tensor = refit::named(&program.refit_map.sources[index], weights)?;
        // A file that holds the bytes, such as data beside an `.onnx`, is not always one that can be opened by itself.
        (again.dtype() == tensor.dtype() && again.bit_equal(tensor)).then_some(path)
    }
}
