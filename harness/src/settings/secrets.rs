//! The values of settings that nobody is to read, and their masking in whatever is shown or written.

use std::fmt;

use super::StackSettings;

/// What stands in a secret's place.
pub const MASK: &str = "[secret]";

/// A setting is secret when its name has one of these words, as `POSTGRES_PASSWORD` and `DO_API_TOKEN`.
const WORDS: [&str; 5] = ["SECRET", "PASSWORD", "PASSPHRASE", "TOKEN", "KEY"];

/// Whether a setting of that name holds a secret. The id of a key, as `DO_SSH_KEY_ID`, is none.
pub fn is_secret(name: &str) -> bool {
    !name.ends_with("_ID") && name.split('_').any(|word| WORDS.contains(&word))
}

/// The secret values of a topology's settings.
#[derive(Clone, Default)]
pub struct Secrets {
    /// Each value as it is and as texts encode it, longest first: one may be a part of another.
    forms: Vec<String>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({} of them)", self.forms.len())
    }
}

impl StackSettings {
    /// The values that nobody is to read.
    pub fn secrets(&self) -> Secrets {
        let all = self.stacks.values().flatten();
        let secret = all.filter(|(name, _)| is_secret(name));
        Secrets::of(secret.map(|(_, value)| value.as_str()))
    }
}

/// The value itself, as a string of JSON holds it, and as a URL does.
fn forms(value: &str) -> [String; 3] {
    let json = serde_json::Value::from(value).to_string();
    let url = value.bytes().map(|byte| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    });
    [
        value.to_owned(),
        json[1..json.len() - 1].to_owned(),
        url.collect(),
    ]
}

impl Secrets {
    /// These values; an empty one is none.
    pub fn of<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let values = values.into_iter().filter(|value| !value.is_empty());
        let mut forms: Vec<String> = values.flat_map(forms).collect();
        forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
        forms.dedup();
        Self { forms }
    }

    /// The text with [`MASK`] in place of each secret.
    pub fn mask(&self, text: &str) -> String {
        let mut masked = text.to_owned();
        for form in &self.forms {
            if masked.contains(form.as_str()) {
                masked = masked.replace(form.as_str(), MASK);
            }
        }
        masked
    }

    /// The same for every string in a JSON document.
    pub fn mask_json(&self, value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) => *text = self.mask(text),
            serde_json::Value::Array(items) => items.iter_mut().for_each(|item| self.mask_json(item)),
            serde_json::Value::Object(fields) => fields.values_mut().for_each(|field| self.mask_json(field)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pretty_assertions::assert_eq;
    use serde_json::json;

    use super::*;
    use crate::machine::Role;

    fn secrets(settings: &[(&str, &str)]) -> Secrets {
        let none = StackSettings {
            stacks: BTreeMap::new(),
        };
        let all = settings
            .iter()
            .fold(none, |all, (name, value)| all.with(Role::Vps, name, value));
        all.secrets()
    }

    #[test]
    fn every_secret_of_the_examples_is_known_as_one() {
        let examples = [
            include_str!("../../../local/vps/.env.example"),
            include_str!("../../../local/gpu/.env.example"),
        ];
        let lines = examples.iter().flat_map(|text| text.lines());
        let generated: Vec<_> = lines
            .filter_map(|line| line.strip_suffix("=<random-hex-32>"))
            .collect();
        assert_eq!(generated.len(), 7);
        for name in generated {
            assert!(is_secret(name), "{name}");
        }
        for name in ["STRIPE_SECRET_KEY", "RESEND_API_KEY", "REGISTRY_PASSWORD"] {
            assert!(is_secret(name), "{name}");
        }
        for name in [
            "DO_SSH_KEY_ID",
            "DO_GPU_DEFAULT_REGION",
            "COOKIE_DOMAIN",
            "LLAMA_MODEL_FILE",
        ] {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn a_secret_is_masked_wherever_it_stands_in_a_line() {
        let secrets = secrets(&[("DO_API_TOKEN", "hunter2"), ("COOKIE_DOMAIN", "localhost")]);
        assert_eq!(
            secrets.mask("GET http://x:hunter2@localhost/?token=hunter2"),
            "GET http://x:[secret]@localhost/?token=[secret]"
        );
    }

    #[test]
    fn a_secret_is_masked_as_json_and_urls_write_it() {
        let secrets = secrets(&[("POSTGRES_PASSWORD", r#"a"b/c"#)]);
        assert_eq!(
            secrets.mask(r#"{"message":"password a\"b/c"}"#),
            r#"{"message":"password [secret]"}"#
        );
        assert_eq!(
            secrets.mask("postgresql://wopr:a%22b%2Fc@db"),
            "postgresql://wopr:[secret]@db"
        );
    }

    #[test]
    fn a_secret_that_is_part_of_another_leaves_nothing_of_it() {
        let secrets = secrets(&[("PLATFORM_SECRET", "abc"), ("GPU_NODE_SECRET", "abcdef")]);
        assert_eq!(secrets.mask("abcdef abc"), "[secret] [secret]");
    }

    #[test]
    fn an_empty_secret_masks_nothing() {
        assert_eq!(secrets(&[("RESEND_API_KEY", "")]).mask("a line"), "a line");
    }

    #[test]
    fn documents_are_masked_in_depth_and_secrets_are_not_shown() {
        let secrets = secrets(&[("GPU_NODE_SECRET", "hunter2")]);
        let mut body = json!({ "user_data": "Bearer hunter2", "tags": ["hunter2", 1] });
        secrets.mask_json(&mut body);
        assert_eq!(
            body,
            json!({ "user_data": "Bearer [secret]", "tags": ["[secret]", 1] })
        );
        assert!(!format!("{secrets:?}").contains("hunter2"));
    }
}
