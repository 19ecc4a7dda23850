//! JSON texts, with errors that say where.

use serde::de::DeserializeOwned;

/// Why a JSON text could not be read.
pub(crate) struct JsonProblem {
    /// Where, such as `graph_module.graph.nodes[3].inputs[0].arg`.
    pub(crate) at: String,
    pub(crate) problem: String,
}

/// Reads a JSON text; nesting is limited by the JSON reader to 128 levels.
pub(crate) fn from_json<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonProblem> {
    serde_json::from_slice(text).map_err(|error| {
        let lines = error.line().saturating_sub(1);
        let line_start = match lines {
            0 => 0,
            n => text.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(n - 1).map_or(0, |(at, _)| at + 1),
        };
        let offset = line_start.saturating_add(error.column()).min(text.len());
        let near: Vec<char> = String::from_utf8_lossy(&text[offset.saturating_sub(40)..offset]).chars().collect();
        let near: String = near.iter().collect::<String>().replace('\n', " ");
        JsonProblem { at: json_path(&text[..offset]), problem: format!("{error} (after `{}`)", near.trim()) }
    })
}

/// The path to the end of `text`, the beginning of a JSON text.
fn json_path(text: &[u8]) -> String {
    enum Step {
        Key(String),
        Index(usize),
    }
    let (mut steps, mut last_text, mut at) = (Vec::new(), String::new(), 0);
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => {
                let start = at;
                while let Some(&b) = text.get(at).filter(|b| **b != b'"') {
                    at += if b == b'\\' { 2 } else { 1 };
                }
                last_text = String::from_utf8_lossy(&text[start..at.min(text.len())]).into_owned();
                at += 1;
            }
            b':' => {
                if let Some(Step::Key(key)) = steps.last_mut() {
                    *key = std::mem::take(&mut last_text);
                }
            }
            b',' => match steps.last_mut() {
                Some(Step::Index(index)) => *index += 1,
                Some(Step::Key(key)) => key.clear(),
                None => {}
            },
            b'{' => steps.push(Step::Key(String::new())),
            b'[' => steps.push(Step::Index(0)),
            b'}' | b']' => {
                steps.pop();
            }
            _ => {}
        }
    }
    let mut path = String::new();
    for (i, step) in steps.into_iter().enumerate() {
        if i == 32 {
            return path + "...";
        }
        match step {
            Step::Key(key) if key.is_empty() => {}
            Step::Key(key) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.extend(key.chars().take(200));
            }
            Step::Index(index) => path.push_str(&format!("[{index}]")),
        }
    }
    path
}
