//! The first bytes of a connection. They have a time, as all that comes later has: hyper waits for them without end, to see which
//! version of HTTP they begin, and a client that sends none would keep its place forever.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// What HTTP/2 begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream that fails when it cannot be told in time which version of HTTP is spoken there.
pub(crate) struct Opening<S> {
    stream: S,
    /// Bytes of the preface that came.
    seen: usize,
    /// Until when the version must be known; nothing once it is.
    until: Option<Pin<Box<Sleep>>>,
}

impl<S> Opening<S> {
    pub(crate) fn new(stream: S, patience: Duration) -> Opening<S> {
        Opening { stream, seen: 0, until: Some(Box::pin(sleep(patience))) }
    }

    /// Whether it began as HTTP/2 does.
    pub(crate) fn is_http2(&self) -> bool {
        self.seen == PREFACE.len()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opening<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let outcome = Pin::new(&mut this.stream).poll_read(cx, buf);
        let Some(until) = &mut this.until else { return outcome };
        match outcome {
            Poll::Ready(Ok(())) => {
                let (new, rest) = (&buf.filled()[before..], &PREFACE[this.seen..]);
                let is_preface = rest.starts_with(new);
                this.seen = if is_preface { this.seen + new.len() } else { 0 };
                if !is_preface || new.is_empty() || new.len() == rest.len() {
                    this.until = None;
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => until.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opening<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn the_first_bytes_tell_the_version() {
        let cases: [(&[u8], bool); 4] = [
            (PREFACE, true),
            (b"POST /v2/models/m/infer HTTP/1.1\r\n", false),
            (b"PRI * HTTP/1.1\r\nhost: local", false),
            (&PREFACE[..23], false),
        ];
        for (bytes, is_http2) in cases {
            for most in [1, 7, PREFACE.len()] {
                let (near, mut far) = tokio::io::duplex(64);
                let mut opening = Opening::new(near, Duration::from_secs(60));
                far.write_all(bytes).await.unwrap();
                let mut read = Vec::new();
                while read.len() < bytes.len() {
                    let mut memory = [0; PREFACE.len()];
                    let count = opening.read(&mut memory[..most]).await.unwrap();
                    read.extend_from_slice(&memory[..count]);
                }
                assert_eq!((opening.is_http2(), &read[..]), (is_http2, bytes));
            }
        }
    }
}
