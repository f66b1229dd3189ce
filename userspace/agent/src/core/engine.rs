//! The external ownership engine: questions of the node go out, answers and news come back as inputs.

use anyhow::{Result, bail};
use cluster::{GroupRecord, Input, OwnershipAnswer, OwnershipOp};
use model::GroupId;
use tokio::sync::mpsc;

use super::Core;
use crate::clock;
use crate::config::Config;

/// What the engine says.
pub enum Told {
    /// To a question.
    Answer { token: u64, answer: OwnershipAnswer },
    /// A key changed, or was found at the start.
    Seen {
        group: GroupId,
        record: Option<GroupRecord>,
    },
}

/// The engine that is configured.
pub struct OwnershipEngine;

impl OwnershipEngine {
    fn ask(&self, _token: u64, _group: GroupId, _op: OwnershipOp) {}
}

/// Starts the engine that is configured; `None`: the pair settles ownership itself.
pub fn start(config: &Config, _told: mpsc::Sender<Told>) -> Result<Option<OwnershipEngine>> {
    match &config.cluster.etcd {
        None => Ok(None),
        Some(_) => bail!("this build has no etcd client"),
    }
}

impl Core {
    pub(super) fn ask_ownership(&mut self, token: u64, group: GroupId, op: OwnershipOp) {
        match &self.ownership_engine {
            Some(engine) => engine.ask(token, group, op),
            // The node of a pair never asks.
            None => self.node.handle(Input::OwnershipAnswered {
                now: clock::now(),
                token,
                answer: OwnershipAnswer::Unknown("no ownership engine is configured".to_owned()),
            }),
        }
    }

    pub(super) fn ownership_told(&mut self, told: Told) {
        let now = clock::now();
        self.node_input(match told {
            Told::Answer { token, answer } => Input::OwnershipAnswered { now, token, answer },
            Told::Seen { group, record } => Input::OwnershipSeen { now, group, record },
        });
    }
}
