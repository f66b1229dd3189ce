//! The summary that a person reads.

use super::figures::Figures;
use super::throughput;
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use lab::iperf::Throughput;
use lab::stage::Stage;

const PHASES: [&str; 6] = ["detect", "claim", "flip", "announce", "first_packet", "total"];

/// Columns of a terminal that the summary takes at most; longer cells are wrapped.
const WIDTH: u16 = 120;

/// Prints the summary.
pub fn print(figures: &Figures) {
    println!();
    let mut checks = Table::new();
    checks
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH)
        .set_header(["", "invariant", "figures"]);
    for check in &figures.checks {
        checks.add_row([check.mark(), &check.claim, &check.detail]);
    }
    println!("{checks}");

    let mut takeover = Table::new();
    takeover
        .load_style(UTF8_FULL_CONDENSED)
        .set_header(["takeover", ""]);
    if let (Some(before), Some(outage)) = (figures.last_packet_before_kill_ms, figures.outage_ms) {
        takeover.add_row([
            "last packet through A".to_owned(),
            format!("{before:.1} ms before the kill"),
        ]);
        takeover.add_row([
            "from that one to the first through B".to_owned(),
            format!("{outage:.1} ms"),
        ]);
    }
    for phase in PHASES {
        if let Some(ms) = figures.takeover_ms.get(phase) {
            takeover.add_row([phase.to_owned(), format!("{ms:.1} ms")]);
        }
    }
    takeover.add_row(["packets lost".to_owned(), figures.packets_lost.to_string()]);
    takeover.add_row(["rekeys".to_owned(), figures.rekeys_during_takeover.to_string()]);
    takeover.add_row([
        "lost in the planned takeover".to_owned(),
        figures.planned_packets_lost.to_string(),
    ]);
    if let Some(ms) = figures.dead_man_ms {
        takeover.add_row([
            "dead agent: first packet through B".to_owned(),
            format!("{ms:.1} ms"),
        ]);
        takeover.add_row([
            "dead agent: packets lost".to_owned(),
            figures.dead_man_packets_lost.to_string(),
        ]);
    }
    if let (Some(tcp), Some(rekeys)) = (figures.tcp_takeover, figures.rekeys_tcp) {
        takeover.add_row([
            "under TCP: the stream goes on after".to_owned(),
            format!("{:.1} ms", tcp.resumed_ms),
        ]);
        takeover.add_row(["under TCP: rekeys".to_owned(), rekeys.to_string()]);
    }
    println!("{takeover}");

    if let (Some(ours), Some(theirs)) = (figures.throughput.espalier, figures.throughput.strongswan) {
        print_throughput(ours, theirs);
    }
    println!("files: {}", figures.folder);
    println!("picture: {}/takeover.svg", figures.folder);
    println!(
        "{}",
        if figures.ok {
            "every invariant held"
        } else {
            "NOT every invariant held"
        }
    );
}

/// Prints what several runs have in common, on standard error: standard output holds their figures.
pub fn print_medians(all: &[Figures]) {
    let held = all.iter().filter(|f| f.ok).count();
    eprintln!("{held} of {} runs held every invariant", all.len());
    let median = |what: &str, values: Vec<f64>| {
        let mut values = values;
        values.sort_by(f64::total_cmp);
        if let (Some(first), Some(last)) = (values.first(), values.last()) {
            eprintln!(
                "  {what}: median {:.1}, from {first:.1} to {last:.1}",
                values[values.len() / 2]
            );
        }
    };
    for phase in PHASES {
        median(
            &format!("{phase}, ms"),
            all.iter()
                .filter_map(|f| f.takeover_ms.get(phase).copied())
                .collect(),
        );
    }
    median(
        "packets lost",
        all.iter().map(|f| f.packets_lost as f64).collect(),
    );
    median(
        "dead agent, ms",
        all.iter().filter_map(|f| f.dead_man_ms).collect(),
    );
    let ratio = |pick: fn(&Throughput) -> f64| {
        all.iter()
            .filter_map(|f| Some(pick(&f.throughput.espalier?) / pick(&f.throughput.strongswan?)))
            .collect::<Vec<f64>>()
    };
    median(
        "TCP goes on after a kill, ms",
        all.iter()
            .filter_map(|f| Some(f.tcp_takeover?.resumed_ms))
            .collect(),
    );
    median(
        "rekeys under TCP",
        all.iter().filter_map(|f| Some(f.rekeys_tcp? as f64)).collect(),
    );
    median("TCP to the server, times strongSwan's", ratio(|t| t.tcp_in_mbit));
    median("TCP to the peer, times strongSwan's", ratio(|t| t.tcp_out_mbit));
    median("UDP to the server, times strongSwan's", ratio(|t| t.udp_in_mbit));
    median("UDP to the peer, times strongSwan's", ratio(|t| t.udp_out_mbit));
}

/// Prints the commands that enter a lab that was kept.
pub fn print_entrances(stage: &Stage) {
    eprintln!("\nThe lab runs on. To look at it:");
    for member in &stage.members {
        eprintln!("  member {}", member.place.letter.to_uppercase());
        for line in member.by_hand() {
            eprintln!("    {line}");
        }
    }
    eprintln!("  the peer\n    {}", stage.peer.by_hand("--list-sas"));
    eprintln!(
        "  ping from behind the peer\n    nsenter --net={} -- ping -I 10.10.1.2 10.20.1.100",
        stage.lab.host.path().display()
    );
    eprintln!("To take it down: cargo xtask lab-clean");
}

fn print_throughput(ours: Throughput, theirs: Throughput) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "Mbit/s",
        "espalier (XDP)",
        "strongSwan (user space)",
        "ratio",
    ]);
    for (what, _, a, b) in throughput::rows(&ours, &theirs) {
        table.add_row([
            what.to_owned(),
            format!("{a:.0}"),
            format!("{b:.0}"),
            format!("{:.2}", a / b),
        ]);
    }
    let cpu = [
        (
            "TCP to the server, CPU s/GB",
            ours.tcp_in_cpu_s_per_gb,
            theirs.tcp_in_cpu_s_per_gb,
        ),
        (
            "TCP to the peer, CPU s/GB",
            ours.tcp_out_cpu_s_per_gb,
            theirs.tcp_out_cpu_s_per_gb,
        ),
    ];
    for (what, a, b) in cpu {
        table.add_row([
            what.to_owned(),
            format!("{a:.1}"),
            format!("{b:.1}"),
            format!("{:.2}", a / b),
        ]);
    }
    println!("{table}");
}
