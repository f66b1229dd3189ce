//! Writes what the corpora of tests/fuzz begin with: sound input for each target that no fuzzer would guess. Keys and signatures in it are
//! new each time, so it is run when a target is new or its form has changed: `cargo run -p test-hostile --example seeds`.

mod outside;

use cluster::message::{Body, GroupBeat, GroupBody, Heartbeat, Message, RaiseItem, VERSION};
use cluster::{Direction, EpochId, LeaseRest, SetMember};
use hostile::credential::{AUTHORITY, CERTIFICATE as CERT, LIST, NAME, OCSP, TEXT};
use hostile::entry::{EntryChange, Snapshot, Tail, encode_brief, encode_entry, encode_snapshot, encode_tail};
use hostile::peer::{CERTIFICATE, EAP_MSCHAPV2, EAP_TLS, ESTABLISHED, PSK};
use hostile::world::pki::{Ca, Leaf, Said, key_pair};
use ike::auth::certificate::KeyKind;
use model::{
    ChildSaChange, ChildSaRecord, Epoch, EspSpi, EspSuite, GroupId, IkeSpi, Incarnation, InitialLimits,
    MemberId, OutboundUse, SaForm, SecretBytes,
};
use sad::SnapshotSa;
use sad::snapshot::LimitBase;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use test_packet::arbitrary::{FORM_PACKET, FORM_RAW, FORM_SEALED, FORM_TEXT, name_of};
use test_packet::case::Program;
use test_packet::frames::{Ip, Ip6, noise, udp};
use test_packet::world::{FAR_HOST, FAR_HOST_V6, NEAR_HOST, NEAR_HOST_V6};

fn write(target: &str, name: &str, octets: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join(name), octets).expect("a file");
}

fn main() {
    peers();
    credentials();
    records();
    entries();
    members();
    packets();
    frames();
    outside::requests();
    outside::ownership();
    outside::configurations();
    outside::kernel();
}

fn peers() {
    // Steps: the low half says what, the high half the exchange. Then how many payloads, and which.
    const AUTH: u8 = 0;
    const CREATE: u8 = 0x20;
    const INFORM: u8 = 0x40;
    let rows: [(&str, &[u8]); 22] = [
        ("psk", &[PSK, 0, AUTH, 3, 0, 2, 0, 3]),
        ("psk-wrong", &[PSK, 0, AUTH, 3, 1, 2, 0, 3]),
        ("psk-childless", &[PSK, 4, AUTH, 1, 0]),
        ("nat", &[PSK, 0xc0, AUTH, 4, 0, 16, 2, 0, 3, INFORM, 2, 17, 18]),
        (
            "eap",
            &[
                EAP_MSCHAPV2,
                0,
                AUTH,
                3,
                27,
                2,
                0,
                3,
                AUTH,
                1,
                10,
                AUTH,
                1,
                11,
                AUTH,
                1,
                12,
            ],
        ),
        (
            "eap-other",
            &[EAP_MSCHAPV2, 0, AUTH, 3, 27, 2, 0, 3, AUTH, 1, 13, 3, 1, 13],
        ),
        (
            "eap-tls",
            &[
                EAP_TLS, 0, AUTH, 3, 27, 2, 0, 3, AUTH, 1, 13, 13, 4, 0, 3, 1, 1, AUTH, 1, 13, 13, 1, 0,
            ],
        ),
        (
            "certificate",
            &[CERTIFICATE, 0x20, AUTH, 4, 27, 0x45, 3, 4, 1, 2, 2, 0, 3],
        ),
        ("pools", &[PSK | 4, 0, AUTH, 4, 0, 14, 2, 0, 3]),
        ("transport", &[PSK | 0x10, 0, AUTH, 4, 0, 19, 2, 0, 25]),
        ("rekey-child", &[ESTABLISHED, 0, CREATE, 4, 9, 2, 1, 4, 7, 3]),
        ("rekey-ike", &[ESTABLISHED, 0, CREATE, 3, 6, 9, 4, 7, 5]),
        ("delete-child", &[ESTABLISHED, 0, INFORM, 1, 7]),
        ("delete-ike", &[ESTABLISHED, 0, INFORM, 1, 8]),
        ("mobike", &[ESTABLISHED, 0xc0, INFORM, 2, 17, 18]),
        (
            "resources",
            &[ESTABLISHED | 8, 0, CREATE, 4, 22, 2, 0, 1, 2, 3, 4, 7, 3],
        ),
        (
            "engine-rekeys-child",
            &[ESTABLISHED, 0, 8, 0, 5, 3, 2, 5, 4, 9, 3],
        ),
        ("engine-rekeys-ike", &[ESTABLISHED, 0, 8, 4, 5, 3, 6, 9, 4, 7, 5]),
        (
            "engine-timers",
            &[ESTABLISHED | 0x40, 0, 7, 255, 5, 0, 7, 255, 5, 3, 2, 5, 4, 9, 3],
        ),
        (
            "taken-over",
            &[ESTABLISHED, 0, 9, CREATE, 3, 2, 1, 4, 7, 9, INFORM, 0],
        ),
        ("fragments", &[PSK, 1, 14, 0, 3, 0, 2, 0, 3, 64]),
        ("resume", &[PSK, 0, 12, 4, 2, 4, 9, 28, 0x40, 0x1d, 3, 1, 2, 3]),
    ];
    for (name, octets) in rows {
        write("peer", name, octets);
    }
}

fn part(kind: u8, octets: &[u8]) -> Vec<u8> {
    let length = (octets.len() as u16).to_be_bytes();
    [&[kind, 255][..], &length, octets].concat()
}

fn credentials() {
    let root = Ca::root("CA");
    let between = root.intermediate("Between");
    let key = key_pair(KeyKind::EcdsaP256);
    let leaf = root.issue(&Leaf::named("a.example"), &key);
    let below = between.issue(&Leaf::named("b.example"), &key_pair(KeyKind::Ed25519));
    let good = root.ocsp(&Said::of(x509_ocsp::CertStatus::good()));
    let revoked = root.ocsp(&Said::of(hostile::world::pki::revoked()));
    let name = ike::auth::dn::DnPattern::parse("C=DE, O=Example, CN=a.example").expect("a name");
    let name = name.to_der().expect("a name without wildcards");
    let rows = [
        ("direct", vec![0], vec![(AUTHORITY, &root.der), (CERT, &leaf)]),
        (
            "between",
            vec![0],
            vec![(AUTHORITY, &root.der), (CERT, &below), (CERT, &between.der)],
        ),
        (
            "ocsp",
            vec![3],
            vec![(AUTHORITY, &root.der), (CERT, &leaf), (OCSP, &good)],
        ),
        (
            "ocsp-revoked",
            vec![2],
            vec![(AUTHORITY, &root.der), (CERT, &leaf), (OCSP, &revoked)],
        ),
    ];
    for (target, shape, parts) in rows {
        let parts = parts.iter().flat_map(|(kind, octets)| part(*kind, octets));
        write(
            "credential",
            target,
            &shape.into_iter().chain(parts).collect::<Vec<_>>(),
        );
    }
    let list = root.crl(&[8], 5);
    let octets = [
        vec![1],
        part(AUTHORITY, &root.der),
        part(LIST, &list),
        part(CERT, &leaf),
    ]
    .concat();
    write("credential", "list", &octets);
    let texts = [
        "C=DE, O=Example, CN=a.example",
        "C=*, O=*, CN=*",
        "*.example",
        "*@example.org",
    ];
    let texts = texts
        .iter()
        .flat_map(|text| part(TEXT, text.as_bytes()))
        .collect();
    write(
        "credential",
        "names",
        &[vec![0], part(NAME, &name), texts].concat(),
    );
}

fn life(member: u8) -> SetMember {
    SetMember {
        member: MemberId(member),
        incarnation: Incarnation(1),
    }
}

fn epoch(number: u64, owner: u8) -> EpochId {
    EpochId {
        number: Epoch(number),
        owner: MemberId(owner),
    }
}

fn heartbeat() -> Heartbeat {
    let beat = GroupBeat {
        epoch: epoch(1, 2),
        owner: true,
        in_sync: 1,
        joining: 0,
        position: 0,
        settled: 0,
    };
    Heartbeat {
        seq: 1,
        echo: Some((Incarnation(5), 1)),
        reply: false,
        healthy: true,
        draining: false,
        lives: vec![life(2)],
        groups: vec![beat; 2],
    }
}

fn bodies() -> Vec<(&'static str, GroupBody)> {
    let raise = RaiseItem {
        slot: 0x204,
        spi: 0x0300_0204,
        direction: Direction::Inbound,
        limit: 2000,
        step: 1000,
    };
    let entry = encode_entry(&[EntryChange::IkeRemove(IkeSpi(7))]);
    let set = BTreeSet::from([life(2)]);
    let in_sync = set.clone();
    let rests = vec![LeaseRest {
        spi_in: EspSpi(0x0300_0204),
        above: 10,
        last: 20,
    }];
    vec![
        ("journal", GroupBody::Journal { position: 1, entry }),
        ("ack", GroupBody::JournalAck { position: 1 }),
        (
            "raise",
            GroupBody::Raise {
                settled: 0,
                items: vec![(1, raise)],
            },
        ),
        (
            "raise-ack",
            GroupBody::RaiseAck {
                armed: vec![(1, raise.key())],
                unknown: Vec::new(),
            },
        ),
        (
            "new-epoch",
            GroupBody::NewEpoch {
                old: epoch(1, 2),
                position: 0,
                in_sync,
            },
        ),
        ("report", GroupBody::Report(vec![(0x204, EspSpi(0x0300_0204), 9)])),
        ("join", GroupBody::JoinRequest { join: 1 }),
        (
            "snapshot-begin",
            GroupBody::SnapshotBegin {
                join: 1,
                position: 0,
                length: 7,
                claim_above: Epoch(0),
                raises_through: 0,
            },
        ),
        ("snapshot-ack", GroupBody::SnapshotAck { join: 1, position: 0 }),
        (
            "joined",
            GroupBody::Joined {
                join: 1,
                in_sync: set,
                heartbeat: 1,
            },
        ),
        ("request", GroupBody::HandoverRequest { to: MemberId(2) }),
        (
            "offer",
            GroupBody::HandoverOffer {
                position: 0,
                epoch: epoch(2, 1),
            },
        ),
        ("windows", GroupBody::HandoverWindows(vec![0; 20])),
        (
            "fork",
            GroupBody::ForkTouched {
                number: 1,
                touched: vec![IkeSpi(7)],
            },
        ),
        (
            "rests",
            GroupBody::HandoverRests {
                epoch: epoch(2, 1),
                rests,
            },
        ),
    ]
}

fn records() {
    let write_message = |name: &str, body: Body, version: u8| {
        let octets = Message { from: life(2), body }.encode(version);
        write(
            "synch",
            &format!("record-{name}-{version}"),
            &[&[0][..], &octets].concat(),
        );
    };
    for version in [2, VERSION] {
        write_message("heartbeat", Body::Heartbeat(heartbeat()), version);
    }
    let policy = BTreeMap::from([("addresses".to_owned(), [7; 16])]);
    let hello = Body::Hello {
        newest: VERSION,
        policy,
        facts: vec![1],
    };
    write_message("hello", hello, 2);
    for (name, body) in bodies() {
        let (group, epoch) = (GroupId(0), epoch(1, 2));
        write_message(name, Body::Group { group, epoch, body }, VERSION);
    }
}

fn child(spi_in: u32) -> ChildSaRecord {
    let selector = |net| vec![hostile::world::net([10, net, 0])];
    let suite = EspSuite::Aes128Gcm16;
    ChildSaRecord {
        connection: "t".to_owned(),
        child: "c".to_owned(),
        ike_spi: IkeSpi(1),
        spi_in: EspSpi(spi_in),
        spi_out: EspSpi(0xc0ff_ee01),
        suite,
        key_in: SecretBytes::new(vec![1; suite.material_len()]),
        key_out: SecretBytes::new(vec![2; suite.material_len()]),
        form: SaForm::default(),
        udp_encap: false,
        local: "192.0.2.1:500".parse().expect("an address"),
        remote: "198.51.100.1:500".parse().expect("an address"),
        ts_local: selector(1),
        ts_remote: selector(2),
        limits: InitialLimits {
            lease: 4096,
            lease_step: 4096,
            ceiling: 64,
            headroom: 64,
        },
    }
}

fn install(spi_in: u32) -> EntryChange {
    EntryChange::Child(ChildSaChange::Install {
        record: Box::new(child(spi_in)),
        outbound: OutboundUse::Now,
        replaces: None,
    })
}

fn entries() {
    let long: Vec<u8> = (0..2000_u32).map(|at| ((at * at) >> 3) as u8).collect();
    let mut longer = long.clone();
    longer[1000] ^= 1;
    let put = EntryChange::IkePut(IkeSpi(1), SecretBytes::new(longer.clone()));
    let spi_in = EspSpi(0x0100_0204);
    let changes = [
        EntryChange::IkePut(IkeSpi(9), SecretBytes::new(vec![3; 40])),
        install(spi_in.0),
        EntryChange::Child(ChildSaChange::Share { spi_in }),
        EntryChange::Child(ChildSaChange::UseOutbound { spi_in }),
        EntryChange::Contact {
            connection: "t".to_owned(),
            remote_id: "a.example".to_owned(),
            ike_spi: IkeSpi(9),
        },
        EntryChange::Acquire("t".to_owned()),
        EntryChange::Stop {
            connection: "t".to_owned(),
            ending: vec![IkeSpi(9)],
        },
        EntryChange::Start("t".to_owned()),
    ];
    write("synch", "entry", &[vec![1], encode_entry(&changes)].concat());
    let before = BTreeMap::from([(IkeSpi(1), SecretBytes::new(long.clone()))]);
    let brief = encode_brief(&[put], |spi| before.get(&spi)).expect("a brief form");
    write("synch", "entry-brief", &[vec![1], brief].concat());
    write("synch", "snapshot", &[vec![2], whole_snapshot()].concat());
    let patch = [&[3, 40][..], &long[..40], &longer[20..80]].concat();
    write("synch", "patch", &patch);
}

fn whole_snapshot() -> Vec<u8> {
    let base = LimitBase { floor: 0, epoch: 1 };
    let mut snapshot = Snapshot::default();
    snapshot.ike.insert(IkeSpi(1), SecretBytes::new(vec![5; 30]));
    snapshot.children.push(SnapshotSa {
        record: child(0x0100_0204),
        lease: base,
        ceiling: base,
        reported_edge: 3,
        outbound_in_use: true,
        local_only: false,
        age_ms: 1000,
    });
    let mut octets = encode_snapshot(&snapshot);
    let tail = Tail {
        suspects: vec![EspSpi(0x0100_0204)],
        entries: vec![vec![EntryChange::IkeRemove(IkeSpi(1))]],
        epoch: Epoch(1),
        stopped: vec![("t".to_owned(), vec![IkeSpi(1)])],
    };
    encode_tail(&mut octets, &tail);
    octets
}

fn members() {
    let beat = [
        vec![7, 1],
        postcard::to_allocvec(&heartbeat()).expect("a heartbeat"),
    ]
    .concat();
    let said = |body: &GroupBody| [vec![0, 1, 0x12], postcard::to_allocvec(body).expect("a body")].concat();
    for (name, body) in bodies() {
        for shape in [0, 1] {
            let octets = [vec![shape], beat.clone(), said(&body), vec![11, 0, 10, 100]].concat();
            write("member", &format!("{name}-{shape}"), &octets);
        }
    }
    let snapshot = whole_snapshot();
    let begin = GroupBody::SnapshotBegin {
        join: 1,
        position: 0,
        length: snapshot.len() as u64,
        claim_above: Epoch(0),
        raises_through: 0,
    };
    let entry = encode_entry(&[install(0x0100_0204)]);
    let steps = [
        vec![1],
        beat,
        vec![10, 30],
        said(&begin),
        said(&GroupBody::SnapshotChunk(snapshot)),
        vec![11, 0],
        said(&GroupBody::Journal { position: 1, entry }),
        vec![11, 0],
    ];
    write("member", "joins", &steps.concat());
    write(
        "member",
        "alone",
        &[1, 15, 15, 15, 15, 12, 1, 2, 3, 4, 11, 0, 13, 0],
    );
}

fn packets() {
    let inner = udp(1000, 2000, &noise(120));
    let mut four = Ip::new(FAR_HOST, NEAR_HOST, 17);
    four.fragment = 0;
    let four = four.with(&inner);
    let six = Ip6::new(FAR_HOST_V6, NEAR_HOST_V6, 17).with(&inner);
    for (name, packet) in [("four", &four), ("six", &six)] {
        write("slow", name, &[&[0, 100][..], packet].concat());
        write("slow", &format!("{name}-fits"), &[&[5, 100][..], packet].concat());
    }
}

fn frames() {
    let few = test_packet::cases::few();
    let rows = few
        .iter()
        .filter(|case| matches!(case.program, Program::Steer | Program::Inside));
    for case in rows.filter(|case| case.frame.len() <= 512) {
        let [a, b] = name_of(case);
        let name: String = case
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        write(
            "frame",
            &name,
            &[&[a, b, FORM_RAW, 0, 0, 0][..], &case.frame].concat(),
        );
    }
    let four = Ip::new(FAR_HOST, NEAR_HOST, 17).with(&udp(1, 2, b"payload"));
    let six = Ip6::new(FAR_HOST_V6, NEAR_HOST_V6, 17).with(&udp(1, 2, b"payload"));
    let out = Ip::new(NEAR_HOST, FAR_HOST, 17).with(&udp(1, 2, b"payload"));
    let first = |program| {
        few.iter()
            .find(|case| case.program == program)
            .map(name_of)
            .unwrap_or_default()
    };
    let [a, b] = first(Program::Steer);
    write(
        "frame",
        "sealed",
        &[&[a, b, FORM_SEALED, 0, 5, 0][..], &four].concat(),
    );
    write(
        "frame",
        "sealed-six",
        &[&[a, b, FORM_SEALED, 0, 6, 0][..], &six].concat(),
    );
    write(
        "frame",
        "sealed-text",
        &[&[a, b, FORM_TEXT, 0, 7, 0][..], &four, &[1, 2, 2, 4]].concat(),
    );
    let [a, b] = first(Program::Inside);
    write(
        "frame",
        "packet",
        &[&[a, b, FORM_PACKET, 0, 0, 0][..], &out].concat(),
    );
}
