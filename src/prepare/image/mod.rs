//! Images to pixels as a model wants them, as the image processors of `transformers` make them.

mod config;
mod pixels;
mod resize;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageDecoder, ImageReader};

use super::arrays::{Array, Arrays, Elements, Prepared, Wanted};
use super::config::bytes;
use super::error::{PrepareError, guarded};
use super::sampling::{sampled, spread};
use super::settings::Settings;
use config::Processor;
use pixels::Pixels;

/// Images that are used where nobody says how many.
const SAMPLES: usize = 128;

/// The extensions of images that are read.
pub(super) const EXTENSIONS: [&str; 5] = ["png", "jpg", "jpeg", "webp", "bmp"];

/// Where the colours of an input are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    ChannelsFirst,
    ChannelsLast,
}

/// Makes what the model's input of pixels is fed with from images.
///
/// # Errors
/// No configuration, one that is not understood, an image that cannot be read, a model without such an input.
pub(super) fn prepare(
    paths: &[PathBuf],
    inputs: &[Wanted],
    settings: &Settings,
) -> Result<Prepared, PrepareError> {
    let first = paths.first().map_or(Path::new(""), PathBuf::as_path);
    let (input, layout) = input(first, inputs)?;
    let (processor, mut notes) = Processor::load(first, settings)?;
    let count = settings.count(SAMPLES);
    if settings.samples.is_none() && count < paths.len() {
        let folder = first.parent().unwrap_or(first);
        notes.push(sampled(folder, count, paths.len(), "images"));
    }
    // Of one size each; BTreeMap, so that their order is that of their sizes.
    let mut by_size: BTreeMap<(usize, usize), (Vec<usize>, Elements)> = BTreeMap::new();
    for at in spread(paths.len(), count) {
        let path = &paths[at];
        let pixels = guarded(path, || read(path))?;
        let pixels = processor.resized(path, pixels)?;
        let empty = match input.is_float {
            true => Elements::Floats(Vec::new()),
            false => Elements::Ints(Vec::new()),
        };
        let size = (pixels.height, pixels.width);
        let (rows, elements) = by_size.entry(size).or_insert((Vec::new(), empty));
        rows.push(at);
        let places = places(size, layout);
        match elements {
            Elements::Floats(values) => {
                values.extend(places.map(|(at, colour)| processor.value(pixels.data[at], colour)));
            }
            // The model scales by itself.
            Elements::Ints(values) => {
                values.extend(places.map(|(at, _)| i64::from(pixels.data[at])))
            }
        }
    }
    let mut prepared = Prepared {
        rows: paths.len(),
        notes,
        ..Prepared::default()
    };
    for ((height, width), (rows, elements)) in by_size {
        let shape = match layout {
            Layout::ChannelsFirst => vec![rows.len(), 3, height, width],
            Layout::ChannelsLast => vec![rows.len(), height, width, 3],
        };
        let array = Array { shape, elements };
        prepared
            .tables
            .push(Arrays::from([(input.name.clone(), array)]));
        prepared.origins.push(rows);
    }
    Ok(prepared)
}

/// Where each element of an input lies in the pixels, and its colour.
fn places((height, width): (usize, usize), layout: Layout) -> impl Iterator<Item = (usize, usize)> {
    let area = height * width;
    (0..3 * area).map(move |i| match layout {
        Layout::ChannelsFirst => (i % area * 3 + i / area, i / area),
        Layout::ChannelsLast => (i, i % 3),
    })
}

/// The input of pixels, and where its colours are.
fn input<'a>(path: &Path, inputs: &'a [Wanted]) -> Result<(&'a Wanted, Layout), PrepareError> {
    let usual = inputs.iter().find(|input| input.name == "pixel_values");
    let mut others = inputs
        .iter()
        .filter(|i| i.shape.as_ref().is_some_and(|s| s.len() == 4));
    let only = match (others.next(), others.next()) {
        (Some(input), None) => Some(input),
        _ => None,
    };
    let Some(input) = usual.or(only) else {
        let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
        return Err(PrepareError::file(
            path,
            format!(
                "is an image, and the model has no one input of pixels such as pixel_values; its inputs are {}",
                names.join(", ")
            ),
        ));
    };
    let axis = |axis: usize| input.shape.as_ref()?.get(axis).copied()?;
    let layout = match (axis(1), axis(3)) {
        (first, Some(3)) if first != Some(3) => Layout::ChannelsLast,
        _ => Layout::ChannelsFirst,
    };
    Ok((input, layout))
}

/// Bytes of the pixels of one image, as it is decoded: a few bytes of a file can ask for more than there is.
const LARGEST: u64 = 512 << 20;

/// Decodes an image, upright, in three colours; what is behind them shows no longer.
fn read(path: &Path) -> Result<Pixels, PrepareError> {
    let wrong = |e: image::ImageError| {
        PrepareError::file(path, format!("is no image that can be read: {e}"))
    };
    let data = bytes(path)?;
    let reader = ImageReader::new(Cursor::new(&data)).with_guessed_format();
    let reader = reader.map_err(|source| PrepareError::Read {
        file: path.to_owned(),
        source,
    })?;
    let mut decoder = reader.into_decoder().map_err(wrong)?;
    let (size, (width, height)) = (decoder.total_bytes(), decoder.dimensions());
    if size > LARGEST {
        return Err(PrepareError::file(
            path,
            format!("says that it has {width} x {height} pixels, more than an image is read of"),
        ));
    }
    let orientation = decoder.orientation().map_err(wrong)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(wrong)?;
    image.apply_orientation(orientation);
    let image = image.into_rgb8();
    let (width, height) = (image.width() as usize, image.height() as usize);
    if width == 0 || height == 0 {
        return Err(PrepareError::file(path, "has no pixels"));
    }
    Ok(Pixels {
        width,
        height,
        data: image.into_raw(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A BMP file of 438 bytes whose head has a height of -620,756,980, from top to bottom (found by fuzzing).
    #[test]
    fn an_image_that_asks_for_more_than_there_is_is_refused() {
        let mut file = b"BM\xb6\x01\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x0a\0\0\0".to_vec();
        file.extend((-620_756_980_i32).to_le_bytes());
        file.extend([1, 0, 24, 0, 0, 0, 0, 0]);
        file.resize(438, 0);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("high.bmp");
        std::fs::write(&path, file).unwrap();
        let told = read(&path).err().unwrap().to_string();
        assert!(told.contains("10 x 620756980 pixels"), "{told}");
    }
}
