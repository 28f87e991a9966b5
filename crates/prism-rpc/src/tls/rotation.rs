//! Rotation of the CA: a new one issues, the old one is trusted until nothing stands on it.
//!
//! What is in force is the file `ca.key`: the key of the CA that issues, its certificate, and during a rotation its certificate of
//! the old CA and the old CA's own. It is replaced in one step. A change is written to `ca.next` first, then committed by its name
//! together with its entry in the audit log, then takes effect: after a crash in between, the name that is committed says whether
//! `ca.next` is taken over or removed. `ca.pem` follows. The old key is not kept: nothing is signed with it again.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prism_core::secret::AuthorityFingerprint;
use prism_core::{Error, Result, UnixMillis};
use rcgen::{BasicConstraints, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::watch;

use super::authority::{
    AUTHORITY_LIFE, BACKDATE, CERTIFICATE_FILE, CertificateAuthority, KEY_FILE, authority_parameters, certified, read,
};
use super::{CertificateFacts, fault, fingerprint};
use crate::files::write_atomically;

/// File of a change that has not taken effect.
const NEXT_FILE: &str = "ca.next";

type Follower = Box<dyn Fn(&[CertificateDer<'static>]) + Send + Sync>;

/// What a change of the CA goes through.
#[derive(Default)]
pub(super) struct Changes {
    /// Held while one takes effect.
    turn: Mutex<()>,
    /// Told of the CAs that are trusted.
    follower: OnceLock<Follower>,
    /// Counts the changes that are in force.
    in_force: watch::Sender<u64>,
}

/// The CA or the two of a rotation.
pub(super) struct State {
    key_pem: String,
    /// The certificate as it stands in a file.
    pem: String,
    pub issuer: Issuer<'static, KeyPair>,
    pub certificate: CertificateDer<'static>,
    pub expires_at: UnixMillis,
    old: Option<Old>,
}

/// The CA that was.
struct Old {
    certificate: CertificateDer<'static>,
    /// The new CA's certificate that the old one has signed.
    cross: CertificateDer<'static>,
    /// Its certificate that the new one has signed, once it is asked for.
    back: OnceLock<CertificateDer<'static>>,
}

/// A CA that is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// SHA-256 of its certificate in lower-case hexadecimal.
    pub fingerprint: String,
    /// When it was made.
    pub since: UnixMillis,
    /// When it ends.
    pub until: UnixMillis,
    /// Whether it issues; the other is only trusted.
    pub issues: bool,
}

/// A change of the CA that is on the disk and not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Name of the state, for the transaction that decides.
    pub name: String,
    /// Fingerprint of the CA that will issue.
    pub issues: String,
    /// Fingerprint of the CA that issued before, or that will be trusted no more.
    pub old: String,
    /// The certificates that clients must trust in that state, in PEM.
    pub bundle: String,
}

impl State {
    /// The CA before any rotation: its certificate stands in a file of its own.
    pub fn first(pem: &str, key: &KeyPair) -> Result<Self> {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| fault(format!("is not a certificate: {error}")))?;
        // What operators have is what they get, to the letter.
        Self::new(certificate, &key.serialize_pem(), None).map(|state| Self { pem: pem.to_owned(), ..state })
    }

    /// The state in a file that holds the key and the certificates; `None` when it holds no certificate.
    pub fn read_whole(text: &str) -> Result<Option<Self>> {
        let found = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<std::result::Result<Vec<_>, _>>();
        let found = found.map_err(|error| fault(format!("holds a damaged certificate: {error}")))?;
        let mut found = found.into_iter();
        let Some(certificate) = found.next() else { return Ok(None) };
        let old = match (found.next(), found.next(), found.next()) {
            (None, ..) => None,
            (Some(cross), Some(certificate), None) => Some(Old { certificate, cross, back: OnceLock::new() }),
            _ => return Err(fault("must hold one certificate, or the three of a rotation")),
        };
        let key = KeyPair::from_pem(text).map_err(|error| fault(format!("holds no private key: {error}")))?;
        Self::new(certificate, &key.serialize_pem(), old).map(Some)
    }

    fn new(certificate: CertificateDer<'static>, key_pem: &str, old: Option<Old>) -> Result<Self> {
        let unusable = |error: rcgen::Error| fault(format!("has an unusable key: {error}"));
        let key = KeyPair::from_pem(key_pem).map_err(unusable)?;
        certified(vec![certificate.clone()], &key)?
            .keys_match()
            .map_err(|_| fault(format!("does not belong to the key in {KEY_FILE}")))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| fault(format!("is not the certificate of a CA: {error}")))?;
        let expires_at = CertificateFacts::of(&certificate)?.expires_at;
        let pem = to_pem(&certificate);
        Ok(Self { key_pem: key_pem.to_owned(), pem, issuer, certificate, expires_at, old })
    }

    /// Fingerprints of the CAs, the one that issues first.
    pub fn name(&self) -> String {
        self.trusted().iter().map(fingerprint).collect::<Vec<_>>().join(" ")
    }

    fn trusted(&self) -> Vec<CertificateDer<'static>> {
        let old = self.old.as_ref().map(|old| old.certificate.clone());
        [self.certificate.clone()].into_iter().chain(old).collect()
    }

    /// The certificates that clients must trust, in PEM.
    pub fn bundle(&self) -> String {
        let old = self.old.as_ref().map(|old| to_pem(&old.certificate));
        std::iter::once(self.pem.clone()).chain(old).collect()
    }

    /// What a server shows: who trusts the old CA alone gets from the leaf to it by the certificate that it signed for the new one,
    /// which therefore stands before the new one's own. The others are there for machines that know no more than a fingerprint.
    pub fn chain(&self, leaf: CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        let cross = self.old.as_ref().map(|old| old.cross.clone());
        [leaf].into_iter().chain(cross).chain(self.trusted()).collect()
    }

    fn to_file(&self) -> String {
        let old = self.old.iter().flat_map(|old| [&old.cross, &old.certificate]);
        let certificates = [&self.certificate].into_iter().chain(old).map(to_pem);
        std::iter::once(self.key_pem.clone()).chain(certificates).collect()
    }
}

pub(super) fn to_pem(certificate: &CertificateDer<'static>) -> String {
    use std::fmt::Write as _;
    let base64 = STANDARD.encode(certificate);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        let _ = writeln!(out, "{line}");
        rest = more;
    }
    out + "-----END CERTIFICATE-----\n"
}

impl CertificateAuthority {
    /// Name of the state that is in force.
    pub fn state_name(&self) -> String {
        self.0.state.load().name()
    }

    /// Certificates of the CAs that are trusted, the one that issues first; one or two.
    pub fn trusted(&self) -> Vec<CertificateDer<'static>> {
        self.0.state.load().trusted()
    }

    /// Whether a CA with this fingerprint is trusted.
    pub fn knows(&self, authority: AuthorityFingerprint) -> bool {
        self.trusted().iter().any(|known| AuthorityFingerprint::of_certificate(known) == authority)
    }

    /// The CAs that are trusted, the one that issues first; one or two.
    pub fn standings(&self) -> Result<Vec<Standing>> {
        let facts = |(at, certificate): (usize, &CertificateDer<'_>)| {
            let facts = CertificateFacts::of(certificate)?;
            let (since, until) = (facts.begins_at + BACKDATE, facts.expires_at);
            Ok(Standing { fingerprint: fingerprint(certificate), since, until, issues: at == 0 })
        };
        self.trusted().iter().enumerate().map(facts).collect()
    }

    /// The certificates by which each of the two CAs of a rotation vouches for the other, in PEM; empty when there is one CA. Who
    /// has proven one of them proves the other by these.
    pub fn links_pem(&self) -> String {
        let state = self.0.state.load();
        let Some(old) = &state.old else { return String::new() };
        let back = match old.back.get() {
            Some(back) => Ok(back.clone()),
            None => self.back(&state, &old.certificate).map(|back| old.back.get_or_init(|| back).clone()),
        };
        let back = back.inspect_err(|failed| {
            tracing::error!(cause = ?failed.cause(), "the new CA could not vouch for the old one");
        });
        [Ok(old.cross.clone()), back].iter().flatten().map(to_pem).collect()
    }

    /// The old CA's certificate of the new one.
    fn back(&self, state: &State, old: &CertificateDer<'static>) -> Result<CertificateDer<'static>> {
        let failed = |error: rcgen::Error| fault(format!("no certificate for the old CA: {error}"));
        let facts = CertificateFacts::of(old)?;
        let key = SubjectPublicKeyInfo::from_der(&facts.public_key).map_err(failed)?;
        let mut back = authority_parameters(facts.issued_at(), facts.expires_at.min(state.expires_at), &self.0.random);
        back.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        back.use_authority_key_identifier_extension = true;
        back.signed_by(&key, &state.issuer).map(|back| back.der().clone()).map_err(failed)
    }

    /// Calls `follower` with the CAs that are trusted whenever they change: before the first certificate of a new one is issued, and
    /// before a retirement is answered. One call per CA; a second is ignored.
    pub fn on_change(&self, follower: impl Fn(&[CertificateDer<'static>]) + Send + Sync + 'static) {
        let _ = self.0.changes.follower.set(Box::new(follower));
    }

    /// Changes whenever another CA issues, or one is not trusted any more; that is in force by then.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.in_force.subscribe()
    }

    /// Makes a new CA and writes the state in which it issues and the present one is still trusted, beside what is in force.
    ///
    /// FAILED_PRECONDITION `CA_ROTATING` when there are two already.
    pub fn plan_rotation(&self) -> Result<Plan> {
        let inner = &self.0;
        let state = inner.state.load();
        if state.old.is_some() {
            let message = "there are two CAs already; retire the old one first (RetireCa, prism-admin ca retire)";
            return Err(Error::precondition("CA_ROTATING", message));
        }
        let now = inner.clock.now();
        let failed = |error: rcgen::Error| fault(format!("no new CA: {error}"));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let certificate =
            authority_parameters(now, now + AUTHORITY_LIFE, &inner.random).self_signed(&key).map_err(failed)?;
        let end = (now + AUTHORITY_LIFE).min(state.expires_at);
        let mut cross = authority_parameters(now, end, &inner.random);
        cross.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        cross.use_authority_key_identifier_extension = true;
        let cross = cross.signed_by(&key, &state.issuer).map_err(failed)?;
        let old = Old { certificate: state.certificate.clone(), cross: cross.der().clone(), back: OnceLock::new() };
        let next = State::new(certificate.der().clone(), &key.serialize_pem(), Some(old))?;
        self.stage(&next, fingerprint(&state.certificate))
    }

    /// Writes the state in which the old CA is not trusted any more, beside what is in force.
    ///
    /// FAILED_PRECONDITION `CA_NOT_ROTATING` when there is one CA only.
    pub fn plan_retirement(&self) -> Result<Plan> {
        let state = self.0.state.load();
        let Some(old) = &state.old else {
            let message = "there is one CA only; make a new one first (RotateCa, prism-admin ca rotate)";
            return Err(Error::precondition("CA_NOT_ROTATING", message));
        };
        let next = State::new(state.certificate.clone(), &state.key_pem, None)?;
        self.stage(&next, fingerprint(&old.certificate))
    }

    fn stage(&self, next: &State, old: String) -> Result<Plan> {
        let path = self.0.folder.join(NEXT_FILE);
        write_atomically(&path, next.to_file().as_bytes(), 0o600).map_err(|error| not_written(&path, &error))?;
        Ok(Plan { name: next.name(), issues: fingerprint(&next.certificate), old, bundle: next.bundle() })
    }

    /// Puts the state that is `committed` in force, if it is not already, and brings `ca.pem` up to it. Blocks on the disk.
    ///
    /// An error when the file of that state is not there or cannot be taken over; what was in force stays.
    pub fn settle(&self, committed: &str) -> Result<()> {
        let inner = &self.0;
        let _turn = inner.changes.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.state.load().name() != committed {
            let (next, key) = (inner.folder.join(NEXT_FILE), inner.folder.join(KEY_FILE));
            let state = if let Some(state) = read_named(&next, committed)? {
                std::fs::rename(&next, &key).map_err(|error| not_written(&key, &error))?;
                state
            } else {
                // An earlier attempt may have come as far as this.
                let renamed = read_named(&key, committed)?;
                renamed.ok_or_else(|| fault(format!("{} is not the change that was committed", next.display())))?
            };
            std::fs::File::open(&inner.folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|error| not_written(&key, &error))?;
            if let Some(follower) = inner.changes.follower.get() {
                follower(&state.trusted());
            }
            inner.state.store(Arc::new(state));
            inner.changes.in_force.send_modify(|count| *count += 1);
        }
        self.publish()
    }

    /// At the start: takes a change over that is `committed` and was cut short, and removes one that is not.
    pub fn recover(&self, committed: Option<&str>) -> Result<()> {
        let next = self.0.folder.join(NEXT_FILE);
        if read(&next)?.is_none() {
            return Ok(());
        }
        match committed.filter(|committed| *committed != self.state_name()) {
            Some(committed) if read_named(&next, committed).is_ok_and(|state| state.is_some()) => {
                tracing::warn!("a change of the CA that was cut short is taken over");
                self.settle(committed)
            }
            _ => std::fs::remove_file(&next).map_err(|error| not_written(&next, &error)),
        }
    }

    /// Writes `ca.pem` anew if it is not what clients must trust.
    pub(super) fn publish(&self) -> Result<()> {
        let path = self.0.folder.join(CERTIFICATE_FILE);
        let bundle = self.certificate_pem();
        if read(&path)?.is_some_and(|text| text == bundle) {
            return Ok(());
        }
        write_atomically(&path, bundle.as_bytes(), 0o644).map_err(|error| not_written(&path, &error))
    }
}

/// The state in a file, if it is the one of this name.
fn read_named(path: &Path, name: &str) -> Result<Option<State>> {
    let state = read(path)?.map(|text| State::read_whole(&text)).transpose()?.flatten();
    Ok(state.filter(|state| state.name() == name))
}

fn not_written(path: &Path, error: &std::io::Error) -> Error {
    fault(format!("{} cannot be written: {error}", path.display()))
}
