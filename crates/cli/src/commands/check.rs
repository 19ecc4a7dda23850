use regraft::Mode;

use super::{about_weights, open_engine};
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
    let weights = regraft::open_weights(&args.weights)?;
    let sources = engine.refit_map.sources.len();
    let found = {
        let _busy = out.busy("comparing");
        engine.check(&weights, args.same)
    };
    let takes = engine.refit_map.sources.iter().filter(|source| source.kind.in_state_dict()).count();
    let given = found.map_err(|problems| about_weights(Failure::misfit(&problems, sources), &args.weights))?;
    let compared = args.same || engine.identical;
    let same = if compared { ", the same as those that the engine was made with" } else { "" };
    out.line("fits", format!("{given} of {}{same}", output::count(takes, "source")));
    if engine.mode == Mode::Frozen {
        out.note("the engine is frozen: it takes no weights, whatever fits");
    }
    out.fact("fits", true);
    out.fact("given", given);
    out.fact("sources", takes);
    out.fact("contents_compared", compared);
    Ok(())
}
