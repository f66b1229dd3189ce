//! What the processors do in a TCP run: samples of `perf`, by what the sampled function belongs to.

use super::chain::Chain;
use super::traffic::Server;
use crate::bench::figures::{self, Cells};
use anyhow::{Context, Result};
use lab::cmd;
use serde::Serialize;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// Samples a second and CPU.
const RATE: &str = "1999";

/// One part of a system's work.
#[derive(Clone, Debug, Serialize)]
pub struct Share {
    /// System.
    pub system: String,
    /// Its suite.
    pub suite: String,
    /// What the processors did.
    pub part: &'static str,
    /// Nanoseconds by packet of 1400 octets, all processors together.
    pub ns_by_packet: f64,
    /// Of all samples that were not idle, per cent.
    pub percent: f64,
}

/// Part, and how the names of its functions begin; the first part that fits counts.
const PARTS: &[(&str, &[&str])] = &[
    (
        "idle",
        &[
            "default_idle",
            "native_safe_halt",
            "pv_native_safe_halt",
            "cpuidle",
            "do_idle",
            "acpi_idle",
            "mwait",
            "poll_idle",
            "cpu_startup_entry",
            "acpi_safe_halt",
        ],
    ),
    ("programs: ChaCha20", &["aead_chacha"]),
    ("programs: Poly1305", &["aead_poly1305"]),
    ("programs: AES", &["aead_aes", "aead_ctr", "aead_gcm"]),
    ("programs: GHASH", &["aead_ghash"]),
    ("programs: everything else", &["bpf_prog_", "aead_", "spd_probe"]),
    (
        "helpers of the programs: route, copies, head, redirect, clock",
        &[
            "bpf_fib",
            "bpf_ipv4_fib",
            "bpf_xdp_",
            "__xdp_",
            "xdp_do_",
            "bpf_redirect",
            "bpf_ktime",
            "fib_",
            "__fib",
            "xdp_master",
            "bpf_skb_fib",
            "ip_mtu_from_fib",
            "bpf_csum",
            "ringbuf",
            "bpf_ringbuf",
            "xdp_get_buff",
            "fib4_",
            "array_map",
            "bpf_map_",
        ],
    ),
    (
        "cpumap and devmap",
        &[
            "cpu_map",
            "bq_",
            "__cpu_map",
            "dev_map",
            "cpumap",
            "__dev_flush",
            "dev_flush",
            "__xdp_enqueue",
            "bq_xmit",
        ],
    ),
    (
        "veth and XDP frames",
        &[
            "veth",
            "page_pool",
            "__page_pool",
            "xdp_",
            "__xdp",
            "build_skb",
            "napi_",
            "__napi",
        ],
    ),
    (
        "TCP and IP of the hosts",
        &[
            "tcp",
            "__tcp",
            "ip_",
            "__ip",
            "inet",
            "sock",
            "__sock",
            "nf_",
            "sk_",
            "__sk",
            "release_sock",
            "lock_sock",
            "ipv4_",
            "udp",
            "__udp",
        ],
    ),
    (
        "copies and memory",
        &[
            "copy",
            "_copy",
            "__copy",
            "rep_",
            "memcpy",
            "__memcpy",
            "memset",
            "__memset",
            "clear_page",
            "kmem",
            "__kmem",
            "kfree",
            "__kmalloc",
            "kmalloc",
            "free_",
            "__free",
            "get_page",
            "__alloc",
            "alloc_",
            "rmqueue",
            "skb",
            "__skb",
            "slab",
            "___slab",
            "__slab",
            "mod_",
            "put_",
            "memcg",
            "__memcg",
        ],
    ),
    (
        "network core, queues, softirq",
        &[
            "net_",
            "__netif",
            "netif",
            "dev_",
            "__dev",
            "enqueue_to",
            "process_backlog",
            "handle_softirqs",
            "__do_softirq",
            "run_ksoftirqd",
            "__local_bh",
            "do_softirq",
            "sch_",
            "qdisc",
            "__qdisc",
            "eth_",
            "neigh",
            "arp",
            "validate_xmit",
            "loopback",
            "tun_",
            "tap_",
        ],
    ),
    (
        "scheduler, wake-ups, time",
        &[
            "sched",
            "__sched",
            "schedule",
            "__schedule",
            "try_to_wake",
            "ttwu",
            "pick_",
            "enqueue_task",
            "dequeue",
            "select_task",
            "update_",
            "__update",
            "finish_task",
            "wake",
            "__wake",
            "ktime",
            "hrtimer",
            "tick",
            "rcu",
            "__rcu",
            "smp_",
            "kthread",
            "switch_",
            "__switch",
            "pvclock",
            "read_tsc",
            "native_write_msr",
            "reschedule",
            "psi",
            "place_entity",
            "reweight",
            "set_next",
            "put_prev",
            "__enqueue",
            "clock",
        ],
    ),
    (
        "system calls, locks",
        &[
            "syscall",
            "do_syscall",
            "entry_",
            "__x64",
            "ksys",
            "vfs",
            "sys_",
            "_raw_spin",
            "__raw_spin",
            "mutex",
            "fdget",
            "__fget",
            "futex",
            "__futex",
            "do_sys",
            "ep_",
            "__pollwait",
            "pollwake",
            "poll_",
            "do_poll",
            "do_select",
            "core_sys",
            "native_queued",
            "asm_",
            "__get_user",
            "__put_user",
            "import_",
            "srso",
            "retbleed",
            "__x86",
        ],
    ),
];

fn part_of(symbol: &str, kernel: bool) -> &'static str {
    if !kernel {
        return "user space";
    }
    // Programs are named bpf_prog_TAG_NAME.
    let name = symbol
        .strip_prefix("bpf_prog_")
        .and_then(|rest| rest.split_once('_'))
        .map_or(symbol, |(_, name)| name);
    let begins = |text: &str, with: &[&str]| with.iter().any(|w| text.starts_with(w));
    let found = PARTS
        .iter()
        .find(|(_, names)| begins(name, names) || begins(symbol, names));
    found.map_or("the rest of the kernel", |(part, _)| part)
}

/// Runs TCP in one stream under `perf` and sorts the samples. iperf3's server turns a run down that comes right after another one,
/// so it may take a few.
pub fn record(chain: &Chain, server: &Server<'_>, system: &str, suite: &str) -> Result<Vec<Share>> {
    let mut left = 3;
    loop {
        left -= 1;
        match one(chain, server, system, suite) {
            Err(_) if left > 0 => {}
            result => return result,
        }
    }
}

fn one(chain: &Chain, server: &Server<'_>, system: &str, suite: &str) -> Result<Vec<Share>> {
    let data = chain.folder.join("perf.data");
    // It ends with the command that it is given; signals to it are blocked here, as in all that this process starts.
    let seconds = (server.seconds() + 1).to_string();
    let mut recorder = Command::new("perf")
        .args(["record", "-q", "-a", "-F", RATE, "-e", "cpu-clock", "-o"])
        .arg(&data)
        .args(["--", "sleep", &seconds])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("perf is not installed (Debian: linux-perf)")?;
    chain.resources.note_process(recorder.id())?;
    let row = server.tcp(1, false);
    recorder.wait().context("perf record")?;
    let row = row?;
    let mut command = Command::new("perf");
    command
        .arg("script")
        .arg("-i")
        .arg(&data)
        .args(["-F", "ip,sym,dso"]);
    let text = cmd::output(command, "").context("perf script")?;
    std::fs::remove_file(&data).ok();
    Ok(sorted(&text, system, suite, row.cpu_s_per_gb))
}

/// `cpu_s_per_gb`: what the run took; the samples say which part of it.
fn sorted(text: &str, system: &str, suite: &str, cpu_s_per_gb: f64) -> Vec<Share> {
    let mut counts: BTreeMap<&'static str, u32> = BTreeMap::new();
    for line in text.lines() {
        // address symbol (object)
        let mut fields = line.split_whitespace();
        let (Some(address), Some(symbol)) = (fields.next(), fields.next()) else {
            continue;
        };
        // The kernel's half of the addresses begins with a bit that is set.
        let kernel = address.len() == 16 && address.starts_with('f');
        *counts.entry(part_of(symbol, kernel)).or_default() += 1;
    }
    counts.remove("idle");
    let all: u32 = counts.values().sum();
    // 1348 octets of payload in a packet of 1400.
    let ns_by_packet = cpu_s_per_gb * 1348.0;
    let mut shares: Vec<Share> = counts
        .into_iter()
        .map(|(part, count)| {
            let share = f64::from(count) / f64::from(all.max(1));
            Share {
                system: system.to_owned(),
                suite: suite.to_owned(),
                part,
                ns_by_packet: ns_by_packet * share,
                percent: share * 100.0,
            }
        })
        .collect();
    shares.sort_by(|a, b| b.percent.total_cmp(&a.percent));
    shares
}

/// For a reader.
pub fn table(shares: &[Share]) -> String {
    let mut cells: Cells = Vec::new();
    for share in shares {
        cells.push(vec![
            share.system.clone(),
            share.suite.clone(),
            share.part.to_owned(),
            format!("{:.0}", share.ns_by_packet),
            format!("{:.1} %", share.percent),
        ]);
    }
    figures::table(
        &["system", "suite", "TCP, 1 stream", "ns by packet", "of all"],
        cells,
    )
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_sorted_by_what_they_belong_to() {
        let text = "\
ffffffffc0012345 bpf_prog_0123456789abcdef_aead_chacha_xor (bpf_prog_0123456789abcdef_aead_chacha_xor)
ffffffffc0012346 bpf_prog_1123456789abcdef_inside (bpf_prog_1123456789abcdef_inside)
ffffffff81000000 pv_native_safe_halt ([kernel.kallsyms])
ffffffff81000001 veth_xdp_rcv ([kernel.kallsyms])
    7f0000000001 main (/usr/bin/iperf3)
";
        let shares = sorted(text, "espalier", "x", 1.0);
        let parts: Vec<&str> = shares.iter().map(|s| s.part).collect();
        for part in [
            "programs: ChaCha20",
            "programs: everything else",
            "veth and XDP frames",
            "user space",
        ] {
            assert!(parts.contains(&part), "{parts:?}");
        }
        assert_eq!(parts.len(), 4, "idle processors do not count");
        assert!(
            shares
                .iter()
                .all(|s| (s.percent - 25.0).abs() < 1e-9 && (s.ns_by_packet - 337.0).abs() < 1e-9)
        );
    }
}
