use regraft::{KeepSources, Mode, RefitOptions};

use super::{about_weights, check_writable, load, open_weights, path_json, save, tell_refit};
use crate::{
    args::BindArgs,
    failure::Failure,
    output::{self, Output},
};

pub(super) fn run(args: &BindArgs, out: &mut Output) -> Result<(), Failure> {
    check_writable(&args.output)?;
    args.report.as_deref().map_or(Ok(()), check_writable)?;
    let weights = open_weights(&args.weights, &args.names, out)?;
    let model = load(&args.engine, args.threads, out)?;
    if model.mode() != Mode::Stripped {
        let failure = Failure::new(format!("the engine is {}: it has its weights already", model.mode()));
        let help = match model.mode() {
            Mode::Refittable => "regraft refit gives it others",
            Mode::Frozen | Mode::Stripped => "compile the program with --mode stripped",
        };
        return Err(failure.about(&args.engine).help(help));
    }
    let options = RefitOptions::new()
        .ignore_unknown(args.names.ignore_unknown)
        .reject_non_finite(args.reject_non_finite)
        .constants(args.names.constants())
        .renames(args.names.renames());
    let report = {
        let _busy = out.busy("binding");
        model.refit(&weights, &options).map_err(|e| about_weights(e.into(), &args.weights))?
    };
    let with_report = args.report.as_deref().map(|path| (path, &report));
    let mode = Mode::from(args.mode);
    let keep = args.keep_sources.map_or(KeepSources::default(), KeepSources::from);
    let written = save(&model, (mode, keep), &args.output, with_report, out)?;
    tell_refit(&report, model.refit_map().changeable().count(), out);
    out.line("wrote", format!("{}, {mode}, {}", args.output.display(), output::bytes(written)));
    out.fact("engine", path_json(&args.output));
    out.fact("mode", mode.to_string());
    out.fact("bytes", written);
    Ok(())
}
