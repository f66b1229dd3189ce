//! What the kernel must permit, looked at before anything is touched.

use anyhow::{Context, Result, bail};

/// Numbers of linux/capability.h.
const NEEDED: [(u32, &str); 5] = [
    (10, "CAP_NET_BIND_SERVICE"),
    (12, "CAP_NET_ADMIN"),
    (13, "CAP_NET_RAW"),
    (38, "CAP_PERFMON"),
    (39, "CAP_BPF"),
];
/// Includes CAP_BPF and CAP_PERFMON.
const SYS_ADMIN: u32 = 21;

fn missing(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective >> bit & 1 == 1;
    NEEDED
        .iter()
        .filter(|(bit, _)| !(has(*bit) || *bit >= 38 && has(SYS_ADMIN)))
        .map(|(_, name)| *name)
        .collect()
}

/// Effective capabilities in the text of /proc/self/status.
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// # Errors
/// Some are missing.
pub fn check() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")
        .context("cannot read /proc/self/status; is /proc mounted?")?;
    let missing = missing(effective(&status).context("/proc/self/status has no CapEff")?);
    if !missing.is_empty() {
        bail!(
            "this process lacks {}: run it as root, or give the service these capabilities",
            missing.join(", ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_capability_is_named() {
        assert_eq!(missing(0).len(), NEEDED.len());
        assert!(missing(u64::MAX).is_empty());
        assert_eq!(missing(!(1 << 13)), ["CAP_NET_RAW"]);
        let without_bpf = !(1 << 38 | 1 << 39);
        assert!(missing(without_bpf).is_empty(), "CAP_SYS_ADMIN includes them");
        assert_eq!(
            missing(without_bpf & !(1 << SYS_ADMIN)),
            ["CAP_PERFMON", "CAP_BPF"]
        );
    }

    #[test]
    fn the_effective_set_is_read() {
        assert_eq!(
            effective("CapPrm:\tff\nCapEff:\t0000000000003000\n"),
            Some(0x3000)
        );
        assert_eq!(effective("CapPrm:\tff\n"), None);
    }
}
