//! The header of a GGUF file, and how long the file has to be for the tensors that it names.
//!
//! Source: the format's own page in ggml (`docs/gguf.md`), and `ggml_type` in `ggml.h`.

use std::path::Path;

pub use crate::bytes::HeaderError;
use crate::bytes::Reader;

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
/// More dimensions than any engine knows.
const MOST_DIMENSIONS: u32 = 4;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Version of the format, 2 or 3.
    pub version: u32,
    /// `general.architecture`.
    pub architecture: Option<String>,
    /// `general.file_type`, as llama.cpp names it.
    pub quantisation: Option<String>,
    /// Number of tensors.
    pub tensors: u64,
    /// Bytes that the file has to have at least.
    pub needed: u64,
    /// Bytes that it has.
    pub length: u64,
}

impl Header {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// [`HeaderError`] with the place where it stops making sense.
    pub fn read(path: &Path) -> Result<Self, HeaderError> {
        let mut reader = Reader::open(path)?;
        reader.magic("GGUF", MAGIC)?;
        let version = reader.u32("the version")?;
        if !(2..=3).contains(&version) {
            let reason = "only 2 and 3 are known, in little-endian order";
            return Err(HeaderError::Value {
                what: "the version".into(),
                value: version.into(),
                reason,
            });
        }
        let tensors = reader.u64("the number of tensors")?;
        let pairs = reader.u64("the number of metadata pairs")?;
        // The smallest pair and the smallest tensor entry have more bytes than this.
        reader.claim(pairs.saturating_add(tensors).saturating_mul(12), "the metadata")?;
        let mut header = Self {
            version,
            architecture: None,
            quantisation: None,
            tensors,
            needed: 0,
            length: reader.length(),
        };
        let mut alignment = DEFAULT_ALIGNMENT;
        for _ in 0..pairs {
            let key = string(&mut reader, "the name of a metadata pair")?;
            match (key.as_str(), value(&mut reader, &key)?) {
                ("general.architecture", Value::Text(text)) => header.architecture = Some(text),
                ("general.file_type", Value::Number(kind)) => header.quantisation = Some(file_type(kind)),
                ("general.alignment", Value::Number(number)) if number > 0 => alignment = number,
                _ => {}
            }
        }
        let mut data = 0;
        for _ in 0..tensors {
            data = data.max(tensor_end(&mut reader)?);
        }
        let start = reader.position().next_multiple_of(alignment);
        header.needed = start.saturating_add(data);
        Ok(header)
    }
}

enum Value {
    Number(u64),
    Text(String),
    Other,
}

fn string(reader: &mut Reader, within: &str) -> Result<String, HeaderError> {
    let length = reader.u64(within)?;
    reader.text(length, within)
}

/// Bytes of a metadata value of a fixed size.
fn size_of(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn value(reader: &mut Reader, key: &str) -> Result<Value, HeaderError> {
    const STRING: u32 = 8;
    const ARRAY: u32 = 9;
    let unknown = |kind: u32| HeaderError::Value {
        what: format!("the type of {key}"),
        value: kind.into(),
        reason: "no such type of metadata is known",
    };
    match reader.u32(key)? {
        STRING => Ok(Value::Text(string(reader, key)?)),
        4 | 5 => Ok(Value::Number(reader.u32(key)?.into())),
        10 | 11 => Ok(Value::Number(reader.u64(key)?)),
        ARRAY => {
            let kind = reader.u32(key)?;
            let count = reader.u64(key)?;
            if let Some(size) = size_of(kind) {
                reader.skip(count.saturating_mul(size), key)?;
            } else if kind == STRING {
                reader.claim(count.saturating_mul(8), key)?;
                for _ in 0..count {
                    let length = reader.u64(key)?;
                    reader.skip(length, key)?;
                }
            } else {
                return Err(unknown(kind));
            }
            Ok(Value::Other)
        }
        kind => {
            reader.skip(size_of(kind).ok_or_else(|| unknown(kind))?, key)?;
            Ok(Value::Other)
        }
    }
}

/// Reads a tensor's entry; returns where its data ends, from the start of all data.
fn tensor_end(reader: &mut Reader) -> Result<u64, HeaderError> {
    let name = string(reader, "the name of a tensor")?;
    let dimensions = reader.u32(&name)?;
    if dimensions > MOST_DIMENSIONS {
        let what = format!("the number of dimensions of {name}");
        return Err(HeaderError::Value {
            what,
            value: dimensions.into(),
            reason: "at most four are known",
        });
    }
    let mut elements: u64 = 1;
    for _ in 0..dimensions {
        elements = elements.saturating_mul(reader.u64(&name)?);
    }
    let kind = reader.u32(&name)?;
    let offset = reader.u64(&name)?;
    let (block, bytes) = block_of(kind).ok_or_else(|| HeaderError::Value {
        what: format!("the type of {name}"),
        value: kind.into(),
        reason: "no such type of tensor is known",
    })?;
    Ok(offset.saturating_add(elements.div_ceil(block).saturating_mul(bytes)))
}

/// Elements and bytes of a block of a `ggml_type`.
fn block_of(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 | 26 => (1, 4),      // F32, I32
        1 | 25 | 30 => (1, 2), // F16, I16, BF16
        24 => (1, 1),          // I8
        27 | 28 => (1, 8),     // I64, F64
        2 | 20 => (32, 18),    // Q4_0, IQ4_NL
        3 => (32, 20),         // Q4_1
        6 => (32, 22),         // Q5_0
        7 => (32, 24),         // Q5_1
        8 => (32, 34),         // Q8_0
        9 => (32, 36),         // Q8_1
        10 => (256, 84),       // Q2_K
        11 | 21 => (256, 110), // Q3_K, IQ3_S
        12 => (256, 144),      // Q4_K
        13 => (256, 176),      // Q5_K
        14 => (256, 210),      // Q6_K
        15 => (256, 292),      // Q8_K
        16 | 35 => (256, 66),  // IQ2_XXS, TQ2_0
        17 => (256, 74),       // IQ2_XS
        18 => (256, 98),       // IQ3_XXS
        19 => (256, 50),       // IQ1_S
        22 => (256, 82),       // IQ2_S
        23 => (256, 136),      // IQ4_XS
        29 => (256, 56),       // IQ1_M
        34 => (256, 54),       // TQ1_0
        39 => (32, 17),        // MXFP4
        _ => return None,
    })
}

/// `llama_ftype`, in the names that model files carry.
fn file_type(kind: u64) -> String {
    let name = match kind {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4",
        other => return format!("file type {other}"),
    };
    name.to_owned()
}
