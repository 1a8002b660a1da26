use super::*;
use crate::onnx::node::{int_attr, make_node};
use crate::onnx::op;
use crate::onnx::proto::AttributeProto;

const MS: &str = "com.microsoft";

fn floats_of(
    op: &str,
    domain: &str,
    attributes: Vec<AttributeProto>,
    tensors: &[(&str, TensorProto)],
) -> Option<(Vec<usize>, Vec<f32>, Symmetry)> {
    let named: Vec<TensorProto> = tensors
        .iter()
        .map(|(name, tensor)| TensorProto {
            name: Some((*name).to_owned()),
            ..tensor.clone()
        })
        .collect();
    let inputs: Vec<&str> = match op {
        op::DequantizeLinear => vec!["q", "s", "z"],
        op::MatMulNBits => vec!["x", "q", "s", "z", "g"],
        _ => vec!["q", "ids", "s", "z"],
    };
    let given =
        |name: &&str| ["x", "ids"].contains(name) || named.iter().any(|t| t.name() == *name);
    let inputs: Vec<&str> = inputs
        .into_iter()
        .map(|n| if given(&n) { n } else { "" })
        .collect();
    let mut node = make_node(op, "n", &inputs, &["y"], attributes);
    node.domain = Some(domain.to_owned());
    let find = |name: &str| named.iter().find(|t| t.name() == name);
    let blocked = Blocked::of(&node, &find)?;
    Some((blocked.shape.clone(), blocked.floats()?, blocked.symmetry()))
}

fn f32s(shape: &[usize], data: &[f32]) -> TensorProto {
    tensor::from_f32("", shape, data, DataType::Float)
}

fn nbits(k: i64, n: i64, bits: i64, block: i64) -> Vec<AttributeProto> {
    vec![
        int_attr("K", k),
        int_attr("N", n),
        int_attr("bits", bits),
        int_attr("block_size", block),
    ]
}

#[test]
fn four_bits_of_a_product_with_a_last_block_cut_short() {
    // K = 5 in blocks of 4: rows of 8 integers, of which three are not read.
    let q = tensor::from_u8(
        "",
        &[2, 2, 2],
        &[0x10, 0x32, 0x04, 0x00, 0xfe, 0xdc, 0x0b, 0x00],
    );
    let s = f32s(&[2, 2], &[1.0, 10.0, 2.0, 100.0]);
    let (shape, floats, symmetry) = floats_of(
        op::MatMulNBits,
        MS,
        nbits(5, 2, 4, 4),
        &[("q", q.clone()), ("s", s.clone())],
    )
    .unwrap();
    assert_eq!(shape, [5, 2]);
    let columns: [[f32; 5]; 2] = [
        [-8.0, -7.0, -6.0, -5.0, -40.0],
        [12.0, 14.0, 8.0, 10.0, 300.0],
    ];
    let expected: Vec<f32> = (0..5)
        .flat_map(|k| [columns[0][k], columns[1][k]])
        .collect();
    assert_eq!(floats, expected);
    assert_eq!(symmetry, Symmetry::Symmetric);
    // Zero points: rows of two in one byte, or floats.
    let z = tensor::from_u8("", &[2, 1], &[0x10, 0x88]);
    let parts = [("q", q.clone()), ("s", s.clone()), ("z", z)];
    let (_, floats, symmetry) = floats_of(op::MatMulNBits, MS, nbits(5, 2, 4, 4), &parts).unwrap();
    assert_eq!(floats[0], 0.0);
    assert_eq!(floats[8], 30.0);
    assert_eq!(floats[1], 12.0);
    assert_eq!(symmetry, Symmetry::Asymmetric);
    let z = f32s(&[2, 2], &[0.5, 1.5, 0.0, 0.0]);
    let parts = [("q", q), ("s", s), ("z", z)];
    let (_, floats, symmetry) = floats_of(op::MatMulNBits, MS, nbits(5, 2, 4, 4), &parts).unwrap();
    assert_eq!((floats[0], floats[8]), (-0.5, 25.0));
    assert_eq!(symmetry, Symmetry::FloatZero);
}

#[test]
fn two_and_eight_bits_and_named_groups() {
    let q = tensor::from_u8("", &[1, 2, 1], &[0b11_10_01_00, 0b00_00_00_11]);
    let s = f32s(&[1, 2], &[1.0, 10.0]);
    let parts = [("q", q), ("s", s.clone())];
    let (_, floats, _) = floats_of(op::MatMulNBits, MS, nbits(6, 1, 2, 4), &parts).unwrap();
    assert_eq!(floats, [-2.0, -1.0, 0.0, 1.0, 10.0, -20.0]);
    let q = tensor::from_u8("", &[1, 2, 2], &[128, 255, 0, 129]);
    let g = tensor::from_i32("", &[4], &[1, 0, 1, 0]);
    let parts = [("q", q.clone()), ("s", s.clone()), ("g", g)];
    let (_, floats, _) = floats_of(op::MatMulNBits, MS, nbits(4, 1, 8, 2), &parts).unwrap();
    assert_eq!(floats, [0.0, 127.0, -1280.0, 1.0]);
    // A group that is none.
    let g = tensor::from_i32("", &[4], &[1, 0, 2, 0]);
    let parts = [("q", q), ("s", s), ("g", g)];
    assert!(floats_of(op::MatMulNBits, MS, nbits(4, 1, 8, 2), &parts).is_none());
}

#[test]
fn along_any_axis_of_a_dequantize_linear() {
    let attributes = |axis| vec![int_attr("axis", axis), int_attr("block_size", 2)];
    let q = tensor::from_i4("", &[3, 2], &[1, -2, 3, -4, 5, -8]);
    let s = f32s(&[2, 2], &[1.0, 10.0, 2.0, 20.0]);
    let parts = [("q", q.clone()), ("s", s)];
    let (shape, floats, symmetry) =
        floats_of(op::DequantizeLinear, "", attributes(0), &parts).unwrap();
    assert_eq!(shape, [3, 2]);
    assert_eq!(floats, [1.0, -20.0, 3.0, -40.0, 10.0, -160.0]);
    assert_eq!(symmetry, Symmetry::Symmetric);
    let s = f32s(&[3, 1], &[1.0, 10.0, 100.0]);
    let z = tensor::from_i4("", &[3, 1], &[0, 1, -1]);
    let parts = [("q", q), ("s", s), ("z", z)];
    let (_, floats, symmetry) =
        floats_of(op::DequantizeLinear, "", attributes(-1), &parts).unwrap();
    assert_eq!(floats, [1.0, -2.0, 20.0, -50.0, 600.0, -700.0]);
    assert_eq!(symmetry, Symmetry::Asymmetric);
}

#[test]
fn rows_of_a_table() {
    let attributes = |bits| vec![int_attr("bits", bits), int_attr("block_size", 2)];
    let q = tensor::from_u8("", &[2, 2], &[0x98, 0xf7, 0x80, 0x08]);
    let s = f32s(&[2, 2], &[1.0, 10.0, 1.0, 10.0]);
    let parts = [("q", q.clone()), ("s", s.clone())];
    let (shape, floats, _) =
        floats_of(op::GatherBlockQuantized, MS, attributes(4), &parts).unwrap();
    assert_eq!(shape, [2, 4]);
    assert_eq!(floats, [0.0, 1.0, -10.0, 70.0, -8.0, 0.0, 0.0, -80.0]);
    // Bytes of 8 bits: blocks do not fit the scales any more.
    let parts = [("q", q), ("s", s)];
    assert!(floats_of(op::GatherBlockQuantized, MS, attributes(8), &parts).is_none());
}

#[test]
fn what_does_not_go_together_is_none() {
    let q = tensor::from_u8("", &[2, 2, 2], &[0; 8]);
    let s = f32s(&[2, 2], &[1.0; 4]);
    let with = |attributes, q: &TensorProto, s: &TensorProto| {
        let parts = [("q", q.clone()), ("s", s.clone())];
        floats_of(op::MatMulNBits, MS, attributes, &parts)
    };
    assert!(with(nbits(5, 2, 4, 4), &q, &s).is_some());
    assert!(with(nbits(5, 3, 4, 4), &q, &s).is_none());
    assert!(with(nbits(5, 2, 3, 4), &q, &s).is_none());
    assert!(with(nbits(5, 2, 4, 0), &q, &s).is_none());
    assert!(with(nbits(-5, 2, 4, 4), &q, &s).is_none());
    assert!(with(nbits(i64::MAX, i64::MAX, 4, 4), &q, &s).is_none());
    assert!(with(nbits(9, 2, 4, 4), &q, &s).is_none());
    assert!(with(nbits(5, 2, 4, 4), &q, &f32s(&[3], &[1.0; 3])).is_none());
    let short = TensorProto {
        raw_data: Some(vec![0; 7].into()),
        ..q
    };
    assert!(with(nbits(5, 2, 4, 4), &short, &s).is_none());
}

/// (q − z) s by the definition of DequantizeLinear, with the scale's place on `axis`.
fn defined(shape: &[usize], q: &[u8], axis: Option<usize>, scale: &[f32], zero: &[u8]) -> Vec<f32> {
    let place = |i: usize| {
        axis.map_or(0, |axis| {
            i / shape[axis + 1..].iter().product::<usize>() % shape[axis]
        })
    };
    let value = |(i, &q): (usize, &u8)| {
        let zero = zero.get(place(i)).map_or(0.0, |z| f32::from(*z));
        (f32::from(q) - zero) * scale[place(i)]
    };
    q.iter().enumerate().map(value).collect()
}

#[test]
fn one_scale_or_one_for_every_place_of_an_outer_axis() {
    let scales: Vec<f32> = (0..6).map(|i| 0.5 + i as f32 / 3.0).collect();
    let zeros: Vec<u8> = (0..6).map(|i| 100 + 9 * i).collect();
    for (shape, axis, known) in [
        (vec![4, 6], None, true),
        (vec![4, 6], Some(1), true),
        (vec![6, 4], Some(0), true),
        (vec![1, 4, 6], Some(2), true),
        (vec![1, 6, 4], Some(1), true),
        (vec![2, 6, 2], Some(1), false),
        (vec![6], Some(0), true),
    ] {
        let count = shape.iter().product::<usize>();
        let q: Vec<u8> = (0..count).map(|i| (i * 37 % 256) as u8).collect();
        let places = if axis.is_some() { 6 } else { 1 };
        let dims: &[usize] = if axis.is_some() { &[6] } else { &[] };
        for zero in [&zeros[..0], &zeros[..places]] {
            let mut tensors = vec![
                ("q", tensor::from_u8("q", &shape, &q)),
                (
                    "s",
                    tensor::from_f32("s", dims, &scales[..places], DataType::Float),
                ),
            ];
            if !zero.is_empty() {
                tensors.push(("z", tensor::from_u8("z", dims, zero)));
            }
            let find = |name: &str| tensors.iter().find(|(n, _)| *n == name).map(|(_, t)| t);
            let at = axis.map_or(1, |axis| axis as i64 - shape.len() as i64);
            let inputs = if zero.is_empty() {
                &["q", "s"][..]
            } else {
                &["q", "s", "z"]
            };
            let attributes = vec![int_attr("axis", at)];
            let node = make_node(op::DequantizeLinear, "n", inputs, &["y"], attributes);
            let whole = Blocked::whole(&node, &find);
            assert_eq!(whole.is_some(), known, "{shape:?}");
            let floats = whole.map(|whole| whole.floats().unwrap());
            let expected = defined(&shape, &q, axis, &scales, zero);
            assert!(floats.is_none_or(|floats| floats == expected), "{shape:?}");
        }
    }
}
