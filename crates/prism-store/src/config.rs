use std::sync::Arc;

use prism_core::config::{AccessPattern, BackendType, Config};
use prism_core::control::ConfigRevision;
use prism_core::limits::MAX_CONFIGS;
use prism_core::page::Page;
use prism_core::permission::Reach;
use prism_core::{Error, Kind, Result, UnixMillis};
use rusqlite::{Row, named_params};

use crate::tx::{Change, Tx, corrupt, limited_to};

/// A revision of a live config.
#[derive(Clone, Debug)]
pub struct ConfigRow {
    /// Its number, from 1.
    pub revision: i64,
    /// The config.
    pub config: Arc<Config>,
    /// When the config was first made.
    pub created_at: UnixMillis,
    /// When this revision was accepted.
    pub updated_at: UnixMillis,
}

impl ConfigRow {
    /// The etag of this revision.
    pub fn etag(&self) -> String {
        format!("{:x}-{}", self.created_at.0, self.revision)
    }
}

/// Which revision of a config to read.
#[derive(Clone, Debug, Default)]
pub enum Wanted {
    /// The current one.
    #[default]
    Current,
    /// The newest with this version string.
    Version(String),
    /// This number.
    Revision(i64),
}

/// Revisions of an earlier config of the same name in another namespace, or in an earlier namespace of the same name, are not
/// for those who see this one.
const FROM_LIVE: &str = "SELECT r.revision, r.config, c.created_at, r.created_at FROM configs c
    JOIN namespaces n ON n.name = c.namespace
    JOIN revisions r ON r.number = c.number AND r.config ->> '$.namespace' = c.namespace AND r.created_at >= n.created_at";

fn read(row: &Row<'_>) -> rusqlite::Result<ConfigRow> {
    Ok(ConfigRow {
        revision: row.get(0)?,
        config: Arc::new(serde_json::from_str(&row.get::<_, String>(1)?).map_err(corrupt)?),
        created_at: UnixMillis(row.get(2)?),
        updated_at: UnixMillis(row.get(3)?),
    })
}

impl From<ConfigRow> for ConfigRevision {
    fn from(row: ConfigRow) -> Self {
        let ConfigRow { revision, config, created_at, updated_at } = row;
        Self { revision, config, created_at, updated_at }
    }
}

impl From<&ConfigRevision> for ConfigRow {
    fn from(known: &ConfigRevision) -> Self {
        let ConfigRevision { revision, config, created_at, updated_at } = known;
        Self { revision: *revision, config: Arc::clone(config), created_at: *created_at, updated_at: *updated_at }
    }
}

/// Tells versions apart in an index without holding them; two may have the same.
fn version_tag(version: &str) -> i64 {
    crc32fast::hash(version.as_bytes()).into()
}

impl Tx<'_> {
    /// One revision of a live config.
    pub fn config(&self, name: &str, wanted: &Wanted) -> Result<Option<ConfigRow>> {
        match wanted {
            Wanted::Current => self.current_config(name),
            Wanted::Version(version) => self.one(
                &format!(
                    "{FROM_LIVE} WHERE c.name = ?1 AND (r.tag = ?3 OR r.tag IS NULL) AND r.version = ?2
                     ORDER BY r.revision DESC LIMIT 1"
                ),
                (name, version, version_tag(version)),
                read,
            ),
            Wanted::Revision(revision) => {
                self.one(&format!("{FROM_LIVE} WHERE c.name = ?1 AND r.revision = ?2"), (name, revision), read)
            }
        }
    }

    /// The current revision of a live config, as a rule from memory.
    fn current_config(&self, name: &str) -> Result<Option<ConfigRow>> {
        match self.touched.configs.get(name) {
            Some(Change::Stored(revision)) => Ok(Some(ConfigRow::from(revision.as_ref()))),
            Some(Change::Deleted) => Ok(None),
            Some(Change::Unknown) => self.stored_config(name),
            None => Ok(self.published.snapshot.borrow().configs.get(name).map(|known| ConfigRow::from(known.as_ref()))),
        }
    }

    /// The current revision of a live config, from the database.
    pub(crate) fn stored_config(&self, name: &str) -> Result<Option<ConfigRow>> {
        self.one(&format!("{FROM_LIVE} AND r.revision = c.revision WHERE c.name = ?1"), [name], read)
    }

    /// The namespace of a live config.
    pub fn config_namespace(&self, name: &str) -> Result<Option<String>> {
        Ok(self.current_config(name)?.map(|row| row.config.namespace.to_string()))
    }

    /// Whether there is room for one config more.
    fn has_room_for_config(&self) -> Result<bool> {
        // At most so many; to count exactly takes longer the more there are.
        let at_most = self.published.snapshot.borrow().configs.len() + self.touched.configs.len();
        Ok((at_most as i64) < MAX_CONFIGS || self.count("SELECT count(*) FROM configs", [])? < MAX_CONFIGS)
    }

    /// Live configs within `reach`, by name, and how many there are.
    pub fn configs(
        &self,
        reach: &Reach,
        namespace: Option<&str>,
        pattern: Option<AccessPattern>,
        page: &Page,
    ) -> Result<(Vec<ConfigRow>, i64)> {
        let limited = limited_to(reach, namespace);
        let pattern = pattern.map(AccessPattern::name);
        let filter = "(:limited IS NULL OR c.namespace IN (SELECT value FROM json_each(:limited)))
                      AND (:pattern IS NULL OR c.pattern = :pattern)";
        let rows = self.all(
            &format!("{FROM_LIVE} AND r.revision = c.revision WHERE {filter} AND c.name > :after ORDER BY c.name LIMIT :limit"),
            named_params! {
                ":limited": limited, ":pattern": pattern,
                ":after": page.after.as_deref().unwrap_or(""), ":limit": page.size as i64 + 1,
            },
            read,
        )?;
        let total = self.count(
            &format!("SELECT count(*) FROM configs c WHERE {filter}"),
            named_params! {":limited": limited, ":pattern": pattern},
        )?;
        Ok((rows, total))
    }

    /// Backend types in use by live configs within `reach`, with the namespace that uses them.
    pub fn config_backends(&self, reach: &Reach) -> Result<Vec<(BackendType, String)>> {
        self.all(
            "SELECT DISTINCT r.config ->> '$.backend.kind', c.namespace FROM configs c
             JOIN revisions r ON r.number = c.number AND r.revision = c.revision
             WHERE ?1 IS NULL OR c.namespace IN (SELECT value FROM json_each(?1))",
            [limited_to(reach, None)],
            |row| {
                let kind: String = row.get(0)?;
                Ok((BackendType::by_name(&kind).ok_or_else(|| corrupt("backend type"))?, row.get(1)?))
            },
        )
    }

    /// Accepts `config` as the next revision of its name; an existing one keeps `created_at`.
    pub fn store_config(&mut self, config: Arc<Config>) -> Result<ConfigRow> {
        let name = config.name.as_str().to_owned();
        let existing = self.config(&name, &Wanted::Current)?;
        if existing.is_none() && !self.has_room_for_config()? {
            return Err(Error::new(
                Kind::ResourceExhausted,
                "TOO_MANY_CONFIGS",
                format!("an installation holds at most {MAX_CONFIGS} configs"),
            ));
        }
        let text = serde_json::to_string(&*config).map_err(Error::internal)?;
        let created_at = existing.as_ref().map_or(self.now, |row| row.created_at);
        let (number, revision) = match &existing {
            Some(row) => (self.replace_config(&config, row.revision + 1)?, row.revision + 1),
            None => self.insert_config(&config)?,
        };
        self.execute(
            "INSERT INTO revisions (name, number, revision, version, tag, config, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            (&name, number, revision, &config.version, version_tag(&config.version), text, self.now.0),
        )?;
        let row = ConfigRow { revision, config, created_at, updated_at: self.now };
        self.touched.configs.insert(name, Change::Stored(Arc::new(row.clone().into())));
        Ok(row)
    }

    /// Makes a new revision of a live config the current one; the number of the config.
    fn replace_config(&self, config: &Config, revision: i64) -> Result<i64> {
        self.one(
            "UPDATE configs SET pattern = ?2, revision = ?3, updated_at = ?4 WHERE name = ?1 RETURNING number",
            (config.name.as_str(), config.pattern.name(), revision, self.now.0),
            |row| row.get(0),
        )?
        .ok_or_else(|| Error::internal("a live config is not stored"))
    }

    /// Makes a config live; its number, and its revision. Revisions outlive a deletion, so it goes on where an earlier config of
    /// the same name stopped.
    fn insert_config(&self, config: &Config) -> Result<(i64, i64)> {
        let name = config.name.as_str();
        let earlier =
            self.one("SELECT id FROM revisions WHERE name = ?1 AND revision = 1", [name], |row| row.get(0))?;
        let (number, revision) = match earlier {
            Some(number) => {
                let last =
                    self.count("SELECT coalesce(max(revision), 0) FROM revisions WHERE number = ?1", [number])?;
                (number, last + 1)
            }
            // The id that its first revision will have.
            None => (self.count("SELECT coalesce(max(id), 0) + 1 FROM revisions", [])?, 1),
        };
        self.execute(
            "INSERT INTO configs (name, namespace, pattern, revision, created_at, updated_at, number)
             VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6)",
            (name, config.namespace.as_str(), config.pattern.name(), revision, self.now.0, number),
        )?;
        Ok((number, revision))
    }

    /// Deletes a config; its revisions stay. `false` when there was none.
    pub fn delete_config(&mut self, name: &str) -> Result<bool> {
        self.touched.configs.insert(name.to_owned(), Change::Deleted);
        Ok(self.execute("DELETE FROM configs WHERE name = ?1", [name])? > 0)
    }
}
