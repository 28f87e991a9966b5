//! What the admin plane asks of all nodes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use prism_core::config::Config;
use prism_core::control::{
    BackendReport, DataNode, DrainOutcome, DrainScope, NamespaceFigures, NodeFigures, Termination,
};
use prism_core::nodes::{Nodes, Reached};
use prism_core::session::SessionId;
use prism_core::{Error, NamespaceName, NodeId, Result};
use prism_proto::cluster::v1 as wire;
use wire::command::Command;
use wire::command_answer::Result as Answered;

use super::link::{Link, Unreached};
use super::{Fleet, Shared};
use crate::bounds::{CATCH_UP, COMMAND_TIMEOUT, MAX_BACKENDS, RETRY};
use crate::convert::{
    backend_from_wire, bad, bounded, config_to_wire, id_to_wire, namespace_figures_from_wire, node_figures_from_wire,
    scope_to_wire,
};

/// What every node of a fan-out said, in the order of their names.
struct Answers {
    local: Option<Arc<dyn DataNode>>,
    said: Vec<(NodeId, Result<Answered>)>,
    unreachable: Vec<NodeId>,
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn unexpected(node: &NodeId) -> Error {
    bad(format_args!("the answer of {node} is of another kind than the command"))
}

impl Shared {
    /// Has all nodes that `covers` do the same.
    async fn fan_out(&self, command: Command, timeout: Duration, covers: impl Fn(&NodeId) -> bool) -> Answers {
        let (local, links): (_, Vec<Arc<Link>>) = {
            let nodes = self.nodes();
            let local = nodes.local.as_ref().filter(|(node, _)| covers(node)).map(|(_, data)| Arc::clone(data));
            (local, nodes.links.values().filter(|link| covers(link.node())).cloned().collect())
        };
        let mut unreachable: Vec<NodeId> = self.unreachable().into_iter().filter(covers).collect();
        let asked = join_all(links.iter().map(|link| link.command(command.clone(), timeout))).await;
        let mut answers = Vec::new();
        for (link, answer) in links.iter().zip(asked) {
            match answer {
                Ok(answer) => answers.push((link.node().clone(), answer)),
                Err(Unreached) => unreachable.push(link.node().clone()),
            }
        }
        unreachable.sort();
        unreachable.dedup();
        Answers { local, said: answers, unreachable }
    }

    /// Ends a session on the node that has it.
    pub(super) async fn terminate_everywhere(&self, id: SessionId, reason: &str) -> Reached<Termination> {
        self.terminate(id, true, reason).await
    }

    async fn terminate(&self, id: SessionId, force: bool, reason: &str) -> Reached<Termination> {
        let owner = match self.options.control.node_of(id).await {
            Ok(owner) => owner,
            Err(error) => {
                tracing::error!(session.id = %id, %error, "the node of a session cannot be looked up; all are told");
                None
            }
        };
        let covers = |node: &NodeId| owner.as_ref().is_none_or(|owner| owner == node);
        let command = wire::TerminateCommand { id: id_to_wire(id), force, reason: reason.to_owned() };
        let asked = self.fan_out(Command::Terminate(command), COMMAND_TIMEOUT, covers).await;
        let mut sum = Termination::default();
        let mut unreachable = asked.unreachable;
        if let Some(local) = asked.local {
            sum.pending_operations += local.terminate(id, force, reason).await.pending_operations;
        }
        for (node, answer) in asked.said {
            match answer {
                Ok(Answered::Termination(outcome)) => {
                    sum.pending_operations = sum.pending_operations.saturating_add(outcome.pending_operations);
                }
                Ok(_) => tracing::error!(node.id = %node, error = %unexpected(&node), "a node answers wrongly"),
                Err(error) => {
                    // It may live again when the node starts without a controller.
                    tracing::error!(node.id = %node, session.id = %id, %error, "a node could not write down a termination");
                    unreachable.push(node);
                }
            }
        }
        // Its node was connected a moment ago, or never to this controller.
        if let Some(owner) = owner.filter(|owner| !self.is_reachable(owner))
            && !unreachable.contains(&owner)
        {
            unreachable.push(owner);
        }
        unreachable.sort();
        Reached { answer: sum, unreachable }
    }

    /// The data plane of this process, if a drain covers it.
    fn local_in(&self, scope: &DrainScope) -> Option<Arc<dyn DataNode>> {
        let (node, local) = self.local()?;
        scope.node.as_ref().is_none_or(|wanted| *wanted == node).then_some(local)
    }

    async fn drained(
        &self,
        command: Command,
        timeout: Duration,
        scope: &DrainScope,
        here: impl Future<Output = DrainOutcome> + Send,
    ) -> Reached<DrainOutcome> {
        let covers = |node: &NodeId| scope.node.as_ref().is_none_or(|wanted| wanted == node);
        // At the same time: a drain takes its time.
        let (mut sum, asked) = tokio::join!(here, self.fan_out(command, timeout, covers));
        let mut unreachable = asked.unreachable;
        for (node, answer) in asked.said {
            match answer {
                Ok(Answered::Drain(outcome)) => {
                    sum.add(&DrainOutcome { drained: outcome.drained, remaining: outcome.remaining });
                }
                other => {
                    tracing::error!(node.id = %node, answer = ?other.err(), "a node did not drain");
                    unreachable.push(node);
                }
            }
        }
        unreachable.sort();
        Reached { answer: sum, unreachable }
    }

    async fn done(&self, command: Command) -> Result<(Option<Arc<dyn DataNode>>, Reached<()>)> {
        let asked = self.fan_out(command, COMMAND_TIMEOUT, |_| true).await;
        for (node, answer) in asked.said {
            match answer? {
                Answered::Done(_) => {}
                _ => return Err(unexpected(&node)),
            }
        }
        Ok((asked.local, Reached { answer: (), unreachable: asked.unreachable }))
    }
}

#[async_trait]
impl Nodes for Fleet {
    fn own_id(&self) -> &NodeId {
        &self.shared.options.id
    }

    fn knows(&self, node: &NodeId) -> bool {
        let nodes = self.shared.nodes();
        nodes.is_reachable(node) || nodes.serving.contains(node) || nodes.statuses.contains_key(node)
    }

    async fn caught_up(&self, revision: u64) {
        if let Some((_, local)) = self.shared.local() {
            local.caught_up(revision).await;
        }
        let links: Vec<Arc<Link>> = self.shared.nodes().links.values().cloned().collect();
        if !links.is_empty() {
            let all = join_all(links.iter().map(|link| link.applied(revision)));
            let _ = tokio::time::timeout(CATCH_UP, all).await;
        }
    }

    async fn report(&self) -> Result<Reached<()>> {
        let (local, reached) = self.shared.done(Command::Report(wire::ReportCommand {})).await?;
        if let Some(local) = local {
            let reports = local.take_reports();
            if !reports.is_empty() {
                self.shared.options.control.report(reports).await?;
            }
        }
        Ok(reached)
    }

    async fn check_config(&self, config: &Config) -> Result<Reached<()>> {
        let config_json = config_to_wire(config)?;
        let (local, reached) = self.shared.done(Command::CheckConfig(wire::ConfigCommand { config_json })).await?;
        if let Some(local) = local {
            local.check_config(config).await?;
        }
        Ok(reached)
    }

    async fn prepare_config(&self, config: &Config) -> Result<Reached<()>> {
        let config_json = config_to_wire(config)?;
        let (local, reached) = self.shared.done(Command::PrepareConfig(wire::ConfigCommand { config_json })).await?;
        if let Some(local) = local {
            local.prepare_config(config).await?;
        }
        Ok(reached)
    }

    async fn terminate(&self, id: SessionId, force: bool, reason: &str) -> Reached<Termination> {
        self.shared.terminate(id, force, reason).await
    }

    async fn drain(&self, scope: &DrainScope, timeout: Duration, force: bool) -> Reached<DrainOutcome> {
        let command = wire::DrainCommand { scope: Some(scope_to_wire(scope)), timeout_ms: millis(timeout), force };
        let limit = timeout.saturating_add(COMMAND_TIMEOUT);
        let local = self.shared.local_in(scope);
        let here = async {
            match local {
                Some(node) => node.drain(scope, timeout, force).await,
                None => DrainOutcome::default(),
            }
        };
        self.shared.drained(Command::Drain(command), limit, scope, here).await
    }

    async fn drain_preview(&self, scope: &DrainScope) -> Reached<DrainOutcome> {
        let command = wire::DrainCommand { scope: Some(scope_to_wire(scope)), timeout_ms: 0, force: false };
        let here = self.shared.local_in(scope).map(|node| node.drain_preview(scope)).unwrap_or_default();
        let here = std::future::ready(here);
        self.shared.drained(Command::DrainPreview(command), COMMAND_TIMEOUT, scope, here).await
    }

    async fn figures(&self, window: Duration) -> Reached<NodeFigures> {
        let command = Command::Figures(wire::FiguresCommand { window_ms: millis(window) });
        let asked = self.shared.fan_out(command, COMMAND_TIMEOUT, |_| true).await;
        let mut sum = asked.local.map(|local| local.figures(window)).unwrap_or_default();
        let mut unreachable = asked.unreachable;
        for (node, answer) in asked.said {
            let figures = match answer {
                Ok(Answered::Figures(figures)) => node_figures_from_wire(figures),
                Ok(_) => Err(unexpected(&node)),
                Err(error) => Err(error),
            };
            match figures {
                Ok(figures) => sum.add(&figures),
                Err(error) => failed(&node, &error, &mut unreachable),
            }
        }
        Reached { answer: sum, unreachable }
    }

    async fn namespace_figures(&self, namespace: &NamespaceName) -> Reached<NamespaceFigures> {
        let command = Command::NamespaceFigures(wire::NamespaceCommand { namespace: namespace.to_string() });
        let asked = self.shared.fan_out(command, COMMAND_TIMEOUT, |_| true).await;
        let mut sum = match asked.local {
            Some(local) => local.namespace_figures(namespace).await,
            None => NamespaceFigures::default(),
        };
        let mut unreachable = asked.unreachable;
        for (node, answer) in asked.said {
            match answer {
                Ok(Answered::NamespaceFigures(figures)) => sum.add(&namespace_figures_from_wire(figures)),
                Ok(_) => failed(&node, &unexpected(&node), &mut unreachable),
                Err(error) => failed(&node, &error, &mut unreachable),
            }
        }
        Reached { answer: sum, unreachable }
    }

    async fn backends(&self) -> Reached<Vec<(NodeId, BackendReport)>> {
        let asked = self.shared.fan_out(Command::Backends(wire::BackendsCommand {}), COMMAND_TIMEOUT, |_| true).await;
        let mut all = Vec::new();
        if let Some(local) = asked.local {
            let own = local.node_id().clone();
            all.extend(local.backends().await.into_iter().map(|report| (own.clone(), report)));
        }
        let mut unreachable = asked.unreachable;
        for (node, answer) in asked.said {
            let reports = match answer {
                Ok(Answered::Backends(reports)) => bounded("backends", reports.backends, MAX_BACKENDS)
                    .and_then(|reports| reports.into_iter().map(backend_from_wire).collect::<Result<Vec<_>>>()),
                Ok(_) => Err(unexpected(&node)),
                Err(error) => Err(error),
            };
            match reports {
                Ok(reports) => all.extend(reports.into_iter().map(|report| (node.clone(), report))),
                Err(error) => failed(&node, &error, &mut unreachable),
            }
        }
        Reached { answer: all, unreachable }
    }

    async fn remove_namespace(&self, namespace: &NamespaceName) -> Result<()> {
        let command = Command::RemoveNamespace(wire::NamespaceCommand { namespace: namespace.to_string() });
        let (local, reached) = self.shared.done(command).await?;
        if let Some(local) = local {
            local.remove_namespace(namespace).await?;
        }
        match reached.named() {
            None => Ok(()),
            Some(nodes) => {
                let message = format!("data of the namespace {namespace} is still on nodes that are away: {nodes}");
                Err(Error::unavailable("NODES_UNREACHABLE", message).with("nodes", nodes).retry_after(RETRY))
            }
        }
    }
}

/// A node that was reached and could not answer is as little part of the sum as one that was not.
fn failed(node: &NodeId, error: &Error, unreachable: &mut Vec<NodeId>) {
    tracing::warn!(node.id = %node, %error, "a node could not tell what it was asked");
    unreachable.push(node.clone());
    unreachable.sort();
}
