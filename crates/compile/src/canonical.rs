//! Programs without their names. Two exports of one network differ in the names of modules, sources, inputs and outputs and
//! in nothing else; without them they are one text, and one engine serves both.

use std::{collections::HashMap, sync::Arc};

use regraft_engine::Engine;
use regraft_ir::{Graph, TensorType, text};
use regraft_weights::RefitMap;

/// The names that [`Canonical::of`] took out of a program.
#[derive(Clone, Debug)]
struct Names {
    program: String,
    inputs: Vec<String>,
    /// Name and other names of each source.
    sources: Vec<(String, Vec<String>)>,
    states: Vec<String>,
    outputs: Vec<String>,
    scopes: Vec<Arc<str>>,
}

/// A program with a number for each name. Kinds of sources, sizes, ranges, attributes and the order of operands are as they
/// were.
#[derive(Clone, Debug)]
pub struct Canonical {
    /// The program.
    pub graph: Graph,
    names: Names,
}

impl Canonical {
    /// `graph` without its names.
    pub fn of(mut graph: Graph) -> Canonical {
        let number = |prefix: char, all: &mut dyn Iterator<Item = &mut String>| -> Vec<String> {
            let numbered = all.enumerate();
            numbered.map(|(i, name)| std::mem::replace(name, format!("{prefix}{i}"))).collect()
        };
        let mut scopes = Scopes::default();
        for id in graph.node_ids() {
            let scope = &mut graph.node_mut(id).scope;
            *scope = scopes.number(scope);
        }
        let aliases = graph.sources.iter_mut().map(|s| std::mem::take(&mut s.aliases)).collect::<Vec<_>>();
        let names = Names {
            program: std::mem::take(&mut graph.name),
            inputs: number('i', &mut graph.inputs.iter_mut().map(|i| &mut i.name)),
            sources: number('s', &mut graph.sources.iter_mut().map(|s| &mut s.name)).into_iter().zip(aliases).collect(),
            states: number('t', &mut graph.states.iter_mut().map(|s| &mut s.name)),
            outputs: number('o', &mut graph.outputs.iter_mut().map(|o| &mut o.name)),
            scopes: scopes.names,
        };
        Canonical { graph, names }
    }

    /// The program as text: the same for all programs that differ in names alone.
    pub fn text(&self) -> String {
        text::print(&self.graph)
    }

    /// Whether `engine` takes what this program takes: its sources, inputs and outputs.
    pub fn fits(&self, engine: &Engine) -> bool {
        let (graph, plan) = (&self.graph, &engine.plan.graph);
        let (sources, twins) = RefitMap::uses_of(graph);
        let inputs = |graph: &Graph| -> Vec<(String, TensorType)> {
            graph.inputs.iter().map(|input| (input.name.clone(), graph.ty(input.value).clone())).collect()
        };
        let outputs = |graph: &Graph| -> Vec<String> { graph.outputs.iter().map(|o| o.name.clone()).collect() };
        let states = |graph: &Graph| -> Vec<String> { graph.states.iter().map(|s| s.name.clone()).collect() };
        engine.refit_map.sources == sources
            && engine.refit_map.twins == twins
            && graph.symbols == plan.symbols
            && inputs(graph) == inputs(plan)
            && outputs(graph) == outputs(plan)
            && states(graph) == states(plan)
    }

    /// Gives an engine that was built from the canonical program the names of the original.
    pub fn name(&self, engine: &mut Engine) {
        let names = &self.names;
        for (info, (name, aliases)) in engine.refit_map.sources.iter_mut().zip(&names.sources) {
            info.name.clone_from(name);
            info.aliases.clone_from(aliases);
        }
        let twins = self.graph.sources.iter().zip(&names.sources).skip(engine.refit_map.sources.len());
        for (twin, (source, (name, aliases))) in engine.refit_map.twins.iter_mut().zip(twins) {
            twin.name.clone_from(name);
            if let Some(info) =
                engine.refit_map.sources.get_mut(twin.of as usize).filter(|_| source.kind.in_state_dict())
            {
                info.aliases.extend(std::iter::once(name).chain(aliases).cloned());
            }
        }
        let plan = &mut engine.plan.graph;
        plan.name.clone_from(&names.program);
        plan.inputs.iter_mut().zip(&names.inputs).for_each(|(input, name)| input.name.clone_from(name));
        plan.states.iter_mut().zip(&names.states).for_each(|(state, name)| state.name.clone_from(name));
        plan.outputs.iter_mut().zip(&names.outputs).for_each(|(output, name)| output.name.clone_from(name));
        plan.sources.iter_mut().for_each(|slot| slot.name = names.slot(&slot.name));
        names.name_scopes(plan);
        for recipe in &mut engine.refit_map.recipes {
            recipe.slot = names.slot(&recipe.slot);
            for (source, &index) in recipe.graph.sources.iter_mut().zip(&recipe.uses) {
                source.name.clone_from(&names.sources[index as usize].0);
            }
            names.name_scopes(&mut recipe.graph);
        }
    }
}

impl Names {
    /// `encoder.weight#2` of `s7#2`; a slot that is made of no source keeps its name.
    fn slot(&self, slot: &str) -> String {
        let (base, count) = slot.split_at(slot.find('#').unwrap_or(slot.len()));
        let index = base.strip_prefix('s').and_then(|number| number.parse::<usize>().ok());
        match index.and_then(|index| self.sources.get(index)) {
            Some((name, _)) => format!("{name}{count}"),
            None => slot.to_owned(),
        }
    }

    fn name_scopes(&self, graph: &mut Graph) {
        for id in graph.node_ids() {
            let scope = &mut graph.node_mut(id).scope;
            let index = scope.strip_prefix('m').and_then(|number| number.parse::<usize>().ok());
            if let Some(name) = index.and_then(|index| self.scopes.get(index)) {
                scope.clone_from(name);
            }
        }
    }
}

/// Module paths in the order in which nodes name them first.
#[derive(Default)]
struct Scopes {
    numbers: HashMap<Arc<str>, Arc<str>>,
    names: Vec<Arc<str>>,
}

impl Scopes {
    fn number(&mut self, scope: &Arc<str>) -> Arc<str> {
        if let Some(number) = self.numbers.get(scope) {
            return number.clone();
        }
        let number: Arc<str> = format!("m{}", self.names.len()).into();
        self.numbers.insert(scope.clone(), number.clone());
        self.names.push(scope.clone());
        number
    }
}
