//! Whoever is on the synch network and means harm. The worst place for it is taken: a member's own address.

use super::*;
use crate::pki::{Authority, Validity};
use crate::synch::frame::{self, Frame, Greeting};
use rustls::client::WebPkiServerVerifier;

const FUTURE: &[u8] = b"espalier-synch/9";
const PRESENT: &[u8] = b"espalier-synch/1";

/// A client that is made by hand. It believes the cluster whose CA is in `pki`.
struct Raw {
    endpoint: quinn::Endpoint,
    to: SocketAddr,
    name: String,
}

impl Raw {
    /// `own`: folder and member whose certificate it shows.
    fn new(from: SocketAddr, to: (u8, SocketAddr), pki: &Path, own: Option<(&Path, u8)>) -> Self {
        Self::with(from, to, pki, own, &[PRESENT])
    }

    fn with(
        from: SocketAddr,
        to: (u8, SocketAddr),
        pki: &Path,
        own: Option<(&Path, u8)>,
        alpn: &[&[u8]],
    ) -> Self {
        Self::on(quinn::Endpoint::client(from).unwrap(), to, pki, own, alpn)
    }

    fn on(
        mut endpoint: quinn::Endpoint,
        to: (u8, SocketAddr),
        pki: &Path,
        own: Option<(&Path, u8)>,
        alpn: &[&[u8]],
    ) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = Identity::load(pki, MemberId(to.0)).unwrap().roots;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .unwrap();
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_webpki_verifier(verifier);
        let mut tls = match own {
            Some((folder, member)) => {
                let own = Identity::load(folder, MemberId(member)).unwrap();
                tls.with_client_auth_cert(vec![own.certificate], own.key).unwrap()
            }
            None => tls.with_no_client_auth(),
        };
        tls.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
        Self {
            endpoint,
            to: to.1,
            name: crate::pki::member_name("lab", MemberId(to.0)),
        }
    }

    async fn connect(&self) -> Result<quinn::Connection, quinn::ConnectionError> {
        self.endpoint.connect(self.to, &self.name).unwrap().await
    }

    /// Connects and greets as a member does.
    async fn greeted(&self) -> (quinn::Connection, quinn::SendStream, quinn::RecvStream) {
        let connection = self.connect().await.unwrap();
        let mut send = connection.open_uni().await.unwrap();
        let greeting = Greeting {
            records: (1, 200),
            release: "9.9.9".to_owned(),
        };
        frame::write(&mut send, Frame::Greeting(greeting)).await.unwrap();
        let mut receive = connection.accept_uni().await.unwrap();
        frame::read(&mut receive).await.unwrap();
        (connection, send, receive)
    }
}

#[tokio::test]
async fn every_kind_of_wrong_certificate_is_refused_by_its_name() {
    let pki = scratch("wrong", 3);
    let other = scratch("wrong-other", 2);
    // Member 1's certificate that is then replaced and revoked.
    let revoked = folder("wrong-revoked");
    std::fs::create_dir_all(&revoked.0).unwrap();
    for file in std::fs::read_dir(&pki.0).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), revoked.0.join(file.file_name())).unwrap();
    }
    let mut authority = Authority::open(&pki.0).unwrap();
    let validity = Validity::days(30).unwrap();
    authority.rotate_members(Some(MemberId(1)), validity).unwrap();
    authority.finish().unwrap();
    // A copy in which member 1's certificate has expired; the same CA.
    let expired = folder("wrong-expired");
    std::fs::create_dir_all(&expired.0).unwrap();
    for file in std::fs::read_dir(&pki.0).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), expired.0.join(file.file_name())).unwrap();
    }
    let now = crate::clock::wall_ns() / 1_000_000_000;
    let past = Validity::between(now - 7200, now - 3600);
    Authority::open(&expired.0)
        .unwrap()
        .rotate_members(Some(MemberId(1)), past)
        .unwrap();

    let at = addresses(2);
    let mut two = start(&pki.0, 2, &at);
    let to = (2, at[1]);
    struct Case<'a> {
        what: &'a str,
        own: Option<(&'a Path, u8)>,
        alpn: &'a [u8],
        why: Refusal,
    }
    let case = |what, own, alpn, why| Case { what, own, alpn, why };
    let cases = [
        case("none", None, PRESENT, Refusal::NoCertificate),
        case(
            "another CA's",
            Some((&*other.0, 1)),
            PRESENT,
            Refusal::UnknownAuthority,
        ),
        case(
            "another member's",
            Some((&pki.0, 3)),
            PRESENT,
            Refusal::WrongMember,
        ),
        case("a revoked one", Some((&revoked.0, 1)), PRESENT, Refusal::Revoked),
        case("an expired one", Some((&expired.0, 1)), PRESENT, Refusal::Expired),
        case("of the future", Some((&pki.0, 1)), FUTURE, Refusal::Protocol),
    ];
    let attacker = quinn::Endpoint::client(at[0]).unwrap();
    for Case { what, own, alpn, why } in cases {
        let raw = Raw::on(attacker.clone(), to, &pki.0, own, &[alpn]);
        // The client may think for a moment that it is in; it hears of the refusal then.
        if let Ok(connection) = raw.connect().await {
            connection.closed().await;
        }
        two.refused(why, 1).await;
        assert_eq!(two.count(why), 1, "{what}");
    }
    assert_eq!(
        two.synch.refusals().total(),
        6,
        "{:?}",
        two.synch.refusals().by_name()
    );
    two.quiet();

    // A release that speaks a later version too is welcome.
    let raw = Raw::on(attacker, to, &pki.0, Some((&pki.0, 1)), &[FUTURE, PRESENT]);
    let greeted = raw.greeted().await;
    two.up(1).await;
    assert_eq!(two.synch.record_versions(MemberId(1)), Some((1, 200)));
    drop(greeted);
    drop(raw);
    two.down(1).await;
}

#[tokio::test]
async fn only_the_configured_addresses_are_heard_and_only_lower_ids_dial() {
    let pki = scratch("addresses", 3);
    let at = addresses(3);
    let mut two = start(&pki.0, 2, &at);
    let to = (2, at[1]);
    // The right certificate, elsewhere: not even an answer.
    let elsewhere = Raw::new(
        SocketAddr::from((own_host(), 4701)),
        to,
        &pki.0,
        Some((&pki.0, 1)),
    );
    let attempt = tokio::time::timeout(Duration::from_millis(1500), elsewhere.connect()).await;
    assert!(attempt.is_err(), "nobody answers");
    // Member 2 dials member 3, never the other way round.
    let upside_down = Raw::new(at[2], to, &pki.0, Some((&pki.0, 3)));
    let attempt = tokio::time::timeout(Duration::from_millis(500), upside_down.connect()).await;
    assert!(attempt.is_err(), "nobody answers");
    two.refused(Refusal::NotADialer, 1).await;
    two.quiet();
}

#[tokio::test]
async fn frames_that_a_member_must_not_send_end_its_connection_and_are_named() {
    let pki = scratch("frames", 2);
    let at = addresses(2);
    let mut two = start(&pki.0, 2, &at);
    let raw = Raw::new(at[0], (2, at[1]), &pki.0, Some((&pki.0, 1)));

    // Before the greeting: the link is not up at all.
    let before: [(&str, &[u8], Refusal); 4] = [
        ("a record first", &[0, 0, 0, 1, 7], Refusal::GreetingMissing),
        (
            "a greeting without sense",
            &[1, 0, 0, 1, 7],
            Refusal::GreetingMalformed,
        ),
        (
            "a greeting without end",
            &[1, 0xff, 0xff, 0xff],
            Refusal::FrameTooLong,
        ),
        ("no greeting", &[], Refusal::GreetingMissing),
    ];
    for (what, octets, why) in before {
        let count = two.count(why);
        let connection = raw.connect().await.unwrap();
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(octets).await.unwrap();
        connection.closed().await;
        two.refused(why, count + 1).await;
        two.quiet();
        println!("{what}: {}", why.name());
    }

    // After it.
    let after: [(&str, &[u8], bool, Refusal); 5] = [
        ("cut off in the head", &[0, 0, 0], true, Refusal::FrameTruncated),
        (
            "cut off in the record",
            &[0, 0, 0, 9, 1, 2],
            true,
            Refusal::FrameTruncated,
        ),
        (
            "of a later version",
            &[0x7f, 0, 0, 1, 7],
            false,
            Refusal::FrameUnknown,
        ),
        (
            "too long to be skipped",
            &[0x81, 0, 4, 1],
            false,
            Refusal::FrameTooLong,
        ),
        ("never ended", &[0, 0, 0, 9, 1, 2], false, Refusal::FrameStalled),
    ];
    for (what, octets, finish, why) in after {
        let count = two.count(why);
        let (connection, mut stream, _receive) = raw.greeted().await;
        two.up(1).await;
        stream.write_all(octets).await.unwrap();
        if finish {
            stream.finish().unwrap();
        }
        if why == Refusal::FrameStalled {
            // What it goes on sending does not help it.
            connection.send_datagram(Bytes::from_static(b"alive")).unwrap();
            match two.next().await {
                SynchEvent::Datagram(MemberId(1), LinkId::Synch, _) => {}
                other => panic!("{what}: {other:?}"),
            }
        }
        assert_eq!(two.down(1).await, why.text(), "{what}");
        assert_eq!(two.count(why), count + 1, "{what}");
        connection.closed().await;
    }

    // What a later version may add is skipped.
    let (_connection, mut stream, _receive) = raw.greeted().await;
    two.up(1).await;
    stream
        .write_all(&[0x81, 0, 0, 2, 7, 7, 0, 0, 0, 1, 42])
        .await
        .unwrap();
    assert_eq!(two.record(1).await, [42]);
}

#[tokio::test]
async fn a_member_gets_one_stream_and_no_more() {
    let pki = scratch("streams", 2);
    let at = addresses(2);
    let mut two = start(&pki.0, 2, &at);
    let raw = Raw::new(at[0], (2, at[1]), &pki.0, Some((&pki.0, 1)));
    let (connection, mut stream, _receive) = raw.greeted().await;
    two.up(1).await;
    let patience = Duration::from_millis(300);
    assert!(
        tokio::time::timeout(patience, connection.open_uni())
            .await
            .is_err()
    );
    assert!(
        tokio::time::timeout(patience, connection.open_bi())
            .await
            .is_err()
    );
    frame::write(&mut stream, Frame::Record(vec![1])).await.unwrap();
    assert_eq!(two.record(1).await, [1], "the one stream goes on");
}

#[tokio::test]
async fn of_two_connections_of_one_member_the_newer_wins_but_not_at_once() {
    let pki = scratch("twice", 2);
    let at = addresses(2);
    let mut two = start(&pki.0, 2, &at);
    let raw = Raw::new(at[0], (2, at[1]), &pki.0, Some((&pki.0, 1)));
    let (first, mut stream, _receive) = raw.greeted().await;
    two.up(1).await;
    let began = Instant::now();
    // As two hosts with the same certificate and address would: again and again.
    let mut refused = 0;
    let (second, _stream, _receive) = loop {
        match raw.connect().await {
            Err(_) => refused += 1,
            Ok(connection) => {
                let mut stream = connection.open_uni().await.unwrap();
                let greeting = Greeting {
                    records: (1, 1),
                    release: "x".to_owned(),
                };
                let written = frame::write(&mut stream, Frame::Greeting(greeting)).await;
                let receive = connection.accept_uni().await;
                match (written, receive) {
                    (Ok(_), Ok(receive)) => break (connection, stream, receive),
                    _ => refused += 1,
                }
            }
        }
        if refused == 1 {
            frame::write(&mut stream, Frame::Record(vec![9])).await.unwrap();
            assert_eq!(two.record(1).await, [9], "the first one is not disturbed");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(
        began.elapsed() >= Duration::from_millis(900),
        "{:?}",
        began.elapsed()
    );
    assert!(refused > 0 && two.count(Refusal::TooSoon) > 0);
    assert_eq!(two.down(1).await, "replaced by a newer connection");
    two.up(1).await;
    first.closed().await;
    assert!(second.close_reason().is_none());
}

#[tokio::test]
async fn a_connection_does_not_move_to_another_address() {
    let pki = scratch("move", 3);
    let at = addresses(3);
    let mut three = start(&pki.0, 3, &at);
    let raw = Raw::new(at[0], (3, at[2]), &pki.0, Some((&pki.0, 1)));
    let (connection, _stream, _receive) = raw.greeted().await;
    three.up(1).await;
    // Another member's address, so that the kernel lets it pass.
    raw.endpoint.rebind(UdpSocket::bind(at[1]).unwrap()).unwrap();
    connection.send_datagram(Bytes::from_static(b"moved")).unwrap();
    assert_eq!(three.down(1).await, "timed out");
    three.quiet();
}

#[tokio::test]
async fn who_opens_connections_in_a_loop_gets_few_and_the_other_links_go_on() {
    let pki = scratch("loop", 3);
    let at = addresses(3);
    let (mut one, mut three) = (start(&pki.0, 1, &at), start(&pki.0, 3, &at));
    one.up(3).await;
    three.up(1).await;
    // The right address and the right certificate, and it never greets.
    let raw = Raw::new(at[1], (3, at[2]), &pki.0, Some((&pki.0, 2)));
    let began = Instant::now();
    let mut attempts = tokio::task::JoinSet::new();
    for n in 0..40_u8 {
        for _ in 0..10 {
            let connecting = raw.endpoint.connect(raw.to, &raw.name).unwrap();
            attempts.spawn(async move { connecting.await.is_ok() });
        }
        one.synch
            .send_record(MemberId(3), LinkId::Synch, vec![n])
            .unwrap();
        assert_eq!(three.record(1).await, [n], "the other link is not disturbed");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    raw.endpoint.close(0_u32.into(), b"");
    let begun = attempts.join_all().await.into_iter().filter(|up| *up).count();
    let limits = Limits::default();
    let most = f64::from(limits.burst) + f64::from(limits.per_second) * seconds;
    println!(
        "400 attempts in {seconds:.1} s: {begun} handshakes; refused {:?}",
        three
            .synch
            .refusals()
            .by_name()
            .into_iter()
            .filter(|(_, n)| *n > 0)
            .collect::<Vec<_>>()
    );
    assert!((begun as f64) <= most, "{begun} of at most {most}");
    assert!(three.count(Refusal::HalfOpen) + three.count(Refusal::Rate) > 0);
    three.quiet();
}

/// A wire between two members that remembers what the first one sent.
struct Wire {
    seen: Arc<std::sync::Mutex<Vec<Vec<u8>>>>,
    near_second: Arc<UdpSocket>,
    second: SocketAddr,
}

impl Wire {
    /// `first` reaches the wire at the address that it takes for the second member's.
    fn new(first: SocketAddr, second: SocketAddr) -> (Self, SocketAddr, SocketAddr) {
        let near_first = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let near_second = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let ends = (
            near_first.local_addr().unwrap(),
            near_second.local_addr().unwrap(),
        );
        let (a, b, memory) = (near_first.clone(), near_second.clone(), seen.clone());
        std::thread::spawn(move || {
            let mut octets = [0; 2048];
            while let Ok((length, _)) = a.recv_from(&mut octets) {
                memory.lock().unwrap().push(octets[..length].to_vec());
                let _ = b.send_to(&octets[..length], second);
            }
        });
        let (a, b) = (near_first, near_second.clone());
        std::thread::spawn(move || {
            let mut octets = [0; 2048];
            while let Ok((length, _)) = b.recv_from(&mut octets) {
                let _ = a.send_to(&octets[..length], first);
            }
        });
        let wire = Self {
            seen,
            near_second,
            second,
        };
        (wire, ends.0, ends.1)
    }
}

#[tokio::test]
async fn everything_that_was_ever_sent_changes_nothing_when_it_is_sent_again() {
    let pki = scratch("replay", 2);
    let at = addresses(2);
    let (wire, two_for_one, one_for_two) = Wire::new(at[0], at[1]);
    let mut one = start(&pki.0, 1, &vec![at[0], two_for_one]);
    let mut two = start(&pki.0, 2, &vec![one_for_two, at[1]]);
    one.up(2).await;
    two.up(1).await;
    for n in 0..10_u8 {
        one.synch
            .send_record(MemberId(2), LinkId::Synch, vec![n; 100])
            .unwrap();
        one.synch
            .send_datagram(MemberId(2), LinkId::Synch, Bytes::copy_from_slice(&[n]));
        let mut seen = (false, false);
        while seen != (true, true) {
            match two.next().await {
                SynchEvent::Record(..) => seen.0 = true,
                SynchEvent::Datagram(..) => seen.1 = true,
                other => panic!("{other:?}"),
            }
        }
    }
    let everything = wire.seen.lock().unwrap().clone();
    assert!(everything.len() > 12, "{} packets", everything.len());
    for _ in 0..3 {
        for packet in &everything {
            wire.near_second.send_to(packet, wire.second).unwrap();
        }
        // A new record is the next thing that is heard: nothing of the old came through, and the link has lived on.
        one.synch
            .send_record(MemberId(2), LinkId::Synch, b"new".to_vec())
            .unwrap();
        assert_eq!(two.record(1).await, b"new");
    }
    two.quiet();
    one.quiet();
}

#[tokio::test]
async fn a_member_that_does_not_read_loses_its_link_and_the_others_keep_theirs() {
    let pki = scratch("slow", 3);
    let at = addresses(3);
    let mut three = start(&pki.0, 3, &at);
    let mut one = start(&pki.0, 1, &at);
    // Member 1 dials member 2, too, which is not there.
    one.up(3).await;
    three.up(1).await;
    let raw = Raw::new(at[1], (3, at[2]), &pki.0, Some((&pki.0, 2)));
    let (_connection, _stream, _receive) = raw.greeted().await;
    three.up(2).await;
    let mut sent = 0;
    while three
        .synch
        .send_record(MemberId(2), LinkId::Synch, vec![0; 1000])
        .is_ok()
    {
        sent += 1;
        assert!(sent <= 2 * STREAM_QUEUE, "the queue has no end");
        if sent % 1000 == 0 {
            three
                .synch
                .send_record(MemberId(1), LinkId::Synch, vec![1])
                .unwrap();
            assert_eq!(one.record(3).await, [1], "the other link is not held back");
        }
    }
    assert_eq!(three.count(Refusal::Backlogged), 1);
    assert_eq!(three.down(2).await, Refusal::Backlogged.text());
    three
        .synch
        .send_record(MemberId(1), LinkId::Synch, vec![2])
        .unwrap();
    assert_eq!(one.record(3).await, [2]);
    three.quiet();
}
