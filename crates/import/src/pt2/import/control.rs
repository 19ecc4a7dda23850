//! Control flow that exported programs keep: branches, loops over the first axis of tensors, and those whose end is known.

use regraft_ir::{
    ValueId,
    ops::{Concat, Reshape, Select, Slice},
};
use regraft_tensor::Dim;

use super::{Bound, Translator, memory::Origin};
use crate::pt2::{
    args::{Res, unsupported, wrong},
    schema::{self, Argument, Node},
};

/// More rounds of a loop than are unrolled.
const MOST_ROUNDS: usize = 1024;
/// More nodes than a program has, those of loops counted in each round.
const MOST_NODES: usize = 200_000;

impl<'p> Translator<'p> {
    pub(super) fn control(&mut self, node: &'p Node, names: &[&'p str], depth: usize) -> Res<()> {
        let results = match node.target.rsplit('.').next() {
            Some("cond") => self.branches(node, depth)?,
            Some("map_impl") => self.mapped(node, depth)?,
            Some("while_loop") => self.looped(node, depth)?,
            _ => self.scanned(node, depth)?,
        };
        if names.len() != results.len() {
            return wrong(format!("it gives {} values, {} are expected", results.len(), names.len()));
        }
        self.env.extend(names.iter().copied().zip(results));
        Ok(())
    }

    /// The results of an inner graph with these values for its inputs. It may write to nothing outside.
    pub(super) fn inner(&mut self, graph: &'p schema::Graph, flat: Vec<Bound>, depth: usize) -> Res<Vec<Bound>> {
        let params: Vec<&'p str> = graph.inputs.iter().filter_map(Argument::first_name).collect();
        if params.len() != flat.len() {
            return wrong(format!("its inner graph takes {} values, found {}", params.len(), flat.len()));
        }
        let outer = std::mem::take(&mut self.env);
        self.env = params.into_iter().zip(flat).collect();
        self.nodes(graph, depth + 1)?;
        let results = self.bound_in(graph.outputs.iter());
        self.env = outer;
        results.or_else(|name| wrong(format!("its inner graph gives `{name}`, which nothing makes")))
    }

    /// [`Translator::inner`] of a graph that runs sometimes, or more than once.
    fn pure(&mut self, graph: &'p schema::Graph, flat: Vec<Bound>, depth: usize) -> Res<Vec<Bound>> {
        let versions: Vec<u32> = self.storages.iter().map(|s| s.version).collect();
        let results = self.inner(graph, flat, depth)?;
        if self.node_count > MOST_NODES {
            return unsupported(format!("more than {MOST_NODES} nodes, loops unrolled"), "use fewer rounds");
        }
        if versions.iter().zip(&self.storages).any(|(before, s)| *before != s.version) {
            return unsupported("writing in place inside of a branch or loop", "return the new value");
        }
        Ok(results)
    }

    fn graph_at(node: &'p Node, at: usize) -> Res<&'p schema::Graph> {
        match node.inputs.get(at).map(|i| &i.arg) {
            Some(Argument::Graph(inner)) => Ok(&inner.graph),
            _ => wrong(format!("expected an inner graph as argument {at}")),
        }
    }

    fn flat_at(&self, node: &'p Node, at: usize) -> Res<Vec<Bound>> {
        self.bound_in(node.inputs.get(at).map(|i| &i.arg).into_iter())
            .or_else(|name| wrong(format!("it reads `{name}`, which nothing before it makes")))
    }

    fn value_of(&mut self, bound: &Bound) -> Res<ValueId> {
        let scope = self.b.scope.clone();
        match bound {
            Bound::Tensor(cell) => self.read_cell(*cell, &scope),
            Bound::Dim(_) => unsupported("a size that a branch or loop gives", "give it as a tensor"),
            Bound::Missing(what) => unsupported(what.clone(), "change the model so that nothing needs it"),
        }
    }

    fn computed(&mut self, value: ValueId) -> Bound {
        Bound::Tensor(self.new_storage(value, Origin::Computed))
    }

    /// `torch.cond`: both branches, of which each result is chosen by the condition.
    fn branches(&mut self, node: &'p Node, depth: usize) -> Res<Vec<Bound>> {
        let (then, otherwise) = (Self::graph_at(node, 1)?, Self::graph_at(node, 2)?);
        let operands = self.flat_at(node, 3)?;
        let cond = match node.inputs.first().map(|i| &i.arg) {
            Some(Argument::Bool(true)) => return self.pure(then, operands, depth),
            Some(Argument::Bool(false)) => return self.pure(otherwise, operands, depth),
            Some(Argument::Tensor(_)) => self.flat_at(node, 0)?,
            _ => return unsupported("a condition on sizes", "make it a condition on tensors, or these sizes static"),
        };
        let [cond] = cond.as_slice() else { return wrong("expected one condition") };
        let cond = self.value_of(cond)?;
        let scope = self.b.scope.clone();
        let cond = self.b.add_one(Reshape { shape: vec![] }.into(), &[cond], &scope)?;
        let (a, b) = (self.pure(then, operands.clone(), depth)?, self.pure(otherwise, operands, depth)?);
        if a.len() != b.len() {
            return wrong("its branches give different numbers of values");
        }
        let mut results = Vec::with_capacity(a.len());
        for (a, b) in a.iter().zip(&b) {
            let (a, b) = (self.value_of(a)?, self.value_of(b)?);
            if self.b.ty(a) != self.b.ty(b) {
                let (a, b) = (self.b.ty(a).clone(), self.b.ty(b).clone());
                return unsupported(format!("a branch that gives {a} or {b}"), "give both the same shape");
            }
            let chosen = self.b.add_one(Select {}.into(), &[cond, a, b], &scope)?;
            results.push(self.computed(chosen));
        }
        Ok(results)
    }

    /// The length of the first axis of tensors, which is that of the loop.
    fn rounds(&mut self, over: &[Bound]) -> Res<usize> {
        let mut rounds = None;
        for bound in over {
            let value = self.value_of(bound)?;
            let size = self.b.size(value, 0)?;
            if rounds.is_some_and(|r| r != size) {
                return wrong("it loops over axes of different lengths");
            }
            rounds = Some(size);
        }
        match rounds {
            Some(rounds) if (1..=MOST_ROUNDS).contains(&rounds) => Ok(rounds),
            rounds => unsupported(
                format!("a loop of {} rounds", rounds.unwrap_or(0)),
                format!("use 1 to {MOST_ROUNDS}, or an operator for the whole axis"),
            ),
        }
    }

    /// Row `at` of each tensor.
    fn rows(&mut self, over: &[Bound], at: usize) -> Res<Vec<Bound>> {
        let scope = self.b.scope.clone();
        let mut rows = Vec::with_capacity(over.len());
        for bound in over {
            let value = self.value_of(bound)?;
            let op = Slice { axis: 0, start: Dim::from(at), end: Dim::from(at + 1), step: 1 };
            let row = self.b.add_one(op.into(), &[value], &scope)?;
            let row = self.b.squeeze(row, 0)?;
            rows.push(self.computed(row));
        }
        Ok(rows)
    }

    /// What each round gave, one behind the other along a new first axis.
    fn stacked(&mut self, columns: Vec<Vec<ValueId>>) -> Res<Vec<Bound>> {
        let scope = self.b.scope.clone();
        let mut results = Vec::with_capacity(columns.len());
        for column in columns {
            let whole = match column.as_slice() {
                [one] => *one,
                many => self.b.add_one(Concat { axis: 0 }.into(), many, &scope)?,
            };
            results.push(self.computed(whole));
        }
        Ok(results)
    }

    fn push_row(&mut self, columns: &mut Vec<Vec<ValueId>>, results: &[Bound]) -> Res<()> {
        columns.resize(results.len(), Vec::new());
        for (column, bound) in columns.iter_mut().zip(results) {
            let value = self.value_of(bound)?;
            column.push(self.b.unsqueeze(value, 0)?);
        }
        Ok(())
    }

    /// `map`: the same for each row of some tensors.
    fn mapped(&mut self, node: &'p Node, depth: usize) -> Res<Vec<Bound>> {
        let body = Self::graph_at(node, 0)?;
        let (over, rest) = (self.flat_at(node, 1)?, self.flat_at(node, 2)?);
        let mut columns = Vec::new();
        for at in 0..self.rounds(&over)? {
            let mut operands = self.rows(&over, at)?;
            operands.extend(rest.iter().cloned());
            let results = self.pure(body, operands, depth)?;
            self.push_row(&mut columns, &results)?;
        }
        self.stacked(columns)
    }

    /// `scan`: the same for each row, with values that go from round to round.
    fn scanned(&mut self, node: &'p Node, depth: usize) -> Res<Vec<Bound>> {
        let body = Self::graph_at(node, 0)?;
        let (mut carried, over) = (self.flat_at(node, 1)?, self.flat_at(node, 2)?);
        let rest = self.flat_at(node, 3)?;
        let kept = carried.len();
        let mut columns = Vec::new();
        for at in 0..self.rounds(&over)? {
            let mut operands = carried;
            operands.extend(self.rows(&over, at)?);
            operands.extend(rest.iter().cloned());
            let mut results = self.pure(body, operands, depth)?;
            if results.len() < kept {
                return wrong(format!("its graph gives {} values, {kept} go on", results.len()));
            }
            let given = results.split_off(kept);
            carried = results;
            self.push_row(&mut columns, &given)?;
        }
        carried.extend(self.stacked(columns)?);
        Ok(carried)
    }

    /// `while_loop`: rounds as long as a condition holds, which must follow from numbers that the code writes down.
    fn looped(&mut self, node: &'p Node, depth: usize) -> Res<Vec<Bound>> {
        let (cond, body) = (Self::graph_at(node, 0)?, Self::graph_at(node, 1)?);
        let (first, rest) = (self.flat_at(node, 2)?, self.flat_at(node, 3)?);
        // What goes in is not what comes out, even without any round.
        let mut carried = Vec::with_capacity(first.len());
        for bound in first {
            carried.push(match bound {
                Bound::Dim(dim) => Bound::Dim(dim),
                bound => {
                    let value = self.value_of(&bound)?;
                    self.computed(value)
                }
            });
        }
        for _ in 0..=MOST_ROUNDS {
            let operands: Vec<Bound> = carried.iter().chain(&rest).cloned().collect();
            let holds = self.pure(cond, operands.clone(), depth)?;
            let [holds] = holds.as_slice() else { return wrong("expected one condition") };
            match self.truth(holds)? {
                Some(true) => {}
                Some(false) => return Ok(carried),
                None => {
                    return unsupported(
                        "a loop whose end is computed from data",
                        "count its rounds from a number that the code writes down, or use scan()",
                    );
                }
            }
            let results = self.pure(body, operands, depth)?;
            if results.len() != carried.len() {
                return wrong(format!("its graph gives {} values, {} go on", results.len(), carried.len()));
            }
            carried = results;
        }
        unsupported(format!("a loop of more than {MOST_ROUNDS} rounds"), "use fewer rounds")
    }

    /// A condition, when it is known while the program is read.
    fn truth(&mut self, bound: &Bound) -> Res<Option<bool>> {
        if let Bound::Dim(dim) = bound {
            return Ok(dim.as_const().map(|v| v != 0));
        }
        let value = self.value_of(bound)?;
        let known = self.b.known(value).and_then(|known| known.dims());
        Ok(known.and_then(|dims| dims.first()?.as_const()).map(|v| v != 0))
    }
}
