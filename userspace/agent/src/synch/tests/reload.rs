//! New certificates, authorities and revocation lists while the channel runs.

use super::*;
use crate::pki::{Authority, Validity};

const BOTH: [LinkId; 2] = LinkId::ALL;

fn validity() -> Validity {
    Validity::days(30).unwrap()
}

fn identity(pki: &Scratch, me: u8) -> Identity {
    Identity::load(&pki.0, MemberId(me)).unwrap()
}

/// Two members with both links.
async fn two_links(pki: &Scratch) -> [Member; 2] {
    let at = [addresses(2), addresses(2)];
    let links = [(LinkId::Synch, &at[0]), (LinkId::Outside, &at[1])];
    let mut members = [1, 2].map(|me| start_on(&pki.0, me, &links, Limits::default()));
    for member in &mut members {
        for _ in BOTH {
            assert!(matches!(member.next().await, SynchEvent::Up(..)));
        }
    }
    members
}

/// Watches one member's links through a change.
struct Observer {
    up: std::collections::BTreeSet<LinkId>,
    renewed: usize,
    heard: Instant,
    silence: Duration,
}

impl Observer {
    fn new() -> Self {
        Self {
            up: BOTH.into(),
            renewed: 0,
            heard: Instant::now(),
            silence: Duration::ZERO,
        }
    }

    fn event(&mut self, event: SynchEvent) {
        match event {
            SynchEvent::Down(_, link, why) => {
                assert_eq!(why, "replaced by a newer connection");
                self.up.remove(&link);
                assert!(!self.up.is_empty(), "both links were down");
            }
            SynchEvent::Up(_, link) => {
                self.renewed += 1;
                self.up.insert(link);
            }
            SynchEvent::Datagram(..) => {
                self.silence = self.silence.max(self.heard.elapsed());
                self.heard = Instant::now();
            }
            SynchEvent::Record(..) => {}
        }
    }
}

/// Beats on both links until `done`; nobody may be without a link meanwhile.
async fn beat_until(
    members: &mut [Member; 2],
    observers: &mut [Observer; 2],
    done: impl Fn(&[Member; 2]) -> bool,
) {
    let mut beat = tokio::time::interval(Duration::from_millis(10));
    let deadline = Instant::now() + Duration::from_secs(30);
    for observer in observers.iter_mut() {
        observer.heard = Instant::now();
    }
    loop {
        assert!(Instant::now() < deadline, "it never ended");
        beat.tick().await;
        for (me, peer) in [(0, 2), (1, 1)] {
            for link in BOTH {
                let beat = Bytes::from_static(b"beat");
                members[me].synch.send_datagram(MemberId(peer), link, beat);
            }
        }
        for (member, observer) in members.iter_mut().zip(observers.iter_mut()) {
            while let Ok(event) = member.events.try_recv() {
                observer.event(event);
            }
        }
        if done(members) && observers.iter().all(|o| o.up.len() == 2) {
            return;
        }
    }
}

/// Every link of both members shows the certificates of now.
fn renewed(members: &[Member; 2]) -> bool {
    let own = members.each_ref().map(|m| m.synch.status());
    [(0, 1), (1, 0)].iter().all(|(me, peer)| {
        !own[*me].renewing
            && own[*me]
                .links
                .iter()
                .all(|link| link.certificate.as_ref() == Some(&own[*peer].certificate))
    })
}

#[tokio::test]
async fn certificates_and_authority_are_changed_and_no_member_is_ever_without_a_link() {
    let pki = scratch("change", 2);
    let mut members = two_links(&pki).await;
    let mut observers = [Observer::new(), Observer::new()];
    let mut authority = Authority::open(&pki.0).unwrap();
    let first = members[0].synch.status().certificate;

    authority.rotate_ca().unwrap();
    for (at, me) in [(0, 1), (1, 2)] {
        members[at].synch.reload(&identity(&pki, me)).unwrap();
        beat_until(&mut members, &mut observers, renewed).await;
    }
    assert_eq!(
        observers.each_ref().map(|o| o.renewed),
        [0, 0],
        "nothing to renew yet"
    );

    authority.rotate_members(None, validity()).unwrap();
    // The one that dials first, then the one that has to ask for it.
    for (at, me) in [(0, 1), (1, 2)] {
        members[at].synch.reload(&identity(&pki, me)).unwrap();
        beat_until(&mut members, &mut observers, renewed).await;
    }
    assert_ne!(members[0].synch.status().certificate, first);

    authority.finish().unwrap();
    for (at, me) in [(1, 2), (0, 1)] {
        members[at].synch.reload(&identity(&pki, me)).unwrap();
        beat_until(&mut members, &mut observers, renewed).await;
    }
    assert_eq!(members[0].synch.status().issuer, "espalier cluster lab CA 2");
    println!(
        "links made anew: {:?}; longest silence over both links: {:?}",
        observers.each_ref().map(|o| o.renewed),
        observers.each_ref().map(|o| o.silence)
    );
    assert_eq!(
        observers.each_ref().map(|o| o.renewed),
        [4, 4],
        "two links, twice"
    );
    for (member, observer) in members.iter().zip(&observers) {
        assert!(
            observer.silence < Duration::from_millis(500),
            "{:?}",
            observer.silence
        );
        assert_eq!(
            member.synch.refusals().total(),
            0,
            "{:?}",
            member.synch.refusals().by_name()
        );
    }
}

#[tokio::test]
async fn a_peer_that_does_not_know_the_new_authority_keeps_the_old_connection() {
    let pki = scratch("unknown-ca", 2);
    let mut members = two_links(&pki).await;
    let mut authority = Authority::open(&pki.0).unwrap();
    authority.rotate_ca().unwrap();
    authority.rotate_members(None, validity()).unwrap();
    // Member 1 goes ahead; member 2 was forgotten.
    members[0].synch.reload(&identity(&pki, 1)).unwrap();
    members[1].refused(Refusal::UnknownAuthority, 2).await;
    let status = members[0].synch.status();
    assert!(status.renewing);
    assert!(status.links.iter().all(|link| link.up_s.is_some()), "{status:?}");
    for member in &mut members {
        member.quiet();
    }
    // Now it gets its files, and all is well without another command.
    members[1].synch.reload(&identity(&pki, 2)).unwrap();
    let mut observers = [Observer::new(), Observer::new()];
    beat_until(&mut members, &mut observers, renewed).await;
}

#[tokio::test]
async fn a_revoked_member_is_cut_off_at_once_and_does_not_come_back() {
    let pki = scratch("cut", 3);
    let at = addresses(3);
    let mut members = [1, 2, 3].map(|me| start(&pki.0, me, &at));
    for member in &mut members {
        assert!(matches!(member.next().await, SynchEvent::Up(..)));
        assert!(matches!(member.next().await, SynchEvent::Up(..)));
    }
    Authority::open(&pki.0).unwrap().remove(MemberId(1)).unwrap();
    for me in [2_u8, 3] {
        let text = members[usize::from(me) - 1]
            .synch
            .reload(&identity(&pki, me))
            .unwrap();
        assert!(text.contains("synch link to member 1"), "{text}");
        let why = members[usize::from(me) - 1].down(1).await;
        assert_eq!(why, Refusal::NoLongerTrusted.text());
        assert_eq!(members[usize::from(me) - 1].count(Refusal::NoLongerTrusted), 1);
    }
    for me in [2_u8, 3] {
        members[usize::from(me) - 1].refused(Refusal::Revoked, 3).await;
        members[usize::from(me) - 1].quiet();
    }
    let record = b"between the two that are left".to_vec();
    members[1]
        .synch
        .send_record(MemberId(3), LinkId::Synch, record.clone())
        .unwrap();
    assert_eq!(members[2].record(2).await, record);
}

#[tokio::test]
async fn files_that_do_not_fit_are_refused_and_nothing_changes() {
    let pki = scratch("misfit", 2);
    let mut members = two_links(&pki).await;
    let before = members[0].synch.status();
    let keep = |name: &str| std::fs::read(pki.0.join(name)).unwrap();
    let (list, key) = (keep("cluster.crl"), keep("member-1.key"));
    let refuse = |members: &[Member; 2], why: &str| {
        let files = Identity::load(&pki.0, MemberId(1));
        let error = files
            .and_then(|files| members[0].synch.reload(&files))
            .unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(why), "{error}");
    };

    std::fs::remove_file(pki.0.join("cluster.crl")).unwrap();
    refuse(&members, "cluster.crl is gone");
    std::fs::write(pki.0.join("cluster.crl"), &list[..list.len() / 2]).unwrap();
    refuse(&members, "cluster.crl");
    std::fs::write(pki.0.join("cluster.crl"), list).unwrap();

    std::fs::copy(pki.0.join("member-2.key"), pki.0.join("member-1.key")).unwrap();
    refuse(&members, "do not fit together");
    std::fs::write(pki.0.join("member-1.key"), key).unwrap();

    let now = crate::clock::wall_ns() / 1_000_000_000;
    let mut authority = Authority::open(&pki.0).unwrap();
    authority
        .rotate_members(Some(MemberId(1)), Validity::between(now - 20, now - 10))
        .unwrap();
    refuse(&members, "the other members would refuse");

    for member in &mut members {
        member.quiet();
    }
    let after = members[0].synch.status();
    assert_eq!((after.certificate, after.renewing), (before.certificate, false));
}
