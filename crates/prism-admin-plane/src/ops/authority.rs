//! GetCaStatus, RotateCa, RetireCa: the CA of the cluster, and the one that takes its place.
//!
//! A change is on the disk before it is decided, is decided with its entry, and takes effect after that
//! ([`prism_rpc::CertificateAuthority::settle`]).

use async_trait::async_trait;
use prism_core::{Error, Result};
use prism_proto::cluster::v1 as wire;
use prism_rpc::CertificateAuthority;
use prism_rpc::convert::timestamp;
use prism_rpc::tls::{Plan, Standing};
use prism_store::{StandingCertificates, Tx};
use serde_json::json;

use crate::op::{Caller, Done, Op, Place, Scope, Services};

/// The CA in the audit log.
const RESOURCE: &str = "ca";

fn int32(count: i64) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Join tokens that could be redeemed and name a CA that does not issue any more.
fn tokens_of_the_old(standings: &[Standing], tx: &Tx<'_>) -> Result<i64> {
    let issuing = standings.iter().find(|standing| standing.issues);
    issuing.map_or(Ok(0), |issuing| tx.join_tokens_of_another_authority(&issuing.fingerprint))
}

/// ABORTED `CA_CHANGING` while an earlier change has not taken effect: the next one would not know what it changes.
fn require_settled(authority: &CertificateAuthority, tx: &Tx<'_>) -> Result<()> {
    let settled = tx.authority_state()?.is_none_or(|decided| decided == authority.state_name());
    let message = "a change of the CA is taking effect; retry";
    if settled { Ok(()) } else { Err(Error::aborted("CA_CHANGING", message)) }
}

/// What a change did takes effect before it is answered. If that fails it is tried again every minute at the latest.
async fn take_effect(services: &Services) {
    if let Err(failed) = services.settle_authority().await {
        tracing::error!(reason = failed.reason(), message = failed.message(), cause = ?failed.cause(), "a change of the CA has not taken effect yet");
    }
}

fn decide<R>(plan: &Plan, tx: &mut Tx<'_>, response: R, before: &str) -> Result<Done<R>> {
    tx.set_authority_state(&plan.name)?;
    let state = |name: &str| json!({ "trusted": name });
    Ok(Done::new(response).changed(Some(&state(before)), Some(&state(&plan.name))))
}

/// `GetCaStatus`.
#[derive(Clone)]
pub struct GetCaStatus {
    authority: CertificateAuthority,
}

impl Op for GetCaStatus {
    type Request = wire::GetCaStatusRequest;
    type Response = wire::GetCaStatusResponse;
    const RPC: &'static str = "prism.cluster.v1.CaService/GetCaStatus";
    const SCOPE: Scope = Scope::Installation;

    fn resource(_: &Self::Request) -> String {
        RESOURCE.to_owned()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(_: Self::Request, services: &Services) -> Result<Self> {
        Ok(Self { authority: services.authority.clone() })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let standings = self.authority.standings()?;
        let mut response = wire::GetCaStatusResponse {
            ca_certificate_pem: self.authority.certificate_pem().into_bytes().into(),
            ..Default::default()
        };
        for standing in &standings {
            // Before the first rotation nothing notes which CA it is of.
            let alone = standings.len() == 1;
            let found = tx.standing_certificates(&standing.fingerprint, alone)?;
            let mut join_tokens = 0;
            if !standing.issues {
                response.can_retire = found.total() == 0;
                join_tokens = tokens_of_the_old(&standings, tx)?;
            }
            response.authorities.push(wire::CertificateAuthority {
                fingerprint: standing.fingerprint.clone(),
                since: Some(timestamp(standing.since)),
                until: Some(timestamp(standing.until)),
                issues: standing.issues,
                user_certificates: int32(found.users),
                client_certificates: int32(found.clients),
                node_certificates: int32(found.nodes),
                last_certificate_ends: found.last_ends.map(timestamp),
                join_tokens: int32(join_tokens),
            });
        }
        if let [new, old] = standings.as_slice() {
            let (names, count) = tx.nodes_waiting(&old.fingerprint, &new.fingerprint)?;
            (response.nodes_waiting, response.nodes_waiting_count) = (names, int32(count));
        }
        Ok(Done::new(response))
    }
}

/// `RotateCa`.
#[derive(Clone)]
pub struct RotateCa {
    authority: CertificateAuthority,
}

#[async_trait]
impl Op for RotateCa {
    type Request = wire::RotateCaRequest;
    type Response = wire::RotateCaResponse;
    const RPC: &'static str = "prism.cluster.v1.CaService/RotateCa";
    const SCOPE: Scope = Scope::Installation;

    fn resource(_: &Self::Request) -> String {
        RESOURCE.to_owned()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(_: Self::Request, services: &Services) -> Result<Self> {
        Ok(Self { authority: services.authority.clone() })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        require_settled(&self.authority, tx)?;
        let plan = self.authority.plan_rotation()?;
        tx.attribute_certificates(&plan.old)?;
        let response = wire::RotateCaResponse {
            fingerprint: plan.issues.clone(),
            old_fingerprint: plan.old.clone(),
            ca_certificate_pem: plan.bundle.clone().into_bytes().into(),
        };
        let done = decide(&plan, tx, response, &self.authority.state_name())?;
        Ok(done.detail("fingerprint", &plan.issues).detail("old_fingerprint", &plan.old))
    }

    async fn follow_up(_: &Self::Request, _: &mut Self::Response, services: &Services) {
        take_effect(services).await;
    }
}

/// `RetireCa`.
#[derive(Clone)]
pub struct RetireCa {
    authority: CertificateAuthority,
    force: bool,
}

impl RetireCa {
    /// How many certificates stand on the old CA; refused unless there are none, or it is to be forced.
    fn in_use(&self, old: &str, tx: &Tx<'_>) -> Result<i64> {
        let found = tx.standing_certificates(old, false)?;
        let StandingCertificates { users, clients, nodes, .. } = found;
        let count = found.total();
        if count > 0 && !self.force {
            let message = format!(
                "{users} certificates of users, {clients} of applications and {nodes} of nodes that are valid stand on the old CA; \
                 renew them or revoke them, or force it, which locks their holders out"
            );
            return Err(Error::precondition("CA_IN_USE", message).with("count", count.to_string()));
        }
        Ok(count)
    }
}

#[async_trait]
impl Op for RetireCa {
    type Request = wire::RetireCaRequest;
    type Response = wire::RetireCaResponse;
    const RPC: &'static str = "prism.cluster.v1.CaService/RetireCa";
    const SCOPE: Scope = Scope::Installation;

    fn resource(_: &Self::Request) -> String {
        RESOURCE.to_owned()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        Ok(Self { authority: services.authority.clone(), force: request.force })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        require_settled(&self.authority, tx)?;
        let standings = self.authority.standings()?;
        let tokens = tokens_of_the_old(&standings, tx)?;
        let old = standings.into_iter().find(|standing| !standing.issues);
        let count = old.map(|old| self.in_use(&old.fingerprint, tx)).transpose()?.unwrap_or_default();
        let plan = self.authority.plan_retirement()?;
        let response = wire::RetireCaResponse {
            retired_fingerprint: plan.old.clone(),
            certificates_cut: int32(count),
            ca_certificate_pem: plan.bundle.clone().into_bytes().into(),
        };
        let done = decide(&plan, tx, response, &self.authority.state_name())?;
        Ok(done
            .detail("retired_fingerprint", &plan.old)
            .detail("certificates_cut", count)
            .detail("join_tokens_cut", tokens)
            .detail("force", self.force))
    }

    async fn follow_up(_: &Self::Request, _: &mut Self::Response, services: &Services) {
        take_effect(services).await;
    }
}
