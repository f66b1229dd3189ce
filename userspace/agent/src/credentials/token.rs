//! Private keys that never leave a token (PKCS #11). The module that talks to it is code of somebody else: it is loaded once for the
//! life of this process, and only where a connection names it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aws_lc_rs::digest;
use crypto::SignatureScheme;
use crypto::signature::ecdsa_der;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use ike::auth::certificate::KeyKind;
use zeroize::Zeroizing;

use super::uri::KeyUri;
use crate::config::TokenKeyConfig;

/// Modules that are loaded. PKCS #11 is initialised once for a process; a module stays until it ends.
static MODULES: Mutex<BTreeMap<PathBuf, Pkcs11>> = Mutex::new(BTreeMap::new());

/// A private key in a token. No `Debug`.
pub struct TokenKey {
    kind: KeyKind,
    module: PathBuf,
    uri: KeyUri,
    pin: AuthPin,
    state: Mutex<State>,
}

enum State {
    Open(Session, ObjectHandle),
    /// The next signature begins with a new session.
    Lost,
    /// The token did not take the PIN. It is not asked again with it: after a few times it would lock itself.
    PinRefused,
}

/// Why a session cannot be had.
enum NoSession {
    Pin(anyhow::Error),
    Other(anyhow::Error),
}

impl TokenKey {
    /// Logs in and looks for the key. `kind`: what the certificate says that it is.
    ///
    /// # Errors
    /// The module, the token or the key is not there, or the PIN is wrong.
    pub fn open(config: &TokenKeyConfig, kind: KeyKind) -> Result<Self> {
        let pin = read_pin(&config.pin_file)?;
        let (session, key) = match connect(&config.module, &config.uri, &pin) {
            Ok(open) => open,
            Err(NoSession::Pin(error)) => {
                return Err(error.context(format!("the PIN in {}", config.pin_file.display())));
            }
            Err(NoSession::Other(error)) => return Err(error),
        };
        Ok(Self {
            kind,
            module: config.module.clone(),
            uri: config.uri.clone(),
            pin,
            state: Mutex::new(State::Open(session, key)),
        })
    }

    /// What the key is.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// What a token does that is taken away.
    #[cfg(test)]
    pub(super) fn log_out(&self) {
        if let State::Open(session, _) = &*self.state.lock().unwrap() {
            session.logout().unwrap();
        }
    }

    /// Signs; ECDSA signatures are DER. A token that was away is looked for once more.
    ///
    /// # Errors
    /// The scheme is not one of this key, or the token does not sign.
    pub fn sign(&self, scheme: SignatureScheme, octets: &[u8]) -> Result<Vec<u8>, String> {
        let (mechanism, hash) = mechanism(self.kind, scheme).ok_or_else(|| {
            let kind = self.kind.name();
            format!("{} cannot be made with a key of {kind}", scheme.name())
        })?;
        let digest = hash.map(|hash| digest::digest(hash, octets));
        let data = digest.as_ref().map_or(octets, |digest| digest.as_ref());
        let refused = |error: Error| {
            format!(
                "the token {} does not sign {}: {}",
                self.uri.token_text(),
                scheme.name(),
                say(&error)
            )
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Open(session, key) = &*state {
            match session.sign(&mechanism, *key, data) {
                Ok(signature) => return Ok(finish(self.kind, signature)),
                Err(error) if is_lost(&error) => *state = State::Lost,
                Err(error) => return Err(refused(error)),
            }
        }
        if matches!(*state, State::PinRefused) {
            return Err(format!(
                "the token {} refused its PIN before; correct pin_file and reload",
                self.uri.token_text()
            ));
        }
        let (session, key) = match connect(&self.module, &self.uri, &self.pin) {
            Ok(open) => open,
            Err(NoSession::Pin(error)) => {
                *state = State::PinRefused;
                return Err(format!("{error:#}"));
            }
            Err(NoSession::Other(error)) => return Err(format!("{error:#}")),
        };
        let signature = session.sign(&mechanism, key, data);
        *state = State::Open(session, key);
        signature
            .map(|signature| finish(self.kind, signature))
            .map_err(refused)
    }
}

/// The mechanism, and what the token wants the digest of. ECDSA is signed over our digest: mechanisms with a hash are missing in many
/// tokens.
fn mechanism(
    kind: KeyKind,
    scheme: SignatureScheme,
) -> Option<(Mechanism<'static>, Option<&'static digest::Algorithm>)> {
    use SignatureScheme::*;
    let pss = |hash_alg, mgf, s_len: u64| PkcsPssParams {
        hash_alg,
        mgf,
        s_len: s_len.into(),
    };
    Some(match (kind, scheme) {
        (KeyKind::Rsa, RsaPssSha256) => {
            let parameters = pss(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, 32);
            (Mechanism::Sha256RsaPkcsPss(parameters), None)
        }
        (KeyKind::Rsa, RsaPssSha384) => {
            let parameters = pss(MechanismType::SHA384, PkcsMgfType::MGF1_SHA384, 48);
            (Mechanism::Sha384RsaPkcsPss(parameters), None)
        }
        (KeyKind::Rsa, RsaPssSha512) => {
            let parameters = pss(MechanismType::SHA512, PkcsMgfType::MGF1_SHA512, 64);
            (Mechanism::Sha512RsaPkcsPss(parameters), None)
        }
        (KeyKind::Rsa, RsaPkcs1Sha256) => (Mechanism::Sha256RsaPkcs, None),
        (KeyKind::Rsa, RsaPkcs1Sha384) => (Mechanism::Sha384RsaPkcs, None),
        (KeyKind::Rsa, RsaPkcs1Sha512) => (Mechanism::Sha512RsaPkcs, None),
        (KeyKind::EcdsaP256, EcdsaSha256) => (Mechanism::Ecdsa, Some(&digest::SHA256)),
        (KeyKind::EcdsaP384, EcdsaSha384) => (Mechanism::Ecdsa, Some(&digest::SHA384)),
        (KeyKind::EcdsaP521, EcdsaSha512) => (Mechanism::Ecdsa, Some(&digest::SHA512)),
        (KeyKind::Ed25519, Ed25519) => {
            let parameters = EddsaParams::new(EddsaSignatureScheme::Pure);
            (Mechanism::Eddsa(parameters), None)
        }
        _ => return None,
    })
}

fn finish(kind: KeyKind, signature: Vec<u8>) -> Vec<u8> {
    match kind {
        // Tokens give both numbers, one behind the other.
        KeyKind::EcdsaP256 | KeyKind::EcdsaP384 | KeyKind::EcdsaP521 => ecdsa_der(&signature),
        KeyKind::Rsa | KeyKind::Ed25519 => signature,
    }
}

fn is_lost(error: &Error) -> bool {
    use RvError::*;
    matches!(
        error,
        Error::Pkcs11(
            SessionHandleInvalid
                | SessionClosed
                | UserNotLoggedIn
                | DeviceRemoved
                | DeviceError
                | TokenNotPresent
                | KeyHandleInvalid
                | ObjectHandleInvalid
                | CryptokiNotInitialized,
            _
        )
    )
}

/// Without the words that are for programmers.
fn say(error: &Error) -> String {
    match error {
        Error::Pkcs11(RvError::MechanismInvalid | RvError::MechanismParamInvalid, _) => {
            "it does not know this algorithm (with RSA, try rsa_padding = \"pkcs1\")".to_owned()
        }
        Error::Pkcs11(value, function) => format!("{value:?} from {function:?}"),
        other => other.to_string(),
    }
}

fn read_pin(path: &Path) -> Result<AuthPin> {
    let text = Zeroizing::new(
        std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the PIN from {}", path.display()))?,
    );
    let pin = text.trim_end_matches(['\r', '\n']);
    ensure!(!pin.is_empty(), "{} has no PIN in it", path.display());
    Ok(AuthPin::new(pin.into()))
}

fn module(path: &Path) -> Result<Pkcs11> {
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = modules.get(path) {
        return Ok(module.clone());
    }
    let whole = |error: Error| {
        anyhow!(
            "cannot use the PKCS #11 module {}: {}; install it, or correct pkcs11_module",
            path.display(),
            say(&error)
        )
    };
    let module = Pkcs11::new(path).map_err(whole)?;
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => return Err(whole(error)),
    }
    modules.insert(path.to_owned(), module.clone());
    Ok(module)
}

fn connect(path: &Path, uri: &KeyUri, pin: &AuthPin) -> Result<(Session, ObjectHandle), NoSession> {
    let other = |error: anyhow::Error| NoSession::Other(error);
    let module = module(path).map_err(other)?;
    let slot = find_token(&module, uri).map_err(other)?;
    let failed = |what: &str, error: &Error| {
        NoSession::Other(anyhow!("the token {} {what}: {}", uri.token_text(), say(error)))
    };
    let session = module
        .open_ro_session(slot)
        .map_err(|error| failed("opens no session", &error))?;
    match session.login(UserType::User, Some(pin)) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
        Err(Error::Pkcs11(
            RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange | RvError::PinExpired,
            _,
        )) => {
            return Err(NoSession::Pin(anyhow!(
                "it is not that of the token {}; correct it before you try again: a token locks itself after a few wrong PINs",
                uri.token_text()
            )));
        }
        Err(Error::Pkcs11(RvError::PinLocked, _)) => {
            return Err(NoSession::Pin(anyhow!(
                "the token {} is locked after too many wrong PINs; have its security officer set another one",
                uri.token_text()
            )));
        }
        Err(error) => return Err(failed("does not let us in", &error)),
    }
    let key = find_key(&session, uri).map_err(other)?;
    Ok((session, key))
}

fn find_token(module: &Pkcs11, uri: &KeyUri) -> Result<Slot> {
    let slots = module
        .get_slots_with_initialized_token()
        .map_err(|error| anyhow!("cannot list tokens: {}", say(&error)))?;
    let tokens: Vec<_> = slots
        .into_iter()
        .filter_map(|slot| Some((slot, module.get_token_info(slot).ok()?)))
        .collect();
    let matching: Vec<_> = tokens
        .iter()
        .filter(|(_, token)| {
            uri.token.as_ref().is_none_or(|label| token.label() == label)
                && uri
                    .serial
                    .as_ref()
                    .is_none_or(|serial| token.serial_number() == serial)
        })
        .collect();
    match matching.as_slice() {
        [(slot, _)] => Ok(*slot),
        [] => {
            let there: Vec<_> = tokens.iter().map(|(_, t)| format!("'{}'", t.label())).collect();
            let there = match there.is_empty() {
                true => "there are none".to_owned(),
                false => format!("there are {}", there.join(", ")),
            };
            bail!(
                "there is no token {} ({there}); plug it in, or correct token= in key",
                uri.token_text()
            )
        }
        _ => bail!(
            "there are several tokens {}; add serial=NUMBER to key",
            uri.token_text()
        ),
    }
}

fn find_key(session: &Session, uri: &KeyUri) -> Result<ObjectHandle> {
    let failed = |error: Error| {
        anyhow!(
            "cannot look for keys in the token {}: {}",
            uri.token_text(),
            say(&error)
        )
    };
    let private = Attribute::Class(ObjectClass::PRIVATE_KEY);
    let mut wanted = vec![private.clone()];
    wanted.extend(
        uri.object
            .iter()
            .map(|label| Attribute::Label(label.clone().into_bytes())),
    );
    wanted.extend(uri.id.iter().map(|id| Attribute::Id(id.clone())));
    let found = session.find_objects(&wanted).map_err(failed)?;
    match found.as_slice() {
        [key] => Ok(*key),
        [] => {
            let mut labels = Vec::new();
            for key in session.find_objects(&[private]).map_err(failed)? {
                let attributes = session
                    .get_attributes(key, &[AttributeType::Label])
                    .map_err(failed)?;
                labels.extend(attributes.iter().filter_map(|attribute| match attribute {
                    Attribute::Label(label) => Some(format!("'{}'", String::from_utf8_lossy(label))),
                    _ => None,
                }));
            }
            let there = match labels.is_empty() {
                true => "it has none".to_owned(),
                false => format!("it has {}", labels.join(", ")),
            };
            bail!(
                "there is no private key {} in the token {} ({there}); correct object= or id= in key",
                uri.key_text(),
                uri.token_text()
            )
        }
        _ => bail!(
            "there are several private keys {} in the token {}; add id=%.. to key",
            uri.key_text(),
            uri.token_text()
        ),
    }
}
