//! The external ownership engine: who owns which group of segments, agreed on in etcd.
//!
//! One key without lease for each group holds its [`GroupRecord`] (see [`record`] for keys and values). An [`Engine`] answers
//! what the node asks ([`OwnershipOp`]) and reports every change of a key. It decides nothing, and nothing here is a
//! failure detector: an etcd that is down, slow or without a leader makes questions end in
//! [`OwnershipAnswer::Unknown`] within the request time-out, and that is all it does.
//!
//! Questions about one group are carried out in the order in which they were asked, those about different groups at the
//! same time. Reads go to the next endpoint where one is silent; a write is sent once. What a write does that nobody
//! waits for any more is said in [`store`].

pub mod endpoints;
pub mod error;
pub mod record;
pub mod store;
mod watch;
mod worker;

pub use endpoints::EtcdTls;
pub use error::Fault;

use anyhow::{Context, Result, bail};
use cluster::layout::GROUPS_MAX;
use cluster::{GroupRecord, OwnershipAnswer, OwnershipOp};
use endpoints::Endpoints;
use model::GroupId;
use record::Keys;
use std::sync::Arc;
use std::time::Duration;
use store::Store;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Sender, UnboundedReceiver, UnboundedSender};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use worker::Request;

/// Where etcd is, and what this cluster's keys are called there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `http://ADDRESS:PORT` or, with `tls`, `https://...`. The first one is asked first: name the nearest one first.
    pub endpoints: Vec<String>,
    /// What all keys begin with, for example `/espalier`.
    pub prefix: String,
    /// Name of the cluster; the second part of each key.
    pub cluster: String,
    /// Certificates, if the endpoints are `https`.
    pub tls: Option<EtcdTls>,
    /// From the question to [`OwnershipAnswer::Unknown`], time in the queue included.
    pub request_timeout: Duration,
}

/// What the engine tells the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The answer to a question. Each one gets exactly one.
    Answer {
        /// As given to [`Engine::ask`].
        token: u64,
        /// The answer.
        answer: OwnershipAnswer,
    },
    /// What a key holds: at the start for each group that has one, then whenever it changes.
    ///
    /// It may come later than an answer that is newer; epochs only rise, so that shows. A value that cannot be read is
    /// not reported (it is logged, and every question about it is answered by `Unknown`).
    Seen {
        /// The group.
        group: GroupId,
        /// `None`: the key was there, and was deleted.
        record: Option<GroupRecord>,
    },
}

/// The engine. Dropping it ends its tasks; a write that is under way then may be done or not.
#[derive(Debug)]
pub struct Engine {
    queues: Vec<Sender<Request>>,
    refusals: UnboundedSender<Told>,
    tasks: Vec<AbortHandle>,
}

impl Engine {
    /// Starts the tasks on the current runtime. Does not wait for etcd.
    ///
    /// `groups`: how many groups the cluster has. It is stored at the first start; where etcd says something else, every
    /// question is answered by `Unknown` with the reason ([`Fault::LayoutDiffers`]).
    ///
    /// # Errors
    /// What is wrong in the configuration, files that cannot be read, or no runtime.
    pub fn start(config: EtcdConfig, groups: u8, to_core: Sender<Told>) -> Result<Self> {
        let runtime =
            tokio::runtime::Handle::try_current().context("the ownership engine needs a runtime")?;
        if !(1..=GROUPS_MAX).contains(&groups) {
            bail!("a cluster has 1 to {GROUPS_MAX} groups, not {groups}");
        }
        if config.cluster.is_empty() || config.cluster.contains(|c: char| c == '/' || c.is_control()) {
            bail!(
                "the name of the cluster is part of its keys in etcd: {:?} is empty or has a slash or control character",
                config.cluster
            );
        }
        if config.prefix.contains(char::is_control) {
            bail!(
                "the prefix of the keys in etcd, {:?}, has a control character",
                config.prefix
            );
        }
        let endpoints = Arc::new(Endpoints::new(
            &config.endpoints,
            config.tls.as_ref(),
            config.request_timeout,
        )?);
        let keys = Arc::new(Keys::new(&config.prefix, &config.cluster, groups));
        let store = Arc::new(Store::new(Arc::clone(&endpoints), Arc::clone(&keys)));
        let mut tasks = Vec::new();
        let queues = (0..groups)
            .map(|group| {
                let (queue, requests) = mpsc::channel(worker::QUEUE);
                let worker = worker::run(
                    Arc::clone(&store),
                    GroupId(group),
                    config.request_timeout,
                    requests,
                    to_core.clone(),
                );
                tasks.push(runtime.spawn(worker).abort_handle());
                queue
            })
            .collect();
        let (refusals, refused) = mpsc::unbounded_channel();
        tasks.push(runtime.spawn(pass_on(refused, to_core.clone())).abort_handle());
        tasks.push(
            runtime
                .spawn(Arc::clone(&endpoints).follow_files())
                .abort_handle(),
        );
        let watch = watch::Watch::new(endpoints, store, keys, to_core);
        tasks.push(runtime.spawn(watch.run()).abort_handle());
        Ok(Self {
            queues,
            refusals,
            tasks,
        })
    }

    /// Asks. The answer comes as [`Told::Answer`] with this token, within the request time-out; where the question cannot
    /// even be queued, at once. Never blocks.
    pub fn ask(&self, token: u64, group: GroupId, op: OwnershipOp) {
        let request = Request {
            token,
            op,
            asked: Instant::now(),
        };
        let fault = match self.queues.get(usize::from(group.0)).map(|q| q.try_send(request)) {
            Some(Ok(())) => return,
            Some(Err(TrySendError::Full(_))) => Fault::QueueFull {
                group,
                waiting: worker::QUEUE,
            },
            Some(Err(TrySendError::Closed(_))) => Fault::Ended,
            None => Fault::NoSuchGroup {
                group,
                groups: self.queues.len() as u8,
            },
        };
        // Unbounded, but each entry is a question of our own core, which is the one that has to take them out.
        let _ = self.refusals.send(Told::Answer {
            token,
            answer: OwnershipAnswer::Unknown(fault.to_string()),
        });
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn pass_on(mut refused: UnboundedReceiver<Told>, to_core: Sender<Told>) {
    while let Some(told) = refused.recv().await {
        if to_core.send(told).await.is_err() {
            return;
        }
    }
}
