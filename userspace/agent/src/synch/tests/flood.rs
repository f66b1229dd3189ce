//! Floods, with the figures that bound them.

use super::*;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

/// How long each flood lasts.
const TIME: Duration = Duration::from_secs(3);
/// Memory that a flood may cost: the socket's queue, and what quinn keeps for handshakes that are under way.
const GROWTH_MAX: i64 = 48 << 20;

/// Octets that this process has in memory.
fn resident() -> i64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages = text.split(' ').nth(1).unwrap().parse::<i64>().unwrap();
    pages * 4096
}

/// First packets of clients, as they are on the wire: each would begin a connection.
async fn first_packets(count: usize) -> Vec<Vec<u8>> {
    let sink = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let tls =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let client = quinn::ClientConfig::new(Arc::new(tls));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut packets = Vec::new();
    for _ in 0..count {
        let connecting = endpoint
            .connect_with(client.clone(), sink.local_addr().unwrap(), "member")
            .unwrap();
        let mut octets = vec![0; 2048];
        let (length, _) = sink.recv_from(&mut octets).await.unwrap();
        octets.truncate(length);
        packets.push(octets);
        drop(connecting);
    }
    packets
}

/// Sends packets as fast as it can until it is stopped. Returns how many.
fn flood(from: UdpSocket, to: SocketAddr, packets: Vec<Vec<u8>>, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            for packet in &packets {
                sent += u64::from(from.send_to(packet, to).is_ok());
            }
        }
        sent
    })
}

/// Members 1 and 3 have a link; whatever `from` is, packets flood member 3. Says what came of the link's datagrams.
async fn under(name: &str, from: impl FnOnce(&Addresses) -> UdpSocket, packets: Vec<Vec<u8>>) {
    let pki = scratch(name, 3);
    let at = addresses(3);
    let (mut one, mut three) = (start(&pki.0, 1, &at), start(&pki.0, 3, &at));
    one.up(3).await;
    three.up(1).await;
    let source = from(&at);
    let before = resident();
    let stop = Arc::new(AtomicBool::new(false));
    let flooding = flood(source, at[2], packets, stop.clone());
    let end = Instant::now() + TIME;
    let (mut sent, mut heard, mut last, mut longest) = (0_u32, 0_u32, Instant::now(), Duration::ZERO);
    let mut beat = tokio::time::interval(Duration::from_millis(10));
    while Instant::now() < end {
        tokio::select! {
            _ = beat.tick() => {
                sent += 1;
                one.synch.send_datagram(MemberId(3), LinkId::Synch, Bytes::from_static(b"beat"));
            }
            event = three.next() => match event {
                SynchEvent::Datagram(MemberId(1), ..) => {
                    heard += 1;
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
                other => panic!("{name}: {other:?}"),
            },
        }
    }
    let grown = resident() - before;
    stop.store(true, Ordering::Relaxed);
    let packets = flooding.join().unwrap();
    println!(
        "{name}: {} packets a second; {heard} of {sent} datagrams of the link heard, longest silence {longest:?}; {} KiB more memory; refused {:?}",
        packets / TIME.as_secs(),
        grown / 1024,
        three
            .synch
            .refusals()
            .by_name()
            .into_iter()
            .filter(|(_, n)| *n > 0)
            .collect::<Vec<_>>()
    );
    assert!(packets > 1000, "{name}: that was no flood: {packets}");
    assert!(
        heard * 10 >= sent * 9,
        "{name}: {heard} of {sent} datagrams heard"
    );
    assert!(grown < GROWTH_MAX, "{name}: {grown} octets more");
    // And whoever ought to get in, gets in.
    let mut two = start(&pki.0, 2, &at);
    for _ in 0..2 {
        assert!(matches!(two.next().await, SynchEvent::Up(..)));
    }
    loop {
        match three.next().await {
            SynchEvent::Up(MemberId(2), LinkId::Synch) => break,
            // The last of the beats.
            SynchEvent::Datagram(MemberId(1), ..) => {}
            other => panic!("{name}: {other:?}"),
        }
    }
}

fn garbage() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for length in [1, 20, 21, 64, 300, 1200, 1472] {
        // Short header, long header of version 1, of an unknown version, nonsense.
        for head in [
            &[0x40][..],
            &[0xc3, 0, 0, 0, 1],
            &[0xc3, 0x0a, 0x0a, 0x0a, 0x0a],
            &[0],
        ] {
            let mut packet = vec![0; length];
            getrandom::fill(&mut packet).unwrap();
            let head = &head[..head.len().min(length)];
            packet[..head.len()].copy_from_slice(head);
            packets.push(packet);
        }
    }
    packets
}

#[tokio::test]
async fn garbage_from_strangers_ends_in_the_kernel() {
    under(
        "strangers' garbage",
        |_| UdpSocket::bind("127.0.0.1:0").unwrap(),
        garbage(),
    )
    .await;
}

#[tokio::test]
async fn garbage_from_a_members_address_does_not_disturb_a_link() {
    under("garbage", |at| UdpSocket::bind(at[1]).unwrap(), garbage()).await;
}

#[tokio::test]
async fn first_packets_from_a_members_address_leave_nothing_behind() {
    let packets = first_packets(64).await;
    under("first packets", |at| UdpSocket::bind(at[1]).unwrap(), packets).await;
}
