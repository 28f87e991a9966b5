//! The rule of every RPC: who may call it, how it is audited, whether it may be repeated. Read
//! from the method option `(prism.options.v1.rule)`, so that an RPC without a rule cannot be
//! served by accident.

use prost::Message;
use prost_reflect::{MethodDescriptor, Value};

use crate::options::v1::Rule;
pub use crate::options::v1::{AuditClass, DataClass, Idempotency};

const OPTION: &str = "prism.options.v1.rule";

/// The rule of one RPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodRule {
    /// Full name of the service, such as `prism.admin.v1.AdminService`.
    pub service: String,
    /// Name of the method, such as `CreateConfig`.
    pub method: String,
    /// Path of the request, such as `/prism.admin.v1.AdminService/CreateConfig`.
    pub path: String,
    /// Permission a caller needs; the special values are listed at `Rule.permission`.
    pub permission: String,
    /// How calls are audited; never `Unspecified`.
    pub audit: AuditClass,
    /// Whether a call may be repeated; never `Unspecified`.
    pub idempotency: Idempotency,
    /// Kind of data-plane call; `Unspecified` on the admin plane only.
    pub data_class: DataClass,
    /// Whether the client sends a stream.
    pub client_streaming: bool,
    /// Whether the server sends a stream.
    pub server_streaming: bool,
    /// Full name of the request message.
    pub input: String,
    /// Full name of the response message.
    pub output: String,
}

/// The rules of all RPCs of the `prism.*` packages, in order of path.
///
/// Fails with a sentence that names every RPC whose rule is missing or incomplete.
pub fn rules() -> Result<Vec<MethodRule>, String> {
    let mut rules = Vec::new();
    let mut faults = Vec::new();
    for service in crate::descriptor_pool().services() {
        if !service.package_name().starts_with("prism.") {
            continue;
        }
        for method in service.methods() {
            match rule_of(&method) {
                Ok(rule) => rules.push(rule),
                Err(fault) => faults.push(format!("{}: {fault}", method.full_name())),
            }
        }
    }
    if !faults.is_empty() {
        faults.sort();
        return Err(format!("RPCs without a complete rule: {}", faults.join("; ")));
    }
    rules.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(rules)
}

fn rule_of(method: &MethodDescriptor) -> Result<MethodRule, String> {
    let rule = option_of(method)?;
    let audit = rule.audit();
    let idempotency = rule.idempotency();
    let data_class = rule.data_class();
    if rule.permission.is_empty() {
        return Err("no permission".to_owned());
    }
    if audit == AuditClass::Unspecified {
        return Err("no audit class".to_owned());
    }
    if idempotency == Idempotency::Unspecified {
        return Err("no idempotency".to_owned());
    }
    // What is not audited is the data plane, and there the class decides what is let through.
    if (audit == AuditClass::None) == (data_class == DataClass::Unspecified) {
        return Err("audit NONE and a data class belong together".to_owned());
    }
    let service = method.parent_service().full_name();
    Ok(MethodRule {
        path: format!("/{service}/{}", method.name()),
        service: service.to_owned(),
        method: method.name().to_owned(),
        permission: rule.permission,
        audit,
        idempotency,
        data_class,
        client_streaming: method.is_client_streaming(),
        server_streaming: method.is_server_streaming(),
        input: method.input().full_name().to_owned(),
        output: method.output().full_name().to_owned(),
    })
}

fn option_of(method: &MethodDescriptor) -> Result<Rule, String> {
    let extension = crate::descriptor_pool()
        .get_extension_by_name(OPTION)
        .ok_or_else(|| format!("{OPTION} is not in the descriptors"))?;
    let options = method.options();
    if !options.has_extension(&extension) {
        return Err("no rule".to_owned());
    }
    match options.get_extension(&extension).as_ref() {
        Value::Message(rule) => {
            Rule::decode(rule.encode_to_vec().as_slice()).map_err(|error| format!("unreadable rule: {error}"))
        }
        other => Err(format!("rule is not a message: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(rules: &'a [MethodRule], path: &str) -> &'a MethodRule {
        rules.iter().find(|rule| rule.path == path).unwrap()
    }

    #[test]
    fn every_rpc_has_a_rule() {
        let rules = rules().unwrap();
        println!("{} RPCs", rules.len());
        let of = |service: &str| rules.iter().filter(|rule| rule.service == service).count();
        assert_eq!(of("prism.admin.v1.AdminService"), 22);
        assert_eq!(of("prism.admin.v1.AccessService"), 23);
        assert_eq!(of("prism.cluster.v1.AdminService"), 3);
        assert_eq!(of("prism.cluster.v1.BootstrapService"), 2);
        assert_eq!(of("prism.cluster.v1.LinkService"), 1);
        assert_eq!(of("prism.cluster.v1.NodeService"), 4);
        assert_eq!(of("prism.cluster.v1.CaService"), 3);
        assert_eq!(of("prism.config.v1.ConfigService"), 3);
        assert_eq!(of("prism.session.v1.SessionService"), 5);
        assert_eq!(of("prism.keyvalue.v1.KeyValueService"), 6);
        assert_eq!(of("prism.queue.v1.QueueService"), 7);
        assert_eq!(of("prism.pubsub.v1.PubSubService"), 3);
        assert_eq!(of("prism.reader.v1.ReaderService"), 3);
        assert_eq!(of("prism.transact.v1.TransactService"), 3);
        assert_eq!(rules.len(), 88);
    }

    #[test]
    fn a_rule_says_what_the_proto_says() {
        let rules = rules().unwrap();
        assert_eq!(
            *find(&rules, "/prism.admin.v1.AdminService/GetAuditLog"),
            MethodRule {
                service: "prism.admin.v1.AdminService".to_owned(),
                method: "GetAuditLog".to_owned(),
                path: "/prism.admin.v1.AdminService/GetAuditLog".to_owned(),
                permission: "audit:read".to_owned(),
                audit: AuditClass::Read,
                idempotency: Idempotency::ReadOnly,
                data_class: DataClass::Unspecified,
                client_streaming: false,
                server_streaming: true,
                input: "prism.admin.v1.GetAuditLogRequest".to_owned(),
                output: "prism.admin.v1.AuditLogEntry".to_owned(),
            }
        );
        assert!(find(&rules, "/prism.transact.v1.TransactService/Transaction").client_streaming);
    }

    /// Contract §9, "READ_ONLY, writes are".
    #[test]
    fn writes_are_those_of_the_contract() {
        let writes: Vec<_> = rules()
            .unwrap()
            .into_iter()
            .filter(|rule| rule.data_class == DataClass::Write)
            .inspect(|rule| assert_eq!(rule.permission, "write"))
            .map(|rule| rule.method)
            .collect();
        assert_eq!(
            writes,
            ["BatchPut", "Delete", "Put", "Publish", "Publish", "PublishBatch", "Transaction", "Write",]
        );
    }

    #[test]
    fn only_reads_are_without_side_effects() {
        for rule in rules().unwrap() {
            if rule.audit == AuditClass::Read {
                assert_eq!(rule.idempotency, Idempotency::ReadOnly, "{}", rule.path);
            }
            if rule.audit == AuditClass::Change || rule.data_class == DataClass::Write {
                assert_ne!(rule.idempotency, Idempotency::ReadOnly, "{}", rule.path);
            }
        }
    }
}
