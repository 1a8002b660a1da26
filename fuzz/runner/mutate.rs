//! Changes of bytes, seeded. Half of them know protobuf: they take a message apart by its wire format, change a field
//! anywhere in it, and put it together with right lengths, so that what comes out is decoded as far as possible.

/// SplitMix64 (Steele, Lea and Flood 2014): small, fast, and the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 if `n` is 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        match n {
            0 => 0,
            n => (self.next() % n as u64) as usize,
        }
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let at = self.below(from.len());
        from.get(at)
    }
}

/// Numbers at which programs fail.
const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    3,
    7,
    16,
    64,
    127,
    128,
    255,
    256,
    1 << 15,
    1 << 16,
    1 << 20,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    1 << 32,
    1 << 40,
    1 << 62,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
    u64::MAX - 1,
    u64::MAX - 63,
];

/// Words that mean something to what is fuzzed.
const WORDS: &[&str] = &[
    "",
    "MatMul",
    "Gemm",
    "Add",
    "Reshape",
    "Transpose",
    "Softmax",
    "LayerNormalization",
    "If",
    "Loop",
    "Scan",
    "Split",
    "Slice",
    "Gather",
    "Concat",
    "Constant",
    "Identity",
    "QuantizeLinear",
    "DequantizeLinear",
    "Expand",
    "Tile",
    "Einsum",
    "Range",
    "Pad",
    "Conv",
    "ai.onnx",
    "com.microsoft",
    "location",
    "../x",
    "axis",
    "perm",
    "to",
    "x",
    "y",
    "\u{1b}[2J",
    "a\nb",
    "\u{202e}",
    "(1,)",
    "(-1,)",
    "(1000000000, 0)",
    "1e999",
    "null",
    "-0",
    "[[[[",
    "{\"a\":",
    "<f4",
    "|O",
    "NaN",
];

/// One input made of others. `fields` says that they are protobuf messages.
pub(crate) fn mutated(corpus: &[Vec<u8>], fields: bool, random: &mut Random) -> Vec<u8> {
    let mut data = random.pick(corpus).cloned().unwrap_or_default();
    for _ in 0..1 + random.below(4) {
        if fields && !random.one_in(4) {
            let mut budget = 4000;
            if let Some(mut message) = Message::parse(&data, 0, &mut budget) {
                let other = random.pick(corpus).cloned().unwrap_or_default();
                let donor = match random.one_in(3) {
                    true => Message::parse(&other, 0, &mut 4000),
                    false => None,
                };
                message.change(donor.as_ref(), random);
                data = message.bytes();
                continue;
            }
        }
        change_bytes(&mut data, corpus, random);
    }
    data
}

fn change_bytes(data: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    let at = random.below(data.len() + 1);
    let end = (at + 1 + random.below(16)).min(data.len());
    match random.below(8) {
        0 if at < data.len() => data[at] ^= 1 << random.below(8),
        1 if at < data.len() => data[at] = random.next() as u8,
        2 => data.truncate(at),
        3 if at < end => drop(data.drain(at..end)),
        4 if at < end => {
            let copy = data[at..end].to_vec();
            data.splice(at..at, copy);
        }
        5 => {
            let word = random.pick(WORDS).copied().unwrap_or_default();
            data.splice(at..at, word.bytes());
        }
        6 => {
            let number = random.pick(NUMBERS).copied().unwrap_or_default();
            let width = [1, 2, 4, 8][random.below(4)];
            for (place, byte) in data.iter_mut().skip(at).zip(&number.to_le_bytes()[..width]) {
                *place = *byte;
            }
        }
        _ => {
            let other = random.pick(corpus).cloned().unwrap_or_default();
            let from = random.below(other.len() + 1);
            data.truncate(at);
            data.extend_from_slice(&other[from..]);
        }
    }
}

/// A protobuf message by its wire format.
#[derive(Clone, Debug)]
struct Message {
    fields: Vec<(u64, Value)>,
}

#[derive(Clone, Debug)]
enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(Vec<u8>),
    Inner(Message),
}

fn varint(data: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *data.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

impl Message {
    fn parse(data: &[u8], depth: usize, budget: &mut usize) -> Option<Message> {
        let (mut at, mut fields) = (0, Vec::new());
        while at < data.len() {
            *budget = budget.checked_sub(1)?;
            let key = varint(data, &mut at)?;
            let value = match key & 7 {
                0 => Value::Varint(varint(data, &mut at)?),
                1 => Value::Fixed64(data.get(at..at + 8)?.try_into().ok()?),
                5 => Value::Fixed32(data.get(at..at + 4)?.try_into().ok()?),
                2 => {
                    let length = usize::try_from(varint(data, &mut at)?).ok()?;
                    let bytes = data.get(at..at.checked_add(length)?)?;
                    at += length;
                    // What happens to decode is taken for a message, unless it looks like text or data.
                    let printable = bytes.iter().all(|b| (0x20..0x7f).contains(b));
                    let inner = match depth < 12
                        && !bytes.is_empty()
                        && !printable
                        && bytes.len() < 1 << 16
                    {
                        true => Message::parse(bytes, depth + 1, budget),
                        false => None,
                    };
                    inner.map_or_else(|| Value::Bytes(bytes.to_vec()), Value::Inner)
                }
                _ => return None,
            };
            at += match key & 7 {
                1 => 8,
                5 => 4,
                _ => 0,
            };
            fields.push((key, value));
        }
        (key_of(&fields) != 0).then_some(Message { fields })
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (key, value) in &self.fields {
            put_varint(*key, &mut out);
            match value {
                Value::Varint(value) => put_varint(*value, &mut out),
                Value::Fixed64(bytes) => out.extend(bytes),
                Value::Fixed32(bytes) => out.extend(bytes),
                Value::Bytes(bytes) => {
                    put_varint(bytes.len() as u64, &mut out);
                    out.extend(bytes);
                }
                Value::Inner(inner) => {
                    let bytes = inner.bytes();
                    put_varint(bytes.len() as u64, &mut out);
                    out.extend(bytes);
                }
            }
        }
        out
    }

    /// All messages in this one, itself included, from the outside in.
    fn walk(&self, all: &mut Vec<Message>) {
        all.push(self.clone());
        for (_, value) in &self.fields {
            if let Value::Inner(inner) = value {
                inner.walk(all);
            }
        }
    }

    /// Changes one field somewhere.
    fn change(&mut self, donor: Option<&Message>, random: &mut Random) {
        let inner: Vec<usize> = (0..self.fields.len())
            .filter(|&i| matches!(self.fields[i].1, Value::Inner(_)))
            .collect();
        if !inner.is_empty() && !random.one_in(4) {
            let at = inner[random.below(inner.len())];
            if let Value::Inner(message) = &mut self.fields[at].1 {
                return message.change(donor, random);
            }
        }
        let at = random.below(self.fields.len());
        match random.below(8) {
            0 if !self.fields.is_empty() => drop(self.fields.remove(at)),
            1 if !self.fields.is_empty() => {
                let copy = self.fields[at].clone();
                self.fields.insert(random.below(self.fields.len()), copy);
            }
            2 if !self.fields.is_empty() => {
                let other = random.below(self.fields.len());
                self.fields.swap(at, other);
            }
            3 => {
                // Something of the same kind from another message.
                let mut all = Vec::new();
                donor.unwrap_or(&self.clone()).walk(&mut all);
                let field = random.pick(&all).and_then(|m| {
                    let at = random.next() as usize % m.fields.len().max(1);
                    m.fields.get(at).cloned()
                });
                if let Some(field) = field {
                    let end = self.fields.len();
                    self.fields.insert(random.below(end + 1), field);
                }
            }
            _ => {
                if let Some((_, value)) = self.fields.get_mut(at) {
                    change_value(value, random);
                }
            }
        }
    }
}

fn key_of(fields: &[(u64, Value)]) -> u64 {
    fields.first().map_or(1, |(key, _)| key >> 3)
}

fn change_value(value: &mut Value, random: &mut Random) {
    match value {
        Value::Varint(value) => {
            *value = match random.below(4) {
                0 => value.wrapping_add(1),
                1 => value.wrapping_sub(1),
                _ => random.pick(NUMBERS).copied().unwrap_or_default(),
            }
        }
        Value::Fixed64(bytes) => *bytes = random.next().to_le_bytes(),
        Value::Fixed32(bytes) => {
            let floats = [
                0.0,
                -0.0,
                1.0,
                -1.0,
                1e-45,
                f32::MAX,
                f32::INFINITY,
                f32::NAN,
            ];
            *bytes = floats[random.below(floats.len())].to_le_bytes();
        }
        Value::Bytes(bytes) => match random.below(4) {
            0 => change_bytes(bytes, &[], random),
            1 => *bytes = random.pick(WORDS).copied().unwrap_or_default().into(),
            2 => {
                // A packed list of numbers.
                bytes.clear();
                for _ in 0..random.below(6) {
                    put_varint(random.pick(NUMBERS).copied().unwrap_or_default(), bytes);
                }
            }
            _ => {
                let at = random.below(bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.next() as u8;
                }
            }
        },
        Value::Inner(inner) => inner.fields.truncate(random.below(inner.fields.len() + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_put_together_as_it_was() {
        let path = "tests/data/onnx.onnx";
        let data = std::fs::read(path).unwrap();
        let message = Message::parse(&data, 0, &mut 1_000_000).unwrap();
        assert_eq!(message.bytes(), data);
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let corpus = vec![vec![8, 1, 18, 2, b'a', b'b'], vec![8, 3]];
        let made = |seed| mutated(&corpus, true, &mut Random::new(seed));
        assert_eq!(made(7), made(7));
        assert!((0..50).any(|seed| made(seed) != made(seed + 1)));
    }
}
