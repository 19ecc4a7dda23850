//! Whether results share memory with arguments, as far as strides tell.

use regraft_tensor::Dim;

use crate::pt2::{
    args::{Cx, row_major},
    schema::{Argument, SymInt},
};

/// Whether the result of an op shares memory with its first argument.
pub(super) enum Sharing {
    /// It is the same tensor.
    Same,
    View,
    None,
    Unclear,
}

impl Cx<'_, '_> {
    /// Whether the program lays its first argument out in memory as a dense row-major tensor at the start of its storage.
    pub(crate) fn first_is_row_major(&self) -> bool {
        self.first_name().ok().and_then(|f| self.t.meta(f)).is_some_and(|meta| {
            let parts = self.known_dims(&meta.sizes).zip(self.known_dims(&meta.strides));
            meta.storage_offset == SymInt::Int(0) && parts.is_some_and(|(sizes, strides)| row_major(&sizes, &strides))
        })
    }

    /// What the strides in the program tell about the result of `reshape`, `contiguous`, `to`.
    pub(super) fn sharing(&self, names: &[&str]) -> Sharing {
        let metas = self.first_name().ok().and_then(|f| self.t.meta(f)).zip(names.first().and_then(|n| self.t.meta(n)));
        let Some((from, to)) = metas else { return Sharing::Unclear };
        if from.dtype != to.dtype || from.device != to.device || matches!(self.arg("copy"), Some(Argument::Bool(true)))
        {
            return Sharing::None;
        }
        let (Some(sizes), Some(strides)) = (self.known_dims(&from.sizes), self.known_dims(&from.strides)) else {
            return Sharing::Unclear;
        };
        let (Some(to_sizes), Some(to_strides)) = (self.known_dims(&to.sizes), self.known_dims(&to.strides)) else {
            return Sharing::Unclear;
        };
        if sizes.len() != strides.len() {
            return Sharing::Unclear;
        }
        if sizes == to_sizes {
            if strides == to_strides {
                return Sharing::Same;
            }
            // Strides that differ where they matter are those of a copy.
            let ends = |d: &Dim| self.bounds(d);
            let copied = sizes.iter().zip(strides.iter().zip(&to_strides)).any(|(size, (a, b))| {
                let difference = ends(&(a - b));
                ends(size).min >= 2 && (difference.min > 0 || difference.max < 0)
            });
            return if copied { Sharing::None } else { Sharing::Unclear };
        }
        if !row_major(&sizes, &strides) {
            return Sharing::Unclear;
        }
        // A contiguous tensor is seen under another shape without a copy.
        Sharing::View
    }

    /// Sizes or strides of the program as expressions, when all can be read.
    fn known_dims(&self, list: &[SymInt]) -> Option<Vec<Dim>> {
        list.iter().map(|d| self.t.archive.symbols.dim(d).ok()).collect()
    }
}
