//! Questions and answers while etcd is well.

mod common;

use cluster::OwnershipAnswer::{Differs, Is, Written};
use cluster::OwnershipOp;
use common::{Bench, G0, LONG, Member, config, key, record, unknown, write};
use model::GroupId;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_key_is_absent_and_a_written_one_is_read_by_everybody() {
    let bench = Bench::start();
    let one = Member::start(bench.config(), 16);
    let two = Member::start(bench.config(), 16);
    assert_eq!(one.read(G0).await, Is(None));
    let (a, b) = (record(1, 1, u64::MAX), record(2, 2, 7));
    assert_eq!(one.ask(G0, write(Some(&b), &a)).await, Differs(None));
    assert_eq!(one.ask(G0, write(None, &a)).await, Written);
    assert_eq!(two.read(G0).await, Is(Some(a.clone())));
    // Each refusal carries what is there.
    assert_eq!(two.ask(G0, write(None, &b)).await, Differs(Some(a.clone())));
    assert_eq!(two.ask(G0, write(Some(&b), &a)).await, Differs(Some(a.clone())));
    assert_eq!(two.ask(G0, write(Some(&a), &b)).await, Written);
    assert_eq!(one.read(G0).await, Is(Some(b)));
    assert_eq!(one.read(GroupId(1)).await, Is(None));
    // What an operator sees.
    let shown = bench
        .etcd
        .etcdctl(0, &["get", "--prefix", "/espalier/lab"])
        .expect("etcdctl");
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(
        lines,
        [
            "/espalier/lab/groups/00",
            r#"{"version":1,"epoch":2,"owner":2,"in_sync":[{"member":2,"incarnation":"0000000000000007"}],"segments":"0 mod 16"}"#,
            "/espalier/lab/layout",
            r#"{"version":1,"groups":16}"#,
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_claims_of_one_epoch_exactly_one_wins() {
    let bench = Bench::start();
    let members: Vec<Member> = (0..8)
        .map(|n| {
            let mut config = bench.config();
            // Each one asks another node first.
            config.endpoints.rotate_left(n % 3);
            Member::start(config, 4)
        })
        .collect();
    let mut there = None;
    for round in 1..=25 {
        let claims: Vec<_> = members
            .iter()
            .zip(1u8..)
            .map(|(member, id)| {
                let new = record(round, id, round);
                (new.clone(), member.ask(G0, write(there.as_ref(), &new)))
            })
            .collect();
        let mut winners = Vec::new();
        let mut seen = BTreeSet::new();
        for (new, answer) in claims {
            match answer.await {
                Written => winners.push(new),
                Differs(Some(record)) => drop(seen.insert(record.epoch)),
                other => panic!("round {round}: {other:?}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        there = winners.pop();
        let winner = there.as_ref().map(|r| r.epoch);
        assert_eq!(
            seen.first().copied(),
            winner,
            "round {round}: the losers are told who won"
        );
        assert_eq!(seen.len(), 1, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_one_group_go_in_order() {
    let bench = Bench::start();
    let member = Member::start(bench.config(), 1);
    let records: Vec<_> = (1..=3).map(|n| record(n, 1, n)).collect();
    let answers = [
        member.ask(G0, write(None, &records[0])),
        member.ask(G0, write(Some(&records[0]), &records[1])),
        member.ask(G0, write(Some(&records[0]), &records[2])),
        member.ask(G0, write(Some(&records[1]), &records[2])),
        member.ask(G0, OwnershipOp::Read),
    ];
    let expected = [
        Written,
        Written,
        Differs(Some(records[1].clone())),
        Written,
        Is(Some(records[2].clone())),
    ];
    for (answer, expected) in answers.into_iter().zip(expected) {
        assert_eq!(answer.await, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_sixteen_groups_do_not_wait_for_one_another() {
    let bench = Bench::start();
    let relay = common::proxy::Proxy::start(&bench.etcd.endpoint(0)).await;
    let member = Member::start(config(vec![relay.url.clone()]), 16);
    assert_eq!(member.read(G0).await, Is(None));
    // With a way of 40 ms there and back, what is measured is the number of round trips.
    relay.delay(Duration::from_millis(20));
    let claim = |group, epoch| member.ask(GroupId(group), write(None, &record(epoch, 1, 1)));
    let begin = Instant::now();
    for group in 0..4 {
        assert_eq!(claim(group, 1).await, Written);
    }
    let one = begin.elapsed() / 4;
    let begin = Instant::now();
    let claims: Vec<_> = (4..16).map(|group| claim(group, 1)).collect();
    for claim in claims {
        assert_eq!(claim.await, Written);
    }
    let twelve = begin.elapsed();
    assert!(
        twelve < one * 6,
        "one claim takes {one:?}, twelve at once took {twelve:?}"
    );
}

#[tokio::test]
async fn a_full_queue_and_a_group_that_is_none_are_answered_at_once() {
    let bench = Bench::start();
    let member = Member::start(bench.config(), 2);
    // On this runtime of one thread no request is taken out while they are put in.
    let answers: Vec<_> = (0..100).map(|_| member.ask(G0, OwnershipOp::Read)).collect();
    let (mut known, mut refused) = (0, 0);
    for answer in answers {
        match answer.await {
            Is(None) => known += 1,
            other => {
                let why = unknown(other);
                assert!(why.contains("8 requests wait for group 0"), "{why}");
                refused += 1;
            }
        }
    }
    assert_eq!((known, refused), (8, 92));
    let why = unknown(member.read(GroupId(2)).await);
    assert_eq!(why, "there is no group 2: the cluster has 2 groups");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_cannot_be_read_is_unknown_and_is_not_overwritten() {
    let bench = Bench::start();
    let member = Member::start(bench.config(), 16);
    let a = record(1, 1, 1);
    assert_eq!(member.ask(GroupId(1), write(None, &a)).await, Written);
    member.sees(GroupId(1), Some(&a)).await;
    for garbage in ["", "owner is 2", r#"{"version":9}"#] {
        bench
            .etcd
            .etcdctl(1, &["put", &key(1), "--", garbage])
            .expect("etcdctl");
        for op in [
            OwnershipOp::Read,
            write(None, &a),
            write(Some(&a), &record(2, 1, 1)),
        ] {
            let why = unknown(member.ask(GroupId(1), op).await);
            assert!(why.contains("/espalier/lab/groups/01 cannot be read"), "{why}");
        }
        let there = bench
            .etcd
            .etcdctl(1, &["get", "--print-value-only", &key(1)])
            .expect("etcdctl");
        assert_eq!(there.trim_end(), garbage);
    }
    // It was not reported as a deletion; once repaired it is reported again.
    let repaired = r#"{"version":1, "epoch":5, "owner":3, "segments":"1 mod 16",
        "in_sync":[{"member":3, "incarnation":"0000000000000003"}]}"#;
    bench
        .etcd
        .etcdctl(1, &["put", &key(1), "--", repaired])
        .expect("etcdctl");
    let b = record(5, 3, 3);
    member.sees(GroupId(1), Some(&b)).await;
    assert_eq!(member.seen(GroupId(1)), [Some(a), Some(b.clone())]);
    // Equal is the record, not its spelling.
    assert_eq!(
        member.ask(GroupId(1), write(Some(&b), &record(6, 1, 1))).await,
        Written
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_another_number_of_groups_is_refused() {
    let bench = Bench::start();
    let four = Member::start(bench.config(), 4);
    let a = record(1, 1, 1);
    assert_eq!(four.ask(G0, write(None, &a)).await, Written);
    let eight = Member::start(bench.config(), 8);
    for op in [
        OwnershipOp::Read,
        write(Some(&a), &record(2, 2, 2)),
        write(None, &a),
    ] {
        for group in [G0, GroupId(7)] {
            let why = unknown(eight.ask(group, op.clone()).await);
            assert!(
                why.contains("/espalier/lab/layout says that the cluster has 4 groups")
                    && why.contains("configured for 8"),
                "{why}"
            );
        }
    }
    assert_eq!(four.read(G0).await, Is(Some(a.clone())));
    // The layout is compared by every write, not only at the start.
    let put = |value: &str| {
        bench
            .etcd
            .etcdctl(0, &["put", "/espalier/lab/layout", "--", value])
    };
    put(r#"{"version":1,"groups":8}"#).expect("etcdctl");
    let why = unknown(four.ask(G0, write(Some(&a), &record(2, 1, 1))).await);
    assert!(why.contains("has 8 groups"), "{why}");
    put("four").expect("etcdctl");
    let why = unknown(four.read(G0).await);
    assert!(why.contains("/espalier/lab/layout cannot be read"), "{why}");
    put(r#"{"version":1,"groups":4}"#).expect("etcdctl");
    assert_eq!(four.ask(G0, write(Some(&a), &record(2, 1, 1))).await, Written);
}

/// Prints how long claims take; how long they may take depends on the host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latency_of_claims_is_measured() {
    let bench = Bench::start();
    let member = Arc::new(Member::start(bench.config(), 16));
    let mut there: Vec<Option<cluster::GroupRecord>> = vec![None; 16];
    let mut alone = Vec::new();
    for n in 1..=400 {
        let new = record(n, 1, 1);
        let begin = Instant::now();
        assert_eq!(member.ask(G0, write(there[0].as_ref(), &new)).await, Written);
        alone.push(begin.elapsed());
        there[0] = Some(new);
    }
    let mut together = Vec::new();
    for n in 1000..1050 {
        let begin = Instant::now();
        let claims: Vec<_> = (0..16u8)
            .map(|g| {
                let new = record(n, 1, 1);
                let answer = member.ask(GroupId(g), write(there[usize::from(g)].as_ref(), &new));
                there[usize::from(g)] = Some(new);
                answer
            })
            .collect();
        for claim in claims {
            assert_eq!(claim.await, Written);
        }
        together.push(begin.elapsed());
    }
    let show = |what: &str, times: &mut Vec<Duration>| {
        times.sort();
        let at = |q: usize| times[(times.len() * q / 100).min(times.len() - 1)].as_secs_f64() * 1000.0;
        println!(
            "{what}: p50 {:.2} ms, p99 {:.2} ms, most {:.2} ms",
            at(50),
            at(99),
            at(100)
        );
    };
    show("one claim (read and transaction)", &mut alone);
    show("16 claims at once, until the last is written", &mut together);
    assert!(alone.iter().all(|t| *t < LONG));
}
