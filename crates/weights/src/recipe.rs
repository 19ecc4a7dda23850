use std::fmt;

use regraft_ir::{Def, Graph, ValueId, text};
use regraft_tensor::DType;

use crate::{FormatId, GatherPlan};

/// The piece of IR that computes one slot from its sources, and the format it is packed in.
///
/// ```
/// # fn f(map: &regraft_weights::RefitMap) {
/// let recipe = &map.recipes[0];
/// println!("{recipe}"); // the program that makes the slot, as text
/// println!("{}{:?} in {}", recipe.dtype(), recipe.shape(), recipe.format);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Name of the slot.
    pub slot: String,
    /// Computes the slot's logical value as its one output; has no inputs and no symbols.
    pub graph: Graph,
    /// For each source of `graph` its index in the [`RefitMap`](crate::RefitMap).
    pub sources: Vec<u32>,
    /// For each source of `graph` the use of it, which says which adapters apply to it.
    pub uses: Vec<u32>,
    /// The layout in memory.
    pub format: FormatId,
    /// How many ops at the end of `graph` only arrange the value for its layout, such as a transpose: the value that the
    /// plan's op sees is the one before them.
    pub layout_ops: usize,
}

impl Recipe {
    /// Whether both compute the same from their sources, whichever uses these are.
    pub fn is_twin_of(&self, other: &Recipe) -> bool {
        self.sources == other.sources && self.uses != other.uses && self.makes_what(other)
    }

    /// Whether both compute the same from sources of the same types and contents, even of another engine.
    pub fn makes_what(&self, other: &Recipe) -> bool {
        let same = self.format == other.format && self.layout_ops == other.layout_ops;
        same && same_program(&self.graph, &other.graph)
    }

    /// The value that the plan's op sees; `None` when `layout_ops` counts ops that are not there.
    pub fn value(&self) -> Option<ValueId> {
        (0..self.layout_ops).try_fold(self.graph.outputs[0].value, |value, _| match self.graph.value(value).def {
            Def::Node(id, 0) => *self.graph.node(id).inputs.first()?,
            _ => None,
        })
    }

    /// Whether it only moves, casts and scales elements, so that it can be one pass over memory.
    pub fn is_one_pass(&self) -> bool {
        GatherPlan::compile(&self.graph, &self.format).is_some()
    }

    /// Element type of the slot.
    pub fn dtype(&self) -> DType {
        self.graph.ty(self.graph.outputs[0].value).dtype
    }

    /// Logical shape of the slot.
    ///
    /// # Panics
    /// When it is symbolic, which making a recipe rules out.
    pub fn shape(&self) -> Vec<usize> {
        self.graph.ty(self.graph.outputs[0].value).sizes().expect("slots have known sizes")
    }
}

/// Whether two programs over sources in the same order compute the same.
fn same_program(a: &Graph, b: &Graph) -> bool {
    let same_node =
        |(a, b): (&regraft_ir::Node, &regraft_ir::Node)| a.op == b.op && a.inputs == b.inputs && a.outputs == b.outputs;
    a.nodes().len() == b.nodes().len()
        && a.outputs[0].value == b.outputs[0].value
        && a.sources.iter().map(|s| s.value).eq(b.sources.iter().map(|s| s.value))
        && a.nodes().iter().zip(b.nodes()).all(same_node)
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "recipe @{} : {}{:?} {{", self.slot, self.format, self.shape())?;
        let body = text::print(&self.graph);
        for line in body.lines().filter(|l| l.starts_with("  ")) {
            match line.trim_start().strip_prefix("output ") {
                Some(output) => {
                    let value = output.split(' ').next().unwrap_or_default();
                    writeln!(f, "  yield pack {value} {{format = {}}}", self.format)?;
                }
                None => writeln!(f, "{line}")?,
            }
        }
        f.write_str("}\n")
    }
}
