//! After quiet every mirror equals the owner's database: records, limits, IKE records, octet by octet. Left out is what the members
//! need not agree on: windows and counters, the reported edge (a hint), ages, and the order of switches.

use crate::member::Member;
use model::GroupId;
use std::collections::BTreeMap;

/// What members must agree on, by name, as octets.
pub type MirrorView = BTreeMap<String, Vec<u8>>;

/// The view of a member.
pub fn view(member: &Member, group: GroupId) -> MirrorView {
    let mut view = MirrorView::new();
    for entry in member.sad.iter() {
        if member.layout.group_of(entry.segment()) != group {
            continue;
        }
        let mut record = entry.record.clone();
        // The limits of the negotiation: the present ones follow.
        record.limits.lease = 0;
        let limits = |l: &maps_schema::sad::Limits| (l.limit, l.step, l.floor, l.epoch);
        let octets = crate::entry::encode(&(
            (
                &record.connection,
                &record.child,
                record.ike_spi,
                record.spi_out,
                record.suite,
                record.esn,
                record.udp_encap,
            ),
            (record.key_in.expose(), record.key_out.expose()),
            (&record.local, &record.remote, &record.ts_local, &record.ts_remote),
            (entry.outbound_in_use, entry.local_only),
            limits(&entry.lease),
            limits(&entry.ceiling),
        ));
        view.insert(format!("Child SA {}", record.spi_in), octets);
    }
    for (spi, record) in &member.mirror {
        if member.layout.group_of(spi.segment()) == group {
            view.insert(format!("IKE SA {spi}"), record.expose().to_vec());
        }
    }
    view
}

/// Names that differ between two views.
pub fn differences(owner: &MirrorView, other: &MirrorView) -> Vec<String> {
    let mut names = Vec::new();
    for (name, octets) in owner {
        match other.get(name) {
            None => names.push(format!("{name} is missing")),
            Some(theirs) if theirs != octets => names.push(format!("{name} differs")),
            Some(_) => {}
        }
    }
    names.extend(
        other
            .keys()
            .filter(|name| !owner.contains_key(*name))
            .map(|name| format!("{name} is there, though the owner has it no more")),
    );
    names
}
