//! Settings from the environment.

/// A variable that is no number.
#[derive(Debug, thiserror::Error)]
#[error("{variable} is {value:?}, which is no whole number from 0 on")]
pub struct BadNumber {
    variable: &'static str,
    value: String,
}

/// The number in a variable; `None` where it is unset or empty.
pub(crate) fn number(variable: &'static str) -> Result<Option<u64>, BadNumber> {
    match std::env::var(variable) {
        Ok(value) if !value.is_empty() => match value.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(BadNumber { variable, value }),
        },
        _ => Ok(None),
    }
}
