//! Which request is for what.

use hyper::Method;

use crate::error::{Kind, Refusal};

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    Live,
    Ready,
    Server,
    Index,
    Model(&'a str),
    ModelReady(&'a str),
    Infer(&'a str),
    Status(&'a str),
    Stage(&'a str),
    Discard(&'a str),
    Publish(&'a str),
    RollBack(&'a str),
    Metrics,
    OpenApi,
    Inspector,
    Overview,
}

impl<'a> Route<'a> {
    /// What a method and a path mean.
    ///
    /// # Errors
    /// When there is no such path, or it does not take the method.
    pub(crate) fn of(method: &Method, path: &'a str) -> Result<Route<'a>, Refusal> {
        let parts: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').take(8).collect();
        let (get, post) = (method == Method::GET || method == Method::HEAD, method == Method::POST);
        // A model's one version may be named.
        let parts = match &parts[..] {
            ["v2", "models", name, "versions", crate::served::VERSION, rest @ ..] => {
                [&["v2", "models", name], rest].concat()
            }
            ["v2", "models", _, "versions", version, ..] => {
                return Err(Refusal::new(Kind::NotFound, format!("there is no version `{version}`"))
                    .help("each model has the version 1; its weights have generations"));
            }
            _ => parts,
        };
        let (allowed, route) = match parts[..] {
            ["v2", "health", "live"] => (get, Route::Live),
            ["v2", "health", "ready"] => (get, Route::Ready),
            ["v2"] => (get, Route::Server),
            ["v2", "repository", "index"] => (post || get, Route::Index),
            ["v2", "models", name] => (get, Route::Model(name)),
            ["v2", "models", name, "ready"] => (get, Route::ModelReady(name)),
            ["v2", "models", name, "infer"] => (post, Route::Infer(name)),
            ["v2", "models", name, "weights"] | ["v2", "models", name, "weights", "status"] => {
                (get, Route::Status(name))
            }
            ["v2", "models", name, "weights", "stage"] if method == Method::DELETE => (true, Route::Discard(name)),
            ["v2", "models", name, "weights", "stage"] => (post, Route::Stage(name)),
            ["v2", "models", name, "weights", "publish"] => (post, Route::Publish(name)),
            ["v2", "models", name, "weights", "rollback"] => (post, Route::RollBack(name)),
            ["metrics"] => (get, Route::Metrics),
            ["openapi.json"] => (get, Route::OpenApi),
            [""] | ["inspector"] => (get, Route::Inspector),
            ["inspector", "state"] => (get, Route::Overview),
            _ => {
                return Err(Refusal::new(Kind::NotFound, "there is nothing at this path")
                    .help("/openapi.json describes what there is"));
            }
        };
        match allowed {
            true => Ok(route),
            false => Err(Refusal::new(Kind::Method, format!("this path does not take {method}"))),
        }
    }
}

/// The pairs of a query, as they stand: no value that is taken here needs an escape.
pub(crate) fn query(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "true")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_protocol() {
        let of = |method: Method, path: &'static str| Route::of(&method, path).map_err(|refusal| refusal.kind);
        assert_eq!(of(Method::GET, "/v2/health/live"), Ok(Route::Live));
        assert_eq!(of(Method::GET, "/v2"), Ok(Route::Server));
        assert_eq!(of(Method::POST, "/v2/models/bert/infer"), Ok(Route::Infer("bert")));
        assert_eq!(of(Method::POST, "/v2/models/bert/versions/1/infer"), Ok(Route::Infer("bert")));
        assert_eq!(of(Method::GET, "/v2/models/bert/versions/1"), Ok(Route::Model("bert")));
        assert_eq!(of(Method::GET, "/v2/models/bert/versions/2"), Err(Kind::NotFound));
        assert_eq!(of(Method::DELETE, "/v2/models/bert/weights/stage"), Ok(Route::Discard("bert")));
        assert_eq!(of(Method::GET, "/v2/models/bert/infer"), Err(Kind::Method));
        assert_eq!(of(Method::GET, "/v2/models/../infer/x/y/z/a/b"), Err(Kind::NotFound));
        assert_eq!(of(Method::GET, ""), Ok(Route::Inspector));
    }
}
