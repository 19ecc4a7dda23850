use std::{collections::BTreeSet, str::FromStr};

/// What names and values of weights must be. By default all weights must be there, under names that the engine has.
///
/// ```
/// # use regraft_weights::{MatchOptions, Rename};
/// let options = MatchOptions::new().partial(true).renames([Rename::new("net", "model")]);
/// assert_eq!(options.renames.len(), 1);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MatchOptions {
    /// Take the keys that are there; otherwise every source that a state dict holds must be given.
    pub partial: bool,
    /// Leave names alone that the engine does not have; otherwise they are an error.
    pub ignore_unknown: bool,
    /// Refuse infinite values and NaN.
    pub reject_non_finite: bool,
    /// Which sources that no state dict holds may be changed.
    pub constants: Constants,
    /// What names of the file are called before they are matched.
    pub renames: Vec<Rename>,
}

impl MatchOptions {
    /// The default.
    pub fn new() -> Self {
        MatchOptions::default()
    }

    /// Sets [`MatchOptions::partial`].
    #[must_use]
    pub fn partial(mut self, partial: bool) -> Self {
        self.partial = partial;
        self
    }

    /// Sets [`MatchOptions::ignore_unknown`].
    #[must_use]
    pub fn ignore_unknown(mut self, ignores: bool) -> Self {
        self.ignore_unknown = ignores;
        self
    }

    /// Sets [`MatchOptions::reject_non_finite`].
    #[must_use]
    pub fn reject_non_finite(mut self, rejects: bool) -> Self {
        self.reject_non_finite = rejects;
        self
    }

    /// Sets [`MatchOptions::constants`].
    #[must_use]
    pub fn constants(mut self, constants: Constants) -> Self {
        self.constants = constants;
        self
    }

    /// Sets [`MatchOptions::renames`].
    #[must_use]
    pub fn renames(mut self, renames: impl IntoIterator<Item = Rename>) -> Self {
        self.renames = renames.into_iter().collect();
        self
    }
}

/// Sources that no state dict holds, as far as weights may change them: non-persistent buffers and tensors that the program's
/// code made. A checkpoint that brings them was written by another version of the code, so by default they are left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Constants {
    /// None: they are the program's.
    #[default]
    Keep,
    /// Those of these names.
    Change(BTreeSet<String>),
    /// All that are given.
    ChangeAll,
}

impl Constants {
    pub(crate) fn allow<'n>(&self, mut names: impl Iterator<Item = &'n str>) -> bool {
        match self {
            Constants::Keep => false,
            Constants::Change(allowed) => names.any(|name| allowed.contains(name)),
            Constants::ChangeAll => true,
        }
    }
}

/// A prefix of names that stands for another: `FROM=TO`. Whole parts between dots are compared; without `FROM` the other is
/// put before every name, without `TO` it is taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rename {
    from: String,
    to: String,
}

impl Rename {
    /// Names that are `from`, or begin with it and a dot, begin with `to` instead. Dots at the ends do not matter.
    pub fn new(from: &str, to: &str) -> Rename {
        Rename { from: from.trim_matches('.').to_owned(), to: to.trim_matches('.').to_owned() }
    }

    /// What names begin with.
    pub fn from(&self) -> &str {
        &self.from
    }

    /// The new name; `None` when `name` does not begin so.
    pub fn apply(&self, name: &str) -> Option<String> {
        let rest = match self.from.is_empty() {
            true => name,
            false if name == self.from => "",
            false => name.strip_prefix(&self.from)?.strip_prefix('.')?,
        };
        let parts = [self.to.as_str(), rest];
        Some(parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("."))
    }
}

impl FromStr for Rename {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (from, to) = text.split_once('=').ok_or("expected FROM=TO, such as encoder.=model.encoder.")?;
        let rename = Rename::new(from.trim(), to.trim());
        if rename.from == rename.to {
            return Err("FROM and TO are the same".to_owned());
        }
        Ok(rename)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fronts_are_whole_parts() {
        let rename: Rename = "a.b.=c".parse().expect("a rename");
        assert_eq!(rename.apply("a.b.x").as_deref(), Some("c.x"));
        assert_eq!(rename.apply("a.b").as_deref(), Some("c"));
        assert_eq!(rename.apply("a.bc.x"), None);
        assert_eq!(Rename::new("model", "").apply("model.x").as_deref(), Some("x"));
        assert_eq!(Rename::new("", "model").apply("x").as_deref(), Some("model.x"));
        assert!("x".parse::<Rename>().is_err() && "x=x.".parse::<Rename>().is_err());
    }
}
