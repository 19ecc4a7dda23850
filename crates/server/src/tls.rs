//! Certificates and keys.

use std::{path::Path, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsAcceptor;

use crate::ServeError;

/// Takes connections with the certificate chain and the private key in these PEM files.
///
/// # Errors
/// When a file cannot be read, holds nothing of the kind, or the two do not belong together.
pub(crate) fn acceptor(chain: &Path, key: &Path) -> Result<TlsAcceptor, ServeError> {
    let failed = |path: &Path, why: String| ServeError::File { path: path.to_owned(), why };
    let certificates = CertificateDer::pem_file_iter(chain).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(|e| failed(chain, e.to_string()))?;
    if certificates.is_empty() {
        return Err(failed(chain, "it holds no certificate".into()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| failed(key, e.to_string()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, private));
    let mut config = config.map_err(|e| failed(chain, e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
