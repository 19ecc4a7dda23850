use std::{collections::BTreeSet, str::FromStr};

/// How names and values of weights are checked. By default all weights must be given, under the engine's names.
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
    /// Ignore names that the engine does not have; otherwise they are an error.
    pub ignore_unknown: bool,
    /// Refuse infinite values and NaN.
    pub reject_non_finite: bool,
    /// Which of the sources that no state dict contains may be changed.
    pub constants: Constants,
    /// Renames names of the file before they are matched.
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

/// Which sources that no state dict contains weights may change: non-persistent buffers and tensors that the program's
/// code made. A checkpoint that contains them was written by another version of the code, so by default they are kept.
///
/// ```
/// use regraft_weights::{Constants, MatchOptions};
///
/// let one = Constants::Change(["rotary.inv_freq".to_owned()].into());
/// let options = MatchOptions::new().constants(one);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Constants {
    /// None: they belong to the program.
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

/// Replaces a prefix of names by another: `FROM=TO`. Whole parts between dots are compared; without `FROM` the prefix `TO` is
/// added to every name, without `TO` the prefix is removed.
///
/// ```
/// use regraft_weights::Rename;
///
/// let rename: Rename = "encoder=model.encoder".parse()?;
/// assert_eq!(rename.apply("encoder.0.weight").as_deref(), Some("model.encoder.0.weight"));
/// assert_eq!(rename.apply("decoder.0.weight"), None);
/// # Ok::<(), String>(())
/// ```
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

    /// The prefix that is replaced.
    pub fn from(&self) -> &str {
        &self.from
    }

    /// The new name; `None` when `name` does not have the prefix.
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
