//! The end of a split: what a discarded fork touched, and what the winner does about it (design section 3, ADR 19).
//!
//! Liveness checks find a fork that used other Message IDs than the winner's half. They do not find one whose Message IDs
//! happen to agree, though it replaced Child SAs: the peer then sends on SAs that nobody here has. Nor do they find soon that a peer
//! has dropped an IKE SA because the fork began another one. So the loser names what it touched, and the winner has that
//! established anew, or looks after it.

mod kept;
mod named;
mod touched;

pub use kept::KeptForks;
pub use named::Forks;
pub use touched::Touched;

use cluster::message::PeerMark;
use model::IkeSpi;

/// What a fork remembers at most, of each kind; liveness checks are left to find the others.
const MOST: usize = 1 << 17;

/// What a fork touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// An IKE SA that the lost standby may have.
    IkeSa(IkeSpi),
    /// A peer with which the fork began an IKE SA of its own.
    Peer(PeerMark),
}

/// As the node takes it.
fn parted(all: impl IntoIterator<Item = Named>) -> (Vec<IkeSpi>, Vec<PeerMark>) {
    let (mut touched, mut peers) = (Vec::new(), Vec::new());
    for named in all {
        match named {
            Named::IkeSa(spi) => touched.push(spi),
            Named::Peer(mark) => peers.push(mark),
        }
    }
    (touched, peers)
}
