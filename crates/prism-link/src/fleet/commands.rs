//! What the admin plane asks of all nodes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use prism_core::config::{BackendInstance, Catalog, Config};
use prism_core::control::{
    BackendReport, DataNode, DrainOutcome, DrainScope, NamespaceFigures, NodeFigures, Termination,
};
use prism_core::nodes::{Nodes, Reached, Told};
use prism_core::session::SessionId;
use prism_core::{Error, NamespaceName, NodeId, Result};
use prism_proto::cluster::v1 as wire;
use wire::command::Command;
use wire::command_answer::Result as Answered;

use super::link::{Link, Unreached};
use super::{Among, Fleet, Shared};
use crate::bounds::{CATCH_UP, COMMAND_TIMEOUT, MAX_BACKENDS, REPORT_TIMEOUT, RETRY};
use crate::convert::{
    backend_from_wire, bad, bounded, config_to_wire, id_to_wire, namespace_figures_from_wire, node_figures_from_wire,
    scope_to_wire,
};
use crate::node::needs_preparation;

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
    async fn fan_out(
        &self,
        command: Command,
        timeout: Duration,
        among: Among,
        covers: impl Fn(&NodeId) -> bool,
    ) -> Answers {
        let (local, links): (_, Vec<Arc<Link>>) = {
            let nodes = self.nodes();
            let local = nodes.local.as_ref().filter(|(node, _)| covers(node)).map(|(_, data)| Arc::clone(data));
            (local, nodes.links.values().filter(|link| covers(link.node())).cloned().collect())
        };
        let mut unreachable: Vec<NodeId> = self.unreachable(among).into_iter().filter(&covers).collect();
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
        let asked = self.fan_out(Command::Terminate(command), COMMAND_TIMEOUT, Among::WithSessions, covers).await;
        let mut sum = Termination::default();
        let mut unreachable = asked.unreachable;
        if let Some(local) = asked.local {
            sum.pending_operations += local.terminate(id, force, reason).await.pending_operations;
        }
        for (node, answer) in asked.said {
            match answer {
                Ok(Answered::Termination(outcome)) => {
                    sum.pending_operations = sum.pending_operations.saturating_add(outcome.pending_operations.max(0));
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
        let (mut sum, asked) = tokio::join!(here, self.fan_out(command, timeout, Among::WithSessions, covers));
        let mut unreachable = asked.unreachable;
        for (node, answer) in asked.said {
            match answer {
                Ok(Answered::Drain(outcome)) => {
                    sum.add(&DrainOutcome { drained: outcome.drained.max(0), remaining: outcome.remaining.max(0) });
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

    /// Has all nodes do what is answered with Done. A node that cannot is named like one that is away, so that one of them
    /// cannot keep the others from it.
    async fn done(
        &self,
        command: Command,
        timeout: Duration,
        among: Among,
        covers: impl Fn(&NodeId) -> bool,
    ) -> DoneBy {
        let asked = self.fan_out(command, timeout, among, covers).await;
        let mut unreachable = asked.unreachable;
        let (mut done, mut refusal) = (0, None);
        for (node, answer) in asked.said {
            let error = match answer {
                Ok(Answered::Done(_)) => {
                    done += 1;
                    continue;
                }
                Ok(_) => unexpected(&node),
                Err(error) => error,
            };
            failed(&node, &error, &mut unreachable);
            refusal.get_or_insert(error);
        }
        DoneBy { local: asked.local, done, refusal, reached: Reached { answer: (), unreachable } }
    }
}

impl Shared {
    /// Has the nodes that serve the instance of `config` do what is answered with Done.
    async fn served(&self, command: Command, config: &Config) -> DoneBy {
        let instance = BackendInstance { name: config.instance.clone(), kind: config.backend.kind };
        let mut serving = self.serving(&instance);
        let here = self.local().filter(|(_, local)| local.catalog().instances.contains(&instance));
        serving.extend(here.map(|(node, _)| node));
        self.done(command, COMMAND_TIMEOUT, Among::All, |node| serving.contains(node)).await
    }
}

/// Who has done what all were asked to.
struct DoneBy {
    /// The data plane of this process, which has still to be asked.
    local: Option<Arc<dyn DataNode>>,
    /// How many nodes have.
    done: usize,
    /// Why the first that refused did.
    refusal: Option<Error>,
    /// Without those that were away or refused.
    reached: Reached<()>,
}

impl DoneBy {
    /// Counts the answer of the data plane of this process, which is taken at its word; of the nodes one is enough, as one that
    /// refuses everything must not keep the others from a config.
    fn with(self, here: Option<Result<()>>) -> Result<Reached<()>> {
        match (here, self.refusal) {
            (Some(Err(error)), _) => Err(error),
            (None, Some(refusal)) if self.done == 0 => Err(refusal),
            _ => Ok(self.reached),
        }
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
        // Who has made somebody wait in vain is not waited for until it has caught up with that.
        let links = self.shared.nodes().links.values().filter(|link| !link.is_behind()).cloned().collect::<Vec<_>>();
        join_all(links.iter().map(|link| async move {
            if tokio::time::timeout(CATCH_UP, link.applied(revision)).await.is_err() {
                link.missed(revision);
            }
        }))
        .await;
    }

    async fn report(&self) -> Result<Reached<()>> {
        let asked = self
            .shared
            .done(Command::Report(wire::ReportCommand {}), REPORT_TIMEOUT, Among::WithSessions, |_| true)
            .await;
        self.report_own().await?;
        Ok(asked.reached)
    }

    async fn report_own(&self) -> Result<()> {
        let Some((_, local)) = self.shared.local() else { return Ok(()) };
        let reports = local.take_reports();
        if reports.is_empty() { Ok(()) } else { self.shared.options.control.report(reports).await }
    }

    fn catalog(&self) -> Option<Catalog> {
        let nodes = self.shared.nodes();
        if nodes.joined.is_empty() {
            return None;
        }
        let mut instances: Vec<BackendInstance> = Vec::new();
        for instance in nodes.joined.values().flat_map(Told::instances) {
            if !instances.contains(&instance) {
                instances.push(instance);
            }
        }
        Some(Catalog { instances })
    }

    async fn check_config(&self, config: &Config) -> Result<Reached<()>> {
        let config_json = config_to_wire(config)?;
        let asked = self.shared.served(Command::CheckConfig(wire::ConfigCommand { config_json }), config).await;
        let here = match &asked.local {
            Some(local) => Some(local.check_config(config).await),
            None => None,
        };
        let nobody = here.is_none() && asked.done == 0 && asked.refusal.is_none();
        match asked.reached.named() {
            // What a driver has to look at is not believed before one has.
            Some(nodes) if nobody && needs_preparation(config) => {
                let message = format!(
                    "the nodes that serve the backend {} are away, and one of them has to check the option schema: {nodes}",
                    config.instance
                );
                Err(Error::unavailable("NODES_UNREACHABLE", message).with("nodes", nodes).retry_after(RETRY))
            }
            _ => asked.with(here),
        }
    }

    async fn prepare_config(&self, config: &Config) -> Result<Reached<()>> {
        let config_json = config_to_wire(config)?;
        let asked = self.shared.served(Command::PrepareConfig(wire::ConfigCommand { config_json }), config).await;
        let here = match &asked.local {
            Some(local) => Some(local.prepare_config(config).await),
            None => None,
        };
        asked.with(here)
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
        let asked = self.shared.fan_out(command, COMMAND_TIMEOUT, Among::All, |_| true).await;
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
        let asked = self.shared.fan_out(command, COMMAND_TIMEOUT, Among::All, |_| true).await;
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
        let command = Command::Backends(wire::BackendsCommand {});
        let asked = self.shared.fan_out(command, COMMAND_TIMEOUT, Among::All, |_| true).await;
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

    async fn remove_namespace(&self, namespace: &NamespaceName) -> Result<Reached<()>> {
        if let Some((_, local)) = self.shared.local() {
            local.remove_namespace(namespace).await?;
        }
        self.shared.remove(namespace).await
    }

    fn finish_removals(&self) {
        self.shared.remove_what_is_left();
    }
}

/// A node that was reached and could not answer is as little part of the sum as one that was not.
fn failed(node: &NodeId, error: &Error, unreachable: &mut Vec<NodeId>) {
    tracing::warn!(node.id = %node, %error, "a node could not tell what it was asked");
    unreachable.push(node.clone());
    unreachable.sort();
}
