//! Signed checkpoints of the audit log, read and checked by the words of audit.proto and nothing else, and the ways to forge
//! them that are open to whoever does not have the server's key.

use std::path::Path;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use prism_proto::admin::v1::{
    AuditCheckpoint, AuditLogEntry, CreateAuditCheckpointRequest, GetAuditLogRequest, ListAuditCheckpointsRequest,
};
use prost::Message as _;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use tonic::metadata::MetadataMap;

use crate::admin::Admin;
use crate::audit::{bytes, number, text};
use crate::wait::within;

/// Trailer of every answer to a caller with a valid credential.
pub const CHECKPOINT: &str = "prism-audit-checkpoint-bin";
/// Header that asks for the head of the log, signed.
pub const HEAD: &str = "prism-audit-head";
/// Trailer with that head.
pub const HEAD_ANSWER: &str = "prism-audit-head-bin";
/// Header that asks for the hash of an entry.
pub const WITNESS: &str = "prism-audit-witness";
/// Trailer with that hash.
pub const WITNESS_ANSWER: &str = "prism-audit-witness-bin";

/// The checkpoint that came with an answer; panics when it is not properly signed.
#[track_caller]
pub fn of(metadata: &MetadataMap) -> Option<AuditCheckpoint> {
    named(metadata, CHECKPOINT)
}

/// The head of the log that came with an answer, as [`of`].
#[track_caller]
pub fn head_of(metadata: &MetadataMap) -> Option<AuditCheckpoint> {
    named(metadata, HEAD_ANSWER)
}

#[track_caller]
fn named(metadata: &MetadataMap, name: &str) -> Option<AuditCheckpoint> {
    let value = metadata.get_bin(name)?;
    let encoded = value.to_bytes().expect("the trailer is bytes");
    let checkpoint = AuditCheckpoint::decode(encoded).expect("the trailer is a checkpoint");
    verify(&checkpoint);
    Some(checkpoint)
}

/// What came as an answer to [`WITNESS`].
pub fn witness_of(metadata: &MetadataMap) -> Option<Vec<u8>> {
    metadata.get_bin(WITNESS_ANSWER).map(|value| value.to_bytes().expect("the trailer is bytes").to_vec())
}

/// Panics unless the checkpoint is whole and bears the signature of the key that it names.
#[track_caller]
pub fn verify(checkpoint: &AuditCheckpoint) {
    assert_eq!((checkpoint.hash.len(), checkpoint.public_key.len()), (32, 32), "{checkpoint:?}");
    assert!(checkpoint.sequence > 0 && checkpoint.time.is_some(), "{checkpoint:?}");
    assert_eq!(checkpoint.key_id, key_id(&checkpoint.public_key), "{checkpoint:?}");
    let signed = UnparsedPublicKey::new(&ED25519, &checkpoint.public_key)
        .verify(&signed_bytes(checkpoint), &checkpoint.signature);
    assert!(signed.is_ok(), "the signature is wrong: {checkpoint:?}");
}

/// Panics unless `log` holds what the checkpoint says.
#[track_caller]
pub fn agrees(checkpoint: &AuditCheckpoint, log: &[AuditLogEntry]) {
    let entry = log.iter().find(|entry| entry.sequence == checkpoint.sequence);
    let entry = entry.unwrap_or_else(|| panic!("sequence {} was signed and is not there", checkpoint.sequence));
    assert_eq!(entry.hash, checkpoint.hash, "what was signed of sequence {}", checkpoint.sequence);
}

/// Id of a key: the first 16 characters of the SHA-256 of the public key in lower-case hexadecimal.
pub fn key_id(public_key: &[u8]) -> String {
    hex::encode(&Sha256::digest(public_key)[..8])
}

/// What is signed, written by hand: the words, then the fields in number order without field 6, defaults left out.
fn signed_bytes(checkpoint: &AuditCheckpoint) -> Vec<u8> {
    let mut out = b"prism audit checkpoint\n".to_vec();
    number(&mut out, 1, checkpoint.sequence);
    bytes(&mut out, 2, &checkpoint.hash);
    if let Some(time) = &checkpoint.time {
        let mut inner = Vec::new();
        number(&mut inner, 1, time.seconds as u64);
        number(&mut inner, 2, i64::from(time.nanos) as u64);
        bytes(&mut out, 3, &inner);
    }
    text(&mut out, 4, &checkpoint.key_id);
    bytes(&mut out, 5, &checkpoint.public_key);
    number(&mut out, 7, u64::from(checkpoint.cut));
    out
}

/// A key that signs checkpoints: the server's, or that of somebody who would like to be taken for it.
pub struct Signer(Ed25519KeyPair);

impl Signer {
    /// A key of somebody's own.
    pub fn stranger() -> Self {
        Self(Ed25519KeyPair::generate().expect("a key"))
    }

    /// The key in `audit.key` of a data directory.
    pub fn of_server(data_dir: &Path) -> Self {
        let der = PrivatePkcs8KeyDer::from_pem_file(data_dir.join("audit.key")).expect("audit.key is PKCS#8 in PEM");
        Self(Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der()).expect("audit.key is an Ed25519 key"))
    }

    /// Its public key.
    pub fn public_key(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    /// The checkpoint under this key.
    #[must_use]
    pub fn sign(&self, checkpoint: AuditCheckpoint) -> AuditCheckpoint {
        let public_key = self.public_key().to_vec();
        let mut signed = AuditCheckpoint { key_id: key_id(&public_key), public_key: public_key.into(), ..checkpoint };
        signed.signature = self.0.sign(&signed_bytes(&signed)).as_ref().to_vec().into();
        verify(&signed);
        signed
    }
}

impl Admin {
    /// Has the log signed as it is now.
    pub async fn checkpoint(&self) -> AuditCheckpoint {
        let answer = self.service().create_audit_checkpoint(CreateAuditCheckpointRequest {}).await;
        let checkpoint = answer.expect("a checkpoint").into_inner().checkpoint.expect("a checkpoint");
        verify(&checkpoint);
        checkpoint
    }

    /// Everything that was signed, oldest first.
    pub async fn checkpoints(&self) -> Vec<AuditCheckpoint> {
        let (mut found, mut page_token) = (Vec::new(), None);
        loop {
            let request = ListAuditCheckpointsRequest { page_size: 1000, page_token };
            let page = self.service().list_audit_checkpoints(request).await.expect("checkpoints").into_inner();
            found.extend(page.checkpoints);
            if page.next_page_token.is_empty() {
                break;
            }
            page_token = Some(page.next_page_token);
        }
        found.iter().for_each(verify);
        found
    }

    /// The entries after one of them, oldest first, up to what was the end when it was asked.
    pub async fn entries_after(&self, entry: &AuditLogEntry) -> Vec<AuditLogEntry> {
        let request = GetAuditLogRequest { resume_after: Some(entry.id.clone()), ..GetAuditLogRequest::default() };
        within("the rest of the log", self.audit(request)).await
    }
}
