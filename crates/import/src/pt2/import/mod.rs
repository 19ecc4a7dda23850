//! From an exported program to a graph of the IR.
//!
//! Nodes are translated one by one by the handlers of `ops`. Programs as exported write in place: every tensor of the
//! program is a `Cell` over a `Storage`, and a write becomes a new value of that storage, from which views are made
//! again. Where it is not known whether a tensor shares memory, reading it after a write is an error, never a wrong answer.

mod control;
mod counted;
mod in_place;
mod inline;
mod inputs;
mod memory;
mod nodes;
mod outputs;
mod results;
mod sharing;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use regraft_ir::{Graph, ValueId};
use regraft_tensor::{Dim, Symbol};

use super::{
    Pt2Archive,
    args::{Problem, Res, unsupported, wrong},
    ops,
    schema::{self, Argument},
};
use crate::{
    At, ImportError, ImportErrorKind, Imported, UnknownOp,
    build::{Builder, open_symbol, tell_apart},
};
use counted::Count;
pub(crate) use counted::CountedAxis;
use memory::{Cell, Storage};

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
    pub(crate) b: Builder,
    /// The graph whose nodes are being translated.
    current: &'p schema::Graph,
    env: HashMap<&'p str, Bound>,
    cells: Vec<Cell>,
    storages: Vec<Storage>,
    /// The cell of each source, by name.
    buffers: HashMap<&'p str, usize>,
    /// The class of the module of each scope.
    classes: HashMap<Arc<str>, &'p str>,
    node_count: usize,
    /// Sizes that the program counts while it runs.
    counts: HashMap<Symbol, Count>,
    /// Names of the outputs that are new values of inputs.
    written: Vec<String>,
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
            b: Builder::new(graph, archive.symbols.iter().map(|s| s.opt).collect()),
            current: archive.graph(),
            env: HashMap::new(),
            cells: Vec::new(),
            storages: Vec::new(),
            buffers: HashMap::new(),
            classes: HashMap::new(),
            node_count: 0,
            counts: HashMap::new(),
            written: Vec::new(),
        }
    }

    fn finish(mut self) -> Result<Imported, ImportError> {
        let archive = self.archive;
        let broken = |e: regraft_ir::IrError| archive.schema_error("", format!("its translation is not sound: {e}"));
        self.check_symbols()?;
        self.b.graph.compact().map_err(broken)?;
        tell_apart(&mut self.b.graph, &self.classes);
        self.b.graph.verify().map_err(broken)?;
        let value = |name: &str| archive.weights.get(name).and_then(|w| w.tensor.clone());
        let mut call = archive.call.clone();
        call.output_names.extend(self.written);
        Ok(Imported::of(self.b.graph, call, self.node_count, value))
    }

    /// Every symbol that the graph uses must follow from the sizes of the inputs.
    fn check_symbols(&self) -> Result<(), ImportError> {
        let Some((symbol, at)) = open_symbol(&self.b.graph) else { return Ok(()) };
        let name = self.archive.symbols.info(symbol).map_or_else(|| symbol.to_string(), |i| i.name.clone());
        Err(self_error(
            self.archive,
            at,
            Problem::Unsupported {
                what: format!("a size `{name}` that does not follow from the sizes of the inputs"),
                help: "give it as a dimension of an input, or make it static".to_owned(),
            },
        ))
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

    /// What the program says of a tensor.
    fn meta(&self, name: &str) -> Option<&'p schema::TensorMeta> {
        self.current.tensor_values.get(name)
    }
}

/// The error of a problem at the node or value `at`.
fn self_error(archive: &Pt2Archive, at: impl Into<At>, problem: Problem) -> ImportError {
    match problem {
        Problem::Unsupported { what, help } => {
            ImportError::new(&archive.path, ImportErrorKind::Unsupported { at: at.into(), what, help })
        }
        Problem::Wrong(why) => archive.schema_error(at, why),
        Problem::Import(error) => error,
    }
}
