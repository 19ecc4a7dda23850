//! Nodes of the model, one after the other.

use regraft_ir::ValueId;

use super::{Bound, MOST_NODES, MOST_PROBLEMS, Translator, handler};
use crate::{
    build::{Problem, Res, unsupported, wrong},
    onnx::{args::Cx, ops::Handler, proto::Node},
};

impl<'p> Translator<'p> {
    /// Translates nodes; what cannot be is kept as a problem.
    pub(super) fn nodes(&mut self, nodes: &'p [Node<'p>]) {
        // What has no result with a name is read by none.
        for node in nodes.iter().filter(|node| node.outputs.iter().any(|name| !name.is_empty())) {
            if self.problems.len() >= MOST_PROBLEMS {
                return;
            }
            self.node_count += 1;
            if self.node_count > MOST_NODES {
                let problem = Problem::Wrong(format!("the model has more than {MOST_NODES} nodes, loops unrolled"));
                self.problem(place(node), problem);
                return self.problems.resize_with(MOST_PROBLEMS, Default::default);
            }
            let refused = node.inputs.iter().any(|name| matches!(self.lookup(name), Some(Bound::Refused)));
            let bound = if refused { None } else { self.node(node) };
            for (i, name) in node.outputs.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                let bound = match &bound {
                    None => Bound::Refused,
                    Some(list) => {
                        let missing = || Bound::Missing(format!("result {i} of {}", node.op));
                        list.get(i).cloned().unwrap_or_else(missing)
                    }
                };
                self.bind(name, bound);
            }
        }
    }

    /// What the results of a node are, unless it is refused.
    fn node(&mut self, node: &'p Node<'p>) -> Option<Vec<Bound>> {
        let before = self.problems.len();
        let outer = self.b.scope.clone();
        if outer.is_empty() {
            self.b.scope = scope_of(node.label()).into();
        }
        let result = match self.functions.get(&(node.domain, node.op, node.overload)).copied() {
            Some(function) => self.call(node, function),
            None => self.translate(node),
        };
        self.b.scope = outer;
        match result {
            Ok(bound) => Some(bound),
            // Inner graphs and functions said already what is wrong with them.
            Err(_) if self.problems.len() > before => None,
            Err(problem) => {
                self.problem(place(node), problem);
                None
            }
        }
    }

    fn translate(&mut self, node: &'p Node<'p>) -> Res<Vec<Bound>> {
        let Some(handler) = handler(node) else { return wrong("the operator is not known") };
        let version = self.frame.opsets.iter().find(|o| o.domain == node.domain).map_or(1, |o| o.version);
        let mut cx = Cx::new(self, node, version);
        let values = match handler {
            Handler::One(f) => vec![Some(f(&mut cx)?)],
            Handler::Many(f) => f(&mut cx)?,
            Handler::Wide(f) => {
                cx.wide = true;
                let value = f(&mut cx)?;
                vec![Some(cx.narrowed(value)?)]
            }
            Handler::WideMany(f) => {
                cx.wide = true;
                let values = f(&mut cx)?;
                values.into_iter().map(|v| v.map(|v| cx.narrowed(v)).transpose()).collect::<Res<_>>()?
            }
            Handler::Bound(f) => {
                let bound = f(&mut cx)?;
                cx.all_read()?;
                return Ok(bound);
            }
            Handler::Refuse(what, help) => return unsupported(what, help),
        };
        cx.all_read()?;
        let bound = |(i, value): (usize, Option<ValueId>)| match value {
            Some(value) => Bound::Value(value),
            None => Bound::Missing(format!("result {i} of {}", node.op)),
        };
        Ok(values.into_iter().enumerate().map(bound).collect())
    }
}

/// Where a node is, in messages.
fn place(node: &Node<'_>) -> String {
    match node.label() {
        "" => node.op.to_owned(),
        label => format!("{label} ({})", node.op),
    }
}

/// The module of a node, from the path that PyTorch's exporter puts into its name: `/encoder/encoder.0/fc/MatMul` is of
/// `encoder.0.fc`. Other names are what they are.
pub(super) fn scope_of(name: &str) -> String {
    let Some(path) = name.strip_prefix('/') else { return name.to_owned() };
    let mut scope: Vec<&str> = Vec::new();
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in parts {
        // A part may say again what stands before it.
        let again = |last: &&str| part.strip_prefix(*last).is_some_and(|rest| rest.starts_with('.'));
        if scope.last().is_some_and(again) {
            scope.pop();
        }
        scope.push(part);
    }
    scope.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_in_names() {
        assert_eq!(scope_of("/layer1/layer1.0/conv1/Conv"), "layer1.0.conv1");
        assert_eq!(scope_of("/MatMul"), "");
        assert_eq!(scope_of("Conv_12"), "Conv_12");
    }
}
