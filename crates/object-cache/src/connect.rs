use std::{borrow::Cow, error::Error, sync::Arc};

#[cfg(feature = "aws")]
use object_store::aws;
#[cfg(feature = "azure")]
use object_store::azure;
#[cfg(feature = "gcp")]
use object_store::gcp;
use object_store::{ObjectStore, ObjectStoreScheme, local::LocalFileSystem, memory::InMemory, path::Path};
use url::{Position, Url};

/// Where entries are kept.
pub(crate) struct Place {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) prefix: Path,
    /// The part of an address before the path: `s3://bucket`.
    pub(crate) root: String,
}

/// The store behind an address of its own service. The services' builders have the same methods, but no trait for them.
#[cfg(any(feature = "aws", feature = "azure", feature = "gcp"))]
macro_rules! service {
    ($builder:expr, $key:path, $url:expr, $options:expr) => {{
        use $key as Key;
        let mut builder = $builder.with_url($url.as_str());
        for (name, value) in $options {
            builder = builder.with_config(name.to_ascii_lowercase().parse::<Key>()?, *value);
        }
        for (key, value) in limits::client() {
            builder = builder.with_config(Key::Client(key), value);
        }
        Arc::new(builder.with_retry(limits::retries()).build()?)
    }};
}

/// Finds the place that `address` names, without asking it anything. Options go before those of the environment.
pub(crate) fn connect(address: &str, options: &[(&str, &str)]) -> Result<Place, Box<dyn Error + Send + Sync>> {
    let wrong = |found: String| format!("expected an address like {}; {found}", examples().join(" or "));
    let url = Url::parse(address).map_err(|cause| wrong(format!("found no address: {cause}")))?;
    // Parts that mean nothing here.
    if shown(address) != address {
        return Err(wrong("found a password, `?` or `#`: options are taken from the environment".into()).into());
    }
    let found = || wrong(format!("found {}", url.scheme()));
    let (scheme, prefix) = ObjectStoreScheme::parse(&url).map_err(|cause| wrong(cause.to_string()))?;
    let store: Arc<dyn ObjectStore> = match scheme {
        // They do not say whose protocol it is; that a service has an endpoint of its own is an option.
        _ if matches!(url.scheme(), "http" | "https") => return Err(found().into()),
        ObjectStoreScheme::Local | ObjectStoreScheme::Memory if !options.is_empty() => {
            return Err(format!("expected no options for {}, found {}", url.scheme(), options[0].0).into());
        }
        ObjectStoreScheme::Local => Arc::new(LocalFileSystem::new()),
        ObjectStoreScheme::Memory => Arc::new(InMemory::new()),
        #[cfg(feature = "aws")]
        ObjectStoreScheme::AmazonS3 => {
            // Not everything that speaks S3 removes in bulk, and here it is one object at a time.
            let builder = aws::AmazonS3Builder::from_env().with_disable_bulk_delete(true);
            service!(builder, aws::AmazonS3ConfigKey, url, options)
        }
        #[cfg(feature = "gcp")]
        ObjectStoreScheme::GoogleCloudStorage => {
            service!(gcp::GoogleCloudStorageBuilder::from_env(), gcp::GoogleConfigKey, url, options)
        }
        #[cfg(feature = "azure")]
        ObjectStoreScheme::MicrosoftAzure => {
            service!(azure::MicrosoftAzureBuilder::from_env(), azure::AzureConfigKey, url, options)
        }
        _ => return Err(format!("{}, which this build leaves out", found()).into()),
    };
    Ok(Place { store, prefix, root: url[..Position::BeforePath].to_owned() })
}

/// One address of each kind that this build knows.
fn examples() -> Vec<&'static str> {
    let all = [
        ("file:///folder", true),
        ("memory:///", true),
        ("s3://bucket/prefix", cfg!(feature = "aws")),
        ("gs://bucket/prefix", cfg!(feature = "gcp")),
        ("az://container/prefix", cfg!(feature = "azure")),
    ];
    all.into_iter().filter_map(|(example, known)| known.then_some(example)).collect()
}

/// `address` without a password or anything after its path, which may be secrets.
pub(crate) fn shown(address: &str) -> Cow<'_, str> {
    match Url::parse(address) {
        Ok(mut url) if url.query().is_some() || url.fragment().is_some() || url.password().is_some() => {
            url.set_query(None);
            url.set_fragment(None);
            // Only an address without a host refuses, which has no password.
            let _ = url.set_password(None);
            Cow::Owned(url.into())
        }
        _ => Cow::Borrowed(address),
    }
}

/// How long a service is waited for: a dead one must not hold up a compilation, as all works without the cache.
#[cfg(any(feature = "aws", feature = "azure", feature = "gcp"))]
mod limits {
    use std::time::Duration;

    use object_store::{BackoffConfig, ClientConfigKey, RetryConfig};

    use crate::{MAX_ENTRY, cache::patience};

    /// The last try begins within five seconds and connects within three more, before [`patience`] ends.
    pub(super) fn retries() -> RetryConfig {
        RetryConfig {
            max_retries: 3,
            retry_timeout: Duration::from_secs(5),
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(1),
                base: 2.0,
            },
        }
    }

    pub(super) fn client() -> [(ClientConfigKey, String); 2] {
        [
            (ClientConfigKey::ConnectTimeout, "3s".into()),
            // Of a request with its transfer. The limit that counts depends on the size, and is set where that is known.
            (ClientConfigKey::Timeout, format!("{}s", patience(MAX_ENTRY).as_secs())),
        ]
    }
}
