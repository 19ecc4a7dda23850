//! Weights of linear layers stored as small integers.
//!
//! Rounding is the last step of a weight's recipe, from f32: so a checkpoint is refitted as it is, adapters are merged before anything
//! is rounded, and a program that is computed in a narrower float loses nothing twice. Layers whose rows do not fit keep their weight.

use regraft_ir::{
    Graph, IrError, Node, NodeId, Op, ValueId,
    ops::{Cast, Linear, QuantLinear, Quantize, WeightFormat},
};
use regraft_tensor::DType;

use super::known::known_values;

/// Stores the weights of linear layers in `format`.
///
/// # Errors
/// When a node does not take its operands in the other form.
pub fn quantize(graph: &mut Graph, format: WeightFormat) -> Result<(), IrError> {
    let known = known_values(graph);
    let ids: Vec<NodeId> = graph.node_ids().collect();
    let mut made: Vec<(ValueId, [ValueId; 2])> = Vec::new();
    for id in ids {
        let node = graph.node(id).clone();
        let Some(op) = fits(graph, &node, &known, format) else { continue };
        let weight = widened(graph, node.input(1));
        let [whole, scale] = match made.iter().find(|(of, _)| *of == weight) {
            Some((_, parts)) => *parts,
            None => {
                let wide = match graph.ty(weight).dtype {
                    DType::F32 => weight,
                    _ => graph.add1(Cast { dtype: DType::F32 }, &[weight], &node.scope)?,
                };
                let parts = graph.add(Quantize { format }, [Some(wide)], &node.scope)?;
                let parts = [parts[0], parts[1]];
                made.push((weight, parts));
                parts
            }
        };
        let operands = [Some(node.input(0)), Some(whole), Some(scale), node.optional_input(2), node.optional_input(3)];
        let quantized = QuantLinear { format, act: op.act, act_first: op.act_first };
        let result = graph.add(quantized, operands, &node.scope)?;
        graph.replace_uses(node.output(), result[0]);
    }
    Ok(())
}

/// The layer, if its weight is known and of rows that fit.
fn fits(graph: &Graph, node: &Node, known: &[bool], format: WeightFormat) -> Option<Linear> {
    let Op::Linear(op) = &node.op else { return None };
    let is_known = |value: ValueId| known.get(value.0 as usize).copied().unwrap_or(false);
    let weight = graph.ty(node.input(1));
    let k = weight.shape[0].as_usize().and(weight.shape[1].as_usize())?;
    let float = matches!(weight.dtype, DType::F32 | DType::F16 | DType::BF16);
    (float && format.takes(k) && is_known(node.input(1)) && !is_known(node.input(0))).then(|| op.clone())
}

/// What a weight was before it was cast to a narrower float.
fn widened(graph: &Graph, weight: ValueId) -> ValueId {
    let Some(node) = graph.producer(weight).map(|id| graph.node(id)) else { return weight };
    match node.op {
        Op::Cast(_) if graph.ty(node.input(0)).dtype == DType::F32 => node.input(0),
        _ => weight,
    }
}

#[cfg(test)]
mod tests {
    use regraft_ir::text;

    use super::*;

    fn quantized(format: WeightFormat) -> String {
        let body = "input %0 : f32[4, 64] = \"x\"
  source %1 : f32[64, 64] = \"w\" (parameter)
  source %2 : f32[8, 8] = \"small\" (parameter)
  source %3 : f32[64] = \"b\" (parameter)
  %4 = linear %0, %1, %3 {act = relu} : f32[4, 64]
  %5 = linear %4, %1 : f32[4, 64]
  %6 = reshape %5 {shape = [32, 8]} : f32[32, 8]
  %7 = linear %6, %2 : f32[32, 8]
  output %7 = \"y\"";
        let mut graph = text::parse(&format!("program \"net\" {{\n{body}\n}}")).expect("a program");
        quantize(&mut graph, format).expect("every layer takes it");
        graph.compact().expect("no cycle");
        graph.verify().expect("a valid program");
        text::print(&graph)
    }

    #[test]
    fn a_weight_is_rounded_once_and_rows_that_do_not_fit_stay() {
        for (format, scales) in [(WeightFormat::Int8, "f32[64, 1]"), (WeightFormat::Int4, "f32[64, 2]")] {
            let text = quantized(format);
            let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
            let found = [count("= quantize"), count("= quant_linear"), count("= linear")];
            let takes_8 = format.takes(8);
            assert_eq!(found, if takes_8 { [2, 3, 0] } else { [1, 2, 1] }, "{text}");
            assert!(text.contains("act = relu") && text.contains(scales), "{text}");
        }
    }
}
