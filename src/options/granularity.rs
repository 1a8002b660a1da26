//! What shares a scale: the standard and the fine-grained settings, and what a target makes of them.

use serde::{Deserialize, Serialize};

use super::{Format, Options, OptionsError};
use crate::solve::{ActivationGranularity, ActivationSpec, WeightGranularity, WeightSpec};
use crate::target::Profile;

/// What shares a scale of the activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Activations {
    /// [`Activations::PerTensor`]; where weights are in groups [`Activations::PerGroup`] if the target has it, else
    /// [`Activations::Float`].
    #[default]
    Auto,
    /// One constant scale for a value.
    PerTensor,
    /// One for every token, made at run time.
    PerToken,
    /// One for every group of channels of a token, as large as the groups of the weights, made by the runtime's operator.
    PerGroup,
    /// They stay in float.
    Float,
}

impl Activations {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Activations::Auto => "auto",
            Activations::PerTensor => "per-tensor",
            Activations::PerToken => "per-token",
            Activations::PerGroup => "per-group",
            Activations::Float => "float",
        }
    }
}

/// How embedding tables are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Embeddings {
    /// As they are.
    #[default]
    Float,
    /// In 8 bits: a scale per row, or per 16 elements where that is needed and the target has it.
    Int8,
    /// In 4 bits, a scale per 32 elements.
    Int4,
}

impl Embeddings {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Embeddings::Float => "float",
            Embeddings::Int8 => "int8",
            Embeddings::Int4 => "int4",
        }
    }
}

/// Whether groups of weights have zero points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Symmetry {
    /// Where tokens of the other half of the calibration say that they are worth it, and the target reads them.
    #[default]
    Auto,
    /// No.
    Symmetric,
    /// Yes.
    Asymmetric,
}

impl Symmetry {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Symmetry::Auto => "auto",
            Symmetry::Symmetric => "symmetric",
            Symmetry::Asymmetric => "asymmetric",
        }
    }
}

/// The smallest group that runtimes have an operator for.
const SMALLEST_GROUP: usize = 16;

impl Options {
    /// What shares a scale of the activations, with what [`Activations::Auto`] stands for.
    pub fn activations(&self) -> Activations {
        let in_groups = self.group().is_some();
        match self.activation_granularity {
            Activations::Auto if in_groups && self.format == Format::MatMulNBits => {
                Activations::PerGroup
            }
            Activations::Auto if in_groups => match self.profile().quantizes_behind_blocks {
                true => Activations::PerGroup,
                false => Activations::Float,
            },
            Activations::Auto => Activations::PerTensor,
            other => other,
        }
    }

    /// The channels of a group that were asked for, where weights are in groups.
    pub fn group(&self) -> Option<usize> {
        match self.weight_granularity {
            WeightGranularity::Group(size) => Some(size),
            WeightGranularity::PerTensor | WeightGranularity::PerChannel => None,
        }
    }

    /// The channels of a group of a weight with `k` input channels: as many as were asked for, or fewer, where the target needs
    /// groups of equal size; `None` if no group divides them.
    pub fn group_of(&self, k: usize) -> Option<usize> {
        let wanted = self.group()?;
        if self.profile().ragged_groups && self.format == Format::MatMulNBits {
            return Some(wanted);
        }
        let smaller = std::iter::successors(Some(wanted), |size| Some(size / 2));
        let mut usable = smaller.take_while(|&size| size >= SMALLEST_GROUP);
        usable.find(|&size| k.is_multiple_of(size))
    }

    /// How activations with `k` channels are quantized before a Linear.
    pub fn activation_of(&self, k: usize) -> ActivationSpec {
        let granularity = match self.activations() {
            Activations::Auto | Activations::PerTensor => ActivationGranularity::PerTensor,
            Activations::PerToken => ActivationGranularity::PerToken,
            Activations::PerGroup => match self.group_of(k) {
                Some(size) => ActivationGranularity::PerGroup(size),
                None => ActivationGranularity::Float,
            },
            Activations::Float => ActivationGranularity::Float,
        };
        ActivationSpec {
            granularity,
            ..self.activation()
        }
    }

    /// How a weight with `k` input channels is quantized, in groups with zero points if it may have them.
    pub fn weight_of(&self, k: usize) -> WeightSpec {
        let weight = self.weight();
        match (weight.group(), self.group_of(k)) {
            (Some(_), Some(size)) => WeightSpec {
                granularity: WeightGranularity::Group(size),
                ..weight
            },
            _ => weight,
        }
    }

    /// The same for a weight that has 8 bits because it needs them.
    pub fn raised_weight_of(&self, k: usize) -> WeightSpec {
        WeightSpec {
            bits: self.stored_bits(8),
            ..self.weight_of(k)
        }
    }

    /// Whether groups may have zero points, and whether they have them without being asked.
    pub fn zero_points(&self) -> Symmetry {
        let possible = self.group().is_some() && self.profile().zero_points_of_groups;
        match self.weight_symmetry {
            _ if !possible => Symmetry::Symmetric,
            asked => asked,
        }
    }

    /// The granularities, each and together.
    pub(super) fn validate_granularity(&self) -> Result<(), OptionsError> {
        let (profile, format) = (self.profile(), self.format);
        let refused = |setting, reason| OptionsError::Granularity { setting, reason };
        if let Some(size) = self.group() {
            if !size.is_power_of_two() || !(SMALLEST_GROUP..=256).contains(&size) {
                return Err(refused(
                    format!("groups of {size}"),
                    "runtimes multiply groups of 16, 32, 64, 128 and 256".to_owned(),
                ));
            }
            if format == Format::QOperator {
                return Err(refused(
                    format!("groups of {size}"),
                    "QLinearMatMul has a scale per column".to_owned(),
                ));
            }
        }
        let fine = self.activation_granularity;
        match (fine, self.group()) {
            (Activations::PerTensor | Activations::PerToken, Some(_)) => Err(refused(
                format!("activations {} before weights in groups", fine.name()),
                "no runtime multiplies them in integers: per-group or float".to_owned(),
            )),
            (Activations::PerGroup | Activations::Float, None) => Err(refused(
                format!("activations {}", fine.name()),
                "the weights must be in groups, as in group:32".to_owned(),
            )),
            (Activations::PerToken, None) if format == Format::QOperator => Err(refused(
                "activations per-token".to_owned(),
                "QLinearMatMul has a constant scale".to_owned(),
            )),
            (Activations::PerGroup, Some(_)) if !self.has_dynamic_groups(&profile) => Err(refused(
                "activations per-group".to_owned(),
                format!(
                    "no operator of target {} quantizes them so: leave it out, and they stay in float",
                    profile.name
                ),
            )),
            _ => self.validate_groups(&profile),
        }
    }

    fn has_dynamic_groups(&self, profile: &Profile) -> bool {
        self.format == Format::MatMulNBits || profile.quantizes_behind_blocks
    }

    /// What needs weights in groups, and what they need.
    fn validate_groups(&self, profile: &Profile) -> Result<(), OptionsError> {
        let refused = |setting: String, reason: &str| OptionsError::Granularity {
            setting,
            reason: reason.to_owned(),
        };
        let format = self.format.name();
        if let (Format::MatMulNBits, Some(reason)) = (self.format, profile.no_matmulnbits) {
            return Err(OptionsError::FormatRefused {
                format,
                target: profile.name,
                reason,
            });
        }
        if self.format == Format::MatMulNBits && self.group().is_none() {
            return Err(refused(
                format!("format {format}"),
                "its weights are in groups: weight granularity group:32, say",
            ));
        }
        if self.group().is_some() {
            let form = match self.format {
                Format::MatMulNBits => &[2, 4, 8][..],
                _ => profile.bits_of_blocks,
            };
            if self.format != Format::Float && !form.contains(&self.weight_bits) {
                let possible: Vec<String> = form.iter().map(u8::to_string).collect();
                return Err(OptionsError::Granularity {
                    setting: format!("groups of weights of {} bits", self.weight_bits),
                    reason: format!(
                        "format {format} for target {} has those of {} bits",
                        profile.name,
                        possible.join(", ")
                    ),
                });
            }
            if self.activation_bits != 8 && self.activations() == Activations::PerGroup {
                return Err(refused(
                    format!("activations of {} bits in groups", self.activation_bits),
                    "MatMulNBits makes them of 8 bits",
                ));
            }
        }
        if self.weight_symmetry == Symmetry::Asymmetric
            && self.zero_points() != Symmetry::Asymmetric
        {
            return Err(refused(
                "weights with zero points".to_owned(),
                "they need groups, and a target that reads zero points of groups",
            ));
        }
        Ok(())
    }
}
