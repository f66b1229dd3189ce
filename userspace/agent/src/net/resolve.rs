//! Names of peers are looked up as everything on this host looks them up (getaddrinfo: hosts file, DNS, and what else nsswitch.conf
//! says), beside the event loop.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

/// Look-ups under way at the same time. Each takes a thread for as long as the name servers let it wait.
const AT_ONCE: usize = 8;
/// Addresses of a name that are used.
const ADDRESSES_MAX: usize = 8;

/// What a name leads to, each address once and in the order of the resolver, or why it leads nowhere.
pub type Answer = (String, Result<Vec<IpAddr>, String>);

/// Looks names up.
pub struct Resolver {
    done: mpsc::UnboundedSender<Answer>,
    turns: Arc<Semaphore>,
}

impl Resolver {
    /// Answers go to `done`.
    pub fn new(done: mpsc::UnboundedSender<Answer>) -> Self {
        Self {
            done,
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Looks a name up; there is one answer to each question.
    pub fn ask(&self, name: String) {
        let (done, turns) = (self.done.clone(), self.turns.clone());
        tokio::spawn(async move {
            // The semaphore is never closed.
            let _turn = turns.acquire().await;
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            let found = found.map_err(|error| error.to_string()).and_then(|found| {
                let found = found.map(|at| at.ip().to_canonical()).collect::<Vec<_>>();
                usable(&found)
            });
            // Whoever stops asks nobody any more.
            let _ = done.send((name, found));
        });
    }
}

/// Addresses that a peer can be at.
fn usable(found: &[IpAddr]) -> Result<Vec<IpAddr>, String> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found {
        let odd = address.is_unspecified() || address.is_multicast() || address.is_loopback();
        if !odd && !addresses.contains(address) && addresses.len() < ADDRESSES_MAX {
            addresses.push(*address);
        }
    }
    match (addresses.is_empty(), found.first()) {
        (false, _) => Ok(addresses),
        (true, None) => Err("it has no address".to_owned()),
        (true, Some(first)) => Err(format!("it leads to {first}, where no peer can be")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_no_peer_can_be_at_are_left_out() {
        let of = |texts: &[&str]| {
            let found = texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
            usable(&found).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let both = ["203.0.113.7", "2001:db8::7", "203.0.113.7"];
        assert_eq!(of(&both).unwrap(), both[..2]);
        assert_eq!(of(&["127.0.0.1", "203.0.113.7"]).unwrap(), ["203.0.113.7"]);
        assert!(of(&["127.0.0.1"]).unwrap_err().contains("127.0.0.1"));
        assert!(of(&[]).unwrap_err().contains("no address"));
        let many: Vec<String> = (0..40).map(|n| format!("203.0.113.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(of(&many).unwrap().len(), ADDRESSES_MAX);
    }

    #[tokio::test]
    async fn every_question_has_one_answer() {
        let (done, mut answers) = mpsc::unbounded_channel();
        let resolver = Resolver::new(done);
        // RFC 6761 6.3 and 6.4: the one leads to loopback addresses, the other nowhere, on every host.
        for name in ["localhost", "nobody.invalid"] {
            for _ in 0..AT_ONCE {
                resolver.ask(name.to_owned());
            }
        }
        for _ in 0..2 * AT_ONCE {
            let (name, found) = answers.recv().await.unwrap();
            let why = found.unwrap_err();
            match name.as_str() {
                "localhost" => assert!(why.contains("where no peer can be"), "{why}"),
                _ => assert!(!why.is_empty() && name == "nobody.invalid"),
            }
        }
        assert!(answers.try_recv().is_err());
    }
}
