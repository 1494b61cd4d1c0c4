//! Reading little-endian numbers and strings from a file whose length is known, so that a corrupt
//! count cannot ask for more than the file holds.

use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// Why a header could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The file system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The first four bytes are those of something else.
    #[error("starts with {found:?}, not with {expected:?}")]
    Magic {
        /// What the format starts with.
        expected: &'static str,
        /// What is there, escaped.
        found: String,
    },
    /// The file ends where more should follow.
    #[error("ends at byte {length}, in the middle of {within}")]
    Short {
        /// Length of the file in bytes.
        length: u64,
        /// What was being read.
        within: String,
    },
    /// A number that makes no sense.
    #[error("{what} is {value}: {reason}")]
    Value {
        /// What was read.
        what: String,
        /// Its value.
        value: u64,
        /// Why it cannot be.
        reason: &'static str,
    },
}

/// A file being read.
pub(crate) struct Reader {
    file: BufReader<std::fs::File>,
    at: u64,
    length: u64,
}

impl Reader {
    pub(crate) fn open(path: &Path) -> Result<Self, HeaderError> {
        let file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self {
            file: BufReader::new(file),
            at: 0,
            length,
        })
    }

    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn at_end(&mut self) -> Result<bool, HeaderError> {
        Ok(self.file.fill_buf()?.is_empty())
    }

    /// Fails unless `count` more bytes are there.
    pub(crate) fn claim(&self, count: u64, within: &str) -> Result<(), HeaderError> {
        if count > self.length - self.at {
            return Err(HeaderError::Short {
                length: self.length,
                within: within.to_owned(),
            });
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self, within: &str) -> Result<[u8; N], HeaderError> {
        self.claim(N as u64, within)?;
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    /// The first four bytes, which say what the file is.
    pub(crate) fn magic(&mut self, expected: &'static str, bytes: [u8; 4]) -> Result<(), HeaderError> {
        let found = if self.length < 4 {
            None
        } else {
            Some(self.array::<4>("the magic")?)
        };
        if found == Some(bytes) {
            return Ok(());
        }
        let found = found.map_or_else(
            || "fewer than four bytes".to_owned(),
            |found| found.escape_ascii().to_string(),
        );
        Err(HeaderError::Magic { expected, found })
    }

    pub(crate) fn u32(&mut self, within: &str) -> Result<u32, HeaderError> {
        Ok(u32::from_le_bytes(self.array(within)?))
    }

    pub(crate) fn u64(&mut self, within: &str) -> Result<u64, HeaderError> {
        Ok(u64::from_le_bytes(self.array(within)?))
    }

    /// `length` bytes as text.
    pub(crate) fn text(&mut self, length: u64, within: &str) -> Result<String, HeaderError> {
        self.claim(length, within)?;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.file.read_exact(&mut bytes)?;
        self.at += length;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) fn skip(&mut self, count: u64, within: &str) -> Result<(), HeaderError> {
        self.claim(count, within)?;
        match i64::try_from(count) {
            Ok(offset) => self.file.seek_relative(offset)?,
            Err(_) => self.file.seek(SeekFrom::Start(self.at + count)).map(drop)?,
        }
        self.at += count;
        Ok(())
    }
}
