//! The two machines: up, healthy, seeded and reachable.
