//! IssueCertificate, ListCertificates, RevokeCertificate.

use std::time::Duration;

use async_trait::async_trait;
use prism_core::limits::{MAX_CERTIFICATE_TTL, MIN_CERTIFICATE_TTL};
use prism_core::page::Page;
use prism_core::subject::Subject;
use prism_core::{Error, Kind, NamespaceName, Result};
use prism_identity::{CertificateKind, own_identity};
use prism_proto::admin::v1 as wire;
use prism_rpc::CertificateAuthority;
use prism_rpc::convert::from_duration;
use prism_rpc::tls::ClientCertificate;
use prism_store::{CertificateRow, Tx};
use serde_json::{Value, json};

use super::held::require_held;
use super::node::cut_revoked;
use crate::convert;
use crate::identity::is_reserved;
use crate::op::{Caller, Done, Op, Place, Scope, Services};

/// Life of a user's certificate when the request does not say.
const USER_TTL: Duration = Duration::from_hours(90 * 24);
/// Life of an application's certificate when the request does not say.
const CLIENT_TTL: Duration = Duration::from_hours(30 * 24);
/// Longest name, in bytes: what the common name of a certificate has room for.
const MAX_NAME_BYTES: usize = 64;
/// Digits of a fingerprint.
const FINGERPRINT_DIGITS: usize = 64;
/// Most digits of a serial number: those of 20 bytes, the most that X.509 allows.
const MAX_SERIAL_DIGITS: usize = 40;

pub(super) fn resource_of(id: &str) -> String {
    format!("certificate:{id}")
}

/// What the audit log shows of a certificate.
fn state(row: &CertificateRow) -> Value {
    let of_own_ca = |text: &str| row.serial.is_some().then(|| text.to_owned());
    json!({
        "fingerprint": row.fingerprint,
        "serial_number": row.serial,
        "kind": of_own_ca(&row.kind),
        "name": of_own_ca(&row.name),
        "uri": of_own_ca(&row.uri),
        "expires_at_epoch_ms": row.expires_at,
        "revoked_at_epoch_ms": row.revoked_at,
    })
}

/// What a certificate may be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    User,
    Client,
}

impl Purpose {
    fn parse(number: i32) -> Result<Self> {
        match wire::CertificateKind::try_from(number) {
            Ok(wire::CertificateKind::User) => Ok(Self::User),
            Ok(wire::CertificateKind::Client) => Ok(Self::Client),
            _ => Err(Error::invalid("kind", "must be USER or CLIENT")),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::User => convert::USER_CERTIFICATE,
            Self::Client => convert::CLIENT_CERTIFICATE,
        }
    }

    fn default_ttl(self) -> Duration {
        match self {
            Self::User => USER_TTL,
            Self::Client => CLIENT_TTL,
        }
    }

    /// The URI under which such a certificate names someone.
    fn identity(self, cluster: &str, name: &str) -> Option<String> {
        let kind = match self {
            Self::User => CertificateKind::User,
            Self::Client => CertificateKind::Client,
        };
        own_identity(cluster, kind, name)
    }
}

fn name(name: &str) -> Result<()> {
    let fits = (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._@+-".contains(&byte))
        && name.bytes().any(|byte| byte != b'.');
    if !fits {
        let rule = format!(
            "must be 1 to {MAX_NAME_BYTES} of A-Z, a-z, 0-9, '.', '_', '@', '+' and '-', and not of dots alone"
        );
        return Err(Error::invalid("name", rule));
    }
    if is_reserved(name) {
        return Err(Error::invalid("name", "is a name that Prism gives itself in the audit log"));
    }
    Ok(())
}

fn ttl(given: Option<&prost_types::Duration>) -> Result<Option<Duration>> {
    let Some(given) = given else { return Ok(None) };
    let ttl = from_duration("ttl", given)?;
    if (MIN_CERTIFICATE_TTL..=MAX_CERTIFICATE_TTL).contains(&ttl) {
        return Ok(Some(ttl));
    }
    let (min, max) = (MIN_CERTIFICATE_TTL.as_secs(), MAX_CERTIFICATE_TTL.as_secs());
    Err(Error::invalid("ttl", format!("must be {min} to {max} s")))
}

/// `IssueCertificate`. The key stays with whoever made the signing request; the answer holds no secret.
#[derive(Clone)]
pub struct IssueCertificate {
    purpose: Purpose,
    name: String,
    uri: String,
    csr_pem: Vec<u8>,
    ttl: Duration,
    authority: CertificateAuthority,
}

impl Op for IssueCertificate {
    type Request = wire::IssueCertificateRequest;
    type Response = wire::IssueCertificateResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/IssueCertificate";
    const SCOPE: Scope = Scope::Installation;

    fn resource(_: &Self::Request) -> String {
        "certificates".to_owned()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let purpose = Purpose::parse(request.kind);
        let ttl = ttl(request.ttl.as_ref());
        let csr = if request.csr_pem.is_empty() { Err(Error::invalid("csr_pem", "must be set")) } else { Ok(()) };
        convert::all_of([convert::outcome(&purpose), name(&request.name), csr, convert::outcome(&ttl)])?;
        let purpose = purpose?;
        let uri = purpose
            .identity(services.store.cluster(), &request.name)
            .ok_or_else(|| Error::invalid("name", "cannot stand in a certificate"))?;
        Ok(Self {
            purpose,
            name: request.name,
            uri,
            csr_pem: request.csr_pem.into(),
            ttl: ttl?.unwrap_or(purpose.default_ttl()),
            authority: services.authority.clone(),
        })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        self.require_held(tx, caller)?;
        // One signature, and only for a call that is allowed.
        let wanted = ClientCertificate { uri: self.uri, common_name: self.name.clone(), life: self.ttl };
        let issued = self.authority.issue_client(&wanted, &self.csr_pem)?;
        let row = CertificateRow {
            fingerprint: issued.fingerprint,
            serial: Some(issued.serial.clone()),
            kind: self.purpose.name().to_owned(),
            name: self.name,
            uri: issued.uri,
            created_at: tx.now,
            created_by: caller.identity.actor.clone(),
            expires_at: Some(issued.expires_at),
            revoked_at: None,
            authority: Some(issued.authority),
            origin: None,
        };
        tx.insert_certificate(&row)?;
        let mut done = Done::new(wire::IssueCertificateResponse {
            certificate: Some(convert::certificate(&row)),
            certificate_pem: issued.pem.into_bytes().into(),
            ca_certificate_pem: self.authority.certificate_pem().into_bytes().into(),
        })
        .detail("serial_number", &issued.serial)
        .detail("kind", &row.kind)
        .detail("uri", &row.uri)
        .detail("expires_at_epoch_ms", issued.expires_at.0)
        .changed(None::<&Value>, Some(&state(&row)));
        done.resource = Some(resource_of(&issued.serial));
        Ok(done)
    }
}

impl IssueCertificate {
    /// Whoever has a user's certificate issued could use it, so they must hold what its name is bound to now. What an
    /// application's certificate is bound to on the data plane is for whoever manages access there, and this call asks for
    /// that of the whole installation.
    fn require_held(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<()> {
        if self.purpose == Purpose::Client {
            return Ok(());
        }
        let access = tx.access()?;
        // Somebody may bind the name tomorrow, while the certificate is still good. Whoever can be anybody has to be somebody
        // who may do everything.
        if let Some(admin) = access.roles.get("admin") {
            require_held(caller, &admin.name, &admin.permissions, None)?;
        }
        let subjects: Vec<Subject> =
            [Subject::user(&self.name), Subject::certificate(&self.uri)].into_iter().flatten().collect();
        let grants = access.grants(&[], &subjects);
        grants.iter().try_for_each(|grant| {
            require_held(caller, &grant.role, &grant.permissions, grant.namespace.as_ref().map(NamespaceName::as_str))
        })
    }
}

/// `ListCertificates`, by fingerprint. They name people, so they are for the installation's operators.
#[derive(Clone)]
pub struct ListCertificates {
    page: Page,
}

impl Op for ListCertificates {
    type Request = wire::ListCertificatesRequest;
    type Response = wire::ListCertificatesResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/ListCertificates";
    const SCOPE: Scope = Scope::Installation;

    fn resource(_: &Self::Request) -> String {
        "certificates".to_owned()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self { page: Page::parse("certificates", request.page_size, request.page_token.as_deref())? })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let (mut rows, total) = tx.certificates(&self.page)?;
        let next_page_token = self.page.cut(&mut rows, |row| row.fingerprint.clone()).unwrap_or_default();
        Ok(Done::new(wire::ListCertificatesResponse {
            certificates: rows.iter().map(convert::certificate).collect(),
            next_page_token,
            total_count: i32::try_from(total).unwrap_or(i32::MAX),
        }))
    }
}

/// How a request names a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Which {
    Serial(String),
    Fingerprint(String),
}

impl Which {
    fn parse(request: &wire::RevokeCertificateRequest) -> Result<Self> {
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let (serial, fingerprint) = (request.serial_number.as_str(), request.fingerprint.as_str());
        if serial.is_empty() && fingerprint.is_empty() {
            return Err(Error::invalid("serial_number", "or fingerprint must be set"));
        }
        let fits = serial.len() <= MAX_SERIAL_DIGITS && is_hex(serial);
        let rule = || Error::invalid("serial_number", format!("must be 1 to {MAX_SERIAL_DIGITS} hexadecimal digits"));
        let serial_fits = if fits { Ok(()) } else { Err(rule()) };
        let fits = fingerprint.is_empty() || (fingerprint.len() == FINGERPRINT_DIGITS && is_hex(fingerprint));
        let rule = format!("must be the {FINGERPRINT_DIGITS} hexadecimal digits of the certificate's SHA-256");
        let fingerprint_fits = if fits { Ok(()) } else { Err(Error::invalid("fingerprint", rule)) };
        convert::all_of([serial_fits, fingerprint_fits])?;
        match (serial, fingerprint) {
            (serial, "") => Ok(Self::Serial(serial.to_ascii_lowercase())),
            ("", fingerprint) => Ok(Self::Fingerprint(fingerprint.to_ascii_lowercase())),
            _ => Err(Error::invalid("fingerprint", "must not be given together with serial_number")),
        }
    }

    fn find(&self, tx: &Tx<'_>) -> Result<Option<CertificateRow>> {
        match self {
            Self::Serial(serial) => tx.certificate_by_serial(serial),
            Self::Fingerprint(fingerprint) => tx.certificate(fingerprint),
        }
    }
}

/// `RevokeCertificate`: of a node's, also what it was renewed for; connections that stand on it are cut. A fingerprint that nobody
/// knows is that of another CA, and the answer says so. Revoking a revoked certificate changes nothing.
#[derive(Clone)]
pub struct RevokeCertificate {
    which: Which,
}

#[async_trait]
impl Op for RevokeCertificate {
    type Request = wire::RevokeCertificateRequest;
    type Response = wire::RevokeCertificateResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/RevokeCertificate";
    const SCOPE: Scope = Scope::Installation;

    fn resource(request: &Self::Request) -> String {
        let named = [&request.serial_number, &request.fingerprint].into_iter().find(|id| !id.is_empty());
        resource_of(&named.map(|id| id.to_ascii_lowercase()).unwrap_or_default())
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self { which: Which::parse(&request)? })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let before = self.which.find(tx)?;
        let row = match (before.clone(), self.which) {
            (Some(row), _) => {
                tx.revoke_certificate(&row.fingerprint)?;
                tx.certificate(&row.fingerprint)?.unwrap_or(row)
            }
            (None, Which::Serial(serial)) => return Err(unknown_serial(&serial)),
            (None, Which::Fingerprint(fingerprint)) => {
                let row = of_another_ca(fingerprint, tx, caller);
                tx.insert_certificate(&row)?;
                row
            }
        };
        let mut done = Done::new(wire::RevokeCertificateResponse::default()).detail("fingerprint", &row.fingerprint);
        if let Some(node_id) = node_of(&row, tx)? {
            // Whoever had it could renew it, for another key too.
            let renewals = tx.revoke_renewals(&node_id, &row.fingerprint)?;
            done.response.renewals_revoked = i32::try_from(renewals.len()).unwrap_or(i32::MAX);
            done = done.detail("renewals_revoked", renewals.len()).detail("node_id", node_id);
        } else if row.serial.is_none() {
            done.response.unknown = true;
        }
        let mut done = done.changed(before.as_ref().map(state).as_ref(), Some(&state(&row)));
        if let Some(serial) = &row.serial {
            done = done.detail("serial_number", serial).detail("kind", &row.kind).detail("uri", &row.uri);
            done.resource = Some(resource_of(serial));
        }
        Ok(done)
    }

    async fn follow_up(request: &Self::Request, _: &mut Self::Response, services: &Services) {
        let Ok(which) = Which::parse(request) else { return };
        let found = services.store.read(move |tx| {
            let Some(row) = which.find(tx)? else { return Ok(None) };
            let node_id = node_of(&row, tx)?;
            Ok(Some((row, node_id)))
        });
        match found.await {
            Ok(Some((row, node_id))) => {
                let connections = services.connections.cut(&row.fingerprint);
                tracing::info!(
                    fingerprint = row.fingerprint,
                    connections,
                    "a certificate was revoked and its connections cut"
                );
                if let Some(node_id) = node_id {
                    cut_revoked(&node_id, services).await;
                }
            }
            Ok(None) => {}
            // Its connections stay open, but every call on them is refused.
            Err(failed) => {
                tracing::error!(reason = failed.reason(), cause = ?failed.cause(), "the connections of a revoked certificate were not cut");
            }
        }
    }
}

/// The node whose certificate this is, or was before it was forgotten: then what it was renewed for still says so.
fn node_of(row: &CertificateRow, tx: &Tx<'_>) -> Result<Option<String>> {
    match &row.origin {
        Some(origin) => Ok(Some(origin.node_id.clone())),
        None => tx.node_of_renewal(&row.fingerprint),
    }
}

fn unknown_serial(serial: &str) -> Error {
    let message = format!(
        "{} does not exist; a node's certificate is forgotten a day after its end, and what it was renewed for is revoked with the node",
        resource_of(serial)
    );
    Error::new(Kind::NotFound, "NOT_FOUND", message)
}

fn of_another_ca(fingerprint: String, tx: &Tx<'_>, caller: &Caller) -> CertificateRow {
    CertificateRow {
        fingerprint,
        serial: None,
        kind: String::new(),
        name: String::new(),
        uri: String::new(),
        created_at: tx.now,
        created_by: caller.identity.actor.clone(),
        expires_at: None,
        revoked_at: Some(tx.now),
        authority: None,
        origin: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_certificates_of_the_own_ca_may_have() {
        for good in ["a", "Alice", "alice@example.com", "team+ci", "a.b_c-d", &"x".repeat(64)] {
            name(good).unwrap();
            let uri = Purpose::User.identity("prism-0123456789abcdef", good).unwrap();
            assert_eq!(uri, format!("spiffe://prism-0123456789abcdef/user/{good}"));
        }
        let long = "x".repeat(65);
        for bad in
            ["", ".", "..", "a b", "a/b", "a:b", "ä", "a\0b", "a,b", "*", "anonymous", "prism", "prism-dev", &long]
        {
            assert_eq!(name(bad).unwrap_err().fields()[0].field, "name", "{bad:?}");
        }
        assert!(Purpose::Client.identity("prism-1", "x").unwrap().contains("/client/"));
    }

    #[test]
    fn a_life_has_its_bounds() {
        let life = |seconds| ttl(Some(&prost_types::Duration { seconds, nanos: 0 }));
        assert_eq!(life(60).unwrap(), Some(Duration::from_mins(1)));
        assert_eq!(life(366 * 86400).unwrap(), Some(MAX_CERTIFICATE_TTL));
        for bad in [-1, 0, 59, 366 * 86400 + 1, i64::MAX] {
            assert_eq!(life(bad).unwrap_err().fields()[0].field, "ttl", "{bad}");
        }
        assert_eq!(ttl(None).unwrap(), None);
    }

    #[test]
    fn a_certificate_is_named_in_one_way() {
        let which = |serial: &str, fingerprint: &str| {
            Which::parse(&wire::RevokeCertificateRequest {
                serial_number: serial.to_owned(),
                fingerprint: fingerprint.to_owned(),
            })
        };
        let digits = "AB".repeat(32);
        assert_eq!(which("0aBC", "").unwrap(), Which::Serial("0abc".to_owned()));
        assert_eq!(which("", &digits).unwrap(), Which::Fingerprint("ab".repeat(32)));
        let field = |serial: &str, fingerprint: &str| which(serial, fingerprint).unwrap_err().fields()[0].field.clone();
        assert_eq!(field("", ""), "serial_number");
        assert_eq!(field("0g", ""), "serial_number");
        assert_eq!(field(&"a".repeat(41), ""), "serial_number");
        assert_eq!(field("", "ab"), "fingerprint");
        assert_eq!(field("", &"zz".repeat(32)), "fingerprint");
        assert_eq!(field("0a", &digits), "fingerprint");
    }

    #[test]
    fn only_people_and_applications_get_certificates() {
        assert_eq!(Purpose::parse(1).unwrap(), Purpose::User);
        assert_eq!(Purpose::parse(2).unwrap(), Purpose::Client);
        for bad in [0, 3, -1] {
            assert_eq!(Purpose::parse(bad).unwrap_err().fields()[0].field, "kind");
        }
    }
}
