//! `prism-admin audit checkpoint` and `audit forget`.

use prism_proto::admin::v1::CreateAuditCheckpointRequest;

use super::Console;
use crate::{
    checkpoint::Checkpoint,
    error::{Failure, Result},
    export::is_broken,
    output::{Grid, note},
    text,
};

/// Has the server sign its log.
pub async fn create(console: &Console) -> Result<()> {
    let answer = console.client().await?.call(CreateAuditCheckpointRequest {}).await?;
    let checkpoint = Checkpoint::verify(answer.checkpoint.clone().unwrap_or_default()).map_err(is_broken)?;
    console.printer.message(&answer, |_| {
        let hash = hex::encode(checkpoint.hash);
        Grid::sheet()
            .field("sequence", checkpoint.sequence.to_string())
            .field("hash", &hash)
            .field("time", text::precise_time(checkpoint.message().time.as_ref()))
            .field("key", checkpoint.key_id())
            .field("public key", hex::encode(checkpoint.key))
            .field("witness", format!("{}:{hash}", checkpoint.sequence))
            .render("")
    })
}

/// Forgets what is remembered of the server's log.
pub async fn forget(console: &Console) -> Result<()> {
    console.printer.refuse_token()?;
    let memory = console.memory()?;
    let unusable = |why: String| Failure::usage(why).hint("if the file is of no use, remove it");
    let Some(remembered) = memory.recall().map_err(unusable)? else {
        note("nothing is remembered of this server's audit log");
        return Ok(());
    };
    note(&format!("remembered: {}", remembered.checkpoint));
    console.confirm("Forget it? If the log was tampered with, this is the proof.")?;
    memory.forget().await.map_err(unusable)?;
    note("forgotten; the next call remembers the log anew");
    Ok(())
}
