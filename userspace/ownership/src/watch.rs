//! The watch on all keys of the cluster: what is there at the start, then every change, over all failures of etcd.
//!
//! After an error the watch goes on behind the last change that was seen; where etcd has compacted that away, everything
//! is read anew and compared. A watch of which nothing is heard is asked for its progress, and given up after
//! [`SILENT`]: a frozen server, or a connection whose other end is gone, looks exactly like a quiet cluster.

use crate::Told;
use crate::endpoints::Endpoints;
use crate::error::{Fault, said};
use crate::record::Keys;
use crate::store::Store;
use cluster::GroupRecord;
use etcd_client::{GetOptions, KeyValue, WatchOptions, WatchResponse};
use model::GroupId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

/// How often a server is asked how far it is.
const PROBE: Duration = Duration::from_secs(1);
/// A watch that says nothing for this long is given up.
pub const SILENT: Duration = Duration::from_secs(3);
/// First and longest wait between two attempts.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// What was told about a group.
#[derive(Debug, PartialEq, Eq)]
enum Known {
    Record(GroupRecord),
    Absent,
    /// Nothing: its value cannot be read.
    Unreadable,
}

/// Why a watch ended.
#[derive(Debug)]
enum End {
    /// The core has gone: nobody listens.
    Core,
    /// The changes to go on from are compacted.
    Compacted(i64),
    /// What is in etcd is not for this member: nothing that time mends.
    Refused(String),
    /// Anything else.
    Fault(String),
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::LayoutDiffers { .. } | Fault::Unreadable { .. } => Self::Refused(fault.to_string()),
            _ => Self::Fault(fault.to_string()),
        }
    }
}

/// The watch of one engine.
pub struct Watch {
    endpoints: Arc<Endpoints>,
    store: Arc<Store>,
    keys: Arc<Keys>,
    to_core: Sender<Told>,
    known: BTreeMap<GroupId, Known>,
    /// Revision to go on from; none: everything has to be read.
    next: Option<i64>,
    well: bool,
}

impl Watch {
    /// A watch that has seen nothing yet.
    pub fn new(endpoints: Arc<Endpoints>, store: Arc<Store>, keys: Arc<Keys>, to_core: Sender<Told>) -> Self {
        Self {
            endpoints,
            store,
            keys,
            to_core,
            known: BTreeMap::new(),
            next: None,
            well: true,
        }
    }

    /// Watches until the core ends.
    pub async fn run(mut self) {
        let mut endpoint = self.endpoints.preferred();
        let mut wait = BACK_OFF.0;
        loop {
            let mut stood = false;
            let end = self.session(endpoint, &mut stood).await;
            if stood {
                wait = BACK_OFF.0;
            }
            match end {
                End::Core => return,
                End::Compacted(revision) => {
                    tracing::info!(
                        revision,
                        "etcd has compacted what the watch had not seen: reading everything"
                    );
                    self.next = None;
                    continue;
                }
                End::Refused(why) => {
                    if self.well {
                        tracing::error!(
                            why,
                            "the keys in etcd are not this member's: nothing is read or written"
                        );
                    }
                    self.well = false;
                }
                End::Fault(why) => {
                    let url = &self.endpoints.get(endpoint).url;
                    if self.well {
                        tracing::warn!(endpoint = %url, why, "the watch on etcd is interrupted; traffic goes on");
                    } else {
                        tracing::debug!(endpoint = %url, why, "the watch on etcd could not go on");
                    }
                    self.well = false;
                }
            }
            endpoint = (endpoint + 1) % self.endpoints.count();
            sleep(wait).await;
            wait = (wait * 2).min(BACK_OFF.1);
        }
    }

    /// One watch at one endpoint, until it ends. `stood` becomes true once the endpoint watches.
    async fn session(&mut self, endpoint: usize, stood: &mut bool) -> End {
        match self.watch(endpoint, stood).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn watch(&mut self, endpoint: usize, stood: &mut bool) -> Result<std::convert::Infallible, End> {
        let next = match self.next {
            Some(next) => next,
            None => self.read_all().await?,
        };
        let options = WatchOptions::new().with_prefix().with_start_revision(next);
        let mut client = self.endpoints.get(endpoint).client();
        let limit = self.endpoints.timeout();
        let silent = || End::Fault(format!("no watch within {} ms", limit.as_millis()));
        let stream = timeout(limit, client.watch(self.keys.root(), Some(options)))
            .await
            .map_err(|_| silent())?
            .map_err(|e| End::Fault(said(&e)))?;
        let (mut ask, mut stream) = stream.split();
        let mut heard = Instant::now();
        let mut probe = interval(PROBE);
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = stream.message() => {
                    let message = message
                        .map_err(|e| End::Fault(said(&e)))?
                        .ok_or_else(|| End::Fault("the server ended the watch".to_owned()))?;
                    refused(&message)?;
                    if !*stood {
                        *stood = true;
                        if !self.well {
                            tracing::info!(endpoint = %self.endpoints.get(endpoint).url, "the watch on etcd goes on");
                            self.well = true;
                        }
                    }
                    self.apply(&message).await?;
                    // Only now: telling the core may have taken a while.
                    heard = Instant::now();
                }
                _ = probe.tick() => {
                    if heard.elapsed() > SILENT {
                        return Err(End::Fault(format!("nothing heard for {} ms", heard.elapsed().as_millis())));
                    }
                    ask.request_progress().await.map_err(|e| End::Fault(said(&e)))?;
                }
            }
        }
    }

    /// Reads all groups, tells what is news, and returns the revision to watch from.
    async fn read_all(&mut self) -> Result<i64, End> {
        let deadline = Instant::now() + self.endpoints.timeout();
        self.store.check_layout(deadline).await?;
        let from = self.keys.all_groups();
        let (_, mut answer) = self
            .endpoints
            .ask(&from, deadline, |mut client| {
                let from = from.clone();
                async move { client.get(from, Some(GetOptions::new().with_prefix())).await }
            })
            .await?;
        let revision = answer
            .header()
            .ok_or_else(|| End::Fault("an answer without a revision".to_owned()))?
            .revision();
        let found = answer.take_kvs();
        let mut gone: Vec<GroupId> = self
            .known
            .iter()
            .filter(|(_, known)| **known != Known::Absent)
            .map(|(group, _)| *group)
            .collect();
        for kv in &found {
            gone.retain(|group| Some(*group) != self.keys.group_of(kv.key()));
            self.put(kv).await?;
        }
        for group in gone {
            self.tell(group, None).await?;
        }
        self.next = Some(revision + 1);
        Ok(revision + 1)
    }

    async fn apply(&mut self, message: &WatchResponse) -> Result<(), End> {
        for kv in message.events().iter().filter_map(|event| event.kv()) {
            // A deletion's key has no version; `Event::event_type` would panic at a kind that it does not know.
            if kv.version() > 0 {
                self.put(kv).await?;
            } else {
                tracing::warn!(key = ?String::from_utf8_lossy(kv.key()), "a key of the cluster was deleted in etcd");
                if let Some(group) = self.keys.group_of(kv.key()) {
                    self.tell(group, None).await?;
                }
            }
            // All changes of one revision come in one message, so this passes none over.
            self.next = self.next.max(Some(kv.mod_revision() + 1));
        }
        Ok(())
    }

    async fn put(&mut self, kv: &KeyValue) -> Result<(), End> {
        let Some(group) = self.keys.group_of(kv.key()) else {
            let key = String::from_utf8_lossy(kv.key()).into_owned();
            if key != self.keys.layout() {
                tracing::warn!(key, "a key among those of the cluster that is none of its groups");
            } else if let Err(fault) = self.keys.check_layout(kv.value()) {
                tracing::error!(%fault, "the layout in etcd is not this member's: nothing is read or written");
            }
            return Ok(());
        };
        match self.keys.decode(group, kv.value()) {
            Ok(record) => self.tell(group, Some(record)).await,
            Err(fault) => {
                tracing::error!(%fault, "a record in etcd cannot be read");
                self.known.insert(group, Known::Unreadable);
                Ok(())
            }
        }
    }

    /// Tells the core, if it is news: a fence rewrites a record as it is.
    async fn tell(&mut self, group: GroupId, record: Option<GroupRecord>) -> Result<(), End> {
        let known = record.clone().map_or(Known::Absent, Known::Record);
        if self.known.get(&group) == Some(&known) {
            return Ok(());
        }
        self.to_core
            .send(Told::Seen { group, record })
            .await
            .map_err(|_| End::Core)?;
        self.known.insert(group, known);
        Ok(())
    }
}

fn refused(message: &WatchResponse) -> Result<(), End> {
    if message.compact_revision() != 0 {
        return Err(End::Compacted(message.compact_revision()));
    }
    if message.canceled() {
        return Err(End::Fault(format!(
            "the server refused the watch: {}",
            message.cancel_reason()
        )));
    }
    Ok(())
}
