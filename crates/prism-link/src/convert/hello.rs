//! What a node says of itself. It is shown to operators and kept, so nothing of it is longer or stranger than it may be.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use prism_core::nodes::{Told, ToldBackend};
use prism_core::{InstanceName, Result};
use prism_proto::cluster::v1 as wire;

use super::bad;
use crate::bounds::{MAX_BACKEND_IDENTITY, MAX_BACKEND_TYPE, MAX_BACKENDS, MAX_DATA_ENDPOINT, MAX_VERSION};

/// What a Hello says of its node.
pub fn told_from_wire(hello: &wire::Hello) -> Result<Told> {
    if hello.backends.len() > MAX_BACKENDS {
        return Err(bad(format_args!("a node has more than {MAX_BACKENDS} backends")));
    }
    if !hello.data_endpoint.is_empty() && !is_endpoint(&hello.data_endpoint) {
        return Err(bad(format_args!(
            "data_endpoint must be host:port with a name or an address, at most {MAX_DATA_ENDPOINT} bytes"
        )));
    }
    let mut names = BTreeSet::new();
    let mut backends = Vec::new();
    for backend in &hello.backends {
        let instance = InstanceName::parse("instance", &backend.instance)
            .map_err(|_| bad(format_args!("backends.instance must be {}", InstanceName::RULE)))?;
        // One of a later version may look otherwise than those that are known here.
        let kind = &backend.r#type;
        if !(1..=MAX_BACKEND_TYPE).contains(&kind.len()) || kind.chars().any(char::is_control) {
            return Err(bad(format_args!(
                "backends.type must be 1 to {MAX_BACKEND_TYPE} bytes without control characters"
            )));
        }
        if backend.identity.len() > MAX_BACKEND_IDENTITY || backend.identity.chars().any(char::is_control) {
            return Err(bad(format_args!(
                "backends.identity must be at most {MAX_BACKEND_IDENTITY} bytes without control characters"
            )));
        }
        if !names.insert(instance.clone()) {
            return Err(bad(format_args!("backends names the instance {instance} twice")));
        }
        backends.push(ToldBackend { instance, kind: backend.r#type.clone() });
    }
    Ok(Told { version: printable(&hello.version, MAX_VERSION), data_endpoint: hello.data_endpoint.clone(), backends })
}

/// The beginning of a text, without what could steer a terminal.
pub fn printable(text: &str, most: usize) -> String {
    text.chars().filter(|character| !character.is_control()).take(most).collect()
}

fn is_endpoint(text: &str) -> bool {
    if text.len() > MAX_DATA_ENDPOINT {
        return false;
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return address.port() != 0;
    }
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.len() <= 253
        && host.split('.').all(is_label)
        && port.bytes().all(|byte| byte.is_ascii_digit())
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(instance: &str, kind: &str, identity: &str) -> wire::BackendIdentity {
        wire::BackendIdentity { instance: instance.to_owned(), r#type: kind.to_owned(), identity: identity.to_owned() }
    }

    #[test]
    fn an_endpoint_is_a_host_and_a_port() {
        for good in ["127.0.0.1:8980", "[::1]:8980", "node-1.example.com:1", "0.0.0.0:65535", "db:8980"] {
            let hello = wire::Hello { data_endpoint: good.to_owned(), ..Default::default() };
            assert_eq!(told_from_wire(&hello).unwrap().data_endpoint, good);
        }
        let long = format!("{}:1", vec!["a".repeat(60); 5].join("."));
        for bad in [
            "a",
            "a:",
            ":1",
            "a:0",
            "a:65536",
            "a:+1",
            "a b:1",
            "a\u{1b}[2J:1",
            "ä:1",
            "-a:1",
            "a..b:1",
            "1.1.1.1:0",
            &long,
        ] {
            let hello = wire::Hello { data_endpoint: (*bad).to_owned(), ..Default::default() };
            let error = told_from_wire(&hello).unwrap_err();
            assert!(
                error.reason() == "LINK_FRAME_INVALID" && error.message().contains("data_endpoint"),
                "{bad:?}: {error}"
            );
        }
    }

    #[test]
    fn backends_have_names_and_types_of_their_form_each_once() {
        let long = "x".repeat(600);
        let bad = [
            vec![backend("A", "sqlite", "")],
            vec![backend("", "sqlite", "")],
            vec![backend("a\u{1b}", "sqlite", "")],
            vec![backend("a", "", "")],
            vec![backend("a", "sql\u{1b}", "")],
            vec![backend("a", &long, "")],
            vec![backend("a", "sqlite", &long)],
            vec![backend("a", "sqlite", "x\ny")],
            vec![backend("a", "sqlite", ""), backend("a", "memory", "")],
            vec![backend("a", "sqlite", ""); MAX_BACKENDS + 1],
        ];
        for backends in bad {
            let shown = format!("{:.100?}", backends.first());
            let hello = wire::Hello { backends, ..Default::default() };
            assert_eq!(told_from_wire(&hello).unwrap_err().reason(), "LINK_FRAME_INVALID", "{shown}");
        }
        let backends = vec![backend("a", "sqlite", "embedded:n:a"), backend("b", "of-tomorrow", "")];
        let hello = wire::Hello { backends, version: "1\u{1b}[2J".to_owned() + &long, ..Default::default() };
        let told = told_from_wire(&hello).unwrap();
        assert_eq!(told.instances().count(), 1, "a type that is not known here serves nothing here");
        assert!(told.backends.len() == 2 && told.version.len() == MAX_VERSION && told.version.starts_with("1[2J"));
    }
}
