//! Streams of low priority with page-locked memory: what is uploaded ahead of runs, and what refits copy, goes through them.

use std::iter;

use rayon::prelude::*;
use regraft_weights::on_shared_threads;

use crate::{
    CudaError,
    driver::{Context, Event, Pinned, Priority, Span, Stream},
};

/// Bytes of one of the parts that are filled and sent alternately.
const SEGMENT: usize = 16 << 20;
/// Parts of the ring.
const SEGMENTS: usize = 4;
/// Bytes that one task copies.
const CHUNK: usize = 512 << 10;
/// Parts of staging memory begin at multiples of this.
pub(super) const ALIGN: usize = 256;
/// Page-locked memory of the caller is read by the device itself from this size on.
pub(super) const DIRECT_FROM: usize = 64 << 10;

/// Bytes of the host, and where they go in staging memory: a multiple of [`ALIGN`] bytes from its beginning, behind those of
/// the part before.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

pub(super) struct Lane {
    /// Copies, and work that is waited for at once.
    pub(super) stream: Stream,
    /// Kernels that make slots, beside the copies of the next batch.
    pub(super) kernels: Stream,
    /// The end of the copies that those kernels wait for.
    copied: Event,
    ring: Pinned,
    /// When the device has read, or written, each part of the ring.
    marks: Vec<Event>,
    next: usize,
}

impl Lane {
    pub(super) fn new(context: &Context) -> Result<Lane, CudaError> {
        let marks = iter::repeat_with(|| Event::new(context)).take(SEGMENTS).collect::<Result<_, _>>()?;
        let ring = Pinned::new(context, SEGMENT * SEGMENTS)?;
        let stream = || Stream::new(context, Priority::Low);
        Ok(Lane { stream: stream()?, kernels: stream()?, copied: Event::new(context)?, ring, marks, next: 0 })
    }

    /// Kernels from now on wait for what was uploaded until now.
    pub(super) fn hand_over(&self) -> Result<(), CudaError> {
        self.stream.record(&self.copied)?;
        self.kernels.wait(&self.copied)
    }

    /// Waits for everything.
    pub(super) fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().and(self.kernels.synchronize())
    }

    /// Copies the parts to staging memory. The device may still read large ones in page-locked memory when this returns: they are
    /// kept until what comes next in the stream is over.
    pub(super) fn upload(&mut self, parts: &[Part<'_>], to: Span) -> Result<(), CudaError> {
        let sent = self.send_off(parts, to);
        if sent.is_err() {
            let _ = self.stream.synchronize();
        }
        sent
    }

    fn send_off(&mut self, parts: &[Part<'_>], to: Span) -> Result<(), CudaError> {
        let context = self.stream.context();
        let mut through = Vec::new();
        for part in parts {
            match part.bytes.len() >= DIRECT_FROM && context.is_page_locked(part.bytes) {
                true => self.stream.upload_locked(part.bytes, to.part(part.at, part.bytes.len())?)?,
                false => through.push(part),
            }
        }
        self.upload_through_ring(&through, to)
    }

    fn upload_through_ring(&mut self, parts: &[&Part<'_>], to: Span) -> Result<(), CudaError> {
        let mut rest = parts.iter().flat_map(|part| pieces(part)).peekable();
        while let Some(first) = rest.peek().map(|piece| piece.at) {
            let mut segment: Vec<Part<'_>> = Vec::new();
            let fits = |piece: &Part<'_>| piece.at + piece.bytes.len() <= first + SEGMENT;
            // What another segment holds in between would be written over: a segment ends where its parts do not follow on.
            let mut end = first;
            while let Some(piece) = rest.next_if(|piece| fits(piece) && piece.at < end + ALIGN) {
                end = piece.at + piece.bytes.len();
                segment.push(piece);
            }
            self.send(&segment, first, to.part(first, end - first)?)?;
        }
        Ok(())
    }

    /// Fills the next part of the ring, on all threads, and sends it off.
    fn send(&mut self, pieces: &[Part<'_>], first: usize, to: Span) -> Result<(), CudaError> {
        let index = self.next % SEGMENTS;
        self.next += 1;
        self.marks[index].wait()?;
        let mut memory = &mut self.ring.bytes_mut()[index * SEGMENT..][..to.len()];
        let (mut copies, mut at) = (Vec::with_capacity(pieces.len()), first);
        for piece in pieces {
            let (_, after) = memory.split_at_mut(piece.at - at);
            let (here, after) = after.split_at_mut(piece.bytes.len());
            (memory, at) = (after, piece.at + piece.bytes.len());
            copies.push((here, piece.bytes));
        }
        copy(copies);
        self.stream.upload(&self.ring, index * SEGMENT, to)?;
        self.stream.record(&self.marks[index])
    }

    /// Copies bytes of the host to memory of the device, and waits.
    pub(super) fn send_all(&mut self, from: &[u8], to: Span) -> Result<(), CudaError> {
        to.expect(from.len())?;
        self.upload(&[Part { bytes: from, at: 0 }], to)?;
        self.stream.synchronize()
    }

    /// Copies memory of the device to the host, and waits.
    pub(super) fn download(&mut self, from: Span, to: &mut [u8]) -> Result<(), CudaError> {
        let mut on_the_way: Option<(usize, &mut [u8])> = None;
        for (i, part) in to.chunks_mut(SEGMENT).enumerate() {
            let index = self.next % SEGMENTS;
            self.next += 1;
            self.marks[index].wait()?;
            self.stream.download(from.part(i * SEGMENT, part.len())?, &self.ring, index * SEGMENT)?;
            self.stream.record(&self.marks[index])?;
            self.take(on_the_way.replace((index, part)))?;
        }
        self.take(on_the_way)
    }

    /// Copies what has arrived out of the ring.
    fn take(&self, arriving: Option<(usize, &mut [u8])>) -> Result<(), CudaError> {
        let Some((index, part)) = arriving else { return Ok(()) };
        self.marks[index].wait()?;
        let len = part.len();
        copy(vec![(part, &self.ring.bytes()[index * SEGMENT..][..len])]);
        Ok(())
    }
}

/// A part, in pieces that a segment holds.
fn pieces<'a>(part: &Part<'a>) -> impl Iterator<Item = Part<'a>> + use<'a> {
    let at = part.at;
    part.bytes.chunks(SEGMENT).enumerate().map(move |(i, bytes)| Part { bytes, at: at + i * SEGMENT })
}

/// Copies on the threads that refits share; a little is copied at once.
fn copy(copies: Vec<(&mut [u8], &[u8])>) {
    let bytes: usize = copies.iter().map(|(to, _)| to.len()).sum();
    if bytes <= CHUNK {
        return copies.into_iter().for_each(|(to, from)| to.copy_from_slice(from));
    }
    let tasks: Vec<(&mut [u8], &[u8])> =
        copies.into_iter().flat_map(|(to, from)| to.chunks_mut(CHUNK).zip(from.chunks(CHUNK))).collect();
    on_shared_threads(|| tasks.into_par_iter().for_each(|(to, from)| to.copy_from_slice(from)));
}
