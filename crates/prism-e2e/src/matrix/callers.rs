//! Callers whose credentials are valid, of every kind and with every role.

use std::fmt;

use prism_proto::admin::v1::CertificateKind;
use prism_proto::rules::MethodRule;
use serde_json::json;

use super::{ROLES, Scope, Target, World, holds, permission_of, scope_of};
use crate::admin::Admin;
use crate::certificates::{dns, uri};
use crate::site::Site;

/// A role of the installation's own, beside the three built in.
const CUSTOM: (&str, &[&str]) = ("auditor", &["audit:read", "access:read", "namespace:*"]);

/// A kind of credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// None.
    Nothing,
    /// An API key, or what should look like one.
    ApiKey,
    /// An access token of an issuer.
    Token,
    /// A certificate of Prism's own CA.
    OwnCertificate,
    /// A certificate of a configured CA.
    Certificate,
}

impl Kind {
    /// As the audit log calls it.
    pub fn auth_method(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::ApiKey => "api_key",
            Self::Token => "oidc",
            Self::OwnCertificate | Self::Certificate => "mtls",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "no credential",
            Self::ApiKey => "API key",
            Self::Token => "access token",
            Self::OwnCertificate => "certificate of Prism's CA",
            Self::Certificate => "certificate of a configured CA",
        })
    }
}

/// A valid caller.
#[derive(Clone, Debug)]
pub struct Caller {
    /// For people who read a failure.
    pub name: String,
    /// Its credential.
    pub kind: Kind,
    /// The caller.
    pub admin: Admin,
    /// What its role allows.
    pub permissions: &'static [&'static str],
    /// The only namespace in which it has its role.
    pub own: Option<String>,
    /// As the audit log calls it.
    pub actor: String,
    /// Public id of its credential.
    pub credential_id: String,
}

impl Caller {
    async fn new(
        kind: Kind,
        name: String,
        admin: Admin,
        permissions: &'static [&'static str],
        own: Option<&str>,
    ) -> Self {
        let who = admin.who_am_i().await.unwrap_or_else(|refused| panic!("{name}, {kind}: {refused:?}"));
        assert_eq!(who.auth_method, kind.auth_method(), "{name}");
        let own = own.map(ToOwned::to_owned);
        Self { name, kind, admin, permissions, own, actor: who.actor, credential_id: who.credential_id }
    }

    /// What the table says of this caller, an RPC and what it aims at. The kind of the credential plays no part.
    pub fn expects(&self, rule: &MethodRule, target: &Target) -> bool {
        if !holds(self.permissions, permission_of(&rule.method)) {
            return false;
        }
        match (&self.own, scope_of(&rule.method), target) {
            (None, _, _) | (Some(_), Scope::Filtered, _) => true,
            (Some(_), Scope::Installation, _) => false,
            (Some(own), _, Target::Namespace(aimed)) => own == aimed,
            (Some(_), scope, Target::Installation) => scope == Scope::List,
        }
    }
}

/// With every kind of credential: one caller for each role, for the installation and in the namespace of `site`, and one
/// without any role. Keys always have one. The controller has its role by what it is.
pub async fn callers(world: &World, site: &Site) -> Vec<Caller> {
    site.admin.create_role(CUSTOM.0, CUSTOM.1).await;
    let mut all = Vec::new();
    for kind in [Kind::ApiKey, Kind::Token, Kind::OwnCertificate, Kind::Certificate] {
        for (number, (role, permissions)) in ROLES.into_iter().chain([CUSTOM]).enumerate() {
            for own in [None, Some(site.namespace.as_str())] {
                let admin = match kind {
                    Kind::Nothing => continue,
                    Kind::ApiKey => site.admin.with_role(role, own).await,
                    Kind::Token => by_token(world, site, number, role, own).await,
                    Kind::OwnCertificate => by_own_certificate(world, site, role, own).await,
                    Kind::Certificate => by_certificate(world, site, role, own).await,
                };
                let place = own.map_or("everywhere", |_| "in its namespace");
                all.push(Caller::new(kind, format!("{role} {place}"), admin, permissions, own).await);
            }
        }
    }
    let token = world.issuer.token(crate::oidc::ADMIN, "token-nobody", &["nobody"]);
    let (own, ..) = world.issue(CertificateKind::User, "certificate-nobody").await;
    let strange = world.admin_ca.client(vec![dns("nobody.example")]);
    for (kind, admin) in [
        (Kind::Token, site.admin.with_key(&token)),
        (Kind::OwnCertificate, world.with_certificate(&own)),
        (Kind::Certificate, world.with_certificate(&strange)),
    ] {
        all.push(Caller::new(kind, "nobody".to_owned(), admin, &[], None).await);
    }
    let controller = world.own_ca.client(vec![uri(&world.own_uri("controller", "c1"))]);
    let admin = world.with_certificate(&controller);
    all.push(Caller::new(Kind::OwnCertificate, "controller".to_owned(), admin, ROLES[0].1, None).await);
    all
}

/// Everywhere by the issuer's groups, or by a binding of a group; in a namespace by a binding of the user.
async fn by_token(world: &World, site: &Site, number: usize, role: &str, own: Option<&str>) -> Admin {
    let sub = format!("token-{role}-{}", own.unwrap_or("everywhere"));
    let mut groups = vec!["staff"];
    match own {
        None if role == CUSTOM.0 => {
            site.admin.bind("group:auditors", role, None).await;
            groups.push("auditors");
        }
        None => groups.push(role),
        Some(_) => {
            site.admin.bind(&format!("user:{sub}"), role, own).await;
        }
    }
    let algorithm = ["RS256", "ES256", "EdDSA"][number % 3];
    site.admin.with_key(&world.issuer.keys.sign(algorithm, &world.claims(&sub, &groups, &json!({}))))
}

/// Everywhere by a binding of the user, in a namespace by one of the certificate.
async fn by_own_certificate(world: &World, site: &Site, role: &str, own: Option<&str>) -> Admin {
    let name = format!("certificate-{role}-{}", own.unwrap_or("everywhere"));
    let (holder, _, uri) = world.issue(CertificateKind::User, &name).await;
    let subject = own.map_or_else(|| format!("user:{name}"), |_| format!("certificate:{uri}"));
    site.admin.bind(&subject, role, own).await;
    world.with_certificate(&holder)
}

async fn by_certificate(world: &World, site: &Site, role: &str, own: Option<&str>) -> Admin {
    let name = format!("{role}.{}.example", own.unwrap_or("everywhere"));
    let holder = world.admin_ca.client(vec![dns(&name)]);
    site.admin.bind(&format!("certificate:{name}"), role, own).await;
    world.with_certificate(&holder)
}
