use regraft_backend::{KernelId, SlotLayout};
use regraft_ir::{Graph, Node, ValueId};
use regraft_tensor::DType;

use crate::EngineErrorKind;

/// What a run executes: a graph whose sources are slots, and a kernel for each node.
///
/// The type of a slot's value is the type that its op sees (a linear's weight is `[n, k]`); the layout says how the
/// slot lies in memory.
///
/// ```
/// # fn f(plan: &regraft_engine::Plan) {
/// for (node, kernel) in plan.graph.nodes().iter().zip(&plan.kernels) {
///     println!("{} {}: {kernel}", node.op.name(), node.scope);
/// }
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The graph; source `i` is slot `i`.
    pub graph: Graph,
    /// One kernel per node.
    pub kernels: Vec<KernelId>,
    /// One layout per slot.
    pub slots: Vec<SlotLayout>,
}

/// Nodes of one op and element type that the backend has no kernel for: the reference evaluator runs them, far slower.
///
/// ```
/// # fn f(plan: &regraft_engine::Plan) {
/// for group in plan.evaluated() {
///     println!("{} nodes of {} {} have no kernel", group.nodes, group.op, group.dtype);
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluated {
    /// The op.
    pub op: &'static str,
    /// Element type of their first results.
    pub dtype: DType,
    /// How many nodes.
    pub nodes: usize,
    /// The modules that they belong to, each once; an empty path is the program itself.
    pub modules: Vec<String>,
    /// Bytes that they read and write in a run of the sizes that the program was exported with.
    pub bytes: u64,
}

impl Plan {
    /// Name of slot `index`.
    pub fn slot_name(&self, index: usize) -> &str {
        &self.graph.sources[index].name
    }

    /// What the reference evaluator runs, grouped by op and element type, the most bytes first.
    pub fn evaluated(&self) -> Vec<Evaluated> {
        let mut groups: Vec<Evaluated> = Vec::new();
        let nodes = self.graph.nodes().iter().zip(&self.kernels);
        for (node, _) in nodes.filter(|(_, kernel)| kernel.0 == KernelId::REFERENCE) {
            let (op, dtype) = (node.op.name(), self.graph.ty(node.outputs[0]).dtype);
            let at = groups.iter().position(|group| (group.op, group.dtype) == (op, dtype)).unwrap_or_else(|| {
                groups.push(Evaluated { op, dtype, nodes: 0, modules: Vec::new(), bytes: 0 });
                groups.len() - 1
            });
            let group = &mut groups[at];
            group.nodes += 1;
            group.bytes = group.bytes.saturating_add(self.bytes_of(node));
            if !group.modules.iter().any(|module| **module == *node.scope) {
                group.modules.push(node.scope.to_string());
            }
        }
        groups.sort_by_key(|group| std::cmp::Reverse(group.bytes));
        groups
    }

    /// Bytes of the operands and results of a node, for the sizes that the program was exported with.
    fn bytes_of(&self, node: &Node) -> u64 {
        let sizes: Vec<i64> = self.graph.symbols.iter().map(|symbol| symbol.opt).collect();
        let bytes = |value: ValueId| {
            let ty = self.graph.ty(value);
            let sizes = ty.shape.iter().map(|dim| dim.eval(&sizes).map_or(0, |size| size.max(0) as u64));
            sizes.fold(ty.dtype.size() as u64, u64::saturating_mul)
        };
        node.inputs.iter().flatten().chain(&node.outputs).map(|v| bytes(*v)).fold(0, u64::saturating_add)
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
                return malformed(format!("{} at `{}` is not a view", node.op.name(), node.scope));
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
