//! Reads and conditional writes of one group's key.
//!
//! # What a late write can do
//!
//! A write is a linearizable read, a comparison with what the caller expects, and one transaction that compares the key's
//! modification revision, its value and the layout's modification revision with what was read. Revisions only rise, so a
//! transaction that etcd carries out later than anybody waited for it changes nothing once anything else was written.
//!
//! That leaves a write whose outcome is unknown and that nothing else was written after: a server that is frozen with the
//! request in its socket may carry it out minutes later, behind a read that showed the old value. So the next
//! request for the group first *fences* it: where the key is still as it was, it is rewritten with the value that it has,
//! by a transaction that compares in the same way. Now either the late write was first, and is seen, or its comparison
//! fails for ever. (A key that is absent cannot be rewritten; there the layout is, which every write compares as well.)

use crate::endpoints::Endpoints;
use crate::error::{Fault, said};
use crate::record::Keys;
use cluster::{GroupRecord, OwnershipAnswer, OwnershipOp};
use etcd_client::{Compare, CompareOp, KeyValue, Txn, TxnOp, TxnOpResponse, TxnResponse};
use model::GroupId;
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};

/// What a write compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Basis {
    layout: i64,
    /// 0: no such key.
    group: i64,
}

/// A write of which nobody knows whether it is done, or will be.
pub type Unsettled = Option<Basis>;

/// Access to the keys, shared by all groups.
pub struct Store {
    endpoints: Arc<Endpoints>,
    keys: Arc<Keys>,
}

/// A group's key as it was read.
struct Found {
    endpoint: usize,
    basis: Basis,
    value: Option<Vec<u8>>,
}

/// Both keys as a transaction shows them.
struct Both {
    layout: Option<KeyValue>,
    group: Option<KeyValue>,
}

/// What became of a conditional write.
enum Outcome {
    Done,
    /// Nothing was written; something was not as it was read.
    Refused(Both),
}

impl Store {
    /// Access to the keys of one cluster.
    pub fn new(endpoints: Arc<Endpoints>, keys: Arc<Keys>) -> Self {
        Self { endpoints, keys }
    }

    /// Answers one request, at the latest at `deadline`.
    ///
    /// `unsettled` belongs to the group: it is set while a write has been sent and not been answered, and is left set if
    /// this future ends, or is dropped, before the answer.
    pub async fn answer(
        &self,
        group: GroupId,
        op: &OwnershipOp,
        unsettled: &mut Unsettled,
        deadline: Instant,
    ) -> OwnershipAnswer {
        let answer = match op {
            OwnershipOp::Read => self
                .settled(group, unsettled, deadline)
                .await
                .and_then(|found| self.decoded(group, found.value.as_deref()))
                .map(OwnershipAnswer::Is),
            OwnershipOp::Write { expected, new } => {
                self.write(group, expected.as_ref(), new, unsettled, deadline)
                    .await
            }
        };
        answer.unwrap_or_else(|fault| OwnershipAnswer::Unknown(fault.to_string()))
    }

    /// Creates the layout if there is none, and compares it.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn check_layout(&self, deadline: Instant) -> Result<(), Fault> {
        let key = self.keys.layout();
        let what = format!("the layout {key}");
        let (endpoint, answer) = self
            .endpoints
            .ask(&what, deadline, |mut client| {
                let create = Txn::new()
                    .when([Compare::version(key.clone(), CompareOp::Equal, 0)])
                    .and_then([TxnOp::put(key.clone(), self.keys.encode_layout(), None)])
                    .or_else([TxnOp::get(key.clone(), None)]);
                async move { client.txn(create).await }
            })
            .await?;
        if answer.succeeded() {
            tracing::info!(key, groups = self.keys.groups(), "layout stored in etcd");
            return Ok(());
        }
        match gets(answer).next().flatten() {
            Some(layout) => self.keys.check_layout(layout.value()),
            None => Err(self.strange(endpoint, &what, "the key is neither there nor absent")),
        }
    }

    async fn write(
        &self,
        group: GroupId,
        expected: Option<&GroupRecord>,
        new: &GroupRecord,
        unsettled: &mut Unsettled,
        deadline: Instant,
    ) -> Result<OwnershipAnswer, Fault> {
        let value = self.keys.encode(group, new)?;
        loop {
            let found = self.settled(group, unsettled, deadline).await?;
            let record = self.decoded(group, found.value.as_deref())?;
            if record.as_ref() != expected {
                return Ok(OwnershipAnswer::Differs(record));
            }
            let put = TxnOp::put(self.keys.group(group), value.clone(), None);
            match self.put(group, &found, put, unsettled, deadline).await? {
                Outcome::Done => return Ok(OwnershipAnswer::Written),
                Outcome::Refused(both) => {
                    if let Some(layout) = &both.layout {
                        self.keys.check_layout(layout.value())?;
                    }
                    let there = both.group.as_ref().map(KeyValue::value);
                    let record = self.decoded(group, there)?;
                    if record.as_ref() != expected {
                        return Ok(OwnershipAnswer::Differs(record));
                    }
                    // Certainly not written, and the record is still the expected one: somebody fenced, or an operator
                    // reformatted the value. Nothing is in doubt, so going round again repeats no write.
                }
            }
        }
    }

    /// Reads the key, linearizable, after making sure that no earlier write of this engine can still change it.
    async fn settled(
        &self,
        group: GroupId,
        unsettled: &mut Unsettled,
        deadline: Instant,
    ) -> Result<Found, Fault> {
        loop {
            let found = self.read(group, deadline).await?;
            if *unsettled != Some(found.basis) {
                // What the write compared is gone, and revisions do not come back.
                *unsettled = None;
                return Ok(found);
            }
            let same = match &found.value {
                Some(value) => TxnOp::put(self.keys.group(group), value.clone(), None),
                None => TxnOp::put(self.keys.layout(), self.keys.encode_layout(), None),
            };
            tracing::debug!(%group, "an unanswered write is fenced off");
            // If this is not answered either, nothing has changed: it compares, and leaves in doubt, what the write did.
            self.put(group, &found, same, unsettled, deadline).await?;
        }
    }

    /// Reads both keys at one revision and compares the layout, which is created if it is absent.
    async fn read(&self, group: GroupId, deadline: Instant) -> Result<Found, Fault> {
        let what = self.keys.group(group);
        loop {
            let (endpoint, answer) = self
                .endpoints
                .ask(&what, deadline, |mut client| {
                    let get = Txn::new().and_then(self.get_both(group));
                    async move { client.txn(get).await }
                })
                .await?;
            let both = self.both(answer, endpoint, &what)?;
            let Some(layout) = both.layout else {
                self.check_layout(deadline).await?;
                continue;
            };
            self.keys.check_layout(layout.value())?;
            return Ok(Found {
                endpoint,
                basis: Basis {
                    layout: layout.mod_revision(),
                    group: both.group.as_ref().map_or(0, KeyValue::mod_revision),
                },
                value: both.group.map(|g| g.into_key_value().1),
            });
        }
    }

    /// One conditional write, sent once to the endpoint that has just answered the read.
    async fn put(
        &self,
        group: GroupId,
        found: &Found,
        op: TxnOp,
        unsettled: &mut Unsettled,
        deadline: Instant,
    ) -> Result<Outcome, Fault> {
        let key = self.keys.group(group);
        let mut compare = vec![
            Compare::mod_revision(self.keys.layout(), CompareOp::Equal, found.basis.layout),
            Compare::mod_revision(key.clone(), CompareOp::Equal, found.basis.group),
        ];
        if let Some(value) = &found.value {
            // An etcd restored from a backup counts its revisions from there on again: the same one may mean another value.
            compare.push(Compare::value(key.clone(), CompareOp::Equal, value.clone()));
        }
        let txn = Txn::new()
            .when(compare)
            .and_then([op])
            .or_else(self.get_both(group));
        let endpoint = self.endpoints.get(found.endpoint);
        let mut client = endpoint.client();
        *unsettled = Some(found.basis);
        let answer = timeout_at(deadline, client.txn(txn))
            .await
            .map_err(|_| Fault::Silent {
                what: format!("the write of {key}, which may be done or not"),
                within: self.endpoints.timeout(),
                last: format!("{} was silent", endpoint.url),
            })?
            .map_err(|e| Fault::WriteFailed {
                endpoint: endpoint.url.clone(),
                key: key.clone(),
                why: said(&e),
            })?;
        *unsettled = None;
        if answer.succeeded() {
            return Ok(Outcome::Done);
        }
        self.both(answer, found.endpoint, &key).map(Outcome::Refused)
    }

    fn get_both(&self, group: GroupId) -> [TxnOp; 2] {
        [
            TxnOp::get(self.keys.layout(), None),
            TxnOp::get(self.keys.group(group), None),
        ]
    }

    fn both(&self, answer: TxnResponse, endpoint: usize, what: &str) -> Result<Both, Fault> {
        let mut gets = gets(answer);
        match (gets.next(), gets.next()) {
            (Some(layout), Some(group)) => Ok(Both { layout, group }),
            _ => Err(self.strange(endpoint, what, "two keys were asked for")),
        }
    }

    fn decoded(&self, group: GroupId, value: Option<&[u8]>) -> Result<Option<GroupRecord>, Fault> {
        value.map(|v| self.keys.decode(group, v)).transpose()
    }

    fn strange(&self, endpoint: usize, what: &str, why: &str) -> Fault {
        Fault::Strange {
            endpoint: self.endpoints.get(endpoint).url.clone(),
            what: what.to_owned(),
            why: why.to_owned(),
        }
    }
}

/// What the reads of a transaction have found: one for each, `None` for an absent key.
fn gets(answer: TxnResponse) -> impl Iterator<Item = Option<KeyValue>> {
    answer.op_responses().into_iter().filter_map(|op| match op {
        TxnOpResponse::Get(mut get) => Some(get.take_kvs().into_iter().next()),
        _ => None,
    })
}
