use std::{collections::BTreeSet, path::Path};

use regraft::{Compiler, DeviceName, Model, RefitOptions, RefitReport, SlotCopier, StateDict, Tensor};
use serde::Serialize;

use crate::{Result, adapters::lora, lent::lent, times::median};

/// Rounds before the ones that count: the first refits allocate.
const WARM_UP: usize = 3;

/// One measurement.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) slots: usize,
    pub(crate) bytes: usize,
    /// Slots that took more than one pass over memory.
    pub(crate) evaluated: usize,
    /// Median of all phases together.
    pub(crate) refit_ms: f64,
    /// Median of a plain parallel copy of the same bytes.
    pub(crate) copy_ms: f64,
    /// Of the medians.
    pub(crate) ratio: f64,
    /// Median of the publish phase.
    pub(crate) publish_us: f64,
}

pub(crate) fn measure(program: &Path, device: DeviceName, rounds: usize) -> Result<Vec<Row>> {
    let model = Compiler::new().device(device).compile(program)?.into_model()?;
    let weights = [moved(&model, |_| true), moved(&model, |_| true).map(|w| w * 0.5)].map(|w| w.0);
    let borrowed = [lent(&weights[0])?, lent(&weights[1])?];
    let mut rows = vec![
        full("all weights", &model, &weights, rounds)?,
        full("all weights, lent", &model, &borrowed, rounds)?,
        one_layer(&model, rounds)?,
    ];
    let ((a, what), (b, _)) = (lora(&model, "a", 1), lora(&model, "b", 2));
    rows.push(alternate(&format!("{what}: swap"), &model, rounds, |round| {
        Ok(model.adapters().set(&[(if round % 2 == 0 { a.clone() } else { b.clone() }, 1.0)])?)
    })?);
    rows.push(alternate(&format!("{what}: scale"), &model, rounds, |round| {
        Ok(model.adapters().set(&[(a.clone(), if round % 2 == 0 { 0.5 } else { 0.75 })])?)
    })?);
    Ok(rows)
}

fn full(what: &str, model: &Model, weights: &[StateDict; 2], rounds: usize) -> Result<Row> {
    // Whatever served before, the first refit changes everything.
    model.refit(&weights[1], &RefitOptions::default())?;
    alternate(what, model, rounds, |round| Ok(model.refit(&weights[round % 2], &RefitOptions::default())?))
}

/// The largest weight that is not an embedding.
fn one_layer(model: &Model, rounds: usize) -> Result<Row> {
    let sources = model.refit_map().sources.iter();
    let layers = sources.filter(|s| s.shape.len() >= 2 && !s.name.contains("embed"));
    let name = layers.max_by_key(|s| s.byte_len()).map(|s| s.name.clone()).unwrap_or_default();
    let weights = [moved(model, |n| n == name), moved(model, |n| n == name).map(|w| w * 0.5)];
    let weights = weights.map(|w| w.0);
    let options = RefitOptions::new().partial(true);
    alternate("one layer", model, rounds, |round| Ok(model.refit(&weights[round % 2], &options)?))
}

/// Interleaved refits, each followed by a copy of the bytes that it wrote.
fn alternate(what: &str, model: &Model, rounds: usize, refit: impl Fn(usize) -> Result<RefitReport>) -> Result<Row> {
    let first = refit(0)?;
    let names: BTreeSet<String> = first.recomputed_slots.iter().map(|s| s.name.clone()).collect();
    let plan = model.plan();
    let written = (0..plan.slots.len()).filter(|&slot| names.contains(plan.slot_name(slot)));
    let copier = SlotCopier::new(model, written)?;
    let (mut refits, mut copies, mut publishes) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=WARM_UP + rounds {
        let report = refit(round)?;
        let copy = copier.copy(&*model.generation().ok_or("the model has no weights")?)?;
        if report.bytes != first.bytes {
            return Err(format!("{what}: {} bytes, then {}", first.bytes, report.bytes).into());
        }
        if round > WARM_UP {
            refits.push(report.phases_ms.total());
            publishes.push(report.phases_ms.publish * 1e3);
            copies.push(copy.as_secs_f64() * 1e3);
        }
    }
    Ok(Row {
        what: what.to_owned(),
        slots: first.recomputed_slots.len(),
        bytes: first.bytes,
        evaluated: first.recomputed_slots.iter().filter(|s| !s.one_pass).count(),
        refit_ms: median(&refits),
        copy_ms: median(&copies),
        ratio: median(&refits) / median(&copies),
        publish_us: median(&publishes),
    })
}

/// Weights that differ from the serving ones in every float.
struct Moved(StateDict);

fn moved(model: &Model, chosen: impl Fn(&str) -> bool) -> Moved {
    let Some(generation) = model.generation() else { return Moved(StateDict::new()) };
    let infos = model.refit_map().sources.iter().zip(&generation.sources);
    let chosen = infos.filter(|(info, _)| chosen(&info.name));
    Moved(chosen.filter_map(|(info, content)| Some((info.name.clone(), content.tensor().ok()??))).collect())
        .map(|w| w * 1.01 + 1e-3)
}

impl Moved {
    /// Variances stay positive.
    fn map(self, f: impl Fn(f64) -> f64) -> Moved {
        let map = |tensor: &Tensor| match tensor.dtype().is_float() {
            true => {
                let values: Vec<f64> = tensor.to_f64_vec().into_iter().map(&f).collect();
                Tensor::from_f64(tensor.dtype(), tensor.shape(), &values)
            }
            false => tensor.clone(),
        };
        Moved(self.0.iter().map(|(name, tensor)| (name.to_owned(), map(tensor))).collect())
    }
}
