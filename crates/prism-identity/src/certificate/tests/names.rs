//! Whose certificate it is: the whole name, or nothing.

use proptest::prelude::*;

use super::*;

fn subjects(identity: &CertificateIdentity) -> Vec<&str> {
    identity.subjects.iter().map(Subject::as_str).collect()
}

#[test]
fn kinds_of_the_own_ca_and_what_bindings_may_name() {
    let trusted = Trusted::new();
    let user = trusted.own(&[uri("spiffe://prism-test/user/alice@example.org")]).unwrap();
    assert_eq!((user.kind, user.name.as_str()), (CertificateKind::User, "alice@example.org"));
    assert_eq!(user.identity, "spiffe://prism-test/user/alice@example.org");
    assert_eq!(subjects(&user), ["user:alice@example.org", "certificate:spiffe://prism-test/user/alice@example.org"]);
    assert_eq!((user.serial.as_str(), user.credential_id.as_str()), ("0abc01", "0abc01"));
    assert_eq!(user.expires_at, UnixMillis(1_798_761_600_000));
    assert_eq!(user.fingerprint.len(), 64);

    let controller = trusted.own(&[uri("spiffe://prism-test/controller/c1")]).unwrap();
    assert_eq!((controller.kind, controller.name.as_str()), (CertificateKind::Controller, "c1"));
    assert_eq!(subjects(&controller), ["certificate:spiffe://prism-test/controller/c1"]);

    let client = trusted.own(&[uri("spiffe://prism-test/client/shop")]).unwrap();
    assert_eq!(client.kind, CertificateKind::Client);
    assert_eq!(subjects(&client), ["certificate:spiffe://prism-test/client/shop"]);

    // A node's certificate has its name as a DNS name too.
    let node = trusted.own(&[uri("spiffe://prism-test/node/n-1"), dns("n-1")]).unwrap();
    assert_eq!((node.kind, node.name.as_str()), (CertificateKind::Node, "n-1"));
    assert!(node.subjects.is_empty());
}

#[test]
fn own_names_that_are_not_whole_and_plain_are_refused() {
    let trusted = Trusted::new();
    let long = format!("spiffe://prism-test/user/{}", "x".repeat(256));
    for bad in [
        "",
        "alice",
        "spiffe://prism-test",
        "spiffe://prism-test/",
        "spiffe://prism-test/user",
        "spiffe://prism-test/user/",
        "spiffe://prism-test/user/.",
        "spiffe://prism-test/user/..",
        "spiffe://prism-test/user/alice/",
        "spiffe://prism-test/user/a/b",
        "spiffe://prism-test//user/alice",
        "spiffe://prism-test/admin/alice",
        "spiffe://prism-test/User/alice",
        "spiffe://prism-test/user/alice,bob",
        "spiffe://prism-test/user/alice bob",
        "spiffe://prism-test/user/ alice",
        "spiffe://prism-test/user/*",
        "spiffe://prism-test/user/al*",
        "spiffe://prism-test/user/a%2fb",
        "spiffe://prism-test/user/alice%00",
        "spiffe://prism-test/user/alice\0",
        "spiffe://prism-test/user/alice\0.example.org",
        "spiffe://prism-test/user/alice\n",
        "spiffe://prism-test/user/alice?a=b",
        "spiffe://prism-test/user/alice#a",
        "spiffe://prism-test/user/al\"ice",
        "spiffe://prism-test/user/al\\ice",
        "spiffe://prism-test/user/alicé",
        "spiffe://prism-test/user/\u{202e}ecila",
        "spiffe://prism-test/controller/",
        "spiffe://prism-test.example.org/user/alice",
        "spiffe://prism-test@example.org/user/alice",
        "spiffe://prism-test:8981/user/alice",
        "spiffe://prism/user/alice",
        "spiffe://other/user/alice",
        "spiffe://PRISM-TEST/user/alice",
        "SPIFFE://prism-test/user/alice",
        "spiffe:/prism-test/user/alice",
        "https://prism-test/user/alice",
        " spiffe://prism-test/user/alice",
        "spiffe://prism-test/user/alice ",
        "x spiffe://prism-test/user/alice",
        &long,
    ] {
        let refused = trusted.own(&[uri(bad)]).unwrap_err();
        assert!(!refused.0.contains('\0') && !refused.0.contains('\n'), "{bad:?}");
    }
    for bad in [&b"spiffe://prism-test/user/\xff"[..], b"\xfe\xff"] {
        assert!(trusted.own(&[San::Uri(bad)]).is_err());
    }
}

#[test]
fn an_own_certificate_has_one_uri() {
    let trusted = Trusted::new();
    let good = uri("spiffe://prism-test/user/alice");
    assert!(trusted.own(&[good]).is_ok());
    for names in [
        &[good, good][..],
        &[good, uri("spiffe://prism-test/user/bob")],
        &[uri("https://example.org/"), good],
        &[good, San::Uri(b"\xff")],
        &[dns("alice")],
        &[email("alice@example.org")],
        &[San::Address],
        &[],
    ] {
        assert!(trusted.own(names).is_err(), "{}", names.len());
    }
}

#[test]
fn an_external_certificate_is_the_whole_of_one_name() {
    let trusted = Trusted::new();
    for (names, identity) in [
        (&[uri("spiffe://partner.example/ns/prod/sa/shop")][..], "spiffe://partner.example/ns/prod/sa/shop"),
        (&[uri("https://example.org/shop?a=b")], "https://example.org/shop?a=b"),
        (&[uri("urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6")], "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),
        (&[uri("spiffe://partner.example/shop"), dns("a.example"), dns("b.example")], "spiffe://partner.example/shop"),
        (&[dns("shop.example.org")], "shop.example.org"),
        (&[dns("shop"), San::Address], "shop"),
        (&[email("o'neil+ops@example.org")], "o'neil+ops@example.org"),
    ] {
        let found = trusted.partner(names).unwrap();
        assert_eq!((found.kind, found.identity.as_str()), (CertificateKind::External, identity));
        assert_eq!(found.name, identity);
        assert_eq!(subjects(&found), [format!("certificate:{identity}")]);
        assert_eq!(found.credential_id, format!("sha256:{}", found.fingerprint));
    }
}

#[test]
fn external_names_that_are_several_or_odd_are_refused() {
    let trusted = Trusted::new();
    let long = format!("urn:{}", "x".repeat(600));
    let labels = format!("{}.example", "x".repeat(64));
    for names in [
        &[][..],
        &[San::Address],
        &[uri("urn:a:1"), uri("urn:a:2")],
        &[dns("a.example"), dns("b.example")],
        &[dns("a.example"), email("a@example.org")],
        &[email("a@example.org"), email("b@example.org")],
        &[dns("a.example"), San::Dns(b"\xff")],
        &[uri("")],
        &[uri("shop")],
        &[uri("1urn:a")],
        &[uri("urn:")],
        &[uri("urn:a,b")],
        &[uri("urn:a b")],
        &[uri("urn:a*")],
        &[uri("urn:a%00")],
        &[uri("urn:a\0")],
        &[uri("urn:é")],
        &[uri(&long)],
        &[uri(&format!("urn:{}", "x".repeat(509)))],
        &[dns("")],
        &[dns("*.example.org")],
        &[dns("a*.example.org")],
        &[dns("*")],
        &[dns(".example.org")],
        &[dns("a..example.org")],
        &[dns("a.example.org.")],
        &[dns("-a.example.org")],
        &[dns("a.example.org\0.other.org")],
        &[dns("a.example.org,b.example.org")],
        &[dns("a example")],
        &[dns("ä.example.org")],
        &[dns(&labels)],
        &[email("")],
        &[email("alice")],
        &[email("@example.org")],
        &[email("alice@")],
        &[email("a@b@example.org")],
        &[email("a b@example.org")],
        &[email("a,b@example.org")],
        &[email("a\0@example.org")],
        &[email("*@example.org")],
        &[email("alice@*.example.org")],
        &[email("\"a\"@example.org")],
    ] {
        assert!(trusted.partner(names).is_err());
    }
}

#[test]
fn an_external_certificate_cannot_be_somebody_of_this_cluster() {
    let trusted = Trusted::new();
    for bad in [
        "spiffe://prism-test/user/alice",
        "spiffe://prism-test/controller/root",
        "spiffe://prism-test/anything",
        "spiffe://prism-test/",
        "spiffe://prism-test",
        "SPIFFE://prism-test/user/alice",
        "Spiffe://Prism-Test/user/alice",
        "spiffe://PRISM-TEST/user/alice",
        "spiffe:prism-test/user/alice",
        "spiffe:/prism-test/user/alice",
        "spiffe:///prism-test/user/alice",
        "spiffe://x@prism-test/user/alice",
        "spiffe://prism-test:443/user/alice",
        "spiffe://prism-test?/user/alice",
        "spiffe://prism-test#/user/alice",
        "spiffe://prism%2dtest/user/alice",
    ] {
        assert!(trusted.partner(&[uri(bad)]).is_err(), "{bad}");
        assert!(trusted.partner(&[San::Dns(bad.as_bytes())]).is_err(), "{bad}");
        assert!(trusted.partner(&[San::Email(bad.as_bytes())]).is_err(), "{bad}");
    }
    // The names of a neighbour begin like ours, and are not.
    assert!(trusted.partner(&[uri("spiffe://prism-test2/user/alice")]).is_ok());
    assert!(trusted.partner(&[uri(&format!("urn:{}", "x".repeat(508)))]).is_ok());
    assert!(trusted.partner(&[uri("spiffe://other/prism-test/user/alice")]).is_ok());
}

#[test]
fn what_is_issued_is_what_is_taken() {
    let trusted = Trusted::new();
    for kind in [CertificateKind::Controller, CertificateKind::User, CertificateKind::Client, CertificateKind::Node] {
        let identity = own_identity(CLUSTER, kind, "a-1_b.c+d@e=f~g:h").unwrap();
        assert_eq!(trusted.own(&[uri(&identity)]).unwrap().kind, kind);
    }
    assert_eq!(own_identity(CLUSTER, CertificateKind::External, "a"), None);
    assert_eq!(own_identity("Prism", CertificateKind::User, "a"), None);
    for bad in ["", "a/b", "a b", "a,b", "*", "a%", "a\0", "é", "..", &"x".repeat(256)] {
        assert_eq!(own_identity(CLUSTER, CertificateKind::User, bad), None, "{bad:?}");
    }
}

proptest! {
    #[test]
    fn a_name_is_issued_if_and_only_if_it_reads_back(cluster in "[a-z0-9.]{1,8}", name in "[ -~]{0,12}|.{0,6}") {
        let identity = own_identity(&cluster, CertificateKind::User, &name);
        let raw = format!("spiffe://{cluster}/user/{name}");
        let read = name::own_parts(&cluster, &raw);
        prop_assert_eq!(identity.is_some(), read.is_some());
        if let Some(read) = read {
            prop_assert_eq!(read, (CertificateKind::User, name.as_str()));
        }
    }

    #[test]
    fn no_external_name_reads_as_an_own_one(text in "(spiffe|SPIFFE|urn|https)?(:|://|:///)?(prism-test|x)?[ -~]{0,16}|.{0,16}") {
        for names in [
            name::Names { uris: vec![text.clone()], ..Default::default() },
            name::Names { dns: vec![text.clone()], ..Default::default() },
            name::Names { emails: vec![text.clone()], ..Default::default() },
        ] {
            if let Ok(identity) = names.external_identity(CLUSTER) {
                prop_assert_eq!(identity, &text);
                prop_assert!(identity.is_ascii() && !identity.contains([' ', ',', '*', '%', '\0']));
                prop_assert!(!identity.to_ascii_lowercase().starts_with("spiffe://prism-test/"));
                prop_assert_eq!(name::own_parts(CLUSTER, identity), None);
            }
        }
    }
}
