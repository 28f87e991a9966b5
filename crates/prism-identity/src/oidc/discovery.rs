//! Where an issuer publishes its keys, and the keys themselves (OpenID Connect Discovery 1.0).

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use prism_core::Result;
use reqwest::header::{ACCEPT, CACHE_CONTROL, HeaderMap};
use reqwest::{Client, StatusCode, Url, redirect};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;
use serde_json::Value;

use super::json;
use super::keys::{KeySet, MAX_JWKS_BYTES};
use super::settings::{IssuerSettings, fault, is_loopback};

/// How much of what an issuer says is shown in the log, in bytes.
const SHOWN_BYTES: usize = 256;

/// Asks one issuer for its keys.
pub struct Discovery {
    client: Client,
    issuer: String,
    url: Url,
}

/// What an issuer answered.
pub struct Fetched {
    /// Its keys.
    pub keys: KeySet,
    /// How long it says that they are good for.
    pub max_age: Option<Duration>,
}

impl Discovery {
    /// FAILED_PRECONDITION when the issuer is no URL, or its CA certificates cannot be used.
    pub fn new(settings: &IssuerSettings) -> Result<Self> {
        let failed = |why: String| fault(&settings.issuer, &why);
        let url = settings.discovery_url().ok_or_else(|| failed("must be a URL".to_owned()))?;
        let mut client = Client::builder()
            .tls_backend_preconfigured(tls(settings, &url).map_err(failed)?)
            // Where the keys come from is the operator's word, not that of whoever answers.
            .redirect(redirect::Policy::none())
            .referer(false)
            .pool_max_idle_per_host(0)
            .user_agent(concat!("prism/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&url) {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|error| failed(format!("no client for it: {}", causes(&error))))?;
        Ok(Self { client, issuer: settings.issuer.clone(), url })
    }

    /// Fetches the discovery document, then the keys; what went wrong is told for the log. Not bounded in time.
    pub async fn fetch(&self) -> Result<Fetched, String> {
        let (document, _) = self.get(&self.url).await?;
        let document = json::object(&document).ok_or("its discovery document is not an object with unique names")?;
        let text = |name: &str| document.get(name).and_then(Value::as_str);
        let named = text("issuer").ok_or("its discovery document names no issuer")?;
        if named != self.issuer {
            return Err(format!("its discovery document is that of {}", crate::quoted(named, SHOWN_BYTES)));
        }
        let uri = text("jwks_uri").ok_or("its discovery document has no jwks_uri")?;
        let url = self
            .keys_url(uri)
            .ok_or_else(|| format!("its jwks_uri {} must be https without user", crate::quoted(uri, SHOWN_BYTES)))?;
        let (keys, headers) = self.get(&url).await?;
        let keys = KeySet::parse(&keys).map_err(|error| format!("its keys: {}", error.message()))?;
        Ok(Fetched { keys, max_age: max_age(&headers) })
    }

    /// https; http for this machine only, and only if the issuer itself is there.
    fn keys_url(&self, uri: &str) -> Option<Url> {
        let url = Url::parse(uri).ok()?;
        let is_safe = match url.scheme() {
            "https" => true,
            "http" => self.url.scheme() == "http" && is_loopback(&url),
            _ => false,
        };
        (is_safe && url.username().is_empty() && url.password().is_none()).then_some(url)
    }

    async fn get(&self, url: &Url) -> Result<(Vec<u8>, HeaderMap), String> {
        let failed = |error: reqwest::Error| causes(&error);
        let request = self.client.get(url.clone()).header(ACCEPT, "application/json");
        let mut response = request.send().await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(format!("{url} answers {}", response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_JWKS_BYTES {
                return Err(format!("{url} answers with more than {MAX_JWKS_BYTES} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((body, std::mem::take(response.headers_mut())))
    }
}

/// TLS that trusts the CA certificates of the settings, else those of the operating system.
fn tls(settings: &IssuerSettings, url: &Url) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("no TLS: {error}"))?;
    let roots = match &settings.ca_pem {
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in crate::read_bundle(pem).map_err(|error| format!("ca: {}", error.message()))? {
                roots.add(certificate).map_err(|error| format!("ca: {error}"))?;
            }
            roots
        }
        // Nothing of it goes over TLS.
        None if url.scheme() == "http" => RootCertStore::empty(),
        None => {
            let system = builder.with_platform_verifier();
            let system =
                system.map_err(|error| format!("no CA certificates of the system, and no ca is set: {error}"))?;
            return Ok(system.with_no_client_auth());
        }
    };
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// `max-age` of the answer; zero when it must not be kept.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let directives = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut age = None;
    for directive in directives.flat_map(|value| value.split(',')) {
        let directive = directive.trim().to_ascii_lowercase();
        if matches!(directive.as_str(), "no-store" | "no-cache") {
            return Some(Duration::ZERO);
        }
        let seconds = directive.strip_prefix("max-age=").map(|seconds| seconds.trim_matches('"'));
        age = age.or(seconds.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs));
    }
    age
}

/// An error with what caused it: the outer one alone says only that something failed.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::settings::tests::settings;
    use super::*;

    #[test]
    fn keys_come_over_https_or_from_the_issuer_s_own_machine() {
        let remote = Discovery::new(&IssuerSettings { ca_pem: None, ..settings("http://127.0.0.1:9") }).unwrap();
        for good in ["https://id.example.org/keys?a=b", "http://127.0.0.1:9/keys", "http://localhost/keys"] {
            assert!(remote.keys_url(good).is_some(), "{good}");
        }
        for bad in
            ["", "/keys", "http://id.example.org/keys", "https://user@id.example.org/", "file:///keys", "data:,{}"]
        {
            assert!(remote.keys_url(bad).is_none(), "{bad}");
        }
        let over_tls = Discovery { url: Url::parse("https://id.example.org/").unwrap(), ..remote };
        assert!(over_tls.keys_url("https://id.example.org/keys").is_some());
        assert!(over_tls.keys_url("http://127.0.0.1:9/keys").is_none());
    }

    #[tokio::test]
    async fn what_went_wrong_is_told_with_its_cause() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let why = Discovery::new(&settings(&issuer)).unwrap().fetch().await.err().unwrap();
        assert!(why.contains(&issuer) && why.contains("refused"), "{why}");
    }

    #[test]
    fn cache_headers_are_read_with_their_oddities() {
        let age = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, value.parse().unwrap());
            max_age(&headers)
        };
        assert_eq!(age("public, max-age=300, must-revalidate"), Some(Duration::from_mins(5)));
        assert_eq!(age("MAX-AGE=\"5\""), Some(Duration::from_secs(5)));
        assert_eq!(age("max-age=300, no-store"), Some(Duration::ZERO));
        for none in ["public", "max-age=", "max-age=-1", "max-age=99999999999999999999", "s-maxage=5"] {
            assert_eq!(age(none), None, "{none}");
        }
    }
}
