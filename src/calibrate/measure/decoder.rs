//! What the decoder of an encoder–decoder model is fed with: what its encoder makes of the user's data, and tokens that the float
//! decoder has chosen itself.
//!
//! ```text
//! rows ─▶ encoder ─▶ encoder_hidden_states, encoder_attention_mask ─┬─▶ decoder ⟲ greedy: the likeliest token is the next ─▶ tokens
//!                                                                    └─▶ tables: all tokens at once; the last behind a cache of the others
//! ```
//!
//! Tokens that are not known yet stand as padding behind the others, so that every run has one shape; a decoder does not look ahead.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::{Array2, ArrayD, Axis, Ix3};

use crate::calibrate::data::array::Values;
use crate::calibrate::data::dataset::Dataset;
use crate::calibrate::data::error::CalibError;
use crate::calibrate::data::input::Batch;
use crate::calibrate::data::signature::{ModelInput, model_inputs};
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::plan::Engine;
use crate::calibrate::measure::compare::{Reduce, reduce_outputs};
use crate::onnx::Model;
use crate::onnx::proto::tensor_proto::DataType;
use crate::prepare::Generation;
use crate::progress::Progress;

/// Tokens that a decoder is fed with.
const TOKENS: usize = 16;

/// The names of a decoder's token ids.
const IDS: [&str; 2] = ["input_ids", "decoder_input_ids"];

/// The names of what an encoder gives a decoder.
const STATES: [&str; 2] = ["encoder_hidden_states", "encoder_outputs"];

/// The name of the mask that belongs to it.
const MASK: &str = "encoder_attention_mask";

/// Where data come from, in errors.
const FROM: &str = "(the encoder's outputs)";

/// Arrays by input, rows of one shape each.
type Tables = Vec<BTreeMap<String, Values>>;

/// Data for the decoders of a model.
#[derive(Debug, Default)]
pub struct DecoderData {
    /// All tokens at once, without a cache.
    whole: Tables,
    /// One token behind a cache of the others.
    cached: Tables,
    /// What a reader should know of it.
    pub notes: Vec<String>,
}

/// Whether a model is a decoder that needs what an encoder makes.
///
/// # Errors
/// Inputs of types that cannot be fed.
pub fn is_decoder(model: &Model) -> Result<bool, EngineError> {
    let inputs = model_inputs(model)?;
    let of_encoder = |i: &ModelInput| {
        STATES.contains(&i.name.as_str()) || i.name == MASK || i.name.contains(".encoder.")
    };
    Ok(inputs.iter().any(of_encoder))
}

/// Whether a decoder can run without a cache: it is given what the encoder makes.
///
/// # Errors
/// Those of [`is_decoder`].
pub fn starts_without_cache(model: &Model) -> Result<bool, EngineError> {
    let inputs = model_inputs(model)?;
    Ok(inputs.iter().any(|i| STATES.contains(&i.name.as_str())))
}

/// What `decoder`, which [starts without a cache](starts_without_cache), is fed with, and a form of it with a cache.
///
/// # Errors
/// What the engine refuses; an encoder without an output that the decoder could take, a decoder without token ids.
pub fn decoder_data(
    (encoder, data): (&Model, &Dataset),
    decoder: &Model,
    generation: &Generation,
    engine: &dyn Engine,
    running: (usize, &dyn Progress),
) -> Result<DecoderData, EngineError> {
    let engine = engine.sharing();
    let engine = engine.as_ref();
    let inputs = model_inputs(decoder)?;
    let ids = inputs.iter().find(|i| IDS.contains(&i.name.as_str()));
    let states = inputs.iter().find(|i| STATES.contains(&i.name.as_str()));
    let (Some(ids), Some(states)) = (ids, states) else {
        return Err(refused("the decoder has no input of token ids"));
    };
    let mut found = encoded(encoder, data, engine, running, |i| {
        inputs.iter().any(|own| own.name == i)
    })?;
    for table in &mut found {
        if let Some(values) = table.remove("") {
            table.insert(states.name.clone(), values);
        }
    }
    let decoding = Decoding {
        decoder,
        ids,
        generation,
        engine,
        running,
    };
    let mut made = DecoderData::default();
    for table in found {
        let rows = rows_of(&table[&states.name]);
        let mut tokens = Array2::from_elem((rows, TOKENS), generation.pad);
        tokens.column_mut(0).fill(generation.start);
        if !decoding.greedy(&table, &mut tokens)? && made.notes.is_empty() {
            let note = "the decoder gives no logits for every token: behind the first it is fed with padding";
            made.notes.push(note.to_owned());
        }
        made.whole.push(decoding.with(&table, &tokens));
        let presents = decoding.presents(&table, &tokens)?;
        if !presents.is_empty() {
            let mut cached = table.clone();
            cached.extend(presents);
            let last = tokens.slice(ndarray::s![.., TOKENS - 1..]).to_owned();
            made.cached.push(decoding.with(&cached, &last));
        }
    }
    made.notes.extend(generation.notes.iter().cloned());
    made.notes.push(format!(
        "the decoder is fed with the encoder's outputs and {TOKENS} tokens, each the likeliest by the float decoder"
    ));
    Ok(made)
}

impl DecoderData {
    /// The data for one of the decoders: whatever of it the model has inputs for.
    ///
    /// # Errors
    /// Inputs that nothing gives.
    pub fn of(&self, decoder: &Model, batch: usize) -> Result<Dataset, EngineError> {
        let inputs = model_inputs(decoder)?;
        let has = |name: &str| inputs.iter().any(|i| i.name == name);
        let takes_cache = inputs.iter().any(|i| i.name.starts_with("past"));
        let whole = match starts_without_cache(decoder)? {
            true => &self.whole[..],
            false => &[],
        };
        let cached = if takes_cache { &self.cached[..] } else { &[] };
        let own = |table: &BTreeMap<String, Values>| {
            let own = table.iter().filter(|(name, _)| has(name));
            own.map(|(name, values)| (name.clone(), values.clone()))
                .collect()
        };
        let tables: Tables = whole.iter().chain(cached).map(own).collect();
        let from = Path::new(FROM);
        Ok(Dataset::of_arrays(decoder, tables, batch, from)?)
    }
}

/// What the encoder makes of every batch, under the name "", and its mask where the decoder wants one.
fn encoded(
    encoder: &Model,
    data: &Dataset,
    engine: &dyn Engine,
    running: (usize, &dyn Progress),
    wants: impl Fn(&str) -> bool,
) -> Result<Tables, EngineError> {
    let names: Vec<&str> = encoder.graph().output.iter().map(|o| o.name()).collect();
    let of_rank_3 = |_: &Batch, mut outputs: BTreeMap<String, ArrayD<f32>>| {
        let name = names
            .iter()
            .find(|n| outputs.get(**n).is_some_and(|o| o.ndim() == 3));
        name.and_then(|name| outputs.remove(*name))
    };
    let run = |batches: &[Batch]| reduce_outputs(engine, encoder, batches, running, &of_rank_3);
    let mut batches = data.all();
    let outputs = match (run(&batches), data.one_by_one()) {
        (Err(error), Some(single)) => {
            batches = single.all();
            run(&batches).map_err(|_| error)?
        }
        (outputs, _) => outputs?,
    };
    let mut tables = Tables::new();
    for (batch, states) in batches.iter().zip(outputs.0) {
        let states = states.ok_or_else(|| {
            refused("the encoder has no output [rows, length, channels] that a decoder could take")
        })?;
        let mut table = BTreeMap::new();
        if wants(MASK) {
            let shape = [states.shape()[0], states.shape()[1]];
            let mask = batch.mask().filter(|mask| mask.shape() == shape);
            let ones = Array2::from_elem(shape, true);
            let mask = mask.unwrap_or(&ones).mapv(i64::from);
            table.insert(MASK.to_owned(), Values::I64(mask.into_dyn()));
        }
        table.insert(String::new(), Values::F32(states));
        tables.push(table);
    }
    Ok(tables)
}

/// A decoder that chooses its own tokens.
struct Decoding<'a> {
    decoder: &'a Model,
    /// Its input of token ids.
    ids: &'a ModelInput,
    generation: &'a Generation,
    engine: &'a dyn Engine,
    running: (usize, &'a dyn Progress),
}

impl Decoding<'_> {
    /// The table with token ids.
    fn with(
        &self,
        table: &BTreeMap<String, Values>,
        tokens: &Array2<i64>,
    ) -> BTreeMap<String, Values> {
        let mut table = table.clone();
        let tokens = integers(self.ids, tokens.clone().into_dyn());
        table.insert(self.ids.name.clone(), tokens);
        table
    }

    /// Runs the decoder on tokens; what is made of the outputs of each batch, with the rows of that.
    fn run<T: Send>(
        &self,
        table: &BTreeMap<String, Values>,
        tokens: &Array2<i64>,
        reduce: &Reduce<'_, T>,
    ) -> Result<Vec<(Vec<u64>, T)>, EngineError> {
        let tables = vec![self.with(table, tokens)];
        let from = Path::new(FROM);
        let batches = Dataset::of_arrays(self.decoder, tables, tokens.nrows(), from)?.all();
        let (made, _) = reduce_outputs(self.engine, self.decoder, &batches, self.running, reduce)?;
        let rows = batches.into_iter().map(|batch| batch.rows);
        Ok(rows.zip(made).collect())
    }

    /// Fills in the tokens, one after the other, each the likeliest behind those before it; false if the model gives no logits.
    fn greedy(
        &self,
        table: &BTreeMap<String, Values>,
        tokens: &mut Array2<i64>,
    ) -> Result<bool, EngineError> {
        let names = self.decoder.graph().output.iter().map(|o| o.name());
        let names: Vec<&str> = names.collect();
        for at in 1..tokens.ncols() {
            let likeliest = |_: &Batch, outputs: BTreeMap<String, ArrayD<f32>>| {
                let logits = names.iter().find_map(|name| outputs.get(*name))?;
                let logits = logits.view().into_dimensionality::<Ix3>().ok()?;
                (logits.dim().1 == TOKENS).then(|| {
                    let rows = logits.index_axis(Axis(1), at - 1);
                    let rows = rows.rows().into_iter();
                    rows.map(|row| largest(row.iter())).collect::<Vec<i64>>()
                })
            };
            for (rows, chosen) in self.run(table, tokens, &likeliest)? {
                let Some(chosen) = chosen else {
                    return Ok(false);
                };
                for (row, chosen) in rows.into_iter().zip(chosen) {
                    let row = row as usize;
                    let before = tokens[[row, at - 1]];
                    let ended = at > 1 && Some(before) == self.generation.end;
                    let chosen = if ended { before } else { chosen };
                    let forced = self.generation.forced.get(&at);
                    tokens[[row, at]] = forced.copied().unwrap_or(chosen);
                }
            }
        }
        Ok(true)
    }

    /// The cache of all tokens but the last, by the inputs of a decoder that takes one.
    fn presents(
        &self,
        table: &BTreeMap<String, Values>,
        tokens: &Array2<i64>,
    ) -> Result<BTreeMap<String, Values>, EngineError> {
        let is_present = |name: &str| name.starts_with("present");
        let mut outputs = self.decoder.graph().output.iter();
        if !outputs.any(|o| is_present(o.name())) {
            return Ok(BTreeMap::new());
        }
        let before = tokens.slice(ndarray::s![.., ..TOKENS - 1]).to_owned();
        let keep = |_: &Batch, mut outputs: BTreeMap<String, ArrayD<f32>>| {
            outputs.retain(|name, _| is_present(name));
            outputs
        };
        let mut all: BTreeMap<String, ArrayD<f32>> = BTreeMap::new();
        for (name, part) in self
            .run(table, &before, &keep)?
            .into_iter()
            .flat_map(|f| f.1)
        {
            match all.get_mut(&name) {
                None => _ = all.insert(name, part),
                Some(whole) => {
                    let joined = ndarray::concatenate(Axis(0), &[whole.view(), part.view()]);
                    let wrong = |_| refused("the caches of two batches do not go together");
                    *whole = joined.map_err(wrong)?;
                }
            }
        }
        let past = |name: &str| match name.strip_prefix("present.") {
            Some(rest) => format!("past_key_values.{rest}"),
            None => name.replacen("present", "past", 1),
        };
        let named = all
            .into_iter()
            .map(|(name, values)| (past(&name), Values::F32(values)));
        Ok(named.collect())
    }
}

/// Integers of an input's type.
fn integers(input: &ModelInput, array: ArrayD<i64>) -> Values {
    match input.dtype {
        DataType::Int32 => Values::I32(array.mapv(|v| v as i32)),
        _ => Values::I64(array),
    }
}

fn rows_of(values: &Values) -> usize {
    match values {
        Values::F32(array) => array.shape().first().copied().unwrap_or(0),
        _ => 0,
    }
}

/// The place of the largest, the first if there are several.
fn largest<'a>(numbers: impl Iterator<Item = &'a f32>) -> i64 {
    let mut best = (0, f32::NEG_INFINITY);
    for (at, number) in numbers.enumerate() {
        if *number > best.1 {
            best = (at as i64, *number);
        }
    }
    best.0
}

fn refused(problem: &str) -> EngineError {
    EngineError::from(CalibError::Source {
        file: "the encoder and the decoder".into(),
        problem: problem.to_owned(),
    })
}
