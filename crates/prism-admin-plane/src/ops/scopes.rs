//! The scope of every RPC, for those who ask before they call.

use super::{
    access, api_key, audit, authority, backend, binding, bootstrap, certificate, checkpoint, client_binding,
    client_key, config, drain, join_token, lineage, link, maintenance, metrics, namespace, node, role, session,
};
use crate::op::{Op, Scope};

macro_rules! scopes {
    ($($op:ty,)*) => {
        const SCOPES: &[(&str, Scope)] = &[$((<$op>::RPC, <$op>::SCOPE)),*];
    };
}

scopes! {
    config::ListConfigs,
    config::GetConfig,
    config::CreateConfig,
    config::UpdateConfig,
    config::DeleteConfig,
    session::ListSessions,
    session::GetSession,
    session::TerminateSession,
    namespace::ListNamespaces,
    namespace::GetNamespace,
    namespace::CreateNamespace,
    namespace::UpdateNamespace,
    namespace::DeleteNamespace,
    backend::GetBackendStatus,
    backend::ListBackends,
    maintenance::SetMaintenanceMode,
    maintenance::GetMaintenanceStatus,
    metrics::GetMetrics,
    drain::DrainConnections,
    audit::GetAuditLog,
    checkpoint::CreateAuditCheckpoint,
    checkpoint::ListAuditCheckpoints,
    api_key::CreateApiKey,
    api_key::ListApiKeys,
    api_key::RotateApiKey,
    api_key::RevokeApiKey,
    client_key::CreateClientKey,
    client_key::ListClientKeys,
    client_key::RevokeClientKey,
    role::ListRoles,
    role::CreateRole,
    role::UpdateRole,
    role::DeleteRole,
    binding::CreateBinding,
    binding::DeleteBinding,
    binding::ListBindings,
    client_binding::CreateClientBinding,
    client_binding::DeleteClientBinding,
    client_binding::ListClientBindings,
    certificate::IssueCertificate,
    certificate::ListCertificates,
    certificate::RevokeCertificate,
    access::WhoAmI,
    access::CanI,
    access::WhoCan,
    join_token::CreateJoinToken,
    join_token::RevokeJoinToken,
    join_token::ListJoinTokens,
    bootstrap::ExchangeJoinToken,
    bootstrap::RenewCertificate,
    link::OpenLink,
    node::ListNodes,
    node::GetNode,
    node::RevokeNode,
    lineage::GetLineage,
    authority::GetCaStatus,
    authority::RotateCa,
    authority::RetireCa,
}

/// The scope of an RPC by its full name. One that is not an operation of this plane concerns the whole installation.
pub(crate) fn scope_of(rpc: &str) -> Scope {
    SCOPES.iter().find(|(known, _)| *known == rpc).map_or(Scope::Installation, |(_, scope)| *scope)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prism_core::NamespaceName;
    use prism_core::permission::Reach;
    use prism_proto::rules::AuditClass;
    use prism_rpc::Table;

    use super::*;

    #[test]
    fn every_rpc_of_the_admin_plane_has_its_scope_once() {
        let table = Table::load().unwrap();
        let rules = table.rules().filter(|rule| rule.audit != AuditClass::None);
        let rpcs: BTreeSet<&str> = rules.map(|rule| rule.path.trim_start_matches('/')).collect();
        let known: BTreeSet<&str> = SCOPES.iter().map(|(rpc, _)| *rpc).collect();
        assert_eq!(known, rpcs);
        assert_eq!(SCOPES.len(), rpcs.len());
    }

    #[test]
    fn only_what_reads_is_filtered() {
        let table = Table::load().unwrap();
        for (rpc, scope) in SCOPES.iter().filter(|(_, scope)| *scope == Scope::Filtered) {
            let permission = &table.rule(&format!("/{rpc}")).unwrap().permission;
            assert!(
                permission.ends_with(":read") || permission == "authenticated",
                "{rpc}: {scope:?} with {permission}"
            );
        }
    }

    #[test]
    fn a_scope_says_who_may_call() {
        let bound = Reach::Namespaces(vec![NamespaceName::parse("n", "a").unwrap()]);
        let verdicts = |scope: Scope| [None, Some("a"), Some("b")].map(|namespace| scope.allows(&bound, namespace));
        assert_eq!(verdicts(Scope::Installation), [false, false, false]);
        assert_eq!(verdicts(Scope::Namespace), [false, true, false]);
        assert_eq!(verdicts(Scope::Filtered), [true, true, false]);
        for scope in [Scope::Installation, Scope::Namespace, Scope::Filtered] {
            assert!(scope.allows(&Reach::Installation, Some("b")) && !scope.allows(&Reach::Nowhere, None));
        }
        assert_eq!(scope_of("prism.cluster.v1.AdminService/ListJoinTokens"), Scope::Installation);
    }
}
