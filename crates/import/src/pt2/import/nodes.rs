//! Nodes: those of the program, and those of the graph made from them.

use std::sync::Arc;

use regraft_ir::{Op, TensorType, ValueId};

use super::{Bound, Translator, self_error};
use crate::{
    ImportError,
    pt2::{
        args::{Cx, Res, unsupported, wrong},
        ops::{self, Handler},
        schema::{self, Node},
    },
};

impl<'p> Translator<'p> {
    pub(super) fn nodes(&mut self, graph: &'p schema::Graph, depth: usize) -> Result<(), ImportError> {
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
        let scope: Arc<str> = node.module_path().into();
        self.classes.entry(scope.clone()).or_insert_with(|| node.metadata.module_class());
        let mut cx = Cx { t: self, node, results, scope, wide: false };
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
                let computed = f(&mut cx);
                cx.bind_dim(name, computed);
                Ok(())
            }
            Handler::Wide(f) => {
                let value = cx.in_f32(f)?;
                let value = cx.narrowed(0, value)?;
                if found.in_place { cx.write_back(value, &names) } else { cx.bind_new(&names, vec![Some(value)]) }
            }
            Handler::WideMany(f) => {
                let mut values = cx.in_f32(f)?;
                for (i, value) in values.iter_mut().enumerate() {
                    *value = value.map(|v| cx.narrowed(i, v)).transpose()?;
                }
                cx.bind_new(&names, values)
            }
            Handler::One(f) if found.in_place => {
                let value = f(&mut cx)?;
                cx.write_back(value, &names)
            }
            Handler::One(f) => {
                let value = f(&mut cx)?;
                cx.bind_new(&names, vec![Some(value)])
            }
            Handler::Many(f) => {
                let values = f(&mut cx)?;
                cx.bind_new(&names, values)
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
                cx.bind_maybe_view(&names, value)
            }
            Handler::Views(f) => {
                let values = f(&mut cx)?;
                let of = cx.first_cell()?;
                cx.bind(&names, values.into_iter().map(Some).collect(), |t, _, v| t.view_of(of, v, true))
            }
            Handler::ViewsOfEach(f) => {
                let values = f(&mut cx)?;
                cx.bind_views_of_each(&names, values)
            }
            Handler::Inline => self.inline(node, &names, depth),
        }
    }

    pub(super) fn mark(&mut self, value: ValueId, constant: bool) {
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

    pub(super) fn add_one(&mut self, op: Op, inputs: &[ValueId], scope: &Arc<str>) -> Res<ValueId> {
        let out = self.add(op, inputs.iter().map(|v| Some(*v)).collect(), scope)?;
        out.first().copied().map_or_else(|| wrong("the operator has no result"), Ok)
    }
}

/// Names of the results of a node, lists flattened.
fn result_names(node: &Node) -> Vec<&str> {
    let mut names = Vec::new();
    for output in &node.outputs {
        output.for_each_name(&mut |name| names.push(name));
    }
    names
}
