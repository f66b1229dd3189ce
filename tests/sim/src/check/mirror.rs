//! After quiet every mirror equals the owner's database: records, limits, IKE records, octet by octet. Left out is what the members
//! need not agree on: windows and counters, the reported edge (a hint), ages, the order of switches, and the floors of limits: a raise of
//! an old owner that reached only some members gives those a higher one, which no later limit lies below. Of tainted leases only that they are
//! tainted: in a planned takeover each of the two members has a part of one, and the others have none (ADR 20). That these parts have no number
//! in common is looked at all the time (`rests.rs`).

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
        let record = &entry.record;
        let octets = crate::entry::encode(&(
            (
                &record.connection,
                &record.child,
                record.ike_spi,
                record.spi_out,
                record.suite,
                record.form,
                record.udp_encap,
            ),
            (record.key_in.expose(), record.key_out.expose()),
            (&record.local, &record.remote, &record.ts_local, &record.ts_remote),
        ));
        let name = format!("Child SA {}", record.spi_in);
        view.insert(name.clone(), octets);
        let limits = |l: &maps_schema::sad::Limits| {
            format!("limit {} step {} epoch {}", l.limit, l.step, l.epoch).into_bytes()
        };
        let lease = match datapath::limits::is_tainted(&entry.lease) {
            true => b"tainted".to_vec(),
            false => limits(&entry.lease),
        };
        view.insert(format!("{name} lease"), lease);
        view.insert(format!("{name} ceiling"), limits(&entry.ceiling));
        let used = format!("outbound {} local {}", entry.outbound_in_use, entry.local_only);
        view.insert(format!("{name} use"), used.into_bytes());
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
            // What is no secret is shown.
            Some(theirs) if theirs != octets => {
                match (std::str::from_utf8(octets), std::str::from_utf8(theirs)) {
                    (Ok(ours), Ok(theirs)) if name.contains("Child SA") && name.split(' ').count() > 3 => {
                        names.push(format!("{name}: {ours}, there {theirs}"));
                    }
                    _ => names.push(format!("{name} differs")),
                }
            }
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
