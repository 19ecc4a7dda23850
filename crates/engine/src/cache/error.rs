use std::{error::Error, fmt};

use regraft_tensor::Explanation;

use crate::EngineError;

/// Why a cache could not be read or written: the place, and what happened there. Compiling goes on without the cache.
#[derive(Debug)]
pub struct CacheError {
    place: String,
    cause: Box<dyn Error + Send + Sync>,
}

impl CacheError {
    /// An error at `place`: a path, or the address of an object.
    pub fn new(place: impl fmt::Display, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        CacheError { place: place.to_string(), cause: cause.into() }
    }

    /// Where it happened.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// In parts.
    pub fn explained(&self) -> Explanation {
        let of_engine = self.cause.downcast_ref::<EngineError>().map(EngineError::explained);
        let cause = of_engine.unwrap_or_else(|| Explanation::new(self.cause.to_string()));
        cause.about(&self.place).about("engine cache")
    }
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.explained().fmt(f)
    }
}

impl Error for CacheError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.cause)
    }
}
