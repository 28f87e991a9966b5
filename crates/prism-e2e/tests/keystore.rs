//! A token that is exchanged without a signing request gives a keystore that others can read: OpenSSL and a JVM.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prism_e2e::certificates::Holder;
use prism_e2e::enrol::{exchange, uri_of, without_key};
use prism_e2e::rest::{EXCHANGE, Rest};
use prism_e2e::{Admin, Headers, Options, Prism};
use serde_json::json;
use tonic::Code;

/// What a program prints; it must be there and be content.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output =
        output.unwrap_or_else(|error| panic!("this test needs {program}: {error}; `cargo xtask test` installs it"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {out}{err}");
    out.into_owned()
}

/// The key and the certificates that OpenSSL finds in a keystore, and that they are a node's, whose connection is good.
async fn openssl_reads(server: &Prism, keystore: &Path, password: &str, node: &str) {
    let (file, pass) = (keystore.to_string_lossy(), format!("pass:{password}"));
    let pem = run("openssl", &["pkcs12", "-in", &file, "-passin", &pass, "-nodes"]);
    let key = run("openssl", &["pkcs12", "-in", &file, "-passin", &pass, "-nodes", "-nocerts"]);
    let leaf = run("openssl", &["pkcs12", "-in", &file, "-passin", &pass, "-nodes", "-nokeys", "-clcerts"]);
    assert_eq!((pem.matches("BEGIN CERTIFICATE").count(), pem.matches("BEGIN PRIVATE KEY").count()), (2, 1));
    let cut = |text: &str, what: &str| {
        let (begin, end) = (format!("-----BEGIN {what}-----"), format!("-----END {what}-----"));
        let start = text.find(&begin).unwrap();
        format!("{}\n", &text[start..text.find(&end).unwrap() + end.len()])
    };
    let holder = Holder { chain_pem: cut(&leaf, "CERTIFICATE"), key_pem: cut(&key, "PRIVATE KEY") };
    assert!(uri_of(&holder).ends_with(&format!("/node/{node}")));
    let caller = Admin { channel: server.admin_channel_as(&holder), headers: Headers::none() };
    caller.who_am_i().await.unwrap_err().is(Code::PermissionDenied, "PERMISSION_DENIED");
}

fn a_jvm_reads(keystore: &Path, password: &str, node: &str) {
    let file = keystore.to_string_lossy();
    let listed = run("keytool", &["-list", "-v", "-keystore", &file, "-storetype", "PKCS12", "-storepass", password]);
    assert!(listed.contains("PrivateKeyEntry") && listed.contains(&format!("CN={node}")), "{listed}");
    assert!(listed.contains("Certificate chain length: 2"), "{listed}");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/keystore/Keystore.java");
    let said = run("java", &[&source.to_string_lossy(), &file, password]);
    assert_eq!(said.trim(), format!("{node} CN={node} 2"));
}

#[tokio::test]
async fn openssl_and_a_jvm_read_the_keystore() {
    let server = Prism::start(Options::new()).await;
    let (admin, folder) = (server.admin(), tempfile::tempdir().unwrap());
    let by_grpc = admin.create_join_token("").await.join_token;
    let answer = exchange(&server.admin_channel(), without_key(&by_grpc, "jvm-1")).await.unwrap();
    assert!(
        answer.pkcs12_password.len() >= 32 && answer.pkcs12_password.bytes().all(|byte| byte.is_ascii_alphanumeric())
    );
    let certificate = answer.certificate_pem.clone();
    assert!(certificate.starts_with(b"-----BEGIN CERTIFICATE-----"));
    let file = folder.path().join("grpc.p12");
    std::fs::write(&file, &answer.pkcs12).unwrap();
    openssl_reads(&server, &file, &answer.pkcs12_password, "jvm-1").await;
    a_jvm_reads(&file, &answer.pkcs12_password, "jvm-1");
    let wrong =
        Command::new("openssl").args(["pkcs12", "-nodes", "-passin", "pass:x", "-in"]).arg(&file).output().unwrap();
    assert!(!wrong.status.success());

    let by_rest = admin.create_join_token("jvm-2").await.join_token;
    let body = json!({"joinToken": by_rest, "nodeId": "jvm-2"});
    let answer = Rest::of(&server).json("POST", EXCHANGE, &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let file = folder.path().join("rest.p12");
    std::fs::write(&file, STANDARD.decode(answer.body["pkcs12Base64"].as_str().unwrap()).unwrap()).unwrap();
    let password = answer.body["pkcs12Password"].as_str().unwrap();
    openssl_reads(&server, &file, password, "jvm-2").await;
    a_jvm_reads(&file, password, "jvm-2");

    // Without a signing request each try is another key.
    let refused = exchange(&server.admin_channel(), without_key(&by_grpc, "jvm-1")).await.unwrap_err();
    refused.is(Code::FailedPrecondition, "TOKEN_REDEEMED");
    // Neither key nor password is anywhere on the server.
    let held: Vec<u8> = std::fs::read(server.data_dir().join("prism.db")).unwrap();
    assert!(!held.windows(password.len()).any(|bytes| bytes == password.as_bytes()));
    assert!(!server.log().contains(password) && !server.log().contains("PRIVATE KEY"));
}
