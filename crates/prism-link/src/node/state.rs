//! The form in which a node writes down its state and its journal.

use std::collections::BTreeMap;
use std::sync::Arc;

use prism_core::control::Snapshot;
use prism_core::session::{EndReason, SessionId, SessionRecord, SessionReport};
use prism_core::{NamespaceName, NodeId, Result};
use prism_proto::cluster::v1 as wire;
use prost::Message;

use crate::convert::{
    Builder, bad, id_from_wire, id_to_wire, items_between, need, record_from_wire, record_to_wire, report_from_wire,
    report_to_wire,
};
use crate::shares::Share;

/// Begins a state; the number is the version of its form.
const MAGIC: &[u8; 16] = b"prism-node-st-01";
/// Before the payload: the magic, CRC-32 and length of the payload.
const HEADER: usize = 16 + 4 + 8;
/// Before a record of the journal: CRC-32 and length.
const RECORD_HEADER: usize = 4 + 4;
/// Largest record of the journal, in bytes.
const MAX_RECORD: usize = 64 * 1024;

/// What a node needs to go on without a controller. Times are those of its own clock.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    /// Epoch and revision that the controller gave it.
    pub position: (u64, u64),
    /// The sessions that it holds.
    pub held: BTreeMap<SessionId, SessionRecord>,
    /// Ends that no controller knows yet.
    pub ends: BTreeMap<SessionId, (SessionReport, EndReason)>,
    /// Reports that no controller knows yet.
    pub reports: BTreeMap<SessionId, SessionReport>,
    /// Its shares.
    pub shares: BTreeMap<NamespaceName, Share>,
    /// Generations of the namespaces that it may have data of: the earliest, where there was more than one of a name. What is
    /// deleted stays here until the controller has it removed.
    pub spaces: BTreeMap<NamespaceName, i64>,
    /// Generations of namespaces whose data was removed while the snapshot still had them.
    pub removed: BTreeMap<NamespaceName, i64>,
    /// What a controller said when it turned this node away as a revoked one; `None` = it is not.
    pub revoked: Option<String>,
    /// The answer of a controller that the shares are from.
    pub proof: Option<wire::Shares>,
}

/// A namespace that the node may have data of.
#[derive(Clone, PartialEq, Message)]
struct Space {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(int64, tag = "2")]
    generation: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Payload {
    #[prost(string, tag = "1")]
    node_id: String,
    #[prost(uint64, tag = "3")]
    epoch: u64,
    #[prost(uint64, tag = "4")]
    revision: u64,
    #[prost(message, repeated, tag = "5")]
    snapshot: Vec<wire::SnapshotItem>,
    #[prost(message, repeated, tag = "6")]
    held: Vec<wire::SessionEntry>,
    #[prost(message, repeated, tag = "7")]
    ends: Vec<wire::EndAsk>,
    #[prost(message, repeated, tag = "8")]
    reports: Vec<wire::SessionReportEntry>,
    #[prost(message, repeated, tag = "9")]
    shares: Vec<wire::NamespaceShare>,
    #[prost(message, repeated, tag = "10")]
    spaces: Vec<Space>,
    #[prost(string, optional, tag = "11")]
    revoked: Option<String>,
    #[prost(message, optional, tag = "12")]
    proof: Option<wire::Shares>,
    #[prost(message, repeated, tag = "13")]
    removed: Vec<Space>,
}

/// What happened since the state was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session ended here, and no controller knows it yet.
    Ended(SessionReport, EndReason),
    /// A session is over, and the controller knows it.
    Gone(SessionId),
    /// A session is being terminated gently, with the operator's reason.
    Terminating(SessionId, String),
    /// A controller has turned the node away as a revoked one, with these words.
    Revoked(String),
    /// A controller has taken the node back.
    Reinstated,
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(message, optional, tag = "1")]
    ended: Option<wire::EndAsk>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    gone: Option<bytes::Bytes>,
    #[prost(message, optional, tag = "3")]
    terminating: Option<wire::KnownSession>,
    #[prost(string, optional, tag = "4")]
    revoked: Option<String>,
    #[prost(bool, tag = "5")]
    reinstated: bool,
}

/// An end on the wire.
pub fn end_to_wire(last: &SessionReport, reason: EndReason) -> wire::EndAsk {
    wire::EndAsk { last: Some(report_to_wire(last)), reason: reason.name().to_owned() }
}

/// The same, the other way.
pub fn end_from_wire(end: wire::EndAsk) -> Result<(SessionReport, EndReason)> {
    let reason = EndReason::ALL.into_iter().find(|reason| reason.name() == end.reason);
    let reason = reason.ok_or_else(|| bad(format_args!("{:?} is no reason to end", end.reason)))?;
    Ok((report_from_wire(&need("last", end.last)?)?, reason))
}

impl State {
    /// The bytes to write for `node`.
    pub fn encode(&self, node: &NodeId) -> Result<Vec<u8>> {
        let share = |(name, share): (&NamespaceName, &Share)| wire::NamespaceShare {
            namespace: name.to_string(),
            millis: share.leased,
            alone_millis: share.alone,
        };
        let space =
            |(name, generation): (&NamespaceName, &i64)| Space { namespace: name.to_string(), generation: *generation };
        let payload = Payload {
            node_id: node.to_string(),
            epoch: self.position.0,
            revision: self.position.1,
            snapshot: items_between(&Snapshot::default(), &self.snapshot)?,
            held: self.held.values().map(record_to_wire).collect::<Result<_>>()?,
            ends: self.ends.values().map(|(last, reason)| end_to_wire(last, *reason)).collect(),
            reports: self.reports.values().map(report_to_wire).collect(),
            shares: self.shares.iter().map(share).collect(),
            spaces: self.spaces.iter().map(space).collect(),
            removed: self.removed.iter().map(space).collect(),
            revoked: self.revoked.clone(),
            proof: self.proof.clone(),
        };
        let length = payload.encoded_len();
        let mut out = Vec::with_capacity(HEADER + length);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(length as u64).to_be_bytes());
        payload.encode(&mut out).map_err(prism_core::Error::internal)?;
        let checksum = crc32fast::hash(&out[HEADER..]);
        out[16..20].copy_from_slice(&checksum.to_be_bytes());
        Ok(out)
    }

    /// Reads what `node` wrote; the error says what is wrong with it.
    pub fn decode(bytes: &[u8], node: &NodeId) -> Result<Self, String> {
        let (header, payload) = bytes.split_at_checked(HEADER).ok_or("it is cut off")?;
        if header[..16] != *MAGIC {
            return Err("it is not a node's state, or of another version of Prism".to_owned());
        }
        let checksum = u32::from_be_bytes(header[16..20].try_into().unwrap_or_default());
        let length = u64::from_be_bytes(header[20..28].try_into().unwrap_or_default());
        if payload.len() as u64 != length {
            return Err(format!("it has {} bytes of {length}", payload.len()));
        }
        if crc32fast::hash(payload) != checksum {
            return Err("its checksum is wrong".to_owned());
        }
        let payload = Payload::decode(payload).map_err(|error| error.to_string())?;
        if payload.node_id != node.as_str() {
            return Err(format!("it is of the node {:?}", payload.node_id));
        }
        Self::of(payload).map_err(|error| error.message().to_owned())
    }

    fn of(payload: Payload) -> Result<Self> {
        let mut builder = Builder::new(None, 0);
        payload.snapshot.into_iter().try_for_each(|item| builder.add(item))?;
        let held = payload.held.into_iter().map(record_from_wire);
        let ends = payload.ends.into_iter().map(end_from_wire);
        let reports = payload.reports.iter().map(report_from_wire);
        let share = |share: wire::NamespaceShare| {
            let name = NamespaceName::try_from(share.namespace).map_err(bad)?;
            Ok((name, Share { leased: share.millis, alone: share.alone_millis }))
        };
        let space = |space: Space| Ok((NamespaceName::try_from(space.namespace).map_err(bad)?, space.generation));
        let snapshot = builder.finish(1);
        let mut spaces: BTreeMap<_, _> = payload.spaces.into_iter().map(space).collect::<Result<_>>()?;
        let removed: BTreeMap<_, _> = payload.removed.into_iter().map(space).collect::<Result<_>>()?;
        // An earlier version did not write them; what it served by may have data.
        for (name, namespace) in &snapshot.namespaces {
            if removed.get(name).is_none_or(|removed| namespace.generation > *removed) {
                spaces.entry(name.clone()).or_insert(namespace.generation);
            }
        }
        Ok(Self {
            spaces,
            removed,
            snapshot: Arc::new(snapshot),
            position: (payload.epoch, payload.revision),
            held: held.map(|record| record.map(|record| (record.id, record))).collect::<Result<_>>()?,
            ends: ends.map(|end| end.map(|end| (end.0.id, end))).collect::<Result<_>>()?,
            reports: reports.map(|report| report.map(|report| (report.id, report))).collect::<Result<_>>()?,
            shares: payload.shares.into_iter().map(share).collect::<Result<_>>()?,
            revoked: payload.revoked,
            proof: payload.proof,
        })
    }

    /// Takes over what happened since. A session that ended stays ended, whatever else is written of it.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Ended(last, reason) => {
                self.held.remove(&last.id);
                self.reports.remove(&last.id);
                self.ends.insert(last.id, (last, reason));
            }
            Event::Gone(id) => {
                self.held.remove(&id);
                self.reports.remove(&id);
                self.ends.remove(&id);
            }
            Event::Terminating(id, reason) => {
                if let Some(record) = self.held.get_mut(&id) {
                    record.terminating = Some(reason);
                }
            }
            // Its sessions are the controllers' from here on. What was promised before is still to be handed over.
            Event::Revoked(why) => {
                self.held.clear();
                self.reports.clear();
                self.revoked = Some(why);
            }
            Event::Reinstated => self.revoked = None,
        }
    }
}

impl Event {
    /// The bytes to append.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut record = Record::default();
        match self {
            Self::Ended(last, reason) => record.ended = Some(end_to_wire(last, *reason)),
            Self::Gone(id) => record.gone = Some(id_to_wire(*id)),
            Self::Terminating(id, reason) => {
                let (id, terminating) = (id_to_wire(*id), Some(reason.clone()));
                record.terminating = Some(wire::KnownSession { id, expires_at_ms: 0, terminating });
            }
            Self::Revoked(why) => record.revoked = Some(why.clone()),
            Self::Reinstated => record.reinstated = true,
        }
        let payload = record.encode_to_vec();
        out.extend_from_slice(&crc32fast::hash(&payload).to_be_bytes());
        out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        out.extend_from_slice(&payload);
    }

    /// Reads a journal. What follows the last whole record was never confirmed to anybody; how many bytes that are is returned
    /// with the events.
    pub fn decode_all(mut journal: &[u8]) -> (Vec<Self>, usize) {
        let mut events = Vec::new();
        while let Some((event, rest)) = Self::decode(journal) {
            events.push(event);
            journal = rest;
        }
        (events, journal.len())
    }

    fn decode(journal: &[u8]) -> Option<(Self, &[u8])> {
        let (header, rest) = journal.split_at_checked(RECORD_HEADER)?;
        let checksum = u32::from_be_bytes(header[..4].try_into().ok()?);
        let length = u32::from_be_bytes(header[4..].try_into().ok()?) as usize;
        let (payload, rest) = rest.split_at_checked(length).filter(|_| length <= MAX_RECORD)?;
        let record = Record::decode(payload).ok().filter(|_| crc32fast::hash(payload) == checksum)?;
        let event = match record {
            Record { ended: Some(end), .. } => {
                let (last, reason) = end_from_wire(end).ok()?;
                Self::Ended(last, reason)
            }
            Record { gone: Some(id), .. } => Self::Gone(id_from_wire(&id).ok()?),
            Record { terminating: Some(known), .. } => {
                Self::Terminating(id_from_wire(&known.id).ok()?, known.terminating.unwrap_or_default())
            }
            Record { revoked: Some(why), .. } => Self::Revoked(why),
            Record { reinstated: true, .. } => Self::Reinstated,
            _ => return None,
        };
        Some((event, rest))
    }
}

/// Whether a config needs something made before it can be used.
pub fn needs_preparation(config: &prism_core::config::Config) -> bool {
    config.backend.options.contains_key("schema")
}
