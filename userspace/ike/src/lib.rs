//! Sans-IO IKEv2 engine (RFC 7296).
