//! What an importer gives.

use regraft_ir::Graph;
use regraft_tensor::Tensor;

use crate::pt2::spec::CallSpec;

/// An imported program.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The program.
    pub graph: Graph,
    /// The value of each source, by its index; `None` where the file holds none.
    pub weights: Vec<Option<Tensor>>,
    /// How the program is called: the structure of inputs and outputs, with constant inputs, and their names.
    pub call: CallSpec,
    /// What was imported.
    pub report: ImportReport,
}

/// What was imported, in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportReport {
    /// Nodes of the exported program.
    pub nodes: usize,
    /// Sources of the graph; tied ones count once, and those that were compiled in do not.
    pub sources: usize,
    /// Bytes of the sources.
    pub bytes: u64,
}

impl Imported {
    /// The program of a finished graph, of which `nodes` nodes were translated; `value` has the values of sources by name. A
    /// twin has the value of the source that it is one of.
    pub(crate) fn of(graph: Graph, call: CallSpec, nodes: usize, value: impl Fn(&str) -> Option<Tensor>) -> Self {
        let mut weights = Vec::with_capacity(graph.sources.len());
        let (mut sources, mut bytes) = (0, 0u64);
        for source in &graph.sources {
            let of = source.twin_of.and_then(|of| graph.sources.get(of as usize));
            weights.push(value(&of.unwrap_or(source).name));
            if of.is_none() && source.folded.is_none() {
                let ty = graph.ty(source.value);
                let len = ty.sizes().and_then(|s| Tensor::byte_len(ty.dtype, &s).ok()).unwrap_or(0);
                bytes = bytes.saturating_add(len as u64);
                sources += 1;
            }
        }
        let report = ImportReport { nodes, sources, bytes };
        Imported { graph, weights, call, report }
    }
}
