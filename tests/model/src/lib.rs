//! stateright models of leases, ceilings and takeover on the product's decision code.
