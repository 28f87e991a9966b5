//! Contract §8 "lists".

use std::collections::BTreeSet;
use std::sync::Arc;

use prism_e2e::site::{config, unique};
use prism_e2e::{Admin, Options, Pattern, Prism, Refused as _, Session, Shared, Site, data};
use prism_proto::admin::v1 as wire;
use prism_proto::config::v1::AccessPattern;
use prism_proto::keyvalue::v1::{BatchPutEntry, BatchPutRequest, ListRequest};
use tonic::{Code, Status};

static SERVER: Shared = Shared::new();

async fn site() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

/// One page of a list: names, next token, total.
type Page = (Vec<String>, String, i32);

/// Walks a whole list and checks that nothing is lost, nothing repeated, and every total exact.
async fn walk<F: Future<Output = Result<Page, Status>>>(
    size: i32,
    expected: &BTreeSet<String>,
    page: impl Fn(i32, Option<String>) -> F,
) {
    let (mut seen, mut token, mut pages) = (Vec::new(), None, 0);
    loop {
        let (names, next, total) = page(size, token).await.unwrap();
        assert_eq!(total as usize, expected.len(), "total_count at size {size}");
        assert!(names.len() <= size as usize, "{} at size {size}", names.len());
        pages += 1;
        seen.extend(names);
        if next.is_empty() {
            break;
        }
        token = Some(next);
    }
    let set: BTreeSet<_> = seen.iter().cloned().collect();
    assert_eq!(set.len(), seen.len(), "repeats at size {size}");
    assert_eq!(set, *expected, "losses at size {size}");
    assert_eq!(
        pages,
        expected.len().div_ceil(size as usize).max(1),
        "an empty token is the only end, and there is no empty last page"
    );
}

async fn configs(admin: &Admin, request: wire::ListConfigsRequest) -> Result<Page, Status> {
    let answer = admin.service().list_configs(request).await?.into_inner();
    let names = answer.configs.into_iter().map(|config| config.name).collect();
    Ok((names, answer.next_page_token.unwrap_or_default(), answer.total_count))
}

async fn sessions(admin: &Admin, request: wire::ListSessionsRequest) -> Result<Page, Status> {
    let answer = admin.service().list_sessions(request).await?.into_inner();
    let names = answer.sessions.into_iter().map(|session| session.session_id).collect();
    Ok((names, answer.next_page_token.unwrap_or_default(), answer.total_count))
}

fn in_namespace(name: &str, page_size: i32, page_token: Option<String>) -> wire::ListConfigsRequest {
    wire::ListConfigsRequest { namespace: Some(name.to_owned()), page_size, page_token, pattern: None }
}

#[tokio::test]
async fn configs_250_page_without_loss_or_repeat() {
    // On a server of its own, so that the whole installation has 250.
    let site = Site::new(Arc::new(Prism::start(Options::new()).await)).await;
    let mut expected = BTreeSet::new();
    for number in 0..250 {
        let pattern = if number % 2 == 0 { Pattern::KeyValue } else { Pattern::Queue };
        expected.insert(site.configure(config(&format!("c-{}", number * 7919 % 251), &site.namespace, pattern)).await);
    }
    for size in [1, 7, 50, 1000] {
        walk(size, &expected, |page_size, page_token| {
            configs(&site.admin, wire::ListConfigsRequest { page_size, page_token, ..Default::default() })
        })
        .await;
    }
    walk(1000, &expected, |_, token| configs(&site.admin, in_namespace(&site.namespace, 5000, token))).await;
    walk(50, &expected, |_, token| configs(&site.admin, in_namespace(&site.namespace, 0, token))).await;

    let (_, token, _) = configs(&site.admin, in_namespace(&site.namespace, 7, None)).await.unwrap();
    let token = Some(token);
    let other = unique("other");
    site.admin.create_namespace(&other).await;
    for request in [
        in_namespace(&other, 7, token.clone()),
        wire::ListConfigsRequest {
            pattern: Some(AccessPattern::Queue.into()),
            ..in_namespace(&site.namespace, 7, token.clone())
        },
        wire::ListConfigsRequest { namespace: None, ..in_namespace("", 7, token.clone()) },
    ] {
        configs(&site.admin, request).await.refused().names(&["page_token"]);
    }
    // The same filter with another size is the same list.
    configs(&site.admin, in_namespace(&site.namespace, 9, token.clone())).await.unwrap();
    let request =
        wire::ListSessionsRequest { namespace: Some(site.namespace.clone()), page_token: token, ..Default::default() };
    sessions(&site.admin, request).await.refused().names(&["page_token"]);
}

#[tokio::test]
async fn sessions_250_page_without_loss_or_repeat() {
    let site = site().await;
    let config = site.config(Pattern::MemoryKeyValue).await;
    let opened: Vec<_> = (0..250)
        .map(|_| {
            let (channel, request) = (site.channel.clone(), data::named(&site.key, &config));
            tokio::spawn(async move { data::create(&channel, request).await.unwrap().id })
        })
        .collect();
    let mut expected = BTreeSet::new();
    for id in opened {
        expected.insert(id.await.unwrap());
    }
    let of = |status: Option<wire::SessionStatus>| {
        let (admin, namespace) = (&site.admin, &site.namespace);
        move |page_size, page_token| {
            let status = status.map(Into::into);
            sessions(
                admin,
                wire::ListSessionsRequest { namespace: Some(namespace.clone()), status, page_size, page_token },
            )
        }
    };
    for size in [1, 7, 50, 1000] {
        walk(size, &expected, of(None)).await;
    }
    walk(50, &expected, of(Some(wire::SessionStatus::Active))).await;
    let ended: BTreeSet<_> = expected.iter().step_by(3).cloned().collect();
    for id in &ended {
        site.admin.terminate(id, true, "").await;
    }
    walk(7, &ended, of(Some(wire::SessionStatus::Terminated))).await;
    walk(7, &expected.difference(&ended).cloned().collect(), of(Some(wire::SessionStatus::Active))).await;
    walk(50, &expected, of(None)).await;
    let (_, token, _) = of(None)(7, None).await.unwrap();
    of(Some(wire::SessionStatus::Active))(7, Some(token)).await.refused().names(&["page_token"]);
}

#[tokio::test]
async fn pages_stay_whole_while_the_list_changes() {
    let site = site().await;
    let prefix = unique("p");
    let name = |number: u32| format!("{prefix}-{number:03}");
    for number in (0..40).step_by(2) {
        site.configure(config(&name(number), &site.namespace, Pattern::KeyValue)).await;
    }
    let (first, token, _) = configs(&site.admin, in_namespace(&site.namespace, 10, None)).await.unwrap();
    // Behind, in front of, and on the border of the first page.
    for number in [1, 19, 21, 39] {
        site.configure(config(&name(number), &site.namespace, Pattern::KeyValue)).await;
    }
    let border = wire::DeleteConfigRequest { name: first.last().unwrap().clone(), etag: None };
    site.admin.service().delete_config(border).await.unwrap();
    let (second, next, total) = configs(&site.admin, in_namespace(&site.namespace, 1000, Some(token))).await.unwrap();
    assert_eq!((total, next.as_str()), (23, ""));
    let mut expected: Vec<String> = (20..40).step_by(2).chain([19, 21, 39]).map(name).collect();
    expected.sort();
    assert_eq!(second, expected);
}

#[tokio::test]
async fn keys_and_namespaces_page_too() {
    let site = Site::new(Arc::new(Prism::start(Options::new()).await)).await;
    let who = site.admin.access().who_am_i(wire::WhoAmIRequest {}).await.unwrap().into_inner();
    let (mut api, mut namespaces) = (BTreeSet::from([who.credential_id]), BTreeSet::from([site.namespace.clone()]));
    let first = wire::ListClientKeysRequest::default();
    let mut client: BTreeSet<_> = site
        .admin
        .access()
        .list_client_keys(first)
        .await
        .unwrap()
        .into_inner()
        .client_keys
        .into_iter()
        .map(|key| key.key_id)
        .collect();
    for number in 0..10 {
        let name = format!("n{number}");
        site.admin.create_namespace(&name).await;
        api.insert(site.admin.create_api_key("viewer", None, None).await.api_key.unwrap().key_id);
        let request = wire::CreateClientKeyRequest {
            name: name.clone(),
            namespace: name.clone(),
            permissions: vec!["read".to_owned()],
            ttl: None,
        };
        client.insert(
            site.admin.access().create_client_key(request).await.unwrap().into_inner().client_key.unwrap().key_id,
        );
        namespaces.insert(name);
    }
    for size in [1, 7, 50] {
        walk(size, &api, async |page_size, page_token| {
            let answer = site
                .admin
                .access()
                .list_api_keys(wire::ListApiKeysRequest { page_size, page_token })
                .await?
                .into_inner();
            Ok((
                answer.api_keys.into_iter().map(|key| key.key_id).collect(),
                answer.next_page_token,
                answer.total_count,
            ))
        })
        .await;
        walk(size, &client, async |page_size, page_token| {
            let request = wire::ListClientKeysRequest { namespace: None, page_size, page_token };
            let answer = site.admin.access().list_client_keys(request).await?.into_inner();
            Ok((
                answer.client_keys.into_iter().map(|key| key.key_id).collect(),
                answer.next_page_token,
                answer.total_count,
            ))
        })
        .await;
        walk(size, &namespaces, async |page_size, page_token| {
            let answer = site
                .admin
                .service()
                .list_namespaces(wire::ListNamespacesRequest { page_size, page_token })
                .await?
                .into_inner();
            let names = answer.namespaces.into_iter().map(|namespace| namespace.name).collect();
            Ok((names, answer.next_page_token.unwrap_or_default(), answer.total_count))
        })
        .await;
    }
}

#[tokio::test]
async fn sizes_and_tokens_out_of_bounds() {
    let site = site().await;
    configs(&site.admin, in_namespace(&site.namespace, -1, None)).await.refused().names(&["page_size"]);
    for bad in ["nonsense", "AAAAAAAAAAAAAAAA", "not base64!", &"A".repeat(20_000)] {
        let refused = configs(&site.admin, in_namespace(&site.namespace, 1, Some(bad.to_owned()))).await.refused();
        assert_eq!(
            (refused.code, refused.fields.as_slice()),
            (Code::InvalidArgument, &["page_token".to_owned()][..]),
            "{bad:.20}"
        );
    }
    // An empty token is no token: it is what a client with a loop sends first.
    configs(&site.admin, in_namespace(&site.namespace, 1, Some(String::new()))).await.unwrap();
}

async fn keys(
    session: &Session,
    prefix: &str,
    page_size: i32,
    page_token: Option<String>,
) -> Result<(Vec<String>, String), Status> {
    let request =
        ListRequest { prefix: prefix.to_owned(), page_size, page_token, keys_only: true, ..Default::default() };
    let answer = session.kv().list(request).await?.into_inner();
    Ok((answer.entries.into_iter().map(|entry| entry.key).collect(), answer.next_page_token.unwrap_or_default()))
}

#[tokio::test]
async fn keys_of_both_embedded_backends_page_with_the_same_rules() {
    let site = site().await;
    for pattern in [Pattern::KeyValue, Pattern::MemoryKeyValue] {
        let session = site.session(pattern).await;
        let names: Vec<String> = (0..1200).map(|number| format!("k/{number:05}")).collect();
        for chunk in names.chunks(1000) {
            let entries = chunk.iter().map(|key| BatchPutEntry { key: key.clone(), ..Default::default() }).collect();
            session.kv().batch_put(BatchPutRequest { entries, ..Default::default() }).await.unwrap();
        }
        session.put("other", b"1").await.unwrap();
        for (size, first) in [(0, 50), (7, 7), (1000, 1000), (5000, 1000)] {
            let (mut seen, mut token) = (Vec::new(), None);
            loop {
                let (page, next) = keys(&session, "k/", size, token).await.unwrap();
                if seen.is_empty() {
                    assert_eq!(page.len(), first, "{pattern:?} at size {size}");
                }
                seen.extend(page);
                if next.is_empty() {
                    break;
                }
                token = Some(next);
            }
            assert_eq!(seen, names, "{pattern:?} at size {size}");
        }
        keys(&session, "", -1, None).await.refused().names(&["page_size"]);
        let (_, token) = keys(&session, "k/", 1, None).await.unwrap();
        keys(&session, "k", 1, Some(token)).await.refused().names(&["page_token"]);
    }
}
