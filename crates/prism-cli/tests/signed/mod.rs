//! A log with signed checkpoints, and the part of a server that serves it.

#![allow(dead_code)] // each test uses a part of it

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use prism_proto::{
    admin::v1 as admin,
    audit_chain::{self, GENESIS},
    audit_checkpoint,
};
use tonic::Status;

use crate::fake::{Answer, Call, Reply, one};

/// An unbroken chain.
pub fn chain(length: u64) -> Vec<admin::AuditLogEntry> {
    chain_of(length, "alice")
}

/// An unbroken chain of entries of that actor.
pub fn chain_of(length: u64, actor: &str) -> Vec<admin::AuditLogEntry> {
    chain_with(length, |entry| actor.clone_into(&mut entry.actor))
}

/// An unbroken chain of entries that are changed before they are chained.
pub fn chain_with(length: u64, change: impl Fn(&mut admin::AuditLogEntry)) -> Vec<admin::AuditLogEntry> {
    let mut previous = GENESIS;
    (1..=length)
        .map(|sequence| {
            let mut entry = admin::AuditLogEntry {
                id: format!("e{sequence}"),
                // Twenty entries a moment.
                timestamp: Some(prost_types::Timestamp { seconds: 1_760_000_000 + (sequence / 20) as i64, nanos: 0 }),
                actor: "alice".to_owned(),
                operation: "WhoAmI".to_owned(),
                sequence,
                previous_hash: previous.to_vec().into(),
                ..Default::default()
            };
            change(&mut entry);
            previous = audit_chain::hash(&previous, &entry);
            entry.hash = previous.to_vec().into();
            entry
        })
        .collect()
}

/// GetAuditLog as the contract has it, without `follow` and filters: with a time, by time, otherwise by sequence.
pub fn audit_log(entries: &[admin::AuditLogEntry], request: &admin::GetAuditLogRequest) -> Reply {
    if let Some(id) = &request.resume_after {
        let after =
            entries.iter().position(|entry| entry.id == *id).ok_or_else(|| Status::not_found("no such entry"))?;
        return Ok(entries[after + 1..].iter().map(prost::Message::encode_to_vec).collect());
    }
    if request.oldest_first {
        return Ok(entries.iter().map(prost::Message::encode_to_vec).collect());
    }
    let seconds = |at: &Option<prost_types::Timestamp>| at.map(|at| (at.seconds, at.nanos));
    let before = |entry: &&admin::AuditLogEntry| {
        request.end_time.is_none() || seconds(&entry.timestamp) < seconds(&request.end_time)
    };
    let mut found: Vec<_> = entries.iter().rev().filter(before).collect();
    if request.end_time.is_some() {
        found.sort_by_key(|entry| std::cmp::Reverse((seconds(&entry.timestamp), entry.sequence)));
    }
    Ok(found.into_iter().take(request.limit as usize).map(prost::Message::encode_to_vec).collect())
}

/// A log and what was signed about it, by a key whose seed is 32 times one byte.
#[derive(Clone)]
pub struct Log {
    pub entries: Vec<admin::AuditLogEntry>,
    pub checkpoints: Vec<admin::AuditCheckpoint>,
    pub seed: u8,
}

impl Log {
    pub fn new(entries: Vec<admin::AuditLogEntry>, signed: &[u64]) -> Self {
        let mut log = Self { entries, checkpoints: Vec::new(), seed: 1 };
        for sequence in signed {
            log.sign(*sequence, false);
        }
        log
    }

    pub fn hash(&self, sequence: u64) -> Option<Vec<u8>> {
        let of_entry = self.entries.iter().find(|entry| entry.sequence == sequence).map(|entry| entry.hash.to_vec());
        let kept = || self.checkpoints.iter().find(|kept| kept.sequence == sequence).map(|kept| kept.hash.to_vec());
        of_entry.or_else(kept)
    }

    pub fn sign(&mut self, sequence: u64, cut: bool) {
        let hash = self.hash(sequence).unwrap();
        self.checkpoints.retain(|checkpoint| checkpoint.sequence != sequence);
        self.checkpoints.push(checkpoint(self.seed, sequence, hash, cut));
        self.checkpoints.sort_by_key(|checkpoint| checkpoint.sequence);
    }

    /// Removes the entries up to this sequence, signed.
    pub fn cut(&mut self, sequence: u64) {
        self.sign(sequence, true);
        self.entries.retain(|entry| entry.sequence > sequence);
    }

    /// What a server with this log answers.
    pub fn answer(&self, call: &Call) -> Answer {
        let reply = match call.method.as_str() {
            "GetAuditLog" => audit_log(&self.entries, &call.message()),
            "ListAuditCheckpoints" => one(&admin::ListAuditCheckpointsResponse {
                checkpoints: self.checkpoints.clone(),
                next_page_token: String::new(),
                total_count: self.checkpoints.len() as i32,
            }),
            "CreateAuditCheckpoint" => {
                let last = self.entries.last().unwrap();
                let checkpoint = checkpoint(self.seed, last.sequence, last.hash.to_vec(), false);
                one(&admin::CreateAuditCheckpointResponse { checkpoint: Some(checkpoint) })
            }
            "WhoAmI" => one(&admin::WhoAmIResponse { actor: "alice".to_owned(), ..Default::default() }),
            _ => Err(Status::permission_denied("no")),
        };
        let mut trailers = Vec::new();
        if let Some(newest) = self.checkpoints.last() {
            trailers.push(("prism-audit-checkpoint-bin", prost::Message::encode_to_vec(newest)));
            if let Some(witness) = call.header("prism-audit-witness") {
                let sequence = witness.parse().unwrap();
                let held = self.hash(sequence);
                let cut = self.checkpoints.iter().rfind(|kept| kept.cut && kept.sequence >= sequence);
                if let (None, Some(cut)) = (&held, cut) {
                    trailers.push(("prism-audit-cut-bin", prost::Message::encode_to_vec(cut)));
                }
                trailers.push(("prism-audit-witness-bin", held.unwrap_or_default()));
            }
        }
        Answer { reply, trailers }
    }
}

/// A checkpoint signed by the key of that seed.
pub fn checkpoint(seed: u8, sequence: u64, hash: Vec<u8>, cut: bool) -> admin::AuditCheckpoint {
    let key = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
    let public = key.public_key().as_ref().to_vec();
    let mut checkpoint = admin::AuditCheckpoint {
        sequence,
        hash: hash.into(),
        time: Some(prost_types::Timestamp { seconds: 1_760_000_000 + sequence as i64, nanos: 0 }),
        key_id: audit_checkpoint::key_id(&public),
        public_key: public.into(),
        cut,
        ..Default::default()
    };
    checkpoint.signature = key.sign(&audit_checkpoint::signed_bytes(&checkpoint)).as_ref().to_vec().into();
    checkpoint
}

/// Public key of that seed, in hexadecimal.
pub fn public_key(seed: u8) -> String {
    hex::encode(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap().public_key().as_ref())
}
