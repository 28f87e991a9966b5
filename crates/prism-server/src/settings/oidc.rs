//! Section `[[oidc]]`: whose access tokens are believed, and what their claims stand for.

use std::fmt;
use std::path::PathBuf;

use prism_core::{Clock, NamespaceName, RoleName};
use prism_identity::{Algorithm, IssuerSettings, Issuers, RoleMapping};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::value::Text;

/// Most issuers.
pub const MAX_ISSUERS: usize = 32;
/// Most roles in the map of one issuer.
const MAX_MAPPINGS: usize = 1000;
/// Longest text, in bytes.
const LONGEST: usize = 512;

/// An issuer as the file has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Section")]
pub struct Oidc {
    /// What is said of it, but for its CA.
    settings: IssuerSettings,
    /// CAs that may vouch for the issuer's own TLS, in PEM; absent = those of the operating system.
    pub ca: Option<PathBuf>,
}

/// What stands between `[[oidc]]` and the next section.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    /// Equal to the claim `iss`, byte for byte.
    issuer: Text<1, LONGEST>,
    /// Of tokens for the admin plane.
    audience: Option<Text<1, LONGEST>>,
    /// Of tokens for the data plane.
    data_audience: Option<Text<1, LONGEST>>,
    /// Which tokens for the admin plane must carry.
    admin_scope: Option<Scope>,
    /// Names the user.
    user_claim: Option<Text<1, LONGEST>>,
    /// Lists the user's groups.
    groups_claim: Option<Text<1, LONGEST>>,
    /// Put before the names of users and groups.
    prefix: Option<Text<0, LONGEST>>,
    /// Claims that stand for roles.
    #[serde(default)]
    role_map: RoleMap,
    ca: Option<PathBuf>,
    algorithms: Option<Algorithms>,
}

impl TryFrom<Section> for Oidc {
    type Error = String;
    fn try_from(section: Section) -> Result<Self, String> {
        let issuer = section.issuer.0;
        // What else an issuer must be is the business of who asks it; this is what people get wrong.
        if !issuer.starts_with("https://") && !issuer.starts_with("http://") {
            return Err(format!("oidc.issuer: {issuer:?} must begin with https:// (http:// for this machine only)"));
        }
        let text =
            |given: Option<Text<1, LONGEST>>, default: &str| given.map_or_else(|| default.to_owned(), |text| text.0);
        let groups_claim = text(section.groups_claim, "groups");
        let settings = IssuerSettings {
            issuer,
            admin_audience: section.audience.map(|text| text.0),
            admin_scope: section.admin_scope.map_or_else(|| "prism.admin".to_owned(), |scope| scope.0),
            data_audience: section.data_audience.map(|text| text.0),
            user_claim: text(section.user_claim, "sub"),
            prefix: section.prefix.map(|text| text.0).unwrap_or_default(),
            role_map: section.role_map.0.into_iter().map(|mapped| mapped.under(&groups_claim)).collect(),
            groups_claim,
            ca_pem: None,
            algorithms: section.algorithms.map_or_else(|| Algorithm::ALL.to_vec(), |algorithms| algorithms.0),
        };
        match (&settings.admin_audience, &settings.data_audience) {
            (None, None) => Err("oidc.audience: needs an audience, a data_audience, or both".to_owned()),
            (Some(admin), Some(data)) if admin == data => {
                Err("oidc.data_audience: must differ from audience, as a token is for one plane only".to_owned())
            }
            (None, _) if !settings.role_map.is_empty() => {
                Err("oidc.role_map: maps to roles of the admin plane, for which there is no audience".to_owned())
            }
            _ => Ok(Self { settings, ca: section.ca }),
        }
    }
}

impl Oidc {
    /// Why two issuers could name the same person, if they could.
    pub fn overlaps(&self, other: &Self) -> Option<String> {
        self.settings.overlaps(&other.settings)
    }
}

/// The issuers, ready to fetch their keys; the error names the issuer or the file.
pub fn issuers(sections: &[Oidc], clock: Clock) -> Result<Issuers, String> {
    let load = |section: &Oidc| {
        let mut settings = section.settings.clone();
        if let Some(path) = &section.ca {
            let read = std::fs::read(path);
            let pem = read.map_err(|error| format!("oidc.ca: {}: {error}", path.display()))?;
            settings.ca_pem = Some(pem);
        }
        Ok::<_, String>(settings)
    };
    let settings = sections.iter().map(load).collect::<Result<Vec<_>, _>>()?;
    Issuers::new(settings, clock).map_err(|error| format!("oidc: {}", error.message()))
}

/// One scope.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Text<1, LONGEST>")]
struct Scope(String);

impl TryFrom<Text<1, LONGEST>> for Scope {
    type Error = &'static str;
    fn try_from(text: Text<1, LONGEST>) -> Result<Self, &'static str> {
        if text.0.contains(char::is_whitespace) { Err("must be one scope, without spaces") } else { Ok(Self(text.0)) }
    }
}

/// At least one algorithm.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct Algorithms(Vec<Algorithm>);

impl TryFrom<Vec<String>> for Algorithms {
    type Error = String;
    fn try_from(names: Vec<String>) -> Result<Self, String> {
        let known = Algorithm::ALL.map(Algorithm::name).join(", ");
        let parse = |name: &String| Algorithm::named(name).ok_or_else(|| format!("{name:?} is none of {known}"));
        let algorithms = names.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        if algorithms.is_empty() { Err(format!("must hold one of {known}")) } else { Ok(Self(algorithms)) }
    }
}

/// `role_map`: the key is a group or `claim=value`, the value one role or several, each `role` or `role@namespace`.
#[derive(Debug, Default)]
struct RoleMap(Vec<Mapped>);

#[derive(Debug)]
struct Mapped {
    claim: ClaimValue,
    role: RoleAt,
}

impl Mapped {
    fn under(self, groups_claim: &str) -> RoleMapping {
        RoleMapping {
            claim: self.claim.claim.unwrap_or_else(|| groups_claim.to_owned()),
            value: self.claim.value,
            role: self.role.role.to_string(),
            namespace: self.role.namespace,
        }
    }
}

/// What a claim must be or hold; without a claim a group.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Text<1, LONGEST>")]
struct ClaimValue {
    claim: Option<String>,
    value: String,
}

impl TryFrom<Text<1, LONGEST>> for ClaimValue {
    type Error = String;
    fn try_from(text: Text<1, LONGEST>) -> Result<Self, String> {
        match text.0.split_once('=') {
            None => Ok(Self { claim: None, value: text.0 }),
            Some((claim, value)) if !claim.is_empty() && !value.is_empty() => {
                Ok(Self { claim: Some(claim.to_owned()), value: value.to_owned() })
            }
            Some(_) => Err(format!("{:?} must be a group or claim=value", text.0)),
        }
    }
}

/// A role, everywhere or in one namespace.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
struct RoleAt {
    role: RoleName,
    namespace: Option<NamespaceName>,
}

impl TryFrom<String> for RoleAt {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let (role, namespace) = match text.split_once('@') {
            Some((role, namespace)) => (role, Some(namespace)),
            None => (text.as_str(), None),
        };
        let wrong = |error: &prism_core::Error| format!("{text:?}: {}", error.message());
        let role = RoleName::parse("role", role).map_err(|error| wrong(&error))?;
        let namespace = namespace.map(|name| NamespaceName::parse("namespace", name)).transpose();
        Ok(Self { role, namespace: namespace.map_err(|error| wrong(&error))? })
    }
}

impl<'de> Deserialize<'de> for RoleMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vec<Mapped>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of groups or claims, and their roles")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Mapped>, A::Error> {
                let mut out = Vec::new();
                while let Some((claim, Roles(roles))) = map.next_entry::<ClaimValue, Roles>()? {
                    out.extend(roles.into_iter().map(|role| Mapped { claim: claim.clone(), role }));
                    if out.len() > MAX_MAPPINGS {
                        return Err(A::Error::custom(format_args!("more than {MAX_MAPPINGS} roles")));
                    }
                }
                Ok(out)
            }
        }
        deserializer.deserialize_map(Entries).map(Self)
    }
}

/// One role or several.
struct Roles(Vec<RoleAt>);

impl<'de> Deserialize<'de> for Roles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Vec<RoleAt>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"role\", \"role@namespace\", or a list of these")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Vec<RoleAt>, E> {
                RoleAt::try_from(text.to_owned()).map(|role| vec![role]).map_err(E::custom)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<RoleAt>, A::Error> {
                let mut out = Vec::new();
                while let Some(role) = list.next_element()? {
                    out.push(role);
                    if out.len() > MAX_MAPPINGS {
                        return Err(A::Error::custom(format_args!("more than {MAX_MAPPINGS} roles")));
                    }
                }
                if out.is_empty() { Err(A::Error::custom("must name a role")) } else { Ok(out) }
            }
        }
        deserializer.deserialize_any(OneOrMany).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sections {
        oidc: Vec<Oidc>,
    }

    fn parse(text: &str) -> Result<Vec<Oidc>, String> {
        let parsed = toml::from_str::<Sections>(text).map_err(|error| error.to_string());
        parsed.map(|sections| sections.oidc)
    }

    /// An issuer with `more` from line 4 on.
    fn with(more: &str) -> Result<IssuerSettings, String> {
        let text = format!("[[oidc]]\nissuer = \"https://id.example.org\"\naudience = \"prism\"\n{more}\n");
        parse(&text).map(|mut all| all.remove(0).settings)
    }

    fn mapping(claim: &str, value: &str, role: &str, namespace: Option<&str>) -> RoleMapping {
        let namespace = namespace.map(|name| NamespaceName::parse("n", name).unwrap());
        RoleMapping { claim: claim.to_owned(), value: value.to_owned(), role: role.to_owned(), namespace }
    }

    #[test]
    fn little_has_to_be_said() {
        let settings = with("").unwrap();
        assert_eq!(settings.issuer, "https://id.example.org");
        assert_eq!((settings.admin_audience.as_deref(), settings.data_audience), (Some("prism"), None));
        assert_eq!((settings.admin_scope.as_str(), settings.user_claim.as_str()), ("prism.admin", "sub"));
        assert_eq!((settings.groups_claim.as_str(), settings.prefix.as_str()), ("groups", ""));
        assert_eq!(settings.algorithms, Algorithm::ALL);
        assert!(settings.role_map.is_empty() && settings.ca_pem.is_none());
    }

    #[test]
    fn roles_come_from_groups_and_claims_everywhere_or_in_one_namespace() {
        let text = "groups_claim = \"teams\"\n[oidc.role_map]\nplatform = \"admin\"\n\
            payments = [\"operator@payments\", \"viewer\"]\n\"department=ops=1\" = \"db.reader\"";
        let mut map = with(text).unwrap().role_map;
        map.sort_by(|a, b| (&a.value, &a.role).cmp(&(&b.value, &b.role)));
        assert_eq!(
            map,
            [
                mapping("department", "ops=1", "db.reader", None),
                mapping("teams", "payments", "operator", Some("payments")),
                mapping("teams", "payments", "viewer", None),
                mapping("teams", "platform", "admin", None),
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let long = "x".repeat(LONGEST + 1);
        for (bad, named) in [
            ("admin_scope = \"\"", "admin_scope"),
            ("admin_scope = \"a b\"", "one scope"),
            ("user_claim = \"\"", "user_claim"),
            ("groups_claim = 1", "groups_claim"),
            ("prefix = \"a\\n\"", "prefix"),
            (&format!("prefix = \"{long}\""), "0 to 512 bytes"),
            ("data_audience = \"\"", "data_audience"),
            ("ca = 1", "ca"),
            ("algorithms = []", "RS256, ES256, EdDSA"),
            ("algorithms = [\"none\"]", "none"),
            ("algorithms = [\"HS256\"]", "HS256"),
            ("role_map = \"admin\"", "a table"),
            ("role_map = { a = [] }", "must name a role"),
            ("role_map = { a = 1 }", "role@namespace"),
            ("role_map = { a = \"Admin\" }", "Admin"),
            ("role_map = { a = \"\" }", "role"),
            ("role_map = { a = \"viewer@\" }", "viewer@"),
            ("role_map = { a = \"viewer@Pay\" }", "viewer@Pay"),
            ("role_map = { a = [\"viewer\", \"x@a@b\"] }", "x@a@b"),
            ("role_map = { \"\" = \"viewer\" }", "1 to 512 bytes"),
            ("role_map = { \"=ops\" = \"viewer\" }", "claim=value"),
            ("role_map = { \"department=\" = \"viewer\" }", "claim=value"),
        ] {
            let error = with(bad).unwrap_err();
            assert!(error.contains(named) && error.contains("line 4,"), "{bad}: {error}");
        }
        let many: Vec<String> = (0..=MAX_MAPPINGS).map(|number| format!("g{number} = \"viewer\"")).collect();
        assert!(with(&format!("[oidc.role_map]\n{}", many.join("\n"))).unwrap_err().contains("more than 1000"));
    }

    #[test]
    fn an_issuer_is_for_one_plane_or_both_by_different_names() {
        let parse = |text: &str| parse(&format!("\n[[oidc]]\n{text}\n"));
        for (bad, named) in [
            ("issuer = \"https://a.example\"", "oidc.audience"),
            ("issuer = \"https://a.example\"\naudience = \"x\"\ndata_audience = \"x\"", "oidc.data_audience"),
            ("issuer = \"https://a.example\"\ndata_audience = \"x\"\nrole_map = { g = \"viewer\" }", "oidc.role_map"),
            ("issuer = \"a.example\"\naudience = \"x\"", "oidc.issuer"),
            ("audience = \"x\"", "missing field `issuer`"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(named) && error.contains("line 2,"), "{bad}: {error}");
        }
        parse("issuer = \"https://a.example\"\ndata_audience = \"x\"").unwrap();
    }

    #[test]
    fn what_only_the_crate_knows_is_refused_with_the_issuer() {
        for bad in ["http://id.example.org", "https://id.example.org?a=b", "https://user@id.example.org"] {
            let sections = parse(&format!("[[oidc]]\nissuer = {bad:?}\naudience = \"x\"")).unwrap();
            let error = issuers(&sections, Clock::system()).unwrap_err();
            assert!(error.contains(bad), "{error}");
        }
        let twice = "[[oidc]]\nissuer = \"https://a.example\"\naudience = \"x\"\n".repeat(2);
        assert!(issuers(&parse(&twice).unwrap(), Clock::system()).unwrap_err().contains("https://a.example"));
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, "nonsense").unwrap();
        let text = format!("[[oidc]]\nissuer = \"https://a.example\"\naudience = \"x\"\nca = {ca:?}");
        assert!(issuers(&parse(&text).unwrap(), Clock::system()).unwrap_err().contains("https://a.example"));
    }
}
