//! What quantization does to the outputs of a site's Linears, on tokens that did not set the ranges.
//!
//! ```text
//! loss = Σ over the Linears  ‖ Q(x') Q(diag(s) W) − (x − z) W ‖²        x: [T, C], W: [C, N]
//! ```
//!
//! which is the error of the outputs: the quantized Linear adds `b + z W`, the original adds `b`, and both cancel. Where
//! the biases will be corrected ([`super::correction`]), the mean error over the tokens of the other half is taken off.
//! A [`SiteLoss`] holds both directions of the cross-fit. A [`Trial`] (one shift, one threshold, several margins) is
//! turned into its migration on the fit half and scored on the other half, in buffers that are used again and again.
//!
//! The true loss is a quadratic form in `[Q(x') − x', x']`, so it could also be scored through Gram matrices of the
//! quantized weight and of its error, `[C, C]`. Those cost three products of `2·C²·N` operations for every new s, and
//! then `4·T·C²` per margin, against `2·T·C·N` for a margin scored directly. With the sample as small as it is, T ≈ C, and
//! six margins at N = 3 C, both cost the same, so every candidate is scored directly, which is simpler to check.

use super::migration::{self, Migration, ShiftKind};
use super::mix::mix;
use super::product::{product, product_of_rows};
use super::quantize::fake_quantize_weight_into;
use super::wide::{row_times, squared_error};
use super::{ActivationQuantizer, ActivationSpec, Fold, SiteProblem, SolveSettings, WeightSpec};
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use std::sync::{Mutex, OnceLock, PoisonError};

/// A shift and a threshold, to be scored with several margins: they share the quantized weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// Which channels are shifted.
    pub shift: ShiftKind,
    /// Threshold t > 0 in units of x; `None` = no scale.
    ///
    /// The value itself, not a fraction of the largest extreme: then the range after the scale is t in both halves and
    /// for all tokens, and one extreme token does not move it. Measured on unseen tokens, the value was as good as the
    /// fraction on MiniLM-L6 and L3, and 0.1 to 0.2 dB better on BERT-tiny and on heavy tails.
    pub threshold: Option<f32>,
    /// Factors on the range.
    pub margins: Vec<f32>,
    /// Whether the mean error of the outputs will be taken off the bias ([`super::correction`]).
    pub corrected: bool,
}

impl Trial {
    /// No shift, no scale, no correction of the bias.
    pub fn nothing(margins: Vec<f32>) -> Self {
        Self {
            shift: ShiftKind::None,
            threshold: None,
            margins,
            corrected: false,
        }
    }
}

/// Shift of `kind` and scale for threshold `threshold`, from the channels' extremes `min, max: [C]`.
pub fn migrate(kind: ShiftKind, threshold: Option<f32>, min: &[f32], max: &[f32]) -> Migration {
    let shift = migration::shift(kind, min, max);
    let extremes = migration::extremes(min, max, shift.as_deref());
    let scale = threshold.and_then(|t| migration::scale(&extremes, t));
    Migration {
        shift,
        scale,
        rotation: None,
    }
}

/// One direction of the cross-fit: ranges from one half of the tokens, loss on the other half.
pub(super) struct Direction {
    /// Smallest value of every channel in the fit half, `[C]`.
    pub min: Vec<f32>,
    /// Largest value of every channel in the fit half, `[C]`.
    pub max: Vec<f32>,
    /// Tokens of the other half, `[T, C]`.
    pub x: Array2<f32>,
    /// What the squared error of each of them counts, `[T]`; none if all count the same.
    pub weights: Option<Vec<f32>>,
    /// `(x − z) W`, `[T, N]`, for each [`ShiftKind`]; computed when first needed.
    targets: [OnceLock<Array2<f32>>; 4],
}

impl Direction {
    fn new(
        (min, max): (Vec<f32>, Vec<f32>),
        (x, weights): (Array2<f32>, Option<Vec<f32>>),
    ) -> Self {
        Self {
            min,
            max,
            x,
            weights,
            targets: Default::default(),
        }
    }

    fn target(&self, kind: ShiftKind, shift: Option<&[f32]>, w: &Array2<f32>) -> &Array2<f32> {
        self.targets[kind as usize].get_or_init(|| match shift {
            None => product(&self.x, w),
            Some(z) => product(&(&self.x - &ndarray::aview1(z)), w),
        })
    }
}

/// The loss of one site, ready to be evaluated for any number of candidates.
pub struct SiteLoss {
    /// All weights side by side, `[C, N]`.
    w: Array2<f32>,
    /// Column at which each weight ends.
    ends: Vec<usize>,
    directions: Vec<Direction>,
    /// See [`SiteLoss::energy`]; computed when first needed.
    energy: OnceLock<f64>,
    activation: ActivationSpec,
    weight: WeightSpec,
    pool: Pool,
}

impl SiteLoss {
    /// Copies what the search needs: at most `tokens` sample tokens of each fold, and about `columns` output columns in
    /// all, every k-th of each Linear.
    ///
    /// If one fold is empty, the sample of the other is split in two. Fewer than two tokens leave nothing to validate
    /// on: there are no [`SiteLoss::directions`] then.
    pub fn new(
        problem: &SiteProblem,
        settings: &SolveSettings,
        tokens: usize,
        columns: usize,
    ) -> Self {
        let (w, ends) = side_by_side(problem, columns);
        Self {
            w,
            ends,
            directions: directions(&problem.folds, tokens),
            energy: OnceLock::new(),
            activation: settings.activation,
            weight: settings.weight,
            pool: Pool::default(),
        }
    }

    /// Number of directions of the cross-fit: 2, or 0 where there are too few tokens.
    pub fn directions(&self) -> usize {
        self.directions.len()
    }

    /// The weights of the site side by side, `[C, N]`.
    pub fn weight(&self) -> ArrayView2<'_, f32> {
        self.w.view()
    }

    /// Sum of squares of the outputs of the Linears over the tokens of all directions, less their mean.
    ///
    /// The mean is no signal: a bias takes it.
    pub(super) fn energy(&self) -> f64 {
        let of = |d: &Direction| {
            let y = d.target(ShiftKind::None, None, &self.w);
            let mean = mean(y);
            let mean = mean.as_slice().unwrap_or(&[]);
            let rows = flat(y).chunks_exact(mean.len().max(1)).enumerate();
            let centred = rows.map(|(t, row)| {
                let weight = d.weights.as_ref().map_or(1.0, |w| f64::from(w[t]));
                squared_error(row, mean) * weight
            });
            centred.sum::<f64>()
        };
        *self
            .energy
            .get_or_init(|| self.directions.iter().map(of).sum())
    }

    /// Energy of the outputs over that of the stream they are written to: the mean over the tokens, if these are weighed.
    pub(super) fn share(&self) -> Option<f64> {
        let weighed = self.directions.iter().all(|d| d.weights.is_some());
        let tokens: usize = self.directions.iter().map(|d| d.x.nrows()).sum();
        (weighed && tokens > 0).then(|| self.energy() / tokens as f64)
    }

    /// Smallest and largest value of every channel in the half that sets the ranges in `direction`, `[C]` each.
    pub fn fit_range(&self, direction: usize) -> (&[f32], &[f32]) {
        let d = &self.directions[direction];
        (&d.min, &d.max)
    }

    /// The half that sets the ranges in `direction`: its extremes over all tokens, and its sample.
    pub(super) fn fit(&self, direction: usize) -> Fold<'_> {
        let (min, max) = self.fit_range(direction);
        Fold {
            min,
            max,
            sample: self.directions[1 - direction].x.view(),
            weights: self.directions[1 - direction].weights.as_deref(),
        }
    }

    /// Loss of a shift and threshold in one direction, for each of its margins.
    pub fn evaluate(&self, trial: &Trial, direction: usize) -> Vec<f64> {
        let (min, max) = self.fit_range(direction);
        let migration = migrate(trial.shift, trial.threshold, min, max);
        self.evaluate_migration(
            (trial.shift, &migration),
            &trial.margins,
            trial.corrected,
            direction,
        )
    }

    /// [`SiteLoss::evaluate`] for any scale and rotation; the shift must be that of `kind` (or always the same in this
    /// direction, for [`ShiftKind::Mean`]), the range still comes from the fit half.
    ///
    /// Serial, with sums in a fixed order: the result is the same on any thread.
    pub fn evaluate_migration(
        &self,
        of: (ShiftKind, &Migration),
        margins: &[f32],
        corrected: bool,
        direction: usize,
    ) -> Vec<f64> {
        self.evaluate_as(&self.activation, of, margins, corrected, direction)
    }

    /// The same with activations quantized in another way than the settings say.
    pub(super) fn evaluate_as(
        &self,
        activation: &ActivationSpec,
        (kind, migration): (ShiftKind, &Migration),
        margins: &[f32],
        corrected: bool,
        direction: usize,
    ) -> Vec<f64> {
        let d = &self.directions[direction];
        let (t, (c, n)) = (d.x.nrows(), self.w.dim());
        if t == 0 || c == 0 || n == 0 {
            return vec![0.0; margins.len()];
        }
        let target = d.target(kind, migration.shift.as_deref(), &self.w);
        let fold = self.fit(direction);
        // The half that sets the ranges also says what is taken off the bias.
        let fit = &self.directions[1 - direction].x;
        let turned = migration.rotation.as_ref();
        let wanted = fit.nrows() > 0 && (corrected || turned.is_some());
        let fit = wanted.then(|| MeanError::new(fit, migration, self.w.view()));
        let (low, high) = match (turned, &fit) {
            (Some(_), Some(fit)) => migration.range_of_rotated(&fold, &fit.x),
            _ => migration.range(&d.min, &d.max),
        };
        let mut work = self.pool.take(t, c, n);
        let Workspace {
            w,
            steps,
            x,
            q,
            out,
        } = &mut work;
        let (x, q, out) = (&mut x[..t * c], &mut q[..t * c], &mut out[..t * n]);
        let scale = migration.scale.as_deref();
        let rotated = turned.map(|r| r.rotate_weight(self.w.view(), scale));
        let (before, scale) = match &rotated {
            Some(w) => (w, None),
            None => (&self.w, scale),
        };
        fake_quantize_weight_into(flat(before), scale, &self.weight, &self.ends, steps, w);
        let w = ArrayView2::from_shape((c, n), w).ok();
        migration.apply_rows(flat(&d.x), x);
        let fit = fit.filter(|_| corrected);
        let mut losses = Vec::with_capacity(margins.len());
        for margin in margins {
            // Where there is no range, all margins are one.
            if let (false, Some(&loss)) = (activation.has_range(), losses.first()) {
                losses.push(loss);
                continue;
            }
            let quantizer = activation.quantizer(low * margin, high * margin);
            quantizer.apply(x, q, c);
            if let Some(w) = w {
                product_of_rows(q, w, out);
            }
            if let Some(fit) = &fit {
                let error = fit.of(&quantizer, w);
                for row in out.chunks_exact_mut(n) {
                    row.iter_mut().zip(&error).for_each(|(y, e)| *y -= e);
                }
            }
            losses.push(match &d.weights {
                None => squared_error(out, flat(target)),
                Some(weights) => {
                    let pairs = out.chunks_exact(n).zip(flat(target).chunks_exact(n));
                    let errors = pairs.map(|(out, target)| squared_error(out, target));
                    let weighted = errors.zip(weights).map(|(e, w)| e * f64::from(*w));
                    weighted.sum()
                }
            });
        }
        self.pool.give_back(work);
        losses
    }
}

/// Mean error of the outputs over some tokens, for one migration.
pub(super) struct MeanError {
    /// x', `[T, C]`.
    x: Array2<f32>,
    /// mean(x') W', `[N]`.
    target: Array1<f32>,
}

impl MeanError {
    /// For tokens `x: [T, C]`, at least one, and the weights before migration, `w: [C, N]`.
    pub(super) fn new(x: &Array2<f32>, migration: &Migration, w: ArrayView2<f32>) -> Self {
        let mut migrated = Array2::zeros(x.raw_dim());
        if let Some(out) = migrated.as_slice_mut() {
            migration.apply_rows(flat(x), out);
        }
        // x' Rᵀ diag(s) = x − z
        let mut shifted = mean(x);
        if let Some(z) = &migration.shift {
            shifted -= &ndarray::aview1(z);
        }
        Self {
            x: migrated,
            target: row_times(&shifted, w),
        }
    }

    /// `mean(Q(x')) Q(W') − mean(x') W'`, `[N]`, for `Q(W')`.
    pub(super) fn of(
        &self,
        quantizer: &ActivationQuantizer,
        w: Option<ArrayView2<f32>>,
    ) -> Vec<f32> {
        let mut q = Array2::zeros(self.x.raw_dim());
        if let Some(out) = q.as_slice_mut() {
            quantizer.apply(flat(&self.x), out, self.x.ncols());
        }
        let found = w.map_or_else(|| self.target.clone(), |w| row_times(&mean(&q), w));
        (found - &self.target).to_vec()
    }
}

/// Mean over the tokens, `[C]`.
fn mean(x: &Array2<f32>) -> Array1<f32> {
    x.mean_axis(Axis(0)).unwrap_or_default()
}

/// Elements of an array that this module made itself, so that it is in standard layout.
fn flat(a: &Array2<f32>) -> &[f32] {
    a.as_slice().unwrap_or(&[])
}

/// Output columns of all Linears of a site.
pub(super) fn all_columns(problem: &SiteProblem) -> usize {
    problem.weights.iter().map(|w| w.ncols()).sum()
}

/// The weights of a site side by side, `[C, N]`, and the column at which each ends: about `columns` output columns in all,
/// every k-th of each Linear.
pub(super) fn side_by_side(problem: &SiteProblem, columns: usize) -> (Array2<f32>, Vec<usize>) {
    let channels = problem.weights.first().map_or(0, |w| w.nrows());
    let stride = (all_columns(problem) / columns.max(1)).max(1);
    let mut ends = Vec::with_capacity(problem.weights.len());
    let mut end = 0;
    for w in &problem.weights {
        end += w.ncols().div_ceil(stride);
        ends.push(end);
    }
    let mut w = Array2::zeros((channels, end));
    let mut start = 0;
    for (part, &end) in problem.weights.iter().zip(&ends) {
        w.slice_mut(s![.., start..end])
            .assign(&part.slice(s![.., ..;stride]));
        start = end;
    }
    (w, ends)
}

/// The two directions of the cross-fit, or none if no two tokens can be told apart.
pub(super) fn directions(folds: &[Fold; 2], tokens: usize) -> Vec<Direction> {
    let [a, b] = folds;
    match (a.sample.nrows(), b.sample.nrows()) {
        (0, 0) => Vec::new(),
        (0, _) => split(b, tokens),
        (_, 0) => split(a, tokens),
        _ => {
            let direction = |fit: &Fold, other: &Fold| {
                Direction::new((fit.min.to_vec(), fit.max.to_vec()), subset(other, tokens))
            };
            vec![direction(a, b), direction(b, a)]
        }
    }
}

/// Cross-fit directions from one sample: its first half against its second.
fn split(fold: &Fold, tokens: usize) -> Vec<Direction> {
    let rows = fold.sample.nrows();
    if rows < 2 {
        return Vec::new();
    }
    let half = |start: usize, end: usize| Fold {
        sample: fold.sample.slice_move(s![start..end, ..]),
        weights: fold.weights.map(|w| &w[start..end]),
        ..*fold
    };
    let halves = [half(0, rows / 2), half(rows / 2, rows)];
    let extremes = |half: ArrayView2<f32>, start: f32, pick: fn(f32, f32) -> f32| -> Vec<f32> {
        half.columns()
            .into_iter()
            .map(|column| column.iter().fold(start, |a, &b| pick(a, b)))
            .collect()
    };
    [(0, 1), (1, 0)]
        .map(|(fit, score)| {
            let fit = halves[fit].sample;
            let extremes = (
                extremes(fit, f32::INFINITY, f32::min),
                extremes(fit, f32::NEG_INFINITY, f32::max),
            );
            Direction::new(extremes, subset(&halves[score], tokens))
        })
        .into()
}

/// At most `tokens` of the sample with their weights, one at a pseudo-random place in each of as many equal stretches.
///
/// Not every k-th row: with sequences of equal length that could be the same position in each, and the first token of
/// a sequence is unlike the others.
fn subset(fold: &Fold, tokens: usize) -> (Array2<f32>, Option<Vec<f32>>) {
    let rows = fold.sample.nrows();
    if rows <= tokens {
        let all = fold.sample.as_standard_layout().into_owned();
        return (all, fold.weights.map(<[f32]>::to_vec));
    }
    let place = |i: usize| {
        let (start, end) = (i * rows / tokens, (i + 1) * rows / tokens);
        start + (mix(i as u64) % (end - start) as u64) as usize
    };
    let places: Vec<usize> = (0..tokens).map(place).collect();
    let weights = fold.weights.map(|w| places.iter().map(|&i| w[i]).collect());
    (fold.sample.select(Axis(0), &places), weights)
}

/// Buffers for one evaluation at a time.
struct Workspace {
    /// `Q(diag(s) W)`, `[C, N]`.
    w: Vec<f32>,
    /// Weight scales, `[N]`.
    steps: Vec<f32>,
    /// x', `[T, C]`.
    x: Vec<f32>,
    /// Q(x'), `[T, C]`.
    q: Vec<f32>,
    /// Outputs, `[T, N]`.
    out: Vec<f32>,
}

/// Workspaces that are not in use. Holds at most one per thread that ever evaluated at the same time.
#[derive(Default)]
struct Pool {
    free: Mutex<Vec<Workspace>>,
}

impl Pool {
    /// A workspace for at least `t` tokens.
    fn take(&self, t: usize, c: usize, n: usize) -> Workspace {
        let free = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let mut work = free.unwrap_or_else(|| Workspace {
            w: vec![0.0; c * n],
            steps: vec![0.0; n],
            x: Vec::new(),
            q: Vec::new(),
            out: Vec::new(),
        });
        // The two directions can have different numbers of tokens: grow at most once.
        if work.x.len() < t * c {
            work.x.resize(t * c, 0.0);
            work.q.resize(t * c, 0.0);
            work.out.resize(t * n, 0.0);
        }
        work
    }

    fn give_back(&self, work: Workspace) {
        self.free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(work);
    }
}
