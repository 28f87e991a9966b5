//! What is known of a request before anyone reads it: its id and its peer. Both are in the extensions of every request.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use http::header::{HeaderName, HeaderValue};
use http::{Request, Response};
use pin_project_lite::pin_project;
use prism_core::limits::MAX_REQUEST_ID_BYTES;
use prism_core::secret::Random;
use rustls_pki_types::CertificateDer;
use tower::Service;

/// Header of the request id, in requests and responses.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const PREFIX_LENGTH: usize = 8;
/// Characters of a 64-bit number in base 32.
const COUNTER_LENGTH: usize = 13;

/// Id of a request: 1 to 128 printable ASCII characters. A clone is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        // Only printable ASCII gets in.
        self.0.to_str().unwrap_or_default()
    }

    /// Takes over the id that a client sent; `None` when it breaks the bounds (contract §9 "x-request-id").
    fn taken_over(value: &HeaderValue) -> Option<Self> {
        let bytes = value.as_bytes();
        let valid =
            (1..=MAX_REQUEST_ID_BYTES).contains(&bytes.len()) && bytes.iter().all(|byte| (b' '..=b'~').contains(byte));
        // Others trust the log and the audit trail, so a secret sent here by mistake must not get there.
        (valid && matches!(prism_core::secret::redact(value.to_str().ok()?), std::borrow::Cow::Borrowed(_)))
            .then(|| Self(value.clone()))
    }
}

/// The other end of a request's connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The certificates it showed, leaf first, at most [`crate::tls::MAX_CHAIN`]; empty without a client certificate. It proved
    /// to own the key of the leaf. Nobody has asked yet whether the leaf is valid or to be trusted.
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// SHA-256 of the leaf's DER encoding in lower-case hexadecimal, under which [`crate::Connections::cut`] finds the
    /// connection.
    pub fingerprint: Option<Arc<str>>,
}

impl Peer {
    /// The peer at `address`, which proved to own the key of the first of `certificates`.
    pub fn new(address: SocketAddr, certificates: &[CertificateDer<'_>]) -> Self {
        Self {
            address,
            fingerprint: certificates.first().map(|leaf| crate::tls::fingerprint(leaf).into()),
            certificates: certificates.iter().map(|certificate| certificate.clone().into_owned()).collect(),
        }
    }
}

/// Makes request ids: a random prefix for each process and a counter.
#[derive(Clone, Debug)]
pub struct RequestIds(Arc<Generator>);

#[derive(Debug)]
struct Generator {
    prefix: [u8; PREFIX_LENGTH],
    counter: AtomicU64,
}

impl RequestIds {
    /// Ids under a prefix from `random`.
    pub fn new(random: &Random) -> Self {
        let mut prefix = [0; PREFIX_LENGTH];
        random.fill(&mut prefix);
        for byte in &mut prefix {
            *byte = ALPHABET[usize::from(*byte % 32)];
        }
        Self(Arc::new(Generator { prefix, counter: AtomicU64::new(0) }))
    }

    /// The next id.
    pub fn next(&self) -> RequestId {
        let mut rest = self.0.counter.fetch_add(1, Ordering::Relaxed);
        let mut text = [b'0'; PREFIX_LENGTH + COUNTER_LENGTH];
        text[..PREFIX_LENGTH].copy_from_slice(&self.0.prefix);
        for digit in text[PREFIX_LENGTH..].iter_mut().rev() {
            if rest == 0 {
                break;
            }
            *digit = ALPHABET[(rest % 32) as usize];
            rest /= 32;
        }
        // The alphabet holds header characters only, so the fallback is never taken.
        RequestId(HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("0")))
    }
}

/// Gives every request its [`RequestId`] and every response the header `x-request-id`, errors included.
#[derive(Clone, Debug)]
pub struct RequestIdService<S> {
    inner: S,
    ids: RequestIds,
}

impl<S> RequestIdService<S> {
    /// Wraps `inner`.
    pub fn new(inner: S, ids: RequestIds) -> Self {
        Self { inner, ids }
    }
}

impl<S, B, R> Service<Request<B>> for RequestIdService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = RequestIdFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let id = request.headers().get(&REQUEST_ID).and_then(RequestId::taken_over).unwrap_or_else(|| self.ids.next());
        request.extensions_mut().insert(id.clone());
        RequestIdFuture { future: self.inner.call(request), id: Some(id) }
    }
}

pin_project! {
    /// Adds the request id to a response.
    pub struct RequestIdFuture<F> {
        #[pin]
        future: F,
        id: Option<RequestId>,
    }
}

impl<F, R, E> Future for RequestIdFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut result = ready!(this.future.poll(cx));
        if let (Ok(response), Some(id)) = (&mut result, this.id.take()) {
            response.headers_mut().insert(REQUEST_ID, id.0);
        }
        Poll::Ready(result)
    }
}

/// The id of a tonic request; empty when it did not come through a [`RequestIdService`].
pub fn request_id<T>(request: &tonic::Request<T>) -> String {
    request.extensions().get::<RequestId>().map_or_else(String::new, |id| id.as_str().to_owned())
}

/// The peer of a tonic request; `None` when it did not come through [`crate::serve`].
pub fn peer<T>(request: &tonic::Request<T>) -> Option<&Peer> {
    request.extensions().get::<Peer>()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::convert::Infallible;

    use tower::service_fn;

    use super::*;

    async fn answered(sent: Option<&[u8]>) -> (String, String) {
        let inner = service_fn(|request: Request<()>| async move {
            let seen = request.extensions().get::<RequestId>().map(|id| id.as_str().to_owned()).unwrap();
            Ok::<_, Infallible>(Response::new(seen))
        });
        let mut service = RequestIdService::new(inner, RequestIds::new(&Random::system()));
        let mut request = Request::new(());
        if let Some(sent) = sent {
            request.headers_mut().insert(REQUEST_ID, HeaderValue::from_bytes(sent).unwrap());
        }
        let response = service.call(request).await.unwrap();
        let header = response.headers()[REQUEST_ID].to_str().unwrap().to_owned();
        (header, response.into_body())
    }

    #[tokio::test]
    async fn a_good_id_is_taken_over_and_answered() {
        let longest = "x".repeat(128);
        for good in ["a", "trace 17/~", longest.as_str()] {
            assert_eq!(answered(Some(good.as_bytes())).await, (good.to_owned(), good.to_owned()));
        }
    }

    #[tokio::test]
    async fn a_bad_or_absent_id_is_replaced() {
        let long = "x".repeat(129);
        let bad: [Option<&[u8]>; 5] = [None, Some(b""), Some("ä".as_bytes()), Some(b"a\tb"), Some(long.as_bytes())];
        for sent in bad {
            let (header, seen) = answered(sent).await;
            assert_eq!(header, seen);
            assert_eq!(header.len(), PREFIX_LENGTH + COUNTER_LENGTH);
        }
        let (header, _) = answered(Some(b"prs_abcdefgh")).await;
        assert!(!header.contains("prs_"));
    }

    #[test]
    fn ids_are_distinct() {
        let ids = RequestIds::new(&Random::system());
        let made: HashSet<String> = (0..5000).map(|_| ids.next().as_str().to_owned()).collect();
        assert_eq!(made.len(), 5000);
    }
}
