//! Why a question has no answer. Each names what it is about and what to do; [`Fault`] ends up as the text of
//! [`OwnershipAnswer::Unknown`](cluster::OwnershipAnswer::Unknown).

use model::GroupId;
use std::time::Duration;
use thiserror::Error;

/// Why the engine does not know.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// Nobody answered in time.
    #[error("etcd did not answer {what} within {} ms ({last})", within.as_millis())]
    Silent {
        /// What was asked.
        what: String,
        /// The request time-out.
        within: Duration,
        /// The last thing that an endpoint said, or that none said anything.
        last: String,
    },
    /// The answer to a write is an error. The write may be done all the same.
    #[error("etcd at {endpoint} answered the write of {key} with: {why}; it may be done or not")]
    WriteFailed {
        /// Which endpoint.
        endpoint: String,
        /// Which key.
        key: String,
        /// What it said.
        why: String,
    },
    /// The request stood in line behind others of its group until its time was over. It was not sent.
    #[error("the request waited {} ms behind others of group {group} and was not sent", waited.as_millis())]
    WaitedTooLong {
        /// Which group.
        group: GroupId,
        /// For how long.
        waited: Duration,
    },
    /// Too many requests wait for this group. It was not sent.
    #[error("{waiting} requests wait for group {group} already; this one was not sent")]
    QueueFull {
        /// Which group.
        group: GroupId,
        /// How many.
        waiting: usize,
    },
    /// No such group.
    #[error("there is no group {group}: the cluster has {groups} groups")]
    NoSuchGroup {
        /// Which group.
        group: GroupId,
        /// How many there are.
        groups: u8,
    },
    /// The engine was ended.
    #[error("the ownership engine has ended; the request was not sent")]
    Ended,
    /// The value of a key cannot be read. That is never taken for an absent key.
    #[error("the value of {key} cannot be read: {why}; look with `etcdctl get {key}`")]
    Unreadable {
        /// Which key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// A record that could not be read back was to be written.
    #[error("refused to write {key}: {why}")]
    Unwritable {
        /// Which key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// The cluster was started with another number of groups.
    #[error(
        "{key} says that the cluster has {there} groups, this member is configured for {here}: give all members the same \
         number"
    )]
    LayoutDiffers {
        /// The key.
        key: String,
        /// What it says.
        there: u8,
        /// What this member has.
        here: u8,
    },
    /// An answer that etcd should not give.
    #[error("etcd at {endpoint} answered {what} in a way that makes no sense: {why}")]
    Strange {
        /// Which endpoint.
        endpoint: String,
        /// What was asked.
        what: String,
        /// What is wrong.
        why: String,
    },
}

/// What an error of the client says, with its causes: the outermost one alone is "transport error" in most cases.
pub fn said(error: &etcd_client::Error) -> String {
    let mut text;
    let mut cause: Option<&dyn std::error::Error> = match error {
        etcd_client::Error::GRpcStatus(status) => {
            text = format!("{:?}: {}", status.code(), status.message());
            std::error::Error::source(status)
        }
        etcd_client::Error::TransportError(e) => {
            text = e.to_string();
            std::error::Error::source(e)
        }
        other => {
            text = other.to_string();
            None
        }
    };
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
