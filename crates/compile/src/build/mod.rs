//! From the lowered program to an engine without weights: split by binding time, choose kernels, write recipes.

mod select;
mod split;

use regraft_backend::{Codegen, FormatId, KernelId, SlotLayout};
use regraft_engine::Plan;
use regraft_ir::{Graph, SourceKind, TensorType};
use regraft_weights::{Recipe, RefitMap};

use crate::{CompileError, tune::Tuner};

/// A plan with the recipes of its slots.
#[derive(Clone, Debug)]
pub struct Built {
    /// What a run executes.
    pub plan: Plan,
    /// How its slots are made.
    pub refit_map: RefitMap,
}

/// Builds a plan for a backend from a lowered program; `tuner` chooses between kernels.
///
/// # Errors
/// When a recipe cannot be written, a slot does not fit in memory, or pinned tuning records do not fit.
pub fn build(lowered: &Graph, codegen: &dyn Codegen, tuner: &mut Tuner<'_>) -> Result<Built, CompileError> {
    let split = split::split(lowered)?;
    let choices = select::select(&split, codegen, tuner)?;
    let (sources, twins) = RefitMap::uses_of(lowered);
    let (slots, recipes) = (Vec::new(), Vec::new());
    let mut builder = Builder { lowered, codegen, plan: Graph::new(&lowered.name), slots, recipes };
    builder.plan.symbols.clone_from(&lowered.symbols);
    let kernels = builder.plan(&split, choices)?;
    let plan = Plan { graph: builder.plan, kernels, slots: builder.slots };
    Ok(Built { plan, refit_map: RefitMap { sources, twins, recipes: builder.recipes } })
}

/// Writes the plan's graph, making a slot for each known value in each layout that is asked for.
struct Builder<'a> {
    lowered: &'a Graph,
    codegen: &'a dyn Codegen,
    plan: Graph,
    slots: Vec<SlotLayout>,
    recipes: Vec<Recipe>,
}

impl Builder<'_> {
    fn plan(&mut self, split: &split::Split, choices: Vec<select::Choice>) -> Result<Vec<KernelId>, CompileError> {
        let graph = &split.graph;
        let mut values = vec![None; graph.value_count()];
        for input in &graph.inputs {
            values[input.value.0 as usize] = Some(self.plan.add_input(&input.name, graph.ty(input.value).clone()));
        }
        let mut slots = SlotTable::default();
        for state in &graph.states {
            let init = slots.get(self, split, graph.sources[state.init as usize].value, &select::Layout::plain())?;
            let init = self.plan.source_of(init).expect("slots are the sources of a plan");
            values[state.value.0 as usize] = Some(self.plan.add_state(&state.name, init));
        }
        let mut kernels = Vec::new();
        for (node, choice) in graph.nodes().iter().zip(choices) {
            let mut inputs = Vec::with_capacity(node.inputs.len());
            for (i, input) in node.inputs.iter().enumerate() {
                inputs.push(match input {
                    None => None,
                    Some(v) if graph.source_of(*v).is_some() => Some(slots.get(self, split, *v, &choice.layout(i))?),
                    Some(v) => values[v.0 as usize],
                });
            }
            let outputs = self.plan.add(node.op.clone(), inputs, &node.scope)?;
            for (from, to) in node.outputs.iter().zip(outputs) {
                self.plan.set_type(to, graph.ty(*from).clone());
                values[from.0 as usize] = Some(to);
            }
            kernels.push(choice.kernel);
        }
        for output in &graph.outputs {
            let value = match values[output.value.0 as usize] {
                Some(value) => value,
                None => slots.get(self, split, output.value, &select::Layout::plain())?,
            };
            self.plan.add_output(&output.name, value);
        }
        for (i, state) in graph.states.iter().enumerate() {
            let next = match values[state.next.0 as usize] {
                Some(value) => value,
                None => slots.get(self, split, state.next, &select::Layout::plain())?,
            };
            self.plan.states[i].next = next;
        }
        Ok(kernels)
    }

    fn add_slot(
        &mut self,
        name: String,
        recipe: (Graph, Vec<u32>),
        ty: TensorType,
        layout: &select::Layout,
    ) -> Result<regraft_ir::ValueId, CompileError> {
        let (graph, uses) = recipe;
        let source = |&index: &u32| self.lowered.sources[index as usize].twin_of.unwrap_or(index);
        let sources = uses.iter().map(source).collect();
        let too_large = || CompileError::TooLarge { what: format!("slot {name}") };
        let packed = graph.ty(graph.outputs[0].value);
        let shape = packed.sizes().ok_or_else(too_large)?;
        let format = self.codegen.format(&layout.format).ok_or_else(|| unknown_format(&name, &layout.format))?;
        let bytes = format.byte_len(packed.dtype, &shape).ok_or_else(too_large)?;
        self.slots.push(SlotLayout { shape, format: layout.format.clone(), bytes });
        let (format, layout_ops) = (layout.format.clone(), layout.prepare.len());
        self.recipes.push(Recipe { slot: name.clone(), graph, sources, uses, format, layout_ops });
        Ok(self.plan.add_source(name, SourceKind::Constant, ty))
    }
}

fn unknown_format(slot: &str, format: &FormatId) -> CompileError {
    CompileError::Format { slot: slot.to_owned(), format: format.clone() }
}

/// Slots made so far, so that a value wanted twice in one layout is one slot.
#[derive(Default)]
struct SlotTable {
    made: Vec<(regraft_ir::ValueId, select::Layout, regraft_ir::ValueId)>,
    names: std::collections::HashMap<String, usize>,
}

impl SlotTable {
    fn get(
        &mut self,
        builder: &mut Builder<'_>,
        split: &split::Split,
        frontier: regraft_ir::ValueId,
        layout: &select::Layout,
    ) -> Result<regraft_ir::ValueId, CompileError> {
        if let Some((.., slot)) = self.made.iter().find(|(v, l, _)| *v == frontier && l == layout) {
            return Ok(*slot);
        }
        let (value, ty) = (split.origin(frontier), split.graph.ty(frontier).clone());
        let recipe = split::recipe(builder.lowered, value, &layout.prepare)?;
        let name = self.name(&recipe.0);
        let slot = builder.add_slot(name, recipe, ty, layout)?;
        self.made.push((frontier, layout.clone(), slot));
        Ok(slot)
    }

    /// The name of the largest source, with a number where several slots are named after it.
    fn name(&mut self, recipe: &Graph) -> String {
        let bytes = |s: &&regraft_ir::Source| recipe.ty(s.value).numel().as_const();
        let largest = recipe.sources.iter().rev().max_by_key(bytes);
        let base = largest.map_or("literal", |s| s.name.as_str()).to_owned();
        let count = self.names.entry(base.clone()).or_insert(0);
        *count += 1;
        if *count == 1 { base } else { format!("{base}#{count}") }
    }
}
