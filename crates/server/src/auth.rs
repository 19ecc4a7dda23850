//! Who may do what: bearer tokens with separate rights, and what stands in for them on a loopback address.

use std::{fs, net::IpAddr, path::Path};

use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, HOST, ORIGIN},
};

use crate::{
    ServeError,
    error::{Kind, Refusal},
};

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    /// Run models and see what they take.
    Infer,
    /// See and change weights.
    Weights,
    /// Either of both: figures of the server.
    Any,
}

/// The tokens of a server, by right. They are kept as digests.
#[derive(Clone, Default)]
pub struct Tokens {
    infer: Vec<blake3::Hash>,
    weights: Vec<blake3::Hash>,
}

/// Shorter ones could be guessed.
const SHORTEST: usize = 16;

impl Tokens {
    /// Lets those who have one of the tokens in the file at `path`, one a line, run models.
    ///
    /// # Errors
    /// When the file cannot be read or holds no token, or one of less than 16 characters.
    pub fn infer_file(&mut self, path: &Path) -> Result<(), ServeError> {
        self.infer.extend(read(path)?);
        Ok(())
    }

    /// The same for changing weights.
    ///
    /// # Errors
    /// As [`Tokens::infer_file`].
    pub fn weights_file(&mut self, path: &Path) -> Result<(), ServeError> {
        self.weights.extend(read(path)?);
        Ok(())
    }

    /// Whether there are no tokens at all.
    pub fn is_empty(&self) -> bool {
        self.infer.is_empty() && self.weights.is_empty()
    }

    fn of(&self, right: Right) -> (&[blake3::Hash], &[blake3::Hash]) {
        match right {
            Right::Infer => (&self.infer, &[]),
            Right::Weights => (&self.weights, &[]),
            Right::Any => (&self.infer, &self.weights),
        }
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({} for inference, {} for weights)", self.infer.len(), self.weights.len())
    }
}

fn read(path: &Path) -> Result<Vec<blake3::Hash>, ServeError> {
    let failed = |why: String| ServeError::File { path: path.to_owned(), why };
    let text = fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    let tokens: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if tokens.is_empty() {
        return Err(failed("it holds no token; write one a line".into()));
    }
    let is_sound = |token: &&str| token.len() >= SHORTEST && token.bytes().all(|b| b.is_ascii_graphic());
    if let Some(at) = tokens.iter().position(|token| !is_sound(token)) {
        let why = format!("token {} is no {SHORTEST} visible ASCII characters long, or has others", at + 1);
        return Err(failed(why));
    }
    Ok(tokens.into_iter().map(|token| blake3::hash(token.as_bytes())).collect())
}

/// Who may use a server.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    tokens: Tokens,
    /// Whether only this machine reaches the server: a right without a token is granted to all then, and denied to all otherwise.
    loopback: bool,
}

impl Guard {
    pub(crate) fn new(tokens: Tokens, address: IpAddr) -> Guard {
        Guard { tokens, loopback: address.is_loopback() }
    }

    /// Checks that a request with these headers has `right`. HTTP/2 names the host as the `authority` of its target.
    pub(crate) fn check(&self, headers: &HeaderMap, authority: Option<&str>, right: Right) -> Result<(), Refusal> {
        let (tokens, others) = self.tokens.of(right);
        let is_open = tokens.is_empty() && (right != Right::Any || others.is_empty());
        match is_open {
            true if self.loopback => check_origin(headers, authority),
            true => Err(Refusal::new(Kind::Forbidden, "no token gives the right to do this here")
                .help("the server was started without a token for it, on an address that others reach")),
            false => {
                let given = bearer(headers).ok_or_else(|| {
                    Refusal::new(Kind::Unauthorized, "a token is needed").help("send `Authorization: Bearer TOKEN`")
                })?;
                // Digests are compared in constant time.
                let given = blake3::hash(given);
                match tokens.iter().chain(others).any(|token| *token == given) {
                    true => Ok(()),
                    false => Err(Refusal::new(Kind::Forbidden, "this token does not give the right to do this")),
                }
            }
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

/// Refuses what a page of another site makes a browser on this machine send: a request from a foreign origin, or under a
/// foreign name that leads here.
fn check_origin(headers: &HeaderMap, authority: Option<&str>) -> Result<(), Refusal> {
    let host = headers.get(HOST).map(|host| host.to_str().unwrap_or_default()).or(authority);
    if !host.is_none_or(is_local) {
        return Err(Refusal::new(Kind::Forbidden, "the request is for another host")
            .help("without tokens the server answers to localhost, 127.0.0.1 and [::1]"));
    }
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let of_origin = origin.split_once("://").map_or("", |(_, host)| host);
    match host == Some(of_origin) {
        true => Ok(()),
        false => Err(Refusal::new(Kind::Forbidden, "pages of other sites may not use the server without a token")),
    }
}

fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn tokens(infer: &[&str], weights: &[&str]) -> Tokens {
        let hashes = |all: &[&str]| all.iter().map(|token| blake3::hash(token.as_bytes())).collect();
        Tokens { infer: hashes(infer), weights: hashes(weights) }
    }

    #[test]
    fn rights_are_apart() {
        let guard = Guard::new(tokens(&["a-token-for-runs"], &["one-for-weights"]), Ipv4Addr::UNSPECIFIED.into());
        let runs = headers(&[("authorization", "Bearer a-token-for-runs")]);
        let weights = headers(&[("authorization", "bearer one-for-weights")]);
        assert!(guard.check(&runs, None, Right::Infer).is_ok() && guard.check(&weights, None, Right::Weights).is_ok());
        assert!(guard.check(&runs, None, Right::Any).is_ok() && guard.check(&weights, None, Right::Any).is_ok());
        assert_eq!(guard.check(&runs, None, Right::Weights).unwrap_err().kind, Kind::Forbidden);
        assert_eq!(guard.check(&weights, None, Right::Infer).unwrap_err().kind, Kind::Forbidden);
        for headers in [headers(&[]), headers(&[("authorization", "Basic a-token-for-runs")])] {
            assert_eq!(guard.check(&headers, None, Right::Infer).unwrap_err().kind, Kind::Unauthorized);
        }
    }

    #[test]
    fn a_right_without_a_token_is_nobodys_unless_on_loopback() {
        let some = tokens(&["a-token-for-runs"], &[]);
        let open = Guard::new(some.clone(), Ipv4Addr::UNSPECIFIED.into());
        assert_eq!(open.check(&headers(&[]), None, Right::Weights).unwrap_err().kind, Kind::Forbidden);
        let here = Guard::new(some, Ipv4Addr::LOCALHOST.into());
        assert!(here.check(&headers(&[]), None, Right::Weights).is_ok());
        assert!(here.check(&headers(&[]), None, Right::Infer).is_err());
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let guard = Guard::new(Tokens::default(), Ipv4Addr::LOCALHOST.into());
        assert!(guard.check(&headers(&[]), Some("evil.example"), Right::Infer).is_err());
        for (pairs, ok) in [
            (&[("host", "127.0.0.1:8000")][..], true),
            (&[("host", "[::1]:8000")], true),
            (&[("host", "localhost:8000"), ("origin", "http://localhost:8000")], true),
            (&[("host", "localhost:8000"), ("origin", "https://evil.example")], false),
            (&[("host", "localhost:8000"), ("origin", "null")], false),
            (&[("host", "evil.example:8000")], false),
            (&[("host", "127.0.0.1.evil.example")], false),
        ] {
            assert_eq!(guard.check(&headers(pairs), None, Right::Weights).is_ok(), ok, "{pairs:?}");
        }
    }

    #[test]
    fn token_files_hold_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        for (text, ok) in
            [("", false), ("short\n", false), ("0123456789abcdef\n\n", true), ("0123456789abcde é\n", false)]
        {
            fs::write(&path, text).unwrap();
            assert_eq!(Tokens::default().infer_file(&path).is_ok(), ok, "{text:?}");
        }
    }
}
