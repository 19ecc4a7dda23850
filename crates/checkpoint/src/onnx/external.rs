use std::collections::{BTreeMap, btree_map::Entry};

use regraft_tensor::{Buffer, MappedFile};

use super::{
    SAVE_AGAIN, damaged,
    wire::{Field, Fields},
};
use crate::{FileProblem, index, map};

/// Files beside a model, which hold bytes of its initializers.
pub(super) struct External {
    model: MappedFile,
    files: BTreeMap<String, MappedFile>,
}

/// Where the bytes of an initializer stand in another file.
#[derive(Clone, Debug, Default)]
pub(super) struct Place<'a> {
    location: &'a str,
    offset: usize,
    len: Option<usize>,
}

impl<'a> Place<'a> {
    /// Takes over one entry of `TensorProto.external_data`, a key and its value.
    pub(super) fn set(&mut self, file: &'a [u8], entry: Field) -> Result<(), String> {
        let at = entry.at;
        let (mut key, mut value) = ("", "");
        for field in Fields::new(file, entry.bytes()?) {
            let field = field?;
            match field.number {
                1 => key = field.text(file)?,
                2 => value = field.text(file)?,
                _ => {}
            }
        }
        let number = || value.parse().map_err(|_| format!("byte {at}: the {key} `{value}` is not a natural number"));
        match key {
            "location" => self.location = value,
            "offset" => self.offset = number()?,
            "length" => self.len = Some(number()?),
            // A checksum, and where a weight was before.
            _ => {}
        }
        Ok(())
    }
}

impl External {
    pub(super) fn of(model: &MappedFile) -> Self {
        External { model: model.clone(), files: BTreeMap::new() }
    }

    /// Length of the model and of all files that were used, in bytes.
    pub(super) fn file_len(&self) -> u64 {
        std::iter::once(&self.model).chain(self.files.values()).map(|file| file.bytes().len() as u64).sum()
    }

    /// The bytes at `place`; `len` of them where it does not say how many.
    pub(super) fn bytes(&mut self, place: &Place<'_>, len: usize) -> Result<Buffer, FileProblem> {
        let Place { location, offset, len: given } = *place;
        let len = given.unwrap_or(len);
        let file = self.open(location)?;
        let end = offset.checked_add(len);
        end.and_then(|end| Buffer::mapped(file, offset..end)).ok_or_else(|| {
            let has = file.bytes().len();
            let problem = format!("expected {len} bytes at byte {offset} of {location}, which has {has} bytes");
            FileProblem::new(problem, SAVE_AGAIN)
        })
    }

    fn open(&mut self, location: &str) -> Result<&MappedFile, FileProblem> {
        if location.is_empty() {
            return Err(damaged("it stands in another file that has no name".to_owned()));
        }
        match self.files.entry(location.to_owned()) {
            Entry::Occupied(file) => Ok(file.into_mut()),
            Entry::Vacant(entry) => {
                let path = index::beside(self.model.path(), location)?;
                let file = map(&path).map_err(|e| {
                    FileProblem::new(format!("its bytes stand in another file: {e}"), "put that file beside the model")
                })?;
                Ok(entry.insert(file))
            }
        }
    }
}
