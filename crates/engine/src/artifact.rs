//! The `.rgf` file: an [`Engine`] in a [`container`](crate::container).
//!
//! | section | what |
//! |---|---|
//! | `about` | JSON: product version, target, mode, kernels, layouts, sources, recipes, where weights lie |
//! | `plan` | the plan's graph in text form |
//! | `recipes` | the recipes' graphs in text form, one after the other |
//! | `sources` | the sources that the engine holds, each on a cache line |
//! | `slots` | the packed slots of a frozen engine |
//!
//! Graphs are text because the text form is verified as it is read, bounded in depth, and can be looked at.

use std::path::Path;

use regraft_backend::{KernelId, SlotLayout, Target};
use regraft_ir::{Graph, text};
use regraft_tensor::{Buffer, Tensor};
use regraft_weights::{Digest, PackFormat, Recipe, RefitMap, SourceInfo};
use serde::{Deserialize, Serialize};

use crate::{
    Engine, EngineError, EngineErrorKind, Mode, Plan,
    container::{Container, ContainerError, ContainerWriter, Format, SectionClass, SectionKind, Verify},
};

const ABOUT: SectionKind = SectionKind { id: 1, name: "about", class: SectionClass::Metadata };
const PLAN: SectionKind = SectionKind { id: 2, name: "plan", class: SectionClass::Metadata };
const RECIPES: SectionKind = SectionKind { id: 3, name: "recipes", class: SectionClass::Metadata };
const SOURCES: SectionKind = SectionKind { id: 4, name: "sources", class: SectionClass::Weights };
const SLOTS: SectionKind = SectionKind { id: 5, name: "slots", class: SectionClass::Weights };

/// The version of Regraft: kernels are named by ids of one version.
const PRODUCT: &str = env!("CARGO_PKG_VERSION");

/// The current version of engine files.
static FORMAT: Format = Format { version: 1, sections: &[ABOUT, PLAN, RECIPES, SOURCES, SLOTS] };

#[derive(Serialize, Deserialize)]
struct About {
    product: String,
    target: Target,
    mode: Mode,
    kernels: Vec<KernelId>,
    layouts: Vec<SlotLayout>,
    sources: Vec<SourceInfo>,
    recipes: Vec<AboutRecipe>,
    identical: Option<Vec<Digest>>,
    /// Offset of each source in its section, where the engine holds it.
    source_offsets: Vec<Option<u64>>,
    /// Offset of each slot in its section, in a frozen engine.
    slot_offsets: Option<Vec<u64>>,
}

#[derive(Serialize, Deserialize)]
struct AboutRecipe {
    slot: String,
    sources: Vec<u32>,
    format: PackFormat,
    layout_ops: usize,
    /// Bytes of the graph's text.
    text_len: usize,
}

impl Engine {
    /// Writes the engine to `path`, which is replaced in one step once all is on the disk. Returns the bytes written.
    ///
    /// # Errors
    /// When the file cannot be written; whatever was at `path` is still there then.
    pub fn write(&self, path: &Path) -> Result<u64, EngineError> {
        self.write_container(path).map_err(|e| error(path, e))
    }

    fn write_container(&self, path: &Path) -> Result<u64, ContainerError> {
        let mut writer = ContainerWriter::create(path, &FORMAT)?;
        let held: Vec<&Tensor> = self.sources.iter().flatten().collect();
        let mut offsets = writer.chunked_section(SOURCES, held.iter().map(|t| Ok(t.bytes())))?.into_iter();
        let source_offsets = self.sources.iter().map(|t| t.as_ref().and_then(|_| offsets.next())).collect();
        let slot_offsets = match &self.slots {
            Some(slots) => Some(writer.chunked_section(SLOTS, slots.iter().map(|s| Ok(s.bytes())))?),
            None => None,
        };
        let texts: Vec<String> = self.refit_map.recipes.iter().map(|r| text::print(&r.graph)).collect();
        let about = self.about(&texts, source_offsets, slot_offsets);
        let about = serde_json::to_vec(&about).expect("names and numbers can be written as JSON");
        writer.section(ABOUT, &about)?;
        writer.section(PLAN, text::print(&self.plan.graph).as_bytes())?;
        writer.section(RECIPES, texts.concat().as_bytes())?;
        writer.finish()
    }

    fn about(&self, texts: &[String], source_offsets: Vec<Option<u64>>, slot_offsets: Option<Vec<u64>>) -> About {
        let recipe = |(r, text): (&Recipe, &String)| AboutRecipe {
            slot: r.slot.clone(),
            sources: r.sources.clone(),
            format: r.format,
            layout_ops: r.layout_ops,
            text_len: text.len(),
        };
        About {
            product: PRODUCT.to_owned(),
            target: self.target.clone(),
            mode: self.mode,
            kernels: self.plan.kernels.clone(),
            layouts: self.plan.slots.clone(),
            sources: self.refit_map.sources.clone(),
            recipes: self.refit_map.recipes.iter().zip(texts).map(recipe).collect(),
            identical: self.identical.clone(),
            source_offsets,
            slot_offsets,
        }
    }

    /// Reads the engine at `path`. Every byte is verified; weights are mapped, not copied.
    ///
    /// # Errors
    /// When the file cannot be read, is no engine of this version, or is damaged or malformed.
    pub fn read(path: &Path) -> Result<Engine, EngineError> {
        let container = Container::open(path, &FORMAT, Verify::All).map_err(|e| error(path, e))?;
        let reader = Reader { path, container };
        reader.engine()
    }
}

fn error(path: &Path, kind: impl Into<EngineErrorKind>) -> EngineError {
    EngineError { path: path.to_path_buf(), kind: kind.into() }
}

struct Reader<'a> {
    path: &'a Path,
    container: Container,
}

impl Reader<'_> {
    fn malformed(&self, why: impl Into<String>) -> EngineError {
        error(self.path, EngineErrorKind::Malformed(why.into()))
    }

    fn section(&self, kind: SectionKind) -> Result<Buffer, EngineError> {
        self.container.section(kind).map_err(|e| error(self.path, e))
    }

    fn engine(&self) -> Result<Engine, EngineError> {
        let about = self.section(ABOUT)?;
        let about: About =
            serde_json::from_slice(about.bytes()).map_err(|e| self.malformed(format!("section `about`: {e}")))?;
        if about.product != PRODUCT {
            return Err(error(self.path, EngineErrorKind::Product { expected: PRODUCT, found: about.product }));
        }
        let graph = self.graph("plan", self.section(PLAN)?.bytes())?;
        let plan = Plan { graph, kernels: about.kernels, slots: about.layouts };
        plan.check().map_err(|kind| error(self.path, kind))?;
        let refit_map = self.refit_map(about.mode, about.sources, about.recipes, &plan)?;
        let sources = self.sources(&refit_map, &about.source_offsets)?;
        let slots = about.slot_offsets.map(|offsets| self.slots(&plan, &offsets)).transpose()?;
        let wrong_digests = about.identical.as_ref().is_some_and(|d| d.len() != refit_map.sources.len());
        let unready = match about.mode {
            Mode::Frozen => slots.is_none(),
            // What no slot is made of may be absent.
            Mode::Refittable => {
                let used = refit_map.slots_by_source();
                used.iter().zip(&sources).any(|(slots, tensor)| !slots.is_empty() && tensor.is_none())
            }
            Mode::Stripped => false,
        };
        if wrong_digests || unready {
            return Err(self.malformed(format!("a {} engine without what it needs", about.mode)));
        }
        Ok(Engine {
            mode: about.mode,
            target: about.target,
            plan,
            refit_map,
            identical: about.identical,
            sources,
            slots,
        })
    }

    fn graph(&self, what: &str, bytes: &[u8]) -> Result<Graph, EngineError> {
        let text = std::str::from_utf8(bytes).map_err(|_| self.malformed(format!("{what}: no text")))?;
        text::parse(text).map_err(|e| self.malformed(format!("{what}: {e}")))
    }

    fn refit_map(
        &self,
        mode: Mode,
        sources: Vec<SourceInfo>,
        recipes: Vec<AboutRecipe>,
        plan: &Plan,
    ) -> Result<RefitMap, EngineError> {
        for source in &sources {
            Tensor::byte_len(source.dtype, &source.shape)
                .map_err(|e| self.malformed(format!("source {}: {e}", source.name)))?;
        }
        if mode != Mode::Frozen && recipes.len() != plan.slots.len() {
            return Err(self.malformed(format!("{} recipes for {} slots", recipes.len(), plan.slots.len())));
        }
        if mode == Mode::Frozen && !recipes.is_empty() {
            return Err(self.malformed("a frozen engine with recipes"));
        }
        let section = self.section(RECIPES)?;
        let mut rest = section.bytes();
        let mut made = Vec::with_capacity(recipes.len());
        for (slot, about) in recipes.into_iter().enumerate() {
            let what = format!("recipe of slot {}", about.slot);
            let (text, after) =
                rest.split_at_checked(about.text_len).ok_or_else(|| self.malformed(format!("{what}: cut short")))?;
            rest = after;
            let graph = self.graph(&what, text)?;
            self.check_recipe(&what, &graph, &about, &sources, plan, slot)?;
            made.push(Recipe::new(about.slot, graph, about.sources, about.format, about.layout_ops));
        }
        Ok(RefitMap { sources, recipes: made })
    }

    /// A recipe must read the sources it names and yield what its slot holds.
    fn check_recipe(
        &self,
        what: &str,
        graph: &Graph,
        about: &AboutRecipe,
        sources: &[SourceInfo],
        plan: &Plan,
        slot: usize,
    ) -> Result<(), EngineError> {
        let reads = graph.sources.len() == about.sources.len()
            && graph.sources.iter().zip(&about.sources).all(|(source, &index)| {
                let ty = graph.ty(source.value);
                sources
                    .get(index as usize)
                    .is_some_and(|info| info.dtype == ty.dtype && ty.sizes().as_ref() == Some(&info.shape))
            });
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

    fn sources(&self, map: &RefitMap, offsets: &[Option<u64>]) -> Result<Vec<Option<Tensor>>, EngineError> {
        if offsets.len() != map.sources.len() {
            return Err(self.malformed("sources and their places differ in number"));
        }
        let section = self.section(SOURCES)?;
        let tensor = |(info, offset): (&SourceInfo, &Option<u64>)| {
            let Some(offset) = offset else { return Ok(None) };
            let part = self.part(&section, *offset, info.byte_len(), &info.name)?;
            let tensor = Tensor::new(info.dtype, info.shape.clone(), part);
            tensor.map(Some).map_err(|e| self.malformed(format!("source {}: {e}", info.name)))
        };
        map.sources.iter().zip(offsets).map(tensor).collect()
    }

    fn slots(&self, plan: &Plan, offsets: &[u64]) -> Result<Vec<Buffer>, EngineError> {
        if offsets.len() != plan.slots.len() {
            return Err(self.malformed("slots and their places differ in number"));
        }
        let section = self.section(SLOTS)?;
        let slot = |(i, offset): (usize, &u64)| self.part(&section, *offset, plan.slot_bytes(i), plan.slot_name(i));
        offsets.iter().enumerate().map(slot).collect()
    }

    fn part(&self, section: &Buffer, offset: u64, len: usize, name: &str) -> Result<Buffer, EngineError> {
        let outside = || self.malformed(format!("`{name}` lies outside of its section"));
        let start = usize::try_from(offset).map_err(|_| outside())?;
        let end = start.checked_add(len).ok_or_else(outside)?;
        section.slice(start..end).ok_or_else(outside)
    }
}
