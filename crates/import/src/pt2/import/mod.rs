//! From an exported program to a graph of the IR.
//!
//! Nodes are translated one by one by the handlers of `ops`. Programs as exported write in place: every tensor of the
//! program is a `Cell` over a `Storage`, and a write becomes a new value of that storage, from which views are made
//! anew. Where it is not known whether a tensor shares memory, reading it after a write is an error, never a wrong answer.

mod in_place;
mod inline;
mod inputs;
mod memory;
mod nodes;
mod outputs;
mod results;
mod sharing;
mod sizes;
mod uses;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use regraft_ir::{Graph, ValueId};
use regraft_tensor::{Dim, Range, Tensor};

use super::{
    Pt2Archive,
    args::{Problem, Res, unsupported, wrong},
    ops,
    schema::{self, Argument},
    spec::CallSpec,
};
use crate::{ImportError, ImportErrorKind, UnknownOp};
use memory::{Cell, Storage};

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
    /// Sources of the graph; tied ones count once.
    pub sources: usize,
    /// Bytes of the sources.
    pub bytes: u64,
}

/// Reads the `.pt2` file at `path` and translates its program.
///
/// # Errors
/// When the file is damaged or malformed, or the program does something that has no translation.
pub fn import_pt2(path: impl AsRef<Path>) -> Result<Imported, ImportError> {
    import_program(&Pt2Archive::open(path)?)
}

/// [`import_pt2`] without the values of the weights: all of [`Imported::weights`] are `None`, but for those without elements.
///
/// # Errors
/// As [`import_pt2`].
pub fn import_pt2_program(path: impl AsRef<Path>) -> Result<Imported, ImportError> {
    import_program(&Pt2Archive::open_program(path)?)
}

/// Whether there is a translation of the operator called `target`, such as `torch.ops.aten.linear.default`. What it is given
/// may still be refused.
pub fn is_known(target: &str) -> bool {
    ops::find(target).is_some()
}

/// Why the operator called `target` is always refused, if it is one of which that is known.
pub fn refusal(target: &str) -> Option<&'static str> {
    if ops::complex::find(target).is_some() {
        return None;
    }
    match ops::find(target)?.handler {
        ops::Handler::Refuse(why, _) => Some(why),
        _ => None,
    }
}

/// Translates the program of an archive.
///
/// # Errors
/// When the program does something that has no translation.
pub fn import_program(archive: &Pt2Archive) -> Result<Imported, ImportError> {
    check_known(archive)?;
    let mut t = Translator::new(archive);
    t.inputs()?;
    t.nodes(archive.graph(), 0)?;
    t.outputs()?;
    t.finish()
}

/// Refuses the program once for all operators that are not known.
fn check_known(archive: &Pt2Archive) -> Result<(), ImportError> {
    let mut unknown: Vec<UnknownOp> = Vec::new();
    let mut index: BTreeMap<&str, usize> = BTreeMap::new();
    let mut graphs = vec![archive.graph()];
    while let Some(graph) = graphs.pop() {
        for node in &graph.nodes {
            if ops::find(&node.target).is_none() {
                if let Some(op) = index.get(node.target.as_str()).and_then(|&i| unknown.get_mut(i)) {
                    op.count += 1;
                } else {
                    index.insert(&node.target, unknown.len());
                    let (target, module_path) = (node.target.clone(), node.module_path());
                    unknown.push(UnknownOp { target, count: 1, module_path });
                }
            }
            graphs.extend(node.inputs.iter().filter_map(|i| match &i.arg {
                Argument::Graph(inner) => Some(&*inner.graph),
                _ => None,
            }));
        }
    }
    if unknown.is_empty() {
        return Ok(());
    }
    Err(ImportError::new(&archive.path, ImportErrorKind::UnknownOps(unknown)))
}

/// What a name of the program stands for.
#[derive(Clone, Debug)]
enum Bound {
    Tensor(usize),
    Dim(Dim),
    /// Something that Regraft does not compute, in words.
    Missing(String),
}

/// The program on its way to a graph.
pub(crate) struct Translator<'p> {
    pub(crate) archive: &'p Pt2Archive,
    pub(crate) graph: Graph,
    pub(crate) ranges: Vec<Range>,
    /// The graph whose nodes are being translated.
    current: &'p schema::Graph,
    env: HashMap<&'p str, Bound>,
    cells: Vec<Cell>,
    storages: Vec<Storage>,
    /// Whether a value is computed from sources alone, by its id.
    constant: Vec<bool>,
    /// The cell of each source, by name.
    buffers: HashMap<&'p str, usize>,
    /// The class of the module of each scope.
    classes: HashMap<Arc<str>, &'p str>,
    node_count: usize,
}

impl<'p> Translator<'p> {
    fn new(archive: &'p Pt2Archive) -> Self {
        let mut graph = Graph::new(archive.model.clone());
        for info in archive.symbols.iter() {
            let opt = info.opt.unwrap_or_else(|| 1i64.clamp(info.range.min, info.range.max));
            graph.add_symbol(info.range, opt);
        }
        Translator {
            archive,
            graph,
            ranges: archive.symbols.ranges(),
            current: archive.graph(),
            env: HashMap::new(),
            cells: Vec::new(),
            storages: Vec::new(),
            constant: Vec::new(),
            buffers: HashMap::new(),
            classes: HashMap::new(),
            node_count: 0,
        }
    }

    fn finish(mut self) -> Result<Imported, ImportError> {
        let archive = self.archive;
        let broken = |e: regraft_ir::IrError| archive.schema_error("", format!("its translation is not sound: {e}"));
        self.check_symbols()?;
        self.graph.compact().map_err(broken)?;
        uses::tell_apart(&mut self.graph, &self.classes);
        self.graph.verify().map_err(broken)?;
        let graph = self.graph;
        let mut weights = Vec::with_capacity(graph.sources.len());
        let mut bytes = 0u64;
        let sources = graph.sources.iter().filter(|source| source.twin_of.is_none()).count();
        for source in &graph.sources {
            let of = source.twin_of.and_then(|of| graph.sources.get(of as usize));
            let weight = archive.weights.get(&of.unwrap_or(source).name).and_then(|w| w.tensor.clone());
            if of.is_some() {
                weights.push(weight);
                continue;
            }
            let ty = graph.ty(source.value);
            let len = ty.sizes().and_then(|s| Tensor::byte_len(ty.dtype, &s).ok()).unwrap_or(0);
            bytes = bytes.saturating_add(len as u64);
            weights.push(weight);
        }
        let report = ImportReport { nodes: self.node_count, sources, bytes };
        Ok(Imported { weights, call: archive.call.clone(), report, graph })
    }

    /// The tensor called `name`, as it is now.
    pub(crate) fn read(&mut self, name: &str, scope: &Arc<str>) -> Res<ValueId> {
        match self.env.get(name) {
            Some(Bound::Tensor(cell)) => {
                let cell = *cell;
                self.read_cell(cell, scope)
            }
            Some(Bound::Missing(what)) => unsupported(what.clone(), "change the model so that nothing needs it"),
            Some(Bound::Dim(_)) => wrong(format!("expected a tensor `{name}`, found an integer")),
            None => wrong(format!("it reads `{name}`, which nothing before it makes")),
        }
    }

    /// What the number called `name` is, if it is one that Regraft does not compute.
    pub(crate) fn missing(&self, name: &str) -> Option<String> {
        match self.env.get(name) {
            Some(Bound::Missing(what)) => Some(what.clone()),
            _ => None,
        }
    }

    /// The symbolic integer called `name`.
    pub(crate) fn dim(&self, name: &str) -> Res<Dim> {
        match self.env.get(name) {
            Some(Bound::Dim(dim)) => Ok(dim.clone()),
            Some(Bound::Missing(what)) => unsupported(what.clone(), "change the model so that nothing needs it"),
            Some(Bound::Tensor(_)) => wrong(format!("expected an integer `{name}`, found a tensor")),
            None => wrong(format!("it reads `{name}`, which nothing before it makes")),
        }
    }

    /// The value that an expression had when the program was exported.
    pub(crate) fn example(&self, dim: &Dim) -> Option<i64> {
        let opts: Vec<i64> = self.archive.symbols.iter().map(|s| s.opt).collect::<Option<_>>()?;
        dim.eval(&opts).ok()
    }

    /// What the program says of a tensor.
    fn meta(&self, name: &str) -> Option<&'p schema::TensorMeta> {
        self.current.tensor_values.get(name)
    }
}

/// The error of a problem at the node or value `at`.
fn self_error(archive: &Pt2Archive, at: &str, problem: Problem) -> ImportError {
    match problem {
        Problem::Unsupported { what, help } => {
            ImportError::new(&archive.path, ImportErrorKind::Unsupported { at: at.to_owned(), what, help })
        }
        Problem::Wrong(why) => archive.schema_error(at, why),
        Problem::Import(error) => error,
    }
}
