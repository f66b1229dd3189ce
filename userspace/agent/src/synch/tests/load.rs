//! Sixteen members, and very many reconnections.

use super::*;

/// No limit that this test would meet.
const UNLIMITED: Limits = Limits {
    half_open: 64,
    burst: 1_000_000,
    per_second: 1_000_000,
};

#[tokio::test]
async fn sixteen_members_are_all_linked_and_one_that_restarts_finds_all_others_again() {
    const MEMBERS: u8 = 16;
    let pki = scratch("sixteen", MEMBERS);
    let at = addresses(MEMBERS);
    let mut members = (1..=MEMBERS).map(|id| start(&pki.0, id, &at)).collect::<Vec<_>>();
    for (id, member) in (1..).zip(&mut members) {
        let mut linked = std::collections::BTreeSet::new();
        while linked.len() < usize::from(MEMBERS) - 1 {
            match member.next().await {
                SynchEvent::Up(peer, LinkId::Synch) => assert!(linked.insert(peer), "{peer} twice"),
                other => panic!("member {id}: {other:?}"),
            }
        }
    }
    // One in the middle: it dials half of the others, and is dialled by half.
    let restarted = 8_u8;
    let old = members.remove(usize::from(restarted) - 1);
    old.synch.close().await;
    drop(old);
    for member in &mut members {
        member.down(restarted).await;
    }
    // Its tasks end by themselves, and with them its socket.
    let address = at[usize::from(restarted) - 1];
    until("the port is free", || UdpSocket::bind(address).is_ok()).await;
    let began = Instant::now();
    let mut again = start(&pki.0, restarted, &at);
    for _ in 1..MEMBERS {
        assert!(matches!(again.next().await, SynchEvent::Up(..)));
    }
    println!("15 links are back after {:?}", began.elapsed());
    for member in &mut members {
        member.up(restarted).await;
        member.quiet();
    }
}

/// Octets that this process has in memory.
fn resident() -> i64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4096
}

/// Memory is counted for the whole process, so the test runs in one of its own: other tests go on beside it here.
#[test]
fn reconnections_leave_no_tasks_and_no_memory_behind() {
    const ALONE: &str = "ESP_RECONNECTS_ALONE";
    if std::env::var_os(ALONE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        return runtime.block_on(reconnections());
    }
    let name = "synch::tests::load::reconnections_leave_no_tasks_and_no_memory_behind";
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    println!("{said}{}", String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && said.contains("1 passed"));
}

async fn reconnections() {
    // 10,000 by hand: ESP_RECONNECTS=10000 cargo test -p agent reconnections -- --nocapture
    let rounds = std::env::var("ESP_RECONNECTS").map_or(300, |text| text.parse::<u32>().unwrap());
    let pki = scratch("again", 2);
    let at = addresses(2);
    let links = [(LinkId::Synch, &at)];
    let mut one = start_on(&pki.0, 1, &links, UNLIMITED);
    let mut two = start_on(&pki.0, 2, &links, UNLIMITED);
    one.up(2).await;
    two.up(1).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let warm = rounds / 3;
    let (mut before, mut at_first) = (0, 0);
    for round in 0..rounds {
        if round == warm {
            (before, at_first) = (resident(), tasks());
        }
        let (from, to) = if round % 2 == 0 { (&one, 2) } else { (&two, 1) };
        from.synch.reset(MemberId(to), LinkId::Synch, "again");
        for (member, peer) in [(&mut one, 2), (&mut two, 1)] {
            member.down(peer).await;
            member.up(peer).await;
        }
    }
    let grown = resident() - before;
    println!(
        "{rounds} reconnections: {} KiB more since the first {warm}, {} tasks then, {} now",
        grown / 1024,
        at_first,
        tasks()
    );
    // Old connections drain for three probe timeouts.
    until("the tasks of old connections end", || tasks() <= at_first.max(10)).await;
    assert!(grown < 8 << 20, "{grown} octets more");
}
