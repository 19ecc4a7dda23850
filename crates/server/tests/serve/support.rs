//! A server in this process, and a client that speaks to it over a socket, byte by byte.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use regraft::{Compiler, Model, StateDict, Tensor, Threads};
use regraft_server::{ModelOptions, ServeError, Server, ServerOptions};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use tokio::sync::oneshot;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/fixtures")
}

/// A program of the conformance suite with its tensors.
pub(crate) struct Fixture {
    name: &'static str,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Fixture {
    pub(crate) fn new(name: &'static str) -> Fixture {
        let bytes = fs::read(fixtures().join(format!("{name}.safetensors"))).unwrap();
        let parsed = SafeTensors::deserialize(&bytes).unwrap();
        let one = |(name, view): (&str, TensorView<'_>)| {
            (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        };
        Fixture { name, tensors: parsed.iter().map(one).collect() }
    }

    pub(crate) fn model(&self) -> Model {
        let program = fixtures().join(format!("{}.pt2", self.name));
        Compiler::new().threads(Threads::Count(2)).compile(&program).unwrap().into_model().unwrap()
    }

    /// The weights B, as a file of safetensors, changed by `edit`.
    pub(crate) fn weights(&self, edit: impl Fn(&str, &mut Vec<u8>)) -> Vec<u8> {
        let tensors = self.tensors.iter().filter_map(|(name, (dtype, shape, data))| {
            let name = name.strip_prefix("b/")?;
            let mut data = data.clone();
            edit(name, &mut data);
            Some((name.to_owned(), (*dtype, shape.clone(), data)))
        });
        let tensors: BTreeMap<_, _> = tensors.collect();
        let views = tensors.iter().map(|(n, (d, s, data))| (n, TensorView::new(*d, s.clone(), data).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    /// The first input: its shape and bytes.
    pub(crate) fn input(&self) -> (Vec<usize>, Vec<u8>) {
        let (_, shape, data) = &self.tensors["input.0"];
        (shape.clone(), data.clone())
    }
}

/// What a model gives for f32 inputs, with these weights if any.
pub(crate) fn outputs_of(fixture: &Fixture, weights: Option<&[u8]>, input: &Tensor) -> Vec<u8> {
    let model = fixture.model();
    if let Some(bytes) = weights {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        fs::write(&path, bytes).unwrap();
        let weights: StateDict = regraft::open_weights(&path).unwrap();
        model.refit(&weights, &regraft::RefitOptions::default()).unwrap();
    }
    model.run(std::slice::from_ref(input)).unwrap()[0].bytes().to_vec()
}

/// A server that stops when this is dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Running {
    pub(crate) fn new(model: Model, options: ModelOptions) -> Running {
        Running::with(ServerOptions { address: ([127, 0, 0, 1], 0).into(), ..ServerOptions::default() }, model, options)
    }

    pub(crate) fn with(server: ServerOptions, model: Model, options: ModelOptions) -> Running {
        let mut server = Server::new(server).unwrap();
        server.add("m", model, options).unwrap();
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let stop_when = async move { _ = stopped.await };
        let thread = thread::spawn(move || server.run(|address, _| tell.send(address).unwrap(), stop_when));
        let address = told.recv_timeout(Duration::from_secs(60)).unwrap();
        Running { address, stop: Some(stop), thread: Some(thread) }
    }

    /// Asks it to stop, and waits for it.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    pub(crate) fn ask_to_stop(&mut self) {
        _ = self.stop.take().map(|stop| stop.send(()));
    }

    fn end(&mut self) {
        self.ask_to_stop();
        if let Some(thread) = self.thread.take() {
            let outcome = thread.join();
            if !thread::panicking() {
                outcome.unwrap().unwrap();
            }
        }
    }

    pub(crate) fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, rest: Vec::new() }
    }

    /// One request on a connection of its own.
    pub(crate) fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.connect().call(method, path, headers, body)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.call("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// A connection.
pub(crate) struct Client {
    stream: TcpStream,
    rest: Vec<u8>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The error that it must be.
    pub(crate) fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self.json()["error"].as_str().unwrap().to_owned()
    }

    /// The object that it must be.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }
}

impl Client {
    pub(crate) fn call(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n", body.len());
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        // In one piece: a server that refuses the head closes the connection, and what comes later may cost the answer.
        self.send(&[head.as_bytes(), b"\r\n", body].concat());
        self.receive()
    }

    /// A server that refuses early may not read the rest.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        _ = self.stream.write_all(bytes);
    }

    pub(crate) fn receive(&mut self) -> Answer {
        let end = loop {
            if let Some(at) = self.rest.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.more(), "the connection ended before an answer: {:?}", String::from_utf8_lossy(&self.rest));
        };
        let head = String::from_utf8(self.rest.drain(..end).collect()).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let pair = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_lowercase(), value.trim().to_owned()))
        };
        let headers: BTreeMap<String, String> = lines.filter_map(pair).collect();
        let len: usize = headers.get("content-length").map_or(0, |len| len.parse().unwrap());
        while self.rest.len() < len {
            assert!(self.more(), "the body ended early");
        }
        Answer { status, headers, body: self.rest.drain(..len).collect() }
    }

    /// Whether more came.
    pub(crate) fn more(&mut self) -> bool {
        let mut part = [0; 65536];
        let len = self.stream.read(&mut part).unwrap_or(0);
        self.rest.extend_from_slice(&part[..len]);
        len > 0
    }
}
