//! Calls whose messages are bytes: for requests that no client would build, and for RPCs known by their descriptor only.

use bytes::{Buf as _, BufMut as _, Bytes};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::admin::Headers;

/// Passes bytes through.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// Calls `path` (`/package.Service/Method`) with the encoded `message`; of a streamed answer the first message counts.
pub async fn call(
    channel: &Channel,
    headers: &Headers,
    path: &str,
    message: impl Into<Bytes>,
) -> Result<Bytes, Status> {
    Ok(open(channel, headers, path, message.into()).await?.message().await?.unwrap_or_default())
}

/// As [`call`], and reads the answer to its end; gives what came with the end.
pub async fn call_to_the_end(
    channel: &Channel,
    headers: &Headers,
    path: &str,
    message: impl Into<Bytes>,
) -> (Result<(), Status>, MetadataMap) {
    let whole = async {
        let mut answers = open(channel, headers, path, message.into()).await?;
        while answers.message().await?.is_some() {}
        Ok(answers.trailers().await?.unwrap_or_default())
    };
    match whole.await {
        Ok(trailers) => (Ok(()), trailers),
        Err(status) => {
            let metadata = Status::metadata(&status).clone();
            (Err(status), metadata)
        }
    }
}

/// Calls `path` and gives back the stream of its answers, once it is open.
pub async fn open(
    channel: &Channel,
    headers: &Headers,
    path: &str,
    message: impl Into<Bytes>,
) -> Result<Streaming<Bytes>, Status> {
    let mut request = Request::new(tokio_stream::once(message.into()));
    headers.apply(&mut request);
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(usize::MAX);
    grpc.ready().await.map_err(|lost| Status::unknown(lost.to_string()))?;
    let path = path.parse().expect("a path");
    Ok(grpc.streaming(request, path, RawCodec).await?.into_inner())
}
