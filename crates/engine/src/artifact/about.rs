//! The section `about`, as this version writes it and as format 1 has it.

use regraft_backend::{FormatId, KernelId, SlotLayout, Target};
use regraft_tensor::{DType, numel};
use regraft_weights::{BakedAdapter, Digest, SourceInfo, Twin};
use serde::{Deserialize, Serialize};

use super::compat::Compat;
use crate::Mode;

#[derive(Serialize, Deserialize)]
pub(super) struct About {
    pub(super) kernels: Vec<KernelId>,
    pub(super) layouts: Vec<AboutLayout>,
    pub(super) sources: Vec<SourceInfo>,
    #[serde(default)]
    pub(super) twins: Vec<Twin>,
    pub(super) recipes: Vec<AboutRecipe>,
    pub(super) identical: bool,
    /// One per source.
    pub(super) weights: Vec<AboutWeights>,
    /// Weight files that sources are kept in by reference: absolute, or relative to the folder of the engine.
    pub(super) files: Vec<String>,
    /// Offset of each slot in its section, where the engine holds them.
    pub(super) slot_offsets: Option<Vec<u64>>,
    /// Adapters that are part of the weights; files of format 1 do not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) baked: Vec<BakedAdapter>,
}

/// How a slot lies in memory.
#[derive(Serialize, Deserialize)]
pub(super) struct AboutLayout {
    pub(super) shape: Vec<usize>,
    pub(super) format: FormatId,
    /// Bytes of the slot; files of format 1 leave it out.
    bytes: Option<usize>,
}

impl AboutLayout {
    pub(super) fn of(layout: &SlotLayout) -> Self {
        AboutLayout { shape: layout.shape.clone(), format: layout.format.clone(), bytes: Some(layout.bytes) }
    }

    /// The layout of a slot of `dtype`; `None` when a file of format 1 has a format or a size that did not exist then.
    pub(super) fn layout(self, dtype: DType) -> Option<SlotLayout> {
        let bytes = match self.bytes {
            Some(bytes) => bytes,
            None => bytes_before(&self.format, dtype, &self.shape)?,
        };
        Some(SlotLayout { shape: self.shape, format: self.format, bytes })
    }
}

/// Bytes of a slot in one of the two formats of the time when files did not say.
fn bytes_before(format: &FormatId, dtype: DType, shape: &[usize]) -> Option<usize> {
    if format.is_plain() {
        return numel(shape)?.checked_mul(dtype.size());
    }
    let nr: usize = format.name().strip_prefix("panels_f32<n")?.strip_suffix('>')?.parse().ok()?;
    let [lead @ .., k, n] = shape else { return None };
    let columns = n.checked_next_multiple_of(nr)?;
    numel(lead)?.checked_mul(columns)?.checked_mul(*k)?.checked_mul(4)
}

#[derive(Serialize, Deserialize)]
pub(super) struct AboutRecipe {
    pub(super) slot: String,
    pub(super) sources: Vec<u32>,
    /// Where they are not the sources themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) uses: Vec<u32>,
    pub(super) format: FormatId,
    pub(super) layout_ops: usize,
    /// Bytes of the graph's text.
    pub(super) text_len: usize,
}

/// What the file knows of a source's content.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct AboutWeights {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<Digest>,
    /// Offset in the section of sources, where the file holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) offset: Option<u64>,
    /// The weight file it is kept in, as index into `files`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<u32>,
}

/// The section `about` of format 1.
#[derive(Deserialize)]
pub(super) struct AboutBefore {
    product: String,
    target: Target,
    mode: Mode,
    kernels: Vec<KernelId>,
    layouts: Vec<AboutLayout>,
    sources: Vec<SourceInfo>,
    recipes: Vec<AboutRecipe>,
    identical: Option<Vec<[u8; 32]>>,
    source_offsets: Vec<Option<u64>>,
    slot_offsets: Option<Vec<u64>>,
}

impl AboutBefore {
    /// The same in today's sections.
    pub(super) fn split(self) -> (Compat, About) {
        let mut digests = self.identical.clone().unwrap_or_default().into_iter();
        let weights = self.source_offsets.into_iter().map(|offset| AboutWeights {
            digest: digests.next().map(Digest::from_bytes),
            offset,
            file: None,
        });
        let about = About {
            weights: weights.collect(),
            kernels: self.kernels,
            layouts: self.layouts,
            sources: self.sources,
            twins: Vec::new(),
            recipes: self.recipes,
            identical: self.identical.is_some(),
            files: Vec::new(),
            slot_offsets: self.slot_offsets,
            baked: Vec::new(),
        };
        (Compat { product: self.product, target: self.target, mode: self.mode }, about)
    }
}
