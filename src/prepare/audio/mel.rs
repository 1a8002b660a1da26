//! Whisper's features: log10 of the energies in mel bands, of windows that overlap.
//!
//! ```text
//! X = |rfft(hann · x)|²        F = log10(max(1e-10, Mᵀ X))        (max(F, max F − 8) + 4) / 4
//! ```

use std::sync::Arc;

use realfft::{RealFftPlanner, RealToComplex};

/// Everything that is the same for all recordings.
pub(super) struct LogMel {
    hop: usize,
    window: Vec<f64>,
    /// Of each band, the first bin and the weights from there on.
    bands: Vec<(usize, Vec<f64>)>,
    fft: Arc<dyn RealToComplex<f64>>,
}

impl LogMel {
    /// Windows of `n_fft` samples, `hop` apart, and so many bands up to 8 kHz.
    pub(super) fn new(n_fft: usize, hop: usize, bands: usize, rate: usize) -> LogMel {
        let hann = |n: usize| 0.5 - 0.5 * (std::f64::consts::TAU * n as f64 / n_fft as f64).cos();
        LogMel {
            hop,
            window: (0..n_fft).map(hann).collect(),
            bands: filters(1 + n_fft / 2, bands, rate),
            fft: RealFftPlanner::new().plan_fft_forward(n_fft),
        }
    }

    pub(super) fn bands(&self) -> usize {
        self.bands.len()
    }

    /// Windows of so many samples. The last one is left out.
    pub(super) fn frames(&self, samples: usize) -> usize {
        // Samples are mirrored at both ends by half a window.
        (samples + self.window.len() / 2 * 2 - self.window.len()) / self.hop
    }

    /// The features of a waveform that is longer than a window: bands × frames.
    pub(super) fn of(&self, wave: &[f32]) -> Vec<f32> {
        let (length, frames) = (self.window.len(), self.frames(wave.len()));
        let half = length / 2;
        let mirrored = |at: usize| {
            let last = wave.len() as i64 - 1;
            let at = (at as i64 - half as i64).abs();
            let at = if at > last { 2 * last - at } else { at };
            f64::from(wave[at as usize])
        };
        let mut buffer = vec![0.0; length];
        let mut bins = self.fft.make_output_vec();
        let mut scratch = self.fft.make_scratch_vec();
        let mut features = vec![0f32; self.bands() * frames];
        for frame in 0..frames {
            for (i, value) in buffer.iter_mut().enumerate() {
                *value = mirrored(frame * self.hop + i) * self.window[i];
            }
            // Its buffers have the lengths that it asked for itself.
            let done = self
                .fft
                .process_with_scratch(&mut buffer, &mut bins, &mut scratch);
            debug_assert!(done.is_ok(), "{done:?}");
            let energy = |bin: &realfft::num_complex::Complex<f64>| {
                // Held as complex64 in between.
                let (re, im) = (f64::from(bin.re as f32), f64::from(bin.im as f32));
                re.hypot(im).powi(2)
            };
            let energies: Vec<f64> = bins.iter().map(energy).collect();
            for (band, (first, weights)) in self.bands.iter().enumerate() {
                let products = energies[*first..].iter().zip(weights).map(|(e, w)| e * w);
                features[band * frames + frame] = products.sum::<f64>().max(1e-10).log10() as f32;
            }
        }
        let most = features.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        features
            .iter()
            .map(|f| (f.max(most - 8.0) + 4.0) / 4.0)
            .collect()
    }
}

/// Hertz to mels of Slaney: linear below 1 kHz, logarithmic above.
fn mels(hertz: f64) -> f64 {
    match hertz >= 1000.0 {
        true => 15.0 + (hertz / 1000.0).ln() * (27.0 / 6.4f64.ln()),
        false => 3.0 * hertz / 200.0,
    }
}

fn hertz(mels: f64) -> f64 {
    match mels >= 15.0 {
        true => 1000.0 * (6.4f64.ln() / 27.0 * (mels - 15.0)).exp(),
        false => 200.0 * mels / 3.0,
    }
}

/// Triangles between neighbouring bands, each of the same area.
fn filters(bins: usize, bands: usize, rate: usize) -> Vec<(usize, Vec<f64>)> {
    let step = mels(8000.0) / (bands + 1) as f64;
    let edges: Vec<f64> = (0..bands + 2).map(|i| hertz(i as f64 * step)).collect();
    let width = (rate / 2) as f64 / (bins - 1) as f64;
    let band = |edges: &[f64]| {
        let [low, middle, high] = [edges[0], edges[1], edges[2]];
        let weight = |bin: usize| {
            let at = bin as f64 * width;
            let (up, down) = ((at - low) / (middle - low), (high - at) / (high - middle));
            up.min(down).max(0.0) * (2.0 / (high - low))
        };
        let weights: Vec<f64> = (0..bins).map(weight).collect();
        let first = weights.iter().position(|w| *w > 0.0).unwrap_or(0);
        let end = weights
            .iter()
            .rposition(|w| *w > 0.0)
            .map_or(first, |last| last + 1);
        (first, weights[first..end].to_vec())
    };
    edges.windows(3).map(band).collect()
}
