//! Clients that are slow, send half, or send nonsense below the protocol: their connections end, and others are served.

use std::{
    thread,
    time::{Duration, Instant},
};

use regraft_server::{ModelOptions, ServerOptions};

use crate::support::{Client, Fixture, Running};

fn running(max_connections: usize) -> Running {
    let options = ServerOptions {
        address: ([127, 0, 0, 1], 0).into(),
        head_patience: Duration::from_millis(200),
        body_patience: Duration::from_millis(200),
        max_connections,
        ..ServerOptions::default()
    };
    Running::with(options, Fixture::new("linear").model(), ModelOptions::default())
}

/// Waits for the end of a connection; gives the status that was sent before, if any.
fn end_of(client: &mut Client) -> String {
    client.read_to_end();
    client.unread()
}

#[test]
fn heads_that_do_not_come_to_an_end_end_the_connection() {
    let running = running(64);
    // Nothing, a part, and a byte now and then.
    let mut silent = running.connect();
    let mut half = running.connect();
    half.send(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: loc");
    // As HTTP/2 would begin.
    let mut neither = running.connect();
    neither.send(b"PRI * HT");
    let mut slow = running.connect();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(600) {
        slow.send(b"x");
        thread::sleep(Duration::from_millis(30));
    }
    for client in [&mut silent, &mut half, &mut neither, &mut slow] {
        assert!(!end_of(client).contains(" 200 "));
    }
    // One that is kept open and asks no more.
    let mut idle = running.connect();
    assert_eq!(idle.call("GET", "/v2/health/live", &[], b"").status, 200);
    end_of(&mut idle);
    assert_eq!(running.get("/v2/health/ready").status, 200);
}

#[test]
fn bodies_that_come_to_a_stop_are_refused() {
    let running = running(64);
    for path in ["/v2/models/m/infer", "/v2/models/m/weights/stage", "/v2/models/m/weights/publish"] {
        for length in ["content-length: 1000", "transfer-encoding: chunked"] {
            let mut client = running.connect();
            client.send(format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n{length}\r\n\r\n").as_bytes());
            client.send(if length.starts_with('c') { b"{" } else { b"1\r\n{\r\n" });
            assert!(client.receive().error(408).contains("arrived for 0.2 s"), "{path}");
        }
    }
    // The turn to stage is free again.
    running.call("POST", "/v2/models/m/weights/stage", &[], b"x").error(422);
}

#[test]
fn slow_clients_hold_their_places_for_a_while_only() {
    let running = running(4);
    let mut slow: Vec<Client> = (0..8).map(|_| running.connect()).collect();
    slow.iter_mut().step_by(2).for_each(|client| client.send(b"GET / HT"));
    // It waits until one of them is let go.
    assert_eq!(running.get("/v2/health/ready").status, 200);
}

#[test]
fn heads_are_bounded_and_sound() {
    let running = running(64);
    let long = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(300 << 10));
    let many = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "x: y\r\n".repeat(5000));
    let target = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "y".repeat(200 << 10));
    let post = "POST /v2/models/m/infer HTTP/1.1\r\nhost: localhost\r\n";
    for head in [
        long,
        many,
        target,
        format!("{post}content-length: -1\r\n\r\n"),
        format!("{post}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}"),
        format!("{post}transfer-encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n"),
        format!("{post}transfer-encoding: chunked\r\n\r\nffffffffffffffff0\r\n{{}}\r\n0\r\n\r\n"),
        "GET / HTTP/9.9\r\n\r\n".to_owned(),
        "GET\0/ HTTP/1.1\r\n\r\n".to_owned(),
    ] {
        let mut client = running.connect();
        client.send(head.as_bytes());
        let told = end_of(&mut client);
        assert!(told.is_empty() || told.starts_with("HTTP/1.1 4"), "{:.60}: {told}", head.escape_debug());
    }
    // A path that is not UTF-8, as it is and in escapes.
    let mut client = running.connect();
    client.send(b"GET /v2/models/\xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(!end_of(&mut client).contains(" 200 "));
    running.get("/v2/models/%ff%fe").error(404);
    assert_eq!(running.get("/v2/health/ready").status, 200);
}

#[test]
fn prefaces_of_http_2_with_nothing_or_nonsense_after_them_end() {
    let running = running(64);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for more in [
        &b""[..],
        // A frame of 16 MB that does not come, one of a type that nobody knows, settings of a wrong length.
        b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
        b"\x00\x00\x04\xfe\x00\x00\x00\x00\x00abcd",
        b"\x00\x00\x05\x04\x00\x00\x00\x00\x00abcde",
        &[0xff; 200],
    ] {
        let mut client = running.connect();
        client.send(&[preface, more].concat());
        end_of(&mut client);
    }
    assert_eq!(running.get("/v2/health/ready").status, 200);
}
