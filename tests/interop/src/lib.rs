//! Interop with strongSwan in network namespaces.
