//! The issuer over HTTP: discovery (OpenID Connect Discovery 1.0), token requests (RFC 6749), revocation (RFC 7009).

use std::{error::Error as _, fmt, path::Path, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::StatusCode;
use reqwest::{Client, RequestBuilder, Url, redirect};
use rustls::{ClientConfig, crypto::aws_lc_rs};
use rustls_platform_verifier::BuilderVerifierExt as _;
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    connect,
    context::Oidc,
    error::{Failure, Result},
    exit::Exit,
    secret::Secret,
};

/// Longest wait for an answer of the issuer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Largest answer of an issuer that is read.
const LARGEST_ANSWER: usize = 1024 * 1024;
/// A form's fields.
type Form<'a> = Vec<(&'static str, &'a str)>;

/// An issuer that was found, and this client at it.
pub struct Issuer {
    http: Client,
    document: Document,
    settings: Oidc,
    secret: Option<Secret>,
}

/// What the issuer says of itself.
#[derive(Debug, Deserialize)]
struct Document {
    issuer: String,
    token_endpoint: String,
    device_authorization_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
}

/// Tokens as granted.
#[derive(Debug, Clone)]
pub struct Granted {
    /// What is shown to Prism.
    pub access: Secret,
    /// What is shown to the issuer for new ones.
    pub refresh: Option<Secret>,
    /// Life of the access token in seconds, if the issuer says.
    pub expires_in: Option<u64>,
}

/// The issuer's answer to a token request.
#[derive(Debug)]
pub enum Answer {
    /// Tokens.
    Granted(Granted),
    /// An error by its name in RFC 6749 or RFC 8628.
    Refused(Refused),
}

/// An error of the issuer's.
#[derive(Debug, Deserialize)]
pub struct Refused {
    /// Its name, such as `invalid_grant`.
    pub error: String,
    #[serde(default)]
    error_description: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error_description.as_str() {
            "" => write!(f, "the issuer says {}", self.error),
            description => write!(f, "the issuer says {}: {description}", self.error),
        }
    }
}

impl Refused {
    /// The failure, with what to do about the errors that are a matter of settings.
    pub fn failure(&self, what: &str) -> Failure {
        let failure = Failure::new(Exit::Refused, what).detail(self.to_string());
        match self.error.as_str() {
            "invalid_client" => failure.hint("check --client-id and the client's secret"),
            "invalid_scope" => failure.hint(
                "allow the scopes for this client at the issuer, or name others with --scope; without offline_access \
                 there is no refresh token, and the login ends with its first token",
            ),
            "unauthorized_client" | "unsupported_grant_type" => {
                failure.hint("allow this grant for the client at the issuer: device code, or client credentials")
            }
            "invalid_target" => failure.hint("the issuer does not know the audience; check --audience"),
            _ => failure,
        }
    }
}

impl Issuer {
    /// Reads the issuer's configuration.
    pub async fn discover(settings: Oidc, secret: Option<Secret>) -> Result<Self> {
        let url = check_url(&settings.issuer, "the issuer", true)?;
        let http = client(&url, settings.issuer_ca.as_deref())?;
        let well_known = format!("{}/.well-known/openid-configuration", settings.issuer.trim_end_matches('/'));
        let (status, body) = send(http.get(&well_known), &settings.issuer).await?;
        if status != StatusCode::OK {
            return Err(Failure::new(Exit::Unreachable, format!("{well_known} answers {status}"))
                .hint("is that the issuer, exactly as it calls itself?"));
        }
        let document: Document = parse(&body, &well_known)?;
        if document.issuer != settings.issuer {
            return Err(Failure::usage(format!(
                "the issuer calls itself {:?}, not {:?}",
                document.issuer, settings.issuer
            ))
            .hint("give --issuer exactly as the issuer writes it"));
        }
        Ok(Self { http, document, settings, secret })
    }

    /// Tokens for a refresh token.
    pub async fn refresh(&self, token: &Secret) -> Result<Answer> {
        self.token(vec![("grant_type", "refresh_token"), ("refresh_token", token.reveal())]).await
    }

    /// Tokens for the client itself.
    pub async fn client_credentials(&self) -> Result<Answer> {
        let scope = self.scope();
        self.token(vec![("grant_type", "client_credentials"), ("scope", &scope)]).await
    }

    /// Tokens for a device code.
    pub async fn device_code(&self, code: &Secret) -> Result<Answer> {
        let grant = "urn:ietf:params:oauth:grant-type:device_code";
        self.token(vec![("grant_type", grant), ("device_code", code.reveal())]).await
    }

    /// Begins a login by device code. The answer is the issuer's, or its error.
    pub async fn begin_device<T: DeserializeOwned>(&self) -> Result<std::result::Result<T, Refused>> {
        let endpoint = self.document.device_authorization_endpoint.as_deref().ok_or_else(|| {
            Failure::usage(format!("{} knows no login by device code", self.settings.issuer))
                .hint("switch it on at the issuer; machines log in with --client-credentials")
        })?;
        let scope = self.scope();
        let (status, body) = self.post(endpoint, vec![("scope", &scope)]).await?;
        self.read(status, &body)
    }

    /// Makes a refresh token worthless; false if the issuer offers no such thing.
    pub async fn revoke(&self, token: &Secret) -> Result<bool> {
        let Some(endpoint) = &self.document.revocation_endpoint else { return Ok(false) };
        let form = vec![("token", token.reveal()), ("token_type_hint", "refresh_token")];
        let (status, body) = self.post_plain(endpoint, form).await?;
        if status == StatusCode::OK {
            return Ok(true);
        }
        let refused: Refused = parse(&body, &self.settings.issuer)?;
        Err(refused.failure("the issuer did not revoke the refresh token"))
    }

    async fn token(&self, form: Form<'_>) -> Result<Answer> {
        #[derive(Deserialize)]
        struct Response {
            access_token: String,
            token_type: String,
            expires_in: Option<u64>,
            refresh_token: Option<String>,
        }
        let (status, body) = self.post(&self.document.token_endpoint, form).await?;
        let response: Response = match self.read(status, &body)? {
            Ok(response) => response,
            Err(refused) => return Ok(Answer::Refused(refused)),
        };
        if !response.token_type.eq_ignore_ascii_case("bearer") {
            return Err(self.malformed("its token is no bearer token"));
        }
        let secret = |text: &str| Secret::parse(text, "the issuer's answer");
        Ok(Answer::Granted(Granted {
            access: secret(&response.access_token)?,
            refresh: response.refresh_token.as_deref().map(secret).transpose()?,
            expires_in: response.expires_in,
        }))
    }

    /// Posts a form with the audience that is wanted.
    async fn post(&self, endpoint: &str, mut form: Form<'_>) -> Result<(StatusCode, Vec<u8>)> {
        if let Some(audience) = &self.settings.audience {
            form.push(("audience", audience));
            // RFC 8707: a resource is an absolute URI without a fragment.
            if Url::parse(audience).is_ok_and(|url| url.fragment().is_none()) {
                form.push(("resource", audience));
            }
        }
        self.post_plain(endpoint, form).await
    }

    /// Posts a form. The client proves itself by its secret, or only names itself if it has none.
    async fn post_plain(&self, endpoint: &str, mut form: Form<'_>) -> Result<(StatusCode, Vec<u8>)> {
        let plain = self.settings.issuer.starts_with("http://");
        let url = check_url(endpoint, "an endpoint of the issuer", plain)?;
        let id = self.settings.client_id.as_str();
        let mut request = self.http.post(url).header("accept", "application/json");
        match &self.secret {
            Some(secret) => {
                // RFC 6749, 2.3.1: both are form-encoded first.
                let pair = format!("{}:{}", form_encoded(id), form_encoded(secret.reveal()));
                let mut value = http::HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(pair)))
                    .map_err(|_| Failure::usage("the client's secret cannot be sent"))?;
                value.set_sensitive(true);
                request = request.header("authorization", value);
            }
            None => form.push(("client_id", id)),
        }
        send(request.form(&form), &self.settings.issuer).await
    }

    fn read<T: DeserializeOwned>(&self, status: StatusCode, body: &[u8]) -> Result<std::result::Result<T, Refused>> {
        match status {
            StatusCode::OK => parse(body, &self.settings.issuer).map(Ok),
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Err(Failure::new(Exit::Unreachable, format!("{} answers {status}", self.settings.issuer)))
            }
            _ => parse(body, &self.settings.issuer).map(Err),
        }
    }

    fn malformed(&self, why: &str) -> Failure {
        Failure::new(Exit::Failed, format!("the answer of {} cannot be used: {why}", self.settings.issuer))
    }

    fn scope(&self) -> String {
        self.settings.scopes.join(" ")
    }
}

/// An address is https; plain http is for issuers on this machine, where `loopback_allowed`.
fn check_url(text: &str, what: &str, loopback_allowed: bool) -> Result<Url> {
    let wrong = |why: &str| Failure::usage(format!("{what} {text:?} cannot be used: {why}"));
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(wrong("it holds a user or a fragment"));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if loopback_allowed && is_loopback(&url) => Ok(url),
        _ => Err(wrong("it must be https (http only for an issuer on this machine)")),
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn client(issuer: &Url, ca: Option<&Path>) -> Result<Client> {
    let unusable = |error: &dyn fmt::Display| Failure::new(Exit::Failed, format!("no TLS could be set up: {error}"));
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?;
    let tls = match ca {
        Some(ca) => builder.with_root_certificates(connect::roots(ca, "--issuer-ca")?).with_no_client_auth(),
        None if issuer.scheme() == "http" => {
            // Nothing is encrypted, and nobody's certificate is asked for.
            builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
        }
        None => builder
            .with_platform_verifier()
            .map_err(|error| unusable(&error).hint("name the issuer's CA certificates with --issuer-ca"))?
            .with_no_client_auth(),
    };
    let mut client = Client::builder()
        .tls_backend_preconfigured(tls)
        // What is sent is meant for the issuer and for nobody it points to.
        .redirect(redirect::Policy::none())
        .timeout(TIMEOUT)
        .user_agent(concat!("prism-admin/", env!("CARGO_PKG_VERSION")));
    if is_loopback(issuer) {
        client = client.no_proxy();
    }
    client.build().map_err(|error| unusable(&error))
}

async fn send(request: RequestBuilder, issuer: &str) -> Result<(StatusCode, Vec<u8>)> {
    let unreachable = |error: reqwest::Error| {
        let cause = error.source().and_then(crate::error::deepest).unwrap_or_else(|| error.to_string());
        Failure::new(Exit::Unreachable, format!("{issuer} cannot be reached: {cause}"))
            .hint("is that the issuer? Where its certificate is of a private CA, name that with --issuer-ca")
    };
    let mut response = request.send().await.map_err(unreachable)?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        body.extend_from_slice(&chunk);
        if body.len() > LARGEST_ANSWER {
            return Err(Failure::new(Exit::Failed, format!("the answer of {issuer} is too large")));
        }
    }
    Ok((response.status(), body))
}

/// Reads an answer. What is wrong with it is told without its text, which may hold tokens.
fn parse<T: DeserializeOwned>(body: &[u8], from: &str) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        let kind = match error.classify() {
            serde_json::error::Category::Data => "it is JSON of another form",
            _ => "it is not JSON",
        };
        Failure::new(Exit::Failed, format!("the answer of {from} cannot be used: {kind}"))
    })
}

/// `application/x-www-form-urlencoded` of one value.
fn form_encoded(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            // Writing to a string cannot fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_https_or_of_this_machine() {
        for good in [
            "https://id.example",
            "https://id.example/realms/a",
            "http://127.0.0.1:8080/a",
            "http://[::1]:1",
            "http://localhost:4",
        ] {
            assert!(check_url(good, "the issuer", true).is_ok(), "{good}");
        }
        for bad in [
            "",
            "id.example",
            "http://id.example",
            "http://127.0.0.1.example",
            "ftp://localhost",
            "https://u:p@id.example",
            "https://id.example#a",
        ] {
            assert_eq!(check_url(bad, "the issuer", true).unwrap_err().exit(), Exit::Usage, "{bad}");
        }
        // An issuer elsewhere cannot send its clients to this machine in clear text.
        assert!(check_url("http://127.0.0.1:8080/token", "an endpoint", false).is_err());
    }

    #[test]
    fn credentials_are_form_encoded() {
        assert_eq!(form_encoded("a-b_c.d*1"), "a-b_c.d*1");
        assert_eq!(form_encoded("a b:c+é"), "a+b%3Ac%2B%C3%A9");
    }

    #[test]
    fn answers_are_not_repeated_in_failures() {
        for body in ["{\"access_token\": 5, \"x\": \"secret\"}", "secret", "{\"error\": \"secret\""] {
            let text = parse::<Document>(body.as_bytes(), "https://id.example").unwrap_err().to_string();
            assert!(!text.contains("secret"), "{text}");
        }
    }
}
