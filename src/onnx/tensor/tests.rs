use super::*;
use crate::onnx::proto::tensor_proto::Segment;
use ndarray::arr2;
use proptest::prelude::*;

const INTEGERS: [DataType; 13] = [
    DataType::Uint2,
    DataType::Int2,
    DataType::Uint4,
    DataType::Int4,
    DataType::Uint8,
    DataType::Int8,
    DataType::Uint16,
    DataType::Int16,
    DataType::Uint32,
    DataType::Int32,
    DataType::Uint64,
    DataType::Int64,
    DataType::Bool,
];

fn typed(dtype: DataType, dims: &[i64]) -> TensorProto {
    TensorProto {
        name: Some("t".into()),
        data_type: Some(dtype as i32),
        dims: dims.to_vec(),
        ..TensorProto::default()
    }
}

fn raw(dtype: DataType, dims: &[i64], data: &[u8]) -> TensorProto {
    TensorProto {
        raw_data: Some(Bytes::copy_from_slice(data)),
        ..typed(dtype, dims)
    }
}

fn ints(tensor: &TensorProto) -> Vec<i64> {
    int_array(tensor).unwrap().into_iter().collect()
}

fn floats(tensor: &TensorProto) -> Vec<f32> {
    float_array(tensor).unwrap().into_iter().collect()
}

#[test]
fn floats_in_raw_data() {
    // Bit patterns by IEEE 754, written out by hand: 1, -2, and the smallest subnormal.
    let f16 = [0x00, 0x3c, 0x00, 0xc0, 0x01, 0x00];
    assert_eq!(
        floats(&raw(DataType::Float16, &[3], &f16)),
        [1.0, -2.0, 2f32.powi(-24)]
    );
    let bf16 = [0x80, 0x3f, 0x00, 0xc0, 0x01, 0x00];
    assert_eq!(
        floats(&raw(DataType::Bfloat16, &[3], &bf16)),
        [1.0, -2.0, f32::from_bits(1 << 16)]
    );
    let f32s = [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0];
    assert_eq!(floats(&raw(DataType::Float, &[2], &f32s)), [1.0, -2.0]);
    let f64s: Vec<u8> = [1.0, 0.1f64, 1e300]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    assert_eq!(
        floats(&raw(DataType::Double, &[3], &f64s)),
        [1.0, 0.1, f32::INFINITY]
    );
}

#[test]
fn floats_in_typed_fields() {
    let mut tensor = typed(DataType::Float, &[2]);
    tensor.float_data = vec![1.5, -0.0];
    assert_eq!(floats(&tensor), [1.5, -0.0]);
    // Some writers leave an empty raw_data.
    tensor.raw_data = Some(Bytes::new());
    assert_eq!(floats(&tensor), [1.5, -0.0]);

    let mut tensor = typed(DataType::Double, &[2]);
    tensor.double_data = vec![0.1, -3.0];
    assert_eq!(floats(&tensor), [0.1, -3.0]);

    let mut tensor = typed(DataType::Float16, &[2]);
    tensor.int32_data = vec![0x3c00, 0xc000];
    assert_eq!(floats(&tensor), [1.0, -2.0]);
    tensor.data_type = Some(DataType::Bfloat16 as i32);
    tensor.int32_data = vec![0x3f80, 0xc000];
    assert_eq!(floats(&tensor), [1.0, -2.0]);
}

#[test]
fn the_shape_is_kept_and_a_scalar_has_none() {
    let tensor = from_f32("t", &[2, 3], &[0., 1., 2., 3., 4., 5.], DataType::Float);
    let expected = arr2(&[[0., 1., 2.], [3., 4., 5.]]).into_dyn();
    assert_eq!(float_array(&tensor).unwrap(), expected);
    let scalar = from_i32("s", &[], &[-7]);
    assert_eq!(int_array(&scalar).unwrap(), ndarray::arr0(-7).into_dyn());
    let nothing = from_f32("n", &[0, 3], &[], DataType::Float16);
    assert_eq!(float_array(&nothing).unwrap().shape(), [0, 3]);
    assert_eq!(
        float_array(&typed(DataType::Float, &[0])).unwrap().shape(),
        [0]
    );
}

#[test]
fn integers_in_raw_data() {
    assert_eq!(ints(&raw(DataType::Uint8, &[2], &[1, 255])), [1, 255]);
    assert_eq!(ints(&raw(DataType::Int8, &[2], &[1, 255])), [1, -1]);
    assert_eq!(ints(&raw(DataType::Uint16, &[1], &[0xfe, 0xff])), [0xfffe]);
    assert_eq!(ints(&raw(DataType::Int16, &[1], &[0xfe, 0xff])), [-2]);
    assert_eq!(
        ints(&raw(DataType::Uint32, &[1], &[0xfe, 0xff, 0xff, 0xff])),
        [0xffff_fffe]
    );
    assert_eq!(
        ints(&raw(DataType::Int32, &[1], &[0xfe, 0xff, 0xff, 0xff])),
        [-2]
    );
    assert_eq!(
        ints(&raw(DataType::Int64, &[1], &(-2i64).to_le_bytes())),
        [-2]
    );
    assert_eq!(ints(&raw(DataType::Uint64, &[1], &7u64.to_le_bytes())), [7]);
    assert_eq!(ints(&raw(DataType::Bool, &[3], &[0, 1, 2])), [0, 1, 1]);
    // First element in the lowest bits, last byte only half used.
    assert_eq!(ints(&raw(DataType::Uint4, &[3], &[0xf1, 0x08])), [1, 15, 8]);
    assert_eq!(ints(&raw(DataType::Int4, &[3], &[0xf1, 0x08])), [1, -1, -8]);
    assert_eq!(
        ints(&raw(DataType::Uint2, &[5], &[0b11_10_01_00, 0b10])),
        [0, 1, 2, 3, 2]
    );
    assert_eq!(
        ints(&raw(DataType::Int2, &[5], &[0b11_10_01_00, 0b10])),
        [0, 1, -2, -1, -2]
    );
}

#[test]
fn int4_is_packed_as_it_is_read() {
    let all: Vec<i8> = (-8..=7).collect();
    for (shape, data) in [
        (&[16][..], &all[..]),
        (&[3, 5], &all[1..]),
        (&[], &all[..1]),
        (&[0, 3], &[]),
    ] {
        let tensor = from_i4("w", shape, data);
        assert_eq!(
            tensor.raw_data.as_ref().unwrap().len(),
            data.len().div_ceil(2)
        );
        let read = int_array(&tensor).unwrap();
        assert_eq!(read.shape(), shape);
        assert!(read.iter().zip(data).all(|(&a, &b)| a == i64::from(b)));
        check(&tensor).unwrap();
    }
}

#[test]
fn integers_in_typed_fields() {
    for dtype in INTEGERS {
        let mut tensor = typed(dtype, &[2]);
        match dtype {
            DataType::Int64 => tensor.int64_data = vec![1, 0],
            DataType::Uint32 | DataType::Uint64 => tensor.uint64_data = vec![1, 0],
            DataType::Uint2 | DataType::Int2 | DataType::Uint4 | DataType::Int4 => {
                tensor.int32_data = vec![1]
            }
            _ => tensor.int32_data = vec![1, 0],
        }
        assert_eq!(ints(&tensor), [1, 0], "{dtype:?}");
    }
    let mut int4 = typed(DataType::Int4, &[3]);
    int4.int32_data = vec![0xf1, 0x08];
    assert_eq!(ints(&int4), [1, -1, -8]);
}

#[test]
fn floats_of_6_bits_are_packed_in_raw_data_only() {
    for dtype in [DataType::Float6e2m3, DataType::Float6e3m2] {
        check(&raw(dtype, &[5], &[0; 4])).unwrap();
        check(&raw(dtype, &[5], &[0; 5])).unwrap_err();
        let mut tensor = typed(dtype, &[5]);
        tensor.int32_data = vec![0; 5];
        check(&tensor).unwrap();
        tensor.int32_data = vec![0; 4];
        check(&tensor).unwrap_err();
    }
}

#[test]
fn what_does_not_fit_is_an_error_that_names_the_tensor() {
    let message = |result: Result<ArrayD<f32>, TensorError>| result.unwrap_err().to_string();
    assert_eq!(
        message(float_array(&raw(DataType::Float, &[2], &[0; 7]))),
        "tensor `t`: its shape needs 8 bytes, found 7 in raw_data"
    );
    let mut short = typed(DataType::Float, &[2]);
    short.float_data = vec![1.0];
    assert_eq!(
        message(float_array(&short)),
        "tensor `t`: its shape needs 2 elements, found 1 in float_data"
    );
    assert_eq!(
        message(float_array(&typed(DataType::Float16, &[]))),
        "tensor `t`: its shape needs 1 elements, found 0 in int32_data"
    );
    assert_eq!(
        message(float_array(&from_i8("q", &[1], &[1]))),
        "tensor `q`: expected FLOAT, FLOAT16, BFLOAT16 or DOUBLE, found INT8"
    );
    assert_eq!(
        int_array(&from_f32("f", &[1], &[1.0], DataType::Float))
            .unwrap_err()
            .to_string(),
        "tensor `f`: expected integers or BOOL, found FLOAT"
    );
    let mut tensor = typed(DataType::Float, &[]);
    tensor.data_type = Some(77);
    assert_eq!(
        message(float_array(&tensor)),
        "tensor `t`: the data type 77 is not known"
    );
    assert_eq!(dtype(&tensor), None);
    let big = raw(DataType::Uint64, &[1], &u64::MAX.to_le_bytes());
    let error = int_array(&big).unwrap_err();
    assert_eq!(error.problem, TensorProblem::TooLarge(u64::MAX));
}

#[test]
fn impossible_shapes_external_data_and_segments_are_errors() {
    for dims in [&[-1][..], &[i64::MAX, 2], &[0, i64::MAX, i64::MAX]] {
        let tensor = typed(DataType::Float, dims);
        let bad = Err(TensorProblem::BadShape(dims.to_vec()));
        assert_eq!(shape(&tensor).map_err(|error| error.problem), bad);
        assert!(float_array(&tensor).is_err());
    }
    // The number of elements fits into usize, the number of bytes does not.
    assert!(float_array(&typed(DataType::Double, &[i64::MAX])).is_err());
    let mut tensor = from_i64("t", &[1], &[1]);
    tensor.segment = Some(Segment::default());
    assert_eq!(
        int_array(&tensor).unwrap_err().problem,
        TensorProblem::Segment
    );
    tensor.data_location = Some(DataLocation::External as i32);
    assert_eq!(
        int_array(&tensor).unwrap_err().problem,
        TensorProblem::External
    );
}

#[test]
fn rounding_is_to_the_nearest_even() {
    // Half-way between 1 and the next float16 (1 + 2^-10), and half-way above that one.
    let step = 2f32.powi(-10);
    let data = [1.0 + step / 2.0, 1.0 + 1.5 * step, 65504.0, 65520.0];
    let tensor = from_f32("t", &[4], &data, DataType::Float16);
    assert_eq!(
        floats(&tensor),
        [1.0, 1.0 + 2.0 * step, 65504.0, f32::INFINITY]
    );
}

#[test]
#[should_panic(expected = "3 elements for the shape [2]")]
fn a_wrong_number_of_elements_cannot_be_made() {
    from_i8("t", &[2], &[1, 2, 3]);
}

proptest! {
    #[test]
    fn integers_are_read_back(bytes in proptest::collection::vec(any::<u8>(), 0..9), wide in any::<[i64; 3]>()) {
        let shape = [bytes.len()];
        let signed: Vec<i8> = bytes.iter().map(|&byte| byte as i8).collect();
        prop_assert_eq!(ints(&from_u8("t", &shape, &bytes)), bytes.iter().map(|&v| i64::from(v)).collect::<Vec<_>>());
        prop_assert_eq!(ints(&from_i8("t", &shape, &signed)), signed.iter().map(|&v| i64::from(v)).collect::<Vec<_>>());
        prop_assert_eq!(ints(&from_i64("t", &[3], &wide)), wide);
        let narrow = wide.map(|value| value as i32);
        prop_assert_eq!(ints(&from_i32("t", &[3], &narrow)), narrow.map(i64::from));
    }

    #[test]
    fn floats_are_read_back(data in proptest::collection::vec(any::<f32>(), 0..9)) {
        let shape = [data.len()];
        prop_assert_eq!(&floats(&from_f32("t", &shape, &data, DataType::Float)), &data);
        prop_assert_eq!(&floats(&from_f32("t", &shape, &data, DataType::Double)), &data);
        // A value of a narrow type is a value of f32, so it must not change the second time.
        for dtype in [DataType::Float16, DataType::Bfloat16] {
            let once = floats(&from_f32("t", &shape, &data, dtype));
            prop_assert_eq!(&floats(&from_f32("t", &shape, &once, dtype)), &once);
        }
    }
}
