//! Whether a directory holds the models of a set, whole and of the right kind.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::bytes::HeaderError;
use crate::{Format, Manifest, Model, Set, ggml, gguf};

/// Why a directory could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It is not there, or not a directory.
    #[error("{0} is not a directory; give the one that holds the model files")]
    NoDirectory(PathBuf),
    /// The manifest that was built in.
    #[error("models/manifest.toml is broken: {0}")]
    Manifest(#[from] toml::de::Error),
}

/// What was found of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It is whole, and what it should be.
    Well {
        /// Its architecture.
        architecture: String,
        /// Its quantisation, where the format says.
        quantisation: Option<String>,
        /// Number of tensors.
        tensors: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// The engine fetches it by itself.
    Fetched,
    /// There is no such file.
    Missing,
    /// The file is of another format.
    NotAModel {
        /// What it starts with, or ought to.
        reason: String,
    },
    /// The file is shorter than what it says it holds.
    Truncated {
        /// How it shows.
        reason: String,
    },
    /// It holds another model than it should.
    WrongKind {
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// It could not be read, or its header makes no sense.
    Unreadable {
        /// Why.
        reason: String,
    },
}

/// What was found in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The directory.
    pub directory: PathBuf,
    /// Each model and what was found.
    pub findings: Vec<(Model, Finding)>,
}

impl Report {
    /// Whether every model is there, whole and right.
    pub fn is_well(&self) -> bool {
        self.findings.iter().all(|(_, finding)| finding.is_well())
    }

    /// What is wrong, a line each.
    pub fn complaints(&self) -> Vec<String> {
        let wrong = self.findings.iter().filter(|(_, finding)| !finding.is_well());
        wrong.map(|(model, finding)| line(model, finding)).collect()
    }
}

impl Finding {
    fn is_well(&self) -> bool {
        matches!(self, Self::Well { .. } | Self::Fetched)
    }
}

fn line(model: &Model, finding: &Finding) -> String {
    let file = model.file.as_deref().unwrap_or(&model.service);
    format!("{file}: {finding}")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (model, finding) in &self.findings {
            writeln!(f, "{}", line(model, finding))?;
        }
        Ok(())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Well {
                architecture,
                quantisation,
                tensors,
                bytes,
            } => {
                let quantisation = quantisation.as_deref().unwrap_or("mixed");
                write!(
                    f,
                    "ok: {architecture}, {quantisation}, {tensors} tensors, {bytes} bytes"
                )
            }
            Self::Fetched => f.write_str("ok: fetched by its engine at the first start"),
            Self::Missing => f.write_str("missing: download it into this directory, or take `models tiny`"),
            Self::NotAModel { reason } => write!(f, "not a model: {reason}; download it again"),
            Self::Truncated { reason } => write!(f, "truncated: {reason}; download it again"),
            Self::WrongKind { expected, found } => {
                write!(
                    f,
                    "the wrong model: expected {expected}, found {found}; was it renamed?"
                )
            }
            Self::Unreadable { reason } => write!(f, "unreadable: {reason}"),
        }
    }
}

/// Looks at every file of a set in `directory`.
///
/// # Errors
/// [`VerifyError`] when the directory itself is not there; what is wrong with a file is a finding.
pub fn verify(directory: &Path, set: Set) -> Result<Report, VerifyError> {
    if !directory.is_dir() {
        return Err(VerifyError::NoDirectory(directory.to_owned()));
    }
    let manifest = Manifest::load()?;
    let look = |model: &Model| (model.clone(), look_at(directory, model));
    Ok(Report {
        directory: directory.to_owned(),
        findings: manifest.models(set).map(look).collect(),
    })
}

fn look_at(directory: &Path, model: &Model) -> Finding {
    let Some(file) = &model.file else {
        return Finding::Fetched;
    };
    let path = directory.join(file);
    if !path.exists() {
        return Finding::Missing;
    }
    let found = match model.format {
        Format::Gguf => look_at_gguf(&path, model),
        Format::Ggml => look_at_ggml(&path, model),
        Format::Fetched => return Finding::Fetched,
    };
    found.unwrap_or_else(|error| match error {
        HeaderError::Magic { .. } => Finding::NotAModel {
            reason: error.to_string(),
        },
        HeaderError::Short { .. } => Finding::Truncated {
            reason: error.to_string(),
        },
        HeaderError::Io(_) | HeaderError::Value { .. } => Finding::Unreadable {
            reason: error.to_string(),
        },
    })
}

fn look_at_gguf(path: &Path, model: &Model) -> Result<Finding, HeaderError> {
    let header = gguf::Header::read(path)?;
    let kind = |architecture: Option<&str>, quantisation: Option<&str>| {
        format!(
            "{} in {}",
            architecture.unwrap_or("no architecture"),
            quantisation.unwrap_or("no quantisation")
        )
    };
    let architecture = header.architecture.as_deref();
    let expected = (Some(model.architecture.as_str()), model.quantisation.as_deref());
    if (architecture, header.quantisation.as_deref()) != expected {
        return Ok(Finding::WrongKind {
            expected: kind(expected.0, expected.1),
            found: kind(architecture, header.quantisation.as_deref()),
        });
    }
    if header.length < header.needed {
        let (length, needed) = (header.length, header.needed);
        let reason = format!("it has {length} bytes, and its tensors need {needed}");
        return Ok(Finding::Truncated { reason });
    }
    Ok(Finding::Well {
        architecture: model.architecture.clone(),
        quantisation: header.quantisation,
        tensors: header.tensors,
        bytes: header.length,
    })
}

fn look_at_ggml(path: &Path, model: &Model) -> Result<Finding, HeaderError> {
    let header = ggml::Header::read(path)?;
    Ok(Finding::Well {
        architecture: model.architecture.clone(),
        quantisation: None,
        tensors: header.tensors,
        bytes: header.length,
    })
}
