use std::fmt;

/// Names wider than this do not move the text of others to the right.
const WIDEST: usize = 60;

/// An error in parts, for callers that lay it out themselves: what happened, in one line; what is wrong with each thing; and
/// what to do.
///
/// ```
/// use regraft_tensor::Explanation;
///
/// let error = Explanation::new("1 of 2 sources does not fit")
///     .problems([("fc.bias".to_owned(), "missing".to_owned())])
///     .help("give all sources");
/// assert_eq!(error.to_string(), "1 of 2 sources does not fit\n  fc.bias  missing\n  help: give all sources");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// What happened, and where.
    pub what: String,
    /// The name of each thing that is wrong, and what is wrong with it.
    pub problems: Vec<(String, String)>,
    /// What to do.
    pub help: Option<String>,
}

impl Explanation {
    /// An error without a list and without advice.
    pub fn new(what: impl Into<String>) -> Self {
        Explanation { what: what.into(), problems: Vec::new(), help: None }
    }

    /// The same with these problems.
    #[must_use]
    pub fn problems(self, problems: impl IntoIterator<Item = (String, String)>) -> Self {
        Explanation { problems: problems.into_iter().collect(), ..self }
    }

    /// The same with this advice.
    #[must_use]
    pub fn help(self, help: impl Into<String>) -> Self {
        Explanation { help: Some(help.into()), ..self }
    }

    /// The same, with `place` in front.
    #[must_use]
    pub fn about(self, place: impl fmt::Display) -> Self {
        Explanation { what: format!("{place}: {}", self.what), ..self }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        let width = self.problems.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).min(WIDEST);
        for (name, what) in &self.problems {
            match (name.as_str(), what.as_str()) {
                (name, "") => write!(f, "\n  {name}")?,
                ("", what) if width == 0 => write!(f, "\n  {what}")?,
                (name, what) => write!(f, "\n  {name:width$}  {what}")?,
            }
        }
        self.help.iter().try_for_each(|help| write!(f, "\n  help: {help}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_aligned_and_advice_comes_last() {
        let pair = |name: &str, what: &str| (name.to_owned(), what.to_owned());
        let explanation = Explanation::new("2 do not fit")
            .problems([pair("a", "missing"), pair("long.name", "unknown"), pair("alone", "")])
            .help("look")
            .about("model.rgf");
        let text = "model.rgf: 2 do not fit\n  a          missing\n  long.name  unknown\n  alone\n  help: look";
        assert_eq!(explanation.to_string(), text);
        assert_eq!(Explanation::new("no list").problems([pair("", "why")]).to_string(), "no list\n  why");
    }
}
