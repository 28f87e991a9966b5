//! A stream of messages in both directions.

use anyhow::{Context as _, Result, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use prost::Message;

use crate::wire::{PREFIX_BYTES, Peer, framed, require_ok};

/// An open stream on a connection of its own.
pub struct Duplex {
    outgoing: SendStream<Bytes>,
    incoming: RecvStream,
    /// What has come in and is not a whole message yet.
    waiting: BytesMut,
    /// The connection lives until its last handle is dropped.
    _connection: SendRequest<Bytes>,
}

impl Duplex {
    /// Opens one with its first messages, before which the other side need not say anything.
    pub async fn open(peer: &Peer, path: &str, first: &[impl Message]) -> Result<Self> {
        let mut connection = peer.connect().await?.ready().await?;
        let (response, mut outgoing) = connection.send_request(peer.head(path)?, false)?;
        for message in first {
            outgoing.send_data(framed(&message.encode_to_vec()).into(), false)?;
        }
        let response = response.await?;
        ensure!(response.status() == http::StatusCode::OK, "HTTP status {}", response.status());
        if response.headers().contains_key("grpc-status") {
            require_ok(response.headers())?;
        }
        Ok(Self { outgoing, incoming: response.into_body(), waiting: BytesMut::new(), _connection: connection })
    }

    /// Sends a message.
    pub fn send(&mut self, message: &impl Message) -> Result<()> {
        Ok(self.outgoing.send_data(framed(&message.encode_to_vec()).into(), false)?)
    }

    /// The next message. The end of the stream is an error, as it says.
    pub async fn next<M: Message + Default>(&mut self) -> Result<M> {
        loop {
            if let Some(message) = self.whole() {
                return Ok(M::decode(message)?);
            }
            let Some(chunk) = self.incoming.data().await else {
                require_ok(&self.incoming.trailers().await?.context("a stream ended without a status")?)?;
                anyhow::bail!("a stream that was to go on has ended");
            };
            let chunk = chunk?;
            self.incoming.flow_control().release_capacity(chunk.len())?;
            self.waiting.extend_from_slice(&chunk);
        }
    }

    fn whole(&mut self) -> Option<Bytes> {
        let [_, length @ ..] = self.waiting.first_chunk::<PREFIX_BYTES>()?;
        let length = u32::from_be_bytes(*length) as usize;
        if self.waiting.len() < PREFIX_BYTES + length {
            return None;
        }
        self.waiting.advance(PREFIX_BYTES);
        Some(self.waiting.split_to(length).freeze())
    }
}
