//! A qwen2 for embeddings: byte-level tokens, and a mean over them.

use super::random::Weights;
use super::writer::{Bias, Tensor, Value, block, gguf};

const WIDTH: usize = 64;
const HEADS: u32 = 2;
const INNER: usize = 64;
const CONTEXT: u32 = 2048;
const MERGES: [&str; 8] = ["t h", "i n", "e r", "a n", "Ġ t", "Ġ a", "o n", "e n"];
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// A letter for each byte, as GPT-2's tokenizer has it: printable bytes stand for themselves, the
/// others for letters above.
fn letters() -> Vec<String> {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    let mut letter = |byte: u32| {
        let code = if printable(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap_or_default().to_string()
    };
    (0..256).map(&mut letter).collect()
}

pub(super) fn generate() -> Vec<u8> {
    let mut weights = Weights::seeded(8);
    let mut tokens: Vec<(String, i32)> = letters().into_iter().map(|letter| (letter, NORMAL)).collect();
    tokens.extend(SPECIAL.map(|token| (token.to_owned(), CONTROL)));
    tokens.extend(MERGES.map(|merge| (merge.replace(' ', ""), NORMAL)));
    let size = tokens.len();
    let mut tensors = vec![
        Tensor::new(
            "token_embd.weight",
            &[WIDTH, size],
            weights.normal(size * WIDTH, 1.0),
        ),
        Tensor::new("output_norm.weight", &[WIDTH], vec![1.0; WIDTH]),
    ];
    tensors.extend(block(&mut weights, WIDTH, INNER, 0.02, Bias::With));
    gguf(&metadata(&tokens), &tensors)
}

fn metadata(tokens: &[(String, i32)]) -> Vec<(String, Value)> {
    let number = |value: usize| Value::U32(u32::try_from(value).unwrap_or(0));
    const MEAN: u32 = 1;
    const END_OF_TEXT: u32 = 256;
    let pairs = [
        ("general.architecture", Value::Text("qwen2".into())),
        ("general.name", Value::Text("wopr-embed".into())),
        ("general.file_type", Value::U32(0)),
        ("qwen2.context_length", Value::U32(CONTEXT)),
        ("qwen2.embedding_length", number(WIDTH)),
        ("qwen2.block_count", Value::U32(1)),
        ("qwen2.feed_forward_length", number(INNER)),
        ("qwen2.attention.head_count", Value::U32(HEADS)),
        ("qwen2.attention.head_count_kv", Value::U32(HEADS)),
        ("qwen2.attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
        ("qwen2.rope.freq_base", Value::F32(1e6)),
        ("qwen2.pooling_type", Value::U32(MEAN)),
        ("tokenizer.ggml.model", Value::Text("gpt2".into())),
        ("tokenizer.ggml.pre", Value::Text("qwen2".into())),
        (
            "tokenizer.ggml.tokens",
            Value::Texts(tokens.iter().map(|(token, _)| token.clone()).collect()),
        ),
        (
            "tokenizer.ggml.token_type",
            Value::Ints(tokens.iter().map(|(_, kind)| *kind).collect()),
        ),
        (
            "tokenizer.ggml.merges",
            Value::Texts(MERGES.map(str::to_owned).to_vec()),
        ),
        ("tokenizer.ggml.bos_token_id", Value::U32(END_OF_TEXT)),
        ("tokenizer.ggml.eos_token_id", Value::U32(END_OF_TEXT)),
        ("tokenizer.ggml.padding_token_id", Value::U32(END_OF_TEXT)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
    ];
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_space_is_written_as_in_gpt_2() {
        assert_eq!(letters()[usize::from(b' ')], "Ġ");
        assert_eq!(letters()[usize::from(b'a')], "a");
        assert_eq!(letters().len(), 256);
    }
}
