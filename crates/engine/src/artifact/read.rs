//! From the sections of a file to an engine. Nothing in them is trusted.

use std::{path::Path, sync::Arc};

use regraft_backend::SlotLayout;
use regraft_ir::{Graph, Source, text};
use regraft_tensor::{Buffer, Tensor};
use regraft_weights::{Recipe, RefitMap, SourceInfo, Twin};
use serde::de::DeserializeOwned;

use super::{
    ABOUT, BEFORE, COMPAT, PLAN, RECIPES, SLOTS, SOURCES,
    about::{About, AboutBefore, AboutLayout, AboutRecipe, AboutWeights},
    compat::{Compat, check_product},
    error,
};
use crate::{
    Engine, EngineError, EngineErrorKind, Mode, Plan,
    container::{Container, SectionKind},
};

/// The engine in a container whose metadata was compared with its digests.
pub(super) fn engine(path: &Path, container: &Container) -> Result<Engine, EngineError> {
    Reader { path, container }.engine()
}

struct Reader<'a> {
    path: &'a Path,
    container: &'a Container,
}

impl Reader<'_> {
    fn malformed(&self, why: impl Into<String>) -> EngineError {
        error(self.path, EngineErrorKind::Malformed(why.into()))
    }

    fn section(&self, kind: SectionKind) -> Result<Buffer, EngineError> {
        self.container.section(kind).map_err(|e| error(self.path, e))
    }

    fn json<T: DeserializeOwned>(&self, kind: SectionKind) -> Result<T, EngineError> {
        let section = self.section(kind)?;
        serde_json::from_slice(section.bytes()).map_err(|e| self.malformed(format!("section `{}`: {e}", kind.name)))
    }

    /// What the file says of itself, whichever version wrote it.
    fn about(&self) -> Result<(Compat, About), EngineError> {
        let product = |found: &str| check_product(found).map_err(|kind| error(self.path, kind));
        if self.container.version() == BEFORE.version {
            let (compat, about) = self.json::<AboutBefore>(ABOUT)?.split();
            product(&compat.product)?;
            return Ok((compat, about));
        }
        // `about` may be of another form when another version wrote it.
        let compat: Compat = self.json(COMPAT)?;
        product(&compat.product)?;
        Ok((compat, self.json(ABOUT)?))
    }

    fn engine(&self) -> Result<Engine, EngineError> {
        let (Compat { mode, target, .. }, about) = self.about()?;
        let graph = self.graph("plan", self.section(PLAN)?.bytes())?;
        let slots = self.layouts(&graph, about.layouts)?;
        let plan = Plan { graph, kernels: about.kernels, slots };
        plan.check().map_err(|kind| error(self.path, kind))?;
        let refit_map = self.refit_map(mode, about.sources, about.twins, about.recipes, &plan)?;
        let sources = self.sources(&refit_map, &about.weights)?;
        let slots = about.slot_offsets.map(|offsets| self.slots(&plan, &offsets)).transpose()?;
        let engine = Engine {
            mode,
            target,
            plan,
            refit_map,
            identical: about.identical,
            digests: about.weights.iter().map(|w| w.digest).collect(),
            files: self.files(&about.weights, &about.files)?,
            sources,
            slots,
            baked: about.baked,
            unverified: None,
        };
        engine.check_weights().map_err(|kind| error(self.path, kind))?;
        Ok(engine)
    }

    fn layouts(&self, graph: &Graph, layouts: Vec<AboutLayout>) -> Result<Vec<SlotLayout>, EngineError> {
        if layouts.len() != graph.sources.len() {
            return Err(self.malformed(format!("{} layouts for {} slots", layouts.len(), graph.sources.len())));
        }
        let layout = |(slot, layout): (&Source, AboutLayout)| {
            let dtype = graph.ty(slot.value).dtype;
            layout.layout(dtype).ok_or_else(|| self.malformed(format!("slot {} does not lie in memory so", slot.name)))
        };
        graph.sources.iter().zip(layouts).map(layout).collect()
    }

    /// The weight file of each source that is kept by reference.
    fn files(&self, weights: &[AboutWeights], files: &[String]) -> Result<Vec<Option<Arc<Path>>>, EngineError> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let files: Vec<Arc<Path>> = files.iter().map(|file| folder.join(file).into()).collect();
        let file = |weights: &AboutWeights| match weights.file {
            None => Ok(None),
            Some(index) => match files.get(index as usize) {
                Some(file) if weights.digest.is_some() => Ok(Some(file.clone())),
                Some(_) => Err(self.malformed("a source in another file without its digest")),
                None => Err(self.malformed(format!("weight file {index} of {}", files.len()))),
            },
        };
        weights.iter().map(file).collect()
    }

    fn graph(&self, what: &str, bytes: &[u8]) -> Result<Graph, EngineError> {
        let text = std::str::from_utf8(bytes).map_err(|_| self.malformed(format!("{what}: no text")))?;
        text::parse(text).map_err(|e| self.malformed(format!("{what}: {e}")))
    }

    fn refit_map(
        &self,
        mode: Mode,
        sources: Vec<SourceInfo>,
        twins: Vec<Twin>,
        recipes: Vec<AboutRecipe>,
        plan: &Plan,
    ) -> Result<RefitMap, EngineError> {
        let mut bytes = Some(0usize);
        for source in &sources {
            let len = Tensor::byte_len(source.dtype, &source.shape)
                .map_err(|e| self.malformed(format!("source {}: {e}", source.name)))?;
            bytes = bytes.and_then(|sum| sum.checked_add(len));
        }
        if bytes.is_none_or(|sum| isize::try_from(sum).is_err()) {
            return Err(self.malformed("its sources are larger than any memory"));
        }
        if mode != Mode::Frozen && recipes.len() != plan.slots.len() {
            return Err(self.malformed(format!("{} recipes for {} slots", recipes.len(), plan.slots.len())));
        }
        if mode == Mode::Frozen && !recipes.is_empty() {
            return Err(self.malformed("a frozen engine with recipes"));
        }
        let section = self.section(RECIPES)?;
        let mut rest = section.bytes();
        if twins.iter().any(|twin| twin.of as usize >= sources.len()) {
            return Err(self.malformed("a use of a source that does not exist"));
        }
        let mut map = RefitMap { sources, twins, recipes: Vec::with_capacity(recipes.len()) };
        for (slot, about) in recipes.into_iter().enumerate() {
            let what = format!("recipe of slot {}", about.slot);
            let (text, after) =
                rest.split_at_checked(about.text_len).ok_or_else(|| self.malformed(format!("{what}: cut short")))?;
            rest = after;
            let graph = self.graph(&what, text)?;
            self.check_recipe(&what, &graph, &about, &map, plan, slot)?;
            let AboutRecipe { slot, sources, uses, format, layout_ops, .. } = about;
            let uses = if uses.is_empty() { sources.clone() } else { uses };
            map.recipes.push(Recipe { slot, graph, sources, uses, format, layout_ops });
        }
        Ok(map)
    }

    /// A recipe must read the sources it names and yield what its slot holds.
    fn check_recipe(
        &self,
        what: &str,
        graph: &Graph,
        about: &AboutRecipe,
        map: &RefitMap,
        plan: &Plan,
        slot: usize,
    ) -> Result<(), EngineError> {
        let reads = graph.sources.len() == about.sources.len()
            && graph.sources.iter().zip(&about.sources).all(|(source, &index)| {
                let ty = graph.ty(source.value);
                map.sources
                    .get(index as usize)
                    .is_some_and(|info| info.dtype == ty.dtype && ty.sizes().as_ref() == Some(&info.shape))
            })
            && (about.uses.is_empty() || about.uses.len() == about.sources.len())
            && about
                .uses
                .iter()
                .zip(&about.sources)
                .all(|(&one, &of)| map.source_of(one as usize) == Some(of as usize));
        let closed =
            graph.inputs.is_empty() && graph.states.is_empty() && graph.symbols.is_empty() && graph.outputs.len() == 1;
        let layout = &plan.slots[slot];
        let yields = closed && {
            let ty = graph.ty(graph.outputs[0].value);
            let slot_ty = plan.graph.ty(plan.graph.sources[slot].value);
            ty.dtype == slot_ty.dtype && ty.sizes().as_ref() == Some(&layout.shape) && about.format == layout.format
        };
        if reads && yields { Ok(()) } else { Err(self.malformed(format!("{what}: does not fit its sources and slot"))) }
    }

    fn sources(&self, map: &RefitMap, weights: &[AboutWeights]) -> Result<Vec<Option<Tensor>>, EngineError> {
        if weights.len() != map.sources.len() {
            return Err(self.malformed("sources and their places differ in number"));
        }
        let section = self.container.optional_section(SOURCES);
        let tensor = |(info, weights): (&SourceInfo, &AboutWeights)| {
            let Some(offset) = weights.offset else { return Ok(None) };
            let section = section.as_ref().ok_or_else(|| self.malformed("sources without their section"))?;
            let part = self.part(section, offset, info.byte_len(), &info.name)?;
            let tensor = Tensor::new(info.dtype, info.shape.clone(), part);
            tensor.map(Some).map_err(|e| self.malformed(format!("source {}: {e}", info.name)))
        };
        map.sources.iter().zip(weights).map(tensor).collect()
    }

    fn slots(&self, plan: &Plan, offsets: &[u64]) -> Result<Vec<Buffer>, EngineError> {
        if offsets.len() != plan.slots.len() {
            return Err(self.malformed("slots and their places differ in number"));
        }
        let section = self.section(SLOTS)?;
        let slot = |(i, offset): (usize, &u64)| self.part(&section, *offset, plan.slots[i].bytes, plan.slot_name(i));
        offsets.iter().enumerate().map(slot).collect()
    }

    fn part(&self, section: &Buffer, offset: u64, len: usize, name: &str) -> Result<Buffer, EngineError> {
        let outside = || self.malformed(format!("`{name}` lies outside of its section"));
        let start = usize::try_from(offset).map_err(|_| outside())?;
        let end = start.checked_add(len).ok_or_else(outside)?;
        section.slice(start..end).ok_or_else(outside)
    }
}
