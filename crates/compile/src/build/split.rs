//! Binding-time separation: what is known from sources goes into recipes, the rest is the plan.

use regraft_ir::{Graph, IrError, Op, SourceKind, Subgraph, ValueId};

use crate::lower::known::known_values;

/// The part of a program that depends on inputs, over *frontier* values in place of sources.
#[derive(Clone, Debug)]
pub(crate) struct Split {
    /// The graph of the plan; each source stands for a known value of the lowered program.
    pub(crate) graph: Graph,
    /// For each source of `graph` the value of the lowered program.
    origins: Vec<ValueId>,
}

impl Split {
    /// The value of the lowered program that `frontier` stands for.
    pub(crate) fn origin(&self, frontier: ValueId) -> ValueId {
        let index = self.graph.source_of(frontier).expect("frontier values are the sources of a split");
        self.origins[index as usize]
    }
}

/// Splits a lowered program.
pub(crate) fn split(lowered: &Graph) -> Result<Split, IrError> {
    let known = known_values(lowered);
    let mut splitter = Splitter {
        lowered,
        known: &known,
        graph: Graph::new(&lowered.name),
        origins: Vec::new(),
        values: vec![None; lowered.value_count()],
    };
    splitter.graph.symbols.clone_from(&lowered.symbols);
    for input in &lowered.inputs {
        let value = splitter.graph.add_input(&input.name, lowered.ty(input.value).clone());
        splitter.values[input.value.0 as usize] = Some(value);
    }
    for state in &lowered.states {
        let init = splitter.get(lowered.sources[state.init as usize].value);
        let init = splitter.graph.source_of(init).expect("a source is a frontier value");
        let value = splitter.graph.add_state(&state.name, init);
        splitter.values[state.value.0 as usize] = Some(value);
    }
    for node in lowered.nodes() {
        if node.outputs.iter().all(|v| known[v.0 as usize]) {
            continue;
        }
        let inputs: Vec<_> = node.inputs.iter().map(|v| v.map(|v| splitter.get(v))).collect();
        let outputs = splitter.graph.add(node.op.clone(), inputs, &node.scope)?;
        for (from, to) in node.outputs.iter().zip(outputs) {
            splitter.graph.set_type(to, lowered.ty(*from).clone());
            splitter.values[from.0 as usize] = Some(to);
        }
    }
    for output in &lowered.outputs {
        let value = splitter.get(output.value);
        splitter.graph.add_output(&output.name, value);
    }
    for (i, state) in lowered.states.iter().enumerate() {
        splitter.graph.states[i].next = splitter.get(state.next);
    }
    Ok(Split { graph: splitter.graph, origins: splitter.origins })
}

struct Splitter<'a> {
    lowered: &'a Graph,
    known: &'a [bool],
    graph: Graph,
    origins: Vec<ValueId>,
    values: Vec<Option<ValueId>>,
}

impl Splitter<'_> {
    fn get(&mut self, value: ValueId) -> ValueId {
        if let Some(there) = self.values[value.0 as usize] {
            return there;
        }
        assert!(self.known[value.0 as usize], "a value is known, or its node came before");
        let name = format!("slot{}", self.origins.len());
        let frontier = self.graph.add_source(name, SourceKind::Constant, self.lowered.ty(value).clone());
        self.origins.push(value);
        self.values[value.0 as usize] = Some(frontier);
        frontier
    }
}

/// The recipe of a known value followed by `prepare`, and the index in the program of each of its sources.
pub(crate) fn recipe(lowered: &Graph, value: ValueId, prepare: &[Op]) -> Result<(Graph, Vec<u32>), IrError> {
    let Subgraph { mut graph, mut value, sources } = lowered.part(value)?;
    for op in prepare {
        value = graph.add1(op.clone(), &[value], &"".into())?;
    }
    graph.add_output("slot", value);
    Ok((graph, sources))
}
