//! Throughput of espalier and of strongSwan's user-space data path in its place: same lab, same peer, same measure.

use super::figures::Figures;
use crate::steps::step;
use anyhow::Result;
use lab::iperf::{Server, Throughput};
use lab::ledger::Roles;
use lab::recorder::Recorder;
use lab::stage::Stage;
use lab::strongswan::Charon;
use lab::topology::{Lab, addr};

/// strongSwan in the cluster's place, over connection one (ChaCha20-Poly1305).
pub fn baseline(lab: &Lab, peer: &Charon, psk: &str) -> Result<Throughput> {
    step(
        "measuring strongSwan's user-space data path in espalier's place",
        || {
            let roles = Roles {
                cluster: Some(addr::CLUSTER_OUTSIDE),
                ..Roles::default()
            };
            // At rest, as espalier's are while it is measured: what little that costs, both pay.
            let outside = Recorder::start(&lab.bridges, "br-out", roles.clone())?;
            let inside = Recorder::start(&lab.bridges, "br-in", roles)?;
            outside.rest()?;
            inside.rest()?;
            let charon = lab::baseline::start(lab, psk)?;
            peer.initiate("one")?;
            let figures = measure(lab)?;
            peer.swanctl(&["--terminate", "--ike", "one", "--timeout", "3"])?;
            lab::baseline::stop(lab, charon)?;
            Ok(figures)
        },
    )
}

/// espalier, over the same connection.
pub fn espalier(stage: &Stage) -> Result<Throughput> {
    step("measuring espalier's throughput", || {
        stage.outside.rest()?;
        stage.inside.rest()?;
        let figures = measure(&stage.lab);
        stage.outside.wake()?;
        stage.inside.wake()?;
        figures
    })
}

/// Compares both.
pub fn compare(figures: &mut Figures) {
    let (Some(ours), Some(theirs)) = (figures.throughput.espalier, figures.throughput.strongswan) else {
        return;
    };
    let rows = rows(&ours, &theirs);
    let more = rows.iter().all(|(_, _, a, b)| a > b);
    let line: Vec<String> = rows
        .iter()
        .map(|(what, _, a, b)| format!("{what}: {:.2} times", a / b))
        .collect();
    figures.throughput.ratio = rows
        .iter()
        .filter(|(_, _, _, b)| *b > 0.0)
        .map(|(_, key, a, b)| ((*key).to_owned(), a / b))
        .collect();
    figures.compare(
        "ESP through XDP carries more than strongSwan's user-space data path in the same place",
        more,
        line.join(", "),
    );
}

/// What is shown, its key, espalier's figure, strongSwan's.
pub fn rows(ours: &Throughput, theirs: &Throughput) -> [(&'static str, &'static str, f64, f64); 4] {
    [
        (
            "TCP to the server",
            "tcp_in",
            ours.tcp_in_mbit,
            theirs.tcp_in_mbit,
        ),
        (
            "TCP to the peer",
            "tcp_out",
            ours.tcp_out_mbit,
            theirs.tcp_out_mbit,
        ),
        (
            "UDP to the server",
            "udp_in",
            ours.udp_in_mbit,
            theirs.udp_in_mbit,
        ),
        (
            "UDP to the peer",
            "udp_out",
            ours.udp_out_mbit,
            theirs.udp_out_mbit,
        ),
    ]
}

fn measure(lab: &Lab) -> Result<Throughput> {
    let server = Server::start(&lab.server, addr::SERVER_ONE, &lab.resources)?;
    server.measure(&lab.host, addr::HOST_ONE)
}
