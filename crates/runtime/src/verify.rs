//! Verification of a staged generation against the reference evaluator: slot by slot, then whole runs.

use std::{collections::HashSet, fmt};

use regraft_adapter::AdapterLayer;
use regraft_ir::{Graph, Node, Op, ValueId, eval, ops::WeightFormat};
use regraft_tensor::{DType, Tensor};
use regraft_weights::Recipe;
use serde::Serialize;

use crate::{Generation, RuntimeError, RuntimeErrorKind, Staged};

/// Largest difference of a slot's elements, relative to the largest element: adapters add up in f32. Where they are then
/// rounded to half precision, one step of that is allowed.
const SLOT_TOLERANCE: f64 = 1e-5;

/// Largest difference of an output's elements, relative to the largest element: sums are in another order. Where slots may
/// differ by a rounding, a few of these are allowed.
const OUTPUT_TOLERANCE: f64 = 1e-4;

/// What a verification looked at.
///
/// ```
/// # use regraft_runtime::{RuntimeError, Staged, Verification};
/// # use regraft_tensor::Tensor;
/// # fn f(staged: &Staged, samples: &[Vec<Tensor>]) -> Result<(), RuntimeError> {
/// let verification = staged.verify(samples)?;
/// println!("{verification}");
/// assert!(verification.largest_difference <= 1e-4);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Verification {
    /// Slots that were made again by the reference evaluator: all that the refit rebuilt.
    pub slots: usize,
    /// Outputs of runs that were compared.
    pub outputs: usize,
    /// The largest difference of outputs, relative to the largest element.
    pub largest_difference: f64,
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verification { slots, outputs, largest_difference } = self;
        write!(f, "{slots} slots and {outputs} outputs verified, the largest difference is {largest_difference:.1e}")
    }
}

/// The first difference that a verification found.
///
/// ```
/// # use regraft_runtime::{RuntimeErrorKind, Staged};
/// # fn f(staged: &Staged) {
/// if let Err(error) = staged.verify(&[])
///     && let RuntimeErrorKind::Differs(difference) = error.kind()
/// {
///     println!("{difference}");
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Difference {
    /// A slot.
    Slot {
        /// Its name.
        name: String,
        /// How much it differs, relative to its largest element.
        by: f64,
    },
    /// An output of a run, although all slots are right.
    Output {
        /// Which set of inputs.
        run: usize,
        /// Name of the output.
        name: String,
        /// How much it differs, relative to its largest element.
        by: f64,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Slot { name, by } => {
                write!(f, "slot {name} differs from what its recipe gives, by {by:.1e} of its largest element")
            }
            Difference::Output { run, name, by } => write!(
                f,
                "output {name} of sample {run} differs from the reference evaluator's, by {by:.1e} of its largest element"
            ),
        }
    }
}

impl Staged {
    /// Makes every slot that the refit rebuilt a second time, by the reference evaluator, and runs each sample of
    /// `inputs` through the staged generation and through the reference evaluator. Takes as long as that takes: the
    /// evaluator computes in f64 and spares nothing.
    ///
    /// # Errors
    /// [`RuntimeErrorKind::Differs`] naming the first slot that differs, or else the first output.
    pub fn verify(&self, samples: &[Vec<Tensor>]) -> Result<Verification, RuntimeError> {
        let reference = Reference { staged: self };
        let slots = reference.slots()?;
        let tolerance = OUTPUT_TOLERANCE.max(4.0 * reference.rounding().max(reference.computing()));
        let mut found = Verification { slots: self.report.recomputed_slots.len(), outputs: 0, largest_difference: 0.0 };
        for (run, inputs) in samples.iter().enumerate() {
            let outputs = self.model().run_on(self.generation(), inputs)?;
            let expected = reference.run(&slots, inputs)?;
            for ((got, want), output) in outputs.iter().zip(&expected).zip(&self.model().plan().graph.outputs) {
                let by = difference(got, want);
                if by > tolerance {
                    let name = output.name.clone();
                    return Err(RuntimeErrorKind::Differs(Difference::Output { run, name, by }).into());
                }
                found.outputs += 1;
                found.largest_difference = found.largest_difference.max(by);
            }
        }
        Ok(found)
    }
}

struct Reference<'a> {
    staged: &'a Staged,
}

impl Reference<'_> {
    fn generation(&self) -> &Generation {
        self.staged.generation()
    }

    /// The largest step, relative to the value, by which sources are rounded after adapters were applied to them; 0 for f32.
    fn rounding(&self) -> f64 {
        let map = self.staged.model().refit_map();
        let layers = self.generation().adapters.iter().flat_map(|(adapter, _)| &adapter.layers);
        let dtype = |layer: &AdapterLayer| map.source_of(layer.source).map_or(DType::F32, |one| map.sources[one].dtype);
        layers.map(|layer| step(dtype(layer))).fold(0.0, f64::max)
    }

    /// The largest step by which values are rounded on their way through the plan: a kernel of several ops rounds once where the
    /// evaluator rounds after each, and activations are rounded to bytes.
    fn computing(&self) -> f64 {
        let graph = &self.staged.model().plan().graph;
        let of = |node: &Node| match &node.op {
            Op::QuantLinear(op) if op.format == WeightFormat::Int8 => BYTE,
            _ => node.outputs.iter().map(|v| step(graph.ty(*v).dtype)).fold(0.0, f64::max),
        };
        graph.nodes().iter().map(of).fold(0.0, f64::max)
    }

    /// The value of every slot as the plan's ops see it; rebuilt ones are compared with what was staged.
    fn slots(&self) -> Result<Vec<Tensor>, RuntimeError> {
        let recomputed: HashSet<&str> = self.staged.report().recomputed_slots.iter().map(|s| s.name.as_str()).collect();
        let model = self.staged.model();
        let rounding = self.rounding();
        let mut values = Vec::with_capacity(model.plan().slots.len());
        for (slot, recipe) in model.refit_map().recipes.iter().enumerate() {
            let sources = recipe.uses.iter().map(|&one| self.used(one as usize)).collect::<Result<Vec<_>, _>>()?;
            let (packed, value) = both_values(recipe, &sources)?;
            if recomputed.contains(recipe.slot.as_str()) {
                let layout = &model.plan().slots[slot];
                let bytes = self.generation().slots[slot].read()?;
                let format = model.device().codegen().format(&layout.format);
                let staged = format.and_then(|f| f.unpack(recipe.dtype(), &layout.shape, bytes.bytes()));
                let by = staged.map_or(f64::INFINITY, |staged| difference(&staged, &packed));
                if by > SLOT_TOLERANCE.max(rounding).max(narrowing(recipe)) {
                    let name = recipe.slot.clone();
                    return Err(RuntimeErrorKind::Differs(Difference::Slot { name, by }).into());
                }
            }
            values.push(value);
        }
        Ok(values)
    }

    /// A use of a source, in the engine's dtype with adapters applied by their definition.
    fn used(&self, index: usize) -> Result<Tensor, RuntimeError> {
        let map = self.staged.model().refit_map();
        let source = map.source_of(index).expect("recipes have uses of sources");
        let name = || map.sources[source].name.clone();
        let tensor = self.generation().sources[source]
            .converted()?
            .ok_or_else(|| RuntimeErrorKind::Source { name: name(), why: "its tensor is not available".into() })?;
        let layers = || {
            self.generation().adapters.iter().flat_map(|(adapter, scale)| {
                adapter.layers.iter().filter(|layer| layer.source == index).map(move |layer| (&layer.update, scale))
            })
        };
        let rewrites = layers().filter(|(update, _)| update.is_rewrite());
        let tensor = rewrites.fold(tensor, |tensor, (update, scale)| update.reference(&tensor, scale));
        let pristine = tensor.to_f64_vec();
        let mut values: Option<Vec<f64>> = None;
        for (update, scale) in layers().filter(|(update, _)| !update.is_rewrite()) {
            let updated = update.reference(&tensor.cast(DType::F64), scale).to_f64_vec();
            let values = values.get_or_insert_with(|| pristine.clone());
            for ((value, updated), pristine) in values.iter_mut().zip(updated).zip(&pristine) {
                *value += updated - pristine;
            }
        }
        Ok(values.map_or(tensor.clone(), |values| Tensor::from_f64(tensor.dtype(), tensor.shape(), &values)))
    }

    fn run(&self, slots: &[Tensor], inputs: &[Tensor]) -> Result<Vec<Tensor>, RuntimeError> {
        let graph = &self.staged.model().plan().graph;
        let states: Vec<Tensor> = graph.states.iter().map(|s| slots[s.init as usize].clone()).collect();
        evaluate(graph, inputs, slots, &states).map_err(|why| failed("the plan", why))
    }
}

/// One step of a byte, relative to the greatest.
const BYTE: f64 = 1.01 / 127.0;

/// One step of the two numbers of a byte.
const HALVES: f64 = 17.0 / 239.0;

/// The largest step, relative to the value, by which a float is rounded to this type; 0 for f32.
fn step(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
        DType::F64
        | DType::F32
        | DType::I64
        | DType::I32
        | DType::I16
        | DType::I8
        | DType::U8
        | DType::Bool
        | DType::U16
        | DType::U32
        | DType::U64 => 0.0,
    }
}

/// By how much a recipe that rounds may be off, where what it rounds is off in the last bits.
fn narrowing(recipe: &Recipe) -> f64 {
    let of = |node: &Node| match &node.op {
        Op::Cast(op) => step(op.dtype),
        Op::Quantize(op) if op.format == WeightFormat::Int8 => BYTE,
        Op::Quantize(_) => HALVES,
        _ => 0.0,
    };
    recipe.graph.nodes().iter().map(of).fold(0.0, f64::max)
}

/// A recipe's value as it is packed, and as the plan's op sees it.
fn both_values(recipe: &Recipe, sources: &[Tensor]) -> Result<(Tensor, Tensor), RuntimeError> {
    let seen = recipe.value().ok_or_else(|| failed(&recipe.slot, "its last ops are not there".into()))?;
    let value_of = |value: ValueId| {
        let mut graph = recipe.graph.clone();
        graph.outputs[0].value = value;
        let mut outputs = evaluate(&graph, &[], sources, &[])?;
        outputs.pop().ok_or_else(|| "the recipe yields nothing".to_owned())
    };
    let packed = value_of(recipe.graph.outputs[0].value).map_err(|why| failed(&recipe.slot, why))?;
    let value = value_of(seen).map_err(|why| failed(&recipe.slot, why))?;
    Ok((packed, value))
}

fn evaluate(graph: &Graph, inputs: &[Tensor], sources: &[Tensor], states: &[Tensor]) -> Result<Vec<Tensor>, String> {
    let given = eval::Bindings { inputs, sources, states };
    Ok(eval::run(graph, given).map_err(|e| e.to_string())?.outputs)
}

fn failed(what: &str, why: String) -> RuntimeError {
    RuntimeErrorKind::Recipe { slot: what.to_owned(), why }.into()
}

/// The largest difference of two tensors, relative to the largest element of `want`; infinite when they cannot be compared.
fn difference(got: &Tensor, want: &Tensor) -> f64 {
    if got.shape() != want.shape() || got.dtype() != want.dtype() {
        return f64::INFINITY;
    }
    let (got, want) = (got.to_f64_vec(), want.to_f64_vec());
    let largest = want.iter().filter(|v| v.is_finite()).fold(0.0, |m: f64, v| m.max(v.abs()));
    let apart = |(a, b): (&f64, &f64)| match a == b || (a.is_nan() && b.is_nan()) {
        true => 0.0,
        false if a.is_finite() && b.is_finite() => (a - b).abs() / largest.max(f64::MIN_POSITIVE),
        false => f64::INFINITY,
    };
    got.iter().zip(&want).map(apart).fold(0.0, f64::max)
}
