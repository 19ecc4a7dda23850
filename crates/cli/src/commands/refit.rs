use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use regraft::{
    Adapter, AdapterOptions, KeepSources, Mode, Model, Phase, Refit, RefitObserver, RefitOptions, Staged, StateDict,
};

use super::{about_weights, check_writable, load, open_weights, path_json, samples, save, tell_refit};
use crate::{
    args::RefitArgs,
    failure::Failure,
    output::{self, Busy, Output},
};

pub(super) fn run(args: &RefitArgs, out: &mut Output) -> Result<(), Failure> {
    check_writable(&args.output)?;
    args.report.as_deref().map_or(Ok(()), check_writable)?;
    let weights = args.weights.as_deref().map(|path| open_weights(path, &args.names, out)).transpose()?;
    let model = load(&args.engine, args.threads, out)?;
    check_mode(&model, &args.engine)?;
    let changes = args.delta.as_deref().map(|path| changes(path, &model, out)).transpose()?;
    let weights = weights.or(changes);
    let adapters = open_adapters(args, &model)?;
    for (adapter, _) in adapters.iter().filter(|(adapter, _)| !adapter.foreign_keys.is_empty()) {
        let (count, first) = (adapter.foreign_keys.len(), &adapter.foreign_keys[0]);
        out.note(format!("{}: {count} keys are about other models of a pipeline, such as {first}", adapter.name));
    }
    let samples = args.verify.iter().map(|path| samples::read(path, &model.plan().graph));
    let samples = samples.collect::<Result<Vec<_>, _>>()?;
    let options = RefitOptions::new()
        .partial(args.partial || args.delta.is_some())
        .ignore_unknown(args.names.ignore_unknown)
        .reject_non_finite(args.reject_non_finite)
        .constants(args.names.constants())
        .renames(args.names.renames());
    let staged = {
        let watcher = Watcher(out.busy("refitting"));
        let mut refit = Refit::new().adapters(&adapters)?.reject_non_finite(args.reject_non_finite).observe(&watcher);
        if let Some(weights) = &weights {
            refit = refit.weights(weights, &options);
        }
        let about = args.weights.as_deref().or(args.delta.as_deref()).unwrap_or(&args.engine);
        refit.stage(&model).map_err(|e| about_weights(e.into(), about))?
    };
    if !samples.is_empty() {
        verify(&staged, &samples, out)?;
    }
    let report = staged.publish()?;
    let with_report = args.report.as_deref().map(|path| (path, &report));
    let keep = args.keep_sources.map_or(model.keep_sources(), KeepSources::from);
    let written = save(&model, (Mode::Refittable, keep), &args.output, with_report, out)?;
    tell_refit(&report, model.refit_map().changeable().count(), out);
    out.line("wrote", format!("{}, {}", args.output.display(), output::bytes(written)));
    out.fact("engine", path_json(&args.output));
    out.fact("bytes", written);
    Ok(())
}

fn check_mode(model: &Model, engine: &Path) -> Result<(), Failure> {
    match model.mode() {
        Mode::Refittable => Ok(()),
        Mode::Frozen => {
            let why = "the engine is frozen: it holds no recipes, so its weights cannot change";
            Err(Failure::new(why).about(engine).help("compile the program with --mode refittable"))
        }
        Mode::Stripped => {
            let help = format!("regraft bind {} --weights MODEL.safetensors -o BOUND.rgf", engine.display());
            Err(Failure::new("the engine is stripped: it has no weights to change").about(engine).help(help))
        }
    }
}

/// What a delta changes in the weights of the model.
fn changes(path: &Path, model: &Model, out: &Output) -> Result<StateDict, Failure> {
    let _busy = out.busy("applying the delta");
    let delta = regraft::delta::Delta::open(path).map_err(regraft::Error::from)?;
    Ok(regraft::apply_delta(&delta, model)?)
}

/// Reads the adapters; two files of one name are told apart by their paths.
fn open_adapters(args: &RefitArgs, model: &Model) -> Result<Vec<(Arc<Adapter>, f64)>, Failure> {
    let given = &args.adapter;
    let config = args.adapter_config.as_deref().map(regraft::adapter::read_config).transpose()?;
    let options = AdapterOptions::new().config(config).alpha(args.adapter_alpha);
    let open = |(path, scale): &(PathBuf, f64)| {
        let mut adapter = regraft::open_adapter(path, &options, model.refit_map())?;
        if given.iter().filter(|(other, _)| other.file_name() == path.file_name()).count() > 1 {
            adapter.name = path.display().to_string();
        }
        Ok((Arc::new(adapter), *scale))
    };
    given.iter().map(open).collect()
}

/// Shows how far a refit is, on a terminal.
struct Watcher(Busy);

impl RefitObserver for Watcher {
    fn phase(&self, phase: Phase) {
        self.0.message(match phase {
            Phase::Match | Phase::Check => "checking the weights",
            Phase::Compare => "comparing with what serves",
            Phase::Stage => "making slots",
            Phase::Publish | Phase::Retire => "publishing",
        });
    }

    fn staged(&self, done: usize, total: usize) {
        let (done, total) = (output::bytes(done as u64), output::bytes(total as u64));
        self.0.message(format!("making slots: {done} of {total}"));
    }
}

fn verify(staged: &Staged, samples: &[Vec<regraft::Tensor>], out: &mut Output) -> Result<(), Failure> {
    let found = {
        let _busy = out.busy("verifying");
        staged.verify(samples)?
    };
    let (slots, outputs) = (output::count(found.slots, "slot"), output::count(found.outputs, "output"));
    out.line("verified", format!("{slots}, {outputs}, largest difference {:.1e}", found.largest_difference));
    out.fact("verification", serde_json::to_value(&found).unwrap_or_default());
    Ok(())
}
