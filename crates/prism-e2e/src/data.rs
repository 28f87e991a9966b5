//! The data plane as an application sees it.

use prism_proto::config::v1::ClientConfig;
use prism_proto::config::v1::config_service_client::ConfigServiceClient;
use prism_proto::keyvalue::v1::key_value_service_client::KeyValueServiceClient;
use prism_proto::keyvalue::v1::{GetRequest, GetResponse, PutRequest};
use prism_proto::pubsub::v1::pub_sub_service_client::PubSubServiceClient;
use prism_proto::queue::v1::queue_service_client::QueueServiceClient;
use prism_proto::queue::v1::{
    AcknowledgeRequest, Message, PublishRequest, PublishResponse, StartPosition, SubscribeRequest,
};
use prism_proto::reader::v1::reader_service_client::ReaderServiceClient;
use prism_proto::session::v1::create_session_request::{Auth, Config};
use prism_proto::session::v1::session_service_client::SessionServiceClient;
use prism_proto::session::v1::{
    CreateSessionRequest, CreateSessionResponse, GetSessionRequest, GetSessionResponse, HeartbeatRequest,
};
use prism_proto::transact::v1::transact_service_client::TransactServiceClient;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::admin::{Credentialed, Headers};

/// The request for a session from a named config.
pub fn named(key: &str, config: &str) -> CreateSessionRequest {
    CreateSessionRequest {
        auth: Some(Auth::ApiKey(key.to_owned())),
        config: Some(Config::ConfigName(config.to_owned())),
        client_id: "e2e".to_owned(),
        client_version: "1".to_owned(),
        ..CreateSessionRequest::default()
    }
}

/// The request for a session with an inline config.
pub fn inline(key: &str, config: ClientConfig) -> CreateSessionRequest {
    CreateSessionRequest { config: Some(Config::InlineConfig(config)), ..named(key, "") }
}

/// Creates a session.
pub async fn create(channel: &Channel, request: CreateSessionRequest) -> Result<Session, Status> {
    let answer = SessionServiceClient::new(channel.clone()).create_session(request).await?.into_inner();
    let headers = Headers::none().with("x-session-token", &answer.session_token);
    Ok(Session {
        channel: channel.clone(),
        token: answer.session_token.clone(),
        id: answer.session_id.clone(),
        headers,
        answer,
    })
}

/// A session. Its services send the token in the header, so that requests can leave the field empty.
#[derive(Clone, Debug)]
pub struct Session {
    /// The connection.
    pub channel: Channel,
    /// The token.
    pub token: String,
    /// The public id.
    pub id: String,
    /// What CreateSession answered.
    pub answer: CreateSessionResponse,
    headers: Headers,
}

macro_rules! service {
    ($(#[$doc:meta])* $name:ident, $client:ident) => {
        $(#[$doc])*
        pub fn $name(&self) -> $client<Credentialed> {
            $client::with_interceptor(self.channel.clone(), self.headers.clone())
                .max_decoding_message_size(usize::MAX)
                .max_encoding_message_size(usize::MAX)
        }
    };
}

impl Session {
    service!(
        /// `prism.session.v1.SessionService`.
        life,
        SessionServiceClient
    );
    service!(
        /// `prism.config.v1.ConfigService`.
        configs,
        ConfigServiceClient
    );
    service!(
        /// `prism.keyvalue.v1.KeyValueService`.
        kv,
        KeyValueServiceClient
    );
    service!(
        /// `prism.queue.v1.QueueService`.
        queue,
        QueueServiceClient
    );
    service!(
        /// `prism.pubsub.v1.PubSubService`.
        pub_sub,
        PubSubServiceClient
    );
    service!(
        /// `prism.reader.v1.ReaderService`.
        reader,
        ReaderServiceClient
    );
    service!(
        /// `prism.transact.v1.TransactService`.
        transact,
        TransactServiceClient
    );

    /// The same session on another connection, as after a restart of the server.
    #[must_use]
    pub fn on(&self, channel: &Channel) -> Self {
        Self { channel: channel.clone(), ..self.clone() }
    }

    /// The same session with other headers.
    #[must_use]
    pub fn with_headers(&self, headers: Headers) -> Self {
        Self { headers, ..self.clone() }
    }

    /// Stores a value; gives its version.
    pub async fn put(&self, key: &str, value: &[u8]) -> Result<u64, Status> {
        let request = PutRequest { key: key.to_owned(), value: value.to_vec().into(), ..PutRequest::default() };
        Ok(self.kv().put(request).await?.into_inner().version)
    }

    /// Reads a value.
    pub async fn get(&self, key: &str) -> Result<GetResponse, Status> {
        Ok(self.kv().get(GetRequest { key: key.to_owned(), ..GetRequest::default() }).await?.into_inner())
    }

    /// Publishes a message to a queue.
    pub async fn publish(&self, topic: &str, payload: &[u8]) -> Result<PublishResponse, Status> {
        let request =
            PublishRequest { topic: topic.to_owned(), payload: payload.to_vec().into(), ..PublishRequest::default() };
        Ok(self.queue().publish(request).await?.into_inner())
    }

    /// Subscribes to a topic from its beginning.
    pub async fn subscribe(&self, topic: &str, group: &str) -> Result<Streaming<Message>, Status> {
        let request = SubscribeRequest {
            topic: topic.to_owned(),
            consumer_group: group.to_owned(),
            position: StartPosition::Committed.into(),
            ..SubscribeRequest::default()
        };
        Ok(self.queue().subscribe(request).await?.into_inner())
    }

    /// Acknowledges one message; whether it counted.
    pub async fn acknowledge(&self, message_id: &str) -> Result<bool, Status> {
        let request = AcknowledgeRequest { message_id: message_id.to_owned(), ..AcknowledgeRequest::default() };
        Ok(self.queue().acknowledge(request).await?.into_inner().success)
    }

    /// Sends a heartbeat.
    pub async fn heartbeat(&self) -> Result<prism_proto::session::v1::HeartbeatResponse, Status> {
        Ok(self.life().heartbeat(HeartbeatRequest::default()).await?.into_inner())
    }

    /// What the session knows of itself.
    pub async fn describe(&self) -> Result<GetSessionResponse, Status> {
        Ok(self.life().get_session(GetSessionRequest::default()).await?.into_inner())
    }
}
