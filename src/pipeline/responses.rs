//! The responses of all blocks, ready to be run: the bridge from the graph to the loss that knows only arrays.
//!
//! ```text
//! sequences ─ model ─▶ x, sides, response of every block       (one run, kept)
//! block cut out of the graph ─▶ plan; candidate outputs of the Linears + sides ─▶ response' ─▶ ‖response' − response‖²
//! ```
//!
//! Before a block is used, it is run on the outputs that the float Linears give: if that is not the response of the
//! whole model, the cut is not what it seems, and the site keeps the loss of its Linears' outputs.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::{Array1, Array2, ArrayView2, Axis, IxDyn, concatenate, s};
use oxc_index::IndexVec;

use crate::calibrate::{Batch, Captured, Engine, InputTensor, Kept, Plan, Values, Wanted};
use crate::graph::View;
use crate::onnx::Model;
use crate::recognise::Linear;
use crate::site::{Response, ResponseKind};
use crate::solve;
use crate::solve::product::product;

use super::judge::rows::spread;
use super::prepare::Prepared;
use super::sites::{SiteId, SiteRow};

/// Largest squared error of a cut-out block against the model, relative to the response's squares.
const SAME: f64 = 1e-6;

/// Blocks of one group that are run, at most: each has as many tokens as the one block of a site alone. With all 12 of an
/// ALBERT its result differed by 0.02 dB at most, and the search took twice as long.
const JOINT_BLOCKS: usize = 3;

/// Values of the float model, whole, that blocks read and give when a few rows are run.
#[derive(Default)]
pub(crate) struct Sequences {
    /// The rows; `None` if nothing was kept.
    pub batch: Option<Batch>,
    /// By name.
    pub kept: Kept,
}

/// Blocks and what they read, for a few sequences.
pub(crate) struct Responses<'m> {
    prepared: &'m Prepared,
    view: View<'m>,
    engine: &'m dyn Engine,
    batch: Batch,
    /// Per site.
    blocks: IndexVec<SiteId, Option<Response>>,
    kept: Kept,
}

impl<'m> Responses<'m> {
    /// The response of every site that has one.
    fn find(view: &View, prepared: &Prepared) -> IndexVec<SiteId, Option<Response>> {
        let response = |(_, row): (SiteId, &SiteRow)| {
            crate::site::response(view, &prepared.found, &row.linears).ok()
        };
        prepared.sites.iter().map(response).collect()
    }

    /// Names of what the blocks read of the float model, and of what they give.
    pub(super) fn wanted(prepared: &Prepared) -> Vec<String> {
        let view = prepared.model.view();
        let responses = Responses::find(&view, prepared);
        let mut wanted = BTreeSet::new();
        for ((_, row), response) in prepared.sites.iter().zip(&responses) {
            let Some(response) = response else {
                continue;
            };
            let inputs = row.selected(&prepared.found).map(|l| l.input);
            let values = response.sides.iter().chain(&response.outputs).copied();
            let values = values.chain(inputs).chain([row.site.value]);
            wanted.extend(values.map(|v| view.name(v).to_owned()));
        }
        wanted.into_iter().collect()
    }

    /// The blocks of a model, with the values of [`Responses::wanted`]; `None` if none were kept.
    pub(super) fn new(
        prepared: &'m Prepared,
        engine: &'m dyn Engine,
        sequences: Sequences,
    ) -> Option<Responses<'m>> {
        let view = prepared.model.view();
        Some(Responses {
            batch: sequences.batch?,
            blocks: Self::find(&view, prepared),
            kept: sequences.kept,
            prepared,
            view,
            engine,
        })
    }

    /// The kind of a site's response.
    pub(super) fn kind(&self, site: SiteId) -> Option<ResponseKind> {
        self.blocks[site].as_ref().map(|response| response.kind)
    }

    /// The responses of the `members` of a group as one, for the Linears of `site`; of those alone that have its weights
    /// and can be run.
    pub(super) fn joint(&self, site: SiteId, members: &[SiteId]) -> Option<Joint> {
        let (sites, found) = (&self.prepared.sites, &self.prepared.found);
        let members = members.iter().copied();
        let alike = members.filter(|&i| sites.same_weights(&self.view, found, i, site));
        let alike: Vec<SiteId> = alike.collect();
        let run = spread(alike.len(), JOINT_BLOCKS).filter_map(|at| {
            let row = sites.row(alike[at]);
            let linears: Vec<&Linear> = row.selected(found).collect();
            self.block(alike[at], &row.name, &linears)
        });
        Joint::of(run.collect())
    }

    /// The response of a site with these Linears, if it can be run.
    fn block(&self, site: SiteId, value: &str, linears: &[&Linear]) -> Option<Block> {
        let response = self.blocks[site].as_ref()?;
        // Behind a Transpose the tokens are in another order than in the value of the site.
        let read = |l: &&Linear| l.channels_last() && l.input == linears[0].input;
        let value = match linears.iter().all(read) && !linears.is_empty() {
            true => self.view.name(linears[0].input),
            false => value,
        };
        let x = self.kept.get(value)?;
        let channels = *x.value.shape().last()?;
        let tokens = x.halves.len();
        let mut inputs = BTreeMap::new();
        for &i in &response.inputs {
            let name = self.view.graph().input[i].name();
            inputs.insert(name.to_owned(), self.batch.inputs.get(name)?.clone());
        }
        for &side in &response.sides {
            let name = self.view.name(side);
            let side = Values::F32(self.kept.get(name)?.value.clone());
            inputs.insert(name.to_owned(), InputTensor::from_values(side));
        }
        let mut cuts = Vec::new();
        for (linear, &cut) in linears.iter().zip(&response.cuts) {
            let mut shape = self
                .kept
                .get(self.view.name(linear.input))?
                .value
                .shape()
                .to_vec();
            *shape.last_mut()? = linear.n;
            if shape.iter().product::<usize>() != tokens * linear.n {
                return None;
            }
            if linear.odd_bias {
                return None;
            }
            cuts.push(Cut {
                name: self.view.name(cut).to_owned(),
                shape,
                bias: linear.inner_bias(&self.view),
            });
        }
        let mut outputs = Vec::new();
        for &output in &response.outputs {
            let name = self.view.name(output);
            outputs.push((name.to_owned(), self.kept.get(name)?.clone()));
        }
        let mut block = Block {
            x: x.value
                .clone()
                .into_shape_with_order((tokens, channels))
                .ok()?,
            halves: x.halves.clone(),
            batch: Batch {
                inputs,
                ..self.batch.clone()
            },
            cuts,
            outputs,
            plan: None,
        };
        let products = linears
            .iter()
            .map(|l| Some(product(&block.x, &l.load_weight(&self.view)?)));
        let products: Option<Vec<_>> = products.collect();
        let float = block.feed(products?)?;
        let model = self.cut_out(response, &float)?;
        block.plan = self.engine.plan(&model, &float, &wanted()).ok();
        let (error, energy) = (block.error(&float)?, block.energy());
        // Without energy nothing is compared: no loss would be as good as the best.
        (energy > 0.0 && error <= SAME * energy).then_some(block)
    }

    /// What a reader should know: the sites whose response is zero in every token that was run, so that it tells nothing.
    pub(super) fn notes(&self) -> Vec<String> {
        let silent = |(id, row): (SiteId, &SiteRow)| {
            let response = self.blocks[id].as_ref()?;
            let outputs = response
                .outputs
                .iter()
                .map(|&o| self.kept.get(self.view.name(o)));
            let energies: Vec<f64> = outputs.flatten().map(energy).collect();
            let none = !energies.is_empty() && energies.iter().all(|e| *e == 0.0);
            none.then(|| {
                format!(
                    "the response behind `{}` is zero in the sequences that were run: the outputs of its Linears are compared \
                     instead",
                    row.name
                )
            })
        };
        self.prepared.sites.iter().filter_map(silent).collect()
    }

    /// The block as a model: `batch` has its inputs.
    fn cut_out(&self, response: &Response, batch: &Batch) -> Option<Model> {
        let shape = |value| {
            let tensor = batch.inputs.get(self.view.name(value))?;
            Some(tensor.shape())
        };
        response.part().model(&self.view, shape)
    }
}

/// The output of a Linear's MatMul or Gemm, from where the block starts.
struct Cut {
    name: String,
    shape: Vec<usize>,
    /// The bias that a Gemm adds itself.
    bias: Option<Array1<f32>>,
}

/// The block behind one site.
pub(crate) struct Block {
    /// `[T, C]`.
    x: Array2<f32>,
    halves: Vec<Option<usize>>,
    /// What the block reads besides the cuts.
    batch: Batch,
    cuts: Vec<Cut>,
    /// The response in the float model.
    outputs: Vec<(String, Captured)>,
    plan: Option<Box<dyn Plan>>,
}

impl Block {
    /// The block's inputs where the Linears give `products`.
    fn feed(&self, products: Vec<Array2<f32>>) -> Option<Batch> {
        let mut batch = self.batch.clone();
        for (cut, mut product) in self.cuts.iter().zip(products) {
            if let Some(bias) = &cut.bias {
                product += bias;
            }
            let value = product.into_shape_with_order(IxDyn(&cut.shape)).ok()?;
            let tensor = InputTensor::from_values(Values::F32(value));
            batch.inputs.insert(cut.name.clone(), tensor);
        }
        Some(batch)
    }

    /// Sum of squares of the response in the float model.
    fn energy(&self) -> f64 {
        self.outputs.iter().map(|(_, r)| energy(r)).sum()
    }

    /// Squared error of the response.
    fn error(&self, batch: &Batch) -> Option<f64> {
        let computed = self.plan.as_ref()?.run(batch, None).ok()?;
        let mut error = 0.0;
        for (name, float) in &self.outputs {
            let computed = computed
                .get(name)
                .filter(|c| c.shape() == float.value.shape())?;
            error += energy(&Captured {
                value: computed - &float.value,
                halves: float.halves.clone(),
            });
        }
        Some(error)
    }
}

/// The blocks behind sites of the same weights: their tokens one after the other.
pub(crate) struct Joint {
    blocks: Vec<Block>,
    x: Array2<f32>,
    halves: Vec<Option<usize>>,
}

impl Joint {
    /// `None` of nothing.
    fn of(blocks: Vec<Block>) -> Option<Joint> {
        let tokens: Vec<_> = blocks.iter().map(|b| b.x.view()).collect();
        Some(Joint {
            x: concatenate(Axis(0), &tokens).ok()?,
            halves: blocks.iter().flat_map(|b| b.halves.clone()).collect(),
            blocks,
        })
    }
}

impl solve::Response for Joint {
    fn x(&self) -> ArrayView2<'_, f32> {
        self.x.view()
    }

    fn halves(&self) -> &[Option<usize>] {
        &self.halves
    }

    fn loss(&self, products: Vec<Array2<f32>>) -> Option<f64> {
        // What is of one block alone need not be copied.
        if let [block] = &self.blocks[..] {
            return block.error(&block.feed(products)?);
        }
        let (mut start, mut loss) = (0, 0.0);
        for block in &self.blocks {
            let end = start + block.x.nrows();
            let own = products.iter().map(|p| p.slice(s![start..end, ..]));
            loss += block.error(&block.feed(own.map(|p| p.to_owned()).collect())?)?;
            start = end;
        }
        Some(loss)
    }

    fn energy(&self) -> f64 {
        self.blocks.iter().map(Block::energy).sum()
    }
}

/// Sum of squares over what is no padding.
fn energy(captured: &Captured) -> f64 {
    let rows = captured.value.rows();
    let real = rows
        .into_iter()
        .zip(&captured.halves)
        .filter(|(_, half)| half.is_some());
    let squares =
        |v: ndarray::ArrayView1<f32>| v.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    real.map(|(v, _)| squares(v)).sum()
}

/// The only thing wanted of a block: its outputs.
fn wanted() -> Wanted<'static> {
    Wanted {
        taps: &[],
        outputs: true,
    }
}
