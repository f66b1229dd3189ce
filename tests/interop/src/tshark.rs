//! An independent reader of IKE: tcpdump writes down what is on a wire, and tshark takes it apart, with the keys that charon's log names.

use crate::clock::wait_for;
use crate::netns::Netns;
use crate::resources::Resources;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Settings of charon that make it write its IKE SAs' keys to a file of this folder, which has to be there.
pub fn keys_log(folder: &Path) -> String {
    format!(
        "filelog {{ keys {{ path = {}\n flush_line = yes\n default = -1\n ike = 4\n }} }}",
        keys_file(folder).display()
    )
}

fn keys_file(folder: &Path) -> PathBuf {
    folder.join("keys.log")
}

/// IKE that is being written down.
pub struct Capture {
    file: PathBuf,
    process: Child,
}

impl Capture {
    /// Begins, on a device in a namespace.
    ///
    /// # Errors
    /// No tcpdump.
    pub fn start(netns: &Netns, device: &str, folder: &Path, resources: &Resources) -> Result<Self> {
        let file = folder.join("ike.pcap");
        let process = netns
            .command("tcpdump")
            // As root: it may write where the lab is.
            .args(["-Z", "root", "-U", "-q", "-i", device, "-w"])
            .arg(&file)
            .arg("udp port 500 or udp port 4500")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("tcpdump: apt-get install tcpdump")?;
        resources.note_process(process.id())?;
        let begun = || {
            let length = fs::metadata(&file).ok()?.len();
            (length >= 24).then_some(())
        };
        wait_for(Duration::from_secs(10), Duration::from_millis(10), begun)
            .context("tcpdump does not begin")?;
        Ok(Self { file, process })
    }

    /// Waits until all that is asked for is in the file, and ends; gives the IKE messages as tshark reads them.
    ///
    /// # Errors
    /// They do not come, or tshark fails.
    pub fn messages(mut self, folder: &Path, done: impl Fn(&[Message]) -> bool) -> Result<Vec<Message>> {
        let mut last = Vec::new();
        let all = wait_for(Duration::from_secs(20), Duration::from_millis(200), || {
            last = read(&self.file, folder).ok()?;
            done(&last).then_some(())
        });
        kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM).context("tcpdump")?;
        self.process.wait().context("tcpdump")?;
        ensure!(all.is_some(), "not all was captured: {last:#?}");
        read(&self.file, folder)
    }
}

/// Substructures of a Security Association payload, which tshark lists among the payloads.
const PROPOSAL: u8 = 2;
const TRANSFORM: u8 = 3;

/// An IKE message in tshark's words; numbers are those of the IKEv2 registries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// SPIs of initiator and responder, hexadecimal.
    pub spis: (String, String),
    /// Exchange type.
    pub exchange: u8,
    /// The Response flag.
    pub response: bool,
    /// Message ID.
    pub id: u32,
    /// Payload types, in their order, without proposals and transforms; what is in an Encrypted payload comes after it.
    pub payloads: Vec<u8>,
    /// Notify message types.
    pub notifies: Vec<u16>,
    /// What tshark has to complain of.
    pub complaints: String,
}

/// One set of keys as charon logs it, by name: `ai`, `ar`, `ei`, `er` among others.
type Keys = BTreeMap<String, String>;

/// All sets in the order in which they were derived.
fn keys(log: &str) -> Vec<Keys> {
    let mut sets: Vec<Keys> = Vec::new();
    let mut open: Option<(String, usize)> = None;
    for line in log.lines() {
        if let Some((head, _)) = line.split_once(" secret => ")
            && let Some((_, name)) = head.split_once("Sk_")
        {
            let length = line.split(" => ").nth(1).and_then(|rest| rest.split(' ').next());
            let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
            let name = name.to_owned();
            if sets.last().is_none_or(|set| set.contains_key(&name)) {
                sets.push(Keys::new());
            }
            open = Some((name, length));
            continue;
        }
        let Some((name, length)) = &open else { continue };
        let Some(set) = sets.last_mut() else { continue };
        let key = set.entry(name.clone()).or_default();
        let Some((_, dump)) = line.split_once(": ") else {
            open = None;
            continue;
        };
        let octets = dump.split(' ').take_while(|octet| octet.len() == 2).take(16);
        for octet in octets.take(length - key.len() / 2) {
            key.push_str(octet);
        }
        if key.len() / 2 == *length {
            open = None;
        }
    }
    sets
}

fn tshark(file: &Path, folder: &Path, fields: &[&str]) -> Result<String> {
    let mut command = Command::new("tshark");
    command
        .env("WIRESHARK_CONFIG_DIR", folder)
        .arg("-r")
        .arg(file)
        .args(["-Y", "isakmp", "-T", "fields", "-E", "separator=;"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().context("tshark: apt-get install tshark")?;
    ensure!(
        output.status.success(),
        "tshark: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The suites that tshark knows by these names, by octets of SK_e and SK_a: AES-GCM with a salt of four octets, AES-CBC with HMAC-SHA2.
fn names(keys: &Keys) -> Option<(&'static str, &'static str)> {
    let octets = |name: &str| keys.get(name).map_or(0, |key| key.len() / 2);
    Some(match (octets("ei"), octets("ai")) {
        (20, 0) => ("AES-GCM-128 with 16 octet ICV [RFC5282]", "NONE [RFC4306]"),
        (36, 0) => ("AES-GCM-256 with 16 octet ICV [RFC5282]", "NONE [RFC4306]"),
        (16, 32) => ("AES-CBC-128 [RFC3602]", "HMAC_SHA2_256_128 [RFC4868]"),
        (32, 48) => ("AES-CBC-256 [RFC3602]", "HMAC_SHA2_384_192 [RFC4868]"),
        _ => return None,
    })
}

fn read(file: &Path, folder: &Path) -> Result<Vec<Message>> {
    // IKE SAs in the order of their first messages, which is that of their keys.
    let mut spis: Vec<(String, String)> = Vec::new();
    for line in tshark(file, folder, &["isakmp.ispi", "isakmp.rspi"])?.lines() {
        let Some((i, r)) = line.split_once(';') else {
            continue;
        };
        let pair = (i.to_owned(), r.to_owned());
        if r.chars().any(|digit| digit != '0') && !spis.contains(&pair) {
            spis.push(pair);
        }
    }
    let log = fs::read_to_string(keys_file(folder)).unwrap_or_default();
    let mut table = String::new();
    for ((i, r), keys) in spis.iter().zip(keys(&log)) {
        let (encryption, integrity) = names(&keys).with_context(|| format!("keys of no known suite: {i}"))?;
        let key = |name: &str| keys.get(name).map_or("", String::as_str);
        table.push_str(&format!(
            "{i},{r},{},{},\"{encryption}\",{},{},\"{integrity}\"\n",
            key("ei"),
            key("er"),
            key("ai"),
            key("ar")
        ));
    }
    fs::write(folder.join("ikev2_decryption_table"), table)?;
    let fields = [
        "isakmp.ispi",
        "isakmp.rspi",
        "isakmp.exchangetype",
        "isakmp.flag_r",
        "isakmp.messageid",
        "isakmp.typepayload",
        "isakmp.notify.msgtype",
        "_ws.malformed",
        "_ws.expert.message",
    ];
    tshark(file, folder, &fields)?.lines().map(message).collect()
}

/// `isakmp.flag_r` is a word or a digit, `isakmp.messageid` hexadecimal.
fn message(line: &str) -> Result<Message> {
    let fields: Vec<&str> = line.split(';').collect();
    let [
        i,
        r,
        exchange,
        response,
        id,
        payloads,
        notifies,
        malformed,
        expert @ ..,
    ] = fields.as_slice()
    else {
        anyhow::bail!("tshark's line is another one: {line}");
    };
    let id = id.trim_start_matches("0x");
    Ok(Message {
        spis: ((*i).to_owned(), (*r).to_owned()),
        exchange: exchange.parse().with_context(|| line.to_owned())?,
        response: matches!(*response, "1" | "True"),
        id: u32::from_str_radix(id, 16).with_context(|| line.to_owned())?,
        payloads: payloads
            .split(',')
            .filter_map(|n| n.parse().ok())
            .filter(|kind| ![PROPOSAL, TRANSFORM].contains(kind))
            .collect(),
        notifies: notifies.split(',').filter_map(|n| n.parse().ok()).collect(),
        complaints: [&[*malformed], expert].concat().join(""),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_charon_writes_them() {
        let log = "16[IKE] natd_chunk => 2 bytes @ 0x7f\n16[IKE]    0: C6 31   .1\n\
                   16[IKE] Sk_ei secret => 20 bytes @ 0x7f\n\
                   16[IKE]    0: 00 01 02 03 04 05 06 07 08 09 0A 0B 0C 0D 0E 0F  ................\n\
                   16[IKE]   16: 10 11 12 13                                      ....\n\
                   16[IKE] Sk_er secret => 1 bytes @ 0x7f\n16[IKE]    0: FF   .\n\
                   12[IKE] Sk_ei secret => 1 bytes @ 0x7f\n12[IKE]    0: 07   .\n";
        let sets = keys(log);
        let key = |at: usize, name: &str| sets[at].get(name).map(String::as_str);
        assert_eq!(sets.len(), 2);
        assert_eq!(key(0, "ei"), Some("000102030405060708090A0B0C0D0E0F10111213"));
        assert_eq!(
            (key(0, "er"), key(1, "ei"), key(1, "er")),
            (Some("FF"), Some("07"), None)
        );
    }

    #[test]
    fn a_line_of_tshark_is_a_message() {
        let read = message("c6;0c;36;0;0x0000000a;46,41,33,2,3,3,40;16393;;").expect("a message");
        let expected = Message {
            spis: ("c6".to_owned(), "0c".to_owned()),
            exchange: 36,
            response: false,
            id: 10,
            payloads: vec![46, 41, 33, 40],
            notifies: vec![16393],
            complaints: String::new(),
        };
        assert_eq!(read, expected);
        assert_eq!(
            message("c6;0c;37;1;0x00000001;46;;malformed;Bad; worse")
                .expect("a message")
                .complaints,
            "malformedBad worse"
        );
        assert!(message("c6;0c").is_err());
    }
}
