//! Requests of callers without a credential: each is read as a whole before it takes a place among those that are carried out, so
//! that who sends slowly keeps nobody waiting but himself.

use std::net::IpAddr;
use std::pin::pin;

use http_body::Body as HttpBody;
use http_body_util::BodyExt as _;
use prism_core::source::{Full, PlaceBounds, Places};
use prism_core::{Error, Kind, Result};
use prost::bytes::{Bytes, BytesMut};

use crate::MAX_SMALL_REQUEST_BYTES;
use crate::record::{READ_TIMEOUT, too_slow};

/// Exchanges that are being carried out, of everybody: who calls has no credential yet. A fleet may come at once, from behind one
/// address.
const EXCHANGES: PlaceBounds = PlaceBounds { all: 2048, per_source: 1024, kept_for_loopback: 64 };
/// Requests of which something is still to come.
const ARRIVING: PlaceBounds = PlaceBounds { all: 65_536, per_source: 1024, kept_for_loopback: 1024 };
/// What has come of them, in KiB: 64 MiB, and 4 of one source.
const ARRIVED: PlaceBounds = PlaceBounds { all: 65_536, per_source: 4096, kept_for_loopback: 4096 };
/// One place of [`ARRIVED`], in bytes.
const UNIT: usize = 1024;
/// A message of gRPC stands in a frame.
const FRAME: usize = 5;

/// What callers without a credential hold.
#[derive(Clone)]
pub(crate) struct Strangers {
    arriving: Places,
    arrived: Places,
    exchanges: Places,
}

/// Why a request is not there as a whole.
pub(crate) enum Unread {
    /// There is no room for it now.
    Full(Error),
    /// It is larger than what is read.
    TooLarge,
    /// It did not come in time.
    TooSlow(Error),
    /// The connection broke, or it was taken back.
    Broken,
}

impl Strangers {
    /// Nobody so far.
    pub(crate) fn new() -> Self {
        Self { arriving: Places::new(ARRIVING), arrived: Places::new(ARRIVED), exchanges: Places::new(EXCHANGES) }
    }

    /// Reads a request of a caller from `source` to its end.
    pub(crate) async fn read<B>(&self, body: B, source: IpAddr) -> Result<Bytes, Unread>
    where
        B: HttpBody<Data = Bytes> + Send,
    {
        let _place = self.arriving.take(source).map_err(too_many)?;
        let read = tokio::time::timeout(READ_TIMEOUT, self.collect(body, source)).await;
        read.unwrap_or_else(|_| Err(Unread::TooSlow(too_slow())))
    }

    async fn collect<B>(&self, body: B, source: IpAddr) -> Result<Bytes, Unread>
    where
        B: HttpBody<Data = Bytes> + Send,
    {
        let (mut body, mut whole, mut held) = (pin!(body), BytesMut::new(), Vec::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Unread::Broken)?;
            let Ok(data) = frame.into_data() else { continue };
            let length = whole.len() + data.len();
            if length > MAX_SMALL_REQUEST_BYTES + FRAME {
                return Err(Unread::TooLarge);
            }
            while held.len() * UNIT < length {
                held.push(self.arrived.take(source).map_err(too_many)?);
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    }

    /// A place among those that are carried out.
    pub(crate) fn begin(&self, source: IpAddr) -> Result<prism_core::source::Place> {
        self.exchanges.take(source).map_err(too_many_exchanges)
    }
}

fn too_many(full: Full) -> Unread {
    Unread::Full(too_many_exchanges(full))
}

fn too_many_exchanges(full: Full) -> Error {
    let whose = match full {
        Full::Source => "of this address ",
        Full::All => "",
    };
    let message = format!("as many exchanges {whose}are under way as may be; retry");
    Error::new(Kind::ResourceExhausted, "TOO_MANY_CALLS", message).retry_after(std::time::Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use futures::StreamExt as _;
    use http_body::Frame;
    use http_body_util::{Full as Whole, StreamBody};

    use super::*;

    fn at(number: u8) -> IpAddr {
        [192, 0, 2, number].into()
    }

    /// A body of which these bytes come, and then nothing more.
    fn stuck(bytes: usize) -> impl HttpBody<Data = Bytes, Error = Infallible> + Send {
        let first = futures::stream::iter([Ok(Frame::data(Bytes::from(vec![b'x'; bytes])))]);
        StreamBody::new(first.chain(futures::stream::pending()))
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_slowly_takes_room_from_himself_only() {
        let strangers = Strangers::new();
        let mut slow = tokio::task::JoinSet::new();
        for source in 1..=2 {
            for _ in 0..ARRIVING.per_source {
                let strangers = strangers.clone();
                slow.spawn(async move { strangers.read(stuck(1), at(source)).await });
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(matches!(strangers.read(stuck(1), at(1)).await, Err(Unread::Full(_))));
        let whole = Whole::new(Bytes::from_static(b"request"));
        assert_eq!(strangers.read(whole, at(3)).await.ok().unwrap(), "request");
        let _place = strangers.begin(at(3)).unwrap();
        let ends = slow.join_all().await;
        assert!(ends.iter().all(|end| matches!(end, Err(Unread::TooSlow(_)))));
        assert!(strangers.read(Whole::new(Bytes::new()), at(1)).await.is_ok(), "their places are free again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_source_has_sent_is_bounded_in_bytes() {
        let strangers = Strangers::new();
        let largest = MAX_SMALL_REQUEST_BYTES + FRAME;
        assert!(matches!(strangers.read(stuck(largest + 1), at(1)).await, Err(Unread::TooLarge)));
        assert!(strangers.read(Whole::new(Bytes::from(vec![0; largest])), at(1)).await.is_ok());
        let mut slow = tokio::task::JoinSet::new();
        for _ in 0..ARRIVED.per_source * UNIT / MAX_SMALL_REQUEST_BYTES {
            let strangers = strangers.clone();
            slow.spawn(async move { strangers.read(stuck(MAX_SMALL_REQUEST_BYTES), at(1)).await });
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(matches!(strangers.read(Whole::new(Bytes::from_static(b"x")), at(1)).await, Err(Unread::Full(_))));
        assert!(strangers.read(Whole::new(Bytes::from_static(b"x")), at(2)).await.is_ok());
        slow.join_all().await;
        assert!(strangers.read(Whole::new(Bytes::from_static(b"x")), at(1)).await.is_ok());
    }
}
