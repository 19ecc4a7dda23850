//! The cache in a bucket. Tests that need a service talk to the one at `REGRAFT_S3_TEST_ENDPOINT`, which
//! `scripts/s3-test.sh` starts; without it they are skipped.

use std::{
    io::{Read, Write},
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use regraft_engine::cache::{CacheError, CacheKey, EngineCache, Put};
use regraft_object_cache::ObjectCache;

fn key(byte: u8) -> CacheKey {
    format!("{byte:02x}").repeat(32).parse().expect("a key")
}

/// The cache at an address with everything that it needs to know, whatever the environment says.
fn cache_at(endpoint: &str, address: &str) -> ObjectCache {
    let options = [
        ("aws_endpoint_url", endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("aws_region", "us-east-1"),
        ("aws_access_key_id", "test"),
        ("aws_secret_access_key", "a secret"),
    ];
    ObjectCache::open_with(address, &options).expect("the address and options are right")
}

/// The address of the service, if there is one.
fn service() -> Option<String> {
    let endpoint = std::env::var("REGRAFT_S3_TEST_ENDPOINT").ok();
    if endpoint.is_none() {
        println!("skipped: REGRAFT_S3_TEST_ENDPOINT is not set; run scripts/s3-test.sh");
    }
    endpoint
}

/// A service that reads a request and answers `answer` to it, for as many connections as come.
fn service_that_says(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            // A request of these tests arrives in one piece; when the client has gone, that is its business.
            let _ = connection.read(&mut [0; 8192]);
            let _ = connection.write_all(answer.as_bytes());
        }
    });
    format!("http://{address}")
}

#[test]
fn entries_in_a_bucket() {
    let Some(endpoint) = service() else { return };
    for prefix in ["", "/", "/a/prefix", "/a%20b/ü"] {
        let cache = cache_at(&endpoint, &format!("s3://regraft-test{prefix}"));
        assert!(cache.get(&key(1)).unwrap().is_none());
        let large = vec![7; 20 << 20];
        for entry in [&b"one"[..], b"", &large, b"another"] {
            assert_eq!(cache.put(&key(1), entry).unwrap(), Put::Stored);
            let found = cache.get(&key(1)).unwrap().expect("it was stored");
            assert!(found.bytes() == entry, "{} bytes", found.len());
        }
        assert!(cache.get(&key(2)).unwrap().is_none());
        for _ in 0..2 {
            cache.remove(&key(1)).unwrap();
            assert!(cache.get(&key(1)).unwrap().is_none());
        }
    }
}

#[test]
fn caches_of_one_bucket_share_its_entries() {
    let Some(endpoint) = service() else { return };
    let [a, b] = [(); 2].map(|()| cache_at(&endpoint, "s3://regraft-test/shared"));
    // Bytes of no engine: what they mean is not the cache's business.
    a.put(&key(3), b"\0not an engine").unwrap();
    assert_eq!(b.get(&key(3)).unwrap().expect("it was stored").bytes(), b"\0not an engine");
    let elsewhere = cache_at(&endpoint, "s3://regraft-test/elsewhere");
    assert!(elsewhere.get(&key(3)).unwrap().is_none());
}

#[test]
fn many_threads_share_a_cache() {
    let Some(endpoint) = service() else { return };
    let cache = cache_at(&endpoint, "s3://regraft-test/threads");
    thread::scope(|scope| {
        for byte in 0..8 {
            let cache = &cache;
            scope.spawn(move || {
                let entry = vec![byte; 100_000];
                cache.put(&key(byte), &entry).unwrap();
                assert!(cache.get(&key(byte)).unwrap().expect("it was stored").bytes() == entry);
            });
        }
    });
}

#[test]
fn calls_from_inside_a_runtime_are_answered() {
    let Some(endpoint) = service() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let cache = cache_at(&endpoint, "s3://regraft-test/runtime");
        cache.put(&key(4), b"entry").unwrap();
        assert_eq!(cache.get(&key(4)).unwrap().expect("it was stored").bytes(), b"entry");
    });
}

#[test]
fn options_are_taken_from_the_environment() {
    if service().is_none() {
        return;
    }
    let cache = ObjectCache::open("s3://regraft-test/environment").unwrap();
    cache.put(&key(5), b"entry").unwrap();
    assert_eq!(cache.get(&key(5)).unwrap().expect("it was stored").bytes(), b"entry");
}

#[test]
fn a_bucket_that_is_not_there_is_an_error() {
    let Some(endpoint) = service() else { return };
    let cache = cache_at(&endpoint, "s3://regraft-no-bucket/prefix");
    let errors = [
        cache.get(&key(1)).unwrap_err(),
        cache.put(&key(1), b"entry").unwrap_err(),
        cache.remove(&key(1)).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.place(), format!("s3://regraft-no-bucket/prefix/01/{}.rgf", key(1)));
        assert!(error.to_string().contains("NoSuchBucket"), "{error}");
    }
}

/// Every call fails in time and says why.
fn fails_soon(cache: &ObjectCache, why: &str) {
    let calls: [fn(&ObjectCache) -> Result<(), CacheError>; 3] = [
        |cache| cache.get(&key(1)).map(|_| ()),
        |cache| cache.put(&key(1), b"entry").map(|_| ()),
        |cache| cache.remove(&key(1)),
    ];
    thread::scope(|scope| {
        for call in calls {
            scope.spawn(move || {
                let began = Instant::now();
                let error = call(cache).expect_err("nobody is there").to_string();
                assert!(began.elapsed() < Duration::from_secs(12), "{error} after {:?}", began.elapsed());
                assert!(error.contains(why), "{error}");
                assert!(!error.contains("a secret"), "{error}");
            });
        }
    });
}

#[test]
fn an_endpoint_that_refuses_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    fails_soon(&cache_at(&format!("http://{address}"), "s3://bucket/prefix"), "Connection refused");
}

#[test]
fn an_endpoint_that_says_nothing_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    fails_soon(&cache_at(&format!("http://{address}"), "s3://bucket/prefix"), "no answer within 10 seconds");
}

#[test]
fn an_endpoint_that_fails_is_an_error() {
    let answer = "HTTP/1.1 503 Slow Down\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy";
    fails_soon(&cache_at(&service_that_says(answer), "s3://bucket/prefix"), "503 Service Unavailable: busy");
}

#[test]
fn a_large_object_is_not_read() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\nETag: \"1\"\r\n\
        Last-Modified: Wed, 01 Jan 2025 00:00:00 GMT\r\n\r\nmuch";
    let cache = cache_at(&service_that_says(answer), "s3://bucket/prefix");
    let error = cache.get(&key(1)).unwrap_err().to_string();
    assert!(error.ends_with("expected an entry of at most 1073741824 bytes, found 1099511627776"), "{error}");
}

#[test]
fn an_object_that_breaks_off_is_an_error() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\
        Last-Modified: Wed, 01 Jan 2025 00:00:00 GMT\r\nConnection: close\r\n\r\npart";
    let cache = cache_at(&service_that_says(answer), "s3://bucket/prefix");
    cache.get(&key(1)).unwrap_err();
}

#[test]
fn unknown_options_are_refused() {
    let error = ObjectCache::open_with("s3://bucket", &[("aws_endpiont", "x")]).unwrap_err().to_string();
    assert!(error.contains("aws_endpiont"), "{error}");
}

#[test]
fn credentials_are_not_printed() {
    let cache = cache_at("http://127.0.0.1:1", "s3://bucket/prefix");
    assert_eq!(format!("{cache:?}"), "ObjectCache(s3://bucket/prefix)");
}
