//! What a controller has a node do.

use std::sync::Arc;
use std::time::Duration;

use prism_core::Error;
use prism_core::control::DataNode;
use prism_core::{NamespaceName, Result};
use prism_proto::cluster::v1 as wire;
use tokio::time::Instant;
use wire::command::Command;
use wire::command_answer::Result as Answered;

use super::Shared;
use super::state::{Event, needs_preparation};
use crate::bounds::MAX_BACKENDS;
use crate::convert::{
    backend_to_wire, bad, config_from_wire, failure_to_wire, id_from_wire, namespace_figures_to_wire, need,
    node_figures_to_wire, scope_from_wire,
};
use crate::parts::cut;

/// The answer to a command that was not carried out.
pub fn refused(id: u64, error: &Error) -> wire::CommandAnswer {
    wire::CommandAnswer { id, result: Some(Answered::Failure(failure_to_wire(error))), more: false }
}

/// Carries a command out, and answers it, in as many parts as it takes.
pub async fn carry_out(shared: &Shared, command: wire::Command) -> Vec<wire::CommandAnswer> {
    let id = command.id;
    cut(match shared.carry_out(command.command).await {
        Ok(result) => wire::CommandAnswer { id, result: Some(result), more: false },
        Err(error) => {
            if let Some(cause) = error.cause() {
                tracing::warn!(reason = error.reason(), cause = %cause, "a command of the controller failed");
            }
            refused(id, &error)
        }
    })
}

fn name(of: wire::NamespaceCommand) -> Result<NamespaceName> {
    NamespaceName::try_from(of.namespace).map_err(bad)
}

fn duration(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

impl Shared {
    async fn carry_out(&self, command: Option<Command>) -> Result<Answered> {
        let node = self.attached().await;
        let command = command.ok_or_else(|| {
            Error::new(prism_core::Kind::Unimplemented, "COMMAND_UNKNOWN", "the node does not know this command")
        })?;
        Ok(match command {
            Command::Terminate(terminate) => Answered::Termination(self.terminate(terminate).await?),
            Command::Drain(drain) => {
                let scope = scope_from_wire(need("scope", drain.scope)?)?;
                drained(node.drain(&scope, duration(drain.timeout_ms), drain.force).await)
            }
            Command::DrainPreview(drain) => drained(node.drain_preview(&scope_from_wire(need("scope", drain.scope)?)?)),
            Command::Figures(figures) => {
                Answered::Figures(node_figures_to_wire(&node.figures(duration(figures.window_ms))))
            }
            Command::NamespaceFigures(of) => {
                Answered::NamespaceFigures(namespace_figures_to_wire(node.namespace_figures(&name(of)?).await))
            }
            Command::Backends(_) => {
                let backends = node.backends().await;
                let backends = backends.iter().take(MAX_BACKENDS).map(backend_to_wire).collect();
                Answered::Backends(wire::BackendReports { backends })
            }
            Command::CheckConfig(config) => {
                node.check_config(&config_from_wire(&config.config_json)?).await?;
                Answered::Done(wire::Done {})
            }
            Command::PrepareConfig(config) => {
                node.prepare_config(&config_from_wire(&config.config_json)?).await?;
                Answered::Done(wire::Done {})
            }
            Command::RemoveNamespace(of) => {
                let name = NamespaceName::try_from(of.namespace).map_err(bad)?;
                self.remove(&*node, &name, of.generation.unwrap_or(i64::MAX)).await?;
                Answered::Done(wire::Done {})
            }
            Command::Report(_) => {
                self.report(node.take_reports()).await?;
                Answered::Done(wire::Done {})
            }
        })
    }

    /// Removes the data of a namespace that is gone for good. What is known to be of a later one stays: the controller may have
    /// been restored from a copy that is older than that one.
    async fn remove(&self, node: &dyn DataNode, name: &NamespaceName, generation: i64) -> Result<()> {
        // One at a time: an earlier command that comes to it late finds what the later one has left.
        let _turn = self.removing.lock().await;
        if self.memory().is_of_later(name, generation) {
            tracing::warn!(namespace = %name, "the data of a namespace that was to be removed is of a later one, and stays");
            return Ok(());
        }
        node.remove_namespace(name).await?;
        let is_served = self.memory().removed(name, generation);
        // Before anything new is in it.
        self.keeper.keep().await?;
        if !is_served {
            // What the snapshot still has is gone; one that has a later namespace brings what that needs.
            return Ok(());
        }
        let snapshot = Arc::clone(&self.memory().state.snapshot);
        for revision in snapshot.configs.into_iter().map(|(_, revision)| revision) {
            let config = &revision.config;
            if config.namespace == *name
                && needs_preparation(config)
                && let Err(error) = node.prepare_config(config).await
            {
                tracing::warn!(config = %config.name, %error, "what a config needs could not be made on this node");
            }
        }
        Ok(())
    }

    /// Cuts first and writes down after: both before the answer.
    async fn terminate(&self, command: wire::TerminateCommand) -> Result<wire::TerminationEntry> {
        let id = id_from_wire(&command.id)?;
        let event = {
            let mut memory = self.memory();
            if command.force {
                memory.condemn(id, Instant::now());
                Event::Gone(id)
            } else {
                let event = Event::Terminating(id, command.reason.clone());
                memory.state.apply(event.clone());
                event
            }
        };
        let Some(node) = self.attached_now() else { return Err(bad("the node is not attached")) };
        let outcome = node.terminate(id, command.force, &command.reason).await;
        self.keeper.change();
        self.keeper.record(event).await?;
        Ok(wire::TerminationEntry { pending_operations: outcome.pending_operations })
    }
}

fn drained(outcome: prism_core::control::DrainOutcome) -> Answered {
    Answered::Drain(wire::DrainEntry { drained: outcome.drained, remaining: outcome.remaining })
}
