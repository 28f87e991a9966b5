//! Snapshots: what is between two of them, and how a node puts one together.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use prism_core::access::{ClientAccess, ClientGrant, ClientKeyAccess};
use prism_core::control::{ConfigRevision, Maintenance, Namespace, NamespaceStatus, Quota, Snapshot};
use prism_core::subject::Subject;
use prism_core::{ConfigName, NamespaceName, Result, UnixMillis};
use prism_proto::cluster::v1 as wire;
use wire::snapshot_item::Item;

use super::{
    at, bad, bounded, config_from_wire, config_to_wire, grant_from_wire, grant_to_wire, grants_from_wire, millis, need,
    scope_from_wire, scope_to_wire,
};
use crate::bounds::{MAX_ITEMS, MAX_SNAPSHOT_ITEMS};

/// What turns `before` into `after`. What both share is not looked into.
pub fn items_between(before: &Snapshot, after: &Snapshot) -> Result<Vec<wire::SnapshotItem>> {
    let mut items = Vec::new();
    configs_between(before, after, &mut items)?;
    for (name, namespace) in &after.namespaces {
        if before.namespaces.get(name).is_none_or(|known| !Arc::ptr_eq(known, namespace) && known != namespace) {
            items.push(Item::Namespace(namespace_to_wire(namespace)));
        }
    }
    items.extend(gone(&before.namespaces, &after.namespaces).map(|name| Item::NoNamespace(name.to_string())));
    if before.maintenance != after.maintenance {
        items.push(match &after.maintenance {
            Some(maintenance) => Item::Maintenance(maintenance_to_wire("", maintenance)),
            None => Item::NoMaintenance(String::new()),
        });
    }
    for (name, maintenance) in &after.namespace_maintenance {
        if before.namespace_maintenance.get(name) != Some(maintenance) {
            items.push(Item::Maintenance(maintenance_to_wire(name.as_str(), maintenance)));
        }
    }
    let over = gone(&before.namespace_maintenance, &after.namespace_maintenance);
    items.extend(over.map(|name| Item::NoMaintenance(name.to_string())));
    if before.drains != after.drains {
        let scopes = after.drains.iter().take(MAX_ITEMS).map(scope_to_wire).collect();
        items.push(Item::Drains(wire::Drains { scopes }));
    }
    if !Arc::ptr_eq(&before.client_access, &after.client_access) {
        access_between(&before.client_access, &after.client_access, &mut items);
    }
    Ok(items.into_iter().map(|item| wire::SnapshotItem { item: Some(item) }).collect())
}

fn configs_between(before: &Snapshot, after: &Snapshot, items: &mut Vec<Item>) -> Result<()> {
    // Both are in order of names: one walk over the two, side by side.
    let (mut old, mut new) = ((&before.configs).into_iter().peekable(), (&after.configs).into_iter().peekable());
    loop {
        match (old.peek(), new.peek()) {
            (None, None) => return Ok(()),
            (Some((gone, _)), None) => {
                items.push(Item::NoConfig(gone.to_string()));
                old.next();
            }
            (Some((gone, _)), Some((name, _))) if gone < name => {
                items.push(Item::NoConfig(gone.to_string()));
                old.next();
            }
            (Some((known, one)), Some((name, other))) if known == name => {
                if !Arc::ptr_eq(one, other) && one.revision != other.revision {
                    items.push(Item::Config(config_entry(other)?));
                }
                old.next();
                new.next();
            }
            (_, Some((_, revision))) => {
                items.push(Item::Config(config_entry(revision)?));
                new.next();
            }
        }
    }
}

fn access_between(before: &ClientAccess, after: &ClientAccess, items: &mut Vec<Item>) {
    for (id, key) in &after.keys {
        if before.keys.get(id) != Some(key) {
            items.push(Item::ClientKey(wire::ClientKeyEntry {
                id: id.clone(),
                grant: Some(grant_to_wire(&key.grant)),
                expires_at_ms: millis(key.expires_at),
            }));
        }
    }
    items.extend(gone(&before.keys, &after.keys).map(|id| Item::NoClientKey(id.clone())));
    for (subject, grants) in &after.bindings {
        if before.bindings.get(subject) != Some(grants) {
            items.push(Item::ClientBinding(wire::ClientBindingEntry {
                subject: subject.to_string(),
                grants: grants.iter().map(grant_to_wire).collect(),
            }));
        }
    }
    let unbound = gone(&before.bindings, &after.bindings);
    items.extend(unbound.map(|subject| Item::NoClientBinding(subject.to_string())));
    let (old, new) = (&before.revoked_certificates, &after.revoked_certificates);
    items.extend(new.difference(old).map(|one| Item::RevokedCertificate(one.clone())));
    items.extend(old.difference(new).map(|one| Item::NoRevokedCertificate(one.clone())));
}

fn gone<'a, K: std::hash::Hash + Eq, V>(
    before: &'a HashMap<K, V>,
    after: &HashMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    before.keys().filter(|name| !after.contains_key(*name))
}

fn config_entry(revision: &ConfigRevision) -> Result<wire::ConfigEntry> {
    Ok(wire::ConfigEntry {
        revision: revision.revision,
        config_json: config_to_wire(&revision.config)?,
        created_at_ms: revision.created_at.0,
        updated_at_ms: revision.updated_at.0,
    })
}

fn namespace_to_wire(namespace: &Namespace) -> wire::NamespaceEntry {
    wire::NamespaceEntry {
        name: namespace.name.to_string(),
        status: namespace.status.name().to_owned(),
        max_sessions: namespace.quota.max_sessions,
        max_storage_bytes: namespace.quota.max_storage_bytes,
        max_rps: namespace.quota.max_rps,
        generation: namespace.generation,
    }
}

fn namespace_from_wire(entry: wire::NamespaceEntry) -> Result<Namespace> {
    let status = NamespaceStatus::ALL.into_iter().find(|status| status.name() == entry.status);
    Ok(Namespace {
        name: NamespaceName::try_from(entry.name).map_err(bad)?,
        status: status.ok_or_else(|| bad(format_args!("{:?} is no status of a namespace", entry.status)))?,
        quota: Quota {
            max_sessions: entry.max_sessions,
            max_storage_bytes: entry.max_storage_bytes,
            max_rps: entry.max_rps,
        },
        generation: entry.generation,
    })
}

fn maintenance_to_wire(namespace: &str, maintenance: &Maintenance) -> wire::MaintenanceEntry {
    wire::MaintenanceEntry {
        namespace: namespace.to_owned(),
        message: maintenance.message.clone(),
        started_at_ms: maintenance.started_at.0,
        ends_at_ms: millis(maintenance.ends_at),
        allow_reads: maintenance.allow_reads,
    }
}

/// A snapshot that is being put together from its parts.
#[derive(Debug)]
pub struct Builder {
    next: Snapshot,
    access: Option<ClientAccess>,
    revoked: Option<HashSet<String>>,
    items: usize,
    /// Milliseconds to add to the controller's times to have this process's.
    offset: i64,
}

impl Builder {
    /// Begins with what is there, or with nothing.
    pub fn new(base: Option<&Snapshot>, offset: i64) -> Self {
        let next = base.cloned().unwrap_or_default();
        let access = base.is_none().then(ClientAccess::default);
        Self { next, access, revoked: None, items: 0, offset }
    }

    /// Takes over one thing.
    pub fn add(&mut self, item: wire::SnapshotItem) -> Result<()> {
        self.items += 1;
        if self.items > MAX_SNAPSHOT_ITEMS {
            return Err(bad(format_args!("a snapshot has more than {MAX_SNAPSHOT_ITEMS} items")));
        }
        // Of a kind that this version does not know.
        let Some(item) = item.item else { return Ok(()) };
        let next = &mut self.next;
        match item {
            Item::Config(entry) => {
                let config = Arc::new(config_from_wire(&entry.config_json)?);
                let revision = ConfigRevision {
                    revision: entry.revision,
                    created_at: UnixMillis(entry.created_at_ms),
                    updated_at: UnixMillis(entry.updated_at_ms),
                    config: Arc::clone(&config),
                };
                next.configs.insert_cow(config.name.clone(), Arc::new(revision));
            }
            Item::NoConfig(name) => {
                next.configs.remove_cow(&ConfigName::try_from(name).map_err(bad)?);
            }
            Item::Namespace(entry) => {
                let namespace = namespace_from_wire(entry)?;
                next.namespaces.insert(namespace.name.clone(), Arc::new(namespace));
            }
            Item::NoNamespace(name) => {
                next.namespaces.remove(name.as_str());
            }
            Item::Maintenance(entry) => self.maintenance(entry)?,
            Item::NoMaintenance(name) if name.is_empty() => next.maintenance = None,
            Item::NoMaintenance(name) => {
                next.namespace_maintenance.remove(name.as_str());
            }
            Item::Drains(drains) => {
                let scopes = bounded("drains", drains.scopes, MAX_ITEMS)?;
                next.drains = scopes.into_iter().map(scope_from_wire).collect::<Result<_>>()?;
            }
            Item::ClientKey(entry) => {
                let grant = grant_from_wire(need("grant", entry.grant)?)?;
                let ends = at(entry.expires_at_ms).map(|end| self.here(end));
                self.access().keys.insert(entry.id, ClientKeyAccess { grant, expires_at: ends });
            }
            Item::NoClientKey(id) => drop(self.access().keys.remove(&id)),
            Item::ClientBinding(entry) => {
                let subject = Subject::parse("subject", &entry.subject)?;
                let grants: Vec<ClientGrant> = grants_from_wire(entry.grants)?;
                self.access().bindings.insert(subject, grants);
            }
            Item::NoClientBinding(subject) => {
                let subject = Subject::parse("subject", &subject)?;
                self.access().bindings.remove(&subject);
            }
            Item::RevokedCertificate(one) => drop(self.revoked().insert(one)),
            Item::NoRevokedCertificate(one) => drop(self.revoked().remove(&one)),
        }
        Ok(())
    }

    fn maintenance(&mut self, entry: wire::MaintenanceEntry) -> Result<()> {
        let maintenance = Arc::new(Maintenance {
            message: entry.message,
            started_at: self.here(UnixMillis(entry.started_at_ms)),
            ends_at: at(entry.ends_at_ms).map(|end| self.here(end)),
            allow_reads: entry.allow_reads,
        });
        if entry.namespace.is_empty() {
            self.next.maintenance = Some(maintenance);
        } else {
            let name = NamespaceName::try_from(entry.namespace).map_err(bad)?;
            self.next.namespace_maintenance.insert(name, maintenance);
        }
        Ok(())
    }

    fn here(&self, at: UnixMillis) -> UnixMillis {
        UnixMillis(at.0.saturating_add(self.offset))
    }

    fn access(&mut self) -> &mut ClientAccess {
        self.access.get_or_insert_with(|| ClientAccess::clone(&self.next.client_access))
    }

    fn revoked(&mut self) -> &mut HashSet<String> {
        if self.revoked.is_none() {
            self.revoked = Some(HashSet::clone(&self.access().revoked_certificates));
        }
        self.revoked.get_or_insert_default()
    }

    /// The snapshot, numbered `revision`.
    pub fn finish(mut self, revision: u64) -> Snapshot {
        if let Some(revoked) = self.revoked.take() {
            self.access().revoked_certificates = Arc::new(revoked);
        }
        if let Some(access) = self.access.take() {
            self.next.client_access = Arc::new(access);
        }
        self.next.revision = revision;
        self.next
    }
}
