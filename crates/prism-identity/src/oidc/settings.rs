//! What an operator says about an issuer, and the proof that it makes sense.

use std::net::IpAddr;

use prism_core::{Error, NamespaceName, Result};
use reqwest::Url;

use super::Plane;

/// Longest issuer, audience, scope, claim name or prefix, in bytes.
const MAX_SETTING_BYTES: usize = 512;

/// Signature algorithms that an issuer may be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256, keys of 2048 to 8192 bits.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 3] = [Self::RS256, Self::ES256, Self::EdDSA];

    /// The name that JOSE gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RS256 => "RS256",
            Self::ES256 => "ES256",
            Self::EdDSA => "EdDSA",
        }
    }

    /// The algorithm of that name; names are case-sensitive.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// A value of a claim that stands for a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleMapping {
    /// Name of a claim, at the top of the token.
    pub claim: String,
    /// What the claim must be, or hold when it is a list.
    pub value: String,
    /// Name of the role.
    pub role: String,
    /// Where the role holds; absent = the whole installation.
    pub namespace: Option<NamespaceName>,
}

/// An issuer of access tokens, as the operator configures it.
#[derive(Clone, Debug)]
pub struct IssuerSettings {
    /// Issuer identifier, equal to the claim `iss` byte for byte. https; http for loopback hosts only.
    pub issuer: String,
    /// Audience of tokens for the admin plane; absent = none of its tokens are.
    pub admin_audience: Option<String>,
    /// Scope that tokens for the admin plane must carry.
    pub admin_scope: String,
    /// Audience of tokens for the data plane; absent = none of its tokens are.
    pub data_audience: Option<String>,
    /// Claim that names the user.
    pub user_claim: String,
    /// Claim that lists the user's groups.
    pub groups_claim: String,
    /// Put before the names of users and groups, so that two issuers cannot name the same person.
    pub prefix: String,
    /// Claims that stand for roles of the admin plane.
    pub role_map: Vec<RoleMapping>,
    /// CA certificates, in PEM, that may vouch for the issuer's TLS; absent = those of the operating system.
    pub ca_pem: Option<Vec<u8>>,
    /// Algorithms that its tokens may be signed with.
    pub algorithms: Vec<Algorithm>,
}

/// Refuses settings that cannot work or would be unsafe: FAILED_PRECONDITION that names the issuer.
pub(super) fn prove(all: &[IssuerSettings]) -> Result<()> {
    for (at, settings) in all.iter().enumerate() {
        settings.prove()?;
        for other in all.get(..at).unwrap_or_default() {
            if other.issuer == settings.issuer {
                return Err(fault(&settings.issuer, "is configured twice"));
            }
            if let Some(why) = settings.overlaps(other) {
                return Err(fault(&settings.issuer, &why));
            }
        }
    }
    Ok(())
}

impl IssuerSettings {
    /// Why a name from one of two issuers could be that of another person from the other: where both are for the same plane, a
    /// prefix must not begin with that of another issuer. An empty one begins them all. Users and groups are apart anyway.
    pub fn overlaps(&self, other: &Self) -> Option<String> {
        let overlap = self.prefix.starts_with(&other.prefix) || other.prefix.starts_with(&self.prefix);
        (overlap && self.shares_a_plane_with(other)).then(|| {
            format!(
                "its prefix {:?} and the prefix {:?} of the issuer {} do not keep their users and groups apart; give each a prefix, of \
                 which none begins with another, such as \"a:\" and \"b:\"",
                self.prefix,
                other.prefix,
                crate::quoted(&other.issuer, MAX_SETTING_BYTES)
            )
        })
    }

    fn prove(&self) -> Result<()> {
        let refused = |why: &str| Err(fault(&self.issuer, why));
        let Some(url) = self.url() else {
            return refused("must be an https URL without user, query and fragment; http is for loopback hosts only");
        };
        if url.scheme() == "http" && !is_loopback(&url) {
            return refused("must be https: keys that come over http could be anyone's");
        }
        for (name, text) in [
            ("audience", self.admin_audience.as_deref()),
            ("data_audience", self.data_audience.as_deref()),
            ("admin_scope", Some(self.admin_scope.as_str())),
            ("user_claim", Some(self.user_claim.as_str())),
            ("groups_claim", Some(self.groups_claim.as_str())),
        ] {
            if text.is_some_and(|text| text.is_empty() || !is_plain(text)) {
                return refused(&format!("{name} must be 1 to {MAX_SETTING_BYTES} bytes without control characters"));
            }
        }
        if !is_plain(&self.prefix) {
            return refused(&format!("prefix must be at most {MAX_SETTING_BYTES} bytes without control characters"));
        }
        match (&self.admin_audience, &self.data_audience) {
            (None, None) => return refused("needs an audience, a data_audience, or both"),
            (Some(admin), Some(data)) if admin == data => {
                return refused("audience and data_audience must differ: a token is for one plane only");
            }
            _ => {}
        }
        if self.admin_scope.contains(char::is_whitespace) {
            return refused("admin_scope must be one scope, without spaces");
        }
        if self.algorithms.is_empty() {
            return refused("algorithms must name RS256, ES256 or EdDSA");
        }
        if self.role_map.iter().any(|mapping| {
            [&mapping.claim, &mapping.value, &mapping.role].iter().any(|text| text.is_empty() || !is_plain(text))
        }) {
            return refused("role_map must have a claim, a value and a role in each entry");
        }
        Ok(())
    }

    fn url(&self) -> Option<Url> {
        let url = Url::parse(&self.issuer).ok()?;
        let plain = is_plain(&self.issuer)
            && matches!(url.scheme(), "https" | "http")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        plain.then_some(url)
    }

    /// Where the issuer describes itself (OpenID Connect Discovery 1.0, §4): a slash at its end is not doubled.
    pub(super) fn discovery_url(&self) -> Option<Url> {
        self.url()?;
        let base = self.issuer.strip_suffix('/').unwrap_or(&self.issuer);
        Url::parse(&format!("{base}/.well-known/openid-configuration")).ok()
    }

    /// The audience of tokens for `plane`.
    pub(super) fn audience(&self, plane: Plane) -> Option<&str> {
        match plane {
            Plane::Admin => self.admin_audience.as_deref(),
            Plane::Data => self.data_audience.as_deref(),
        }
    }

    fn shares_a_plane_with(&self, other: &Self) -> bool {
        [Plane::Admin, Plane::Data]
            .iter()
            .any(|plane| self.audience(*plane).is_some() && other.audience(*plane).is_some())
    }
}

/// Whether the host of `url` is this machine by its very name or number.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// FAILED_PRECONDITION for what is wrong with the settings of `issuer`.
pub(super) fn fault(issuer: &str, why: &str) -> Error {
    Error::precondition("OIDC_SETTINGS", format!("the issuer {}: {why}", crate::quoted(issuer, MAX_SETTING_BYTES)))
}

fn is_plain(text: &str) -> bool {
    text.len() <= MAX_SETTING_BYTES && !text.chars().any(char::is_control)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::oidc) fn settings(issuer: &str) -> IssuerSettings {
        IssuerSettings {
            issuer: issuer.to_owned(),
            admin_audience: Some("prism-admin".to_owned()),
            admin_scope: "prism.admin".to_owned(),
            data_audience: Some("prism-data".to_owned()),
            user_claim: "sub".to_owned(),
            groups_claim: "groups".to_owned(),
            prefix: String::new(),
            role_map: Vec::new(),
            ca_pem: None,
            algorithms: Algorithm::ALL.to_vec(),
        }
    }

    #[test]
    fn issuers_are_https_and_http_only_on_this_machine() {
        for good in [
            "https://id.example.org",
            "https://id.example.org/realms/a/",
            "https://id.example.org:8443",
            "http://localhost:9000",
            "http://127.0.0.1:9000/x",
            "http://127.9.9.9",
            "http://[::1]:9000",
        ] {
            assert!(prove(&[settings(good)]).is_ok(), "{good}");
        }
        for bad in [
            "",
            "id.example.org",
            "http://id.example.org",
            "http://localhost.example.org",
            "http://127.0.0.1.example.org",
            "http://192.0.2.1",
            "http://0.0.0.0",
            "ftp://localhost",
            "file:///etc/passwd",
            "https://user@id.example.org",
            "https://user:word@id.example.org",
            "https://id.example.org?a=b",
            "https://id.example.org#a",
            "https://id.example.org/\n",
            "https://",
        ] {
            let error = prove(&[settings(bad)]).unwrap_err();
            assert_eq!(error.reason(), "OIDC_SETTINGS", "{bad:?}");
            assert!(error.message().contains(&format!("{bad:?}")), "{bad:?}: {}", error.message());
        }
    }

    #[test]
    fn what_would_be_unsafe_or_useless_is_refused() {
        type Change = fn(&mut IssuerSettings);
        let changes: [(&str, Change); 13] = [
            ("differ", |s| s.data_audience = s.admin_audience.clone()),
            ("needs an audience", |s| (s.admin_audience, s.data_audience) = (None, None)),
            ("audience must", |s| s.admin_audience = Some(String::new())),
            ("data_audience must", |s| s.data_audience = Some("a\nb".to_owned())),
            ("admin_scope must", |s| s.admin_scope = String::new()),
            ("one scope", |s| s.admin_scope = "a b".to_owned()),
            ("user_claim", |s| s.user_claim = String::new()),
            ("groups_claim", |s| s.groups_claim = String::new()),
            ("prefix", |s| s.prefix = "a\0".to_owned()),
            ("prefix", |s| s.prefix = "a".repeat(MAX_SETTING_BYTES + 1)),
            ("algorithms", |s| s.algorithms = Vec::new()),
            ("role_map", |s| {
                s.role_map = vec![RoleMapping {
                    claim: "g".to_owned(),
                    value: String::new(),
                    role: "r".to_owned(),
                    namespace: None,
                }];
            }),
            ("role_map", |s| {
                s.role_map = vec![RoleMapping {
                    claim: String::new(),
                    value: "v".to_owned(),
                    role: "r".to_owned(),
                    namespace: None,
                }];
            }),
        ];
        for (message, change) in changes {
            let mut unsafe_one = settings("https://id.example.org");
            change(&mut unsafe_one);
            let error = prove(&[unsafe_one]).unwrap_err();
            assert!(error.message().contains(message), "{message}: {}", error.message());
            assert!(error.message().contains("https://id.example.org"), "{}", error.message());
        }
    }

    #[test]
    fn an_issuer_stands_once() {
        let one = settings("https://a.example.org");
        let under = |issuer, prefix: &str| IssuerSettings { prefix: prefix.to_owned(), ..settings(issuer) };
        let one = IssuerSettings { prefix: "a:".to_owned(), ..one };
        assert!(prove(&[one.clone(), under("https://a.example.org/", "b:")]).is_ok());
        let error = prove(&[one.clone(), under("https://b.example.org", "b:"), one]).unwrap_err();
        assert!(error.message().contains("twice"));
    }

    #[test]
    fn two_issuers_cannot_name_the_same_person() {
        const BOTH: (bool, bool) = (true, true);
        const ADMIN: (bool, bool) = (true, false);
        const DATA: (bool, bool) = (false, true);
        let with = |prefix: &str, planes: (bool, bool)| {
            let (admin, data) = planes;
            let mut settings = settings(&format!("https://{}.example.org", prefix.len()));
            settings.prefix = prefix.to_owned();
            settings.admin_audience = settings.admin_audience.filter(|_| admin);
            settings.data_audience = settings.data_audience.filter(|_| data);
            settings
        };
        let twin = |prefix| IssuerSettings { issuer: "https://twin.example.org".to_owned(), ..with(prefix, BOTH) };
        for pair in [
            [with("", BOTH), twin("")],
            [with("a:", BOTH), twin("a:")],
            [with("", BOTH), with("partner:", BOTH)],
            [with("partner:", ADMIN), with("", BOTH)],
            [with("a", DATA), with("ab", DATA)],
            [with("corp:eu:", BOTH), with("corp:", DATA)],
        ] {
            let error = prove(&pair).unwrap_err();
            assert!(error.message().contains("users and groups apart"), "{}", error.message());
            assert!(pair.iter().all(|settings| error.message().contains(&settings.issuer)), "{}", error.message());
        }
        for pair in [[with("a:", BOTH), with("bb:", BOTH)], [with("", ADMIN), with("a:", DATA)]] {
            assert!(prove(&pair).is_ok());
        }
        // Of many, any two.
        let error = prove(&[with("a:", BOTH), with("bb:", BOTH), with("a:b:", BOTH)]).unwrap_err();
        assert!(error.message().contains("\"a:\""), "{}", error.message());
    }

    #[test]
    fn the_discovery_document_is_below_the_issuer() {
        let at = |issuer| settings(issuer).discovery_url().unwrap().to_string();
        assert_eq!(at("https://a.example.org"), "https://a.example.org/.well-known/openid-configuration");
        assert_eq!(at("https://a.example.org/r/"), "https://a.example.org/r/.well-known/openid-configuration");
    }

    #[test]
    fn algorithms_have_their_exact_names() {
        assert_eq!(Algorithm::named("EdDSA"), Some(Algorithm::EdDSA));
        for bad in ["none", "HS256", "rs256", "ES384", "PS256", "Ed25519", "", "RS256 "] {
            assert_eq!(Algorithm::named(bad), None, "{bad}");
        }
    }
}
