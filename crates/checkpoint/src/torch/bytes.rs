/// The bytes of a pickle, read from the front.
#[derive(Debug)]
pub(super) struct Bytes<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The pickle ends too early, or a text in it is not UTF-8.
pub(super) type Refused = String;

impl<'a> Bytes<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Bytes { bytes, at: 0 }
    }

    /// How many bytes were read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// How many bytes there are in all.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The next byte, which is not taken.
    pub(super) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Refused> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let part = rest.get(..len).ok_or_else(|| format!("expected {len} more bytes, found {}", rest.len()))?;
        self.at += len;
        Ok(part)
    }

    /// A little-endian number of `len` bytes, at most eight.
    pub(super) fn uint(&mut self, len: usize) -> Result<u64, Refused> {
        Ok(self.take(len)?.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    /// A length of `len` bytes, then as many bytes.
    pub(super) fn sized(&mut self, len: usize) -> Result<&'a [u8], Refused> {
        let size = self.uint(len)?;
        self.take(usize::try_from(size).unwrap_or(usize::MAX))
    }

    /// A length of `len` bytes, then as many bytes of text.
    pub(super) fn text(&mut self, len: usize) -> Result<&'a str, Refused> {
        utf8(self.sized(len)?)
    }

    /// Text up to the end of the line.
    pub(super) fn line(&mut self) -> Result<&'a str, Refused> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|byte| *byte == b'\n').ok_or("expected a line, found the end")?;
        let line = self.take(len)?;
        self.take(1)?;
        utf8(line)
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, Refused> {
    std::str::from_utf8(bytes).map_err(|_| "a text is not UTF-8".to_owned())
}
