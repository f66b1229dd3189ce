//! Key exchanges beside the engine: what takes long is asked for, and the input that needs it goes on when it has come.
//!
//! Nothing has happened before: a message that waits is not answered, a response that waits leaves its request outstanding, a task
//! stays in its queue. So a member that takes over asks for everything anew, by the peer's repetition or its own.

use crate::ike_sa::IkeSa;
use crate::outbox::Context;
use crypto::{CryptoError, DhGroup, DhWork, DhWorked, Random};
use ike_wire::{Header, PayloadType};
use model::{IkeSpi, SecretBytes};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

/// First messages that wait for their key exchange: from here on further ones need a cookie, so that nobody makes us compute for
/// an address that is not its own.
const FIRST_COOKIES: usize = 64;
/// And from here on they are dropped.
const FIRST_MAX: usize = 1024;

/// Key exchanges that the engine wants to have computed. No `Debug`: it may hold private keys.
pub struct ComputeRequest {
    /// Our SPI of the IKE SA that waits; `None`: a first message does.
    pub ike_spi: Option<IkeSpi>,
    /// Names this request.
    pub token: u64,
    work: Vec<DhWork>,
}

/// What came of a [`ComputeRequest`]. No `Debug`: it holds secrets.
pub struct Computed {
    ike_spi: Option<IkeSpi>,
    token: u64,
    /// `None`: nobody had the time.
    done: Option<Vec<Done>>,
}

type Done = (DhWork, Result<DhWorked, CryptoError>);

impl ComputeRequest {
    /// Computes it: tens of microseconds to several milliseconds.
    pub fn run(self, random: Random<'_>) -> Computed {
        let done = self.work.into_iter().map(|work| {
            let result = work.run(&mut *random);
            (work, result)
        });
        Computed {
            ike_spi: self.ike_spi,
            token: self.token,
            done: Some(done.collect()),
        }
    }

    /// Nobody has the time for it: what waits is dropped, as if its message had been lost.
    pub fn refuse(self) -> Computed {
        Computed {
            ike_spi: self.ike_spi,
            token: self.token,
            done: None,
        }
    }

    /// Whether all of it takes tens of microseconds.
    pub fn is_light(&self) -> bool {
        self.work.iter().all(DhWork::is_light)
    }
}

/// What an IKE SA has asked for, and what is to be done then.
pub(crate) struct Computing {
    pub token: u64,
    pub then: Then,
}

pub(crate) enum Then {
    /// The IKE SA's first message is sent.
    Begin,
    /// The next task is started.
    Start,
    /// An answer to the first message, not protected, is used.
    Init(Vec<u8>),
    /// An authentic message is handled.
    Inner(Box<Inner>),
}

/// An authentic message, decrypted. No `Debug`: it holds what was protected.
pub(crate) struct Inner {
    pub header: Header,
    pub first: PayloadType,
    pub octets: Vec<u8>,
    /// Of IKE_INTERMEDIATE: SHA-256 of the datagram, or of the first fragment.
    pub digest: Option<[u8; 32]>,
    pub from: Option<(SocketAddr, SocketAddr)>,
    pub path_before: Option<crate::ike_sa::Path>,
}

/// A first message that waits.
pub(crate) struct First {
    pub bytes: Vec<u8>,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    spi_i: IkeSpi,
}

/// The engine's key exchanges.
#[derive(Default)]
pub(crate) struct Exchanges {
    /// They are computed elsewhere.
    pub beside: bool,
    /// Computed for the input that is handled.
    done: Vec<Done>,
    /// What the input at hand needs before anything can happen.
    wanted: Vec<DhWork>,
    first: HashMap<u64, First>,
    waiting: HashSet<(IkeSpi, SocketAddr)>,
    /// How many the engine has computed itself although it is not to.
    pub here: u64,
}

impl Exchanges {
    /// First messages that wait.
    pub fn firsts(&self) -> usize {
        self.first.len()
    }

    /// Whether first messages need a cookie for the sake of key exchanges.
    pub fn is_busy(&self) -> bool {
        self.first.len() >= FIRST_COOKIES
    }

    pub fn is_full(&self) -> bool {
        self.first.len() >= FIRST_MAX
    }

    /// Whether this first message waits already.
    pub fn is_waiting(&self, spi_i: IkeSpi, remote: SocketAddr) -> bool {
        self.waiting.contains(&(spi_i, remote))
    }

    /// Forgets all first messages that wait: their senders repeat them.
    pub fn forget_first(&mut self) {
        self.first.clear();
        self.waiting.clear();
    }

    fn take_first(&mut self, token: u64) -> Option<First> {
        let first = self.first.remove(&token)?;
        self.waiting.remove(&(first.spi_i, first.remote));
        Some(first)
    }

    /// Whether something has to be computed before the input at hand can go on.
    pub fn is_wanting(&self) -> bool {
        !self.wanted.is_empty()
    }

    fn find(&mut self, is: impl Fn(&DhWork) -> bool) -> Option<Result<DhWorked, CryptoError>> {
        let at = self.done.iter().position(|(work, _)| is(work))?;
        Some(self.done.swap_remove(at).1)
    }

    /// Whether a private key for this method is there, or made at once.
    pub fn has_key(&self, group: DhGroup) -> bool {
        let is = |work: &DhWork| matches!(work, DhWork::Generate(of) if *of == group);
        !self.beside || self.done.iter().any(|(work, _)| is(work))
    }
}

impl Context<'_> {
    /// Computes at once what was not asked for in time, or is not to be asked for.
    fn here(&mut self, work: &DhWork) -> Result<DhWorked, CryptoError> {
        self.exchanges.here += u64::from(self.exchanges.beside);
        work.run(&mut |out| self.around.random(out))
    }

    /// A private key and its public value.
    pub fn generate(&mut self, group: DhGroup) -> Result<DhWorked, CryptoError> {
        let is = |work: &DhWork| matches!(work, DhWork::Generate(of) if *of == group);
        match self.exchanges.find(is) {
            Some(done) => done,
            None => self.here(&DhWork::Generate(group)),
        }
    }

    /// The public value of a private key.
    pub fn public(&mut self, group: DhGroup, private: &SecretBytes) -> Result<Vec<u8>, CryptoError> {
        let same = |key: &SecretBytes| crypto::ct_eq(key.expose(), private.expose());
        let is = |work: &DhWork| matches!(work, DhWork::Public(of, key) if *of == group && same(key));
        let worked = match self.exchanges.find(is) {
            Some(done) => done,
            None => self.here(&DhWork::Public(group, private.clone())),
        };
        Ok(worked?.public)
    }

    /// The initiator's shared secret.
    pub fn agree(
        &mut self,
        group: DhGroup,
        private: &SecretBytes,
        peer: &[u8],
    ) -> Result<SecretBytes, CryptoError> {
        let same = |key: &SecretBytes| crypto::ct_eq(key.expose(), private.expose());
        let is = |work: &DhWork| matches!(work, DhWork::Agree(of, key, public) if *of == group && public == peer && same(key));
        let worked = match self.exchanges.find(is) {
            Some(done) => done,
            None => self.here(&DhWork::Agree(group, private.clone(), peer.to_vec())),
        };
        Ok(worked?.secret)
    }

    /// The responder's shared secret and public value. `None`: they are asked for, and the message waits; nothing may have
    /// happened before.
    pub fn respond(&mut self, group: DhGroup, peer: &[u8]) -> Option<Result<DhWorked, CryptoError>> {
        let is =
            |work: &DhWork| matches!(work, DhWork::Respond(of, public) if *of == group && public == peer);
        if let Some(done) = self.exchanges.find(is) {
            return Some(done);
        }
        let work = DhWork::Respond(group, peer.to_vec());
        if self.exchanges.beside {
            self.exchanges.wanted.push(work);
            return None;
        }
        Some(self.here(&work))
    }

    /// What the message at hand has come to want, to be given to [`wait`] or [`wait_first`].
    pub fn take_wanted(&mut self) -> Vec<DhWork> {
        std::mem::take(&mut self.exchanges.wanted)
    }
}

/// Has something computed for an IKE SA; `then` follows.
pub(crate) fn wait(sa: &mut IkeSa, ctx: &mut Context<'_>, work: Vec<DhWork>, then: Then) {
    let token = ctx.random_u64();
    sa.computing.push(Computing { token, then });
    ctx.out.computes.push(ComputeRequest {
        ike_spi: Some(sa.spi),
        token,
        work,
    });
}

/// Has something computed for a first message.
pub(crate) fn wait_first(
    ctx: &mut Context<'_>,
    work: Vec<DhWork>,
    spi_i: IkeSpi,
    bytes: &[u8],
    local: SocketAddr,
    remote: SocketAddr,
) {
    let token = ctx.random_u64();
    let first = First {
        bytes: bytes.to_vec(),
        local,
        remote,
        spi_i,
    };
    ctx.exchanges.waiting.insert((spi_i, remote));
    ctx.exchanges.first.insert(token, first);
    ctx.out.computes.push(ComputeRequest {
        ike_spi: None,
        token,
        work,
    });
}

/// Who goes on, with what was computed.
pub(crate) enum GoesOn {
    First(First),
    Sa(IkeSpi, u64),
    Nobody,
}

/// Takes in what was computed. What waits goes on in this same input, or not at all.
pub(crate) fn take(ctx: &mut Context<'_>, computed: Computed) -> GoesOn {
    let refused = computed.done.is_none();
    ctx.exchanges.done = computed.done.unwrap_or_default();
    match computed.ike_spi {
        Some(spi) => GoesOn::Sa(spi, computed.token),
        None => match ctx.exchanges.take_first(computed.token) {
            Some(first) if !refused => GoesOn::First(first),
            _ => GoesOn::Nobody,
        },
    }
}

impl Exchanges {
    /// The input is over: what was not used is wiped.
    pub fn clear(&mut self) {
        self.done.clear();
        self.wanted.clear();
    }

    /// Whether anything was computed for the input at hand.
    pub fn has_any(&self) -> bool {
        !self.done.is_empty()
    }
}

impl IkeSa {
    /// Takes out what waits under this name.
    pub fn take_computing(&mut self, token: u64) -> Option<Then> {
        let at = self.computing.iter().position(|c| c.token == token)?;
        Some(self.computing.swap_remove(at).then)
    }

    /// Whether the next task waits for a private key.
    pub fn awaits_key(&self) -> bool {
        self.computing.iter().any(|c| matches!(c.then, Then::Start))
    }

    /// Whether a message like this one waits: a repetition is not looked at.
    pub fn awaits_message(&self, header: &Header) -> bool {
        let same = |inner: &Inner| {
            inner.header.message_id == header.message_id
                && inner.header.flags.response == header.flags.response
                && inner.header.exchange == header.exchange
        };
        self.computing
            .iter()
            .any(|c| matches!(&c.then, Then::Inner(inner) if same(inner)))
    }

    /// Whether an answer to the first message waits.
    pub fn awaits_init(&self) -> bool {
        self.computing.iter().any(|c| matches!(c.then, Then::Init(_)))
    }
}
