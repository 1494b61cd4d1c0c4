//! Model manifest, verifier, and generator of tiny models that the real engines load.
