//! The checks that hold between all passes.
//!
//! 1. Every value that is named exists, and is defined once, by what its definition says.
//! 2. Inputs have names of their own; so have sources, aliases included.
//! 3. Sources have known sizes; twins of sources come last.
//! 4. A node uses only values that were made before it.
//! 5. A node's op takes its operands, and the types on record are those that inference finds. Symbolic sizes may be written in
//!    several ways: only what is surely different is an error.
//! 6. What leaves the graph is made by it.
//! 7. A state starts from a source, and its next value has its type.

use std::collections::HashSet;

use crate::{Def, Graph, IrError, IrErrorKind, Node, ValueId, ops::broadcast};

/// More errors than these do not help.
const MOST: usize = 32;

impl Graph {
    /// Checks the whole graph: see the invariants above.
    ///
    /// # Errors
    /// Everything that does not hold; several things are one [`IrErrorKind::Several`]. Nodes are not looked at while values are
    /// named that do not exist.
    pub fn verify(&self) -> Result<(), IrError> {
        let mut found = Found::default();
        self.check_ids(&mut found);
        if found.errors.is_empty() {
            self.check_leaves(&mut found);
            self.check_nodes(&mut found);
            self.check_states(&mut found);
        }
        found.finish()
    }

    fn check_ids(&self, found: &mut Found) {
        let count = self.value_count() as u32;
        let in_nodes = self.nodes().iter().flat_map(|n| n.inputs.iter().flatten().chain(&n.outputs));
        let leaves = (self.inputs.iter().map(|i| &i.value))
            .chain(self.sources.iter().map(|s| &s.value))
            .chain(self.outputs.iter().map(|o| &o.value))
            .chain(self.states.iter().flat_map(|s| [&s.value, &s.next]));
        for value in in_nodes.chain(leaves).filter(|v| v.0 >= count) {
            found.malformed(format!("%{} does not exist", value.0));
        }
        for state in self.states.iter().filter(|state| state.init as usize >= self.sources.len()) {
            found.malformed(format!("state `{}` starts from a source that does not exist", state.name));
        }
    }

    fn check_leaves(&self, found: &mut Found) {
        let mut expect = |value: ValueId, def: Def| {
            if self.value(value).def != def {
                found.malformed(format!("%{} is not defined as {def:?}", value.0));
            }
        };
        self.inputs.iter().enumerate().for_each(|(i, input)| expect(input.value, Def::Input(i as u32)));
        self.sources.iter().enumerate().for_each(|(i, source)| expect(source.value, Def::Source(i as u32)));
        self.states.iter().enumerate().for_each(|(i, state)| expect(state.value, Def::State(i as u32)));
        let mut names = HashSet::new();
        for input in self.inputs.iter().filter(|input| !names.insert(input.name.as_str())) {
            found.malformed(format!("two inputs are called `{}`", input.name));
        }
        let mut names = HashSet::new();
        for (i, source) in self.sources.iter().enumerate() {
            if self.ty(source.value).sizes().is_none() {
                found.malformed(format!("source `{}` has a symbolic shape", source.name));
            }
            if !self.stands_with_its_twins(i) {
                found.malformed(format!("source `{}` does not stand with its twins, which come last", source.name));
            }
            for name in std::iter::once(&source.name).chain(&source.aliases) {
                if !names.insert(name.as_str()) {
                    found.malformed(format!("two sources are called `{name}`"));
                }
            }
        }
    }

    /// Twins come last, and are of the type of a source before them that is itself no twin.
    fn stands_with_its_twins(&self, index: usize) -> bool {
        let source = &self.sources[index];
        let Some(of) = source.twin_of else { return index == 0 || self.sources[index - 1].twin_of.is_none() };
        let other = self.sources.get(of as usize).filter(|other| (of as usize) < index && other.twin_of.is_none());
        other.is_some_and(|other| self.ty(other.value) == self.ty(source.value))
    }

    fn check_nodes(&self, found: &mut Found) {
        let mut defined = vec![false; self.value_count()];
        let leaves = (self.inputs.iter().map(|i| i.value))
            .chain(self.sources.iter().map(|s| s.value))
            .chain(self.states.iter().map(|s| s.value));
        leaves.for_each(|v| defined[v.0 as usize] = true);
        for node in self.nodes() {
            for v in node.inputs.iter().flatten().filter(|v| !defined[v.0 as usize]) {
                found.malformed(format!("{} at `{}` uses %{} before it is made", node.op.name(), node.scope, v.0));
            }
            self.check_node(node, found);
            node.outputs.iter().for_each(|v| defined[v.0 as usize] = true);
        }
        let ends = self.outputs.iter().map(|o| o.value).chain(self.states.iter().map(|s| s.next));
        for v in ends.filter(|v| !defined[v.0 as usize]) {
            found.malformed(format!("%{} is an output but nothing makes it", v.0));
        }
    }

    fn check_states(&self, found: &mut Found) {
        for state in &self.states {
            let (from, to) = (self.ty(state.value), self.ty(state.next));
            if from.dtype != to.dtype || from.shape != to.shape {
                found.malformed(format!("state `{}` goes from {from} to {to}", state.name));
            }
        }
    }

    fn check_node(&self, node: &Node, found: &mut Found) {
        let (op, scope) = (node.op.name(), || node.scope.to_string());
        let types: Vec<_> = node.inputs.iter().map(|v| v.map(|v| self.ty(v))).collect();
        let computed = match node.op.infer(&types) {
            Ok(computed) => computed,
            Err(error) => return found.add(IrErrorKind::Node { op, scope: scope(), error }),
        };
        if computed.len() != node.outputs.len() {
            return found.malformed(format!("{op} at `{}` has {} results", scope(), node.outputs.len()));
        }
        for (computed, &value) in computed.into_iter().zip(&node.outputs) {
            let declared = self.ty(value).clone();
            let fits = computed.dtype == declared.dtype
                && computed.rank() == declared.rank()
                && broadcast(&computed.shape, &declared.shape).is_ok()
                && computed
                    .shape
                    .iter()
                    .zip(&declared.shape)
                    .all(|(a, b)| a.is(1) == b.is(1) || a.as_const().is_none() || b.as_const().is_none());
            if !fits {
                found.add(IrErrorKind::Type { op, scope: scope(), computed, declared });
            }
        }
    }
}

/// What was found so far.
#[derive(Default)]
struct Found {
    errors: Vec<IrError>,
    /// Errors beyond those that are kept.
    more: usize,
}

impl Found {
    fn add(&mut self, error: IrErrorKind) {
        if self.errors.len() < MOST {
            self.errors.push(error.into());
        } else {
            self.more += 1;
        }
    }

    fn malformed(&mut self, why: String) {
        self.add(IrErrorKind::Malformed(why));
    }

    fn finish(mut self) -> Result<(), IrError> {
        match self.errors.len() {
            0 => Ok(()),
            1 => Err(self.errors.remove(0)),
            _ => Err(IrErrorKind::Several { errors: self.errors, more: self.more }.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use regraft_tensor::DType;

    use super::*;
    use crate::{SourceKind, TensorType, text};

    #[test]
    fn everything_that_is_wrong_is_found_at_once() {
        let mut graph = Graph::new("g");
        let ty = TensorType::of_sizes(DType::F32, &[2, 3]);
        let x = graph.add_input("x", ty.clone());
        graph.add_input("x", ty.clone());
        graph.add_source("w", SourceKind::Parameter, ty.clone());
        graph.add_source("w", SourceKind::Parameter, ty);
        graph.add_output("y", x);
        let error = graph.verify().expect_err("two names are given twice").to_string();
        assert!(error.contains("two inputs are called `x`") && error.contains("two sources are called `w`"), "{error}");
    }

    #[test]
    fn a_value_that_does_not_exist_is_found_first() {
        let mut graph = Graph::new("g");
        graph.add_output("y", ValueId(7));
        let error = graph.verify().expect_err("there are no values").to_string();
        assert!(error.contains("%7 does not exist"), "{error}");
    }

    #[test]
    fn errors_have_an_end() {
        let lines: String = (0..60).map(|_| "  input %0 : f32[1] = \"x\"\n").collect();
        assert!(text::parse(&format!("program \"g\" {{\n{lines}}}")).is_err());
        let mut graph = Graph::new("g");
        for _ in 0..60 {
            graph.add_input("x", TensorType::of_sizes(DType::F32, &[1]));
        }
        let error = graph.verify().expect_err("names are given twice").to_string();
        assert!(error.ends_with("and 27 more"), "{error}");
    }
}
