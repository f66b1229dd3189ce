//! Map and program names, shared by the programs that declare them and the loader that pins them.

/// XDP program on outside interfaces: parse, steer to member and CPU, then `esp_in`.
pub const PROG_STEER: &str = "steer";
/// cpumap program: `esp_in` on the CPU that owns the inbound SA.
pub const PROG_ESP_IN: &str = "esp_in";
/// XDP program on inside interfaces: policy look-up, then `esp_out` here or on the SA's CPU.
pub const PROG_INSIDE: &str = "inside";
/// cpumap program: `esp_out` on the CPU of the outbound SA.
pub const PROG_ESP_OUT: &str = "esp_out";
/// Never attached; run through `BPF_PROG_TEST_RUN` pinned to an SA's CPU, it merges a final window.
pub const PROG_SA_CTL: &str = "sa_ctl";
/// XDP program that passes every frame: for the far ends of veth pairs in a lab.
pub const PROG_PASS: &str = "pass";

/// Array-of-maps keyed by CPU; inner arrays of [`crate::sad::InboundSa`] indexed by [`crate::sad::slot_place`].
pub const MAP_SA_IN: &str = "SA_IN";
/// Array-of-maps keyed by CPU; inner arrays of [`crate::sad::InboundSaRuntime`].
pub const MAP_SA_IN_RT: &str = "SA_IN_RT";
/// Array-of-maps keyed by CPU; inner arrays of [`crate::sad::OutboundSa`].
pub const MAP_SA_OUT: &str = "SA_OUT";
/// Array-of-maps keyed by CPU; inner arrays of [`crate::sad::OutboundSaRuntime`].
pub const MAP_SA_OUT_RT: &str = "SA_OUT_RT";
/// Array-of-maps keyed by CPU; inner arrays of [`crate::sad::SaKey`] for inbound SAs.
pub const MAP_KEY_IN: &str = "KEY_IN";
/// Array-of-maps keyed by CPU; inner arrays of [`crate::sad::SaKey`] for outbound SAs.
pub const MAP_KEY_OUT: &str = "KEY_OUT";
/// Array-of-maps keyed by CPU; inner arrays of [`crate::sad::CpuSlot`] by slot of a shared outbound SA.
pub const MAP_CPU_SLOT: &str = "CPU_SLOT";
/// Array of [`crate::spd::SpdPlace`], memory-mappable: prefixes with their rules, in no order.
pub const MAP_SPD: &str = "SPD";
/// Array of [`crate::spd::SpdBucket`], memory-mappable: where a prefix is in `SPD`.
pub const MAP_SPD_INDEX: &str = "SPD_INDEX";
/// Array of one [`crate::spd::SpdHead`], memory-mappable.
pub const MAP_SPD_HEAD: &str = "SPD_HEAD";
/// Array of 256 [`crate::segment::Segment`], memory-mappable.
pub const MAP_SEGMENTS: &str = "SEGMENTS";
/// Array of [`crate::steer::Member`] by member id (index 0 unused).
pub const MAP_MEMBERS: &str = "MEMBERS";
/// Hash: [`crate::steer::MacKey`] to member id (`u32`); a frame from one of these is never forwarded again.
pub const MAP_MEMBER_MACS: &str = "MEMBER_MACS";
/// Hash: [`crate::steer::AddressKey`] to [`crate::steer::ClusterAddress`].
pub const MAP_ADDRESSES: &str = "ADDRESSES";
/// Array of [`crate::steer::Port`] by number.
pub const MAP_PORTS: &str = "PORTS";
/// Hash: [`crate::steer::PortKey`] to the port's number (`u32`).
pub const MAP_PORT_OF: &str = "PORT_OF";
/// Array of one [`crate::steer::Local`].
pub const MAP_LOCAL: &str = "LOCAL";
/// Per-CPU array of `u64`, index `connection * VERDICT_STRIDE + verdict`.
pub const MAP_VERDICTS: &str = "VERDICTS";
/// Per-CPU array of one scratch area for the ciphers.
pub const MAP_SCRATCH: &str = "SCRATCH";
/// cpumap whose entries run `esp_in`.
pub const MAP_CPUS_IN: &str = "CPUS_IN";
/// cpumap whose entries run `esp_out`.
pub const MAP_CPUS_OUT: &str = "CPUS_OUT";
/// Ring buffer of [`crate::event::Event`].
pub const MAP_EVENTS: &str = "EVENTS";
/// Ring buffer of [`crate::event::SlowFrame`]: frames for the agent's slow path.
pub const MAP_SLOW: &str = "SLOW";

/// Maps that are pinned under the member's bpffs folder, by these names.
pub const PINNED_MAPS: &[&str] = &[
    MAP_SA_IN,
    MAP_SA_IN_RT,
    MAP_SA_OUT,
    MAP_SA_OUT_RT,
    MAP_KEY_IN,
    MAP_KEY_OUT,
    MAP_CPU_SLOT,
    MAP_SPD,
    MAP_SPD_INDEX,
    MAP_SPD_HEAD,
    MAP_SEGMENTS,
    MAP_MEMBERS,
    MAP_MEMBER_MACS,
    MAP_ADDRESSES,
    MAP_PORTS,
    MAP_PORT_OF,
    MAP_LOCAL,
    MAP_VERDICTS,
    MAP_CPUS_IN,
    MAP_CPUS_OUT,
];
