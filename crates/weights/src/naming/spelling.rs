//! Spellings of one thing: old names of norms, and parametrized weights before and after `torch.nn.utils.parametrizations`.

use std::{borrow::Cow, collections::HashSet};

/// `names` in one spelling. What a name means depends on the others of its module: `weight_v` is a direction beside
/// `weight_g`, and a vector of the power iteration beside `weight_orig`.
pub(super) fn canonical_spelling<'n>(names: &[Cow<'n, str>]) -> Vec<Cow<'n, str>> {
    let all: HashSet<&str> = names.iter().map(|name| &**name).collect();
    names.iter().map(|name| of_one(name, &all).map_or_else(|| name.clone(), Cow::from)).collect()
}

fn of_one(name: &str, all: &HashSet<&str>) -> Option<String> {
    let (module, last) = name.rsplit_once('.').map_or(("", name), |(module, last)| (module, last));
    let in_module = |last: &str| if module.is_empty() { last.to_owned() } else { format!("{module}.{last}") };
    let has = |last: String| all.contains(in_module(&last).as_str());
    let new = match last {
        // TensorFlow's names of a norm; a module that has both means something else.
        "gamma" if !has("weight".into()) => "weight".to_owned(),
        "beta" if !has("bias".into()) => "bias".to_owned(),
        _ => {
            let (weight, part) = last.rsplit_once('_')?;
            let weight_norm = has(format!("{weight}_g")) && has(format!("{weight}_v"));
            let spectral_norm = has(format!("{weight}_orig")) && has(format!("{weight}_u"));
            match part {
                "g" if weight_norm => format!("parametrizations.{weight}.original0"),
                "v" if weight_norm => format!("parametrizations.{weight}.original1"),
                "orig" if spectral_norm => format!("parametrizations.{weight}.original"),
                "u" if spectral_norm => format!("parametrizations.{weight}.0._u"),
                "v" if spectral_norm => format!("parametrizations.{weight}.0._v"),
                _ => return None,
            }
        }
    };
    Some(in_module(&new))
}

/// The module of a name, by its segments, and the rest, which has several spellings.
pub(super) fn without_tail<'n, 's>(segments: &'n [&'s str]) -> (&'n [&'s str], &'n [&'s str]) {
    let at = segments.iter().position(|segment| *segment == "parametrizations").unwrap_or(segments.len().max(1) - 1);
    segments.split_at(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(names: &[&str], expected: &[&str]) {
        let names: Vec<Cow<'_, str>> = names.iter().map(|n| Cow::from(*n)).collect();
        assert_eq!(canonical_spelling(&names), expected);
    }

    #[test]
    fn norms_have_gamma_and_beta() {
        check(&["n.gamma", "n.beta", "gamma"], &["n.weight", "n.bias", "weight"]);
        check(&["block.gamma", "block.weight"], &["block.gamma", "block.weight"]);
    }

    #[test]
    fn parametrized_weights_tell_by_their_siblings() {
        check(
            &["c.weight_g", "c.weight_v"],
            &["c.parametrizations.weight.original0", "c.parametrizations.weight.original1"],
        );
        check(
            &["c.weight_orig", "c.weight_u", "c.weight_v"],
            &["c.parametrizations.weight.original", "c.parametrizations.weight.0._u", "c.parametrizations.weight.0._v"],
        );
        check(&["c.weight_v", "c.weight_h"], &["c.weight_v", "c.weight_h"]);
    }
}
