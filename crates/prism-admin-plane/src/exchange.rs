//! The way in for a machine that has nothing but a join token: the token's secret is its credential, and costs what a wrong
//! credential costs anywhere else (contract §9 "exchange").

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prism_core::error::QuotaViolation;
use prism_core::secret::{SecretId, parse_join_token};
use prism_core::{Error, Kind, Result};
use prism_proto::cluster::v1::{ExchangeJoinTokenRequest, ExchangeJoinTokenResponse};
use prism_rpc::tls::NodeKey;
use prism_store::{EntryDraft, JoinTokenStatus};
use prost::bytes::Bytes;

use crate::door::{Call, Door, draft_of};
use crate::identity::{Identity, Refused};
use crate::op::Op as _;
use crate::ops::bootstrap::{ALARM, ExchangeJoinToken, token_invalid};
use crate::tally::EXCHANGES_PER_MINUTE;

/// What a token proves before anything else is looked at.
enum Proof {
    /// The secret is right.
    Good(Proven),
    /// There is none.
    Absent,
    /// It is wrong, under this public id if it has the form of a token.
    Bad(Option<String>),
}

/// A token whose secret is right.
#[derive(Clone, Copy)]
struct Proven {
    /// Its public id.
    id: SecretId,
    /// Whether it could be redeemed at that moment: otherwise nothing will be signed.
    open: bool,
}

impl Door {
    /// Exchanges a join token for a certificate. A wrong secret is refused like any wrong credential, with an entry in bounded
    /// number; whatever happens with a right one has its entry.
    pub(crate) async fn exchange(
        self: &Arc<Self>,
        identity: Arc<Identity>,
        call: Call,
        request: ExchangeJoinTokenRequest,
    ) -> Result<ExchangeJoinTokenResponse> {
        let made =
            self.run::<ExchangeJoinToken, _, _>(identity, call, request, |door, identity, call, request| async move {
                let refused = match door.prove(&request.join_token).await {
                    Ok(Proof::Good(token)) => return door.exchange_proven(identity, call, request, token).await,
                    // Nothing was tried, so nothing failed.
                    Ok(Proof::Absent) => Error::invalid("join_token", "must be set").into(),
                    Ok(Proof::Bad(id)) => door.authenticator.failed(token_invalid(), source_of(&call), id.as_deref()),
                    // Nobody has presented anything wrong.
                    Err(failed) => return Err(door.fail_exchange(&call, &request, failed).await),
                };
                Err(door.refuse_exchange(&call, &request, refused).await)
            });
        made.await.map_err(without_alarm)
    }

    async fn prove(&self, token: &str) -> Result<Proof> {
        if token.is_empty() {
            return Ok(Proof::Absent);
        }
        let Some(presented) = parse_join_token(token) else { return Ok(Proof::Bad(None)) };
        let (id, hash) = (presented.secret.id, presented.secret.hash());
        let own = self.services.authority.knows(presented.authority);
        let stored = self.services.store.read(move |tx| tx.join_token(id.as_str())).await?;
        // Compared whatever the rest says, so that the time tells nothing.
        let proven = stored.filter(|stored| stored.hash.is(&hash));
        Ok(match proven {
            Some(token) if own => {
                let open = token.status(self.services.now()) == JoinTokenStatus::Active;
                Proof::Good(Proven { id, open })
            }
            _ => Proof::Bad(Some(id.to_string())),
        })
    }

    /// Leaves the entry of a call whose token proves nothing, in bounded number, and gives the refusal when it is time.
    async fn refuse_exchange(&self, call: &Call, request: &ExchangeJoinTokenRequest, mut refused: Refused) -> Error {
        let wait = refused.wait.take();
        let error =
            self.refuse_anonymous(draft_of_exchange(call, request), refused).await.unwrap_or_else(|failed| failed);
        if let Some(wait) = wait {
            wait.over().await;
        }
        error
    }

    /// Leaves the entry of a call that failed before it was known what its token proves, in bounded number: whoever asks is not to
    /// blame, and pays nothing for it.
    async fn fail_exchange(&self, call: &Call, request: &ExchangeJoinTokenRequest, failed: Error) -> Error {
        self.fail_unproven(draft_of_exchange(call, request), failed).await.unwrap_or_else(|failed| failed)
    }

    /// Whoever has the token may show it as often as they like, but not have as many entries: beyond
    /// [`EXCHANGES_PER_MINUTE`] it is looked at first what would come of it.
    async fn exchange_counted(
        &self,
        identity: Arc<Identity>,
        call: Call,
        request: ExchangeJoinTokenRequest,
        token: Proven,
    ) -> Result<ExchangeJoinTokenResponse> {
        let (id, now) = (token.id.as_str(), Instant::now());
        let mut parsed = ExchangeJoinToken::parse(request.clone(), &self.services);
        if !self.exchanges.has_entry(id, now) {
            let outcome = match parsed.clone() {
                Ok(op) => self.services.store.read(move |tx| op.rehearse(tx)).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => {
                    if let Err(wait) = self.exchanges.has_entry_if_good(id, now) {
                        return Err(self
                            .refuse_excess(draft_of_exchange(&call, &request), too_often(id, wait))
                            .await?);
                    }
                }
                Err(error) if error.metadata().contains_key(ALARM) && self.exchanges.is_first_alarm(id, now) => {}
                Err(error) if is_ours(&error) => return Err(self.fail_exchange(&call, &request, error).await),
                Err(error) => {
                    let refused = self.authenticator.failed(error, source_of(&call), Some(id));
                    return Err(self.refuse_exchange(&call, &request, refused).await);
                }
            }
        }
        let replaced = parsed.as_ref().map(ExchangeJoinToken::replaced).unwrap_or_default();
        if let (Ok(op), true) = (&mut parsed, token.open) {
            op.sign();
        }
        let response = self.call_with::<ExchangeJoinToken>(identity, call, request, |_, _| parsed).await?;
        let replaced = replaced.get().map(Vec::as_slice).unwrap_or_default();
        let connections: usize = replaced.iter().map(|fingerprint| self.services.connections.cut(fingerprint)).sum();
        if connections > 0 {
            tracing::info!(connections, "connections of a node were cut, whose name another key has taken over");
        }
        Ok(response)
    }

    /// Without a signing request the key is made here, goes out in a keystore, and is kept nowhere.
    async fn exchange_proven(
        self: &Arc<Self>,
        identity: Arc<Identity>,
        call: Call,
        mut request: ExchangeJoinTokenRequest,
        token: Proven,
    ) -> Result<ExchangeJoinTokenResponse> {
        if !request.csr_pem.is_empty() {
            return self.exchange_counted(identity, call, request, token).await;
        }
        let key = NodeKey::generate()?;
        request.csr_pem = key.signing_request()?.into_bytes().into();
        let name = request.node_id.clone();
        let mut response = self.exchange_counted(identity, call, request, token).await?;
        let (certificate, ca) = (response.certificate_pem.clone(), response.ca_certificate_pem.clone());
        let random = self.services.random().clone();
        // Tens of milliseconds of hashing that no other call should wait for.
        let made = tokio::task::spawn_blocking(move || key.keystore(&name, &certificate, &ca, &random));
        let (keystore, password) = made.await.map_err(Error::internal)??;
        response.pkcs12 = Bytes::from(keystore);
        response.pkcs12_password = password;
        Ok(response)
    }
}

fn draft_of_exchange(call: &Call, request: &ExchangeJoinTokenRequest) -> EntryDraft {
    draft_of::<ExchangeJoinToken>(&Identity::stranger(), call, request)
}

/// Whether a failure is the server's and not the caller's.
fn is_ours(error: &Error) -> bool {
    matches!(error.kind(), Kind::Internal | Kind::Unavailable)
}

fn too_often(token_id: &str, wait: Duration) -> Error {
    let limit = i64::from(EXCHANGES_PER_MINUTE);
    let subject = format!("token:{token_id}");
    Error::quota(QuotaViolation { subject, quota: "exchanges_per_minute", limit, usage: limit }).retry_after(wait)
}

/// An alarm is for the operators.
fn without_alarm(error: Error) -> Error {
    if error.metadata().contains_key(ALARM) {
        Error::new(error.kind(), error.reason().to_owned(), error.message())
    } else {
        error
    }
}

fn source_of(call: &Call) -> Option<IpAddr> {
    call.source_address.parse::<SocketAddr>().ok().map(|address| address.ip())
}
