//! `prism-admin cert`: certificates of Prism's own CA.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use prism_proto::admin::v1::{
    Certificate, CertificateKind, IssueCertificateRequest, IssueCertificateResponse, ListCertificatesRequest,
    RevokeCertificateRequest,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use tempfile::NamedTempFile;

use super::{Console, note_rest};
use crate::{
    error::{Failure, Result},
    exit::Exit,
    names,
    output::{Grid, note},
    pages::{self, Paging},
    text,
};

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a key here and have Prism's CA issue a certificate for it
    ///
    /// Writes NAME.key (which never leaves this computer), NAME.pem and ca.pem. Prism gets the public key only.
    Issue(Issue),
    /// List certificates that were issued, and those of other CAs that were revoked
    List(Paging),
    /// Revoke a certificate; connections that stand on it are cut
    Revoke(Revoke),
}

impl Command {
    /// Carries the verb out.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        match self {
            Self::Issue(issue) => issue.run(console).await,
            Self::List(paging) => list(console, paging).await,
            Self::Revoke(revoke) => revoke.run(console).await,
        }?;
        Ok(Exit::Ok)
    }
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A person on the admin plane; what she may do comes from bindings
    User,
    /// An application on the data plane; what it may do comes from client bindings
    Client,
}

/// `cert issue`.
#[derive(Args, Debug)]
pub struct Issue {
    /// Name of the user or application
    name: String,
    /// What it is for
    #[arg(long, value_enum, default_value = "user")]
    kind: Kind,
    /// Life, such as 30d [default: 90d for a user, 30d for a client]
    #[arg(long, value_name = "DURATION", value_parser = text::parse_duration)]
    ttl: Option<Duration>,
    /// Folder for the files
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
}

impl Issue {
    async fn run(self, console: &Console) -> Result<()> {
        // Before anything is asked of the server: it must be possible to keep what it gives.
        let files = Files::prepare(&self.out, &self.name, self.force)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| unusable(&error))?;
        let request = IssueCertificateRequest {
            kind: match self.kind {
                Kind::User => CertificateKind::User,
                Kind::Client => CertificateKind::Client,
            }
            .into(),
            name: self.name,
            csr_pem: signing_request(&key)?.into(),
            ttl: self.ttl.map(text::duration_to_proto),
        };
        let answer = console.client().await?.call(request).await?;
        let (cert, key) = files.keep(&answer, &key.serialize_pem())?;
        console.printer.message(&answer, |answer| {
            sheet(&answer.certificate.clone().unwrap_or_default())
                .field("certificate", cert.display().to_string())
                .field("key", key.display().to_string())
                .render("")
        })?;
        match self.kind {
            Kind::User => note(&format!(
                "note: use it with --cert {} --key {}; what it may do comes from `prism-admin binding create`",
                cert.display(),
                key.display()
            )),
            Kind::Client => note("note: what it may do comes from `prism-admin client-binding create`"),
        }
        Ok(())
    }
}

/// A request that says nothing but the public key, because nothing else is taken from it.
fn signing_request(key: &KeyPair) -> Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(key).and_then(|request| request.pem()).map_err(|error| unusable(&error))
}

fn unusable(error: &rcgen::Error) -> Failure {
    Failure::new(Exit::Failed, format!("no key could be made: {error}"))
}

/// The three files. Whether the folder can be written to is known before anything is issued.
struct Files {
    folder: PathBuf,
    stem: String,
    force: bool,
    /// Empty private files in the folder, which become the key, the certificate and the CA's certificate.
    drafts: [NamedTempFile; 3],
}

impl Files {
    fn prepare(folder: &Path, name: &str, force: bool) -> Result<Self> {
        let failed = |error: io::Error| Failure::usage(format!("cannot write to {}: {error}", folder.display()));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let draft = || NamedTempFile::new_in(folder).map_err(failed);
        let drafts = [draft()?, draft()?, draft()?];
        let files = Self { folder: folder.to_owned(), stem: stem(name), force, drafts };
        for path in [files.path("key"), files.path("pem")] {
            if !force && path.symlink_metadata().is_ok() {
                return Err(present(&path));
            }
        }
        Ok(files)
    }

    fn path(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.stem))
    }

    /// Writes all three and returns the paths of certificate and key.
    fn keep(self, answer: &IssueCertificateResponse, key: &str) -> Result<(PathBuf, PathBuf)> {
        let (key_path, cert_path, ca_path) = (self.path("key"), self.path("pem"), self.folder.join("ca.pem"));
        let ca = answer.ca_certificate_pem.as_ref();
        let same_ca = fs::read(&ca_path).is_ok_and(|present| present == ca);
        let [key_draft, cert_draft, ca_draft] = self.drafts;
        persist(key_draft, &key_path, key.as_bytes(), 0o600, self.force)?;
        persist(cert_draft, &cert_path, &answer.certificate_pem, 0o644, self.force)?;
        if !same_ca {
            persist(ca_draft, &ca_path, ca, 0o644, self.force).map_err(|failure| {
                failure.detail(format!("{} and {} were written", key_path.display(), cert_path.display()))
            })?;
        }
        Ok((cert_path, key_path))
    }
}

fn persist(mut draft: NamedTempFile, path: &Path, content: &[u8], mode: u32, force: bool) -> Result<()> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => present(path),
        _ => Failure::usage(format!("cannot write {}: {error}", path.display())),
    };
    draft.write_all(content).map_err(failed)?;
    draft.as_file().set_permissions(fs::Permissions::from_mode(mode)).map_err(failed)?;
    draft.as_file().sync_all().map_err(failed)?;
    let kept = if force { draft.persist(path) } else { draft.persist_noclobber(path) };
    kept.map(drop).map_err(|error| failed(error.error))
}

fn present(path: &Path) -> Failure {
    Failure::usage(format!("{} is there already", path.display()))
        .hint("choose another folder with --out, or replace it with --force")
}

/// The name as a part of a file's name.
fn stem(name: &str) -> String {
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '@' | '+' | '.');
    let stem: String = name.chars().map(|c| if fits(c) { c } else { '_' }).collect();
    if stem.starts_with('.') { format!("_{stem}") } else { stem }
}

/// `cert revoke`.
#[derive(Args, Debug)]
pub struct Revoke {
    /// Serial number as `cert list` shows it
    #[arg(value_name = "SERIAL", required_unless_present = "fingerprint", conflicts_with = "fingerprint")]
    serial: Option<String>,
    /// SHA-256 of the certificate in hexadecimal, also of one of another CA
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
}

impl Revoke {
    async fn run(self, console: &Console) -> Result<()> {
        let client = console.client().await?;
        let plain = |text: Option<String>| text.unwrap_or_default().replace(':', "").to_lowercase();
        let request =
            RevokeCertificateRequest { serial_number: plain(self.serial), fingerprint: plain(self.fingerprint) };
        let which = format!("{}{}", request.serial_number, request.fingerprint);
        console.confirm(&format!("Revoke certificate {which}? Connections that stand on it are cut."))?;
        let answer = client.call(request).await?;
        note(&match (answer.unknown, answer.renewals_revoked) {
            (true, _) => format!(
                "no certificate {which} is known here: it counts as one of another CA from now on. If it was a node's and ended more \
                 than a day ago, revoke the node: prism-admin node revoke NODE"
            ),
            (false, 0) => format!("certificate {which} revoked"),
            (false, renewals) => format!("certificate {which} revoked, and {renewals} that it was renewed for"),
        });
        console.printer.done(&answer)
    }
}

async fn list(console: &Console, paging: Paging) -> Result<()> {
    let client = console.client().await?;
    let answer = pages::fetch(&client, ListCertificatesRequest::default(), paging).await?;
    note_rest(answer.certificates.len(), Some(&answer.next_page_token), answer.total_count);
    console.printer.listing(&answer, "certificates", |answer| table(&answer.certificates))
}

fn table(certificates: &[Certificate]) -> String {
    let header = ["SERIAL", "KIND", "NAME", "STATE", "ISSUED", "EXPIRES", "BY", "FINGERPRINT"];
    let grid = certificates.iter().fold(Grid::new(header), |grid, certificate| {
        grid.row([
            text::or_dash(&certificate.serial_number),
            names::show::<CertificateKind>(certificate.kind),
            text::or_dash(&certificate.name),
            text::key_state(certificate.revoked, certificate.expires_at.as_ref()).to_owned(),
            text::time(certificate.created_at.as_ref()),
            text::time(certificate.expires_at.as_ref()),
            text::or_dash(&certificate.created_by),
            certificate.fingerprint.clone(),
        ])
    });
    grid.render("no certificates")
}

fn sheet(certificate: &Certificate) -> Grid {
    Grid::sheet()
        .field("serial", &certificate.serial_number)
        .field("kind", names::show::<CertificateKind>(certificate.kind))
        .field("name", &certificate.name)
        .field("uri", text::or_dash(&certificate.uri))
        .field("expires", text::time(certificate.expires_at.as_ref()))
        .field("fingerprint", text::or_dash(&certificate.fingerprint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> IssueCertificateResponse {
        IssueCertificateResponse {
            certificate: None,
            certificate_pem: format!("cert {text}").into_bytes().into(),
            ca_certificate_pem: b"ca".to_vec().into(),
        }
    }

    #[test]
    fn files_are_written_once_unless_forced() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new");
        let files = Files::prepare(&out, "alice", false).unwrap();
        let (cert, key) = files.keep(&answer("1"), "key 1").unwrap();
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!((read(&cert).as_str(), read(&key).as_str()), ("cert 1", "key 1"));
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&out).unwrap().count(), 3);

        let failure = Files::prepare(&out, "alice", false).map(drop).unwrap_err();
        assert!(failure.to_string().contains("--force"), "{failure}");
        Files::prepare(&out, "alice", true).unwrap().keep(&answer("2"), "key 2").unwrap();
        assert_eq!((read(&cert).as_str(), read(&key).as_str()), ("cert 2", "key 2"));
        // The same CA's certificate may lie there for others.
        Files::prepare(&out, "bob", false).unwrap().keep(&answer("3"), "key 3").unwrap();
        assert_eq!(fs::read_dir(&out).unwrap().count(), 5);
        fs::write(out.join("ca.pem"), "another").unwrap();
        let failure = Files::prepare(&out, "carol", false).unwrap().keep(&answer("4"), "key 4").unwrap_err();
        assert!(failure.to_string().contains("carol.key"), "{failure}");
        assert_eq!(read(&out.join("ca.pem")), "another");
    }

    #[test]
    fn names_stay_in_their_folder() {
        assert_eq!(stem("alice@example.com"), "alice@example.com");
        assert_eq!(stem("../../etc/passwd"), "_.._.._etc_passwd");
        assert_eq!(stem(".ssh"), "_.ssh");
        assert_eq!(stem("a b\n"), "a_b_");
    }

    #[test]
    fn requests_hold_the_key_alone() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let pem = signing_request(&key).unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE REQUEST-----"), "{pem}");
        assert!(!pem.contains("PRIVATE"));
    }
}
