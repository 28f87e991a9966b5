//! Listings: all pages by default, up to a limit.

use std::collections::BTreeSet;

use clap::Args;
use prism_proto::{admin::v1 as admin, cluster::v1 as cluster};

use crate::{
    client::Client,
    error::{Failure, Result},
    exit::Exit,
    rpc::Rpc,
};

/// The server's largest page. Every page is a call with an audit entry of its own, so fewer is better.
const LARGEST_PAGE: u32 = 1000;

/// How much of a listing is wanted.
#[derive(Args, Debug, Clone, Copy, Default)]
pub struct Paging {
    /// Stop after this many entries [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Fetch this many entries per call, at most 1000 [default: 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub page_size: Option<u32>,
}

/// A listing of the contract, named by its request.
pub trait Listing: Rpc {
    /// What is listed.
    type Item;
    /// Asks for a page of at most `size` entries, after the page that gave `token`.
    fn ask(&mut self, size: i32, token: Option<String>);
    /// Entries, token of the next page and total count of an answer.
    fn take(response: Self::Response) -> (Vec<Self::Item>, Option<String>, i32);
    /// One answer with everything that was fetched.
    fn answer(items: Vec<Self::Item>, next: Option<String>, total: i32) -> Self::Response;
    /// The nodes that are not part of an answer, in listings of what nodes tell.
    fn unreachable(_: &mut Self::Response) -> Option<&mut Vec<String>> {
        None
    }
}

macro_rules! listings {
    ($($package:ident $request:ident -> $response:ident . $items:ident of $item:ty $(, $unreachable:ident)?;)*) => { $(
        impl Listing for $package::$request {
            type Item = $item;

            fn ask(&mut self, size: i32, token: Option<String>) {
                self.page_size = size;
                self.page_token = token;
            }

            fn take(response: Self::Response) -> (Vec<$item>, Option<String>, i32) {
                // Optional in some listings, plain in others; an empty token ends both.
                let next: Option<String> = response.next_page_token.into();
                (response.$items, next.filter(|token| !token.is_empty()), response.total_count)
            }

            fn answer($items: Vec<$item>, next: Option<String>, total_count: i32) -> Self::Response {
                let next_page_token = next.map(Into::into).unwrap_or_default();
                $package::$response { $items, next_page_token, total_count $(, $unreachable: Vec::new())? }
            }
$(
            fn unreachable(response: &mut Self::Response) -> Option<&mut Vec<String>> {
                Some(&mut response.$unreachable)
            }
)?
        }
    )* };
}

listings! {
    admin ListNamespacesRequest -> ListNamespacesResponse.namespaces of admin::NamespaceInfo, unreachable_nodes;
    admin ListConfigsRequest -> ListConfigsResponse.configs of prism_proto::config::v1::ClientConfig;
    admin ListSessionsRequest -> ListSessionsResponse.sessions of admin::SessionInfo, unreachable_nodes;
    admin ListBackendsRequest -> ListBackendsResponse.backends of admin::BackendSummary, unreachable_nodes;
    admin ListApiKeysRequest -> ListApiKeysResponse.api_keys of admin::ApiKey;
    admin ListClientKeysRequest -> ListClientKeysResponse.client_keys of admin::ClientKey;
    admin ListRolesRequest -> ListRolesResponse.roles of admin::Role;
    admin ListBindingsRequest -> ListBindingsResponse.bindings of admin::Binding;
    admin ListClientBindingsRequest -> ListClientBindingsResponse.client_bindings of admin::ClientBinding;
    admin ListCertificatesRequest -> ListCertificatesResponse.certificates of admin::Certificate;
    admin ListAuditCheckpointsRequest -> ListAuditCheckpointsResponse.checkpoints of admin::AuditCheckpoint;
    cluster ListNodesRequest -> ListNodesResponse.nodes of cluster::Node;
}

/// Fetches page after page and returns them as one answer. Its `next_page_token` is set only if the
/// limit left something out.
pub async fn fetch<L: Listing>(client: &Client, request: L, paging: Paging) -> Result<L::Response> {
    let wanted = paging.limit.map_or(usize::MAX, |limit| limit as usize);
    let mut items = Vec::new();
    let mut unreachable = BTreeSet::new();
    let mut token: Option<String> = None;
    loop {
        let size = page_size(paging, wanted - items.len());
        let mut page = request.clone();
        page.ask(size, token.clone());
        let mut response = client.call(page).await?;
        unreachable.extend(L::unreachable(&mut response).map(std::mem::take).unwrap_or_default());
        let (entries, next, total) = L::take(response);
        items.extend(entries);
        if next.is_none() || items.len() >= wanted {
            let mut answer = L::answer(items, next, total);
            if let Some(nodes) = L::unreachable(&mut answer) {
                nodes.extend(unreachable);
            }
            return Ok(answer);
        }
        if next == token {
            return Err(Failure::new(Exit::Failed, format!("{} gave the same page token twice", L::method())));
        }
        token = next;
    }
}

fn page_size(paging: Paging, left: usize) -> i32 {
    let size = paging.page_size.unwrap_or(LARGEST_PAGE).min(LARGEST_PAGE);
    i32::try_from(left).unwrap_or(i32::MAX).min(size as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_no_larger_than_what_is_left() {
        assert_eq!(page_size(Paging::default(), usize::MAX), 1000);
        assert_eq!(page_size(Paging { limit: Some(5), page_size: None }, 5), 5);
        assert_eq!(page_size(Paging { limit: Some(50), page_size: Some(7) }, 43), 7);
        assert_eq!(page_size(Paging { limit: Some(50), page_size: Some(7) }, 1), 1);
    }

    #[test]
    fn both_forms_of_the_token_end_a_listing() {
        let keys = admin::ListApiKeysResponse { next_page_token: String::new(), ..Default::default() };
        assert_eq!(admin::ListApiKeysRequest::take(keys).1, None);
        let configs = admin::ListConfigsResponse { next_page_token: Some(String::new()), ..Default::default() };
        assert_eq!(admin::ListConfigsRequest::take(configs).1, None);
        let more = admin::ListConfigsRequest::answer(Vec::new(), Some("t".to_owned()), 3);
        assert_eq!(admin::ListConfigsRequest::take(more), (Vec::new(), Some("t".to_owned()), 3));
        let end = admin::ListApiKeysRequest::answer(Vec::new(), None, 3);
        assert_eq!((end.next_page_token.as_str(), end.total_count), ("", 3));
    }
}
