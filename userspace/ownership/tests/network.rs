//! Nodes in network namespaces of their own, whose links are cut: no reset, no end of a connection, just silence.

mod common;

use cluster::OwnershipAnswer::{Differs, Is, Unknown, Written};
use cluster::{GroupRecord, OwnershipOp};
use common::{G0, LONG, Member, config, record, unknown, write};
use lab::cmd;
use lab::etcd::{EtcdCluster, EtcdSite};
use lab::netns::Netns;
use lab::resources::Resources;
use model::GroupId;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tokio::runtime::Builder;

/// Three namespaces around a bridge in a fourth one, where the members run.
struct Net {
    hub: Netns,
    sites: Vec<EtcdSite>,
}

impl Net {
    fn new(resources: &Resources) -> Self {
        let hub = namespace(resources, "hub");
        hub.ip("link add hub0 type bridge\naddr add 10.77.0.254/24 dev hub0\nlink set hub0 up")
            .expect("bridge");
        let sites = (1..=3u8)
            .map(|n| {
                let netns = namespace(resources, &format!("node{n}"));
                hub.ip(&format!(
                    "link add port{n} type veth peer name eth0 netns {}\nlink set port{n} master hub0\nlink set port{n} up",
                    netns.name
                ))
                .expect("port");
                netns
                    .ip(&format!("addr add 10.77.0.{n}/24 dev eth0\nlink set eth0 up"))
                    .expect("address");
                EtcdSite {
                    netns: Some(netns),
                    address: Ipv4Addr::new(10, 77, 0, n).into(),
                }
            })
            .collect();
        Self { hub, sites }
    }

    fn cut(&self, node: usize) {
        self.hub
            .ip(&format!("link set port{} down", node + 1))
            .expect("cut");
    }

    fn mend(&self, node: usize) {
        self.hub
            .ip(&format!("link set port{} up", node + 1))
            .expect("mend");
    }
}

fn namespace(resources: &Resources, what: &str) -> Netns {
    let name = resources.name(what);
    resources.note_netns(&name).expect("ledger");
    cmd::run(&["ip", "netns", "add", &name]).expect("a namespace");
    let netns = Netns { name };
    netns.ip("link set lo up").expect("lo");
    netns
}

/// Writes until it is certain that this member has written.
async fn write_surely(member: &Member, there: Option<&GroupRecord>, new: &GroupRecord) {
    let begin = Instant::now();
    loop {
        match member.ask(G0, write(there, new)).await {
            Written => return,
            Differs(Some(record)) if record == *new => return,
            Unknown(_) if begin.elapsed() < LONG => {}
            other => panic!("{other:?} after {:?}", begin.elapsed()),
        }
    }
}

async fn links_are_cut(net: &Net, etcd: &EtcdCluster) {
    let leader = etcd.leader().expect("a leader");
    let cut = (leader + 1) % 3;
    let mut config = config(etcd.endpoints());
    config.request_timeout = Duration::from_secs(2);
    // Asks, and watches at, the node that is cut off; the other member does neither.
    config.endpoints.rotate_left(cut);
    let limit = config.request_timeout;
    let near = Member::start(config.clone(), 4);
    config.endpoints.remove(0);
    let far = Member::start(config.clone(), 4);
    let records: Vec<GroupRecord> = (1..=4).map(|n| record(n, 1, n)).collect();
    write_surely(&near, None, &records[0]).await;
    near.sees(G0, Some(&records[0])).await;

    net.cut(cut);
    let begin = Instant::now();
    assert_eq!(near.ask(G0, write(Some(&records[0]), &records[1])).await, Written);
    println!(
        "claim with the first endpoint cut off: {:.0} ms",
        begin.elapsed().as_secs_f64() * 1000.0
    );
    assert!(begin.elapsed() < limit);
    write_surely(&far, Some(&records[1]), &records[2]).await;
    near.sees(G0, Some(&records[2])).await;
    println!(
        "the watch saw the rest {:.1} s after the cut",
        begin.elapsed().as_secs_f64()
    );
    assert_eq!(
        near.seen(G0),
        records[..3].iter().cloned().map(Some).collect::<Vec<_>>()
    );

    // A second one: what is left is a minority, and knows nothing for certain.
    let second = (cut + 1) % 3;
    net.cut(second);
    for op in [OwnershipOp::Read, write(Some(&records[2]), &records[3])] {
        for group in [G0, GroupId(3)] {
            let begin = Instant::now();
            let why = unknown(near.ask(group, op.clone()).await);
            assert!(
                begin.elapsed() < limit + Duration::from_secs(1),
                "{:?}: {why}",
                begin.elapsed()
            );
        }
    }
    net.mend(cut);
    net.mend(second);
    assert_eq!(
        near.read_until_known(G0).await,
        Some(records[2].clone()),
        "nothing was written in the minority"
    );
    write_surely(&far, Some(&records[2]), &records[3]).await;
    near.sees(G0, Some(&records[3])).await;
    assert_eq!(near.read(G0).await, Is(Some(records[3].clone())));
}

#[test]
fn a_node_that_is_cut_off_stops_nothing_and_a_minority_answers_nothing() {
    let resources = Resources::new().expect("a lab");
    let net = Net::new(&resources);
    let etcd = EtcdCluster::start(&resources, net.sites.clone(), None).expect("etcd");
    let hub = net.hub.clone();
    // The runtime's threads start in the namespace of the thread that makes it.
    let members = hub.inside(move || {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        runtime.block_on(links_are_cut(&net, &etcd));
        Ok(etcd)
    });
    let etcd = members.expect("the members' thread");
    drop(etcd);
}
