//! Weights rounded for what quantized Linears before them give, against doing without.

use super::*;
use crate::options::Options;
use crate::pipeline::rounded::Sequential;
use crate::pipeline::strategy::round_in_sequence;
use crate::solve::sequential::SequentialWeight;
use crate::solve::{QuantizedWeight, WeightSpec};

fn with_a_weight(plan: &Plan) -> Plan {
    let made = SequentialWeight {
        weight: QuantizedWeight::symmetric(ndarray::Array2::zeros((2, 2)), vec![1.0; 2]),
        correction: None,
    };
    let made = Sequential::new(1, &WeightSpec::per_channel(4), made);
    Plan {
        sequential: [(LinearId::from(0usize), made)].into(),
        ..plan.clone()
    }
}

/// What is written where it has `db` so, 20 without, and plain 10.
fn outcome(bits: u8, db: f64) -> Measured {
    let sites = table(&[Sink::Norm(0.into())], &[]);
    let outputs = move |plan: &Plan, _| match (plan.is_all_plain(), plan.sequential.is_empty()) {
        (true, _) => vec![10.0],
        (_, true) => vec![20.0],
        _ => vec![db],
    };
    let mut judge = Script::new(outputs);
    judge.sequential = Some(with_a_weight);
    let plan = searched(&sites, Format::Qdq);
    let plain = plan.plain(&sites);
    let written = super::super::open(plan, Some(plain), &mut judge).unwrap();
    let options = Options {
        weight_bits: bits,
        ..Options::default()
    };
    round_in_sequence(written, &options, &mut judge).unwrap()
}

#[test]
fn it_is_taken_where_the_outputs_are_better() {
    let written = outcome(4, 21.0);
    assert_eq!(written.plan.sequential.len(), 1);
    assert!(
        written.plan.notes[0].contains("1 weights are rounded")
            && written.plan.notes[0].contains("+1.0 dB")
    );
}

#[test]
fn it_is_left_where_they_are_not() {
    for db in [20.0, 20.05, 19.0, 9.0] {
        let written = outcome(4, db);
        assert!(
            written.plan.sequential.is_empty() && written.plan.notes.is_empty(),
            "{db}"
        );
    }
}

/// At 8 bits nothing is run for it.
#[test]
fn many_bits_do_without() {
    assert!(outcome(8, 25.0).plan.sequential.is_empty());
}
