//! Entries of the audit log by what they are about, for whoever follows a lineage.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use prism_core::Result;
use prism_proto::admin::v1::AuditLogEntry;
use prost::Message as _;

use crate::Store;
use crate::tx::Tx;

/// What a lineage consists of, as resources of the audit log begin, in the order in which entries are picked; and the operations
/// on it. Reads are none: who looks at a node adds nothing to what it comes from.
const LINKS: [(&str, &[&str]); 4] = [
    ("token:", &["CreateJoinToken", "RevokeJoinToken", "ExchangeJoinToken"]),
    ("node:", &["ExchangeJoinToken", "RenewCertificate", "RevokeNode", "Link", "DrainConnections"]),
    ("certificate:", &["RevokeCertificate", "RenewCertificate", "Link"]),
    ("session:", &["TerminateSession"]),
];
/// What a node does with its certificate is about that as well.
const BY_CERTIFICATE: [&str; 2] = ["RenewCertificate", "Link"];
/// Operations whose entries name a node in their details.
const TELL_NODE: [&str; 2] = ["ExchangeJoinToken", "DrainConnections"];
/// Entries of an earlier version that are looked through in one transaction.
const CHUNK_ENTRIES: usize = 1000;

/// What came of an operation. Alarms are apart, so that no multitude of plain refusals hides one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Done = 0,
    Refused = 1,
    Alarm = 2,
}

impl Outcome {
    const ALL: [Self; 3] = [Self::Done, Self::Refused, Self::Alarm];

    fn of(entry: &AuditLogEntry) -> Self {
        match (entry.success, entry.metadata.contains_key("alarm")) {
            (true, _) => Self::Done,
            (false, false) => Self::Refused,
            (false, true) => Self::Alarm,
        }
    }
}

/// Ids of audit entries, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineageEntries {
    /// The ids.
    pub ids: Vec<String>,
    /// Whether there are more.
    pub more: bool,
}

/// The operations on a link, and the place of its kind.
fn operations_on(link: &str) -> Option<(usize, &'static [&'static str])> {
    let kinds = LINKS.iter().enumerate();
    kinds.filter(|(_, (kind, _))| link.starts_with(kind)).map(|(place, (_, operations))| (place, *operations)).next()
}

impl Store {
    /// Remembers what the entries that an earlier version wrote are about. What a crash interrupts begins anew at the next start.
    pub(crate) async fn index_earlier_lineage(&self) -> Result<()> {
        let wanted = |tx: &mut Tx<'_>| tx.count("SELECT count(*) FROM facts WHERE name = 'lineage_to_index'", []);
        if self.write(wanted).await? == 0 {
            return Ok(());
        }
        let operations: BTreeSet<&str> = LINKS.iter().flat_map(|(_, operations)| *operations).copied().collect();
        for operation in operations {
            let mut through = Some(0);
            while let Some(after) = through {
                through = self.write(move |tx| tx.index_earlier(operation, after)).await?;
            }
        }
        self.write(|tx| tx.execute("DELETE FROM facts WHERE name = 'lineage_to_index'", []).map(drop)).await
    }
}

impl Tx<'_> {
    /// Looks through the next entries of an operation; the sequence of the last of them.
    fn index_earlier(&self, operation: &str, after: i64) -> Result<Option<i64>> {
        let sql = "SELECT sequence, entry FROM audit WHERE operation = ?1 AND sequence > ?2 ORDER BY sequence LIMIT ?3";
        let entries = self.all(sql, (operation, after, CHUNK_ENTRIES as i64), |row| {
            Ok((row.get::<_, i64>(0)?, AuditLogEntry::decode(row.get_ref(1)?.as_bytes()?)))
        })?;
        for (sequence, entry) in &entries {
            match entry {
                Ok(entry) => self.index_lineage(*sequence, entry)?,
                // Somebody changed the log, which its verification tells. What else it says is still found.
                Err(error) => tracing::error!(sequence, %error, "an entry of the audit log cannot be read"),
            }
        }
        Ok(entries.last().map(|(sequence, _)| *sequence))
    }

    /// Remembers what an entry is about, if that is part of a lineage.
    pub(crate) fn index_lineage(&self, sequence: i64, entry: &AuditLogEntry) -> Result<()> {
        let operation = entry.operation.as_str();
        if operations_on(&entry.resource).is_some_and(|(_, operations)| operations.contains(&operation)) {
            self.index_link(&entry.resource, sequence, entry)?;
        }
        if BY_CERTIFICATE.contains(&operation) && !entry.credential_id.is_empty() {
            self.index_link(&format!("certificate:{}", entry.credential_id), sequence, entry)?;
        }
        if TELL_NODE.contains(&operation)
            && let Some(node_id) = entry.metadata.get("node_id")
        {
            self.index_link(&format!("node:{node_id}"), sequence, entry)?;
        }
        Ok(())
    }

    fn index_link(&self, link: &str, sequence: i64, entry: &AuditLogEntry) -> Result<()> {
        self.execute(
            "INSERT OR IGNORE INTO lineage_entries (link, operation, outcome, sequence) VALUES (?1, ?2, ?3, ?4)",
            (link, &entry.operation, Outcome::of(entry) as i64, sequence),
        )?;
        Ok(())
    }

    /// Forgets what the removed entries up to `through` were about.
    pub(crate) fn cut_lineage(&self, through: i64) -> Result<()> {
        self.execute("DELETE FROM lineage_entries WHERE sequence <= ?1", [through])?;
        Ok(())
    }

    /// Entries about `links`, such as `token:…`, at most `limit`, newest first. Where there are more, the newest about each link by
    /// each operation, done, refused or with an alarm, is picked before the second newest of any, so that nobody can push one kind of entry out of
    /// sight with a multitude of another.
    pub fn lineage_entries(&self, links: &[String], limit: usize) -> Result<LineageEntries> {
        let sql = "SELECT a.sequence, a.id FROM lineage_entries e JOIN audit a ON a.sequence = e.sequence
            WHERE e.link = ?1 AND e.operation = ?2 AND e.outcome = ?3 ORDER BY e.sequence DESC LIMIT ?4";
        let mut picks = BTreeMap::new();
        for link in links {
            let Some((kind, operations)) = operations_on(link) else { continue };
            for operation in operations {
                for outcome in Outcome::ALL {
                    let newest = self.all(sql, (link, operation, outcome as i64, limit as i64 + 1), |row| {
                        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
                    })?;
                    for (place, (sequence, id)) in newest.into_iter().enumerate() {
                        let order = (place, kind, outcome);
                        let pick = picks.entry(Reverse(sequence)).or_insert((order, id));
                        pick.0 = pick.0.min(order);
                    }
                }
            }
        }
        let mut picked: Vec<_> = picks.into_iter().map(|(sequence, (order, id))| (order, sequence, id)).collect();
        let more = picked.len() > limit;
        picked.sort_unstable();
        picked.truncate(limit);
        picked.sort_unstable_by_key(|(_, sequence, _)| *sequence);
        Ok(LineageEntries { ids: picked.into_iter().map(|(_, _, id)| id).collect(), more })
    }
}

#[cfg(test)]
mod tests {
    use prism_core::limits::SessionPolicy;
    use prism_core::secret::Random;
    use prism_core::{Clock, UnixMillis};

    use super::*;
    use crate::{EntryDraft, Store};

    fn entry(operation: &str, resource: &str, credential_id: &str) -> EntryDraft {
        let (operation, resource) = (operation.to_owned(), resource.to_owned());
        EntryDraft { operation, resource, credential_id: credential_id.to_owned(), ..EntryDraft::default() }
    }

    fn refused(mut draft: EntryDraft, alarm: bool) -> EntryDraft {
        draft.error = Some("no".to_owned());
        if alarm {
            draft.metadata.insert("alarm".to_owned(), "TOKEN_REUSE".to_owned());
        }
        draft
    }

    #[tokio::test]
    async fn entries_are_found_by_their_link_however_many_others_there_are() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(UnixMillis(1_760_000_000_000)));
        let store = Store::open(folder.path(), SessionPolicy::default(), clock, Random::system()).await.unwrap();
        let mut drain = entry("DrainConnections", "sessions", "");
        drain.metadata.insert("node_id".to_owned(), "n1".to_owned());
        let told = [
            entry("CreateJoinToken", "token:t1", ""),
            entry("ExchangeJoinToken", "token:t1", ""),
            refused(entry("ExchangeJoinToken", "token:t1", ""), true),
            entry("RenewCertificate", "node:n1", "c1"),
            entry("Link", "node:n1", "c1"),
            refused(entry("Link", "nodes", "c2"), false),
            entry("TerminateSession", "session:s1", ""),
            drain,
            entry("RevokeNode", "node:n1", ""),
        ];
        let others = [
            // What only looks, and what is another's.
            entry("GetNode", "node:n1", ""),
            entry("GetLineage", "token:t1", "c1"),
            entry("GetSession", "session:s1", ""),
            entry("CreateJoinToken", "token:t11", ""),
            entry("TerminateSession", "session:s2", ""),
            entry("CreateConfig", "config:token:t1", ""),
        ];
        let expected = store
            .write(move |tx| {
                let mut ids = told.into_iter().map(|draft| tx.append_entry(draft)).collect::<Result<Vec<_>>>()?;
                others.into_iter().try_for_each(|draft| tx.append_entry(draft).map(drop))?;
                ids.reverse();
                Ok(ids)
            })
            .await
            .unwrap();
        let links = ["token:t1", "node:n1", "certificate:c1", "certificate:c2", "session:s1"].map(ToOwned::to_owned);
        let found = |limit: usize| {
            let links = links.clone();
            store.write(move |tx| tx.lineage_entries(&links, limit))
        };
        assert_eq!(found(100).await.unwrap(), LineageEntries { ids: expected.clone(), more: false });
        assert_eq!(found(9).await.unwrap(), LineageEntries { ids: expected.clone(), more: false });
        let few = found(8).await.unwrap();
        assert!(few.more && few.ids.len() == 8, "{few:?}");

        // Whoever can have one of them written as often as he likes hides none of the others.
        store
            .write(|tx| {
                for _ in 0..200 {
                    tx.append_entry(refused(entry("ExchangeJoinToken", "token:t1", ""), false))?;
                    tx.append_entry(entry("Link", "node:n1", "c1"))?;
                }
                Ok(())
            })
            .await
            .unwrap();
        let flooded = found(100).await.unwrap();
        assert!(flooded.more && flooded.ids.len() == 100);
        // The Link of c1 is one of many now.
        let missing: Vec<_> = expected.iter().filter(|id| !flooded.ids.contains(id)).collect();
        assert_eq!(missing, [&expected[4]]);

        let through = store.write(|tx| tx.last_sequence()).await.unwrap();
        store.write(move |tx| tx.cut_lineage(through)).await.unwrap();
        assert_eq!(found(100).await.unwrap(), LineageEntries::default());
    }
}
