//! Files of CA certificates.

use proptest::prelude::*;

use super::*;

fn refused(pem: &str) -> String {
    let error = read_bundle(pem.as_bytes()).unwrap_err();
    assert_eq!(error.reason(), "CLIENT_CA");
    error.message().to_owned()
}

fn pem_of(der: &[u8]) -> String {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{encoded}\n-----END CERTIFICATE-----\n")
}

#[test]
fn a_bundle_is_read_in_order_with_its_comments_and_without_repeats() {
    let (one, other) = (Authority::new("One"), Authority::new("Other"));
    let file = format!("# One\n{}\nOther:\r\n{}{}", one.pem, other.pem.replace('\n', "\r\n"), one.pem);
    assert_eq!(read_bundle(file.as_bytes()).unwrap(), [one.certificate, other.certificate]);
}

#[test]
fn what_is_not_the_certificate_of_a_ca_is_named() {
    let authority = Authority::new("One");
    let leaf = pem_of(&authority.leaf(&[uri("spiffe://prism-test/user/alice")]));
    let ca_pem = &authority.pem;
    assert!(refused(&format!("{ca_pem}{leaf}")).contains("certificate 2: is not the certificate of a CA"));
    let signs_nothing = Authority::with("No", |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    assert!(refused(&signs_nothing.pem).contains("certificate 1: must not sign certificates"));
    assert!(refused(&format!("{ca_pem}{ca_pem}{}", pem_of(b"nothing"))).contains("certificate 3: is not an X.509"));
    let longer = [&authority.certificate[..], b"\0"].concat();
    assert!(refused(&pem_of(&longer)).contains("certificate 1: is not an X.509"));
    assert!(refused(&format!("{ca_pem}{}", key().serialize_pem())).contains("block 2 is not a certificate"));
}

#[test]
fn no_error_shows_a_private_key() {
    let pem = key().serialize_pem();
    let body = pem.lines().nth(1).unwrap();
    assert!(!refused(&pem).contains(&body[..16]));
}

#[test]
fn empty_broken_and_huge_files_are_refused() {
    assert!(refused("").contains("no certificate"));
    assert!(refused("nothing\n").contains("no certificate"));
    let authority = Authority::new("One");
    let begun = authority.pem.lines().take(3).collect::<Vec<_>>().join("\n");
    assert!(read_bundle(begun.as_bytes()).is_err());
    assert!(refused(&authority.pem.replacen("MI", "M*", 1)).contains("block 1"));
    assert!(refused(&authority.pem.repeat(MAX_BUNDLE_CERTIFICATES + 1)).contains("at most"));
    assert_eq!(read_bundle(authority.pem.repeat(MAX_BUNDLE_CERTIFICATES).as_bytes()).unwrap().len(), 1);
    let large = Authority::with("Large", |params| {
        params
            .custom_extensions
            .push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5; 70_000]));
    });
    assert!(refused(&large.pem).contains("larger"));
    assert!(refused(&"\n".repeat(5 * 1024 * 1024)).contains("bytes"));
}

#[test]
fn a_trust_is_made_of_cas_and_the_own_one_is_not_a_configured_one() {
    let (own, partner) = (Authority::new("Prism CA"), Authority::new("Partner CA"));
    let error = |cluster: &str, own: &CertificateDer<'static>, external: &CertificateDer<'static>| {
        ClientTrust::new(cluster, vec![own.clone()], vec![external.clone()]).unwrap_err().message().to_owned()
    };
    assert!(error(CLUSTER, &own.certificate, &own.certificate).contains("own CA"));
    for cluster in ["", "Prism", "a b", "a/b", "é", "a*", &"x".repeat(256)] {
        assert!(error(cluster, &own.certificate, &partner.certificate).contains("cluster"), "{cluster:?}");
    }
    let leaf = partner.leaf(&[uri("urn:a:b")]);
    assert!(error(CLUSTER, &own.certificate, &leaf).contains("CA certificate 1"));
    assert!(error(CLUSTER, &leaf, &partner.certificate).contains("CA certificate 1"));
}

proptest! {
    #[test]
    fn arbitrary_text_is_refused(
        before in ".{0,40}",
        label in "(CERTIFICATE|PRIVATE KEY|X)",
        body in "[A-Za-z0-9+/=\n -]{0,200}|.{0,100}",
    ) {
        prop_assert!(read_bundle(before.as_bytes()).is_err());
        let framed = format!("{before}\n-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
        prop_assert!(read_bundle(framed.as_bytes()).is_err());
    }
}
