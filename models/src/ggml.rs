//! whisper.cpp's model file: eleven numbers, mel filters, the vocabulary, and tensors one after
//! another to the very end of the file.
//!
//! Source: `whisper_model_load` in whisper.cpp.

use std::path::Path;

pub use crate::bytes::HeaderError;
use crate::bytes::Reader;

/// "ggml" read as a little-endian number.
const MAGIC: [u8; 4] = *b"lmgg";
const NUMBERS: usize = 11;
const MOST_DIMENSIONS: u32 = 4;

/// What a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Size of the vocabulary.
    pub vocabulary: u32,
    /// Number of tensors.
    pub tensors: u64,
    /// Bytes of the file.
    pub length: u64,
}

impl Header {
    /// Reads a file up to its end, over the tensors' data.
    ///
    /// # Errors
    /// [`HeaderError`] with the place where it stops making sense.
    pub fn read(path: &Path) -> Result<Self, HeaderError> {
        let mut reader = Reader::open(path)?;
        reader.magic("lmgg", MAGIC)?;
        let mut numbers = [0; NUMBERS];
        for number in &mut numbers {
            *number = reader.u32("the model's dimensions")?;
        }
        let (bands, width) = (reader.u32("the mel filters")?, reader.u32("the mel filters")?);
        reader.skip(u64::from(bands) * u64::from(width) * 4, "the mel filters")?;
        for _ in 0..reader.u32("the vocabulary")? {
            let length = reader.u32("the vocabulary")?;
            reader.skip(length.into(), "the vocabulary")?;
        }
        let mut tensors = 0;
        while !reader.at_end()? {
            tensor(&mut reader, tensors)?;
            tensors += 1;
        }
        Ok(Self {
            vocabulary: numbers[0],
            tensors,
            length: reader.length(),
        })
    }
}

fn tensor(reader: &mut Reader, number: u64) -> Result<(), HeaderError> {
    let place = format!("tensor {number}");
    let (dimensions, name, kind) = (reader.u32(&place)?, reader.u32(&place)?, reader.u32(&place)?);
    if dimensions > MOST_DIMENSIONS {
        let what = format!("the number of dimensions of {place}");
        return Err(HeaderError::Value {
            what,
            value: dimensions.into(),
            reason: "at most four are known",
        });
    }
    let mut elements: u64 = 1;
    for _ in 0..dimensions {
        elements = elements.saturating_mul(reader.u32(&place)?.into());
    }
    let name = reader.text(name.into(), &place)?;
    let bytes = match kind {
        0 => elements.saturating_mul(4),
        1 => elements.saturating_mul(2),
        2 => elements.div_ceil(32).saturating_mul(18),
        8 => elements.div_ceil(32).saturating_mul(34),
        other => {
            let what = format!("the type of {name}");
            return Err(HeaderError::Value {
                what,
                value: other.into(),
                reason: "F32, F16, Q4_0 and Q8_0 are known",
            });
        }
    };
    reader.skip(bytes, &name)
}
