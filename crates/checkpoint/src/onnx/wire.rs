//! Protobuf messages, field by field, without a schema.

use std::ops::Range;

/// The fields of one protobuf message, in the order of the file.
///
/// Places are those of the whole file, so that long fields can be taken as parts of its mapping.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    file: &'a [u8],
    rest: Range<usize>,
}

/// What a field holds, by its wire type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wire {
    /// A number of up to 64 bits.
    Varint(u64),
    /// A number of 32 bits.
    Fixed32([u8; 4]),
    /// A number of 64 bits.
    Fixed64([u8; 8]),
    /// Text, bytes, a message or packed numbers.
    Bytes(Range<usize>),
}

/// A field: its number, where it stands, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its number.
    pub number: u64,
    /// The byte of the file that it begins at.
    pub at: usize,
    /// What it holds.
    pub wire: Wire,
}

impl<'a> Fields<'a> {
    /// The fields of the message that stands in `place` of `file`.
    pub fn new(file: &'a [u8], place: Range<usize>) -> Self {
        let end = place.end.min(file.len());
        Fields { file, rest: place.start.min(end)..end }
    }

    fn take(&mut self, len: usize) -> Result<Range<usize>, String> {
        let start = self.rest.start;
        let end = start.checked_add(len).filter(|end| *end <= self.rest.end);
        let end = end.ok_or_else(|| format!("byte {start}: {len} bytes reach beyond the end of their message"))?;
        self.rest.start = end;
        Ok(start..end)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let place = self.take(N)?;
        let bytes = self.file.get(place).and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or_else(|| "a number reaches beyond the end of the file".to_owned())
    }

    fn varint(&mut self) -> Result<u64, String> {
        let start = self.rest.start;
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(format!("byte {start}: a number has more than 64 bits"))
    }

    fn field(&mut self) -> Result<Field, String> {
        let at = self.rest.start;
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(self.array()?),
            2 => {
                let len = self.varint()?;
                Wire::Bytes(self.take(usize::try_from(len).unwrap_or(usize::MAX))?)
            }
            5 => Wire::Fixed32(self.array()?),
            other => return Err(format!("byte {at}: the wire type {other} is not known")),
        };
        match tag >> 3 {
            0 => Err(format!("byte {at}: a field has the number 0")),
            number => Ok(Field { number, at, wire }),
        }
    }
}

impl Iterator for Fields<'_> {
    type Item = Result<Field, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest.start = self.rest.end;
        }
        Some(field)
    }
}

impl Field {
    /// The place of a message, text or bytes.
    ///
    /// # Errors
    /// When the field has another wire type.
    pub fn bytes(self) -> Result<Range<usize>, String> {
        match self.wire {
            Wire::Bytes(place) => Ok(place),
            _ => Err(self.unexpected()),
        }
    }

    /// A text.
    ///
    /// # Errors
    /// When the field has another wire type, or the text is not UTF-8.
    pub fn text(self, file: &[u8]) -> Result<&str, String> {
        let (at, number) = (self.at, self.number);
        let bytes = file.get(self.bytes()?).unwrap_or_default();
        std::str::from_utf8(bytes).map_err(|_| format!("byte {at}: the text of field {number} is not UTF-8"))
    }

    /// An integer.
    ///
    /// # Errors
    /// When the field has another wire type.
    pub fn int(self) -> Result<i64, String> {
        match self.wire {
            // Negative integers are written as 64 bits.
            Wire::Varint(value) => Ok(value as i64),
            _ => Err(self.unexpected()),
        }
    }

    /// Gives `each` the integers of a repeated field, packed or not.
    ///
    /// # Errors
    /// When the field has another wire type, a number is damaged, or `each` fails.
    pub fn ints(self, file: &[u8], each: &mut impl FnMut(i64) -> Result<(), String>) -> Result<(), String> {
        match self.wire {
            Wire::Bytes(place) => {
                let mut packed = Fields::new(file, place);
                while !packed.rest.is_empty() {
                    each(packed.varint()? as i64)?;
                }
                Ok(())
            }
            _ => each(self.int()?),
        }
    }

    /// Gives `each` the bytes of the numbers of `N` bytes of a repeated field, packed or not.
    ///
    /// # Errors
    /// When the field has another wire type, or `each` fails.
    pub fn fixed<const N: usize>(
        self,
        file: &[u8],
        each: &mut impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        match &self.wire {
            Wire::Bytes(place) if place.len() % N == 0 => each(file.get(place.clone()).unwrap_or_default()),
            Wire::Fixed32(bytes) if N == 4 => each(bytes),
            Wire::Fixed64(bytes) if N == 8 => each(bytes),
            _ => Err(self.unexpected()),
        }
    }

    fn unexpected(&self) -> String {
        format!("byte {}: field {} does not have the type that ONNX gives it", self.at, self.number)
    }
}
