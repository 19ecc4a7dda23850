//! Weights that arrive in the body of a request: written to a file on the way, so that they take no memory of the process.

use std::{io, path::Path};

use bytes::Bytes;
use regraft::StateDict;
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;

use crate::error::{Kind, Refusal};

/// A body, in a file that is gone when this is dropped. What was mapped from it stays.
pub(crate) struct Upload {
    file: NamedTempFile,
    writer: tokio::fs::File,
    written: u64,
    limit: u64,
}

impl Upload {
    /// A file in `folder` for at most `limit` bytes.
    pub(crate) fn create(folder: &Path, limit: u64) -> Result<Upload, Refusal> {
        let file = tempfile::Builder::new().prefix("regraft-").suffix(".safetensors").tempfile_in(folder);
        let opened = file.and_then(|file| Ok((tokio::fs::File::from_std(file.reopen()?), file)));
        let (writer, file) = opened.map_err(no_room)?;
        Ok(Upload { file, writer, written: 0, limit })
    }

    pub(crate) async fn write(&mut self, part: Bytes) -> Result<(), Refusal> {
        self.written += part.len() as u64;
        if self.written > self.limit {
            return Err(too_large(self.limit));
        }
        self.writer.write_all(&part).await.map_err(no_room)
    }

    /// What was written, to be read by [`Upload::open`].
    pub(crate) async fn finish(mut self) -> Result<Upload, Refusal> {
        self.writer.flush().await.map_err(no_room)?;
        Ok(self)
    }

    /// The file, as long as this is not dropped.
    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// The tensors, mapped from the file. Only safetensors are taken from a body.
    pub(crate) fn open(self) -> Result<StateDict, Refusal> {
        let mut start = [0; 9];
        let read = io::Read::read_exact(&mut self.file.as_file(), &mut start);
        if read.is_err() || start[8] != b'{' {
            return Err(Refusal::new(Kind::Misfit, "the body is not in the format of safetensors")
                .help("send what safetensors.torch.save(state_dict) gives"));
        }
        Ok(regraft::open_weights(self.file.path())?)
    }
}

pub(crate) fn too_large(limit: u64) -> Refusal {
    Refusal::new(Kind::TooLarge, format!("weights of this model have at most {limit} bytes"))
        .help("--max-upload sets how many")
}

fn no_room(error: io::Error) -> Refusal {
    Refusal::new(Kind::Memory, format!("the weights cannot be kept: {error}"))
}
