//! `models/manifest.toml`, as it was when this was built.

use std::collections::BTreeMap;

use serde::Deserialize;

const TEXT: &str = include_str!("../manifest.toml");

/// Which files: those of production, or the tiny ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// Real weights.
    Production,
    /// Random weights, made here.
    Tiny,
}

/// How a model comes to its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A GGUF file, as llama.cpp reads.
    Gguf,
    /// whisper.cpp's older container.
    Ggml,
    /// Fetched by the engine itself: no file to look at.
    Fetched,
}

/// A model that a service runs on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The service, as `llama-cpp`.
    pub service: String,
    /// Name of the file in the directory of models.
    pub file: Option<String>,
    /// Its container.
    pub format: Format,
    /// As GGUF's `general.architecture` has it.
    pub architecture: String,
    /// As llama.cpp names it, `Q4_K_M`.
    pub quantisation: Option<String>,
    /// What its engine needs on a card, in MiB; 0 for what runs on the processor.
    pub vram_mib: u32,
    /// Digest of the file, for those made here.
    pub sha256: Option<String>,
}

/// The manifest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    production: BTreeMap<String, Model>,
    tiny: BTreeMap<String, Model>,
}

impl Manifest {
    /// Reads it.
    ///
    /// # Errors
    /// A manifest that was broken when this was built; a test keeps that from happening.
    pub fn load() -> Result<Self, toml::de::Error> {
        toml::from_str(TEXT)
    }

    /// The models of a set.
    pub fn models(&self, set: Set) -> impl Iterator<Item = &Model> {
        match set {
            Set::Production => self.production.values(),
            Set::Tiny => self.tiny.values(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_names_the_files_of_production() {
        let manifest = Manifest::load().unwrap();
        let files: Vec<_> = manifest
            .models(Set::Production)
            .filter_map(|model| model.file.as_deref())
            .collect();
        assert_eq!(
            files,
            [
                "Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf",
                "qwen2-0_5b-instruct-q8_0.gguf"
            ]
        );
    }

    #[test]
    fn every_file_has_a_format_that_can_be_looked_at() {
        let manifest = Manifest::load().unwrap();
        for model in manifest.models(Set::Production).chain(manifest.models(Set::Tiny)) {
            assert_eq!(model.file.is_none(), model.format == Format::Fetched, "{model:?}");
        }
    }
}
