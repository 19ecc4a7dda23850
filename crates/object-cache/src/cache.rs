use std::{error::Error, fmt, future::Future, sync::Arc, time::Duration};

use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use regraft_engine::cache::{CacheError, CacheKey, EngineCache, MAX_ENTRY, Put};
use regraft_tensor::{AlignedVec, Buffer};

use crate::{
    connect::{Place, connect, shown},
    error::RequestError,
    worker::Worker,
};

/// An engine cache in a bucket or a folder; see the [crate's documentation](crate).
///
/// Opened once, it may be used by many threads at a time.
///
/// ```
/// use regraft_object_cache::ObjectCache;
///
/// # fn f() -> Result<(), regraft_engine::cache::CacheError> {
/// let cache = ObjectCache::open("s3://bucket/engines")?;
/// # Ok(())
/// # }
/// ```
pub struct ObjectCache {
    place: Place,
    worker: Worker,
}

impl ObjectCache {
    /// The cache at an address, `s3://bucket/prefix` or `file:///folder`, with the options of the environment. No request
    /// is sent yet: a place that does not exist is an error of the first use.
    ///
    /// # Errors
    /// When the address is of no kind that this build knows, or options are missing or wrong.
    pub fn open(url: &str) -> Result<ObjectCache, CacheError> {
        ObjectCache::open_with(url, &[])
    }

    /// [`open`](Self::open) with options that go before those of the environment, by the same names in any case:
    /// `("aws_endpoint_url", "http://127.0.0.1:9000")`.
    ///
    /// # Errors
    /// As for `open`, and when an option is unknown.
    pub fn open_with(url: &str, options: &[(&str, &str)]) -> Result<ObjectCache, CacheError> {
        let wrong = |cause: Box<dyn Error + Send + Sync>| CacheError::new(shown(url), cause);
        let place = connect(url, options).map_err(wrong)?;
        let worker = Worker::start().map_err(|cause| wrong(cause.into()))?;
        Ok(ObjectCache { place, worker })
    }

    fn object(&self, key: &CacheKey) -> Path {
        let name = key.to_string();
        self.place.prefix.clone().join(&name[..2]).join(format!("{name}.rgf"))
    }

    /// Waits for a request about the object of `key`.
    fn request<T: Send + 'static, F>(
        &self,
        key: &CacheKey,
        request: impl FnOnce(Arc<dyn ObjectStore>, Path) -> F,
    ) -> Result<T, CacheError>
    where
        F: Future<Output = Result<T, RequestError>> + Send + 'static,
    {
        let object = self.object(key);
        let address = format!("{}/{object}", self.place.root);
        let answer = self.worker.wait_for(request(self.place.store.clone(), object));
        answer.unwrap_or(Err(RequestError::Panicked)).map_err(|cause| CacheError::new(address, cause))
    }
}

impl fmt::Debug for ObjectCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the store: it holds credentials.
        write!(f, "ObjectCache({}/{})", self.place.root, self.place.prefix)
    }
}

impl EngineCache for ObjectCache {
    fn get(&self, key: &CacheKey) -> Result<Option<Buffer>, CacheError> {
        self.request(key, |store, object| async move {
            let found = match within(0, store.get(&object)).await {
                Err(error) if error.is_missing_object() => return Ok(None),
                found => found?,
            };
            let size = found.meta.size;
            if size > MAX_ENTRY {
                return Err(RequestError::TooLarge(size));
            }
            let entry = within(size, found.bytes()).await?;
            Ok(Some(AlignedVec::copy_of(&entry).into()))
        })
    }

    fn put(&self, key: &CacheKey, entry: &[u8]) -> Result<Put, CacheError> {
        let size = entry.len() as u64;
        if size > MAX_ENTRY {
            return Ok(Put::TooLarge { limit: MAX_ENTRY });
        }
        let entry = entry.to_vec();
        self.request(key, move |store, object| async move {
            within(size, store.put(&object, entry.into())).await?;
            Ok(Put::Stored)
        })
    }

    fn remove(&self, key: &CacheKey) -> Result<(), CacheError> {
        self.request(key, |store, object| async move {
            match within(0, store.delete(&object)).await {
                Err(error) if !error.is_missing_object() => Err(error),
                _ => Ok(()),
            }
        })
    }
}

/// How long a request may take that moves this many bytes.
pub(crate) fn patience(bytes: u64) -> Duration {
    Duration::from_secs(10 + (bytes >> 20))
}

async fn within<T>(bytes: u64, request: impl Future<Output = object_store::Result<T>>) -> Result<T, RequestError> {
    let limit = patience(bytes);
    match tokio::time::timeout(limit, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(RequestError::Late(limit)),
    }
}
