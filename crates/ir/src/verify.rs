//! The checks that hold between all passes.

use std::collections::HashSet;

use crate::{Def, Graph, IrError, IrErrorKind, Node, ValueId, ops::broadcast};

impl Graph {
    /// Checks the whole graph: every value is defined once and before its use, every op takes its operands, every
    /// recorded type is what inference finds, names are unique.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(&self) -> Result<(), IrError> {
        self.check_ids()?;
        self.check_leaves()?;
        let mut defined = vec![false; self.value_count()];
        let leaves = (self.inputs.iter().map(|i| i.value))
            .chain(self.sources.iter().map(|s| s.value))
            .chain(self.states.iter().map(|s| s.value));
        leaves.for_each(|v| defined[v.0 as usize] = true);
        for node in self.nodes() {
            if let Some(v) = node.inputs.iter().flatten().find(|v| !defined[v.0 as usize]) {
                return Err(malformed(format!(
                    "{} at `{}` uses %{} before it is made",
                    node.op.name(),
                    node.scope,
                    v.0
                )));
            }
            self.check_node(node)?;
            node.outputs.iter().for_each(|v| defined[v.0 as usize] = true);
        }
        let ends = self.outputs.iter().map(|o| o.value).chain(self.states.iter().map(|s| s.next));
        for v in ends {
            if !defined[v.0 as usize] {
                return Err(malformed(format!("%{} is an output but nothing makes it", v.0)));
            }
        }
        for state in &self.states {
            let (from, to) = (self.ty(state.value), self.ty(state.next));
            if from.dtype != to.dtype || from.shape != to.shape {
                return Err(malformed(format!("state `{}` goes from {from} to {to}", state.name)));
            }
        }
        Ok(())
    }

    fn check_ids(&self) -> Result<(), IrError> {
        let count = self.value_count() as u32;
        let in_nodes = self.nodes().iter().flat_map(|n| n.inputs.iter().flatten().chain(&n.outputs));
        let leaves = (self.inputs.iter().map(|i| &i.value))
            .chain(self.sources.iter().map(|s| &s.value))
            .chain(self.outputs.iter().map(|o| &o.value))
            .chain(self.states.iter().flat_map(|s| [&s.value, &s.next]));
        match in_nodes.chain(leaves).find(|v| v.0 >= count) {
            Some(v) => Err(malformed(format!("%{} does not exist", v.0))),
            None => Ok(()),
        }
    }

    fn check_leaves(&self) -> Result<(), IrError> {
        let expect = |value: ValueId, def: Def| {
            if self.value(value).def == def { Ok(()) } else { Err(malformed(format!("%{} is no {def:?}", value.0))) }
        };
        let mut names = HashSet::new();
        for (i, input) in self.inputs.iter().enumerate() {
            expect(input.value, Def::Input(i as u32))?;
            if !names.insert(input.name.as_str()) {
                return Err(malformed(format!("two inputs are called `{}`", input.name)));
            }
        }
        let mut names = HashSet::new();
        for (i, source) in self.sources.iter().enumerate() {
            expect(source.value, Def::Source(i as u32))?;
            if self.ty(source.value).sizes().is_none() {
                return Err(malformed(format!("source `{}` has a symbolic shape", source.name)));
            }
            let is_twin = |of: u32| {
                let found = self.sources.get(of as usize).filter(|other| (of as usize) < i && other.twin_of.is_none());
                found.is_some_and(|other| self.ty(other.value) == self.ty(source.value))
            };
            let after_twin = i > 0 && self.sources[i - 1].twin_of.is_some();
            if source.twin_of.map_or(after_twin, |of| !is_twin(of)) {
                return Err(malformed(format!(
                    "source `{}` does not stand with its twins, which come last",
                    source.name
                )));
            }
            for name in std::iter::once(&source.name).chain(&source.aliases) {
                if !names.insert(name.as_str()) {
                    return Err(malformed(format!("two sources are called `{name}`")));
                }
            }
        }
        for (i, state) in self.states.iter().enumerate() {
            expect(state.value, Def::State(i as u32))?;
            if state.init as usize >= self.sources.len() {
                return Err(malformed(format!("state `{}` starts from a source that does not exist", state.name)));
            }
        }
        Ok(())
    }

    fn check_node(&self, node: &Node) -> Result<(), IrError> {
        let scope = || node.scope.to_string();
        let types: Vec<_> = node.inputs.iter().map(|v| v.map(|v| self.ty(v))).collect();
        let computed =
            node.op.infer(&types).map_err(|error| IrErrorKind::Node { op: node.op.name(), scope: scope(), error })?;
        if computed.len() != node.outputs.len() {
            return Err(malformed(format!("{} at `{}` has {} results", node.op.name(), scope(), node.outputs.len())));
        }
        for (computed, &value) in computed.into_iter().zip(&node.outputs) {
            let declared = self.ty(value).clone();
            // Symbolic sizes may be written in several ways; only what is surely different is an error.
            let fits = computed.dtype == declared.dtype
                && computed.rank() == declared.rank()
                && broadcast(&computed.shape, &declared.shape).is_ok()
                && computed
                    .shape
                    .iter()
                    .zip(&declared.shape)
                    .all(|(a, b)| a.is(1) == b.is(1) || a.as_const().is_none() || b.as_const().is_none());
            if !fits {
                return Err(IrErrorKind::Type { op: node.op.name(), scope: scope(), computed, declared }.into());
            }
        }
        Ok(())
    }
}

fn malformed(why: String) -> IrError {
    IrErrorKind::Malformed(why).into()
}
