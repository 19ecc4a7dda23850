//! Memory of the program: which tensors share it, and what it holds.

use std::sync::Arc;

use regraft_ir::{Op, SourceKind, ValueId};

use super::Translator;
use crate::pt2::args::{DECOMPOSE, Problem, Res, unsupported, wrong};

/// A tensor of the program: memory, seen in one way.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) value: ValueId,
    pub(super) storage: usize,
    pub(super) view: View,
    /// The version of the storage that `value` shows.
    pub(super) version: u32,
}

/// How a tensor relates to the base of its storage.
#[derive(Clone, Debug)]
pub(super) enum View {
    /// The base itself.
    Base,
    /// The base seen through these ops.
    Through(Arc<[Op]>),
    /// A view or a copy; which, is not known.
    Unclear,
}

/// Memory that one or more tensors of the program see.
#[derive(Debug)]
pub(super) struct Storage {
    pub(super) base: usize,
    pub(super) origin: Origin,
    pub(super) version: u32,
    /// Whether something was written that did not find its way into the base.
    pub(super) lost: bool,
}

/// Where memory comes from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    Input(String),
    Source(u32, SourceKind),
    Computed,
}

impl Translator<'_> {
    pub(super) fn new_storage(&mut self, value: ValueId, origin: Origin) -> usize {
        let cell = self.cells.len();
        self.cells.push(Cell { value, storage: self.storages.len(), view: View::Base, version: 0 });
        self.storages.push(Storage { base: cell, origin, version: 0, lost: false });
        cell
    }

    pub(super) fn cell_parts(&self, cell: usize) -> Res<(&Cell, &Storage)> {
        self.cells
            .get(cell)
            .and_then(|c| Some((c, self.storages.get(c.storage)?)))
            .map_or_else(|| wrong("a tensor is not known"), Ok)
    }

    pub(super) fn read_cell(&mut self, cell: usize, scope: &Arc<str>) -> Res<ValueId> {
        let (c, s) = self.cell_parts(cell)?;
        let (version, base) = (s.version, s.base);
        if c.version == version {
            return Ok(c.value);
        }
        if s.lost {
            return Err(lost());
        }
        let value = match &c.view {
            View::Base => return Ok(c.value),
            View::Unclear => return Err(lost()),
            View::Through(chain) => {
                let chain = chain.clone();
                let mut value = self.cell_parts(base)?.0.value;
                for op in chain.iter() {
                    value = self.b.add_one(op.clone(), &[value], scope)?;
                }
                value
            }
        };
        if let Some(c) = self.cells.get_mut(cell) {
            (c.value, c.version) = (value, version);
        }
        Ok(value)
    }

    /// A tensor that sees the memory of `of`; `sure` says whether it is known to share it.
    pub(super) fn view_of(&mut self, of: usize, value: ValueId, sure: bool) -> Res<usize> {
        let (parent, storage) = self.cell_parts(of)?;
        let (index, version) = (parent.storage, storage.version);
        let before: &[Op] = match &parent.view {
            View::Base | View::Unclear => &[],
            View::Through(chain) => chain,
        };
        let view = match self.chain(parent.value, value) {
            Some(chain) if sure && !matches!(parent.view, View::Unclear) => {
                View::Through(before.iter().chain(chain.iter()).cloned().collect())
            }
            _ => View::Unclear,
        };
        self.cells.push(Cell { value, storage: index, view, version });
        Ok(self.cells.len() - 1)
    }

    /// The ops that make `value` from `base`, when each moves elements of one operand only.
    fn chain(&self, base: ValueId, value: ValueId) -> Option<Arc<[Op]>> {
        let (mut ops, mut at) = (Vec::new(), value);
        while at != base {
            let node = self.b.graph.node(self.b.graph.producer(at)?);
            let moves = matches!(node.op, Op::Reshape(_) | Op::Permute(_) | Op::Slice(_) | Op::Expand(_));
            let [Some(from)] = node.inputs.as_slice() else { return None };
            if !moves || ops.len() > 256 {
                return None;
            }
            ops.push(node.op.clone());
            at = *from;
        }
        ops.reverse();
        Some(ops.into())
    }

    /// Writes `value`, of the type of the tensor `cell`, to its memory.
    pub(super) fn write(&mut self, cell: usize, value: ValueId, scope: &Arc<str>) -> Res<()> {
        let (c, s) = self.cell_parts(cell)?;
        match &s.origin {
            Origin::Source(source, SourceKind::Parameter | SourceKind::Constant) => {
                let name = self.b.graph.sources.get(*source as usize).map_or("", |s| &s.name);
                let what = format!("writing to `{name}`, which is not a buffer");
                let help = "register it with register_buffer(); if it is a buffer already that an object beside the modules \
                            has, too, export with strict=True";
                return unsupported(what, help);
            }
            Origin::Input(_) | Origin::Source(..) | Origin::Computed => {}
        }
        let (storage, base, view) = (c.storage, s.base, c.view.clone());
        if s.lost {
            return Err(lost());
        }
        let new_base = match view {
            View::Base => Some(value),
            View::Through(chain) => {
                let old = self.cell_parts(base)?.0.value;
                Some(self.write_through(&chain, old, value, scope)?)
            }
            View::Unclear => None,
        };
        let version = match self.storages.get_mut(storage) {
            Some(s) => {
                s.version += 1;
                s.lost = new_base.is_none();
                s.version
            }
            None => return wrong("a tensor is not known"),
        };
        for (at, value) in [(base, new_base), (cell, Some(value))] {
            if let (Some(c), Some(value)) = (self.cells.get_mut(at), value) {
                (c.value, c.version) = (value, version);
            }
        }
        Ok(())
    }
}

/// The error of a read whose result is not known.
pub(super) fn lost() -> Problem {
    Problem::Unsupported {
        what: "reading a tensor after something was written in place to memory that it may share".to_owned(),
        help: DECOMPOSE.to_owned(),
    }
}
