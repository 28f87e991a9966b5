//! Who vouches for a certificate, for what, and when.

use std::time::Duration;

use proptest::prelude::*;
use rcgen::{GeneralSubtree, NameConstraints};

use super::*;

const ALICE: &str = "spiffe://prism-test/user/alice";
const PARTNER: &str = "spiffe://partner.example/shop";
const DAY: Duration = Duration::from_hours(24);

#[test]
fn validity_is_checked_on_every_call() {
    let trusted = Trusted::new();
    let chain = [trusted.own.leaf(&[uri(ALICE)])];
    let identify = |now| trusted.trust.identify(&chain, now);
    let valid = identify(NOW).unwrap();
    let end = valid.expires_at;
    assert!(identify(end).is_ok());
    assert!(identify(end + Duration::from_millis(1)).is_err());
    assert!(identify(end + DAY * 10_000).is_err());
    // The clock jumps back, before the begin, and to where it was.
    assert!(identify(NOW - DAY * 366).is_err());
    let begin = UnixMillis(1_735_689_600_000);
    assert!(identify(begin).is_ok());
    assert!(identify(begin - Duration::from_millis(1)).is_err());
    assert!(identify(UnixMillis(0)).is_err());
    assert!(identify(UnixMillis(i64::MIN)).is_err());
    assert!(identify(UnixMillis(i64::MAX)).is_err());
    assert_eq!(identify(NOW).unwrap(), valid);
}

#[test]
fn a_certificate_is_remembered_by_all_of_its_bytes() {
    let trusted = Trusted::new();
    let (alice, bob) = (trusted.own.leaf(&[uri(ALICE)]), trusted.own.leaf(&[uri("spiffe://prism-test/user/bob")]));
    for _ in 0..3 {
        assert_eq!(trusted.trust.identify(std::slice::from_ref(&alice), NOW).unwrap().name, "alice");
        assert_eq!(trusted.trust.identify(std::slice::from_ref(&bob), NOW).unwrap().name, "bob");
    }
    for number in 0..30 {
        let name = format!("spiffe://prism-test/user/u{number}");
        assert_eq!(trusted.own(&[uri(&name)]).unwrap().identity, name);
    }
}

#[test]
fn certificates_of_other_cas_are_refused_whatever_they_are_called() {
    let trusted = Trusted::new();
    let impostor = Authority::new("Prism CA");
    let same_key_id = Authority::with("Prism CA", |params| {
        params.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![1; 20]);
    });
    for stranger in [impostor, same_key_id, Authority::new("Stranger")] {
        for names in [&[uri(ALICE)][..], &[uri(PARTNER)], &[dns("shop.example.org")]] {
            let leaf = stranger.leaf(names);
            assert!(trusted.trust.identify(std::slice::from_ref(&leaf), NOW).is_err());
            assert!(trusted.trust.identify(&[leaf.clone(), stranger.certificate.clone()], NOW).is_err());
            assert!(trusted.trust.identify(&[leaf, trusted.own.certificate.clone()], NOW).is_err());
        }
    }
}

#[test]
fn a_configured_ca_with_the_own_one_s_name_stays_external() {
    let own = Authority::new("Prism CA");
    let namesake = Authority::new("Prism CA");
    let trust = ClientTrust::new(CLUSTER, vec![own.certificate.clone()], vec![namesake.certificate.clone()]).unwrap();
    assert!(trust.identify(&[namesake.leaf(&[uri(ALICE)])], NOW).is_err());
    assert_eq!(trust.identify(&[namesake.leaf(&[uri(PARTNER)])], NOW).unwrap().kind, CertificateKind::External);
    assert_eq!(trust.identify(&[own.leaf(&[uri(ALICE)])], NOW).unwrap().kind, CertificateKind::User);
    // And the own CA names nobody of elsewhere.
    assert!(trust.identify(&[own.leaf(&[uri(PARTNER)])], NOW).is_err());
}

#[test]
fn only_leafs_for_client_authentication_are_taken() {
    type Change = fn(&mut CertificateParams);
    let trusted = Trusted::new();
    let changes: [(&str, Change, bool); 8] = [
        ("both uses", |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth), true),
        ("no key usage", |p| p.key_usages = Vec::new(), true),
        ("no extended key usage", |p| p.extended_key_usages = Vec::new(), false),
        ("a server's", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth], false),
        ("any use", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any], false),
        ("a key that must not sign", |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement], false),
        ("a CA", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), false),
        ("names twice", |p| p.custom_extensions.push(alternative_names(&[uri(ALICE)])), false),
    ];
    for (what, change, good) in changes {
        for (authority, name) in [(&trusted.own, ALICE), (&trusted.partner, PARTNER)] {
            let leaf = authority.leaf_with(&[uri(name)], change);
            assert_eq!(trusted.trust.identify(&[leaf], NOW).is_ok(), good, "{what}");
        }
    }
    for ca in [&trusted.own, &trusted.partner] {
        assert!(trusted.trust.identify(std::slice::from_ref(&ca.certificate), NOW).is_err());
    }
}

#[test]
fn no_names_or_unknown_critical_extensions_are_refused() {
    let trusted = Trusted::new();
    let nameless = trusted.own.leaf_with(&[], |params| params.custom_extensions.clear());
    assert!(trusted.trust.identify(&[nameless], NOW).is_err());
    let critical = trusted.own.leaf_with(&[uri(ALICE)], |params| {
        let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
        unknown.set_criticality(true);
        params.custom_extensions.push(unknown);
    });
    assert!(trusted.trust.identify(&[critical], NOW).is_err());
}

#[test]
fn configured_cas_may_have_intermediates_and_the_own_one_has_none() {
    let trusted = Trusted::new();
    let below = trusted.partner.below("Partner Issuing CA", |params| params.not_after = date_time_ymd(2026, 6, 1));
    let leaf = below.leaf(&[uri(PARTNER)]);
    assert!(trusted.trust.identify(std::slice::from_ref(&leaf), NOW).is_err());
    let chain = [leaf, below.certificate.clone()];
    let found = trusted.trust.identify(&chain, NOW).unwrap();
    // The intermediate ends before the leaf.
    assert_eq!(found.expires_at, UnixMillis(1_780_272_000_000));
    assert!(trusted.trust.identify(&chain, found.expires_at + DAY).is_err());

    let below = trusted.own.below("Prism Issuing CA", |_| {});
    assert!(trusted.trust.identify(&[below.leaf(&[uri(ALICE)]), below.certificate.clone()], NOW).is_err());

    let not_a_ca = trusted.partner.below("Not a CA", |params| params.is_ca = IsCa::ExplicitNoCa);
    assert!(trusted.trust.identify(&[not_a_ca.leaf(&[uri(PARTNER)]), not_a_ca.certificate.clone()], NOW).is_err());
}

#[test]
fn a_ca_that_has_expired_vouches_for_nobody() {
    let own = Authority::with("Prism CA", |params| params.not_after = date_time_ymd(2026, 6, 1));
    let next = Authority::new("Prism CA");
    let trust = ClientTrust::new(CLUSTER, vec![own.certificate.clone(), next.certificate.clone()], Vec::new()).unwrap();
    let chain = [own.leaf(&[uri(ALICE)])];
    let found = trust.identify(&chain, NOW).unwrap();
    assert_eq!(found.expires_at, UnixMillis(1_780_272_000_000));
    assert!(trust.identify(&chain, found.expires_at + DAY).is_err());
    assert!(trust.identify(&[next.leaf(&[uri(ALICE)])], found.expires_at + DAY).is_ok());
}

#[test]
fn a_ca_that_was_renewed_with_its_key_vouches_on() {
    let params = |end| {
        let mut params = authority_params("Partner CA", |_| {});
        params.not_after = date_time_ymd(end, 6, 1);
        params
    };
    let key = key();
    let old = params(2025).self_signed(&key).unwrap().der().clone();
    let new = params(2030).self_signed(&key).unwrap().der().clone();
    let partner = Authority { certificate: new.clone(), pem: String::new(), issuer: Issuer::new(params(2030), key) };
    let leaf = [partner.leaf(&[uri(PARTNER)])];
    let identify = |anchors| ClientTrust::new(CLUSTER, Vec::new(), anchors).unwrap().identify(&leaf, NOW);
    assert!(identify(vec![old.clone()]).is_err());
    assert!(identify(vec![old.clone(), new.clone()]).is_ok());
    assert!(identify(vec![new, old]).is_ok());
}

#[test]
fn what_a_configured_ca_may_name_is_kept_to() {
    let authority = Authority::with("Partner CA", |params| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("partner.example".to_owned())],
            excluded_subtrees: Vec::new(),
        });
    });
    let trust = ClientTrust::new(CLUSTER, Vec::new(), vec![authority.certificate.clone()]).unwrap();
    assert!(trust.identify(&[authority.leaf(&[dns("shop.partner.example")])], NOW).is_ok());
    assert!(trust.identify(&[authority.leaf(&[dns("shop.example.org")])], NOW).is_err());
}

#[test]
fn chains_are_bounded() {
    let trusted = Trusted::new();
    assert!(trusted.trust.identify(&[], NOW).is_err());
    let leaf = trusted.own.leaf(&[uri(ALICE)]);
    assert!(trusted.trust.identify(&vec![leaf.clone(); MAX_CHAIN + 1], NOW).is_err());
    assert!(trusted.trust.identify(&vec![leaf.clone(); MAX_CHAIN], NOW).is_ok());
    let huge = CertificateDer::from(vec![0x30; MAX_CERTIFICATE_BYTES + 1]);
    assert!(trusted.trust.identify(std::slice::from_ref(&huge), NOW).is_err());
    assert!(trusted.trust.identify(&[leaf, huge], NOW).is_err());
}

#[test]
fn what_is_logged_says_why_and_what_is_shown_is_short() {
    let trusted = Trusted::new();
    let refused = trusted.own(&[uri("spiffe://prism-test/user/a,b")]).unwrap_err();
    assert_eq!(refused.to_string(), "\"spiffe://prism-test/user/a,b\" is no identity of this cluster");
    let refused = trusted.partner(&[]).unwrap_err();
    assert!(refused.to_string().contains("it has no URI, DNS name or email address"));
    let shown = format!("{:?}", trusted.trust);
    assert!(shown.contains("prism-test") && shown.len() < 100, "{shown}");
}

#[test]
fn nobody_is_trusted_where_there_is_no_ca() {
    let trust = ClientTrust::new(CLUSTER, Vec::new(), Vec::new()).unwrap();
    assert!(trust.identify(&[Authority::new("Prism CA").leaf(&[uri(ALICE)])], NOW).is_err());
}

#[test]
fn every_changed_byte_and_every_cut_is_refused() {
    let trusted = Trusted::new();
    let leaf = trusted.own.leaf(&[uri(ALICE)]);
    assert!(trusted.trust.identify(std::slice::from_ref(&leaf), NOW).is_ok());
    for at in 0..leaf.len() {
        let mut changed = leaf.to_vec();
        changed[at] ^= 1;
        assert!(trusted.trust.identify(&[CertificateDer::from(changed)], NOW).is_err(), "byte {at}");
        assert!(trusted.trust.identify(&[CertificateDer::from(&leaf[..at])], NOW).is_err(), "cut at {at}");
    }
    let longer = [&leaf[..], b"\0"].concat();
    assert!(trusted.trust.identify(&[CertificateDer::from(longer)], NOW).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let trust = ClientTrust::new(CLUSTER, Vec::new(), Vec::new()).unwrap();
        prop_assert!(trust.identify(&[CertificateDer::from(bytes)], NOW).is_err());
    }
}

#[test]
fn damaged_certificates_are_refused() {
    let trusted = Trusted::new();
    let leaf = trusted.own.leaf(&[uri(ALICE)]);
    proptest!(|(at in 0..leaf.len(), bytes in proptest::collection::vec(any::<u8>(), 1..8))| {
        let mut changed = leaf.to_vec();
        let end = (at + bytes.len()).min(changed.len());
        changed.splice(at..end, bytes);
        prop_assume!(changed != leaf.to_vec());
        prop_assert!(trusted.trust.identify(&[CertificateDer::from(changed)], NOW).is_err());
    });
}
