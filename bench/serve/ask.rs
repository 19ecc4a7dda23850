//! Sends one request to a server again and again, and says how long each took beside the run that the server measured. It does as
//! little as a client can, so that what is measured is the server: requests are written whole, answers are read to their end.
//!
//! ```sh
//! rustc -O --edition 2024 bench/serve/ask.rs
//! ./ask 127.0.0.1:8000 http REQUEST COUNT    # a file with a whole request of HTTP/1.1
//! ./ask 127.0.0.1:8000 grpc MESSAGE COUNT    # a file with a message ModelInferRequest
//! ./ask 127.0.0.1:8000 clients REQUEST SECONDS CLIENTS
//! ```
//!
//! A line for each request has both times in seconds. The third sends requests over so many connections, each as soon as the one
//! before is answered, and says how many were answered in how many seconds. `overhead.py` calls it.

use std::{
    env,
    error::Error,
    fs,
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [place, "clients", file, seconds, clients] => {
            many(place, &fs::read(file)?, Duration::from_secs_f64(seconds.parse()?), clients.parse()?)
        }
        [place, protocol, file, count] => one_by_one(place, protocol, &fs::read(file)?, count.parse()?),
        _ => Err("PLACE http|grpc FILE COUNT, or PLACE clients FILE SECONDS CLIENTS".into()),
    }
}

/// Each client's requests for so long; what was sent by then is waited for, and counts.
fn many(place: &str, content: &[u8], length: Duration, clients: usize) -> Outcome<()> {
    let connections = (0..clients).map(|_| Connection::open(place)).collect::<Outcome<Vec<_>>>()?;
    let (answered, begin) = (AtomicUsize::new(0), Instant::now());
    let client = |mut connection: Connection| {
        while begin.elapsed() < length {
            connection.ask(content).map_err(|error| error.to_string())?;
            answered.fetch_add(1, Ordering::Relaxed);
        }
        Ok::<_, String>(())
    };
    thread::scope(|scope| {
        let client = &client;
        let threads: Vec<_> = connections.into_iter().map(|one| scope.spawn(move || client(one))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a client panicked")?)
    })?;
    println!("{} {}", answered.into_inner(), begin.elapsed().as_secs_f64());
    Ok(())
}

/// One request at a time, with its run.
fn one_by_one(place: &str, protocol: &str, content: &[u8], count: usize) -> Outcome<()> {
    let mut connection = Connection::open(place)?;
    let mut figures = Connection::open(place)?;
    let mut calls = if protocol == "grpc" { Some(Calls::open(&mut connection)?) } else { None };
    let mut ask = || match &mut calls {
        Some(calls) => calls.ask(&mut connection, content),
        None => connection.ask(content).map(drop),
    };
    for _ in 0..(count / 10).max(3) {
        ask()?;
    }
    let mut before = runs(&mut figures)?;
    for _ in 0..count {
        let begin = Instant::now();
        ask()?;
        let took = begin.elapsed();
        let after = runs(&mut figures)?;
        if after.0 != before.0 + 1.0 {
            return Err("another client uses the server".into());
        }
        println!("{} {}", took.as_secs_f64(), after.1 - before.1);
        before = after;
    }
    Ok(())
}

/// How many runs there were, and the seconds of all.
fn runs(connection: &mut Connection) -> Outcome<(f64, f64)> {
    let body = connection.ask(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    let text = std::str::from_utf8(body)?;
    let value = |name: &str| -> Outcome<f64> {
        let line = text.lines().find(|line| line.starts_with(name)).ok_or("no figures of runs")?;
        Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
    };
    Ok((value("regraft_run_seconds_count")?, value("regraft_run_seconds_sum")?))
}

/// A connection that is read into memory which is used again.
struct Connection {
    stream: TcpStream,
    memory: Vec<u8>,
    filled: usize,
    taken: usize,
}

impl Connection {
    fn open(place: &str) -> Outcome<Connection> {
        let stream = TcpStream::connect(place)?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, memory: vec![0; 64 << 20], filled: 0, taken: 0 })
    }

    /// Sends a request. Nothing is needed any more of what came before.
    fn send(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.memory.copy_within(self.taken..self.filled, 0);
        (self.filled, self.taken) = (self.filled - self.taken, 0);
        Ok(self.stream.write_all(bytes)?)
    }

    /// The next bytes.
    fn take(&mut self, count: usize) -> Outcome<&[u8]> {
        while self.filled - self.taken < count {
            self.more()?;
        }
        self.taken += count;
        Ok(&self.memory[self.taken - count..self.taken])
    }

    fn more(&mut self) -> Outcome<()> {
        let count = self.stream.read(&mut self.memory[self.filled..])?;
        self.filled += count;
        if count == 0 { Err("the server ended the connection".into()) } else { Ok(()) }
    }

    /// The body that answers a request of HTTP/1.1.
    fn ask(&mut self, request: &[u8]) -> Outcome<&[u8]> {
        self.send(request)?;
        let end = loop {
            let so_far = &self.memory[..self.filled.min(8192)];
            match so_far.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None => self.more()?,
            }
        };
        let head = String::from_utf8_lossy(self.take(end)?).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).ok_or("no length")?;
        let length = length.parse()?;
        let is_ok = head.starts_with("http/1.1 200 ");
        let body = self.take(length)?;
        if is_ok { Ok(body) } else { Err(format!("{head}{}", String::from_utf8_lossy(body)).into()) }
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
/// The most that a window may be: it needs no updates for long.
const WIDE: u32 = (1 << 31) - 1;
/// No frame is longer than this.
const LONGEST: usize = 16384;

/// Unary calls of gRPC: as much of HTTP/2 as one at a time takes.
struct Calls {
    stream: u32,
    received: u32,
}

impl Calls {
    fn open(connection: &mut Connection) -> Outcome<Calls> {
        let mut settings = Vec::new();
        for (what, value) in [(2u16, 0u32), (4, WIDE)] {
            settings.extend_from_slice(&what.to_be_bytes());
            settings.extend_from_slice(&value.to_be_bytes());
        }
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let wide = frame(WINDOW_UPDATE, 0, 0, &(WIDE - 65535).to_be_bytes());
        connection.send(&[preface, frame(SETTINGS, 0, 0, &settings), wide].concat())?;
        Ok(Calls { stream: 1, received: 0 })
    }

    fn ask(&mut self, connection: &mut Connection, message: &[u8]) -> Outcome<()> {
        let framed = [&[0][..], &u32::try_from(message.len())?.to_be_bytes(), message].concat();
        let mut request = frame(HEADERS, END_HEADERS, self.stream, &headers());
        let mut parts = framed.chunks(LONGEST).peekable();
        while let Some(part) = parts.next() {
            let last = if parts.peek().is_none() { END_STREAM } else { 0 };
            request.extend(frame(DATA, last, self.stream, part));
        }
        connection.send(&request)?;
        let (mut length, mut announced) = (0, 0);
        loop {
            let head = connection.take(9)?;
            let size = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let content = connection.take(size as usize)?;
            match kind {
                DATA => {
                    if length == 0 && size >= 5 {
                        announced = 5 + u32::from_be_bytes([content[1], content[2], content[3], content[4]]);
                    }
                    length += size;
                    self.received += size;
                }
                RESET | GO_AWAY => return Err(format!("the server ended the call: {content:?}").into()),
                SETTINGS if flags & ACK == 0 => connection.stream.write_all(&frame(SETTINGS, ACK, 0, b""))?,
                PING if flags & ACK == 0 => {
                    let pong = frame(PING, ACK, 0, content);
                    connection.stream.write_all(&pong)?;
                }
                _ => {}
            }
            if stream == self.stream && flags & END_STREAM != 0 && [DATA, HEADERS].contains(&kind) {
                break;
            }
        }
        if length < 5 || length != announced {
            return Err("the call was refused".into());
        }
        self.stream += 2;
        if self.received > 1 << 29 {
            connection.stream.write_all(&frame(WINDOW_UPDATE, 0, 0, &self.received.to_be_bytes()))?;
            self.received = 0;
        }
        Ok(())
    }
}

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = content.len() as u32;
    [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), content].concat()
}

/// Those of a call, each as it is: nothing is indexed, and nothing packed.
fn headers() -> Vec<u8> {
    let pairs = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/inference.GRPCInferenceService/ModelInfer"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let text = |text: &str| [&[text.len() as u8][..], text.as_bytes()].concat();
    pairs.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}
