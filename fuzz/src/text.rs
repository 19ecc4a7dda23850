//! Changes to the text of programs that leave it words and numbers.

use std::{ops::Range, sync::LazyLock};

use regraft_ir::{IrErrorKind, text};

use crate::random::Random;

/// Numbers at which sizes, ranks and sums go wrong.
pub const NUMBERS: [i64; 20] = [
    0,
    1,
    -1,
    2,
    -2,
    3,
    7,
    16,
    31,
    64,
    1 << 20,
    1 << 31,
    1 << 32,
    1 << 53,
    1 << 61,
    i64::MAX,
    i64::MIN,
    i64::MAX / 4,
    i64::MAX / 2 + 1,
    -(1 << 31),
];

/// What makes another size of a size.
const EXPRESSIONS: [&str; 8] = [" + 1", " - 1", "*2", "//2", " % 3", "*s0", " + s0", "//s0"];

/// Words of programs.
static WORDS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    let lines = include_str!("../dicts/ir_text.dict").lines();
    lines.filter_map(|line| line.strip_prefix('"')?.strip_suffix('"')).collect()
});

/// The name of a kernel.
pub fn kernel(random: &mut Random) -> &'static str {
    let kernels: Vec<&str> = WORDS.iter().copied().filter(|w| w.contains('.') || *w == "view").collect();
    random.pick(&kernels).copied().unwrap_or_default()
}

/// Changes a token or a line of `content`, one to three times; false when it is not text.
pub fn mutate(content: &mut Vec<u8>, random: &mut Random) -> bool {
    let Ok(text) = std::str::from_utf8(content) else { return false };
    let mut text = text.to_owned();
    for _ in 0..=random.below(3) * random.below(2) {
        if random.below(4) == 0 { change_lines(&mut text, random) } else { change_token(&mut text, random) }
    }
    *content = text.into_bytes();
    true
}

/// The programs that `text` consists of.
pub fn programs(text: &str) -> impl Iterator<Item = &str> {
    let starts = text.match_indices("program \"").map(|(at, _)| at);
    let ends = starts.clone().skip(1).chain([text.len()]);
    starts.zip(ends).map(|(start, end)| &text[start..end])
}

/// Declares results as the types that they have, as far as that can be told.
pub fn fit_types(content: &mut Vec<u8>, random: &mut Random) {
    let Ok(all) = std::str::from_utf8(content) else { return };
    let Some(start) = all.find("program \"") else { return };
    let fitted = programs(all).map(|program| with_fitting_types(program, random));
    *content = [all[..start].to_owned()].into_iter().chain(fitted).collect::<String>().into_bytes();
}

fn with_fitting_types(program: &str, random: &mut Random) -> String {
    let mut program = program.to_owned();
    for _ in 0..16 {
        let Err(error) = text::parse(&program) else { break };
        let IrErrorKind::Type { op, computed, declared, .. } = error.kind() else { break };
        // The error does not say which node it is.
        let (op, declared) = (format!("= {op} "), format!(": {declared}"));
        let alike: Vec<_> = program.match_indices(&declared).map(|(at, _)| at).collect();
        let line = |at: usize| program[..at].rsplit('\n').next().unwrap_or_default();
        let places: Vec<_> = alike.into_iter().filter(|at| line(*at).contains(&op)).collect();
        let Some(&place) = random.pick(&places) else { break };
        program.replace_range(place..place + declared.len(), &format!(": {computed}"));
    }
    program
}

/// Gives one number another value wherever it stands in `texts`, so that sizes go on to fit each other.
pub fn replace_everywhere(texts: &mut [&mut Vec<u8>], random: &mut Random) -> bool {
    let is_number = |token: &&str| token.parse::<i64>().is_ok();
    let all = texts.iter().filter_map(|text| std::str::from_utf8(text).ok());
    let numbers: Vec<&str> = all.flat_map(|text| tokens(text).map(|at| &text[at])).filter(is_number).collect();
    let Some(old) = random.pick(&numbers).map(|&old| old.to_owned()) else { return false };
    let new = number(&numbers, &old, random);
    for content in texts {
        let Ok(text) = std::str::from_utf8(content) else { continue };
        let found: Vec<_> = tokens(text).filter(|at| text[at.clone()] == old).collect();
        let mut text = text.to_owned();
        found.into_iter().rev().for_each(|at| text.replace_range(at, &new));
        **content = text.into_bytes();
    }
    true
}

fn number(numbers: &[&str], old: &str, random: &mut Random) -> String {
    match random.below(4) {
        0 => NUMBERS[random.below(NUMBERS.len())].to_string(),
        1 => old.parse::<i64>().unwrap_or(0).wrapping_add(random.below(9) as i64 - 4).to_string(),
        2 => random.below(64).to_string(),
        _ => random.pick(numbers).copied().unwrap_or("0").to_owned(),
    }
}

fn change_token(text: &mut String, random: &mut Random) {
    let places: Vec<Range<usize>> = tokens(text).collect();
    let Some(place) = random.pick(&places).cloned() else { return };
    // Numbers of values, other numbers, words.
    let kind = |at: &Range<usize>| {
        let is_value = text[..at.start].ends_with('%');
        (is_value, text[at.clone()].starts_with(|c: char| c.is_ascii_digit()))
    };
    let (is_value, is_number) = kind(&place);
    let alike: Vec<&str> =
        places.iter().filter(|at| kind(at) == (is_value, is_number)).map(|at| &text[at.clone()]).collect();
    let other = random.pick(&alike).copied().unwrap_or_default().to_owned();
    let old = &text[place.clone()];
    let new = match random.below(16) {
        0 => String::new(),
        1 if is_value => format!("{old}, %{other}"),
        1 => format!("{old}, {other}"),
        2 | 3 if !is_value => format!("{old}{}", random.pick(&EXPRESSIONS).copied().unwrap_or_default()),
        4..8 if !is_number => random.pick(&WORDS).copied().unwrap_or_default().to_owned(),
        _ if is_number && !is_value => number(&alike, old, random),
        _ => other,
    };
    text.replace_range(place, &new);
}

fn change_lines(text: &mut String, random: &mut Random) {
    let mut lines: Vec<&str> = text.lines().collect();
    let (at, other) = (random.below(lines.len()), random.below(lines.len()));
    match random.below(3) {
        _ if lines.is_empty() => return,
        0 => drop(lines.remove(at)),
        1 => lines.insert(at, lines[other]),
        _ => lines.swap(at, other),
    }
    *text = lines.join("\n") + "\n";
}

/// Words and numbers: what is made of letters, digits, `_` and `.`.
fn tokens(text: &str) -> impl Iterator<Item = Range<usize>> {
    let part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
    let bytes = text.as_bytes();
    let mut end = 0;
    std::iter::from_fn(move || {
        let start = end + bytes[end..].iter().position(part)?;
        end = bytes[start..].iter().position(|byte| !part(byte)).map_or(bytes.len(), |len| start + len);
        Some(start..end)
    })
}
