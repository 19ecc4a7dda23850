//! Inputs that are made of named parts.

/// More parts than any seed has.
const MOST: usize = 16;
const MARK: &[u8] = b"\n=====";

/// A byte of settings, then parts: `\n=====name\ncontent`, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// What the target makes of the parts.
    pub settings: u8,
    parts: Vec<(String, Vec<u8>)>,
}

impl Parts {
    /// The parts of `input`; of two with one name the first counts.
    pub fn of(input: &[u8]) -> Parts {
        let mut parts = Parts { settings: input.first().copied().unwrap_or_default(), parts: Vec::new() };
        let mut rest = input;
        while let (Some(at), true) = (find(rest), parts.parts.len() < MOST) {
            rest = &rest[at + MARK.len()..];
            let part = &rest[..find(rest).unwrap_or(rest.len())];
            let end = part.iter().position(|byte| *byte == b'\n').unwrap_or(part.len());
            let (name, content) = part.split_at(end);
            let name = String::from_utf8_lossy(name).into_owned();
            if parts.get(&name).is_none() {
                parts.parts.push((name, content.get(1..).unwrap_or_default().to_vec()));
            }
        }
        parts
    }

    /// The content of one of them.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.parts.iter().find(|(n, _)| n == name).map(|(_, content)| content.as_slice())
    }

    /// The content of one of them, to change it.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Vec<u8>> {
        self.parts.iter_mut().find(|(n, _)| n == name).map(|(_, content)| content)
    }

    /// All contents, to change them.
    pub fn contents_mut(&mut self) -> impl ExactSizeIterator<Item = &mut Vec<u8>> {
        self.parts.iter_mut().map(|(_, content)| content)
    }

    /// The input whose parts these are.
    pub fn join(&self) -> Vec<u8> {
        let mut joined = vec![self.settings];
        for (name, content) in &self.parts {
            joined.extend(MARK);
            joined.extend(name.as_bytes());
            joined.push(b'\n');
            joined.extend(content);
        }
        joined
    }
}

fn find(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MARK.len()).position(|window| window == MARK)
}
