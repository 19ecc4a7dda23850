use regraft::{Mode, RefitOptions, StateDict};

use super::{about_weights, check_writable, load, path_json, save, tell_refit};
use crate::{
    args::RefitArgs,
    failure::Failure,
    output::{self, Output},
};

pub(super) fn run(args: &RefitArgs, out: &mut Output) -> Result<(), Failure> {
    check_writable(&args.output)?;
    args.report.as_deref().map_or(Ok(()), check_writable)?;
    let weights = StateDict::open(&args.weights)?;
    let model = load(&args.engine, args.threads.get(), out)?;
    match model.mode() {
        Mode::Refittable => {}
        Mode::Frozen => {
            let why = "the engine is frozen: it holds no recipes, so its weights cannot change";
            return Err(Failure::new(why).about(&args.engine).help("compile the program with --mode refittable"));
        }
        Mode::Stripped => {
            let help = format!("regraft bind {} --weights MODEL.safetensors -o BOUND.rgf", args.engine.display());
            return Err(Failure::new("the engine is stripped: it has no weights to change")
                .about(&args.engine)
                .help(help));
        }
    }
    let options =
        RefitOptions { partial: args.partial, reject_non_finite: args.reject_non_finite, ..RefitOptions::default() };
    let report = {
        let _busy = out.busy("refitting");
        model.refit(&weights, &options).map_err(|e| about_weights(e.into(), &args.weights))?
    };
    let with_report = args.report.as_deref().map(|path| (path, &report));
    let written = save(&model, Mode::Refittable, &args.output, with_report, out)?;
    tell_refit(&report, model.refit_map().sources.len(), out);
    out.line("wrote", format!("{}, {}", args.output.display(), output::bytes(written)));
    out.fact("engine", path_json(&args.output));
    out.fact("bytes", written);
    Ok(())
}
