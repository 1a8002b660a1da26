//! What to do about an error on the command line. The library's errors speak of its settings; here they get their flags.

use onnx_osplus::calibrate::{CalibError, EngineError, LabelError, MetricError};
use onnx_osplus::prepare::{PrepareError, Setting};
use onnx_osplus::rewrite::RewriteError;
use onnx_osplus::{Error, OptionsError};

/// The flags that help, if there are any.
pub(super) fn hint(error: &Error) -> Option<String> {
    const EXCLUDE: &str = "--exclude REGEX leaves Linears in float";
    let hint = match error {
        Error::Options(error) => return usage(error),
        Error::NotFinite { .. } | Error::Rewrite(RewriteError::Overflow { .. }) => {
            EXCLUDE.to_owned()
        }
        Error::Lint { target, .. } => {
            format!("{EXCLUDE}; the target was --target {target}")
        }
        Error::Rounding { .. } | Error::FloatCheck { .. } => {
            format!("--method none migrates nothing; {EXCLUDE}")
        }
        Error::Streaming { .. } => "--streaming off".to_owned(),
        Error::Work { problem, .. } if problem.contains("interrupted") => {
            "--resume goes on with it, --force starts anew".to_owned()
        }
        Error::MinSqnr { wanted, .. } => format!(
            "--keep-float allows more in float, --min-sqnr asked for {wanted} dB, --weight-bits and --activation-bits give more bits"
        ),
        Error::MinMetric { .. } => {
            "--keep-float allows more in float, --min-metric asked for it, --weight-bits and --activation-bits give more bits"
                .to_owned()
        }
        Error::Metric(MetricError::Labels(error)) => return labels(error),
        Error::Metric(MetricError::Outputs(_)) => {
            "--metric-output NAME looks at another output, --metric NAME takes another metric".to_owned()
        }
        Error::BlocksOpset {
            has_matmulnbits: true,
            ..
        } => {
            "--format matmulnbits needs no newer operator set, --weight-granularity per-channel neither"
                .to_owned()
        }
        Error::BlocksOpset { .. } => {
            "--weight-granularity per-channel needs no newer operator set".to_owned()
        }
        Error::NothingToQuantize(why) if why.contains("already quantized") => {
            "onnx-osplus dequantize IN FLOAT makes a float model of it, which can be quantized again"
                .to_owned()
        }
        Error::Calibration(error) => return data(error),
        Error::Engine(EngineError::Data(error)) => return data(error),
        Error::Engine(
            EngineError::UnsupportedOps { .. }
            | EngineError::Refused { .. }
            | EngineError::UnknownShape { .. },
        ) => "--engine onnxruntime runs the model with the library of ONNX Runtime, if you have it".to_owned(),
        Error::Engine(EngineError::Plan { reason, .. } | EngineError::Run { reason, .. })
            if !reason.starts_with("ONNX Runtime") =>
        {
            "--engine onnxruntime runs the model with the library of ONNX Runtime, if you have it".to_owned()
        }
        Error::Engine(EngineError::Threads { .. }) => {
            "--threads N asks for N threads, 0 for one per core".to_owned()
        }
        _ => return None,
    };
    Some(hint)
}

/// How a file is given to an input.
pub(super) fn data(error: &CalibError) -> Option<String> {
    match error {
        CalibError::Ambiguous { file, .. } => Some(format!("--calib NAME={}", file.display())),
        CalibError::Missing { missing, .. } => Some(format!("--calib {missing}=FILE.npy")),
        CalibError::Prepare(error) => data_setting(error).map(str::to_owned),
        _ => None,
    }
}

/// The flag for what text, images or recordings need.
fn data_setting(error: &PrepareError) -> Option<&'static str> {
    let PrepareError::Needs { setting, .. } = error else {
        return None;
    };
    Some(match setting {
        Setting::Tokenizer => "--tokenizer DIR, or --tokenizer FILE.json",
        Setting::Preprocessor => "--preprocessor DIR, or --preprocessor FILE.json",
        Setting::Columns => "--column NAME; for pairs --column NAME --column NAME",
        Setting::MaxLength => "--max-length TOKENS",
        Setting::Labels => "--label-column NAME",
    })
}

/// What helps where labels do not go with the rows.
fn labels(error: &LabelError) -> Option<String> {
    match error {
        LabelError::Prepare(error) => data_setting(error).map(str::to_owned),
        LabelError::NoneHeldOut { .. } | LabelError::PairsHeldOut => {
            Some("--eval FILE has rows of their own".to_owned())
        }
        LabelError::None(_) => Some("--label-column NAME takes another column".to_owned()),
        _ => None,
    }
}

/// Which flags contradict each other.
fn usage(error: &OptionsError) -> Option<String> {
    let hint = match error {
        OptionsError::NothingSaturates { target } => {
            format!("--reduce-range has no use with --target {target}")
        }
        OptionsError::FormatRefused { format, target, .. } => {
            format!("--format {format} needs --target ort; with --target {target} use --format qdq")
        }
        OptionsError::QuantizesNothing { format, setting } => {
            let flag = match *setting {
                "keep_float" => "--keep-float",
                "min_sqnr_db" => "--min-sqnr",
                "attention" => "--attention int8",
                "embeddings" => "--embeddings",
                _ => return None,
            };
            format!("{flag} has no meaning with --format {format}")
        }
        OptionsError::NoQdqWeights { format } => {
            format!("--weights-as-float-qdq needs --format qdq, not {format}")
        }
        OptionsError::NoRotations(_) => {
            "--max-slowdown needs --format qdq or qoperator, and goes without --no-extra-nodes"
                .to_owned()
        }
        OptionsError::MinSqnr(_) => "--min-sqnr takes a number such as 25".to_owned(),
        _ => return None,
    };
    Some(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use onnx_osplus::graph::opset::OpsetError;
    use onnx_osplus::target::Target;
    use onnx_osplus::{AttentionMode, Format, KeepFloat, Options};

    #[test]
    fn how_a_file_is_given_to_an_input_is_told() {
        let missing = CalibError::Missing {
            file: "ids.npy".into(),
            missing: "attention_mask".to_owned(),
            inputs: String::new(),
        };
        let told = hint(&Error::from(missing)).unwrap();
        assert_eq!(told, "--calib attention_mask=FILE.npy");
        let ambiguous = CalibError::Ambiguous {
            file: "ids.npy".into(),
            count: 2,
            inputs: String::new(),
        };
        let told = hint(&Error::from(ambiguous)).unwrap();
        assert_eq!(told, "--calib NAME=ids.npy");
        assert_eq!(hint(&Error::from(CalibError::NoSource)), None);
    }

    #[test]
    fn what_needs_no_newer_operator_set_is_told() {
        for (has_matmulnbits, flag) in [
            (true, "--format matmulnbits"),
            (false, "--weight-granularity per-channel"),
        ] {
            let error = Error::BlocksOpset {
                error: OpsetError::Target { minimum: 22 },
                has_matmulnbits,
            };
            assert_eq!(error.to_string().contains("MatMulNBits"), has_matmulnbits);
            assert!(!error.to_string().contains("--"), "{error}");
            assert!(hint(&error).unwrap().starts_with(flag));
        }
    }

    #[test]
    fn every_contradiction_of_flags_names_them() {
        let base = Options::default;
        let asked = [
            (
                Options {
                    target: Target::Tensorrt,
                    reduce_range: true,
                    ..base()
                },
                ["--reduce-range", "--target tensorrt"],
            ),
            (
                Options {
                    target: Target::Openvino,
                    format: Format::QOperator,
                    ..base()
                },
                ["--format qoperator", "--target openvino"],
            ),
            (
                Options {
                    format: Format::Float,
                    keep_float: Some(KeepFloat::Linears(2)),
                    ..base()
                },
                ["--keep-float", "--format float"],
            ),
            (
                Options {
                    format: Format::Float,
                    min_sqnr_db: Some(20.0),
                    ..base()
                },
                ["--min-sqnr", "--format float"],
            ),
            (
                Options {
                    format: Format::Float,
                    attention: AttentionMode::Int8,
                    ..base()
                },
                ["--attention int8", "--format float"],
            ),
        ];
        for (options, flags) in asked {
            let error = Error::from(options.validate().unwrap_err());
            assert!(!error.to_string().contains("--"), "{error}");
            let hint = hint(&error).unwrap();
            assert!(flags.iter().all(|flag| hint.contains(flag)), "{hint}");
        }
    }
}
