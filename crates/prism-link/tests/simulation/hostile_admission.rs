//! A node that admits what no client may ask for.

use prism_core::config::{AccessPattern, BackendType, Config, RateLimit};
use prism_core::session::SessionId;
use prism_core::{InstanceName, NamespaceName};
use prism_proto::cluster::v1 as wire;
use wire::answer::Result as Answered;
use wire::ask::Ask;

use crate::client::request;
use crate::hostile::{Manner, Raw, block_on, fleet, node};

pub fn backend(instance: &str, kind: &str) -> wire::BackendIdentity {
    let identity = format!("embedded:one:{instance}");
    wire::BackendIdentity { instance: instance.to_owned(), r#type: kind.to_owned(), identity }
}

/// An admission for a config that is changed like this.
pub fn admission(change: impl FnOnce(&mut Config)) -> wire::AdmitAsk {
    let mut config = Config::clone(&request(&node("one")).config);
    change(&mut config);
    wire::AdmitAsk {
        client_id: "client".to_owned(),
        config_json: serde_json::to_vec(&config).unwrap().into(),
        read: true,
        write: true,
        basis: Some(wire::BasisEntry { credential_id: "key".to_owned(), ..Default::default() }),
        ..Default::default()
    }
}

/// A config with tables of its own.
fn tables(config: &mut Config) {
    config.pattern = AccessPattern::PagedReader;
    config.backend.kind = BackendType::Sqlite;
    config.instance = InstanceName::parse("i", "sqlite").unwrap();
    config.backend.options =
        [("collections", "a"), ("schema", "CREATE TABLE a (x)")].map(|(key, value)| (key.into(), value.into())).into();
}

#[test]
fn an_inline_config_is_proven_by_the_controller_too() {
    block_on(async {
        let (fleet, control) = fleet().await;
        let backends = vec![backend("memory", "memory"), backend("sqlite", "sqlite"), backend("new", "of-tomorrow")];
        let mut raw = Raw::connect(&fleet, "one", Manner::Good, backends).await.unwrap();
        let name = |name: &str| InstanceName::parse("i", name).unwrap();
        let option = |key: &str, value: String| {
            let key = key.to_owned();
            move |config: &mut Config| drop(config.backend.options.insert(key, value))
        };
        let over = RateLimit { requests_per_second: -1, burst: i32::MAX };
        let bad: Vec<(&str, wire::AdmitAsk)> = vec![
            ("inline_config.rate_limit.burst", admission(|config| config.rate_limit = Some(over))),
            ("inline_config.version", admission(|config| config.version = "v".repeat(500_000))),
            ("inline_config.pattern", admission(|config| config.pattern = AccessPattern::PagedReader)),
            ("inline_config.backend.options.colour", admission(option("colour", "red".to_owned()))),
            ("inline_config.backend.options.instance", admission(option("instance", "other".to_owned()))),
            ("inline_config.backend.options.instance", admission(|config| config.instance = name("sqlite"))),
            ("inline_config.backend.options.instance", admission(|config| config.backend.kind = BackendType::Kafka)),
            (
                "inline_config.namespace",
                admission(|config| config.namespace = NamespaceName::parse("n", "nowhere").unwrap()),
            ),
            (
                "inline_config.backend.options.schema",
                admission(|config| {
                    tables(config);
                    config.backend.options.insert("schema".to_owned(), "x".repeat(100_000));
                }),
            ),
        ];
        for (field, ask) in bad {
            match raw.ask(Ask::Admit(ask)).await {
                Answered::Failure(failure) => {
                    assert_eq!(failure.code, "INVALID_ARGUMENT", "{field}: {failure:?}");
                    let fields: Vec<_> = failure.fields.iter().map(|failure| failure.field.as_str()).collect();
                    assert!(fields.contains(&field), "{field}: {fields:?}");
                }
                other => panic!("{field}: {other:?}"),
            }
        }
        assert!(control.live().is_empty(), "nothing of it was admitted");

        let read_only = wire::AdmitAsk { write: false, ..admission(tables) };
        match raw.ask(Ask::Admit(read_only)).await {
            Answered::Failure(failure) => assert_eq!(failure.code, "PERMISSION_DENIED", "{failure:?}"),
            other => panic!("{other:?}"),
        }
        for good in [admission(|_| ()), admission(tables)] {
            let sent: Config = serde_json::from_slice(&good.config_json).unwrap();
            let Answered::Admitted(admitted) = raw.ask(Ask::Admit(good)).await else { panic!("it is good") };
            let session = admitted.session.unwrap();
            assert_eq!(serde_json::from_slice::<Config>(&session.config_json).unwrap(), sent);
            assert!(control.is_live(SessionId::from_bytes(&session.id).unwrap()));
        }
    });
}

#[test]
fn what_a_client_says_is_held_to_its_bounds() {
    block_on(async {
        let (fleet, control) = fleet().await;
        let raw = Raw::connect(&fleet, "one", Manner::Good, vec![backend("memory", "memory")]).await;
        let mut raw = raw.unwrap();
        let basis = |change: fn(&mut wire::BasisEntry)| {
            let mut basis = wire::BasisEntry { credential_id: "key".to_owned(), ..Default::default() };
            change(&mut basis);
            wire::AdmitAsk { basis: Some(basis), ..admission(|_| ()) }
        };
        let bad = [
            ("client_id", wire::AdmitAsk { client_id: "a\u{7}b".to_owned(), ..admission(|_| ()) }),
            ("client_version", wire::AdmitAsk { client_version: "v".repeat(1025), ..admission(|_| ()) }),
            ("metadata", wire::AdmitAsk { metadata: [(String::new(), String::new())].into(), ..admission(|_| ()) }),
            ("credential_id", basis(|basis| basis.credential_id = "x".repeat(4097))),
            ("certificate", basis(|basis| basis.certificate = Some("a".repeat(65)))),
            ("authority", basis(|basis| basis.authority = Some("a".repeat(65)))),
        ];
        for (what, ask) in bad {
            match raw.ask(Ask::Admit(ask)).await {
                Answered::Failure(failure) => {
                    assert!(failure.reason == "LINK_FRAME_INVALID" && failure.message.contains(what), "{failure:?}");
                }
                other => panic!("{what}: {other:?}"),
            }
        }
        assert!(control.live().is_empty());
    });
}
