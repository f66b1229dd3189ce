//! The external ownership engine: questions of the node go out, answers and news come back as inputs.

use anyhow::{Context, Result};
use cluster::{Input, OwnershipAnswer, OwnershipOp};
use model::GroupId;
use ownership::{Engine, EtcdConfig, EtcdTls, Told};
use tokio::sync::mpsc;

use super::Core;
use crate::clock;
use crate::config::Config;

/// Starts the engine that is configured; `None`: the pair settles ownership itself.
///
/// # Errors
/// Its configuration cannot be used. An etcd that is down is no error.
pub fn start(config: &Config, told: mpsc::Sender<Told>) -> Result<Option<Engine>> {
    let Some(etcd) = &config.cluster.etcd else {
        return Ok(None);
    };
    let engine = EtcdConfig {
        endpoints: etcd.endpoints.clone(),
        prefix: etcd.prefix.clone(),
        cluster: config.cluster.name.clone(),
        tls: etcd.tls.as_ref().map(|tls| EtcdTls {
            ca: tls.ca.clone(),
            cert: tls.cert.clone(),
            key: tls.key.clone(),
        }),
        request_timeout: etcd.timeout,
    };
    let engine = Engine::start(engine, config.cluster.groups, told).context("cannot use [cluster.etcd]")?;
    Ok(Some(engine))
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
