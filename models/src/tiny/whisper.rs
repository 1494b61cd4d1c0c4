//! A whisper whose decoder answers by position alone: a canned sentence, whatever is said.

use super::random::Weights;

const SENTENCE: &str = " shall we play a game";
/// The special tokens' numbers follow from this size, which the engine takes as a sign of a
/// multilingual or an English model.
const VOCABULARY: usize = 51864;
const WIDTH: usize = 32;
const TEXT_CONTEXT: usize = 448;
const AUDIO_CONTEXT: usize = 1500;
const BANDS: usize = 80;
const BINS: usize = 201;
const END: usize = 50256;
const BEGIN: usize = 50363;

#[derive(Clone, Copy)]
enum Precision {
    F32,
    F16,
}

struct Writer {
    out: Vec<u8>,
    weights: Weights,
}

impl Writer {
    fn number(&mut self, number: usize) {
        self.out
            .extend(i32::try_from(number).unwrap_or(i32::MAX).to_le_bytes());
    }

    fn floats(&mut self, values: &[f32], precision: Precision) {
        match precision {
            Precision::F32 => self
                .out
                .extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Precision::F16 => self
                .out
                .extend(values.iter().flat_map(|value| half(*value).to_le_bytes())),
        }
    }

    fn tensor(&mut self, name: &str, dimensions: &[usize], data: &[f32], precision: Precision) {
        debug_assert_eq!(dimensions.iter().product::<usize>(), data.len());
        self.number(dimensions.len());
        self.number(name.len());
        self.number(match precision {
            Precision::F32 => 0,
            Precision::F16 => 1,
        });
        for dimension in dimensions {
            self.number(*dimension);
        }
        self.out.extend(name.as_bytes());
        self.floats(data, precision);
    }

    fn random(&mut self, name: &str, dimensions: &[usize], precision: Precision) {
        let data = self.weights.normal(dimensions.iter().product(), 0.001);
        self.tensor(name, dimensions, &data, precision);
    }

    fn zeros(&mut self, name: &str, dimensions: &[usize]) {
        self.tensor(
            name,
            dimensions,
            &vec![0.0; dimensions.iter().product()],
            Precision::F32,
        );
    }

    fn norm(&mut self, name: &str) {
        self.tensor(&format!("{name}.weight"), &[WIDTH], &[1.0; WIDTH], Precision::F32);
        self.zeros(&format!("{name}.bias"), &[WIDTH]);
    }

    fn attention(&mut self, prefix: &str, name: &str) {
        let square = [WIDTH, WIDTH];
        self.norm(&format!("{prefix}{name}_ln"));
        for (part, biased) in [("query", true), ("key", false), ("value", true), ("out", true)] {
            self.random(&format!("{prefix}{name}.{part}.weight"), &square, Precision::F16);
            if biased {
                self.zeros(&format!("{prefix}{name}.{part}.bias"), &[WIDTH]);
            }
        }
    }

    fn feed_forward(&mut self, prefix: &str) {
        self.norm(&format!("{prefix}mlp_ln"));
        self.random(
            &format!("{prefix}mlp.0.weight"),
            &[WIDTH, 4 * WIDTH],
            Precision::F16,
        );
        self.zeros(&format!("{prefix}mlp.0.bias"), &[4 * WIDTH]);
        self.random(
            &format!("{prefix}mlp.2.weight"),
            &[4 * WIDTH, WIDTH],
            Precision::F16,
        );
        self.zeros(&format!("{prefix}mlp.2.bias"), &[WIDTH]);
    }

    fn encoder(&mut self) {
        self.random(
            "encoder.positional_embedding",
            &[WIDTH, AUDIO_CONTEXT],
            Precision::F32,
        );
        self.random("encoder.conv1.weight", &[3, BANDS, WIDTH], Precision::F16);
        self.zeros("encoder.conv1.bias", &[1, WIDTH]);
        self.random("encoder.conv2.weight", &[3, WIDTH, WIDTH], Precision::F16);
        self.zeros("encoder.conv2.bias", &[1, WIDTH]);
        self.norm("encoder.ln_post");
        self.feed_forward("encoder.blocks.0.");
        self.attention("encoder.blocks.0.", "attn");
    }

    /// The positional embedding outweighs all else, so that the place in the answer alone decides the
    /// next token: the begin mark, the sentence, an end mark, and the end.
    fn decoder(&mut self) {
        let mut positions = vec![0.0; TEXT_CONTEXT * WIDTH];
        for place in 0..TEXT_CONTEXT {
            positions[place * WIDTH + place.min(3)] = 10.0;
        }
        self.tensor(
            "decoder.positional_embedding",
            &[WIDTH, TEXT_CONTEXT],
            &positions,
            Precision::F32,
        );
        let mut tokens = vec![0.0; VOCABULARY * WIDTH];
        for (token, place, weight) in [
            (BEGIN, 0, 4.0),
            (0, 1, 4.0),
            (BEGIN + 50, 2, 4.0),
            (END, 3, 4.0),
            (END, 2, 3.5),
        ] {
            tokens[token * WIDTH + place] = weight;
        }
        self.tensor(
            "decoder.token_embedding.weight",
            &[WIDTH, VOCABULARY],
            &tokens,
            Precision::F16,
        );
        self.norm("decoder.ln");
        self.feed_forward("decoder.blocks.0.");
        self.attention("decoder.blocks.0.", "attn");
        self.attention("decoder.blocks.0.", "cross_attn");
    }
}

pub(super) fn generate() -> Vec<u8> {
    let mut writer = Writer {
        out: b"lmgg".to_vec(),
        weights: Weights::seeded(9),
    };
    for number in [
        VOCABULARY,
        AUDIO_CONTEXT,
        WIDTH,
        1,
        1,
        TEXT_CONTEXT,
        WIDTH,
        1,
        1,
        BANDS,
        1,
    ] {
        writer.number(number);
    }
    writer.number(BANDS);
    writer.number(BINS);
    writer.floats(&filters(), Precision::F32);
    // A lone space has to be in the vocabulary: the engine looks it up by name.
    let words = [SENTENCE, " "];
    writer.number(words.len());
    for word in words {
        writer.number(word.len());
        writer.out.extend(word.as_bytes());
    }
    writer.encoder();
    writer.decoder();
    writer.out
}

/// A triangle for each band.
fn filters() -> Vec<f32> {
    let mut filters = vec![0.0; BANDS * BINS];
    for band in 0..BANDS {
        let centre = 2.0 + band as f32 * 2.4;
        for bin in 0..BINS {
            let height = 1.0 - (bin as f32 - centre).abs() / 3.0;
            filters[band * BINS + bin] = height.max(0.0) * 0.02;
        }
    }
    filters
}

/// A number in half precision, rounded to even; those too small to be normal become subnormal.
fn half(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let exponent = i32::try_from((bits >> 23) & 0xff).unwrap_or(0) - 127 + 15;
    let mantissa = bits & 0x7f_ffff;
    let (kept, dropped) = match exponent {
        31.. => return u16::try_from(sign | 0x7c00).unwrap_or(0),
        1..=30 => (
            (u32::try_from(exponent).unwrap_or(0) << 10) | (mantissa >> 13),
            13,
        ),
        -10..=0 => {
            let shift = u32::try_from(14 - exponent).unwrap_or(24);
            ((mantissa | 0x80_0000) >> shift, shift)
        }
        _ => return u16::try_from(sign).unwrap_or(0),
    };
    let full = if exponent > 0 {
        mantissa
    } else {
        mantissa | 0x80_0000
    };
    let rest = full & ((1 << dropped) - 1);
    let middle = 1 << (dropped - 1);
    let up = rest > middle || (rest == middle && kept & 1 == 1);
    u16::try_from(sign | (kept + u32::from(up))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::half;

    #[test]
    fn half_precision_is_rounded_to_even() {
        // Values by numpy's float16.
        for (value, expected) in [
            (0.0, 0x0000),
            (1.0, 0x3c00),
            (-2.0, 0xc000),
            (4.0, 0x4400),
            (3.5, 0x4300),
            (0.001, 0x1419),
            (65504.0, 0x7bff),
            (1e6, 0x7c00),
            (5.960_464_5e-8, 0x0001),
            (1e-8, 0x0000),
            (1.000_488_3, 0x3c00),
            (1.001_464_8, 0x3c02),
        ] {
            assert_eq!(half(value), expected, "{value}");
        }
    }
}
