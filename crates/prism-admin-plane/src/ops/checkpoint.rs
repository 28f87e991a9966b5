//! CreateAuditCheckpoint, ListAuditCheckpoints.

use async_trait::async_trait;
use prism_core::page::Page;
use prism_core::{Error, Result};
use prism_proto::admin::v1 as wire;
use prism_store::Tx;

use crate::op::{Caller, Done, Op, Place, Scope, Services};

/// `CreateAuditCheckpoint`. A checkpoint says nothing of what the entries say, so whoever may read any of them may ask for one.
#[derive(Clone)]
pub struct CreateAuditCheckpoint {
    signed: Option<wire::AuditCheckpoint>,
}

#[async_trait]
impl Op for CreateAuditCheckpoint {
    type Request = wire::CreateAuditCheckpointRequest;
    type Response = wire::CreateAuditCheckpointResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/CreateAuditCheckpoint";
    const SCOPE: Scope = Scope::Filtered;
    const PREPARES: bool = true;

    fn resource(_: &Self::Request) -> String {
        "audit".to_owned()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Visible)
    }

    fn parse(_: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self { signed: None })
    }

    /// What is signed and not stored is lost without harm.
    fn needs_rehearsal(&self) -> bool {
        false
    }

    async fn prepare(&mut self, services: &Services) -> Result<()> {
        self.signed = Some(services.store.sign_checkpoint().await?);
        Ok(())
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let signed = self.signed.ok_or_else(|| Error::internal("a checkpoint that was not signed"))?;
        tx.store_checkpoint(&signed)?;
        let sequence = signed.sequence;
        let response = wire::CreateAuditCheckpointResponse { checkpoint: Some(signed) };
        Ok(Done::new(response).detail("sequence", sequence))
    }
}

/// `ListAuditCheckpoints`.
#[derive(Clone)]
pub struct ListAuditCheckpoints {
    page: Page,
}

impl Op for ListAuditCheckpoints {
    type Request = wire::ListAuditCheckpointsRequest;
    type Response = wire::ListAuditCheckpointsResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/ListAuditCheckpoints";
    const SCOPE: Scope = Scope::Filtered;

    fn resource(_: &Self::Request) -> String {
        "audit".to_owned()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Visible)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self { page: Page::parse("checkpoints", request.page_size, request.page_token.as_deref())? })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let (mut checkpoints, total) = tx.checkpoints(&self.page)?;
        let next = self.page.cut(&mut checkpoints, |checkpoint| checkpoint.sequence.to_string());
        Ok(Done::new(wire::ListAuditCheckpointsResponse {
            checkpoints,
            next_page_token: next.unwrap_or_default(),
            total_count: i32::try_from(total).unwrap_or(i32::MAX),
        }))
    }
}
