//! What a connection over HTTP/2 writes while it is polled goes out in one piece. An answer of gRPC is written in two, of which the
//! second is some bytes that say that all went well; each costs the system as much as the whole, and wakes the client.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are gathered at most. What is longer is sent from where it is.
const MOST: usize = 16 << 10;
/// Memory for so many is kept.
const FEW: usize = 4 << 10;

/// A stream that keeps what is written there until [`Gathering::poll_send`], which is called on a clone; over HTTP/1, where answers are
/// written whole, it keeps nothing.
pub(crate) struct Gathering<S>(Arc<Mutex<Inner<S>>>);

struct Inner<S> {
    stream: S,
    is_http2: fn(&S) -> bool,
    kept: Vec<u8>,
    /// How many of `kept` are sent.
    sent: usize,
}

impl<S> Clone for Gathering<S> {
    fn clone(&self) -> Self {
        Gathering(self.0.clone())
    }
}

impl<S> Gathering<S> {
    /// `is_http2` says which version the stream has turned out to be of.
    pub(crate) fn new(stream: S, is_http2: fn(&S) -> bool) -> Gathering<S> {
        Gathering(Arc::new(Mutex::new(Inner { stream, is_http2, kept: Vec::new(), sent: 0 })))
    }

    /// One task has all clones.
    fn lock(&self) -> MutexGuard<'_, Inner<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    /// Sends what was written.
    pub(crate) fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().poll_send(cx)
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.kept.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.sent < self.kept.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.kept[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        self.sent = 0;
        self.kept.clear();
        self.kept.shrink_to(FEW);
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Makes room for `count` bytes; whether they are to be kept.
    fn poll_room(&mut self, cx: &mut Context<'_>, count: usize) -> Poll<io::Result<bool>> {
        if self.kept.len() + count > MOST {
            ready!(self.poll_send(cx))?;
        }
        Poll::Ready(Ok(count <= MOST && (self.is_http2)(&self.stream)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        let count = bufs.iter().map(|buf| buf.len()).sum();
        if !ready!(inner.poll_room(cx, count))? {
            return Pin::new(&mut inner.stream).poll_write_vectored(cx, bufs);
        }
        bufs.iter().for_each(|buf| inner.kept.extend_from_slice(buf));
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().stream.is_write_vectored()
    }

    /// What is kept is sent once the connection was polled.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        if inner.kept.is_empty() { Pin::new(&mut inner.stream).poll_flush(cx) } else { Poll::Ready(Ok(())) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        ready!(inner.poll_send(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Takes so many bytes a time, and after each time none until it is asked again.
    struct Slow {
        most: usize,
        is_full: bool,
        taken: Vec<Vec<u8>>,
    }

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.is_full = !self.is_full;
            if !self.is_full {
                return Poll::Pending;
            }
            let count = buf.len().min(self.most);
            self.taken.push(buf[..count].to_vec());
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn until_ready<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>) -> T {
        loop {
            if let Poll::Ready(outcome) = poll(&mut Context::from_waker(Waker::noop())) {
                return outcome.unwrap();
            }
        }
    }

    /// What goes out when these are written.
    fn sent(pieces: &[Vec<u8>], most: usize, is_http2: fn(&Slow) -> bool) -> Vec<Vec<u8>> {
        let mut stream = Gathering::new(Slow { most, is_full: false, taken: Vec::new() }, is_http2);
        for piece in pieces {
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let count = until_ready(|cx| Pin::new(&mut stream).poll_write(cx, rest));
                rest = &rest[count..];
            }
            until_ready(|cx| Pin::new(&mut stream).poll_flush(cx));
        }
        until_ready(|cx| stream.poll_send(cx));
        std::mem::take(&mut stream.lock().stream.taken)
    }

    #[test]
    fn what_is_short_goes_out_together_and_all_in_its_order() {
        let cases: [(&[usize], &[usize]); 4] = [
            (&[3, 400, 10], &[413]),
            (&[100, MOST, 5], &[100, MOST, 5]),
            (&[MOST - 1, 2], &[MOST - 1, 2]),
            (&[2 * MOST, 1, 2], &[2 * MOST, 3]),
        ];
        for (lens, expected) in cases {
            let piece = |(seed, &len): (usize, &usize)| (0..len).map(|i| ((i + seed) % 251) as u8).collect();
            let pieces: Vec<Vec<u8>> = lens.iter().enumerate().map(piece).collect();
            let whole = sent(&pieces, usize::MAX, |_| true);
            assert_eq!(whole.iter().map(Vec::len).collect::<Vec<_>>(), expected);
            assert_eq!(whole.concat(), pieces.concat());
            assert_eq!(sent(&pieces, 7, |_| true).concat(), pieces.concat());
            assert_eq!(sent(&pieces, usize::MAX, |_| false), pieces);
        }
    }
}
