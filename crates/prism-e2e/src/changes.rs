//! Admin changes, and whether the audit log and the state tell the same of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prism_proto::admin::v1 as wire;
use prism_proto::admin::v1::AuditLogEntry;
use prism_proto::config::v1::ClientConfig;
use tonic::{Request, Response, Status};

use crate::admin::Admin;
use crate::site::unique;

const CONFIG_CHANGES: [&str; 3] = ["CreateConfig", "UpdateConfig", "DeleteConfig"];
const NAMESPACE_CHANGES: [&str; 2] = ["CreateNamespace", "UpdateNamespace"];

/// Changes by request id.
#[derive(Debug, Default)]
pub struct Changes(Mutex<BTreeMap<String, Fate>>);

/// What the caller knows of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It was not answered.
    Open,
    /// It was done.
    Acknowledged,
    /// It was not done.
    Refused,
}

impl Changes {
    /// Makes a change under a request id of its own.
    pub async fn make<T, R>(
        &self,
        request: T,
        call: impl AsyncFnOnce(Request<T>) -> Result<Response<R>, Status>,
    ) -> Result<R, Status> {
        let id = unique("change");
        self.note(&id, Fate::Open);
        let mut request = Request::new(request);
        request.metadata_mut().insert("x-request-id", id.parse().expect("a header value"));
        let answer = call(request).await?.into_inner();
        self.note(&id, Fate::Acknowledged);
        Ok(answer)
    }

    fn note(&self, id: &str, fate: Fate) {
        self.all().insert(id.to_owned(), fate);
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Fate>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that failed so far was clearly refused: none of it may have been done.
    pub fn failed_ones_were_refused(&self) {
        self.all().values_mut().filter(|fate| **fate == Fate::Open).for_each(|fate| *fate = Fate::Refused);
    }

    /// Creates a config.
    pub async fn create_config(&self, admin: &Admin, config: ClientConfig) -> Result<(), Status> {
        let request = wire::CreateConfigRequest { config: Some(config), ..Default::default() };
        self.make(request, async |request| admin.service().create_config(request).await).await.map(drop)
    }

    /// Updates a config.
    pub async fn update_config(&self, admin: &Admin, config: ClientConfig) -> Result<(), Status> {
        let request =
            wire::UpdateConfigRequest { name: config.name.clone(), config: Some(config), ..Default::default() };
        self.make(request, async |request| admin.service().update_config(request).await).await.map(drop)
    }

    /// Deletes a config.
    pub async fn delete_config(&self, admin: &Admin, name: &str) -> Result<(), Status> {
        let request = wire::DeleteConfigRequest { name: name.to_owned(), ..Default::default() };
        self.make(request, async |request| admin.service().delete_config(request).await).await.map(drop)
    }

    /// Creates a namespace whose quota `max_rps` is `mark`, by which the change is known again.
    pub async fn create_namespace(&self, admin: &Admin, name: &str, mark: i64) -> Result<(), Status> {
        let quota = Some(wire::NamespaceQuota { max_rps: mark, ..Default::default() });
        let request = wire::CreateNamespaceRequest { name: name.to_owned(), quota, ..Default::default() };
        self.make(request, async |request| admin.service().create_namespace(request).await).await.map(drop)
    }

    /// Sets the quota `max_rps` of a namespace.
    pub async fn update_namespace(&self, admin: &Admin, name: &str, mark: i64) -> Result<(), Status> {
        let quota = Some(wire::NamespaceQuota { max_rps: mark, ..Default::default() });
        let request = wire::UpdateNamespaceRequest { name: name.to_owned(), quota, ..Default::default() };
        self.make(request, async |request| admin.service().update_namespace(request).await).await.map(drop)
    }

    /// How many were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.all().values().filter(|fate| **fate == Fate::Acknowledged).count()
    }

    /// Every acknowledged change has exactly one success entry, a refused one has none, any other at most one.
    pub fn verify(&self, log: &[AuditLogEntry]) {
        let mut entries: BTreeMap<&str, usize> = BTreeMap::new();
        for entry in log.iter().filter(|entry| entry.success) {
            *entries.entry(&entry.request_id).or_default() += 1;
        }
        for (id, fate) in &*self.all() {
            let found = entries.get(id.as_str()).copied().unwrap_or(0);
            let right = match fate {
                Fate::Open => found <= 1,
                Fate::Acknowledged => found == 1,
                Fate::Refused => found == 0,
            };
            assert!(right, "{id}: {fate:?}, and {found} success entries");
        }
    }
}

/// What the success entries of a log say there should be.
#[derive(Debug, Default)]
pub struct State {
    /// Version of every accepted revision, by config and number; revisions of deleted configs too.
    pub revisions: BTreeMap<String, BTreeMap<i64, String>>,
    /// Configs that are there.
    pub configs: BTreeSet<String>,
    /// `max_rps` of every namespace after each of its changes.
    pub namespaces: BTreeMap<String, Vec<i64>>,
}

impl State {
    /// Carries out what the log says was done; panics where one entry does not follow from those before it.
    pub fn replay(log: &[AuditLogEntry]) -> Self {
        let mut state = Self::default();
        for entry in log.iter().filter(|entry| entry.success && !entry.metadata.contains_key("validate_only")) {
            let name = entry.resource.split_once(':').map_or("", |(_, name)| name).to_owned();
            if CONFIG_CHANGES.contains(&entry.operation.as_str()) {
                state.config(name, entry);
            } else if NAMESPACE_CHANGES.contains(&entry.operation.as_str()) {
                let mark = entry.metadata["max_rps"].parse().expect("a number");
                let history = state.namespaces.entry(name).or_default();
                assert_eq!(history.is_empty(), entry.operation == "CreateNamespace", "{entry:?}");
                history.push(mark);
            } else if entry.operation == "DeleteNamespace" {
                assert!(state.namespaces.remove(&name).is_some(), "{entry:?}");
            }
        }
        state
    }

    fn config(&mut self, name: String, entry: &AuditLogEntry) {
        let revision: i64 = entry.metadata["revision"].parse().expect("a number");
        let revisions = self.revisions.entry(name.clone()).or_default();
        let last = revisions.last_key_value().map_or(0, |(revision, _)| *revision);
        if entry.operation == "DeleteConfig" {
            assert!(self.configs.remove(&name) && revision == last, "{entry:?} after revision {last}");
            return;
        }
        assert_eq!(revision, last + 1, "each revision has one entry: {entry:?}");
        assert_eq!(self.configs.insert(name), entry.operation == "CreateConfig", "{entry:?}");
        revisions.insert(revision, entry.metadata["version"].clone());
    }

    /// Compares with what the server has: the same configs and namespaces, and in full those whose name has `part` in it.
    pub async fn verify(&self, admin: &Admin, part: &str) {
        assert_eq!(config_names(admin).await, self.configs, "configs");
        for name in self.configs.iter().filter(|name| name.contains(part)) {
            self.verify_config(admin, name).await;
        }
        let found = namespaces(admin).await;
        assert!(
            found.keys().eq(self.namespaces.keys()),
            "namespaces: {:?}, {:?}",
            found.keys(),
            self.namespaces.keys()
        );
        for (name, history) in &self.namespaces {
            let namespace = &found[name];
            assert_eq!(namespace.quota.map(|quota| quota.max_rps), history.last().copied(), "{name}");
            // The etag ends with the number of the change, counted from 1.
            let revision = namespace.etag.rsplit_once('-').map(|(_, revision)| revision.to_owned());
            assert_eq!(revision, Some(history.len().to_string()), "one entry for each change of {name}");
        }
    }

    async fn verify_config(&self, admin: &Admin, name: &str) {
        let get = async |revision: Option<i64>| {
            let request = wire::GetConfigRequest { name: name.to_owned(), version: None, revision };
            admin.service().get_config(request).await.map(Response::into_inner)
        };
        let revisions = &self.revisions[name];
        let newest = get(None).await.expect("a config that the log says is there");
        assert_eq!(Some(&newest.revision), revisions.last_key_value().map(|(revision, _)| revision), "{name}");
        for (revision, version) in revisions {
            let found = get(Some(*revision)).await.expect("a revision that the log says is there");
            assert_eq!(&found.config.expect("a config").version, version, "{name} revision {revision}");
        }
        let beyond = get(Some(newest.revision + 1)).await;
        assert_eq!(beyond.expect_err("no further revision").code(), tonic::Code::NotFound);
    }
}

async fn config_names(admin: &Admin) -> BTreeSet<String> {
    let (mut names, mut page_token) = (BTreeSet::new(), None);
    loop {
        let request =
            wire::ListConfigsRequest { page_size: 1000, page_token: page_token.clone(), ..Default::default() };
        let page = admin.service().list_configs(request).await.expect("configs").into_inner();
        names.extend(page.configs.into_iter().map(|config| config.name));
        page_token = page.next_page_token;
        if page_token.is_none() {
            return names;
        }
    }
}

async fn namespaces(admin: &Admin) -> BTreeMap<String, wire::NamespaceInfo> {
    let (mut found, mut page_token) = (BTreeMap::new(), None);
    loop {
        let request = wire::ListNamespacesRequest { page_size: 1000, page_token: page_token.clone() };
        let page = admin.service().list_namespaces(request).await.expect("namespaces").into_inner();
        found.extend(page.namespaces.into_iter().map(|namespace| (namespace.name.clone(), namespace)));
        page_token = page.next_page_token;
        if page_token.is_none() {
            return found;
        }
    }
}
