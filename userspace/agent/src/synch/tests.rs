use super::*;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::time::Duration;

struct Scratch(PathBuf);
impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn scratch(name: &str) -> Scratch {
    let dir = std::env::temp_dir().join(format!("esp-synch-{name}-{}", std::process::id()));
    crate::pki::init(&dir, "lab", 2).unwrap();
    Scratch(dir)
}

fn free_port() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn config(me: u8, mine: SocketAddr, theirs: SocketAddr) -> SynchConfig {
    SynchConfig {
        cluster: "lab".to_owned(),
        me: MemberId(me),
        listen: vec![(LinkId::Synch, mine)],
        peers: vec![(MemberId(3 - me), LinkId::Synch, theirs)],
        idle: Duration::from_secs(1),
    }
}

async fn next(events: &mut mpsc::Receiver<SynchEvent>) -> SynchEvent {
    tokio::time::timeout(Duration::from_secs(10), events.recv())
        .await
        .expect("an event in time")
        .expect("open")
}

#[tokio::test]
async fn records_arrive_in_order_and_datagrams_arrive() {
    let pki = scratch("order");
    let (a, b) = (free_port(), free_port());
    let (to_one, mut one) = mpsc::channel(64);
    let (to_two, mut two) = mpsc::channel(64);
    let first = Synch::start(
        &config(1, a, b),
        &Identity::load(&pki.0, MemberId(1)).unwrap(),
        to_one,
    )
    .unwrap();
    let second = Synch::start(
        &config(2, b, a),
        &Identity::load(&pki.0, MemberId(2)).unwrap(),
        to_two,
    )
    .unwrap();
    assert!(matches!(
        next(&mut one).await,
        SynchEvent::Up(MemberId(2), LinkId::Synch)
    ));
    assert!(matches!(
        next(&mut two).await,
        SynchEvent::Up(MemberId(1), LinkId::Synch)
    ));
    for n in 0..20_u8 {
        first
            .send_record(MemberId(2), LinkId::Synch, vec![n; usize::from(n) * 3000])
            .unwrap();
    }
    for n in 0..20_u8 {
        match next(&mut two).await {
            SynchEvent::Record(MemberId(1), LinkId::Synch, record) => {
                assert_eq!(record, vec![n; usize::from(n) * 3000])
            }
            other => panic!("{other:?}"),
        }
    }
    second.send_datagram(MemberId(1), LinkId::Synch, Bytes::from_static(b"beat"));
    match next(&mut one).await {
        SynchEvent::Datagram(MemberId(2), LinkId::Synch, bytes) => assert_eq!(&bytes[..], b"beat"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn garbage_and_strangers_change_nothing() {
    let pki = scratch("garbage");
    let strangers = scratch("strangers");
    let (a, b) = (free_port(), free_port());
    let (to_two, mut two) = mpsc::channel(64);
    let second = Synch::start(
        &config(2, b, a),
        &Identity::load(&pki.0, MemberId(2)).unwrap(),
        to_two,
    )
    .unwrap();
    let noise = UdpSocket::bind("127.0.0.1:0").unwrap();
    for length in [0_usize, 1, 30, 1200, 1472] {
        noise.send_to(&vec![0xc3; length], b).unwrap();
    }
    // A member of another cluster of the same name: right name, wrong CA.
    let (to_stranger, _stranger_events) = mpsc::channel(64);
    let stranger_port = free_port();
    let stranger = Identity::load(&strangers.0, MemberId(1)).unwrap();
    let _stranger = Synch::start(&config(1, stranger_port, b), &stranger, to_stranger).unwrap();
    // The handshake fails on the stranger's side first (it does not trust our certificate), and we see it refused.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while second.counters().refused.load(Ordering::Relaxed) == 0 {
        assert!(
            std::time::Instant::now() < deadline,
            "the stranger was never refused"
        );
        tokio::task::yield_now().await;
    }
    assert!(two.try_recv().is_err(), "no event came of it");
    let (to_one, mut one) = mpsc::channel(64);
    let _first = Synch::start(
        &config(1, a, b),
        &Identity::load(&pki.0, MemberId(1)).unwrap(),
        to_one,
    )
    .unwrap();
    assert!(matches!(next(&mut one).await, SynchEvent::Up(..)));
    assert!(matches!(next(&mut two).await, SynchEvent::Up(..)));
}

#[tokio::test]
async fn a_closed_link_goes_down_and_comes_back() {
    let pki = scratch("reset");
    let (a, b) = (free_port(), free_port());
    let (to_one, mut one) = mpsc::channel(64);
    let (to_two, mut two) = mpsc::channel(64);
    let first = Synch::start(
        &config(1, a, b),
        &Identity::load(&pki.0, MemberId(1)).unwrap(),
        to_one,
    )
    .unwrap();
    let _second = Synch::start(
        &config(2, b, a),
        &Identity::load(&pki.0, MemberId(2)).unwrap(),
        to_two,
    )
    .unwrap();
    assert!(matches!(next(&mut one).await, SynchEvent::Up(..)));
    assert!(matches!(next(&mut two).await, SynchEvent::Up(..)));
    first.reset(MemberId(2), LinkId::Synch, "test");
    for events in [&mut one, &mut two] {
        assert!(matches!(next(events).await, SynchEvent::Down(..)));
        assert!(matches!(next(events).await, SynchEvent::Up(..)));
    }
}
