//! The whole log of a live server, with its checkpoints.

use prism_proto::admin::v1::ListAuditCheckpointsRequest;
use tonic::Code;

use crate::{
    checkpoint::Checkpoint,
    client::Client,
    error::Result,
    export::is_broken,
    output::note,
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
        let entries = WholeLog::open(client, start_of(&checkpoints)).await?;
        if entries.first_sequence() > start_of(&checkpoints) {
            // Perhaps the log was cut just now.
            let known = checkpoints.last().map_or(0, |newest| newest.sequence);
            checkpoints = list(client).await?;
            checkpoints.retain(|checkpoint| checkpoint.sequence <= known.max(entries.last_sequence()));
        }
        Ok(Self { checkpoints, entries })
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
            note("note: the server is older than this command and signs no checkpoints");
            return Ok(Vec::new());
        }
        Err(failure) => return Err(failure),
    };
    answer.checkpoints.into_iter().map(|message| Checkpoint::verify(message).map_err(is_broken)).collect()
}

fn start_of(checkpoints: &[Checkpoint]) -> u64 {
    checkpoints.iter().rfind(|checkpoint| checkpoint.cut).map_or(1, |cut| cut.sequence + 1)
}
