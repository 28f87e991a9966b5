//! Who may do what, as it is stored: the roles and bindings of operators, the keys and bindings of clients. Immutable; a change
//! makes a new value.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::clock::UnixMillis;
use crate::name::NamespaceName;
use crate::permission::{Grant, Role, built_in_roles};
use crate::session::{ClientBasis, DataGrant};
use crate::subject::Subject;

/// A role for the whole installation, or for one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoleGrant {
    /// Name of the role.
    pub role: String,
    /// `None` = the whole installation.
    pub namespace: Option<NamespaceName>,
}

/// Roles and bindings of the admin plane.
#[derive(Clone, Debug)]
pub struct Access {
    /// All roles by name, the built-in ones included.
    pub roles: BTreeMap<String, Role>,
    /// What subjects are bound to.
    pub bindings: HashMap<Subject, Vec<RoleGrant>>,
    /// Fingerprints of revoked certificates, SHA-256 in hexadecimal.
    pub revoked_certificates: Arc<HashSet<String>>,
}

impl Default for Access {
    /// The built-in roles, and nobody who holds one.
    fn default() -> Self {
        let roles = built_in_roles().into_iter().map(|role| (role.name.clone(), role)).collect();
        Self { roles, bindings: HashMap::new(), revoked_certificates: Arc::default() }
    }
}

impl Access {
    /// The grants of someone who holds `direct` and what `subjects` are bound to. A role that does not exist grants nothing.
    pub fn grants(&self, direct: &[RoleGrant], subjects: &[Subject]) -> Vec<Grant> {
        let bound = subjects.iter().filter_map(|subject| self.bindings.get(subject)).flatten();
        let mut held: Vec<&RoleGrant> = Vec::new();
        for grant in direct.iter().chain(bound) {
            if !held.contains(&grant) {
                held.push(grant);
            }
        }
        held.into_iter()
            .filter_map(|held| {
                let role = self.roles.get(&held.role)?;
                let (role, permissions) = (role.name.clone(), role.permissions.clone());
                Some(Grant { role, namespace: held.namespace.clone(), permissions })
            })
            .collect()
    }
}

/// What a client may do in one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientGrant {
    /// The namespace.
    pub namespace: NamespaceName,
    /// What is allowed there.
    pub grant: DataGrant,
}

/// A client key that is not revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientKeyAccess {
    /// What it allows.
    pub grant: ClientGrant,
    /// When it ends by itself.
    pub expires_at: Option<UnixMillis>,
}

/// Keys and bindings of the data plane.
#[derive(Clone, Debug, Default)]
pub struct ClientAccess {
    /// Keys that are not revoked, by public id.
    pub keys: HashMap<String, ClientKeyAccess>,
    /// What subjects are bound to.
    pub bindings: HashMap<Subject, Vec<ClientGrant>>,
    /// Fingerprints of revoked certificates, SHA-256 in hexadecimal.
    pub revoked_certificates: Arc<HashSet<String>>,
}

impl ClientAccess {
    /// What someone who stands on `basis` may do at `now`, at most one grant for each namespace, sorted by it; nothing for
    /// whom nothing is given or everything was taken.
    pub fn grants(&self, basis: &ClientBasis, now: UnixMillis) -> Vec<ClientGrant> {
        if basis.subjects.is_empty() {
            let key = self.keys.get(&basis.credential_id);
            let valid = key.filter(|key| key.expires_at.is_none_or(|end| now < end));
            return valid.map(|key| key.grant.clone()).into_iter().collect();
        }
        if basis.certificate.as_ref().is_some_and(|fingerprint| self.revoked_certificates.contains(fingerprint)) {
            return Vec::new();
        }
        let mut merged: BTreeMap<&NamespaceName, DataGrant> = BTreeMap::new();
        for given in basis.subjects.iter().filter_map(|subject| self.bindings.get(subject)).flatten() {
            let grant = merged.entry(&given.namespace).or_default();
            grant.read |= given.grant.read;
            grant.write |= given.grant.write;
        }
        merged.into_iter().map(|(namespace, grant)| ClientGrant { namespace: namespace.clone(), grant }).collect()
    }

    /// Whether `basis` still allows all of `grant` in `namespace`.
    pub fn upholds(&self, basis: &ClientBasis, namespace: &NamespaceName, grant: DataGrant, now: UnixMillis) -> bool {
        self.grants(basis, now).iter().any(|held| {
            held.namespace == *namespace && (held.grant.read || !grant.read) && (held.grant.write || !grant.write)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(name: &str) -> NamespaceName {
        NamespaceName::parse("n", name).unwrap()
    }

    const READ: DataGrant = DataGrant { read: true, write: false };
    const WRITE: DataGrant = DataGrant { read: false, write: true };

    #[test]
    fn grants_come_from_roles_that_exist() {
        let alice = Subject::user("alice").unwrap();
        let viewer = RoleGrant { role: "viewer".to_owned(), namespace: Some(namespace("a")) };
        let gone = RoleGrant { role: "gone".to_owned(), namespace: None };
        let access = Access { bindings: [(alice.clone(), vec![viewer.clone(), gone])].into(), ..Access::default() };
        let grants = access.grants(&[viewer], std::slice::from_ref(&alice));
        assert_eq!(grants.len(), 1, "{grants:?}");
        assert_eq!(grants[0].namespace, Some(namespace("a")));
        assert!(access.grants(&[], &[Subject::group("alice").unwrap()]).is_empty());
    }

    #[test]
    fn a_client_has_what_its_subjects_have_together_until_its_certificate_is_revoked() {
        let (user, group) = (Subject::user("u").unwrap(), Subject::group("g").unwrap());
        let given = |grant| vec![ClientGrant { namespace: namespace("a"), grant }];
        let mut access = ClientAccess {
            bindings: [(user.clone(), given(READ)), (group.clone(), given(WRITE))].into(),
            ..ClientAccess::default()
        };
        let basis = |subjects: &[&Subject]| ClientBasis {
            credential_id: "c".to_owned(),
            subjects: subjects.iter().map(|subject| (*subject).clone()).collect(),
            certificate: Some("f".to_owned()),
            authority: None,
        };
        let now = UnixMillis(0);
        let both = basis(&[&user, &group]);
        assert!(access.upholds(&both, &namespace("a"), DataGrant { read: true, write: true }, now));
        assert!(!access.upholds(&basis(&[&user]), &namespace("a"), WRITE, now));
        assert!(!access.upholds(&both, &namespace("b"), READ, now));
        access.revoked_certificates = Arc::new(["f".to_owned()].into());
        assert!(access.grants(&both, now).is_empty());
    }

    #[test]
    fn a_key_ends_with_its_time() {
        let grant = ClientGrant { namespace: namespace("a"), grant: READ };
        let key = ClientKeyAccess { grant, expires_at: Some(UnixMillis(10)) };
        let access = ClientAccess { keys: [("k".to_owned(), key)].into(), ..ClientAccess::default() };
        let basis = ClientBasis { credential_id: "k".to_owned(), ..ClientBasis::default() };
        assert!(access.upholds(&basis, &namespace("a"), READ, UnixMillis(9)));
        assert!(!access.upholds(&basis, &namespace("a"), READ, UnixMillis(10)));
    }
}
