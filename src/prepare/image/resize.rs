//! Pillow's `Image.resize`, bit by bit: a filter that is as wide as a pixel of the smaller image, along the rows and then along the
//! columns, each with weights of 22 fractional bits and a result of 8 bits.

use super::pixels::Pixels;

/// Fractional bits of a weight: a sum of products with 8 bits fits 32.
const BITS: u32 = 32 - 8 - 2;

/// Pillow's filters, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
    Box,
    Hamming,
}

impl Filter {
    /// That of a `resample` in a configuration.
    pub(super) fn numbered(number: usize) -> Option<Filter> {
        use Filter::{Bicubic, Bilinear, Box, Hamming, Lanczos, Nearest};
        [Nearest, Lanczos, Bilinear, Bicubic, Box, Hamming]
            .get(number)
            .copied()
    }

    /// How far it reaches.
    fn support(self) -> f64 {
        match self {
            Filter::Nearest => 0.0,
            Filter::Box => 0.5,
            Filter::Bilinear | Filter::Hamming => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let a = -0.5;
        let sinc = |x: f64| match x == 0.0 {
            true => 1.0,
            false => (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI),
        };
        let distance = x.abs();
        match self {
            Filter::Nearest => 0.0,
            Filter::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Filter::Bilinear if distance < 1.0 => 1.0 - distance,
            Filter::Hamming if distance == 0.0 => 1.0,
            Filter::Hamming if distance < 1.0 => {
                let x = distance * std::f64::consts::PI;
                x.sin() / x * (0.54 + 0.46 * x.cos())
            }
            Filter::Bicubic if distance < 1.0 => {
                ((a + 2.0) * distance - (a + 3.0)) * distance * distance + 1.0
            }
            Filter::Bicubic if distance < 2.0 => {
                (((distance - 5.0) * distance + 8.0) * distance - 4.0) * a
            }
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

/// What one pixel of the result is made of: pixels from the first on, with their weights.
struct Taps {
    first: usize,
    weights: Vec<i64>,
}

/// The taps of every pixel along an axis.
fn taps(from: usize, to: usize, filter: Filter) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let wide = scale.max(1.0);
    let support = filter.support() * wide;
    let tap = |at: usize| {
        let center = (at as f64 + 0.5) * scale;
        // `as` cuts towards zero, and what is below it to zero.
        let first = (center - support + 0.5) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weight = |x: usize| filter.weight((x as f64 - center + 0.5) * (1.0 / wide));
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: f64| {
            let weight = match sum == 0.0 {
                true => weight,
                false => weight / sum,
            };
            let scaled = weight * f64::from(1u32 << BITS);
            (scaled + if weight < 0.0 { -0.5 } else { 0.5 }) as i64
        };
        Taps {
            first,
            weights: weights.into_iter().map(fixed).collect(),
        }
    };
    (0..to).map(tap).collect()
}

/// The image in another size.
pub(super) fn resize(image: Pixels, (height, width): (usize, usize), filter: Filter) -> Pixels {
    if (height, width) == (image.height, image.width) {
        return image;
    }
    if filter == Filter::Nearest {
        return nearest(&image, height, width);
    }
    let image = match width == image.width {
        true => image,
        false => along_rows(&image, &taps(image.width, width, filter)),
    };
    match height == image.height {
        true => image,
        false => along_columns(&image, &taps(image.height, height, filter)),
    }
}

fn rounded(sum: i64) -> u8 {
    ((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8
}

fn along_rows(image: &Pixels, taps: &[Taps]) -> Pixels {
    let mut data = Vec::with_capacity(image.height * taps.len() * 3);
    for row in image.data.chunks_exact(image.width * 3) {
        for tap in taps {
            for colour in 0..3 {
                let values = row[tap.first * 3 + colour..].iter().step_by(3);
                let products = values.zip(&tap.weights).map(|(v, w)| i64::from(*v) * w);
                data.push(rounded(products.sum()));
            }
        }
    }
    Pixels {
        width: taps.len(),
        height: image.height,
        data,
    }
}

fn along_columns(image: &Pixels, taps: &[Taps]) -> Pixels {
    let row = image.width * 3;
    let mut data = Vec::with_capacity(taps.len() * row);
    for tap in taps {
        for at in 0..row {
            let values = image.data[tap.first * row + at..].iter().step_by(row);
            let products = values.zip(&tap.weights).map(|(v, w)| i64::from(*v) * w);
            data.push(rounded(products.sum()));
        }
    }
    Pixels {
        width: image.width,
        height: taps.len(),
        data,
    }
}

/// The pixel that the centre of each lies in.
fn nearest(image: &Pixels, height: usize, width: usize) -> Pixels {
    let along = |from: usize, to: usize| {
        let step = from as f64 / to as f64;
        // Summed up, as Pillow does, and not multiplied: what falls between two pixels is rounded alike.
        let mut at = step * 0.5;
        let next = |_| {
            let here = (at as usize).min(from - 1);
            at += step;
            here
        };
        (0..to).map(next).collect::<Vec<usize>>()
    };
    let (rows, columns) = (along(image.height, height), along(image.width, width));
    let mut data = Vec::with_capacity(height * width * 3);
    for y in &rows {
        for x in &columns {
            data.extend_from_slice(&image.data[(y * image.width + x) * 3..][..3]);
        }
    }
    Pixels {
        width,
        height,
        data,
    }
}
