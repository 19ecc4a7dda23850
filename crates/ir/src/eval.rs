//! The reference evaluator: clear, slow, and the oracle of every test.

use regraft_tensor::Tensor;

use crate::{EvalError, Graph, TensorType, ValueId};

/// What a run of a graph starts from.
#[derive(Clone, Copy, Debug)]
pub struct Bindings<'a> {
    /// One tensor per input.
    pub inputs: &'a [Tensor],
    /// One tensor per source.
    pub sources: &'a [Tensor],
    /// One tensor per state.
    pub states: &'a [Tensor],
}

/// What a run of a graph gives.
#[derive(Clone, Debug)]
pub struct Results {
    /// One tensor per output.
    pub outputs: Vec<Tensor>,
    /// The states after the run.
    pub states: Vec<Tensor>,
}

/// Evaluates `graph` node by node.
///
/// # Errors
/// When what is given does not have the declared types, or a value is out of range.
///
/// ```
/// use regraft_ir::{Graph, TensorType, eval, ops::{Binary, BinaryFn}};
/// use regraft_tensor::{DType, Tensor};
///
/// let mut graph = Graph::new("twice");
/// let x = graph.add_input("x", TensorType::of_sizes(DType::F32, &[2]));
/// let y = graph.add1(Binary { f: BinaryFn::Add }, &[x, x], &"".into())?;
/// graph.add_output("y", y);
/// let x = Tensor::from_slice(&[2], &[1.0f32, 2.0]);
/// let results = eval::run(&graph, eval::Bindings { inputs: &[x], sources: &[], states: &[] })?;
/// assert_eq!(results.outputs[0].as_slice::<f32>(), Some(&[2.0, 4.0][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn run(graph: &Graph, given: Bindings<'_>) -> Result<Results, EvalError> {
    let symbols = bind_symbols(graph, given.inputs)?;
    let mut values: Vec<Option<Tensor>> = vec![None; graph.value_count()];
    for (input, tensor) in graph.inputs.iter().zip(given.inputs) {
        values[input.value.0 as usize] = Some(tensor.clone());
    }
    for (source, tensor) in graph.sources.iter().zip(given.sources) {
        check(&source.name, graph.ty(source.value), tensor, &symbols)?;
        values[source.value.0 as usize] = Some(tensor.clone());
    }
    for (state, tensor) in graph.states.iter().zip(given.states) {
        check(&state.name, graph.ty(state.value), tensor, &symbols)?;
        values[state.value.0 as usize] = Some(tensor.clone());
    }
    let mut left = graph.use_counts();
    for node in graph.nodes() {
        let at = |error| EvalError::Node { op: node.op.name(), scope: node.scope.to_string(), error: Box::new(error) };
        let op = node.op.bind(&symbols).map_err(|e| at(e.into()))?;
        let inputs: Vec<Option<Tensor>> =
            node.inputs.iter().map(|v| v.and_then(|v| values[v.0 as usize].clone())).collect();
        let outputs = op.eval(&inputs.iter().map(Option::as_ref).collect::<Vec<_>>()).map_err(at)?;
        for (&v, tensor) in node.outputs.iter().zip(outputs) {
            values[v.0 as usize] = Some(tensor);
        }
        for v in node.inputs.iter().flatten() {
            left[v.0 as usize] -= 1;
            if left[v.0 as usize] == 0 {
                values[v.0 as usize] = None;
            }
        }
    }
    let get = |v: ValueId| values[v.0 as usize].clone().expect("the graph is verified: outputs are made and kept");
    Ok(Results {
        outputs: graph.outputs.iter().map(|o| get(o.value)).collect(),
        states: graph.states.iter().map(|s| get(s.next)).collect(),
    })
}

/// Finds the value of every symbol from the shapes of the inputs, and checks dtypes, ranks, sizes and ranges.
///
/// # Errors
/// [`EvalError::Input`] naming the input.
pub fn bind_symbols(graph: &Graph, inputs: &[Tensor]) -> Result<Vec<i64>, EvalError> {
    let shapes: Vec<_> = inputs.iter().map(|t| (t.dtype(), t.shape())).collect();
    bind_symbols_to(graph, &shapes)
}

/// As [`bind_symbols`], from dtypes and shapes alone.
///
/// # Errors
/// As [`bind_symbols`].
pub fn bind_symbols_to(graph: &Graph, inputs: &[(regraft_tensor::DType, &[usize])]) -> Result<Vec<i64>, EvalError> {
    if inputs.len() != graph.inputs.len() {
        let names: Vec<_> = graph.inputs.iter().map(|i| i.name.as_str()).collect();
        return Err(EvalError::Input {
            name: graph.name.clone(),
            expected: format!("{} inputs ({})", names.len(), names.join(", ")),
            found: inputs.len().to_string(),
        });
    }
    let mut symbols: Vec<Option<i64>> = vec![None; graph.symbols.len()];
    for (input, (_, shape)) in graph.inputs.iter().zip(inputs) {
        for (dim, &size) in graph.ty(input.value).shape.iter().zip(*shape) {
            if let Some(symbol) = dim.as_symbol() {
                symbols[symbol.0 as usize].get_or_insert(size as i64);
            }
        }
    }
    solve_linear(graph, inputs, &mut symbols);
    // A symbol that no input shows is not used by any shape either; its opt value is as good as any.
    let symbols: Vec<i64> = symbols.iter().zip(&graph.symbols).map(|(v, info)| v.unwrap_or(info.opt)).collect();
    for (input, (dtype, shape)) in graph.inputs.iter().zip(inputs) {
        check_type(&input.name, graph, graph.ty(input.value), *dtype, shape, &symbols)?;
    }
    Ok(symbols)
}

/// Symbols that inputs show only as `a·s + b`.
fn solve_linear(graph: &Graph, inputs: &[(regraft_tensor::DType, &[usize])], symbols: &mut [Option<i64>]) {
    for (input, (_, shape)) in graph.inputs.iter().zip(inputs) {
        for (dim, &size) in graph.ty(input.value).shape.iter().zip(*shape) {
            let (terms, constant) = dim.parts();
            if let [(atoms, factor)] = terms
                && let [regraft_tensor::Atom::Sym(s)] = atoms.as_slice()
                && (size as i64 - constant) % factor == 0
            {
                symbols[s.0 as usize].get_or_insert((size as i64 - constant) / factor);
            }
        }
    }
}

fn check_type(
    name: &str,
    graph: &Graph,
    ty: &TensorType,
    dtype: regraft_tensor::DType,
    shape: &[usize],
    symbols: &[i64],
) -> Result<(), EvalError> {
    let sizes_fit = ty.rank() == shape.len()
        && ty.shape.iter().zip(shape).all(|(d, &s)| d.eval(symbols).is_ok_and(|v| v == s as i64));
    let mut outside = None;
    for dim in &ty.shape {
        dim.for_each_symbol(&mut |s| {
            let (value, range) = (symbols[s.0 as usize], graph.symbols[s.0 as usize].range);
            if value < range.min || value > range.max {
                outside = Some(format!(" with {s} in {}..={}", range.min, range.max));
            }
        });
    }
    if ty.dtype == dtype && sizes_fit && outside.is_none() {
        return Ok(());
    }
    Err(EvalError::Input {
        name: name.to_owned(),
        expected: format!("{ty}{}", outside.unwrap_or_default()),
        found: TensorType::of_sizes(dtype, shape).to_string(),
    })
}

fn check(name: &str, ty: &TensorType, tensor: &Tensor, symbols: &[i64]) -> Result<(), EvalError> {
    let fits = tensor.dtype() == ty.dtype
        && ty.rank() == tensor.shape().len()
        && ty.shape.iter().zip(tensor.shape()).all(|(d, &s)| d.eval(symbols).is_ok_and(|v| v == s as i64));
    if fits {
        return Ok(());
    }
    Err(EvalError::Input {
        name: name.to_owned(),
        expected: ty.to_string(),
        found: TensorType::of_sizes(tensor.dtype(), tensor.shape()).to_string(),
    })
}
