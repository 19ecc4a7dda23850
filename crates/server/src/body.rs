//! Bodies: of requests, read within bounds of bytes, memory and time; of answers, sent without a copy.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::{
    HeaderMap,
    body::{Body, Frame, Incoming, SizeHint},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    error::{Kind, Refusal},
    upload::Upload,
};

/// Memory is set aside in pieces of this many bytes.
const PIECE: usize = 4096;

/// The memory that bodies of requests may take together.
#[derive(Clone)]
pub(crate) struct Budget {
    pieces: Arc<Semaphore>,
}

/// A part of the budget, given back when dropped.
pub(crate) struct Reserved(OwnedSemaphorePermit);

impl Budget {
    pub(crate) fn new(bytes: usize) -> Budget {
        Budget { pieces: Arc::new(Semaphore::new((bytes / PIECE).clamp(1, Semaphore::MAX_PERMITS))) }
    }

    /// Sets memory aside.
    ///
    /// # Errors
    /// When others have it.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<Reserved, Refusal> {
        let pieces = u32::try_from(bytes.div_ceil(PIECE)).ok();
        let permit = pieces.and_then(|pieces| self.pieces.clone().try_acquire_many_owned(pieces).ok());
        permit.map(Reserved).ok_or_else(|| {
            Refusal::new(Kind::Overloaded, "requests under way take all the memory that is set aside for them")
                .retry_after(Duration::from_secs(1))
        })
    }
}

/// The memory that a body needs until its request is answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// For each of its bytes.
    pub(crate) per_byte: usize,
    /// Besides.
    pub(crate) more: usize,
}

/// As [`read`], with memory set aside: before anything is read where the length is announced, otherwise for each part.
pub(crate) async fn read_within(
    body: Incoming,
    limit: usize,
    budget: &Budget,
    need: Need,
    patience: Duration,
) -> Result<(Bytes, Reserved), Refusal> {
    let announced = body.size_hint().exact().map(|len| usize::try_from(len).unwrap_or(usize::MAX));
    let at_first = announced.unwrap_or(0).min(limit).saturating_mul(need.per_byte).saturating_add(need.more);
    let mut reserved = budget.reserve(at_first)?;
    let bytes = read_parts(body, limit, patience, |part| {
        if announced.is_none() {
            reserved.0.merge(budget.reserve(part.saturating_mul(need.per_byte))?.0);
        }
        Ok(())
    });
    let bytes = bytes.await?;
    Ok((bytes, reserved))
}

/// Reads a body of at most `limit` bytes into memory.
pub(crate) async fn read(body: Incoming, limit: usize, patience: Duration) -> Result<Bytes, Refusal> {
    read_parts(body, limit, patience, |_| Ok(())).await
}

/// `take` is asked before a part of so many bytes is kept.
async fn read_parts(
    mut body: Incoming,
    limit: usize,
    patience: Duration,
    mut take: impl FnMut(usize) -> Result<(), Refusal>,
) -> Result<Bytes, Refusal> {
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large(limit));
    }
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(part) = next(&mut body, patience).await? {
        let so_far = first.as_ref().map_or(0, Bytes::len) + rest.len();
        if part.len() > limit - so_far {
            return Err(too_large(limit));
        }
        take(part.len())?;
        match &first {
            None => first = Some(part),
            Some(one) => {
                if rest.is_empty() {
                    // What is announced is trusted as far as it costs no more than a few pages.
                    let announced = body.size_hint().exact().map_or(0, |left| left as usize).min(1 << 20);
                    rest.reserve(one.len() + part.len() + announced);
                    rest.extend_from_slice(one);
                    first = Some(Bytes::new());
                }
                rest.extend_from_slice(&part);
            }
        }
    }
    Ok(if rest.is_empty() { first.unwrap_or_default() } else { rest.freeze() })
}

/// Writes a body to a file.
pub(crate) async fn read_to(mut body: Incoming, mut upload: Upload, patience: Duration) -> Result<Upload, Refusal> {
    while let Some(part) = next(&mut body, patience).await? {
        upload.write(part).await?;
    }
    upload.finish().await
}

/// The next part of a body, which may take as long as `patience`.
async fn next(body: &mut Incoming, patience: Duration) -> Result<Option<Bytes>, Refusal> {
    loop {
        let frame = tokio::time::timeout(patience, body.frame()).await;
        let slow =
            || Refusal::new(Kind::SlowBody, format!("no part of the body arrived for {} s", patience.as_secs_f64()));
        match frame.map_err(|_| slow())? {
            None => return Ok(None),
            Some(Err(error)) => return Err(Refusal::bad(format!("the body cannot be read: {error}"))),
            Some(Ok(frame)) => {
                // Trailers say nothing here.
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

fn too_large(limit: usize) -> Refusal {
    Refusal::new(Kind::TooLarge, format!("requests have at most {limit} bytes")).help("--max-body sets how many")
}

/// The body of an answer: pieces of memory, and trailers after them.
#[derive(Default)]
pub(crate) struct Pieces {
    pieces: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Pieces {
    pub(crate) fn new(pieces: impl IntoIterator<Item = Bytes>) -> Pieces {
        Pieces { pieces: pieces.into_iter().filter(|piece| !piece.is_empty()).collect(), trailers: None }
    }

    /// What comes after the pieces.
    pub(crate) fn with_trailers(self, trailers: HeaderMap) -> Pieces {
        Pieces { trailers: Some(trailers), ..self }
    }

    fn len(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }
}

impl<B: Into<Bytes>> From<B> for Pieces {
    fn from(bytes: B) -> Pieces {
        Pieces::new([bytes.into()])
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = match self.pieces.pop_front() {
            Some(piece) => Some(Frame::data(piece)),
            None => self.trailers.take().map(Frame::trailers),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len())
    }
}
