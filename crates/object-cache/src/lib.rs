//! The engine cache in object storage: what one machine compiled, others find.
//!
//! [`ObjectCache`] is an [`EngineCache`](regraft_engine::cache::EngineCache) over a bucket or a folder:
//!
//! | address | place | feature | options of the environment |
//! |---|---|---|---|
//! | `s3://bucket/prefix` | Amazon S3 and what speaks its protocol | `aws` | `AWS_…` |
//! | `gs://bucket/prefix` | Google Cloud Storage | `gcp` | `GOOGLE_…` |
//! | `az://container/prefix` | Azure Blob Storage | `azure` | `AZURE_…` |
//! | `file:///folder` | a folder, which is made when something is stored | | |
//! | `memory:///` | this process, for tests | | |
//!
//! The options are those of the `object_store` crate: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`,
//! `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`, ... Profiles in files are not read.
//!
//! ```
//! use regraft_engine::cache::{EngineCache, KeyHasher};
//! use regraft_object_cache::ObjectCache;
//!
//! let cache = ObjectCache::open("memory:///engines")?;
//! let key = KeyHasher::new().part("program", "a program").finish();
//! cache.put(&key, b"its engine")?;
//! assert_eq!(cache.get(&key)?.expect("it was stored").bytes(), b"its engine");
//! # Ok::<_, regraft_engine::cache::CacheError>(())
//! ```
//!
//! # What is stored
//!
//! One object for each entry, `<prefix>/<first two digits of the key>/<key>.rgf`. It is written by one request, so readers
//! see the whole of it or nothing. Nothing is ever listed, and builders are not coordinated: two machines that compile the
//! same program at once both do, and one's entry stays.
//!
//! Entries have no limit but [`MAX_ENTRY`], and none is evicted: let a lifecycle rule of the bucket remove what is old. Such
//! rules go by the age of an object; a use does not make it younger.
//!
//! # Rights
//!
//! The credentials need to read, write and delete objects under the prefix. On S3 they need `s3:ListBucket` as well: without
//! it the service says that an object is forbidden when it is missing, which is an error here.
//!
//! # Waiting
//!
//! An endpoint that cannot be reached is an error within about ten seconds, after a few tries; one that answers has a second
//! more for each MiB. All calls may be made from inside an async runtime, and block it as any blocking call does.
#![forbid(unsafe_code)]

mod cache;
mod connect;
mod error;
mod worker;

pub use cache::ObjectCache;
pub use regraft_engine::cache::MAX_ENTRY;
