//! SAD, SPD, SPI allocation, lifetimes; emits MapPlan.
