use prism_core::limits::SessionPolicy;
use prism_core::permission::Reach;
use prism_core::secret::Random;
use prism_core::{Clock, Error};
use prism_store::Store;
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

use super::*;

struct World {
    _folder: TempDir,
    store: Store,
    authority: CertificateAuthority,
    token: (SecretId, SecretHash),
}

fn key() -> SigningRequest {
    let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    SigningRequest::parse(csr.pem().unwrap().as_bytes()).unwrap()
}

/// A join token for a node, or for any.
async fn token(store: &Store, authority: &CertificateAuthority, node: Option<&str>) -> (SecretId, SecretHash) {
    let made = store.random().join_token(authority.fingerprint());
    let (token, node_id) = ((made.id, made.hash), node.map(|node| NodeId::parse("node_id", node).unwrap()));
    let inserted = store.write(move |tx| {
        tx.insert_join_token(&JoinTokenRow {
            id: made.id,
            hash: made.hash,
            may_replace: node_id.is_some(),
            node_id,
            authority: None,
            created_at: tx.now,
            created_by: "root".to_owned(),
            expires_at: tx.now + Duration::from_hours(1),
            revoked_at: None,
            redemption: None,
        })
    });
    inserted.await.unwrap();
    token
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), SessionPolicy::default(), Clock::system(), Random::system()).await;
        let (store, authority) = (store.unwrap(), CertificateAuthority::load_or_create(folder.path()).unwrap());
        let token = token(&store, &authority, None).await;
        Self { _folder: folder, store, authority, token }
    }

    /// An exchange by the node `n1`, signed ahead.
    fn signed(&self, key: &SigningRequest) -> ExchangeJoinToken {
        let issuer =
            Issuer { authority: self.authority.clone(), cluster: "c".to_owned(), life: Duration::from_hours(1) };
        let mut op = ExchangeJoinToken {
            token: self.token.0,
            secret: self.token.1,
            named: "n1".to_owned(),
            node_id: NodeId::parse("node_id", "n1"),
            key: Ok(key.clone()),
            key_hash: Some(key.key_hash()),
            issuer,
            signed: None,
            replaced: Replaced::default(),
        };
        op.sign();
        assert!(op.signed.is_some());
        op
    }

    /// What comes of it: the certificate of the answer.
    async fn execute(&self, op: ExchangeJoinToken) -> Result<String> {
        let done = self.store.write(move |tx| {
            let caller = Caller { identity: Arc::new(Identity::stranger()), grants: Vec::new(), reach: Reach::Nowhere };
            tx.attempt(|tx| op.execute(tx, &caller)).map(|done| done.response.certificate_pem)
        });
        String::from_utf8(done.await?.to_vec()).map_err(Error::internal)
    }

    async fn stored(&self) -> Vec<CertificateRow> {
        self.store.read(|tx| tx.node_certificates("n1", 10)).await.unwrap()
    }
}

#[tokio::test]
async fn what_was_signed_before_is_stored_once_and_dropped_where_it_is_not_what_was_decided() {
    let world = World::new().await;
    let (first, other) = (key(), key());
    let op = world.signed(&first);
    let pem = op.signed.clone().unwrap().pem;
    assert_eq!(world.execute(op).await.unwrap(), pem);

    // The same key once more: its own signature is another, and nobody gets to see it.
    let op = world.signed(&first);
    assert_ne!(op.signed.clone().unwrap().pem, pem);
    assert_eq!(world.execute(op).await.unwrap(), pem);
    assert_eq!(world.execute(world.signed(&other)).await.unwrap_err().reason(), "TOKEN_REDEEMED");
    let stored = world.stored().await;
    assert_eq!(stored.len(), 1, "{stored:?}");
    assert_eq!(stored[0].origin.as_ref().unwrap().pem, pem);
}

#[tokio::test]
async fn a_signature_of_a_ca_that_was_rotated_meanwhile_is_made_anew() {
    let world = World::new().await;
    let op = world.signed(&key());
    let old = op.signed.clone().unwrap();
    let plan = world.authority.plan_rotation().unwrap();
    world.authority.settle(&plan.name).unwrap();
    let pem = world.execute(op).await.unwrap();
    let stored = world.stored().await;
    assert_eq!((stored.len(), stored[0].authority.clone()), (1, Some(plan.issues)));
    assert_ne!((pem, stored[0].fingerprint.clone()), (old.pem, old.fingerprint));
}

#[tokio::test]
async fn a_name_that_is_taken_over_tells_which_certificates_it_cost() {
    let world = World::new().await;
    world.execute(world.signed(&key())).await.unwrap();
    let before = world.stored().await.remove(0).fingerprint;
    let token = token(&world.store, &world.authority, Some("n1")).await;
    let world = World { token, ..world };
    let op = world.signed(&key());
    let replaced = op.replaced();
    assert_eq!(replaced.get(), None);
    world.execute(op).await.unwrap();
    assert_eq!(replaced.get(), Some(&vec![before]));
}
