use regraft_backend::{KernelId, SlotLayout};
use regraft_ir::{Graph, Node, ValueId};

use crate::EngineErrorKind;

/// What a run executes: a graph whose sources are slots, and a kernel for each node.
///
/// The type of a slot's value is the type that its op sees (a linear's weight is `[n, k]`); the layout says how the
/// slot lies in memory.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The graph; source `i` is slot `i`.
    pub graph: Graph,
    /// One kernel per node.
    pub kernels: Vec<KernelId>,
    /// One layout per slot.
    pub slots: Vec<SlotLayout>,
}

impl Plan {
    /// Name of slot `index`.
    pub fn slot_name(&self, index: usize) -> &str {
        &self.graph.sources[index].name
    }

    /// The nodes that the backend has no kernel for: the reference evaluator runs them, far slower.
    pub fn evaluated(&self) -> impl Iterator<Item = &Node> {
        let nodes = self.graph.nodes().iter().zip(&self.kernels);
        nodes.filter(|(_, kernel)| kernel.0 == KernelId::REFERENCE).map(|(node, _)| node)
    }

    /// Checks that the parts fit together; for plans that come from files.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> Result<(), EngineErrorKind> {
        let malformed = |why: String| Err(EngineErrorKind::Malformed(why));
        self.graph.verify().map_err(|e| EngineErrorKind::Malformed(format!("the plan: {e}")))?;
        if self.kernels.len() != self.graph.nodes().len() {
            return malformed(format!("{} kernels for {} nodes", self.kernels.len(), self.graph.nodes().len()));
        }
        if self.slots.len() != self.graph.sources.len() {
            return malformed(format!("{} layouts for {} slots", self.slots.len(), self.graph.sources.len()));
        }
        let mut bytes = Some(0usize);
        for layout in &self.slots {
            bytes = bytes.and_then(|sum| sum.checked_add(layout.bytes));
        }
        if bytes.is_none_or(|sum| isize::try_from(sum).is_err()) {
            return malformed("its slots are larger than any memory".to_owned());
        }
        for (node, kernel) in self.graph.nodes().iter().zip(&self.kernels) {
            if kernel.0 == KernelId::VIEW && !node.op.is_view() {
                return malformed(format!("{} at `{}` is no view", node.op.name(), node.scope));
            }
        }
        self.check_plain_reads()
    }

    /// The evaluator, views, states and outputs read slots row-major; backends check the slots of their own kernels.
    fn check_plain_reads(&self) -> Result<(), EngineErrorKind> {
        let graph = &self.graph;
        let evaluated = (graph.nodes().iter().zip(&self.kernels))
            .filter(|(_, k)| k.0 == KernelId::REFERENCE || k.0 == KernelId::VIEW)
            .flat_map(|(node, _)| node.inputs.iter().flatten());
        let ends = graph.outputs.iter().map(|o| &o.value).chain(graph.states.iter().map(|s| &s.next));
        let init = graph.states.iter().map(|s| &graph.sources[s.init as usize].value);
        let packed = |v: &&ValueId| {
            graph.source_of(**v).is_some_and(|slot| {
                let layout = &self.slots[slot as usize];
                !layout.format.is_plain() || graph.ty(**v).sizes().as_ref() != Some(&layout.shape)
            })
        };
        match evaluated.chain(ends).chain(init).find(packed) {
            Some(v) => Err(EngineErrorKind::Malformed(format!("a packed slot is read as plain (%{})", v.0))),
            None => Ok(()),
        }
    }
}
