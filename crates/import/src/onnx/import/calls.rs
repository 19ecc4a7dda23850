//! Functions of the model, whose nodes take the place of the call.

use std::collections::HashMap;

use super::{Bound, Frame, MOST_CALLS, Translator};
use crate::{
    build::{Problem, Res, unsupported, wrong},
    onnx::proto::{Attribute, Function, Node, Value},
};

impl<'p> Translator<'p> {
    pub(super) fn call(&mut self, node: &'p Node<'p>, function: &'p Function<'p>) -> Res<Vec<Bound>> {
        if self.calls >= MOST_CALLS {
            return wrong(format!("functions call one another more than {MOST_CALLS} deep"));
        }
        if node.inputs.len() > function.inputs.len() {
            return wrong(format!("the function takes {} values, found {}", function.inputs.len(), node.inputs.len()));
        }
        let mut names = HashMap::new();
        for (name, given) in function.inputs.iter().zip(&node.inputs).filter(|(_, given)| !given.is_empty()) {
            match self.lookup(given) {
                Some(bound) => names.insert(*name, bound.clone()),
                None => return wrong(format!("it reads `{given}`, which nothing before it makes")),
            };
        }
        let mut attributes: HashMap<&'p str, &'p Value<'p>> =
            function.defaults.iter().map(|Attribute { name, value, .. }| (*name, value)).collect();
        for Attribute { name, value, .. } in &node.attributes {
            if let Some(value) = self.resolve(value) {
                attributes.insert(name, value);
            }
        }
        let opsets = if function.opsets.is_empty() { self.frame.opsets } else { &function.opsets };
        let inner = Frame { scopes: vec![names], attributes, opsets };
        let outer = std::mem::replace(&mut self.frame, inner);
        self.calls += 1;
        let before = self.problems.len();
        self.nodes(&function.nodes);
        self.calls -= 1;
        let inner = std::mem::replace(&mut self.frame, outer);
        if self.problems.len() > before {
            return Err(Problem::Wrong("its nodes were refused".to_owned()));
        }
        let result = |name: &&str| match inner.scopes.first().and_then(|s| s.get(name)) {
            Some(bound) => bound.clone(),
            None => Bound::Missing(format!("the result `{name}` of {}", node.op)),
        };
        Ok(function.outputs.iter().map(result).collect())
    }

    /// The value of an attribute, which may be that of the call; `None` when the call leaves it out.
    pub(in crate::onnx) fn resolve(&self, value: &'p Value<'p>) -> Option<&'p Value<'p>> {
        match value {
            Value::Of(name) => self.frame.attributes.get(name).copied(),
            value => Some(value),
        }
    }
}

/// The error of a value of a kind that is not expected.
pub(in crate::onnx) fn not_a_tensor<T>(name: &str) -> Res<T> {
    unsupported(format!("`{name}`, a sequence of tensors, as an operand"), "use tensors")
}
