//! The whole log of a live server, with its checkpoints.

use prism_proto::admin::v1::ListAuditCheckpointsRequest;
use tonic::Code;

use crate::{
    checkpoint::Checkpoint,
    client::Client,
    error::{Failure, Result},
    exit::Exit,
    export::is_broken,
    pages::{self, Paging},
    whole_log::WholeLog,
};

/// The entries, and the checkpoints that are about them or what was removed before them.
pub struct LiveLog {
    /// Each with a good signature, oldest first.
    pub checkpoints: Vec<Checkpoint>,
    /// The entries.
    pub entries: WholeLog,
}

impl LiveLog {
    /// Begins to read. The checkpoints are listed first, so that the entries reach beyond all of them.
    pub async fn open(client: &Client) -> Result<Self> {
        let mut checkpoints = list(client).await?;
        let entries = WholeLog::open(client).await?;
        let first = entries.first_sequence();
        if first > start_of(&checkpoints) {
            // Perhaps the log was cut just now; it may be cut once more before the checkpoints are listed.
            let known = checkpoints.last().map_or(0, |newest| newest.sequence).max(entries.last_sequence());
            checkpoints = list(client).await?;
            checkpoints
                .retain(|checkpoint| checkpoint.sequence <= known && !(checkpoint.cut && checkpoint.sequence >= first));
        }
        Ok(Self { checkpoints, entries })
    }

    /// Sequence that the first entry must have.
    pub fn start(&self) -> u64 {
        start_of(&self.checkpoints)
    }

    /// The newest cut.
    pub fn cut(&self) -> Option<&Checkpoint> {
        self.checkpoints.iter().rfind(|checkpoint| checkpoint.cut)
    }
}

async fn list(client: &Client) -> Result<Vec<Checkpoint>> {
    let request = ListAuditCheckpointsRequest::default();
    let answer = match pages::fetch(client, request, Paging::default()).await {
        Ok(answer) => answer,
        Err(failure) if failure.code() == Some(Code::Unimplemented) => {
            return Err(Failure::new(
                Exit::Failed,
                "the server is older than this command: it signs no checkpoints, and cannot list its log oldest first",
            )
            .hint("use the prism-admin that belongs to the server"));
        }
        Err(failure) => return Err(failure),
    };
    answer.checkpoints.into_iter().map(|message| Checkpoint::verify(message).map_err(is_broken)).collect()
}

fn start_of(checkpoints: &[Checkpoint]) -> u64 {
    checkpoints.iter().rfind(|checkpoint| checkpoint.cut).map_or(1, |cut| cut.sequence + 1)
}
