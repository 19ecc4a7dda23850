//! The section `about`, as this version writes it and as the one before did.

use regraft_backend::{KernelId, SlotLayout, Target};
use regraft_weights::{Digest, PackFormat, SourceInfo};
use serde::{Deserialize, Serialize};

use super::compat::Compat;
use crate::Mode;

#[derive(Serialize, Deserialize)]
pub(super) struct About {
    pub(super) kernels: Vec<KernelId>,
    pub(super) layouts: Vec<SlotLayout>,
    pub(super) sources: Vec<SourceInfo>,
    pub(super) recipes: Vec<AboutRecipe>,
    pub(super) identical: bool,
    /// One per source.
    pub(super) weights: Vec<AboutWeights>,
    /// Weight files that sources are kept in by reference: absolute, or relative to the folder of the engine.
    pub(super) files: Vec<String>,
    /// Offset of each slot in its section, where the engine holds them.
    pub(super) slot_offsets: Option<Vec<u64>>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct AboutRecipe {
    pub(super) slot: String,
    pub(super) sources: Vec<u32>,
    pub(super) format: PackFormat,
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
    layouts: Vec<SlotLayout>,
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
            recipes: self.recipes,
            identical: self.identical.is_some(),
            files: Vec::new(),
            slot_offsets: self.slot_offsets,
        };
        (Compat { product: self.product, target: self.target, mode: self.mode }, about)
    }
}
