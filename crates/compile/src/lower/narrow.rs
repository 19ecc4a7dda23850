//! A program of f32 computed in a narrower float, as PyTorch's autocast does.
//!
//! Products, convolutions and attention take narrow operands and give narrow results. What follows them stays narrow, norms and
//! softmax too (kernels compute in f32 and round what they give), but functions that blow errors up and sums over many elements are
//! f32. What meets a computed value of f32 is f32: a residual stream that begins in f32, as that of a transformer does, is not rounded
//! at every layer. Angles of rotary embeddings are not rounded: kernels take them beside narrow operands. Weights are cast on the way to
//! their slots, so sources, and with them refits and adapters, stay as they are. Inputs, outputs and states keep their types.

use std::{collections::HashMap, sync::Arc};

use regraft_ir::{
    Graph, IrError, NodeId, Op, ValueId,
    ops::{BinaryFn, Cast, ReduceFn, UnaryFn},
};
use regraft_tensor::DType;

use super::known::known_values;

/// Where a node is computed.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    /// In the narrow dtype, whatever it is given.
    Narrow,
    /// In the narrow dtype if what is computed of its operands is.
    Follow,
    /// In f32.
    Wide,
}

fn side(op: &Op) -> Side {
    match op {
        Op::Linear(_)
        | Op::Matmul(_)
        | Op::Conv(_)
        | Op::ConvPair(_)
        | Op::ConvTranspose(_)
        | Op::Attention(_)
        | Op::Lstm(_) => Side::Narrow,
        Op::Unary(op) => match op.f {
            UnaryFn::Neg
            | UnaryFn::Abs
            | UnaryFn::Sign
            | UnaryFn::Relu
            | UnaryFn::Relu6
            | UnaryFn::Gelu
            | UnaryFn::GeluTanh
            | UnaryFn::Silu
            | UnaryFn::Sigmoid
            | UnaryFn::Tanh
            | UnaryFn::Hardswish
            | UnaryFn::Hardsigmoid
            | UnaryFn::Erf => Side::Follow,
            _ => Side::Wide,
        },
        Op::Binary(op) => match op.f {
            BinaryFn::Add | BinaryFn::Sub | BinaryFn::Mul | BinaryFn::Div | BinaryFn::Max | BinaryFn::Min => {
                Side::Follow
            }
            _ => Side::Wide,
        },
        Op::Reduce(op) if matches!(op.f, ReduceFn::Max | ReduceFn::Min) => Side::Follow,
        Op::Select(_)
        | Op::BatchNorm(_)
        | Op::LayerNorm(_)
        | Op::RmsNorm(_)
        | Op::GroupNorm(_)
        | Op::Softmax(_)
        | Op::Rotary(_)
        | Op::MaxPool(_)
        | Op::AvgPool(_)
        | Op::AdaptiveAvgPool(_)
        | Op::Resize(_)
        | Op::Reshape(_)
        | Op::Permute(_)
        | Op::Expand(_)
        | Op::Slice(_)
        | Op::Concat(_)
        | Op::Pad(_)
        | Op::Flip(_)
        | Op::Gather(_)
        | Op::Index(_) => Side::Follow,
        _ => Side::Wide,
    }
}

/// Whether an operand is taken in a dtype of its own.
const fn keeps_dtype(op: &Op, index: usize) -> bool {
    matches!(op, Op::Rotary(_)) && index > 0
}

/// The two forms of a value of the program before.
#[derive(Clone, Copy, Default)]
struct Forms {
    wide: Option<ValueId>,
    narrow: Option<ValueId>,
    /// Whether it was computed in the narrow dtype.
    is_narrow: bool,
}

struct Narrowing<'g> {
    graph: &'g mut Graph,
    dtype: DType,
    /// Whether a value of the program before is made of sources alone.
    known: &'g [bool],
    forms: HashMap<ValueId, Forms>,
}

/// Rewrites f32 computations to `dtype`, f16 or bf16.
///
/// # Errors
/// When a node does not take its operands in the other dtype.
pub fn narrow(graph: &mut Graph, dtype: DType) -> Result<(), IrError> {
    let known = known_values(graph);
    let ids: Vec<NodeId> = graph.node_ids().collect();
    let results: Vec<ValueId> =
        graph.outputs.iter().map(|o| o.value).chain(graph.states.iter().map(|s| s.next)).collect();
    let mut narrowing = Narrowing { graph, dtype, known: &known, forms: HashMap::new() };
    for id in ids {
        let is_known = narrowing.graph.node(id).outputs.iter().all(|v| known[v.0 as usize]);
        // What is made of sources alone is computed as it is, in recipes; a lookup is not.
        if !is_known {
            narrowing.node(id)?;
        }
    }
    let scope: Arc<str> = "".into();
    for value in results {
        let wide = narrowing.wide(value, &scope)?;
        if wide != value {
            narrowing.graph.replace_uses(value, wide);
        }
    }
    Ok(())
}

impl Narrowing<'_> {
    fn is_f32(&self, value: ValueId) -> bool {
        self.graph.ty(value).dtype == DType::F32
    }

    /// The value in f32.
    fn wide(&mut self, value: ValueId, scope: &Arc<str>) -> Result<ValueId, IrError> {
        let Some(&forms) = self.forms.get(&value) else { return Ok(value) };
        match forms {
            Forms { wide: Some(wide), .. } => Ok(wide),
            Forms { narrow: Some(narrow), .. } => {
                let wide = self.graph.add1(Cast { dtype: DType::F32 }, &[narrow], scope)?;
                self.forms.insert(value, Forms { wide: Some(wide), ..forms });
                Ok(wide)
            }
            Forms { .. } => Ok(value),
        }
    }

    /// The value in the narrow dtype.
    fn narrow(&mut self, value: ValueId, scope: &Arc<str>) -> Result<ValueId, IrError> {
        let forms = self.forms.get(&value).copied().unwrap_or_default();
        if let Some(narrow) = forms.narrow {
            return Ok(narrow);
        }
        let wide = forms.wide.unwrap_or(value);
        let narrow = self.graph.add1(Cast { dtype: self.dtype }, &[wide], scope)?;
        self.forms.insert(value, Forms { wide: Some(wide), narrow: Some(narrow), is_narrow: forms.is_narrow });
        Ok(narrow)
    }

    fn node(&mut self, id: NodeId) -> Result<(), IrError> {
        let node = self.graph.node(id).clone();
        let operands = node.inputs.iter().enumerate().filter(|(i, _)| !keeps_dtype(&node.op, *i));
        let floats: Vec<ValueId> = operands.filter_map(|(_, v)| *v).filter(|&v| self.is_f32(v)).collect();
        let gives_f32 = node.outputs.iter().any(|&v| self.is_f32(v));
        let is_narrow = |v: &&ValueId| self.forms.get(v).is_some_and(|forms| forms.is_narrow);
        // Weights and single numbers take the dtype of what they meet.
        let is_weight =
            |v: ValueId| self.known.get(v.0 as usize).copied().unwrap_or(false) || self.graph.ty(v).rank() == 0;
        let mut computed = floats.iter().filter(|v| !is_weight(**v)).peekable();
        let follows = computed.peek().is_some() && computed.all(|v| is_narrow(&v));
        let narrow = gives_f32
            && !floats.is_empty()
            && match side(&node.op) {
                Side::Narrow => true,
                Side::Follow => follows,
                Side::Wide => false,
            };
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for (i, &input) in node.inputs.iter().enumerate() {
            inputs.push(match input {
                Some(v) if self.is_f32(v) && narrow && !keeps_dtype(&node.op, i) => Some(self.narrow(v, &node.scope)?),
                Some(v) => Some(self.wide(v, &node.scope)?),
                None => None,
            });
        }
        if inputs == node.inputs {
            return Ok(());
        }
        let results = self.graph.add(node.op.clone(), inputs, &node.scope)?;
        for (&old, new) in node.outputs.iter().zip(results) {
            let forms = if self.graph.ty(new).dtype == self.graph.ty(old).dtype {
                Forms { wide: Some(new), narrow: None, is_narrow: false }
            } else {
                Forms { wide: None, narrow: Some(new), is_narrow: true }
            };
            self.forms.insert(old, forms);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use regraft_ir::{eval, text};
    use regraft_tensor::Tensor;

    use super::*;

    fn narrowed(body: &str) -> String {
        let mut graph = text::parse(&format!("program \"net\" {{\n{body}\n}}")).expect("a program");
        narrow(&mut graph, DType::BF16).expect("every node takes bf16");
        graph.compact().expect("no cycle");
        graph.verify().expect("a valid program");
        text::print(&graph)
    }

    const NET: &str = "input %0 : f32[4, 8] = \"x\"
  source %1 : f32[8, 8] = \"w\" (parameter)
  source %2 : f32[8] = \"g\" (parameter)
  %3 = linear %0, %1 : f32[4, 8]
  %4 = layer_norm %3, %2 {axes = 1, eps = 0.001} : f32[4, 8]
  %5 = unary %4 {f = exp} : f32[4, 8]
  %6 = linear %5, %1 : f32[4, 8]
  output %6 = \"y\"";

    #[test]
    fn products_and_what_follows_are_narrow_and_the_interface_is_not() {
        let text = narrowed(NET);
        let lines = |what: &str| text.lines().filter(|line| line.contains(what)).collect::<Vec<_>>();
        assert!(lines("= linear").iter().all(|line| line.contains("bf16[4, 8]")), "{text}");
        assert!(lines("= layer_norm").iter().all(|line| line.contains("bf16[4, 8]")), "{text}");
        assert!(lines("= unary").iter().all(|line| line.contains(": f32[4, 8]")), "{text}");
        assert!(lines("input").iter().chain(&lines("source")).all(|line| line.contains(" f32[")), "{text}");
        // The weight that both products take is cast once.
        assert_eq!(lines(": bf16[8, 8]").len(), 1, "{text}");
    }

    #[test]
    fn results_are_those_of_f32_to_a_few_roundings() {
        let program = format!("program \"net\" {{\n{NET}\n}}");
        let mut graph = text::parse(&program).expect("a program");
        let values = |shape: &[usize], seed: usize| {
            let count = shape.iter().product();
            let at = |i: usize| ((i * 31 + seed * 17) * 7919 % 2003) as f32 / 4004.0 - 0.25;
            Tensor::from_slice(shape, &(0..count).map(at).collect::<Vec<f32>>())
        };
        let (inputs, sources) = ([values(&[4, 8], 1)], [values(&[8, 8], 2), values(&[8], 3)]);
        let run = |graph: &Graph| {
            let given = eval::Bindings { inputs: &inputs, sources: &sources, states: &[] };
            eval::run(graph, given).expect("it evaluates").outputs.remove(0)
        };
        let want = run(&graph);
        narrow(&mut graph, DType::BF16).expect("every node takes bf16");
        graph.compact().expect("no cycle");
        let got = run(&graph);
        assert_eq!(got.dtype(), DType::F32);
        for (got, want) in got.to_f64_vec().into_iter().zip(want.to_f64_vec()) {
            assert!((got - want).abs() <= 0.03 * (1.0 + want.abs()), "{got} for {want}");
        }
    }

    #[test]
    fn what_meets_f32_is_f32_and_weights_take_the_dtype_of_what_they_meet() {
        let text = narrowed(
            "input %0 : f32[4, 8] = \"x\"
  source %1 : f32[8, 8] = \"w\" (parameter)
  source %2 : f32[8] = \"g\" (parameter)
  %3 = linear %0, %1 : f32[4, 8]
  %4 = binary %3, %2 {f = mul} : f32[4, 8]
  %5 = unary %4 {f = exp} : f32[4, 8]
  %6 = binary %4, %4 {f = max} : f32[4, 8]
  %7 = binary %6, %0 {f = add} : f32[4, 8]
  output %7 = \"y\"
  output %5 = \"z\"",
        );
        let of = |what: &str| text.lines().find(|line| line.contains(what)).unwrap_or_default().to_owned();
        assert!(of("f = mul").contains(": bf16[") && of("f = max").contains(": bf16["), "{text}");
        assert!(of("f = add").contains(": f32["), "{text}");
    }

    #[test]
    fn angles_keep_their_dtype() {
        let text = narrowed(
            "input %0 : f32[4, 8] = \"x\"
  input %1 : i64[1] = \"position\"
  source %2 : f32[8, 8] = \"w\" (parameter)
  source %3 : f32[16, 8] = \"cos\" (buffer)
  source %4 : f32[16, 8] = \"sin\" (buffer)
  %5 = linear %0, %2 : f32[4, 8]
  %6 = index %3, %1 {axis = 0} : f32[1, 8]
  %7 = index %4, %1 {axis = 0} : f32[1, 8]
  %8 = rotary %5, %6, %7 : f32[4, 8]
  %9 = linear %8, %2 : f32[4, 8]
  output %9 = \"y\"",
        );
        let lines = |what: &str| text.lines().filter(|line| line.contains(what)).collect::<Vec<_>>();
        assert!(lines("= index").iter().all(|line| line.contains(": f32[1, 8]")), "{text}");
        assert!(lines("= rotary").iter().all(|line| line.contains(": bf16[4, 8]")), "{text}");
        // The input, the weight, and the result.
        assert_eq!(lines("= cast").len(), 3, "{text}");
    }

    #[test]
    fn what_has_no_products_stays_as_it_is() {
        let body = "input %0 : f32[4] = \"x\"\n %1 = unary %0 {f = relu} : f32[4]\n output %1 = \"y\"";
        let text = narrowed(body);
        assert!(!text.contains("bf16"), "{text}");
    }
}
