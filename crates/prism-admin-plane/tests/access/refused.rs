//! Calls without a valid credential: none is forgotten.

use axum::body::Body;
use http::Request;
use prism_admin_plane::identity::Presented;
use rustls_pki_types::CertificateDer;
use tower::Service as _;

use crate::world::{Shown, World};

use prism_proto::admin::v1::CertificateKind::User;

#[tokio::test]
async fn refused_calls_are_counted_to_the_last() {
    const CALLS: u64 = 300;
    let world = World::new().await;
    let mut service = world.plane.service().await.unwrap();
    for _ in 0..CALLS {
        let request = Request::post("/prism.admin.v1.AccessService/WhoAmI").body(Body::empty()).unwrap();
        assert_eq!(service.call(request).await.unwrap().headers()["grpc-status"], "16");
    }
    world.plane.close_audit_log().await;
    let log = world.entries(2000).await;
    let counts = log.iter().filter_map(|entry| entry.metadata.get("suppressed_before"));
    let counted: u64 = counts.map(|count| count.parse::<u64>().unwrap()).sum();
    let own = log.iter().filter(|entry| entry.actor == "anonymous" && entry.operation == "WhoAmI").count();
    assert_eq!(own as u64 + counted, CALLS);
    let last = &log[0];
    assert_eq!((last.operation.as_str(), last.actor.as_str()), ("RefusedCredentials", "anonymous"));
    assert_eq!((last.auth_method.as_str(), last.success, last.error.is_some()), ("none", false, true));
    // Nothing is left to be told.
    world.plane.close_audit_log().await;
    assert_eq!(world.entry().await.id, last.id);
}

#[tokio::test]
async fn an_unusable_name_beside_a_valid_credential_tells_whose_it_was() {
    let world = World::new().await;
    let (issued, alice) = world.certificate(User, "alice").await;
    let Shown::Certificate(der) = alice else { unreachable!() };
    let certificates: std::sync::Arc<[CertificateDer<'static>]> = [der].into();
    for (named, reason) in [("prism", "ADMIN_USER_INVALID"), ("bob", "ADMIN_USER_MISMATCH")] {
        let presented = Presented {
            admin_user: vec![named.to_owned()],
            certificates: certificates.clone(),
            ..Presented::default()
        };
        let refused = world.plane.door().authenticator.authenticate(&presented).await.unwrap_err();
        assert_eq!((refused.error.reason(), &refused.credential_id), (reason, &issued.serial_number));
    }
}
