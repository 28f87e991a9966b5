//! Data nodes that are nothing but their links: each has joined, and serves by every snapshot as soon as it is there.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use prism_proto::cluster::v1::{
    Applied, CommandAnswer, ControllerFrame, Done, ExchangeJoinTokenRequest, ExchangeJoinTokenResponse, Held, Hello,
    NodeFrame, Pong, SnapshotPart, command_answer, controller_frame, node_frame, snapshot_item,
};
use prost::Message as _;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::sync::mpsc::UnboundedSender;

use crate::cluster::token;
use crate::join::EXCHANGE;
use crate::nodes::Heard;
use crate::stream::Duplex;
use crate::wire::{Peer, identified};

/// The version of the link's frames that these nodes speak.
const PROTOCOL: u32 = 1;
const LINK: &str = "/prism.cluster.v1.LinkService/Link";

/// A node with an open link.
pub struct Node {
    link: Duplex,
    heard: UnboundedSender<Heard>,
}

impl Node {
    /// Joins as `node_id` with a key of its own, and opens its link. What it hears of it tells `heard`.
    pub async fn link(admin: &Peer, node_id: &str, heard: UnboundedSender<Heard>) -> Result<Self> {
        let peer = join(admin, node_id).await?;
        let started_at_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
        let hello = Hello {
            oldest_protocol: PROTOCOL,
            newest_protocol: PROTOCOL,
            node_id: node_id.to_owned(),
            version: "bench".to_owned(),
            started_at_ms,
            ..Hello::default()
        };
        let held = Held { last: true, ..Held::default() };
        let first = [node_frame::Frame::Hello(hello), node_frame::Frame::Held(held)].map(frame);
        let link = Duplex::open(&peer, LINK, &first).await.with_context(|| format!("the link of {node_id}"))?;
        Ok(Self { link, heard })
    }

    /// Serves until the link ends, which is an error.
    pub async fn serve(mut self) -> Result<()> {
        loop {
            let received: ControllerFrame = self.link.next().await?;
            match received.frame {
                Some(controller_frame::Frame::Snapshot(part)) => self.snapshot(&part)?,
                Some(controller_frame::Frame::Ping(ping)) => {
                    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
                    let answer = Pong { sequence: ping.sequence, now_ms };
                    self.link.send(&frame(node_frame::Frame::Pong(answer)))?;
                }
                Some(controller_frame::Frame::Command(command)) => {
                    let result = Some(command_answer::Result::Done(Done {}));
                    let answer = CommandAnswer { id: command.id, result, ..CommandAnswer::default() };
                    self.link.send(&frame(node_frame::Frame::CommandAnswer(answer)))?;
                }
                Some(_) | None => {}
            }
        }
    }

    fn snapshot(&mut self, part: &SnapshotPart) -> Result<()> {
        if !part.last {
            return Ok(());
        }
        let told = part.items.iter().find_map(|item| match &item.item {
            Some(snapshot_item::Item::Maintenance(entry)) => entry.message.rsplit(' ').next()?.parse().ok(),
            _ => None,
        });
        if let Some(number) = told {
            // The bench may be over.
            let _ = self.heard.send(Heard { number, at: Instant::now(), bytes: part.encoded_len() });
        }
        let applied = Applied { epoch: part.epoch, revision: part.revision };
        self.link.send(&frame(node_frame::Frame::Applied(applied)))
    }
}

fn frame(frame: node_frame::Frame) -> NodeFrame {
    NodeFrame { frame: Some(frame) }
}

/// The controller, as a node of this name calls it.
async fn join(admin: &Peer, node_id: &str) -> Result<Peer> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let request = ExchangeJoinTokenRequest {
        join_token: token(admin, node_id).await?,
        node_id: node_id.to_owned(),
        csr_pem: CertificateParams::default().serialize_request(&key)?.pem()?.into_bytes().into(),
    };
    let stranger = Peer { authorization: None, ..admin.clone() };
    let answer: ExchangeJoinTokenResponse = stranger.call(EXCHANGE, &request).await?;
    let tls = identified(&answer.ca_certificate_pem, &answer.certificate_pem, key.serialize_pem().as_bytes())?;
    Ok(Peer { tls: Some(tls), ..stranger })
}
