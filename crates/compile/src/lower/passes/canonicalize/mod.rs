//! Small rewrites towards one form, to a fixpoint, so that later passes meet each pattern in one spelling.
//!
//! Moves that do nothing go; chains of moves become one; reshapes that split axes and slices rise through permutes and
//! products, so that they meet and cancel what merges axes; products with known matrices become linears with a bias.

mod arithmetic;
mod movement;
mod products;

use regraft_backend::Lowering;
use regraft_ir::{Graph, IrError, Node, NodeId, ValueId};

use crate::lower::{Pass, known::known_values, passes::common_subexpressions};

/// See the module's documentation.
pub const PASS: Pass = Pass { name: "canonicalize", run };

/// Every rule moves the program in one direction, so that a fixpoint is reached long before this.
const ROUNDS: usize = 100;

/// What rules may ask about the graph at the start of a round; values made since then are not in it.
struct Context {
    known: Vec<bool>,
    uses: Vec<u32>,
    users: Vec<Vec<NodeId>>,
}

impl Context {
    fn is_known(&self, value: ValueId) -> bool {
        self.known.get(value.0 as usize) == Some(&true)
    }

    fn used_once(&self, value: ValueId) -> bool {
        self.uses.get(value.0 as usize) == Some(&1)
    }

    fn users(&self, value: ValueId) -> &[NodeId] {
        self.users.get(value.0 as usize).map_or(&[], Vec::as_slice)
    }
}

/// A rewrite of one node: the value that takes the place of its result, if the rule applies.
type Rule = fn(&mut Graph, &Context, &Node) -> Result<Option<ValueId>, IrError>;

const RULES: &[Rule] = &[
    movement::drop_no_op,
    movement::merge_chain,
    movement::permute_of_units,
    movement::raise_split,
    movement::order_merged,
    movement::raise_slice,
    products::matmul_to_linear,
    products::fold_bias,
    products::raise_through_linear,
    products::raise_through_matmul,
    products::sink_permute,
    products::absorb_operand,
    arithmetic::power,
    arithmetic::neutral,
];

fn run(graph: &mut Graph, lowering: &dyn Lowering) -> Result<(), IrError> {
    for _ in 0..ROUNDS {
        (common_subexpressions::PASS.run)(graph, lowering)?;
        graph.compact()?;
        if !round(graph)? {
            break;
        }
    }
    Ok(())
}

fn round(graph: &mut Graph) -> Result<bool, IrError> {
    let context = Context { known: known_values(graph), uses: graph.use_counts(), users: graph.users() };
    let mut changed = false;
    for id in graph.node_ids() {
        let node = graph.node(id).clone();
        for rule in RULES {
            if let Some(new) = rule(graph, &context, &node)? {
                graph.replace_uses(node.output(), new);
                changed = true;
                break;
            }
        }
    }
    Ok(changed)
}
