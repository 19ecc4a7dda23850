use regraft::{MatchOptions, Mode};

use super::{open_engine, open_weights, tell_names};
use crate::{
    args::CheckArgs,
    failure::Failure,
    output::{self, Output},
};

pub(super) fn run(args: &CheckArgs, out: &mut Output) -> Result<(), Failure> {
    let engine = open_engine(&args.engine)?;
    let known = engine.digests.iter().flatten().count();
    if args.same && known == 0 {
        return Err(Failure::new("the engine does not know the digests of its weights, and --same needs them")
            .about(&args.engine)
            .help("regraft strip keeps the digests of an engine that has weights"));
    }
    let weights = open_weights(&args.weights, &args.names, out)?;
    let options = MatchOptions::new()
        .ignore_unknown(args.names.ignore_unknown)
        .constants(args.names.constants())
        .renames(args.names.renames());
    let found = {
        let _busy = out.busy("comparing");
        engine.check(&weights, args.same, &options)
    };
    let takes = engine.refit_map.sources.iter().filter(|source| source.kind.in_state_dict()).count();
    let file = args.weights.file_name().map(|name| name.to_string_lossy().into_owned());
    let found = found.map_err(|misfit| Failure::misfit(&misfit, file.as_deref()))?;
    let given = found.given;
    let compared = args.same || engine.identical;
    let same = if compared { ", the same as those that the engine was made with" } else { "" };
    out.line("fits", format!("{given} of {}{same}", output::count(takes, "source")));
    let naming = if found.rule.is_identity() { String::new() } else { found.rule.to_string() };
    tell_names(&naming, &found.ignored, out);
    if engine.mode == Mode::Frozen {
        out.note("the engine is frozen: it takes no weights, whatever fits");
    }
    out.fact("fits", true);
    out.fact("given", given);
    out.fact("naming", naming);
    out.fact("ignored", serde_json::to_value(&found.ignored).unwrap_or_default());
    out.fact("sources", takes);
    out.fact("contents_compared", compared);
    Ok(())
}
