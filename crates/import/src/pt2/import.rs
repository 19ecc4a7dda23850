//! From an exported program to a graph of the IR.
//!
//! Nodes are translated one by one by the handlers of [`ops`]. Programs as exported write in place: every tensor of the
//! program is a [`Cell`] over a [`Storage`], and a write becomes a new value of that storage, from which views are made
//! anew. Where it is not known whether a tensor shares memory, reading it after a write is an error, never a wrong answer.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use regraft_ir::{
    Graph, Op, SourceKind, TensorType, ValueId,
    attr::AttrValue,
    ops::{Concat, Expand, Permute, Reshape, SizeOf, Slice},
};
use regraft_tensor::{Atom, Dim, Range, Symbol, Tensor};

use super::{
    Pt2Archive,
    args::{Cx, DECOMPOSE, Problem, Res, row_major, simpler, unsupported, wrong},
    ops::{self, Handler},
    schema::{self, Argument, InputSpec, Node, OptionalTensorArgument, OutputSpec, SymIntArgument},
    spec::CallSpec,
};
use crate::{ImportError, ImportErrorKind, UnknownOp};

/// Inner graphs may hold inner graphs, but not this deep.
const MAX_NESTING: usize = 32;

/// An imported program.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The program.
    pub graph: Graph,
    /// The value of each source, by its index; `None` where the file holds none.
    pub weights: Vec<Option<Tensor>>,
    /// How the program is called: the structure of inputs and outputs, with constant inputs, and their names.
    pub call: CallSpec,
    /// Names of parameters and buffers of the program that its result does not depend on.
    pub unused_sources: Vec<String>,
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

/// A tensor of the program: memory, seen in one way.
#[derive(Debug)]
struct Cell {
    value: ValueId,
    storage: usize,
    view: View,
    /// The version of the storage that `value` shows.
    version: u32,
}

/// How a tensor relates to the base of its storage.
#[derive(Clone, Debug)]
enum View {
    /// The base itself.
    Base,
    /// The base seen through these ops.
    Through(Arc<[Op]>),
    /// A view or a copy; which, is not known.
    Unclear,
}

/// Memory that one or more tensors of the program see.
#[derive(Debug)]
struct Storage {
    base: usize,
    origin: Origin,
    version: u32,
    /// Whether something was written that did not find its way into the base.
    lost: bool,
}

#[derive(Clone, Debug)]
enum Origin {
    Input(String),
    Source(u32, SourceKind),
    Computed,
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
            node_count: 0,
        }
    }

    // ---- inputs and outputs ----

    fn inputs(&mut self) -> Result<(), ImportError> {
        let archive = self.archive;
        let mut roots: HashMap<&str, (u32, usize)> = HashMap::new();
        for spec in &archive.program.graph_module.signature.input_specs {
            let (Some(name), Some(graph_name)) = (spec.source(), spec.graph_name()) else { continue };
            let kind = match spec {
                InputSpec::Parameter(_) => SourceKind::Parameter,
                InputSpec::Buffer(b) if b.persistent => SourceKind::Buffer,
                InputSpec::Buffer(_) => SourceKind::NonPersistentBuffer,
                _ => SourceKind::Constant,
            };
            let weight = archive.weights.get(name);
            let root = weight.and_then(|w| w.alias_of.as_deref()).unwrap_or(name);
            let cell = match roots.get(root) {
                Some(&(source, cell)) => {
                    if let Some(source) = self.graph.sources.get_mut(source as usize) {
                        source.aliases.push(name.to_owned());
                    }
                    cell
                }
                None => {
                    let ty = archive.tensor_type(archive.graph(), graph_name)?;
                    let value = self.graph.add_source(name, kind, TensorType::new(ty.dtype, ty.shape));
                    let source = self.graph.sources.len() as u32 - 1;
                    self.mark(value, true);
                    let cell = self.new_storage(value, Origin::Source(source, kind));
                    roots.insert(root, (source, cell));
                    cell
                }
            };
            self.buffers.insert(name, cell);
            self.env.insert(graph_name, Bound::Tensor(cell));
        }
        // Tied names that the signature leaves out, since the program reads the tensor by another name.
        for (name, root) in archive.weights.aliases() {
            if let (false, Some(&(source, _))) = (self.buffers.contains_key(name), roots.get(root))
                && let Some(source) = self.graph.sources.get_mut(source as usize)
            {
                source.aliases.push(name.to_owned());
            }
        }
        for (root, (source, _)) in &roots {
            if !self.buffers.contains_key(root)
                && let Some(source) = self.graph.sources.get_mut(*source as usize)
            {
                source.aliases.push((*root).to_owned());
            }
        }
        for (name, spec) in archive.user_inputs() {
            let Some(graph_name) = spec.graph_name() else { continue };
            let bound = match spec {
                InputSpec::UserInput(u) => match &u.arg {
                    Argument::Tensor(_) => {
                        let ty = archive.tensor_type(archive.graph(), graph_name)?;
                        let value = self.graph.add_input(name, TensorType::new(ty.dtype, ty.shape));
                        self.mark(value, false);
                        Bound::Tensor(self.new_storage(value, Origin::Input(name.to_owned())))
                    }
                    Argument::SymInt(_) => Bound::Dim(archive.sym_int(archive.graph(), graph_name)?),
                    _ => Bound::Missing(format!("the input `{name}`, which is no tensor")),
                },
                _ => Bound::Missing(format!("the constant input `{name}`")),
            };
            self.env.insert(graph_name, bound);
        }
        Ok(())
    }

    fn outputs(&mut self) -> Result<(), ImportError> {
        let archive = self.archive;
        let module = &archive.program.graph_module;
        let scope: Arc<str> = "".into();
        let mut names = archive.call.output_names.iter();
        let mut mutated: Vec<(usize, ValueId)> = Vec::new();
        for (i, (spec, arg)) in module.signature.output_specs.iter().zip(&module.graph.outputs).enumerate() {
            let at = format!("output {i}");
            let fail = |problem| self_error(archive, &at, problem);
            match spec {
                OutputSpec::UserOutput(_) | OutputSpec::Loss(_) => {
                    let name = names.next().cloned().unwrap_or_else(|| format!("output_{i}"));
                    let value = match arg {
                        Argument::Tensor(t) => self.read(&t.name, &scope),
                        Argument::OptionalTensor(OptionalTensorArgument::Tensor(t)) => self.read(&t.name, &scope),
                        Argument::SymInt(SymIntArgument::Name(n)) => self
                            .dim(n)
                            .and_then(|value| self.add(SizeOf { value }.into(), vec![], &scope))
                            .and_then(|v| v.first().copied().map_or_else(|| wrong("no result"), Ok)),
                        // Literals and `None` are part of the structure of the outputs.
                        _ => continue,
                    };
                    let value = value.map_err(fail)?;
                    self.graph.add_output(name, value);
                }
                OutputSpec::BufferMutation(b) => {
                    let Some(&cell) = self.buffers.get(b.buffer_name.as_str()) else {
                        return Err(
                            archive.schema_error(&*b.buffer_name, "it is written, but the program has no such buffer")
                        );
                    };
                    let value = self.read(&b.arg.name, &scope).map_err(fail)?;
                    mutated.push((cell, value));
                }
                OutputSpec::UserInputMutation(m) => {
                    return Err(fail(Problem::Unsupported {
                        what: format!("writing to the input `{}`", m.user_input_name),
                        help: "return the new value as an output of forward()".to_owned(),
                    }));
                }
                OutputSpec::ParameterMutation(p) => {
                    return Err(fail(Problem::Unsupported {
                        what: format!("writing to the parameter `{}`", p.parameter_name),
                        help: "export the model in evaluation mode (model.eval())".to_owned(),
                    }));
                }
                OutputSpec::GradientToParameter(_) | OutputSpec::GradientToUserInput(_) => {
                    return Err(fail(Problem::Unsupported {
                        what: "a training program".to_owned(),
                        help: "export the model's forward() alone".to_owned(),
                    }));
                }
                OutputSpec::Token(_) => {}
                OutputSpec::Unknown(tag) => {
                    return Err(archive.schema_error(at, format!("it is an unknown kind of output `{tag}`")));
                }
            }
        }
        // Programs as exported write to buffers in place and do not list them.
        for cell in 0..self.cells.len() {
            let Some((c, s)) = self.cells.get(cell).and_then(|c| Some((c, self.storages.get(c.storage)?))) else {
                continue;
            };
            let Origin::Source(source, _) = s.origin else { continue };
            if s.base != cell || s.version == 0 {
                continue;
            }
            if s.lost {
                let name = self.graph.sources.get(source as usize).map_or_else(String::new, |s| s.name.clone());
                return Err(self_error(archive, &name, lost()));
            }
            if !mutated.iter().any(|(m, _)| *m == cell) {
                mutated.push((cell, c.value));
            }
        }
        for (cell, next) in mutated {
            let Some(storage) = self.cells.get(cell).and_then(|c| self.storages.get(c.storage)) else { continue };
            let Origin::Source(source, _) = storage.origin else { continue };
            let Some(Some((name, init))) =
                self.graph.sources.get(source as usize).map(|s| Some((s.name.clone(), s.value)))
            else {
                continue;
            };
            if self.graph.states.iter().any(|s| s.init == source) {
                return Err(archive.schema_error(name, "it is written twice"));
            }
            let (from, to) = (self.graph.ty(init).clone(), self.graph.ty(next).clone());
            if from != to {
                return Err(archive.schema_error(name, format!("it goes from {from} to {to}")));
            }
            let state = self.graph.add_state(name, source);
            self.graph.replace_uses(init, state);
            if let Some(state) = self.graph.states.last_mut() {
                state.next = if next == init { state.value } else { next };
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Imported, ImportError> {
        let archive = self.archive;
        let broken = |e: regraft_ir::IrError| archive.schema_error("", format!("its translation is not sound: {e}"));
        self.check_symbols()?;
        let all: Vec<String> = self.graph.sources.iter().map(|s| s.name.clone()).collect();
        self.graph.compact().map_err(broken)?;
        self.graph.verify().map_err(broken)?;
        let graph = self.graph;
        let mut weights = Vec::with_capacity(graph.sources.len());
        let mut bytes = 0u64;
        for source in &graph.sources {
            let weight = archive.weights.get(&source.name).and_then(|w| w.tensor.clone());
            let ty = graph.ty(source.value);
            let len = ty.sizes().and_then(|s| Tensor::byte_len(ty.dtype, &s).ok()).unwrap_or(0);
            bytes = bytes.saturating_add(len as u64);
            weights.push(weight);
        }
        let live: std::collections::HashSet<&str> = graph.sources.iter().map(|s| s.name.as_str()).collect();
        let unused_sources = all.into_iter().filter(|n| !live.contains(n.as_str())).collect();
        let report = ImportReport { nodes: self.node_count, sources: graph.sources.len(), bytes };
        Ok(Imported { weights, call: archive.call.clone(), unused_sources, report, graph })
    }

    /// Every symbol that the graph uses must follow from the sizes of the inputs.
    fn check_symbols(&self) -> Result<(), ImportError> {
        let mut known = vec![false; self.graph.symbols.len()];
        for dim in self.graph.inputs.iter().flat_map(|i| &self.graph.ty(i.value).shape) {
            if let ([(atoms, _)], _) = dim.parts()
                && let [Atom::Sym(s)] = atoms.as_slice()
                && let Some(known) = known.get_mut(s.0 as usize)
            {
                *known = true;
            }
        }
        let mut open: Option<(Symbol, String)> = None;
        let mut check = |dim: &Dim, at: &str| {
            dim.for_each_symbol(&mut |s| {
                if !known.get(s.0 as usize).copied().unwrap_or(false) && open.is_none() {
                    open = Some((s, at.to_owned()));
                }
            });
        };
        for node in self.graph.nodes() {
            for v in &node.outputs {
                self.graph.ty(*v).shape.iter().for_each(|d| check(d, &node.scope));
            }
            for (_, value) in node.op.attrs() {
                each_dim(&value, &mut |d| check(d, &node.scope));
            }
        }
        for input in &self.graph.inputs {
            self.graph.ty(input.value).shape.iter().for_each(|d| check(d, &input.name));
        }
        let Some((symbol, at)) = open else { return Ok(()) };
        let name = self.archive.symbols.info(symbol).map_or_else(|| symbol.to_string(), |i| i.name.clone());
        Err(self_error(
            self.archive,
            &at,
            Problem::Unsupported {
                what: format!("a size `{name}` that does not follow from the sizes of the inputs"),
                help: "give it as a dimension of an input, or make it static".to_owned(),
            },
        ))
    }

    // ---- names ----

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

    // ---- memory ----

    fn new_storage(&mut self, value: ValueId, origin: Origin) -> usize {
        let cell = self.cells.len();
        self.cells.push(Cell { value, storage: self.storages.len(), view: View::Base, version: 0 });
        self.storages.push(Storage { base: cell, origin, version: 0, lost: false });
        cell
    }

    fn cell_parts(&self, cell: usize) -> Res<(&Cell, &Storage)> {
        self.cells
            .get(cell)
            .and_then(|c| Some((c, self.storages.get(c.storage)?)))
            .map_or_else(|| wrong("a tensor is not known"), Ok)
    }

    fn read_cell(&mut self, cell: usize, scope: &Arc<str>) -> Res<ValueId> {
        let (c, s) = self.cell_parts(cell)?;
        let (version, base) = (s.version, s.base);
        if c.version == version {
            return Ok(c.value);
        }
        if s.lost {
            return Err(lost());
        }
        let value = match &c.view {
            View::Base => return Ok(c.value),
            View::Unclear => return Err(lost()),
            View::Through(chain) => {
                let chain = chain.clone();
                let mut value = self.cell_parts(base)?.0.value;
                for op in chain.iter() {
                    value = self.add_one(op.clone(), &[value], scope)?;
                }
                value
            }
        };
        if let Some(c) = self.cells.get_mut(cell) {
            (c.value, c.version) = (value, version);
        }
        Ok(value)
    }

    /// A tensor that sees the memory of `of`; `sure` says whether it is known to share it.
    fn view_of(&mut self, of: usize, value: ValueId, sure: bool) -> Res<usize> {
        let (parent, storage) = self.cell_parts(of)?;
        let (index, version) = (parent.storage, storage.version);
        let before: &[Op] = match &parent.view {
            View::Base | View::Unclear => &[],
            View::Through(chain) => chain,
        };
        let view = match self.chain(parent.value, value) {
            Some(chain) if sure && !matches!(parent.view, View::Unclear) => {
                View::Through(before.iter().chain(chain.iter()).cloned().collect())
            }
            _ => View::Unclear,
        };
        self.cells.push(Cell { value, storage: index, view, version });
        Ok(self.cells.len() - 1)
    }

    /// The ops that make `value` from `base`, when each moves elements of one operand only.
    fn chain(&self, base: ValueId, value: ValueId) -> Option<Arc<[Op]>> {
        let (mut ops, mut at) = (Vec::new(), value);
        while at != base {
            let node = self.graph.node(self.graph.producer(at)?);
            let moves = matches!(node.op, Op::Reshape(_) | Op::Permute(_) | Op::Slice(_) | Op::Expand(_));
            let [Some(from)] = node.inputs.as_slice() else { return None };
            if !moves || ops.len() > 256 {
                return None;
            }
            ops.push(node.op.clone());
            at = *from;
        }
        ops.reverse();
        Some(ops.into())
    }

    /// Writes `value`, of the type of the tensor `cell`, to its memory.
    fn write(&mut self, cell: usize, value: ValueId, scope: &Arc<str>) -> Res<()> {
        let (c, s) = self.cell_parts(cell)?;
        match &s.origin {
            Origin::Input(name) => {
                return unsupported(format!("writing to the input `{name}`"), "write to a clone of it in forward()");
            }
            Origin::Source(source, SourceKind::Parameter | SourceKind::Constant) => {
                let name = self.graph.sources.get(*source as usize).map_or("", |s| &s.name);
                let what = format!("writing to `{name}`, which is no buffer");
                return unsupported(what, "register it with register_buffer()");
            }
            Origin::Source(..) | Origin::Computed => {}
        }
        let (storage, base, view) = (c.storage, s.base, c.view.clone());
        if s.lost {
            return Err(lost());
        }
        let new_base = match view {
            View::Base => Some(value),
            View::Through(chain) => {
                let old = self.cell_parts(base)?.0.value;
                Some(self.write_through(&chain, old, value, scope)?)
            }
            View::Unclear => None,
        };
        let version = match self.storages.get_mut(storage) {
            Some(s) => {
                s.version += 1;
                s.lost = new_base.is_none();
                s.version
            }
            None => return wrong("a tensor is not known"),
        };
        for (at, value) in [(base, new_base), (cell, Some(value))] {
            if let (Some(c), Some(value)) = (self.cells.get_mut(at), value) {
                (c.value, c.version) = (value, version);
            }
        }
        Ok(())
    }

    /// The base after `value` was written to what `chain` shows of it.
    fn write_through(&mut self, chain: &[Op], base: ValueId, value: ValueId, scope: &Arc<str>) -> Res<ValueId> {
        let mut steps = vec![base];
        for op in chain {
            let last = *steps.last().unwrap_or(&base);
            steps.push(self.add_one(op.clone(), &[last], scope)?);
        }
        let mut new = value;
        for (op, &from) in chain.iter().zip(&steps).rev() {
            let ty = self.graph.ty(from).clone();
            new = match op {
                Op::Reshape(_) => self.add_one(Reshape { shape: ty.shape }.into(), &[new], scope)?,
                Op::Permute(p) => {
                    let mut perm = vec![0; p.perm.len()];
                    for (i, &axis) in p.perm.iter().enumerate() {
                        if let Some(slot) = perm.get_mut(axis) {
                            *slot = i;
                        }
                    }
                    self.add_one(Permute { perm }.into(), &[new], scope)?
                }
                Op::Slice(s) if s.step == 1 => {
                    let size = ty.shape.get(s.axis).cloned().unwrap_or(Dim::new(1));
                    let mut parts = Vec::new();
                    if !s.start.is(0) {
                        let before = Slice { axis: s.axis, start: Dim::new(0), end: s.start.clone(), step: 1 };
                        parts.push(self.add_one(before.into(), &[from], scope)?);
                    }
                    parts.push(new);
                    if s.end != size {
                        let after = Slice { axis: s.axis, start: s.end.clone(), end: size, step: 1 };
                        parts.push(self.add_one(after.into(), &[from], scope)?);
                    }
                    match parts.as_slice() {
                        [one] => *one,
                        parts => self.add_one(Concat { axis: s.axis }.into(), parts, scope)?,
                    }
                }
                _ => return unsupported("writing in place to a view that skips or repeats elements", DECOMPOSE),
            };
        }
        Ok(new)
    }

    // ---- nodes of the graph ----

    fn mark(&mut self, value: ValueId, constant: bool) {
        let at = value.0 as usize;
        if self.constant.len() <= at {
            self.constant.resize(at + 1, false);
        }
        if let Some(slot) = self.constant.get_mut(at) {
            *slot = constant;
        }
    }

    pub(crate) fn is_constant(&self, value: ValueId) -> bool {
        self.constant.get(value.0 as usize).copied().unwrap_or(false)
    }

    pub(crate) fn add(&mut self, op: Op, inputs: Vec<Option<ValueId>>, scope: &Arc<str>) -> Res<Vec<ValueId>> {
        let constant =
            inputs.iter().flatten().next().is_some() && inputs.iter().flatten().all(|v| self.is_constant(*v));
        let outputs = self.graph.add(op, inputs, scope)?;
        for v in &outputs {
            self.mark(*v, constant);
        }
        Ok(outputs)
    }

    fn add_one(&mut self, op: Op, inputs: &[ValueId], scope: &Arc<str>) -> Res<ValueId> {
        let out = self.add(op, inputs.iter().map(|v| Some(*v)).collect(), scope)?;
        out.first().copied().map_or_else(|| wrong("the operator has no result"), Ok)
    }

    // ---- nodes of the program ----

    fn nodes(&mut self, graph: &'p schema::Graph, depth: usize) -> Result<(), ImportError> {
        let outer = std::mem::replace(&mut self.current, graph);
        for node in &graph.nodes {
            self.node_count += 1;
            self.node(node, depth).map_err(|problem| {
                let op = node.target.strip_prefix("torch.ops.").unwrap_or(&node.target);
                let module = node.module_path();
                let place = if module.is_empty() { String::new() } else { format!(" in {module}") };
                self_error(self.archive, &format!("{} ({op}{place})", node.label()), problem)
            })?;
        }
        self.current = outer;
        Ok(())
    }

    fn node(&mut self, node: &'p Node, depth: usize) -> Res<()> {
        let Some(found) = ops::find(&node.target) else { return wrong("the operator is not known") };
        let names: Vec<&'p str> = result_names(node);
        let results = names
            .iter()
            .map(|n| {
                let ty = self.archive.tensor_type(self.current, n).ok()?;
                Some(TensorType::new(ty.dtype, ty.shape))
            })
            .collect();
        let mut cx = Cx { t: self, node, results, scope: node.module_path().into() };
        match found.handler {
            Handler::Drop => {
                for name in names {
                    cx.t.env.insert(name, Bound::Missing(format!("the result of {}", node.target)));
                }
                Ok(())
            }
            Handler::Refuse(what, help) => unsupported(what, help),
            Handler::Dim(f) => {
                let Some(&name) = names.first() else { return Ok(()) };
                // The exporter's own expression is the canonical one.
                let known = cx.t.archive.sym_int(cx.t.current, name);
                let computed = f(&mut cx);
                let bound = match (computed, known) {
                    (Ok(a), Ok(b)) => Bound::Dim(simpler(&a, &b)),
                    (_, Ok(known)) => Bound::Dim(known),
                    (Ok(computed), Err(_)) if cx.t.current.sym_float_values.contains_key(name) => {
                        drop(computed);
                        Bound::Missing("a float that depends on sizes".to_owned())
                    }
                    (Ok(computed), Err(_)) => Bound::Dim(computed),
                    (Err(_), Err(_)) => Bound::Missing("a number that depends on sizes in an unknown way".to_owned()),
                };
                cx.t.env.insert(name, bound);
                Ok(())
            }
            Handler::One(f) if found.in_place => {
                let value = f(&mut cx)?;
                cx.write_back(value, &names)
            }
            Handler::One(f) => {
                let value = f(&mut cx)?;
                cx.bind(&names, vec![Some(value)], |t, _, v| Ok(t.new_storage(v, Origin::Computed)))
            }
            Handler::Many(f) => {
                let values = f(&mut cx)?;
                cx.bind(&names, values, |t, _, v| Ok(t.new_storage(v, Origin::Computed)))
            }
            Handler::View(f) => {
                let value = f(&mut cx)?;
                let of = cx.first_cell()?;
                cx.bind(&names, vec![Some(value)], |t, _, v| t.view_of(of, v, true))?;
                if found.in_place {
                    cx.rename_first(&names);
                }
                Ok(())
            }
            Handler::MaybeView(f) => {
                let value = f(&mut cx)?;
                let of = cx.first_cell()?;
                match cx.sharing(&names) {
                    Sharing::Same if cx.t.cells.get(of).is_some_and(|c| c.value == value) => {
                        for name in names {
                            cx.t.env.insert(name, Bound::Tensor(of));
                        }
                        Ok(())
                    }
                    Sharing::Same | Sharing::View => {
                        cx.bind(&names, vec![Some(value)], |t, _, v| t.view_of(of, v, true))
                    }
                    Sharing::Unclear => cx.bind(&names, vec![Some(value)], |t, _, v| t.view_of(of, v, false)),
                    Sharing::None => {
                        cx.bind(&names, vec![Some(value)], |t, _, v| Ok(t.new_storage(v, Origin::Computed)))
                    }
                }
            }
            Handler::Views(f) => {
                let values = f(&mut cx)?;
                let of = cx.first_cell()?;
                cx.bind(&names, values.into_iter().map(Some).collect(), |t, _, v| t.view_of(of, v, true))
            }
            Handler::ViewsOfEach(f) => {
                let values = f(&mut cx)?;
                let mut given = Vec::new();
                if let Some(first) = node.inputs.first() {
                    first.arg.for_each_name(&mut |n| given.push(cx.t.env.get(n).cloned()));
                }
                cx.bind(&names, values.into_iter().map(Some).collect(), |t, i, v| match given.get(i) {
                    Some(Some(Bound::Tensor(of))) => t.view_of(*of, v, true),
                    _ => wrong("expected as many tensors as results"),
                })
            }
            Handler::Inline => self.inline(node, &names, depth),
        }
    }

    /// A call of an inner graph that runs as if it stood here.
    fn inline(&mut self, node: &'p Node, names: &[&'p str], depth: usize) -> Res<()> {
        if depth >= MAX_NESTING {
            return unsupported(format!("inner graphs nested deeper than {MAX_NESTING}"), "simplify the model");
        }
        let Some(at) = node.inputs.iter().position(|i| matches!(i.arg, Argument::Graph(_))) else {
            return wrong("expected an inner graph among the arguments");
        };
        let (before, rest) = node.inputs.split_at(at);
        if node.target.ends_with("wrap_with_autocast") && before.iter().any(|i| i.arg == Argument::Bool(true)) {
            // The first condition says whether it is enabled, the second is about its cache.
            let enabled = before.iter().find_map(|i| match i.arg {
                Argument::Bool(enabled) => Some(enabled),
                _ => None,
            });
            if enabled == Some(true) {
                return unsupported("autocast", "convert the model to the wanted dtype before exporting it");
            }
        }
        let Some((Argument::Graph(inner), operands)) = rest.split_first().map(|(g, o)| (&g.arg, o)) else {
            return wrong("expected an inner graph among the arguments");
        };
        let mut given: Vec<&'p Argument> = Vec::new();
        operands.iter().for_each(|i| given.push(&i.arg));
        let mut flat: Vec<Bound> = Vec::new();
        for arg in given {
            let mut missing = None;
            arg.for_each_name(&mut |name| match self.env.get(name) {
                Some(bound) => flat.push(bound.clone()),
                None => missing = Some(name),
            });
            if let Some(name) = missing {
                return wrong(format!("it reads `{name}`, which nothing before it makes"));
            }
        }
        let params: Vec<&'p str> = inner.graph.inputs.iter().filter_map(Argument::first_name).collect();
        if params.len() != flat.len() {
            return wrong(format!("its inner graph takes {} values, found {}", params.len(), flat.len()));
        }
        let outer = std::mem::take(&mut self.env);
        self.env = params.into_iter().zip(flat).collect();
        self.nodes(&inner.graph, depth + 1)?;
        let mut results = Vec::new();
        let mut missing = None;
        for output in &inner.graph.outputs {
            output.for_each_name(&mut |name| match self.env.get(name) {
                Some(bound) => results.push(bound.clone()),
                None => missing = Some(name),
            });
        }
        self.env = outer;
        if let Some(name) = missing {
            return wrong(format!("its inner graph gives `{name}`, which nothing makes"));
        }
        if names.len() != results.len() {
            return wrong(format!("its inner graph gives {} values, {} are expected", results.len(), names.len()));
        }
        self.env.extend(names.iter().copied().zip(results));
        Ok(())
    }
}

/// Whether the result of an op shares memory with its first argument.
enum Sharing {
    /// It is the same tensor.
    Same,
    View,
    None,
    Unclear,
}

impl<'p> Cx<'_, 'p> {
    fn first_name(&self) -> Res<&'p str> {
        let name = self.node.inputs.first().and_then(|i| i.arg.first_name());
        name.map_or_else(|| wrong("expected a tensor as its first argument"), Ok)
    }

    fn first_cell(&self) -> Res<usize> {
        match self.t.env.get(self.first_name()?) {
            Some(Bound::Tensor(cell)) => Ok(*cell),
            _ => wrong("expected a tensor as its first argument"),
        }
    }

    /// Binds names to results; what is missing may not be read.
    fn bind(
        &mut self,
        names: &[&'p str],
        values: Vec<Option<ValueId>>,
        mut cell: impl FnMut(&mut Translator<'p>, usize, ValueId) -> Res<usize>,
    ) -> Res<()> {
        if values.len() < names.len() {
            return wrong(format!("it has {} results, {} are expected", values.len(), names.len()));
        }
        for (i, (&name, value)) in names.iter().zip(values).enumerate() {
            let bound = match value {
                Some(value) => {
                    self.check_type(i, name, value)?;
                    Bound::Tensor(cell(self.t, i, value)?)
                }
                None => Bound::Missing(format!("result {i} of {}", self.node.target)),
            };
            self.t.env.insert(name, bound);
        }
        Ok(())
    }

    /// Checks a result against the program's type of it, and keeps the simpler spelling of each size.
    fn check_type(&mut self, i: usize, name: &str, value: ValueId) -> Res<()> {
        let Some(expected) = self.result(i).cloned() else {
            // The archive's own error says what is wrong with it.
            self.t.archive.tensor_type(self.t.current, name)?;
            return Ok(());
        };
        let found = self.ty(value).clone();
        let differ = |a: &Dim, b: &Dim| matches!((a.as_const(), b.as_const()), (Some(a), Some(b)) if a != b);
        if found.dtype != expected.dtype
            || found.rank() != expected.rank()
            || found.shape.iter().zip(&expected.shape).any(|(a, b)| differ(a, b))
        {
            return wrong(format!("the program says that it gives {expected}, its arguments lead to {found}"));
        }
        let from_data = |t: &TensorType| {
            let mut found = false;
            for dim in &t.shape {
                dim.for_each_symbol(&mut |s| found |= self.t.archive.symbols.info(s).is_some_and(|i| i.from_data));
            }
            found
        };
        if from_data(&expected) && from_data(&found) {
            return unsupported("a size that depends on the values of a tensor", "give it as a dimension of an input");
        }
        if self.t.graph.producer(value).is_some() {
            let shape: Vec<Dim> = found.shape.iter().zip(&expected.shape).map(|(a, b)| simpler(a, b)).collect();
            if shape != found.shape {
                self.t.graph.set_type(value, TensorType::new(found.dtype, shape));
            }
        }
        Ok(())
    }

    /// Ends an in-place op: `value` becomes what its first argument holds, and its results are that tensor.
    fn write_back(&mut self, value: ValueId, names: &[&'p str]) -> Res<()> {
        let (cell, scope) = (self.first_cell()?, self.scope.clone());
        let old = self.t.read_cell(cell, &scope)?;
        let ty = self.ty(old).clone();
        let value = self.cast(value, ty.dtype)?;
        let value = if self.ty(value).rank() == ty.rank()
            && self.ty(value).shape.iter().zip(&ty.shape).all(|(a, b)| same(a, b))
        {
            value
        } else {
            self.emit(Expand { shape: ty.shape.clone() }, &[value])?
        };
        if self.t.graph.producer(value).is_some() && self.ty(value).shape != ty.shape {
            self.t.graph.set_type(value, ty);
        }
        self.t.write(cell, value, &scope)?;
        for name in names {
            self.t.env.insert(name, Bound::Tensor(cell));
        }
        Ok(())
    }

    /// After `x.unsqueeze_(0)` the name of `x` means the result.
    fn rename_first(&mut self, names: &[&'p str]) {
        if let (Ok(first), Some(bound)) = (self.first_name(), names.first().and_then(|n| self.t.env.get(n)).cloned()) {
            self.t.env.insert(first, bound);
        }
    }

    /// Whether the program lays its first argument out in memory as a dense row-major tensor at the start of its storage.
    pub(crate) fn first_is_row_major(&self) -> bool {
        let dims = |list: &[schema::SymInt]| {
            list.iter().map(|d| self.t.archive.symbols.dim(d).ok()).collect::<Option<Vec<_>>>()
        };
        self.first_name().ok().and_then(|f| self.t.meta(f)).is_some_and(|meta| {
            let parts = dims(&meta.sizes).zip(dims(&meta.strides));
            meta.storage_offset == schema::SymInt::Int(0)
                && parts.is_some_and(|(sizes, strides)| row_major(&sizes, &strides))
        })
    }

    /// What the strides in the program tell about the result of `reshape`, `contiguous`, `to`.
    fn sharing(&self, names: &[&'p str]) -> Sharing {
        let metas = self.first_name().ok().and_then(|f| self.t.meta(f)).zip(names.first().and_then(|n| self.t.meta(n)));
        let Some((from, to)) = metas else { return Sharing::Unclear };
        if from.dtype != to.dtype || from.device != to.device || matches!(self.arg("copy"), Some(Argument::Bool(true)))
        {
            return Sharing::None;
        }
        let dims = |list: &[schema::SymInt]| {
            list.iter().map(|d| self.t.archive.symbols.dim(d).ok()).collect::<Option<Vec<_>>>()
        };
        let (Some(sizes), Some(strides)) = (dims(&from.sizes), dims(&from.strides)) else { return Sharing::Unclear };
        let (Some(to_sizes), Some(to_strides)) = (dims(&to.sizes), dims(&to.strides)) else { return Sharing::Unclear };
        if sizes.len() != strides.len() {
            return Sharing::Unclear;
        }
        if sizes == to_sizes {
            if strides == to_strides {
                return Sharing::Same;
            }
            // Strides that differ where they matter are those of a copy.
            let ends = |d: &Dim| self.bounds(d);
            let copied = sizes.iter().zip(strides.iter().zip(&to_strides)).any(|(size, (a, b))| {
                let difference = ends(&(a - b));
                ends(size).min >= 2 && (difference.min > 0 || difference.max < 0)
            });
            return if copied { Sharing::None } else { Sharing::Unclear };
        }
        if !row_major(&sizes, &strides) {
            return Sharing::Unclear;
        }
        // A contiguous tensor is seen under another shape without a copy.
        Sharing::View
    }
}

/// Whether two sizes are the same or may be; what is known to differ is expanded.
fn same(a: &Dim, b: &Dim) -> bool {
    a == b || (!a.is(1) && !matches!((a.as_const(), b.as_const()), (Some(_), Some(_))))
}

/// Names of the results of a node, lists flattened.
fn result_names(node: &Node) -> Vec<&str> {
    let mut names = Vec::new();
    for output in &node.outputs {
        output.for_each_name(&mut |name| names.push(name));
    }
    names
}

fn each_dim(value: &AttrValue, f: &mut impl FnMut(&Dim)) {
    match value {
        AttrValue::Dim(d) => f(d),
        AttrValue::List(list) => list.iter().for_each(|v| each_dim(v, f)),
        AttrValue::Float(_) | AttrValue::Word(_) | AttrValue::Str(_) => {}
    }
}

fn lost() -> Problem {
    Problem::Unsupported {
        what: "reading a tensor after something was written in place to memory that it may share".to_owned(),
        help: DECOMPOSE.to_owned(),
    }
}

fn self_error(archive: &Pt2Archive, at: &str, problem: Problem) -> ImportError {
    match problem {
        Problem::Unsupported { what, help } => {
            ImportError::new(&archive.path, ImportErrorKind::Unsupported { at: at.to_owned(), what, help })
        }
        Problem::Wrong(why) => archive.schema_error(at, why),
        Problem::Import(error) => error,
    }
}
