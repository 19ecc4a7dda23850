//! From an engine to the sections of its file.

use std::{
    io::{Seek, Write},
    path::Path,
    sync::Arc,
};

use regraft_ir::text;
use regraft_tensor::Tensor;
use regraft_weights::{Digest, Recipe};
use serde::Serialize;

use super::{
    ABOUT, COMPAT, PLAN, RECIPES, SLOTS, SOURCES,
    about::{About, AboutLayout, AboutRecipe, AboutWeights},
    compat::{Compat, PRODUCT},
};
use crate::{Engine, EngineErrorKind, container::ContainerWriter};

/// Writes all sections; references to files in `folder` become relative to it.
pub(super) fn engine<W: Write + Seek>(
    engine: &Engine,
    writer: &mut ContainerWriter<W>,
    folder: Option<&Path>,
) -> Result<(), EngineErrorKind> {
    let compat = Compat { product: PRODUCT.to_owned(), target: engine.target.clone(), mode: engine.mode };
    writer.section(COMPAT, &json(&compat))?;
    let held: Vec<&Tensor> = engine.sources.iter().flatten().collect();
    let offsets = match held.is_empty() {
        true => Vec::new(),
        false => writer.chunked_section(SOURCES, held.iter().map(|t| Ok(t.bytes())))?,
    };
    let slot_offsets = match &engine.slots {
        Some(slots) => Some(writer.chunked_section(SLOTS, slots.iter().map(|s| Ok(s.bytes())))?),
        None => None,
    };
    let texts: Vec<String> = engine.refit_map.recipes.iter().map(|r| text::print(&r.graph)).collect();
    let about = about(engine, &texts, offsets, slot_offsets, folder)?;
    writer.section(ABOUT, &json(&about))?;
    writer.section(PLAN, text::print(&engine.plan.graph).as_bytes())?;
    writer.section(RECIPES, texts.concat().as_bytes())?;
    Ok(())
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("names and numbers can be written as JSON")
}

fn about(
    engine: &Engine,
    texts: &[String],
    offsets: Vec<u64>,
    slot_offsets: Option<Vec<u64>>,
    folder: Option<&Path>,
) -> Result<About, EngineErrorKind> {
    let mut files: Vec<&Arc<Path>> = engine.files.iter().flatten().collect();
    files.sort();
    files.dedup();
    let mut offsets = offsets.into_iter();
    let weights = (0..engine.sources.len()).map(|i| {
        let tensor = engine.sources[i].as_ref();
        AboutWeights {
            digest: engine.digests[i].or_else(|| tensor.map(Digest::of)),
            offset: tensor.and_then(|_| offsets.next()),
            file: engine.files[i].as_ref().and_then(|file| files.binary_search(&file).ok()).map(|file| file as u32),
        }
    });
    let recipe = |(r, text): (&Recipe, &String)| AboutRecipe {
        slot: r.slot.clone(),
        sources: r.sources.clone(),
        uses: if r.uses == r.sources { Vec::new() } else { r.uses.clone() },
        format: r.format.clone(),
        layout_ops: r.layout_ops,
        text_len: text.len(),
    };
    Ok(About {
        kernels: engine.plan.kernels.clone(),
        layouts: engine.plan.slots.iter().map(AboutLayout::of).collect(),
        sources: engine.refit_map.sources.clone(),
        twins: engine.refit_map.twins.clone(),
        recipes: engine.refit_map.recipes.iter().zip(texts).map(recipe).collect(),
        identical: engine.identical,
        weights: weights.collect(),
        files: files.into_iter().map(|file| stored_path(file, folder)).collect::<Result<_, _>>()?,
        slot_offsets,
        baked: engine.baked.clone(),
    })
}

/// The path as it is stored: relative when the file lies beside the engine or deeper, so that both can be moved together.
fn stored_path(file: &Path, folder: Option<&Path>) -> Result<String, EngineErrorKind> {
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_path_buf());
    let stored = folder.and_then(|folder| absolute.strip_prefix(folder).ok()).unwrap_or(&absolute);
    let text = stored.to_str().map(str::to_owned);
    text.ok_or_else(|| EngineErrorKind::ReferencePath { path: file.to_path_buf() })
}
