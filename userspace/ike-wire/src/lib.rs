//! IKEv2 codec: bytes to payloads and back; no state.
