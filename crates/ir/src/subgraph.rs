use crate::{Def, Graph, IrError, ValueId};

/// The subgraph that computes one value from sources.
#[derive(Clone, Debug)]
pub struct Subgraph {
    /// Holds the sources and nodes that the value is made from, and nothing else; it has no outputs yet.
    pub graph: Graph,
    /// The value in it.
    pub value: ValueId,
    /// For each source of `graph` its index in the whole.
    pub sources: Vec<u32>,
}

impl Graph {
    /// The part that computes `value`, which must depend on no input and no state.
    ///
    /// # Errors
    /// When a node does not take its operands, which verifying rules out.
    ///
    /// # Panics
    /// When `value` depends on an input or a state.
    pub fn part(&self, value: ValueId) -> Result<Subgraph, IrError> {
        let values = vec![None; self.value_count()];
        let mut copier = Copier { whole: self, graph: Graph::new(""), sources: Vec::new(), values };
        let value = copier.copy(value)?;
        Ok(Subgraph { graph: copier.graph, value, sources: copier.sources })
    }
}

struct Copier<'a> {
    whole: &'a Graph,
    graph: Graph,
    sources: Vec<u32>,
    values: Vec<Option<ValueId>>,
}

impl Copier<'_> {
    /// Copies `value` and all that it is made from. Known chains are as deep as the program's constant parts, so this
    /// walks with a stack of its own.
    fn copy(&mut self, value: ValueId) -> Result<ValueId, IrError> {
        let mut stack = vec![value];
        while let Some(&at) = stack.last() {
            if self.values[at.0 as usize].is_some() {
                stack.pop();
                continue;
            }
            match self.whole.value(at).def {
                Def::Source(index) => {
                    let source = &self.whole.sources[index as usize];
                    self.sources.push(index);
                    let copy = self.graph.add_source(&source.name, source.kind, self.whole.ty(at).clone());
                    self.values[at.0 as usize] = Some(copy);
                }
                Def::Node(id, _) => {
                    let node = self.whole.node(id);
                    let open: Vec<_> =
                        node.inputs.iter().flatten().filter(|v| self.values[v.0 as usize].is_none()).collect();
                    if open.is_empty() {
                        let inputs: Vec<_> =
                            node.inputs.iter().map(|v| v.and_then(|v| self.values[v.0 as usize])).collect();
                        let outputs = self.graph.add(node.op.clone(), inputs, &node.scope)?;
                        for (from, to) in node.outputs.iter().zip(outputs) {
                            self.values[from.0 as usize] = Some(to);
                        }
                    } else {
                        stack.extend(open);
                    }
                }
                Def::Input(_) | Def::State(_) => unreachable!("a known value depends on no input and no state"),
            }
        }
        Ok(self.values[value.0 as usize].expect("just copied"))
    }
}
