//! A controller and two data nodes on machines of their own: partitions, crashes, flapping links and clocks that differ (issue
//! "Done when"). The machines are network namespaces where this machine allows it, else processes with relays between them.

mod clocks;
mod crash;
mod flapping;
mod partition;
mod rates;

use std::collections::BTreeSet;
use std::time::Instant;

use prism_e2e::cluster::load::{Ended, Load, Place};
use prism_e2e::cluster::{Machine, NODES, converges, say};
use prism_e2e::site::{Pattern, config};
use prism_e2e::{Admin, Failure, Session};
use prism_proto::admin::v1::{ListSessionsRequest, NamespaceQuota, SessionStatus};

const NAMESPACE: &str = "orders";

/// A namespace with a key-value config and a bound on its sessions.
async fn place(admin: &Admin, max_sessions: usize) -> Place {
    admin.create_namespace(NAMESPACE).await;
    let max_sessions = i64::try_from(max_sessions).unwrap();
    admin.set_quota(NAMESPACE, NamespaceQuota { max_sessions, ..NamespaceQuota::default() }).await;
    let config = admin.create_config(config("kv", NAMESPACE, Pattern::KeyValue)).await.name;
    Place { key: admin.create_client_key(NAMESPACE, &["read", "write"]).await, config }
}

/// The sessions of the namespace that the controller counts as live.
async fn live(admin: &Admin) -> Vec<String> {
    let (mut listed, mut page_token) = (Vec::new(), None);
    loop {
        let namespace = Some(NAMESPACE.to_owned());
        let request = ListSessionsRequest { namespace, page_size: 1000, page_token, ..ListSessionsRequest::default() };
        let page = admin.service().list_sessions(request).await.expect("sessions").into_inner();
        listed.extend(page.sessions);
        page_token = page.next_page_token.filter(|token| !token.is_empty());
        if page_token.is_none() {
            break;
        }
    }
    let is_live = |status: i32| status != i32::from(SessionStatus::Terminated);
    listed.into_iter().filter(|session| is_live(session.status)).map(|session| session.session_id).collect()
}

/// Whether a session is refused for `reason` by now.
async fn refuses(session: &Session, reason: &str) -> Option<()> {
    let refused = session.get("nothing").await.err().map(|status| Failure::from(&status));
    refused.filter(|refused| refused.reason == reason).map(drop)
}

/// Whether openers on a node have opened more sessions than these.
async fn admitted(load: &Load, node: Machine, before: &[usize; 2]) -> Option<()> {
    let before = NODES.into_iter().zip(before).find(|(other, _)| *other == node).map(|(_, before)| *before);
    before.filter(|before| load.told(node, "") > *before).map(drop)
}

/// The controller counts the sessions that the clients have, and no others but those whose answer nobody got: such a session is
/// nobody's, and counts until it has been idle for too long.
async fn counted(admin: &Admin, ended: &Ended) {
    let expected: BTreeSet<_> = ended.writers.iter().map(|writer| writer.session.id.clone()).collect();
    let lost = converges("the controller counts the sessions that there are", Instant::now(), || async {
        let found: BTreeSet<_> = live(admin).await.into_iter().collect();
        let lost = found.difference(&expected).count();
        (found.is_superset(&expected) && lost <= ended.unanswered()).then_some(lost)
    })
    .await;
    if lost > 0 {
        say(&format!(
            "  {lost} live sessions are nobody's: {} calls had no answer of a controller",
            ended.unanswered()
        ));
    }
}
