//! Real endpoints on loopback. What attacks the channel is in `attack.rs`, new certificates in `reload.rs`, many
//! members and many reconnections in `load.rs`.

mod attack;
mod flood;
mod load;
mod reload;

use super::*;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A folder that goes with the test.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn folder(name: &str) -> Scratch {
    let dir = std::env::temp_dir().join(format!("esp-synch-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    Scratch(dir)
}

fn scratch(name: &str, members: u8) -> Scratch {
    let dir = folder(name);
    crate::pki::init(&dir.0, "lab", members).unwrap();
    dir
}

/// An address of loopback that no other test has, of this process or another one.
fn own_host() -> std::net::Ipv4Addr {
    static NEXT: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(1);
    let pid = std::process::id().to_le_bytes();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    std::net::Ipv4Addr::new(127, 64 | pid[1] & 0x3f, pid[0], next)
}

/// Addresses of members 1, 2, ... on one link.
type Addresses = Vec<SocketAddr>;

fn addresses(members: u8) -> Addresses {
    let host = own_host();
    let ports = (0..u16::from(members)).map(|at| 4701 + at);
    ports.map(|port| SocketAddr::from((host, port))).collect()
}

fn config(me: u8, links: &[(LinkId, &Addresses)]) -> SynchConfig {
    let mut config = SynchConfig {
        cluster: "lab".to_owned(),
        me: MemberId(me),
        listen: Vec::new(),
        peers: Vec::new(),
        idle: Duration::from_secs(1),
    };
    for (link, addresses) in links {
        for (id, address) in (1..).zip(addresses.iter()) {
            if id == me {
                config.listen.push((*link, *address));
            } else {
                config.peers.push((MemberId(id), *link, *address));
            }
        }
    }
    config
}

/// A running channel and its events.
struct Member {
    synch: Synch,
    events: mpsc::Receiver<SynchEvent>,
}

fn start(pki: &Path, me: u8, addresses: &Addresses) -> Member {
    start_on(pki, me, &[(LinkId::Synch, addresses)], Limits::default())
}

fn start_on(pki: &Path, me: u8, links: &[(LinkId, &Addresses)], limits: Limits) -> Member {
    let (to_core, events) = mpsc::channel(4096);
    let identity = Identity::load(pki, MemberId(me)).unwrap();
    let synch = Synch::start_with(&config(me, links), &identity, to_core, limits).unwrap();
    Member { synch, events }
}

impl Member {
    async fn next(&mut self) -> SynchEvent {
        tokio::time::timeout(Duration::from_secs(30), self.events.recv())
            .await
            .expect("an event in time")
            .expect("open")
    }

    async fn up(&mut self, peer: u8) {
        match self.next().await {
            SynchEvent::Up(MemberId(id), LinkId::Synch) if id == peer => {}
            other => panic!("{other:?} instead of member {peer}"),
        }
    }

    /// Why the link to a peer went down.
    async fn down(&mut self, peer: u8) -> String {
        match self.next().await {
            SynchEvent::Down(MemberId(id), LinkId::Synch, why) if id == peer => why,
            other => panic!("{other:?}"),
        }
    }

    async fn record(&mut self, peer: u8) -> Vec<u8> {
        match self.next().await {
            SynchEvent::Record(MemberId(id), LinkId::Synch, record) if id == peer => record,
            other => panic!("{other:?}"),
        }
    }

    fn count(&self, why: Refusal) -> u64 {
        self.synch.refusals().count(why)
    }

    /// Waits until something was refused so often.
    async fn refused(&self, why: Refusal, times: u64) {
        until(why.name(), || self.count(why) >= times).await;
    }

    fn quiet(&mut self) {
        if let Ok(event) = self.events.try_recv() {
            panic!("{event:?} came of it");
        }
    }
}

/// Waits until something is so; looks every few milliseconds.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !so() {
        assert!(Instant::now() < deadline, "{what}: it never happened");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn pair(name: &str) -> (Scratch, Member, Member) {
    let pki = scratch(name, 2);
    let at = addresses(2);
    let (mut one, mut two) = (start(&pki.0, 1, &at), start(&pki.0, 2, &at));
    one.up(2).await;
    two.up(1).await;
    (pki, one, two)
}

#[tokio::test]
async fn records_arrive_in_order_and_datagrams_arrive() {
    let (_pki, mut one, mut two) = pair("order").await;
    for n in 0..20_u8 {
        let record = vec![n; usize::from(n) * 3000];
        one.synch.send_record(MemberId(2), LinkId::Synch, record).unwrap();
    }
    for n in 0..20_u8 {
        assert_eq!(two.record(1).await, vec![n; usize::from(n) * 3000]);
    }
    two.synch
        .send_datagram(MemberId(1), LinkId::Synch, Bytes::from_static(b"beat"));
    match one.next().await {
        SynchEvent::Datagram(MemberId(2), LinkId::Synch, bytes) => assert_eq!(&bytes[..], b"beat"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn members_tell_each_other_which_records_they_read() {
    let (_pki, one, two) = pair("versions").await;
    assert_eq!(one.synch.record_versions(MemberId(2)), Some(RECORD_VERSIONS));
    assert_eq!(two.synch.record_versions(MemberId(1)), Some(RECORD_VERSIONS));
    assert_eq!(two.synch.record_versions(MemberId(9)), None);
    let status = one.synch.status();
    assert_eq!(
        status.links[0].release.as_deref(),
        Some(env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(
        status.links[0].certificate.as_deref(),
        Some(two.synch.status().certificate.as_str())
    );
}

#[tokio::test]
async fn a_closed_link_goes_down_and_comes_back() {
    let (_pki, mut one, mut two) = pair("reset").await;
    one.synch.reset(MemberId(2), LinkId::Synch, "test");
    one.down(2).await;
    one.up(2).await;
    two.down(1).await;
    two.up(1).await;
}
