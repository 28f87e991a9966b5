//! `prism-admin drain`.

use std::time::Duration;

use clap::Args;
use prism_proto::admin::v1::{DrainConnectionsRequest, DrainConnectionsResponse};

use super::{Console, Scope, note_unreachable};
use crate::{error::Result, exit::Exit, output::Grid, output::note, text};

/// What the server takes for a drain without `--timeout`.
const DEFAULT_DRAIN: Duration = Duration::from_secs(30);
/// The answer comes at the drain's timeout at the latest; this is for the way.
const MARGIN: Duration = Duration::from_secs(10);

/// `drain`.
#[derive(Args, Debug)]
pub struct Drain {
    #[command(flatten)]
    scope: Scope,
    /// Only this node
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Cut at the timeout what is still running
    #[arg(long)]
    force: bool,
    /// Say what would end and change nothing
    #[arg(long, alias = "dry-run")]
    validate_only: bool,
}

impl Drain {
    /// That of one node.
    pub(super) fn of_node(id: String, force: bool, validate_only: bool) -> Self {
        Self { scope: Scope::default(), node: Some(id), force, validate_only }
    }

    /// Carries the drain out.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        console.printer.refuse_token()?;
        let timeout = console.global.timeout;
        let client = console.connect(timeout.unwrap_or(DEFAULT_DRAIN).saturating_add(MARGIN)).await?;
        if self.force && !self.validate_only {
            console.confirm("Cut what is still running at the timeout?")?;
        }
        let request = DrainConnectionsRequest {
            namespace: self.scope.namespace,
            timeout: timeout.map(text::duration_to_proto),
            node_id: self.node,
            force: self.force,
            validate_only: self.validate_only,
        };
        let answer = client.call(request).await?;
        note_unreachable(&answer.unreachable_nodes);
        console.printer.message(&answer, |answer| sheet(answer, self.validate_only))?;
        if self.validate_only || answer.complete {
            return Ok(Exit::Ok);
        }
        note(&format!(
            "hint: {} sessions are left; repeat with a longer --timeout, or --force",
            answer.remaining_count
        ));
        Ok(Exit::Deadline)
    }
}

fn sheet(answer: &DrainConnectionsResponse, validate_only: bool) -> String {
    let grid = Grid::sheet();
    let (ended, left) = if validate_only { ("would end at once", "have something running") } else { ("ended", "left") };
    let grid = grid.field(ended, answer.drained_count.to_string()).field(left, answer.remaining_count.to_string());
    if validate_only { grid } else { grid.field("complete", text::yes_no(answer.complete)) }.render("")
}
