//! `prism.keyvalue.v1.KeyValueService`.

use std::sync::Arc;

use bytes::Bytes;
use prism_backends::driver::{Entry, KeyValue, PutEntry, Route};
use prism_core::limits::MAX_BATCH;
use prism_core::page::Page;
use prism_core::{Error, Kind, Result};
use prism_proto::keyvalue::v1::key_value_service_server::KeyValueService;
use prism_proto::keyvalue::v1::{
    BatchGetRequest, BatchGetResponse, BatchGetResult, BatchPutRequest, BatchPutResponse, DeleteRequest,
    DeleteResponse, GetRequest, GetResponse, ListEntry, ListRequest, ListResponse, PutRequest, PutResponse,
};
use prism_rpc::convert::timestamp;
use tonic::{Request, Response, Status};

use super::{PAGE_BYTES, wrong_route};
use crate::fields::Fields;
use crate::gate::Gate;
use crate::rpc::Rpc;
use crate::session::Session;

/// What an entry takes beside its key and value on the wire, at most.
const ENTRY_OVERHEAD: usize = 64;

/// The service.
pub struct Service(pub Arc<Gate>);

#[tonic::async_trait]
impl KeyValueService for Service {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        self.0.unary(Rpc::Get, request, |session, request| self.read(session, request)).await
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.0.unary(Rpc::Put, request, |session, request| self.write(session, request)).await
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let work = |session: Arc<Session>, request: DeleteRequest| async move {
            let mut fields = Fields::new();
            fields.key("key", &request.key, &self.0.limits);
            fields.finish()?;
            let existed = store(&session)?.delete(&request.key, request.if_version).await?;
            Ok(DeleteResponse { existed })
        };
        self.0.unary(Rpc::Delete, request, work).await
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        self.0.unary(Rpc::List, request, |session, request| self.page(session, request)).await
    }

    async fn batch_get(&self, request: Request<BatchGetRequest>) -> Result<Response<BatchGetResponse>, Status> {
        self.0.unary(Rpc::BatchGet, request, |session, request| self.read_many(session, request)).await
    }

    async fn batch_put(&self, request: Request<BatchPutRequest>) -> Result<Response<BatchPutResponse>, Status> {
        self.0.unary(Rpc::BatchPut, request, |session, request| self.write_many(session, request)).await
    }
}

impl Service {
    async fn read(&self, session: Arc<Session>, request: GetRequest) -> Result<GetResponse> {
        let mut fields = Fields::new();
        fields.key("key", &request.key, &self.0.limits);
        fields.finish()?;
        let entry = store(&session)?.get(&request.key).await?;
        Ok(entry.map_or_else(GetResponse::default, |entry| GetResponse {
            found: true,
            version: entry.version,
            expires_at: entry.expires_at.map(timestamp),
            value: entry.value,
        }))
    }

    async fn write(&self, session: Arc<Session>, request: PutRequest) -> Result<PutResponse> {
        let mut fields = Fields::new();
        fields.key("key", &request.key, &self.0.limits);
        fields.payload("value", request.value.len(), &self.0.limits);
        let expires_at = fields.ttl("ttl_seconds", request.ttl_seconds, self.0.clock.now());
        fields.finish()?;
        let entry = PutEntry { key: request.key, value: request.value, expires_at, if_version: request.if_version };
        Ok(PutResponse { version: store(&session)?.put(entry).await? })
    }

    async fn page(&self, session: Arc<Session>, request: ListRequest) -> Result<ListResponse> {
        let config = session.config();
        let filter =
            format!("keys\0{}\0{}\0{}\0{}", config.instance, config.namespace, request.keys_only, request.prefix);
        let mut fields = Fields::new();
        fields.prefix("prefix", &request.prefix, &self.0.limits);
        let page = fields.keep(Page::parse(&filter, request.page_size, request.page_token.as_deref()));
        fields.finish()?;
        // Without a violation there is a page.
        let page = page.ok_or_else(|| Error::invalid("page_token", "is not a token of this list"))?;
        let bytes = PAGE_BYTES.min(self.0.limits.max_value_bytes);
        let found =
            store(&session)?.list(&request.prefix, page.after.as_deref(), page.size, bytes, request.keys_only).await?;
        let next_page_token =
            found.entries.last().filter(|_| found.more).map(|(last_key, _)| page.token_after(last_key));
        let entries = found.entries.into_iter().map(|(key, entry)| ListEntry {
            key,
            version: entry.version,
            expires_at: entry.expires_at.map(timestamp),
            value: if request.keys_only { Bytes::new() } else { entry.value },
        });
        Ok(ListResponse { entries: entries.collect(), next_page_token })
    }

    async fn read_many(&self, session: Arc<Session>, request: BatchGetRequest) -> Result<BatchGetResponse> {
        let mut fields = Fields::new();
        if fields.count("keys", request.keys.len(), 1, MAX_BATCH) {
            for (number, key) in request.keys.iter().enumerate() {
                fields.key(format_args!("keys[{number}]"), key, &self.0.limits);
            }
        }
        fields.finish()?;
        let store = store(&session)?;
        let most = self.0.limits.max_message_bytes();
        let entries = store.get_many(&request.keys).await?;
        let size = |(key, entry): (&String, &Option<Entry>)| {
            key.len() + entry.as_ref().map_or(0, |entry| entry.value.len()) + ENTRY_OVERHEAD
        };
        if request.keys.iter().zip(&entries).map(size).sum::<usize>() > most {
            return Err(Error::new(
                Kind::ResourceExhausted,
                "RESPONSE_TOO_LARGE",
                format!("the values are more than {most} bytes together, the most of one answer; ask for fewer keys"),
            ));
        }
        let results = request.keys.into_iter().zip(entries).map(|(key, entry)| result(key, entry)).collect();
        Ok(BatchGetResponse { results })
    }

    async fn write_many(&self, session: Arc<Session>, request: BatchPutRequest) -> Result<BatchPutResponse> {
        let mut fields = Fields::new();
        let now = self.0.clock.now();
        if !fields.count("entries", request.entries.len(), 1, MAX_BATCH) {
            return fields.finish().map(|()| BatchPutResponse::default());
        }
        fields.distinct("entries", ".key", request.entries.iter().map(|entry| entry.key.as_str()));
        let mut entries = Vec::with_capacity(request.entries.len());
        for (number, entry) in request.entries.into_iter().enumerate() {
            fields.key(format_args!("entries[{number}].key"), &entry.key, &self.0.limits);
            fields.payload(format_args!("entries[{number}].value"), entry.value.len(), &self.0.limits);
            let expires_at = fields.ttl(format_args!("entries[{number}].ttl_seconds"), entry.ttl_seconds, now);
            entries.push(PutEntry { key: entry.key, value: entry.value, expires_at, if_version: None });
        }
        fields.finish()?;
        Ok(BatchPutResponse { versions: store(&session)?.put_many(entries).await? })
    }
}

fn result(key: String, entry: Option<Entry>) -> BatchGetResult {
    match entry {
        None => BatchGetResult { key, ..BatchGetResult::default() },
        Some(entry) => BatchGetResult {
            key,
            found: true,
            version: entry.version,
            expires_at: entry.expires_at.map(timestamp),
            value: entry.value,
        },
    }
}

fn store(session: &Session) -> Result<&Arc<dyn KeyValue>> {
    match session.route()? {
        Route::KeyValue(store) => Ok(store),
        _ => Err(wrong_route()),
    }
}
