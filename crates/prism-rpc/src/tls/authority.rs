//! The CA made on first start, and the server certificates it issues.

use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use arc_swap::ArcSwap;
use prism_core::secret::{AuthorityFingerprint, Random};
use prism_core::{Clock, Error, Result, UnixMillis};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

use super::rotation::{Changes, State};
use super::{CertificateFacts, ServerTls, Source, fault, provider};
use crate::files::{is_open_to_others, write_atomically};

/// File of the CA certificate, which clients must trust.
pub const CERTIFICATE_FILE: &str = "ca.pem";
/// File of the CA's private key.
pub const KEY_FILE: &str = "ca.key";

/// Life of the CA: ten years.
pub(super) const AUTHORITY_LIFE: Duration = Duration::from_hours(87648);
/// Life of a server certificate.
const SERVER_LIFE: Duration = Duration::from_hours(2160);
/// A server certificate is replaced when this much of its life is left.
const SERVER_RENEWAL: Duration = Duration::from_hours(720);
/// With less than this left of a server certificate, its renewal has failed for a day.
pub(super) const ATTENTION: Duration = Duration::from_hours(696);
/// Certificates begin in the past, for clients whose clock is slow.
pub(super) const BACKDATE: Duration = Duration::from_hours(1);

/// Prism's own certificate authority; a clone is the same one. During a rotation it is two CAs: the new one issues, the old one is
/// still trusted ([`super::rotation`]).
#[derive(Clone)]
pub struct CertificateAuthority(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub folder: PathBuf,
    pub state: ArcSwap<State>,
    pub changes: Changes,
    pub clock: Clock,
    pub random: Random,
}

impl CertificateAuthority {
    /// Loads the CA of `data_dir`, or makes one when there is none: `ca.pem` (0644), the certificates that clients must trust, and
    /// `ca.key` (0600). After a rotation `ca.key` holds the certificates as well, and `ca.pem` follows it.
    ///
    /// FAILED_PRECONDITION, naming the file and what to do, when a part is missing, unreadable, does not belong to the other,
    /// or when the key is open to others: a new CA would cut off every client that trusts the old one.
    pub fn load_or_create(data_dir: &Path) -> Result<Self> {
        Self::load_or_create_at(data_dir, Clock::system())
    }

    /// [`CertificateAuthority::load_or_create`] under another clock.
    pub fn load_or_create_at(data_dir: &Path, clock: Clock) -> Result<Self> {
        let (certificate_path, key_path) = (data_dir.join(CERTIFICATE_FILE), data_dir.join(KEY_FILE));
        let random = Random::system();
        let (now, own_random) = (clock.now(), random.clone());
        let with = move |state: State| {
            let (state, changes) = (ArcSwap::from_pointee(state), Changes::default());
            Self(Arc::new(Inner { folder: data_dir.to_owned(), state, changes, clock, random: own_random }))
        };
        let named = |path: &Path| {
            let shown = path.display().to_string();
            move |error: Error| fault(format!("{shown}: {}", error.message()))
        };
        let key = match (read(&certificate_path)?, read(&key_path)?) {
            (pem, Some(key)) => {
                if is_open_to_others(&key_path).map_err(|error| fault(format!("{}: {error}", key_path.display())))? {
                    return Err(fault(format!("{0} can be read by others; run: chmod 600 {0}", key_path.display())));
                }
                if let Some(state) = State::read_whole(&key).map_err(named(&key_path))? {
                    let authority = with(state);
                    authority.publish()?;
                    return Ok(authority);
                }
                let key = parse_key(&key_path, &key)?;
                match pem {
                    Some(pem) => {
                        return State::first(&pem, &key).map(with).map_err(named(&certificate_path));
                    }
                    // The key is written first, so this is a first start that was cut short.
                    None => key,
                }
            }
            (Some(_), None) => {
                return Err(fault(format!(
                    "{} is there, but its key {} is not; restore it from a backup, or remove both to make a new CA that every \
                     client has to trust anew",
                    certificate_path.display(),
                    key_path.display()
                )));
            }
            (None, None) => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
                    .map_err(|error| fault(format!("no key: {error}")))?;
                write_atomically(&key_path, key.serialize_pem().as_bytes(), 0o600)
                    .map_err(|error| fault(format!("{}: {error}", key_path.display())))?;
                key
            }
        };
        let pem = self_signed(&key, now, &random)?;
        write_atomically(&certificate_path, pem.as_bytes(), 0o644)
            .map_err(|error| fault(format!("{}: {error}", certificate_path.display())))?;
        State::first(&pem, &key).map(with).map_err(named(&certificate_path))
    }

    /// The CA certificates that clients must trust, in PEM: that of the CA that issues, then the old one if there is one.
    pub fn certificate_pem(&self) -> String {
        self.0.state.load().bundle()
    }

    /// The certificate of the CA that issues.
    pub fn certificate_der(&self) -> CertificateDer<'static> {
        self.0.state.load().certificate.clone()
    }

    /// SHA-256 of the certificate of the CA that issues, which new join tokens carry.
    pub fn fingerprint(&self) -> AuthorityFingerprint {
        AuthorityFingerprint::of_certificate(&self.0.state.load().certificate)
    }

    /// When the certificate of the CA that issues ends, and with it the trust in all it has issued.
    pub fn expires_at(&self) -> UnixMillis {
        self.0.state.load().expires_at
    }

    /// TLS of a listener with a certificate for `localhost`, `127.0.0.1`, `::1`, the host's name and `names`, valid for 90 days
    /// and replaced while the server runs.
    ///
    /// INVALID_ARGUMENT when one of `names` is neither a DNS name nor an address.
    pub fn server_tls(&self, names: &[String]) -> Result<ServerTls> {
        let renewing = self.renewing(names)?;
        ServerTls::new(renewing.clone(), Source::Own(renewing))
    }

    pub(super) fn renewing(&self, names: &[String]) -> Result<Arc<Renewing>> {
        let alternatives = alternatives(names)?;
        let first = self.issue(&alternatives)?;
        Ok(Arc::new(Renewing {
            authority: self.clone(),
            alternatives,
            current: ArcSwap::from_pointee(first),
            one_at_a_time: Mutex::new(()),
        }))
    }

    fn issue(&self, alternatives: &[SanType]) -> Result<Issued> {
        let (inner, state) = (&self.0, self.0.state.load());
        let now = inner.clock.now();
        let failed = |error: rcgen::Error| fault(format!("the CA cannot issue a certificate: {error}"));
        let mut params = parameters("Prism server", now, now + SERVER_LIFE, &inner.random);
        params.subject_alt_names = alternatives.to_vec();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let leaf = params.signed_by(&key, &state.issuer).map_err(failed)?;
        let expires_at = CertificateFacts::of(leaf.der())?.expires_at;
        let certified = certified(state.chain(leaf.der().clone()), &key)?;
        Ok(Issued { certified: Arc::new(certified), expires_at, by: state.name() })
    }
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateAuthority(…)")
    }
}

/// A server certificate and its key.
pub(super) struct Issued {
    pub certified: Arc<CertifiedKey>,
    pub expires_at: UnixMillis,
    /// Name of the state of the CA that its chain shows.
    by: String,
}

/// Hands out the current certificate, and replaces it before it expires.
pub(super) struct Renewing {
    authority: CertificateAuthority,
    alternatives: Vec<SanType>,
    current: ArcSwap<Issued>,
    one_at_a_time: Mutex<()>,
}

impl Renewing {
    pub fn current(&self) -> Arc<Issued> {
        let issued = self.current.load_full();
        let rotated = issued.by != self.authority.state_name();
        if !rotated && self.authority.0.clock.now() < issued.expires_at - SERVER_RENEWAL {
            return issued;
        }
        // One handshake renews, the others go on with what is still valid for a month.
        let _renewing = match self.one_at_a_time.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => return issued,
        };
        match self.authority.issue(&self.alternatives) {
            Ok(fresh) => {
                tracing::info!("the server certificate was renewed");
                let fresh = Arc::new(fresh);
                self.current.store(fresh.clone());
                fresh
            }
            Err(error) => {
                tracing::error!(%error, "the server certificate could not be renewed");
                issued
            }
        }
    }
}

impl ResolvesServerCert for Renewing {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current().certified.clone())
    }
}

impl fmt::Debug for Renewing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewing").field("alternatives", &self.alternatives).finish_non_exhaustive()
    }
}

pub(super) fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fault(format!("{}: {error}", path.display()))),
    }
}

fn parse_key(path: &Path, pem: &str) -> Result<KeyPair> {
    KeyPair::from_pem(pem).map_err(|error| fault(format!("{} is not a private key: {error}", path.display())))
}

/// What the certificate of a CA says. All CAs have one name: one that is signed by another counts as self-issued then (RFC 5280,
/// 6.1), which the path length of earlier CAs, 0, leaves room for.
pub(super) fn authority_parameters(now: UnixMillis, end: UnixMillis, random: &Random) -> CertificateParams {
    let mut params = parameters("Prism CA", now, end, random);
    // Room for the next CA's certificate of this one, for those who count it all the same.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn self_signed(key: &KeyPair, now: UnixMillis, random: &Random) -> Result<String> {
    let params = authority_parameters(now, now + AUTHORITY_LIFE, random);
    let certificate = params.self_signed(key).map_err(|error| fault(format!("no CA certificate: {error}")))?;
    Ok(certificate.pem())
}

/// What all certificates have: a name, a random serial number, and a life from an hour before `now` to `end`, in whole seconds.
pub(super) fn parameters(common_name: &str, now: UnixMillis, end: UnixMillis, random: &Random) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let seconds = |at: UnixMillis| Duration::from_secs(u64::try_from(at.0 / 1000).unwrap_or(0));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + seconds(now - BACKDATE);
    params.not_after = epoch + seconds(end);
    let mut serial = [0; 16];
    random.fill(&mut serial);
    // Serial numbers are positive, and their first byte is not zero.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

pub(super) fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Result<CertifiedKey> {
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing = provider()
        .key_provider
        .load_private_key(der)
        .map_err(|error| fault(format!("has an unusable private key: {error}")))?;
    Ok(CertifiedKey::new(chain, signing))
}

/// Names and addresses of a server that is to have `names`, as they stand in its certificates.
pub fn server_names(names: &[String]) -> Vec<String> {
    let mut all = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    // A host may have any name; one that cannot stand in a certificate is left out.
    all.extend(gethostname::gethostname().into_string().ok().filter(|name| alternative(name).is_some()));
    all.extend_from_slice(names);
    all
}

/// The names of a server certificate, without repeats.
fn alternatives(names: &[String]) -> Result<Vec<SanType>> {
    if let Some(bad) = names.iter().find(|name| alternative(name).is_none()) {
        return Err(fault(format!("{bad:?} in listen.names is neither a DNS name nor an address")));
    }
    let all = server_names(names);
    let mut out: Vec<SanType> = Vec::new();
    for san in all.iter().filter_map(|name| alternative(name)) {
        if !out.contains(&san) {
            out.push(san);
        }
    }
    Ok(out)
}

/// Whether a name can stand in a server certificate.
pub(super) fn is_host(name: &str) -> bool {
    alternative(name).is_some()
}

fn alternative(name: &str) -> Option<SanType> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Some(SanType::IpAddress(address));
    }
    let host = name.strip_prefix("*.").unwrap_or(name);
    match ServerName::try_from(host).ok()? {
        ServerName::DnsName(_) => name.to_ascii_lowercase().try_into().ok().map(SanType::DnsName),
        _ => None,
    }
}
