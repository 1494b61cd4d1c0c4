//! Writes a GGUF file of F32 tensors.

use super::random::Weights;

const ALIGNMENT: usize = 32;

/// A metadata value.
pub(super) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Floats(Vec<f32>),
    Ints(Vec<i32>),
}

/// A tensor: name, dimensions (fastest first), elements.
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dimensions: Vec<usize>,
    pub(super) data: Vec<f32>,
}

impl Tensor {
    pub(super) fn new(name: impl Into<String>, dimensions: &[usize], data: Vec<f32>) -> Self {
        debug_assert_eq!(dimensions.iter().product::<usize>(), data.len());
        Self {
            name: name.into(),
            dimensions: dimensions.to_vec(),
            data,
        }
    }
}

/// The bytes of a GGUF file, version 3.
pub(super) fn gguf(metadata: &[(String, Value)], tensors: &[Tensor]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(b"GGUF");
    out.extend(3_u32.to_le_bytes());
    length(&mut out, tensors.len());
    length(&mut out, metadata.len());
    for (key, value) in metadata {
        text(&mut out, key);
        put(&mut out, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend(u32::try_from(tensor.dimensions.len()).unwrap_or(0).to_le_bytes());
        for dimension in &tensor.dimensions {
            length(&mut out, *dimension);
        }
        out.extend(0_u32.to_le_bytes()); // F32
        length(&mut out, offset);
        offset += (tensor.data.len() * 4).next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    for tensor in tensors {
        out.extend(tensor.data.iter().flat_map(|value| value.to_le_bytes()));
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    }
    out
}

fn length(out: &mut Vec<u8>, length: usize) {
    out.extend((length as u64).to_le_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    length(out, text.len());
    out.extend(text.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &Value) {
    let mut kind = |number: u32| out.extend(number.to_le_bytes());
    match value {
        Value::U32(_) => kind(4),
        Value::F32(_) => kind(6),
        Value::Bool(_) => kind(7),
        Value::Text(_) => kind(8),
        Value::Texts(_) => (kind(9), kind(8)).0,
        Value::Floats(_) => (kind(9), kind(6)).0,
        Value::Ints(_) => (kind(9), kind(5)).0,
    }
    match value {
        Value::U32(value) => out.extend(value.to_le_bytes()),
        Value::F32(value) => out.extend(value.to_le_bytes()),
        Value::Bool(value) => out.push(u8::from(*value)),
        Value::Text(value) => text(out, value),
        Value::Texts(values) => {
            length(out, values.len());
            values.iter().for_each(|value| text(out, value));
        }
        Value::Floats(values) => {
            length(out, values.len());
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Value::Ints(values) => {
            length(out, values.len());
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
}

/// Whether attention has biases, as qwen2's has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bias {
    With,
    Without,
}

/// One transformer block of `width`, with a feed-forward part of `inner`.
pub(super) fn block(
    weights: &mut Weights,
    width: usize,
    inner: usize,
    deviation: f64,
    bias: Bias,
) -> Vec<Tensor> {
    let name = |part: &str| format!("blk.0.{part}");
    let square = [width, width];
    let mut tensors = vec![Tensor::new(name("attn_norm.weight"), &[width], vec![1.0; width])];
    for part in [
        "attn_q.weight",
        "attn_k.weight",
        "attn_v.weight",
        "attn_output.weight",
    ] {
        tensors.push(Tensor::new(
            name(part),
            &square,
            weights.normal(width * width, deviation),
        ));
    }
    if bias == Bias::With {
        for part in ["attn_q.bias", "attn_k.bias", "attn_v.bias"] {
            tensors.push(Tensor::new(name(part), &[width], vec![0.0; width]));
        }
    }
    tensors.push(Tensor::new(name("ffn_norm.weight"), &[width], vec![1.0; width]));
    let mut random = |part: &str, dimensions: [usize; 2]| {
        let data = weights.normal(dimensions[0] * dimensions[1], deviation);
        tensors.push(Tensor::new(name(part), &dimensions, data));
    };
    random("ffn_gate.weight", [width, inner]);
    random("ffn_up.weight", [width, inner]);
    random("ffn_down.weight", [inner, width]);
    tensors
}
