//! Algorithms and secrets for IKE and the slow path.
