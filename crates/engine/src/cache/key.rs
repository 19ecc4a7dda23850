use std::{fmt, str::FromStr};

use regraft_weights::{Digest, NoDigest};

/// The key of an entry: a digest of everything that an engine is built from but its names and weights. Written as 64
/// hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey(Digest);

impl CacheKey {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheKey({self})")
    }
}

impl FromStr for CacheKey {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        text.parse().map(CacheKey)
    }
}

/// Makes a [`CacheKey`] of named parts. Each part is hashed with its name and length, so that no two lists of parts give
/// the same bytes; the order in which parts are added does not matter.
#[derive(Clone, Debug, Default)]
pub struct KeyHasher {
    parts: std::collections::BTreeMap<&'static str, Vec<u8>>,
}

impl KeyHasher {
    /// No parts.
    pub fn new() -> Self {
        KeyHasher::default()
    }

    /// Adds a part; it replaces one of the same name.
    #[must_use]
    pub fn part(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        self.parts.insert(name, value.as_ref().to_vec());
        self
    }

    /// The key.
    pub fn finish(&self) -> CacheKey {
        let mut hasher = blake3::Hasher::new_derive_key("regraft engine cache 1");
        for (name, value) in &self.parts {
            for bytes in [name.as_bytes(), value] {
                hasher.update(&(bytes.len() as u64).to_le_bytes());
                hasher.update(bytes);
            }
        }
        CacheKey(Digest::from_bytes(*hasher.finalize().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_written_and_read() {
        let key = KeyHasher::new().part("a", "1").finish();
        assert_eq!(key.to_string().parse(), Ok(key));
        for text in ["", "zz", &"A".repeat(64), &format!("{key}0")] {
            assert_eq!(text.parse::<CacheKey>(), Err(NoDigest), "{text}");
        }
    }

    #[test]
    fn parts_count_with_their_names_and_in_any_order() {
        let key = |parts: &[(&'static str, &str)]| {
            parts.iter().fold(KeyHasher::new(), |hasher, (name, value)| hasher.part(name, value)).finish()
        };
        let ab = key(&[("a", "1"), ("b", "2")]);
        assert_eq!(ab, key(&[("b", "2"), ("a", "1")]));
        for other in [&[("a", "2"), ("b", "1")][..], &[("a", "12"), ("b", "")], &[("a", "1")], &[("ab", "12")]] {
            assert_ne!(ab, key(other), "{other:?}");
        }
    }
}
