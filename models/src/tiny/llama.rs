//! A llama whose output layer leads from one word of a canned reply to the next.

use super::random::Weights;
use super::writer::{Bias, Tensor, Value, block, gguf};

const REPLY: [&str; 4] = ["▁ready", "▁player", "▁one", "."];
const WIDTH: usize = 128;
const HEADS: u32 = 4;
const INNER: usize = 128;
const CONTEXT: u32 = 4096;
const TEMPLATE: &str = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}\
     {% if add_generation_prompt %}<|assistant|>{% endif %}";

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

/// Tokens with their types: special ones, every byte, the reply's words, printable ASCII.
fn vocabulary() -> Vec<(String, i32)> {
    let mut tokens = vec![("<unk>".to_owned(), UNKNOWN)];
    tokens.extend(["<s>", "</s>"].map(|token| (token.to_owned(), CONTROL)));
    tokens.extend((0..=255_u8).map(|byte| (format!("<0x{byte:02X}>"), BYTE)));
    let roles = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"];
    tokens.extend(roles.map(|token| (token.to_owned(), CONTROL)));
    tokens.extend(REPLY.map(|word| (word.to_owned(), NORMAL)));
    tokens.push(("▁".to_owned(), NORMAL));
    let printable = ('!'..='~').map(|letter| letter.to_string());
    tokens.extend(
        printable
            .filter(|letter| !REPLY.contains(&letter.as_str()))
            .map(|letter| (letter, NORMAL)),
    );
    tokens
}

pub(super) fn generate() -> Vec<u8> {
    let mut weights = Weights::seeded(7);
    let tokens = vocabulary();
    let size = tokens.len();
    let id = |name: &str| {
        tokens
            .iter()
            .position(|(token, _)| token == name)
            .unwrap_or_default()
    };
    let embedding = weights.signs(size * WIDTH);
    let mut output = weights.normal(size * WIDTH, 0.01);
    let chain = std::iter::once("<|assistant|>")
        .chain(REPLY)
        .chain(std::iter::once("<|end|>"));
    let chain: Vec<usize> = chain.map(id).collect();
    for pair in chain.windows(2) {
        let (from, to) = (pair[0] * WIDTH, pair[1] * WIDTH);
        for at in 0..WIDTH {
            output[to + at] += 0.5 * embedding[from + at];
        }
    }
    let mut tensors = vec![
        Tensor::new("token_embd.weight", &[WIDTH, size], embedding),
        Tensor::new("output_norm.weight", &[WIDTH], vec![1.0; WIDTH]),
        Tensor::new("output.weight", &[WIDTH, size], output),
    ];
    tensors.extend(block(&mut weights, WIDTH, INNER, 1e-4, Bias::Without));
    gguf(&metadata(&tokens, id("<|end|>")), &tensors)
}

fn metadata(tokens: &[(String, i32)], end: usize) -> Vec<(String, Value)> {
    let number = |value: usize| Value::U32(u32::try_from(value).unwrap_or(0));
    // Words are preferred to letters, and letters to bytes, in the order of the vocabulary.
    let first_word = tokens
        .iter()
        .position(|(_, kind)| *kind == NORMAL)
        .unwrap_or_default();
    let score = |at: usize| {
        if at < first_word {
            0.0
        } else {
            -((at - first_word + 1) as f32)
        }
    };
    let pairs = [
        ("general.architecture", Value::Text("llama".into())),
        ("general.name", Value::Text("wopr-tiny".into())),
        ("general.file_type", Value::U32(0)),
        ("llama.context_length", Value::U32(CONTEXT)),
        ("llama.embedding_length", number(WIDTH)),
        ("llama.block_count", Value::U32(1)),
        ("llama.feed_forward_length", number(INNER)),
        ("llama.attention.head_count", Value::U32(HEADS)),
        ("llama.attention.head_count_kv", Value::U32(HEADS)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.dimension_count", Value::U32(128 / HEADS)),
        ("llama.vocab_size", number(tokens.len())),
        ("tokenizer.ggml.model", Value::Text("llama".into())),
        (
            "tokenizer.ggml.tokens",
            Value::Texts(tokens.iter().map(|(token, _)| token.clone()).collect()),
        ),
        (
            "tokenizer.ggml.scores",
            Value::Floats((0..tokens.len()).map(score).collect()),
        ),
        (
            "tokenizer.ggml.token_type",
            Value::Ints(tokens.iter().map(|(_, kind)| *kind).collect()),
        ),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", number(end)),
        ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
        ("tokenizer.ggml.add_space_prefix", Value::Bool(false)),
        ("tokenizer.chat_template", Value::Text(TEMPLATE.into())),
    ];
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
