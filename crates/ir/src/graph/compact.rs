//! Drops what nothing needs and renumbers the rest.

use super::{Def, Graph, NodeId, Value, ValueId};
use crate::{IrError, IrErrorKind};

impl Graph {
    /// Drops nodes that nothing needs, puts the others in order (each just before its first user, otherwise as they
    /// stood) and renumbers values and nodes. Inputs and sources are the program's interface and stay.
    ///
    /// # Errors
    /// When the graph has a cycle.
    pub fn compact(&mut self) -> Result<(), IrError> {
        let order = self.live_order()?;
        let given = self.inputs.iter().map(|i| i.value).chain(self.sources.iter().map(|s| s.value));
        let given = given.chain(self.states.iter().map(|s| s.value));
        let kept: Vec<ValueId> =
            given.chain(order.iter().flat_map(|id| self.node(*id).outputs.iter().copied())).collect();
        let in_order = order.iter().map(|id| id.0).eq(0..self.nodes.len() as u32);
        // Most passes change nothing.
        if in_order && kept.iter().map(|v| v.0).eq(0..self.values.len() as u32) {
            return Ok(());
        }
        let mut renamed: Vec<Option<ValueId>> = vec![None; self.values.len()];
        for (new, old) in kept.iter().enumerate() {
            renamed[old.0 as usize] = Some(ValueId(new as u32));
        }
        let rename = |v: &mut ValueId| *v = renamed[v.0 as usize].expect("what a live node reads is kept");
        let mut values: Vec<Option<Value>> = std::mem::take(&mut self.values).into_iter().map(Some).collect();
        let value = |v: ValueId| values[v.0 as usize].take().expect("a value is defined in one place");
        self.values = kept.into_iter().map(value).collect();
        let mut nodes: Vec<_> = std::mem::take(&mut self.nodes).into_iter().map(Some).collect();
        let node = |id: NodeId| nodes[id.0 as usize].take().expect("a node is in the order once");
        self.nodes = order.into_iter().map(node).collect();
        for (i, input) in self.inputs.iter_mut().enumerate() {
            rename(&mut input.value);
            self.values[input.value.0 as usize].def = Def::Input(i as u32);
        }
        for (i, source) in self.sources.iter_mut().enumerate() {
            rename(&mut source.value);
            self.values[source.value.0 as usize].def = Def::Source(i as u32);
        }
        for (i, state) in self.states.iter_mut().enumerate() {
            rename(&mut state.value);
            rename(&mut state.next);
            self.values[state.value.0 as usize].def = Def::State(i as u32);
        }
        for (id, node) in self.nodes.iter_mut().enumerate() {
            node.inputs.iter_mut().flatten().chain(&mut node.outputs).for_each(rename);
            for (i, v) in node.outputs.iter().enumerate() {
                self.values[v.0 as usize].def = Def::Node(NodeId(id as u32), i as u32);
            }
        }
        self.outputs.iter_mut().for_each(|output| rename(&mut output.value));
        Ok(())
    }

    /// Live nodes in topological order; iterative, for deep graphs.
    fn live_order(&self) -> Result<Vec<NodeId>, IrError> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut live = vec![false; self.nodes.len()];
        let mut stack: Vec<ValueId> =
            self.outputs.iter().map(|o| o.value).chain(self.states.iter().map(|s| s.next)).collect();
        while let Some(v) = stack.pop() {
            if let Some(id) = self.producer(v)
                && !std::mem::replace(&mut live[id.0 as usize], true)
            {
                stack.extend(self.node(id).inputs.iter().flatten());
            }
        }
        let mut marks = vec![Mark::New; self.nodes.len()];
        let mut order = Vec::new();
        for root in self.node_ids().filter(|id| live[id.0 as usize]) {
            let mut stack = vec![root];
            while let Some(&id) = stack.last() {
                let mark = marks[id.0 as usize];
                if mark == Mark::New {
                    marks[id.0 as usize] = Mark::Open;
                    for producer in self.node(id).inputs.iter().flatten().rev().filter_map(|v| self.producer(*v)) {
                        match marks[producer.0 as usize] {
                            Mark::New => stack.push(producer),
                            Mark::Open => {
                                return Err(IrErrorKind::Malformed("the nodes form a cycle".into()).into());
                            }
                            Mark::Done => {}
                        }
                    }
                } else {
                    stack.pop();
                    if mark == Mark::Open {
                        marks[id.0 as usize] = Mark::Done;
                        order.push(id);
                    }
                }
            }
        }
        Ok(order)
    }
}
