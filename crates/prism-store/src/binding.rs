use prism_core::access::{ClientGrant, RoleGrant};
use prism_core::limits::MAX_BINDINGS;
use prism_core::page::Page;
use prism_core::permission::Reach;
use prism_core::secret::SecretId;
use prism_core::session::DataGrant;
use prism_core::subject::Subject;
use prism_core::{Error, Kind, NamespaceName, Result, UnixMillis};
use rusqlite::{Row, named_params};

use crate::tx::{Tx, corrupt, limited_to};

/// A role given to a subject.
#[derive(Clone, Debug)]
pub struct BindingRow {
    /// Public id.
    pub id: SecretId,
    /// To whom.
    pub subject: Subject,
    /// Which role, and where.
    pub grant: RoleGrant,
    /// When it was made.
    pub created_at: UnixMillis,
    /// By whom.
    pub created_by: String,
}

/// A namespace given to a subject on the data plane.
#[derive(Clone, Debug)]
pub struct ClientBindingRow {
    /// Public id.
    pub id: SecretId,
    /// To whom.
    pub subject: Subject,
    /// Which namespace, and what is allowed there.
    pub grant: ClientGrant,
    /// When it was made.
    pub created_at: UnixMillis,
    /// By whom.
    pub created_by: String,
}

fn id(row: &Row<'_>) -> rusqlite::Result<SecretId> {
    SecretId::parse(row.get_ref("id")?.as_str()?).ok_or_else(|| corrupt("binding id"))
}

fn subject(row: &Row<'_>) -> rusqlite::Result<Subject> {
    Subject::parse("subject", row.get_ref("subject")?.as_str()?).map_err(corrupt)
}

fn namespace(name: Option<String>) -> rusqlite::Result<Option<NamespaceName>> {
    name.map(NamespaceName::try_from).transpose().map_err(corrupt)
}

pub(crate) fn read_binding(row: &Row<'_>) -> rusqlite::Result<BindingRow> {
    Ok(BindingRow {
        id: id(row)?,
        subject: subject(row)?,
        grant: RoleGrant { role: row.get("role")?, namespace: namespace(row.get("namespace")?)? },
        created_at: UnixMillis(row.get("created_at")?),
        created_by: row.get("created_by")?,
    })
}

pub(crate) fn read_client_binding(row: &Row<'_>) -> rusqlite::Result<ClientBindingRow> {
    Ok(ClientBindingRow {
        id: id(row)?,
        subject: subject(row)?,
        grant: ClientGrant {
            namespace: NamespaceName::try_from(row.get::<_, String>("namespace")?).map_err(corrupt)?,
            grant: DataGrant { read: row.get("may_read")?, write: row.get("may_write")? },
        },
        created_at: UnixMillis(row.get("created_at")?),
        created_by: row.get("created_by")?,
    })
}

/// Rows of `table` within `:limited` and of `:subject`. What is bound for the whole installation is seen by its operators only.
const FILTER: &str = "(:limited IS NULL OR namespace IN (SELECT value FROM json_each(:limited)))
    AND (:subject IS NULL OR subject = :subject)";

impl Tx<'_> {
    /// One binding.
    pub fn binding(&self, id: &str) -> Result<Option<BindingRow>> {
        self.one("SELECT * FROM bindings WHERE id = ?1", [id], read_binding)
    }

    /// Bindings within `reach`, by id, and how many there are.
    pub fn bindings(&self, reach: &Reach, subject: Option<&Subject>, page: &Page) -> Result<(Vec<BindingRow>, i64)> {
        self.binding_list("bindings", limited_to(reach, None).as_deref(), subject, page, read_binding)
    }

    /// Stores a new binding; ALREADY_EXISTS when the subject has the role there, RESOURCE_EXHAUSTED `TOO_MANY_BINDINGS` when
    /// there are too many.
    pub fn insert_binding(&mut self, binding: &BindingRow) -> Result<()> {
        self.require_binding_room("bindings")?;
        let added = self.execute(
            "INSERT INTO bindings (id, subject, role, namespace, created_at, created_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT DO NOTHING",
            (
                binding.id.as_str(),
                binding.subject.as_str(),
                &binding.grant.role,
                binding.grant.namespace.as_ref().map(NamespaceName::as_str),
                binding.created_at.0,
                &binding.created_by,
            ),
        )?;
        self.access_changed();
        if added == 0 { Err(Error::already_exists("a binding of this subject to this role here")) } else { Ok(()) }
    }

    /// Removes a binding; `false` when it is unknown.
    pub fn delete_binding(&mut self, id: &str) -> Result<bool> {
        self.access_changed();
        Ok(self.execute("DELETE FROM bindings WHERE id = ?1", [id])? > 0)
    }

    /// One client binding.
    pub fn client_binding(&self, id: &str) -> Result<Option<ClientBindingRow>> {
        self.one("SELECT * FROM client_bindings WHERE id = ?1", [id], read_client_binding)
    }

    /// Client bindings within `reach`, by id, and how many there are.
    pub fn client_bindings(
        &self,
        reach: &Reach,
        namespace: Option<&str>,
        subject: Option<&Subject>,
        page: &Page,
    ) -> Result<(Vec<ClientBindingRow>, i64)> {
        let limited = limited_to(reach, namespace);
        self.binding_list("client_bindings", limited.as_deref(), subject, page, read_client_binding)
    }

    /// Stores a new client binding; ALREADY_EXISTS when the subject has one for the namespace, RESOURCE_EXHAUSTED
    /// `TOO_MANY_BINDINGS` when there are too many.
    pub fn insert_client_binding(&mut self, binding: &ClientBindingRow) -> Result<()> {
        self.require_binding_room("client_bindings")?;
        let ClientGrant { namespace, grant } = &binding.grant;
        let added = self.execute(
            "INSERT INTO client_bindings (id, subject, namespace, may_read, may_write, created_at, created_by)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
            (
                binding.id.as_str(),
                binding.subject.as_str(),
                namespace.as_str(),
                grant.read,
                grant.write,
                binding.created_at.0,
                &binding.created_by,
            ),
        )?;
        self.touched.client_access = true;
        if added == 0 {
            Err(Error::already_exists("a client binding of this subject for this namespace"))
        } else {
            Ok(())
        }
    }

    /// Removes a client binding; `false` when it is unknown.
    pub fn delete_client_binding(&mut self, id: &str) -> Result<bool> {
        self.touched.client_access = true;
        Ok(self.execute("DELETE FROM client_bindings WHERE id = ?1", [id])? > 0)
    }

    fn binding_list<T>(
        &self,
        table: &str,
        limited: Option<&str>,
        subject: Option<&Subject>,
        page: &Page,
        read: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<(Vec<T>, i64)> {
        let subject = subject.map(Subject::as_str);
        let rows = self.all(
            &format!("SELECT * FROM {table} WHERE {FILTER} AND id > :after ORDER BY id LIMIT :limit"),
            named_params! {
                ":limited": limited, ":subject": subject, ":after": page.after.as_deref().unwrap_or(""),
                ":limit": page.size as i64 + 1,
            },
            read,
        )?;
        let total = self.count(
            &format!("SELECT count(*) FROM {table} WHERE {FILTER}"),
            named_params! {":limited": limited, ":subject": subject},
        )?;
        Ok((rows, total))
    }

    fn require_binding_room(&self, table: &str) -> Result<()> {
        if self.count(&format!("SELECT count(*) FROM {table}"), [])? < MAX_BINDINGS {
            return Ok(());
        }
        let message =
            format!("an installation holds at most {MAX_BINDINGS} bindings of a kind; delete what nobody needs");
        Err(Error::new(Kind::ResourceExhausted, "TOO_MANY_BINDINGS", message))
    }
}
