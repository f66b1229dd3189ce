//! IKEv2 codec: bytes to payloads and back; no state (RFC 7296 3).
//!
//! Two layers. A *view* ([`MessageView`], [`PayloadChain`], [`RawPayload`]) checks lengths once and borrows. A *representation*
//! ([`Message`], [`Payload`] and the types in [`payload`]) owns its data and says what it means; it can be encoded again.
//! Work and allocation are linear in the packet's length, and nothing here panics on any input.
//!
//! Protected messages: [`Message::parse`] finds the SK or SKF payload and leaves decryption to the caller:
//! [`Protected::prefix`] is the associated data, [`Protected::sealed`] is IV, ciphertext and ICV, and the plaintext goes to
//! [`parse_chain`]. To send, [`encode_chain`] makes the plaintext and [`encode_sk_prefix`] the octets before the IV.

pub mod encode;
pub mod error;
pub mod header;
pub mod message;
pub mod payload;
mod reader;
pub mod registry;
pub mod view;

pub use encode::{EncodeError, encode_chain, encode_message, encode_sk_prefix, encode_skf_prefix};
pub use error::WireError;
pub use header::{Flags, HEADER_LEN, Header};
pub use message::{Message, PayloadList, Protected, parse_chain};
pub use payload::{
    Attribute, AttributeValue, Authentication, Certificate, CertificateRequest, ConfigAttribute,
    Configuration, CounterDelta, Delete, Eap, Gateway, Identification, Identity, KeyExchange, MessageIdSync,
    Notify, Payload, Proposal, SecurityAssociation, TrafficSelectors, Transform,
};
pub use registry::{
    AuthMethod, CertEncoding, ConfigAttributeType, ConfigType, DhTransform, EapCode, EapType,
    EncryptionTransform, EsnTransform, ExchangeType, IdType, IntegrityTransform, NotifyType, PayloadType,
    PrfTransform, ProtocolId, SignatureHash, TransformType, TsType,
};
pub use view::{Fragment, MessageView, PayloadChain, RawPayload};
