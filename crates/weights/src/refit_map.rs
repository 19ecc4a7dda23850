use std::collections::HashMap;

use regraft_ir::{Source, SourceKind, TensorType};
use regraft_tensor::DType;
use serde::{Deserialize, Serialize};

use crate::Recipe;

/// A source of an engine: what a state dict must bring for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceInfo {
    /// Fully qualified name, as `state_dict()` spells it.
    pub name: String,
    /// Other names of the same tensor (tied weights).
    pub aliases: Vec<String>,
    /// What it was in the original model.
    pub kind: SourceKind,
    /// Element type in the program.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
}

impl SourceInfo {
    /// The facts about a source of a program; `ty` is the type of its value.
    ///
    /// # Panics
    /// When the type is symbolic, which the verifier rules out.
    pub fn new(source: &Source, ty: &TensorType) -> Self {
        SourceInfo {
            name: source.name.clone(),
            aliases: source.aliases.clone(),
            kind: source.kind,
            dtype: ty.dtype,
            shape: ty.sizes().expect("the verifier checked that sources have known sizes"),
        }
    }

    /// Its name, then its other names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.name).chain(&self.aliases).map(String::as_str)
    }

    /// Bytes of the tensor.
    pub fn byte_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }

    /// Name and type, `f32[768, 768]`.
    pub fn type_text(&self) -> String {
        format!("{}{:?}", self.dtype, self.shape)
    }
}

/// All recipes of an engine: which slot is computed from which sources, and how.
#[derive(Clone, Debug, Default)]
pub struct RefitMap {
    /// The sources of the model.
    pub sources: Vec<SourceInfo>,
    /// One recipe per slot.
    pub recipes: Vec<Recipe>,
}

impl RefitMap {
    /// The slots that depend on each source.
    pub fn slots_by_source(&self) -> Vec<Vec<usize>> {
        let mut slots = vec![Vec::new(); self.sources.len()];
        for (slot, recipe) in self.recipes.iter().enumerate() {
            for &source in &recipe.sources {
                slots[source as usize].push(slot);
            }
        }
        slots
    }

    /// The index of the source with each name, aliases included.
    pub fn by_name(&self) -> HashMap<&str, usize> {
        (self.sources.iter().enumerate()).flat_map(|(i, s)| s.names().map(move |n| (n, i))).collect()
    }
}
