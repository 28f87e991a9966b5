//! The way in for a machine that has nothing but a join token: the token's secret is its credential, and costs what a wrong
//! credential costs anywhere else (contract §9 "exchange").

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use prism_core::secret::parse_join_token;
use prism_core::{Error, Result};
use prism_proto::cluster::v1::{ExchangeJoinTokenRequest, ExchangeJoinTokenResponse};
use prism_rpc::tls::NodeKey;
use prost::bytes::Bytes;

use crate::door::{Call, Door, draft, method_name};
use crate::identity::{Identity, Refused};
use crate::op::Op as _;
use crate::ops::bootstrap::{ExchangeJoinToken, resource_of_presented, token_invalid};

/// What a token proves before anything else is looked at.
enum Proof {
    /// The secret is right.
    Good,
    /// There is none.
    Absent,
    /// It is wrong, under this public id if it has the form of a token.
    Bad(Option<String>),
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
        self.run::<ExchangeJoinToken, _, _>(identity, call, request, |door, identity, call, request| async move {
            let refused = match door.prove(&request.join_token).await? {
                Proof::Good => return door.exchange_proven(identity, call, request).await,
                // Nothing was tried, so nothing failed.
                Proof::Absent => Error::invalid("join_token", "must be set").into(),
                Proof::Bad(id) => door.authenticator.failed(token_invalid(), source_of(&call), id.as_deref()),
            };
            Err(door.refuse_exchange(&call, &request, refused).await)
        })
        .await
    }

    async fn prove(&self, token: &str) -> Result<Proof> {
        if token.is_empty() {
            return Ok(Proof::Absent);
        }
        let Some(presented) = parse_join_token(token) else { return Ok(Proof::Bad(None)) };
        let (id, hash) = (presented.secret.id, presented.secret.hash());
        let own = presented.authority == self.services.authority.fingerprint();
        let stored = self.services.store.read(move |tx| tx.join_token(id.as_str())).await?;
        // Compared whatever the rest says, so that the time tells nothing.
        let proven = stored.is_some_and(|stored| stored.hash.is(&hash));
        Ok(if proven && own { Proof::Good } else { Proof::Bad(Some(id.to_string())) })
    }

    /// Leaves the entry of a call whose token proves nothing, in bounded number, and gives the refusal when it is time.
    async fn refuse_exchange(&self, call: &Call, request: &ExchangeJoinTokenRequest, mut refused: Refused) -> Error {
        let resource = resource_of_presented(&request.join_token);
        let mut draft = draft(call, method_name(ExchangeJoinToken::RPC), resource, String::new());
        draft.metadata = ExchangeJoinToken::told(request);
        let wait = refused.wait.take();
        let error = self.refuse_anonymous(draft, refused).await.unwrap_or_else(|failed| failed);
        if let Some(wait) = wait {
            wait.over().await;
        }
        error
    }

    /// Without a signing request the key is made here, goes out in a keystore, and is kept nowhere.
    async fn exchange_proven(
        self: &Arc<Self>,
        identity: Arc<Identity>,
        call: Call,
        mut request: ExchangeJoinTokenRequest,
    ) -> Result<ExchangeJoinTokenResponse> {
        if !request.csr_pem.is_empty() {
            return self.call_as::<ExchangeJoinToken>(identity, call, request).await;
        }
        let key = NodeKey::generate()?;
        request.csr_pem = key.signing_request()?.into_bytes().into();
        let name = request.node_id.clone();
        let mut response = self.call_as::<ExchangeJoinToken>(identity, call, request).await?;
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

fn source_of(call: &Call) -> Option<IpAddr> {
    call.source_address.parse::<SocketAddr>().ok().map(|address| address.ip())
}
