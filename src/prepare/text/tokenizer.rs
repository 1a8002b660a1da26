//! A tokenizer with what the configuration beside it says of lengths and padding, as `transformers` reads it.

use std::path::Path;

use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::{
    PaddingDirection, PaddingParams, PostProcessor, Tokenizer, TruncationDirection,
    TruncationParams, TruncationStrategy,
};

use super::role::Role;
use crate::prepare::config::{Config, bytes};
use crate::prepare::error::{PrepareError, Setting};
use crate::prepare::rows::Row;
use crate::prepare::settings::{CONFIG, SENTENCE_BERT, Settings, TOKENIZER_CONFIG};

/// Tokens of a row at most where the configuration allows more, or says nothing, and nobody asked: attention takes memory
/// by the square of it.
const MOST_TOKENS: usize = 2048;

/// Models whose table of positions begins behind that of the padding.
const OFFSET_POSITIONS: [&str; 8] = [
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "mpnet",
    "longformer",
    "ibert",
    "data2vec-text",
];

/// A row as tokens, without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Encoded {
    pub(super) ids: Vec<u32>,
    pub(super) types: Vec<u32>,
}

/// A tokenizer, and how its rows are cut and padded.
pub(super) struct TextTokenizer {
    tokenizer: Tokenizer,
    pad: PaddingParams,
    limit: Limit,
    /// Whether the model compares two texts.
    pub(super) pairs: bool,
    /// Whether the configuration tells that it does not.
    pub(super) embeds: bool,
    /// What was found by itself.
    pub(super) notes: Vec<String>,
}

/// Tokens of a row at most, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Limit {
    tokens: usize,
    by: String,
}

/// The files that a tokenizer is read with.
struct Configs {
    tokenizer: Config,
    sentence: Config,
    model: Config,
}

impl TextTokenizer {
    /// Reads the tokenizer for the text in `data`; rows have `fixed` tokens where the model says so.
    ///
    /// # Errors
    /// There is none, or one that cannot be read; rows of fewer tokens are asked for than it adds itself.
    pub(super) fn load(
        data: &Path,
        settings: &Settings,
        fixed: Option<usize>,
    ) -> Result<TextTokenizer, PrepareError> {
        let Some(path) = settings.tokenizer()? else {
            return Err(PrepareError::needs(
                data,
                Setting::Tokenizer,
                "holds text, and there is no tokenizer.json beside the model: name the tokenizer that belongs to it",
            ));
        };
        let mut tokenizer = Tokenizer::from_bytes(bytes(&path)?).map_err(|e| {
            PrepareError::file(&path, format!("is no tokenizer that can be read: {e}"))
        })?;
        let folders = settings.all_folders(&path);
        let configs = Configs {
            tokenizer: Config::of(&folders[..1], TOKENIZER_CONFIG)?,
            sentence: Config::of(&folders, SENTENCE_BERT)?,
            model: Config::of(&folders, CONFIG)?,
        };
        configs.adapt_normalizer(&mut tokenizer);
        let pad = configs.padding(&tokenizer);
        let limit = configs.limit(&tokenizer, settings, fixed, &path)?;
        let truncation = configs.truncation(&tokenizer, &limit);
        // Room for one token more than a pair adds; less is computed unchecked inside.
        let added = tokenizer
            .get_post_processor()
            .map_or(0, |p| p.added_tokens(true));
        if limit.tokens <= added {
            let problem = format!(
                "rows of {} tokens ({}) have no room for text beside the {added} that the tokenizer adds",
                limit.tokens, limit.by
            );
            return Err(PrepareError::needs(&path, Setting::MaxLength, problem));
        }
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(Some(truncation))
            .map_err(|e| PrepareError::file(&path, e.to_string()))?;
        let notes = match &settings.tokenizer {
            Some(_) => Vec::new(),
            None => vec![format!("text is tokenized by {}", path.display())],
        };
        Ok(TextTokenizer {
            pairs: configs.compares(),
            embeds: configs.embeds(),
            tokenizer,
            pad,
            limit,
            notes,
        })
    }

    /// The tokens of `rows`, one after the other, and how many rows were cut.
    ///
    /// # Errors
    /// Text that the tokenizer refuses.
    pub(super) fn encode(
        &self,
        path: &Path,
        rows: &[&Row],
    ) -> Result<(Vec<Encoded>, usize), PrepareError> {
        let mut encoded = Vec::with_capacity(rows.len());
        let mut cut = 0;
        for row in rows {
            // Row by row: the batch call takes threads and an environment variable.
            let tokens = match &row.second {
                None => self.tokenizer.encode(row.first.as_str(), true),
                Some(second) => self
                    .tokenizer
                    .encode((row.first.as_str(), second.as_str()), true),
            };
            let tokens = tokens.map_err(|e| {
                PrepareError::file(path, format!("{:?} cannot be tokenized: {e}", row.first))
            })?;
            cut += usize::from(!tokens.get_overflowing().is_empty());
            encoded.push(Encoded {
                ids: tokens.get_ids().to_vec(),
                types: tokens.get_type_ids().to_vec(),
            });
        }
        Ok((encoded, cut))
    }

    /// What is said of rows that were cut.
    pub(super) fn cut_note(&self, path: &Path, cut: usize, all: usize) -> String {
        let Limit { tokens, by } = &self.limit;
        format!(
            "{cut} of {all} rows of {} were cut to {tokens} tokens ({by})",
            path.display()
        )
    }

    /// The length that rows of at most `longest` tokens are padded to.
    pub(super) fn padded(&self, longest: usize) -> usize {
        let multiple = self.pad.pad_to_multiple_of.unwrap_or(1).max(1);
        match longest.div_ceil(multiple).checked_mul(multiple) {
            Some(length) if length <= self.limit.tokens => length,
            _ => longest,
        }
    }

    /// What an input is fed with for a row, padded to `length`.
    pub(super) fn values(&self, row: &Encoded, role: Role, length: usize) -> Vec<i64> {
        let count = row.ids.len();
        let numbers = |numbers: &[u32]| numbers.iter().map(|n| i64::from(*n)).collect();
        let (mut values, pad): (Vec<i64>, i64) = match role {
            Role::Ids => (numbers(&row.ids), self.pad.pad_id.into()),
            Role::Types => (numbers(&row.types), self.pad.pad_type_id.into()),
            Role::Mask => (vec![1; count], 0),
            Role::Positions => ((0..count as i64).collect(), 1),
        };
        let missing = length.saturating_sub(count);
        match (self.pad.direction, role) {
            (PaddingDirection::Left, _) => {
                values.splice(0..0, std::iter::repeat_n(pad, missing));
            }
            (PaddingDirection::Right, Role::Positions) => {
                values.extend(count as i64..length as i64);
            }
            (PaddingDirection::Right, _) => values.extend(std::iter::repeat_n(pad, missing)),
        }
        values
    }
}

impl Configs {
    /// Whether the model compares two texts, as rerankers and models of entailment do.
    fn compares(&self) -> bool {
        let names = self.model.get("architectures").and_then(|a| a.as_array());
        let mut names = names.into_iter().flatten().filter_map(|name| name.as_str());
        names.any(|name| {
            ["ForSequenceClassification", "ForQuestionAnswering"]
                .iter()
                .any(|end| name.ends_with(end))
        })
    }

    /// Whether it is said what the model is, and that is none that compares two texts: such a model gives vectors to be compared.
    fn embeds(&self) -> bool {
        self.model.get("architectures").is_some() && !self.compares()
    }

    /// The flags of a BERT normalizer that the configuration of the tokenizer states win over those in `tokenizer.json`.
    fn adapt_normalizer(&self, tokenizer: &mut Tokenizer) {
        let Some(NormalizerWrapper::BertNormalizer(bert)) = tokenizer.get_normalizer() else {
            return;
        };
        let mut bert = *bert;
        let flag = |key: &str| self.tokenizer.get(key).and_then(|v| v.as_bool());
        if let Some(lowercase) = flag("do_lower_case") {
            bert.lowercase = lowercase;
        }
        if let Some(strip) = flag("strip_accents") {
            bert.strip_accents = Some(strip);
        }
        if let Some(chinese) = flag("tokenize_chinese_chars") {
            bert.handle_chinese_chars = chinese;
        }
        tokenizer.with_normalizer(Some(bert));
    }

    /// Which token pads, and on which side.
    fn padding(&self, tokenizer: &Tokenizer) -> PaddingParams {
        let own = tokenizer.get_padding().cloned();
        let has_own = own.is_some();
        let mut pad = own.unwrap_or_default();
        let token = |key: &str| {
            self.tokenizer
                .text(key)
                .and_then(|t| tokenizer.token_to_id(t))
        };
        let number = |key: &str| self.model.size(key).and_then(|id| u32::try_from(id).ok());
        if let Some(id) = token("pad_token") {
            pad.pad_id = id;
        } else if !has_own {
            // Behind a mask any token does.
            let id = number("pad_token_id").or_else(|| token("eos_token"));
            pad.pad_id = id.unwrap_or(0);
        }
        if let Some(id) = self.tokenizer.size("pad_token_type_id") {
            pad.pad_type_id = u32::try_from(id).unwrap_or(0);
        }
        match self.tokenizer.text("padding_side") {
            Some("left") => pad.direction = PaddingDirection::Left,
            Some("right") => pad.direction = PaddingDirection::Right,
            _ => {}
        }
        pad
    }

    fn truncation(&self, tokenizer: &Tokenizer, limit: &Limit) -> TruncationParams {
        let own = tokenizer.get_truncation().map(|own| own.direction);
        TruncationParams {
            direction: match self.tokenizer.text("truncation_side") {
                Some("left") => TruncationDirection::Left,
                Some("right") => TruncationDirection::Right,
                _ => own.unwrap_or(TruncationDirection::Right),
            },
            max_length: limit.tokens,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        }
    }

    /// Positions that the model has, and the file's key that says so.
    fn positions(&self) -> Option<Limit> {
        let key = ["max_position_embeddings", "n_positions"]
            .into_iter()
            .find(|key| self.model.size(key).is_some_and(|n| n > 0))?;
        let mut tokens = self.model.size(key)?;
        if self
            .model
            .text("model_type")
            .is_some_and(|of| OFFSET_POSITIONS.contains(&of))
        {
            tokens = tokens.saturating_sub(self.model.size("pad_token_id").unwrap_or(1) + 1);
        }
        Some(Limit {
            tokens,
            by: format!("{key} of {CONFIG}"),
        })
    }

    /// Tokens of a row at most.
    ///
    /// # Errors
    /// More are asked for than the model takes.
    fn limit(
        &self,
        tokenizer: &Tokenizer,
        settings: &Settings,
        fixed: Option<usize>,
        path: &Path,
    ) -> Result<Limit, PrepareError> {
        let fixed = fixed.map(|tokens| Limit {
            tokens,
            by: "the length that the model fixes".to_owned(),
        });
        let bounds = [fixed, self.positions()].into_iter().flatten();
        let bound = bounds.min_by_key(|limit| limit.tokens);
        if let Some(tokens) = settings.max_length {
            if let Some(bound) = bound.filter(|bound| bound.tokens < tokens) {
                let problem = format!(
                    "rows of {tokens} tokens were asked for, and the model takes {} ({})",
                    bound.tokens, bound.by
                );
                return Err(PrepareError::needs(path, Setting::MaxLength, problem));
            }
            let by = "as asked for".to_owned();
            return Ok(Limit { tokens, by });
        }
        let says = |config: &Config, key: &str, file: &str| {
            let tokens = config.size(key).filter(|n| *n > 0)?;
            let by = format!("{key} of {file}");
            Some(Limit { tokens, by })
        };
        let own = || {
            let tokens = tokenizer.get_truncation()?.max_length;
            let by = "truncation of tokenizer.json".to_owned();
            Some(Limit { tokens, by })
        };
        let stated = says(&self.sentence, "max_seq_length", SENTENCE_BERT)
            .or_else(|| says(&self.tokenizer, "model_max_length", TOKENIZER_CONFIG))
            .or_else(own);
        let usual = Limit {
            tokens: MOST_TOKENS,
            by: "more if asked for".to_owned(),
        };
        let limits = [stated, bound, Some(usual)].into_iter().flatten();
        // Of equal ones the first, which is the most telling.
        Ok(limits.min_by_key(|limit| limit.tokens).unwrap_or(Limit {
            tokens: MOST_TOKENS,
            by: String::new(),
        }))
    }
}
