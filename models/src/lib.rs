//! The model files of the GPU machine: which there should be, whether those in a directory are whole
//! and of the right kind, and tiny ones of random weights that the real engines load.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = std::path::Path::new("models/tiny");
//! wopr_models::tiny::write_all(dir)?;
//! let report = wopr_models::verify(dir, wopr_models::Set::Tiny)?;
//! assert!(report.is_well());
//! # Ok(())
//! # }
//! ```

mod bytes;
pub mod ggml;
pub mod gguf;
mod manifest;
pub mod tiny;
mod verify;

pub use manifest::{Format, Manifest, Model, Set};
pub use verify::{Finding, Report, VerifyError, verify};
