//! What is seen without asking.

mod common;

use cluster::OwnershipAnswer::{Is, Written};
use common::{Bench, G0, Member, config, key, record, write};
use model::GroupId;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_there_at_the_start_and_every_change_is_seen_once() {
    let bench = Bench::start();
    let one = Member::start(bench.config(), 4);
    let (a, b, c) = (record(1, 1, 1), record(2, 2, 2), record(3, 1, 3));
    assert_eq!(one.ask(G0, write(None, &a)).await, Written);
    let two = Member::start(bench.config(), 4);
    two.sees(G0, Some(&a)).await;
    assert_eq!(one.ask(G0, write(Some(&a), &b)).await, Written);
    two.sees(G0, Some(&b)).await;
    // The same value again, as a fence writes it, is no news.
    let same = bench
        .etcd
        .etcdctl(0, &["get", "--print-value-only", &key(0)])
        .expect("etcdctl");
    bench
        .etcd
        .etcdctl(0, &["put", &key(0), "--", same.trim()])
        .expect("etcdctl");
    assert_eq!(one.ask(G0, write(Some(&b), &c)).await, Written);
    two.sees(G0, Some(&c)).await;
    bench.etcd.etcdctl(0, &["del", &key(0)]).expect("etcdctl");
    two.sees(G0, None).await;
    assert_eq!(two.seen(G0), [Some(a), Some(b), Some(c), None]);
    // Keys of others are not ours.
    for other in [
        "/espalier/lab2/groups/00",
        "/espalier/lab/groups/04",
        "/espalier/lab/groups/1",
    ] {
        bench
            .etcd
            .etcdctl(0, &["put", other, "--", "x"])
            .expect("etcdctl");
    }
    let d = record(1, 1, 4);
    assert_eq!(one.ask(GroupId(1), write(None, &d)).await, Written);
    two.sees(GroupId(1), Some(&d)).await;
    assert_eq!(two.seen(GroupId(2)), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_were_compacted_away_are_found_by_reading() {
    let mut bench = Bench::start();
    // Its only endpoint goes away.
    let away = Member::start(config(vec![bench.etcd.endpoint(0)]), 4);
    let other = Member::start(config(vec![bench.etcd.endpoint(1), bench.etcd.endpoint(2)]), 4);
    let (a, b) = (record(1, 1, 1), record(1, 2, 2));
    for (group, record) in [(G0, &a), (GroupId(1), &b)] {
        assert_eq!(other.ask(group, write(None, record)).await, Written);
        away.sees(group, Some(record)).await;
    }
    bench.etcd.kill(0).expect("kill");
    other.read_until_known(G0).await;
    let mut last = a.clone();
    for n in 2..20 {
        let new = record(n, 1, n);
        // An election may make one of them unknown.
        while other.read_until_known(G0).await.as_ref() != Some(&new) {
            other.ask(G0, write(Some(&last), &new)).await;
        }
        last = new;
    }
    bench.etcd.etcdctl(1, &["del", &key(1)]).expect("etcdctl");
    let status = bench
        .etcd
        .etcdctl(1, &["endpoint", "status", "--write-out=json"])
        .expect("status");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let revision = status[0]["Status"]["header"]["revision"].to_string();
    bench
        .etcd
        .etcdctl(1, &["compact", "--physical", &revision])
        .expect("compact");
    bench.etcd.restart(0).expect("restart");
    away.sees(G0, Some(&last)).await;
    away.sees(GroupId(1), None).await;
    // What lay between cannot be known any more, and the watch goes on from there.
    assert_eq!(away.seen(G0), [Some(a), Some(last.clone())]);
    let next = record(100, 2, 1);
    assert_eq!(other.ask(G0, write(Some(&last), &next)).await, Written);
    away.sees(G0, Some(&next)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_at_a_frozen_node_moves_to_another_one() {
    let bench = Bench::start();
    let leader = bench.etcd.leader().expect("a leader");
    let frozen = (leader + 1) % 3;
    let mut config = bench.config();
    config.endpoints.rotate_left(frozen);
    let watching = Member::start(config.clone(), 4);
    config.endpoints.rotate_left(1);
    let writing = Member::start(config, 4);
    let (a, b) = (record(1, 1, 1), record(2, 1, 2));
    assert_eq!(writing.ask(G0, write(None, &a)).await, Written);
    watching.sees(G0, Some(&a)).await;
    bench.etcd.freeze(frozen).expect("freeze");
    assert_eq!(writing.ask(G0, write(Some(&a), &b)).await, Written);
    let begin = std::time::Instant::now();
    watching.sees(G0, Some(&b)).await;
    println!("seen elsewhere after {:.1} s", begin.elapsed().as_secs_f64());
    bench.etcd.thaw(frozen).expect("thaw");
    assert_eq!(watching.read(G0).await, Is(Some(b)));
}
