//! Graphs inside of nodes: branches and loops.

use std::collections::HashMap;

use super::{Bound, Translator};
use crate::{
    build::{Problem, Res, wrong},
    onnx::proto::Graph,
};

impl<'p> Translator<'p> {
    /// The results of an inner graph with these values for its inputs.
    pub(in crate::onnx) fn inner(&mut self, graph: &'p Graph<'p>, inputs: Vec<Bound>) -> Res<Vec<Bound>> {
        if inputs.len() != graph.inputs.len() {
            return wrong(format!("its graph takes {} values, found {}", graph.inputs.len(), inputs.len()));
        }
        let names: HashMap<&'p str, Bound> = graph.inputs.iter().map(|i| i.name).zip(inputs).collect();
        self.frame.scopes.push(names);
        let result = self.inner_results(graph);
        self.frame.scopes.pop();
        result
    }

    fn inner_results(&mut self, graph: &'p Graph<'p>) -> Res<Vec<Bound>> {
        let before = self.problems.len();
        for stored in &graph.initializers {
            let value = self.constant(stored.place.start)?;
            self.bind(stored.name, Bound::Value(value));
        }
        self.nodes(&graph.nodes);
        if self.problems.len() > before {
            return Err(Problem::Wrong("its nodes were refused".to_owned()));
        }
        let result = |info: &crate::onnx::proto::ValueInfo<'p>| match self.lookup(info.name) {
            Some(bound) => Ok(bound.clone()),
            None => wrong(format!("its graph gives `{}`, which nothing makes", info.name)),
        };
        graph.outputs.iter().map(result).collect()
    }
}
