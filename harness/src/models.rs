//! The model files that the GPU stack is set to use, looked at before a machine boots on them: an
//! engine that cannot load its model only says so in its log, again and again.

use std::path::Path;

use wopr_machine::envfile::Settings;
use wopr_models::{ggml, gguf};

use crate::topology::TopologyError;

/// Looks at the files that `settings` name, in `directory`.
pub(crate) fn check(directory: &Path, settings: &Settings) -> Result<(), TopologyError> {
    for variable in ["LLAMA_MODEL_FILE", "EMBEDDINGS_MODEL_FILE"] {
        if let Some(file) = settings.get(variable) {
            check_file(&directory.join(file), variable, gguf_complaint)?;
        }
    }
    // The production engine takes a model's name here, and fetches it.
    if let Some(file) = settings
        .get("WHISPER_MODEL")
        .filter(|file| file.ends_with(".bin"))
    {
        check_file(&directory.join(file), "WHISPER_MODEL", ggml_complaint)?;
    }
    Ok(())
}

fn check_file(
    path: &Path,
    variable: &'static str,
    complaint: impl Fn(&Path) -> Option<String>,
) -> Result<(), TopologyError> {
    let reason = if path.is_file() {
        complaint(path)
    } else {
        Some("is not there; put it there, point WOPR_MODELS_DIR at the directory that has it, or make tiny models with `models tiny`".to_owned())
    };
    match reason {
        None => Ok(()),
        Some(reason) => Err(TopologyError::Model {
            path: path.to_owned(),
            variable,
            reason,
        }),
    }
}

fn gguf_complaint(path: &Path) -> Option<String> {
    match gguf::Header::read(path) {
        Err(error) => Some(format!("cannot be loaded: it {error}")),
        Ok(header) if header.length < header.needed => Some(format!(
            "is truncated: it has {} bytes, and its tensors need {}; download it again",
            header.length, header.needed
        )),
        Ok(_) => None,
    }
}

fn ggml_complaint(path: &Path) -> Option<String> {
    ggml::Header::read(path)
        .err()
        .map(|error| format!("cannot be loaded: it {error}"))
}
