use std::path::Path;

use regraft::{Compiler, DType, Engine, KeepSources, Mode, Model, ModelExt as _, RefitOptions, StateDict, Tensor};
use serde_json::{Value, json};

use crate::{Result, median, megabytes, timed};

pub(crate) const HEADING: &str = "| model | engine | file | load | checked | first refit of all | later refits | load ÷ first refit |\n\
     |---|---|---|---|---|---|---|---|";

/// Milliseconds.
pub(crate) struct Row {
    pub(crate) what: &'static str,
    file_mb: f64,
    /// From the path to a model that takes runs.
    load: f64,
    /// From the path to weights that were compared with their digests, as the first run waits for.
    checked: f64,
    /// A refit of all weights right after the load: its slots are made in fresh memory, as a load's are.
    first_refit: f64,
    /// The third one, in memory of retired slots.
    later_refit: f64,
}

pub(crate) fn measure(program: &Path, folder: &Path, rounds: usize) -> Result<Vec<Row>> {
    let engines = write_engines(program, folder)?;
    let mut times: Vec<[Vec<f64>; 4]> = engines.iter().map(|_| Default::default()).collect();
    let (a, b) = refits(&Engine::open(&engines[0].1)?);
    for _ in 0..rounds {
        for ((_, path), times) in engines.iter().zip(&mut times) {
            let (load, model) = timed(|| Ok(Model::load(path)?))?;
            let (check, ()) = timed(|| Ok(model.check_file()?))?;
            times[0].push(load);
            times[1].push(load + check);
            if model.mode() == Mode::Frozen {
                continue;
            }
            let refit = |weights: &StateDict| timed(|| Ok(model.refit(weights, &RefitOptions::default())?));
            times[2].push(refit(&a)?.0);
            refit(&b)?;
            times[3].push(refit(&a)?.0);
        }
    }
    let row = |((what, path), mut times): (&(&'static str, std::path::PathBuf), [Vec<f64>; 4])| Row {
        what,
        file_mb: megabytes(path),
        load: median(&mut times[0]),
        checked: median(&mut times[1]),
        first_refit: median(&mut times[2]),
        later_refit: median(&mut times[3]),
    };
    Ok(engines.iter().zip(times).map(row).collect())
}

/// One engine for each way to keep sources, and a frozen one.
fn write_engines(program: &Path, folder: &Path) -> Result<Vec<(&'static str, std::path::PathBuf)>> {
    let model = Compiler::new().compile(program)?.into_model()?;
    let mut engines = Vec::new();
    for keep in KeepSources::ALL {
        let path = folder.join(format!("{}.rgf", keep.name()));
        model.save_as(&path, Mode::Refittable, keep)?;
        engines.push((keep.name(), path));
    }
    let path = folder.join("frozen.rgf");
    model.save_as(&path, Mode::Frozen, KeepSources::default())?;
    engines.push(("frozen", path));
    Ok(engines)
}

/// Two sets of weights that differ from the engine's and from each other in every float tensor.
fn refits(engine: &Engine) -> (StateDict, StateDict) {
    let moved = |factor: f64| {
        let tensor = |(info, tensor): (&regraft::SourceInfo, &Option<Tensor>)| {
            let tensor = tensor.clone().filter(|_| info.kind.in_state_dict())?;
            let moved = match tensor.dtype() {
                DType::F32 => {
                    let values: Vec<f32> = tensor.to_f64_vec().iter().map(|v| (v * factor + 1e-3) as f32).collect();
                    Tensor::from_slice(tensor.shape(), &values)
                }
                _ => tensor,
            };
            Some((info.name.clone(), moved))
        };
        engine.refit_map.sources.iter().zip(&engine.sources).filter_map(tensor).collect()
    };
    (moved(0.5), moved(0.75))
}

impl Row {
    pub(crate) fn markdown(&self, model: &str) -> String {
        let Row { what, file_mb, load, checked, first_refit, later_refit } = self;
        let refit = |ms: &f64| if ms.is_nan() { "none".to_owned() } else { format!("{ms:.0} ms") };
        let ratio = if first_refit.is_nan() { String::new() } else { format!("{:.2}", load / first_refit) };
        format!(
            "| {model} | {what} | {file_mb:.0} MB | {load:.1} ms | {checked:.0} ms | {} | {} | {ratio} |",
            refit(first_refit),
            refit(later_refit)
        )
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "file_mb": self.file_mb, "load": self.load, "checked": self.checked, "first_refit": self.first_refit,
            "later_refit": self.later_refit,
        })
    }
}
