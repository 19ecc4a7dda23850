//! From an ONNX model to a graph of the IR.

mod calls;
mod control;
mod inputs;
mod nodes;

pub(super) use calls::not_a_tensor;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use regraft_checkpoint::onnx::Tensors;
use regraft_ir::{Graph, SourceKind, ValueId};
use regraft_tensor::Tensor;
use regraft_weights::{StateDict, folded_value};

use super::{
    OPSETS, damaged,
    ops::{self, Handler},
    proto::{Function, Model, Node, Opset, Value},
};
use crate::{
    At, ImportError, ImportErrorKind, Imported, ProgramProblem, UnknownOp,
    build::{Builder, Problem, open_symbol, tell_apart},
    pt2::spec::CallSpec,
};

/// More nodes than any model has, those of calls and loops counted each time.
const MOST_NODES: usize = 200_000;
/// Deeper calls than any model has.
const MOST_CALLS: usize = 32;
/// Problems that are reported before the translation ends.
const MOST_PROBLEMS: usize = 32;

/// Translates the graph of `model`, which is the file at `path`.
pub(super) fn translate(path: &Path, model: &Model<'_>, tensors: &Tensors) -> Result<Imported, ImportError> {
    check_opsets(path, model)?;
    let mut t = Translator::new(path, model, tensors);
    check_known(path, &t.functions, model)?;
    t.sources()?;
    t.inputs()?;
    t.nodes(&model.graph.nodes);
    t.unread_constants();
    t.outputs()?;
    t.finish()
}

fn check_opsets(path: &Path, model: &Model<'_>) -> Result<(), ImportError> {
    let own = model.opsets.iter().find(|o| o.domain.is_empty());
    match own.map(|o| o.version) {
        Some(version) if !OPSETS.contains(&version) => {
            let (low, high) = (OPSETS.start(), OPSETS.end());
            let what = format!("opset {version}: those from {low} to {high} are read, and it");
            let help = format!("export the model with opset_version={high}, or convert it with onnx.version_converter");
            Err(ImportError::new(path, ImportErrorKind::Unsupported { at: At::default(), what, help }))
        }
        _ => Ok(()),
    }
}

/// Functions of the model, by domain, name and overload.
type Functions<'p> = HashMap<(&'p str, &'p str, &'p str), &'p Function<'p>>;

/// Refuses the model once for all operators that are not known.
fn check_known(path: &Path, functions: &Functions<'_>, model: &Model<'_>) -> Result<(), ImportError> {
    let mut unknown: BTreeMap<String, UnknownOp> = BTreeMap::new();
    let mut open: Vec<&[Node<'_>]> = vec![&model.graph.nodes];
    open.extend(model.functions.iter().map(|f| f.nodes.as_slice()));
    while let Some(nodes) = open.pop() {
        for node in nodes {
            for attribute in &node.attributes {
                if let Value::Graph(graph) = &attribute.value {
                    open.push(&graph.nodes);
                }
            }
            let called = functions.contains_key(&(node.domain, node.op, node.overload));
            if called || ops::find(node.domain, node.op).is_some() {
                continue;
            }
            let domain = if node.domain.is_empty() { "ai.onnx" } else { node.domain };
            let target = format!("{domain}.{}", node.op);
            let module_path = nodes::scope_of(node.label());
            let found = unknown.entry(target.clone()).or_insert(UnknownOp { target, count: 0, module_path });
            found.count += 1;
        }
    }
    match unknown.is_empty() {
        true => Ok(()),
        false => Err(ImportError::new(path, ImportErrorKind::UnknownOps(unknown.into_values().collect()))),
    }
}

/// What a name of the model stands for.
#[derive(Clone, Debug)]
pub(super) enum Bound {
    Value(ValueId),
    /// Several tensors.
    Sequence(Vec<ValueId>),
    /// An optional value that is not there.
    Nothing,
    /// Something that Regraft does not compute, in words.
    Missing(String),
    /// The result of a node that was refused: what reads it is not reported again.
    Refused,
}

/// The names that the nodes of a function, or of the model itself, see.
struct Frame<'p> {
    /// Those of the graph and of the graphs inside of it, the innermost last.
    scopes: Vec<HashMap<&'p str, Bound>>,
    /// Attributes of the call.
    attributes: HashMap<&'p str, &'p Value<'p>>,
    opsets: &'p [Opset<'p>],
}

/// The model on its way to a graph.
pub(super) struct Translator<'p> {
    path: &'p Path,
    model: &'p Model<'p>,
    pub(super) b: Builder,
    weights: &'p StateDict,
    /// The names of tensors that stand in nodes, by the byte that their message begins at.
    names: &'p HashMap<usize, String>,
    /// The sources of those that were come by.
    constants: HashMap<&'p str, ValueId>,
    /// Tensors that the translation computed, by the names of their sources.
    computed: HashMap<String, Tensor>,
    functions: Functions<'p>,
    frame: Frame<'p>,
    calls: usize,
    /// Names of the symbols.
    symbols: Vec<String>,
    node_count: usize,
    problems: Vec<ProgramProblem>,
}

impl<'p> Translator<'p> {
    fn new(path: &'p Path, model: &'p Model<'p>, tensors: &'p Tensors) -> Self {
        let name = if model.graph.name.is_empty() { "model" } else { model.graph.name };
        let functions = model.functions.iter().map(|f| ((f.domain, f.name, f.overload), f)).collect();
        Translator {
            path,
            model,
            b: Builder::new(Graph::new(name), None),
            weights: &tensors.dict,
            names: &tensors.names,
            constants: HashMap::new(),
            computed: HashMap::new(),
            functions,
            frame: Frame { scopes: vec![HashMap::new()], attributes: HashMap::new(), opsets: &model.opsets },
            calls: 0,
            symbols: Vec::new(),
            node_count: 0,
            problems: Vec::new(),
        }
    }

    pub(super) fn bound(&self, name: &str) -> Option<&Bound> {
        self.lookup(name)
    }

    fn lookup(&self, name: &str) -> Option<&Bound> {
        self.frame.scopes.iter().rev().find_map(|scope| scope.get(name))
    }

    fn bind(&mut self, name: &'p str, bound: Bound) {
        if let Some(scope) = self.frame.scopes.last_mut() {
            scope.insert(name, bound);
        }
    }

    fn problem(&mut self, at: String, problem: Problem) {
        let (what, help) = match problem {
            Problem::Unsupported { what, help } => (format!("{what} is not supported"), help),
            Problem::Wrong(what) => (what, "check the model with onnx.checker, and export it again".to_owned()),
            Problem::Import(error) => {
                let explanation = error.explained();
                (explanation.what, explanation.help.unwrap_or_default())
            }
        };
        self.problems.push(ProgramProblem { at, what, help });
    }

    /// All problems so far as one error.
    fn report(&mut self) -> Result<(), ImportError> {
        match std::mem::take(&mut self.problems) {
            problems if problems.is_empty() => Ok(()),
            problems => Err(ImportError::new(self.path, ImportErrorKind::Problems(problems))),
        }
    }

    fn finish(mut self) -> Result<Imported, ImportError> {
        self.report()?;
        if let Some((symbol, at)) = open_symbol(&self.b.graph) {
            let name = self.symbols.get(symbol.0 as usize).cloned().unwrap_or_else(|| symbol.to_string());
            let what = format!("a size `{name}` that does not follow from the sizes of the inputs");
            let help = "give it as a dimension of an input, or make it static".to_owned();
            return Err(ImportError::new(self.path, ImportErrorKind::Unsupported { at: at.into(), what, help }));
        }
        // What says something about the program belongs to it.
        for index in std::mem::take(&mut self.b.read) {
            if let (Some(source), Some(tensor)) =
                (self.b.graph.sources.get_mut(index as usize), self.b.literals.get(&index))
            {
                source.kind = SourceKind::Constant;
                source.folded = Some(folded_value(tensor));
            }
        }
        let path = self.path;
        let broken = |e: regraft_ir::IrError| damaged(path, "", format!("its translation is not sound: {e}"));
        self.b.graph.compact().map_err(broken)?;
        tell_apart(&mut self.b.graph, &HashMap::new());
        self.b.graph.verify().map_err(broken)?;
        let value = |name: &str| {
            let of_node = || self.weights.constants()?.get(name);
            self.weights.get(name).or_else(of_node).or_else(|| self.computed.get(name)).cloned()
        };
        let names = |list: &[regraft_ir::Input]| list.iter().map(|i| i.name.clone()).collect::<Vec<_>>();
        let call = CallSpec {
            inputs: None,
            outputs: None,
            input_names: names(&self.b.graph.inputs),
            output_names: self.b.graph.outputs.iter().map(|o| o.name.clone()).collect(),
        };
        Ok(Imported::of(self.b.graph, call, self.node_count, value))
    }
}

/// The handler of a node that is not a call.
fn handler(node: &Node<'_>) -> Option<Handler> {
    ops::find(node.domain, node.op)
}
