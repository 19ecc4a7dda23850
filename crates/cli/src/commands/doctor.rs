use crate::{args::DoctorArgs, failure::Failure, output::Output};

pub(super) fn run(_: &DoctorArgs, out: &mut Output) -> Result<(), Failure> {
    let found = regraft::doctor();
    for (what, text) in found.lines() {
        out.line(what, text);
    }
    let facts = serde_json::to_value(&found).map_err(|error| Failure::new(error.to_string()))?;
    facts.as_object().into_iter().flatten().for_each(|(name, value)| out.fact(name, value.clone()));
    Ok(())
}
