//! `preprocessor_config.json` of image models.

use std::path::Path;

use serde_json::Value;

use super::pixels::Pixels;
use super::resize::{Filter, resize};
use crate::prepare::error::PrepareError;
use crate::prepare::settings::Settings;

/// The largest side of an image that is made.
const LARGEST: usize = 1 << 14;

/// How large an image becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// Height and width.
    Exact(usize, usize),
    /// The shorter side; the other in proportion.
    Shortest(usize),
}

/// What is done to an image.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Processor {
    resize: Option<Size>,
    filter: Filter,
    crop: Option<(usize, usize)>,
    rescale: Option<f64>,
    normalize: Option<([f32; 3], [f32; 3])>,
}

/// What a kind of processor does where its file does not say.
struct Defaults {
    /// How its name begins.
    kind: &'static str,
    size: Size,
    /// Whether a size of one number is a square.
    square: bool,
    filter: Filter,
    crop: Option<usize>,
    mean: [f32; 3],
    std: [f32; 3],
}

const HALF: [f32; 3] = [0.5; 3];
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

const KINDS: [Defaults; 7] = [
    Defaults {
        kind: "ViT",
        size: Size::Exact(224, 224),
        square: true,
        filter: Filter::Bilinear,
        crop: None,
        mean: HALF,
        std: HALF,
    },
    Defaults {
        kind: "CLIP",
        size: Size::Shortest(224),
        square: false,
        filter: Filter::Bicubic,
        crop: Some(224),
        mean: CLIP_MEAN,
        std: CLIP_STD,
    },
    Defaults {
        kind: "Bit",
        size: Size::Shortest(224),
        square: false,
        filter: Filter::Bicubic,
        crop: Some(224),
        mean: CLIP_MEAN,
        std: CLIP_STD,
    },
    Defaults {
        kind: "DeiT",
        size: Size::Exact(256, 256),
        square: true,
        filter: Filter::Bicubic,
        crop: Some(224),
        mean: IMAGENET_MEAN,
        std: IMAGENET_STD,
    },
    Defaults {
        kind: "Beit",
        size: Size::Exact(256, 256),
        square: true,
        filter: Filter::Bicubic,
        crop: Some(224),
        mean: HALF,
        std: HALF,
    },
    Defaults {
        kind: "Siglip",
        size: Size::Exact(224, 224),
        square: true,
        filter: Filter::Bicubic,
        crop: None,
        mean: HALF,
        std: HALF,
    },
    Defaults {
        kind: "ConvNext",
        size: Size::Shortest(384),
        square: false,
        filter: Filter::Bilinear,
        crop: None,
        mean: IMAGENET_MEAN,
        std: IMAGENET_STD,
    },
];

/// What is understood of a file that names another kind.
const STEPS: [&str; 5] = [
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "do_convert_rgb",
];

impl Processor {
    /// Reads the configuration for `data`; also gives what is to be said of it.
    ///
    /// # Errors
    /// There is none, or one of a kind that is not known here.
    pub(super) fn load(
        data: &Path,
        settings: &Settings,
    ) -> Result<(Processor, Vec<String>), PrepareError> {
        let (file, config) = settings.preprocessor(data, "is an image", "image_processor")?;
        let kind = config
            .text("image_processor_type")
            .or_else(|| config.text("feature_extractor_type"));
        let kind = kind.unwrap_or("an image processor without a name");
        let known = KINDS.iter().find(|of| {
            let rest = kind.strip_prefix(of.kind).unwrap_or_default();
            ["ImageProcessor", "ImageProcessorFast", "FeatureExtractor"].contains(&rest)
        });
        let mut notes = Vec::new();
        let wrong = |problem: String| PrepareError::file(&file, problem);
        if settings.preprocessor.is_none() {
            notes.push(format!("images are prepared by {}", file.display()));
        }
        let defaults = match known {
            Some(defaults) => defaults,
            None => {
                let other = config.keys().find(|key| {
                    key.starts_with("do_") && config.flag(key) == Some(true) && !STEPS.contains(key)
                });
                if let Some(step) = other {
                    return Err(wrong(format!(
                        "{kind} has the step {step}, which is not known here; give arrays"
                    )));
                }
                if config.get("size").is_none() {
                    return Err(wrong(format!(
                        "{kind} is not known here, and its file states no size; give arrays"
                    )));
                }
                notes.push(format!(
                    "{kind} is not known here; its file is read as that of a ViTImageProcessor"
                ));
                &KINDS[0]
            }
        };
        let flag = |key: &str, standard: bool| config.flag(key).unwrap_or(standard);
        let number = match config.get("resample") {
            None => Some(defaults.filter),
            Some(value) => value.as_u64().and_then(|n| Filter::numbered(n as usize)),
        };
        let size = match config.get("size") {
            None => defaults.size,
            Some(value) => size(value, defaults.square)
                .ok_or_else(|| wrong(format!("has a size that is not understood: {value}")))?,
        };
        let crop = match (config.get("crop_size"), defaults.crop) {
            (Some(value), _) => match size_of_crop(value) {
                Some(crop) => Some(crop),
                None => {
                    return Err(wrong(format!(
                        "has a crop_size that is not understood: {value}"
                    )));
                }
            },
            (None, Some(n)) => Some((n, n)),
            (None, None) => None,
        };
        let crops = match known {
            // Some files state what their processor never does.
            Some(of) if of.crop.is_none() => false,
            Some(_) => flag("do_center_crop", true),
            None => flag("do_center_crop", false),
        };
        let mut processor = Processor {
            resize: flag("do_resize", true).then_some(size),
            filter: number
                .ok_or_else(|| wrong("has a resample that is no number from 0 to 5".to_owned()))?,
            crop: crop.filter(|_| crops),
            rescale: flag("do_rescale", true)
                .then(|| config.number("rescale_factor").unwrap_or(1.0 / 255.0)),
            normalize: None,
        };
        if flag("do_normalize", true) {
            let three = |key: &str, standard: [f32; 3]| match config.get(key) {
                None => Ok(standard),
                Some(value) => colours(value).ok_or_else(|| {
                    wrong(format!(
                        "has an {key} that is not one or three numbers: {value}"
                    ))
                }),
            };
            processor.normalize = Some((
                three("image_mean", defaults.mean)?,
                three("image_std", defaults.std)?,
            ));
        }
        if defaults.kind == "ConvNext" {
            processor.crop_as_convnext(config.number("crop_pct").unwrap_or(224.0 / 256.0));
        }
        Ok((processor, notes))
    }

    /// Small images are made larger first, and cropped; large ones are squares.
    fn crop_as_convnext(&mut self, part: f64) {
        if let Some(Size::Shortest(n)) = self.resize {
            if n < 384 {
                self.resize = Some(Size::Shortest((n as f64 / part) as usize));
                self.crop = Some((n, n));
            } else {
                self.resize = Some(Size::Exact(n, n));
            }
        }
    }

    /// An image in the size that the model takes.
    ///
    /// # Errors
    /// It would be larger than any model takes.
    pub(super) fn resized(&self, path: &Path, image: Pixels) -> Result<Pixels, PrepareError> {
        let image = match self.resize {
            None => image,
            Some(size) => {
                let (height, width) = match size {
                    Size::Exact(height, width) => (height, width),
                    Size::Shortest(n) => {
                        let (short, long) =
                            (image.width.min(image.height), image.width.max(image.height));
                        // Rounded down, as Python's int does.
                        let long = (n as f64 * long as f64 / short as f64) as usize;
                        match image.width <= image.height {
                            true => (long, n),
                            false => (n, long),
                        }
                    }
                };
                if height.max(width) > LARGEST || height.min(width) == 0 {
                    return Err(PrepareError::file(
                        path,
                        format!("would become {width} x {height} pixels"),
                    ));
                }
                resize(image, (height, width), self.filter)
            }
        };
        Ok(match self.crop {
            None => image,
            Some(size) => crop(&image, size),
        })
    }

    /// The number that a model is fed with for a colour of a pixel.
    pub(super) fn value(&self, pixel: u8, colour: usize) -> f32 {
        let value = match self.rescale {
            Some(factor) => (f64::from(pixel) * factor) as f32,
            None => f32::from(pixel),
        };
        match &self.normalize {
            Some((mean, std)) => (value - mean[colour]) / std[colour],
            None => value,
        }
    }
}

/// `{"height": 224, "width": 224}`, `{"shortest_edge": 224}`, 224, or `[224, 224]`.
fn size(value: &Value, square: bool) -> Option<Size> {
    let number =
        |value: &Value| Some(value.as_u64()? as usize).filter(|n| (1..=LARGEST).contains(n));
    if let Some(n) = number(value) {
        return Some(match square {
            true => Size::Exact(n, n),
            false => Size::Shortest(n),
        });
    }
    if let Some([height, width]) = value.as_array().map(Vec::as_slice) {
        return Some(Size::Exact(number(height)?, number(width)?));
    }
    match (value.get("height"), value.get("shortest_edge")) {
        (Some(height), _) => Some(Size::Exact(number(height)?, number(value.get("width")?)?)),
        (None, Some(n)) => Some(Size::Shortest(number(n)?)),
        (None, None) => None,
    }
}

fn size_of_crop(value: &Value) -> Option<(usize, usize)> {
    match size(value, true)? {
        Size::Exact(height, width) => Some((height, width)),
        Size::Shortest(n) => Some((n, n)),
    }
}

fn colours(value: &Value) -> Option<[f32; 3]> {
    if let Some(one) = value.as_f64() {
        return Some([one as f32; 3]);
    }
    let numbers: Option<Vec<f32>> = value
        .as_array()?
        .iter()
        .map(|n| Some(n.as_f64()? as f32))
        .collect();
    numbers?.try_into().ok()
}

/// The middle of an image, with black around it where it is smaller.
fn crop(image: &Pixels, (height, width): (usize, usize)) -> Pixels {
    // Where a pixel of the crop lies in the image: rounded down where something is cut off, and up where it is padded.
    let offset = |size: usize, wanted: usize| match size >= wanted {
        true => ((size - wanted) / 2) as i64,
        false => -(((wanted - size).div_ceil(2)) as i64),
    };
    let (top, left) = (offset(image.height, height), offset(image.width, width));
    let mut data = Vec::with_capacity(height * width * 3);
    for y in 0..height as i64 {
        for x in 0..width as i64 {
            let (row, column) = (y + top, x + left);
            let inside = (0..image.height as i64).contains(&row)
                && (0..image.width as i64).contains(&column);
            match inside {
                true => data.extend_from_slice(
                    &image.data[(row as usize * image.width + column as usize) * 3..][..3],
                ),
                false => data.extend([0; 3]),
            }
        }
    }
    Pixels {
        width,
        height,
        data,
    }
}
