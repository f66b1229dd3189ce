//! A SA store with a data plane in memory, and what the tests put into it.

use maps_schema::sad::spi_slot;
use maps_schema::spd::{ACTION_NONE, SpdRule};
use model::{
    ChildSaChange, ChildSaRecord, Epoch, EspSpi, EspSuite, IkeSpi, InitialLimits, Instant, MemberId,
    OutboundUse, SecretBytes, SegmentId, TrafficSelector,
};
use sad::lifetime::Lifetimes;
use sad::memory::MemoryPlane;
use sad::{Context, DataPlane, LimitRaise, MapOp, MapPlan, Policy, PolicyAction, Sad, Settings};
use std::time::Duration;

pub(crate) const SEGMENT: SegmentId = SegmentId(4);
pub(crate) const EPOCH: Epoch = Epoch(7);

pub(crate) struct World {
    pub(crate) sad: Sad,
    pub(crate) plane: MemoryPlane,
}

impl World {
    pub(crate) fn new(member: u8) -> Self {
        let settings = Settings {
            member: MemberId(member),
            max_slots: 4096,
            cpus: 2,
            first_generation: 1,
            outside_mtu: 1500,
            detection: Duration::from_millis(100),
            lifetimes: Lifetimes::default(),
        };
        Self {
            sad: Sad::new(settings),
            plane: MemoryPlane::new(4096),
        }
    }

    pub(crate) fn run(&mut self, plan: MapPlan) {
        self.plane.execute(&plan).expect("the plan fits the plane");
    }

    pub(crate) fn configure(&mut self, policies: Vec<Policy>) {
        let plan = self.sad.configure(policies).expect("policies fit");
        self.run(plan);
    }

    pub(crate) fn apply(&mut self, change: ChildSaChange) -> Vec<&'static str> {
        let plan = self.sad.apply(&change, context(false)).expect("change applies");
        let names = plan.ops.iter().map(MapOp::name).collect();
        self.run(plan);
        names
    }

    pub(crate) fn install(
        &mut self,
        remote: &str,
        outbound: OutboundUse,
        replaces: Option<EspSpi>,
    ) -> EspSpi {
        let spi = self.sad.reserve_spi(SEGMENT).expect("slots are free");
        self.apply(ChildSaChange::Install {
            record: Box::new(record(spi, remote)),
            outbound,
            replaces,
        });
        spi
    }

    /// What happens to a packet from 10.1.0.1 to `destination`: action and slot of the first matching rule.
    pub(crate) fn lookup(&self, destination: &str) -> Option<(u8, u32)> {
        let to = u128::from_be_bytes(model::address::mapped(destination.parse().expect("test address")));
        let from = model::address::mapped("10.1.0.1".parse().expect("test address"));
        let entry = (0..=128u32).rev().find_map(|len| {
            let mask = if len == 0 { 0 } else { u128::MAX << (128 - len) };
            self.plane.spd.get(&(len, (to & mask).to_be_bytes()))
        })?;
        let matches = |r: &&SpdRule| r.source_first <= from && from <= r.source_last;
        let rule = entry
            .rules
            .iter()
            .take_while(|r| r.action != ACTION_NONE)
            .find(matches)?;
        Some((rule.action, rule.slot))
    }

    pub(crate) fn spend(&mut self, spi: EspSpi, seq: u64, edge: u64) {
        let runtime = &mut self.plane.runtime[spi_slot(spi.0) as usize];
        (runtime.outbound.seq, runtime.inbound.edge) = (seq, edge);
    }

    pub(crate) fn raises(&mut self, ms: u64) -> Vec<LimitRaise> {
        let plane = &self.plane;
        self.sad.wants_raises(
            Instant::from_millis(ms),
            |_| Some(EPOCH),
            |slot| plane.counters(slot),
        )
    }
}

pub(crate) fn context(alone: bool) -> Context {
    Context {
        now: Instant::from_millis(1000),
        epoch: EPOCH,
        alone,
    }
}

pub(crate) fn ts(range: &str) -> TrafficSelector {
    let (first, last) = range.split_once('-').expect("first-last");
    TrafficSelector {
        first: first.parse().expect("address"),
        last: last.parse().expect("address"),
        protocol: 0,
        first_port: 0,
        last_port: u16::MAX,
    }
}

pub(crate) fn record(spi: EspSpi, remote: &str) -> ChildSaRecord {
    ChildSaRecord {
        connection: "branch".into(),
        child: "net".into(),
        ike_spi: IkeSpi(0x0401_0000_0000_0001),
        spi_in: spi,
        spi_out: EspSpi(0xc000_0000 | spi_slot(spi.0)),
        suite: EspSuite::ChaCha20Poly1305,
        key_in: SecretBytes::new(vec![1; 36]),
        key_out: SecretBytes::new(vec![2; 36]),
        form: model::SaForm {
            esn: true,
            ..model::SaForm::default()
        },
        udp_encap: false,
        local: "192.0.2.1:4500".parse().expect("address"),
        remote: "192.0.2.2:4500".parse().expect("address"),
        ts_local: vec![ts("10.1.0.0-10.1.0.255")],
        ts_remote: vec![ts(remote)],
        limits: InitialLimits {
            lease: 4096,
            lease_step: 4096,
            ceiling: 2,
            headroom: 2,
        },
    }
}

pub(crate) fn policy(child: &str, remote: &str) -> Policy {
    Policy {
        connection: "branch".into(),
        child: child.into(),
        local: vec![ts("10.1.0.0-10.1.0.255")],
        remote: vec![ts(remote)],
        action: PolicyAction::Protect,
        lenient: false,
        lifetimes: None,
        handling: sad::Handling::default(),
    }
}
