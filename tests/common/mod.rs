//! Models for the tests. The random ones hold every message and field of the schema, every storage of a tensor, subgraphs in
//! nodes, functions, training graphs. They are well formed as files; their graphs make no sense.

pub mod graphs;

use bytes::Bytes;
use onnx_osplus::onnx::DataType;
use onnx_osplus::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use onnx_osplus::onnx::proto::*;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use std::path::PathBuf;

/// The committed models, in the order of their names.
pub fn committed_models() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    let files = std::fs::read_dir(folder).unwrap();
    let mut models: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    models.retain(|path| path.extension().is_some_and(|ext| ext == "onnx"));
    models.sort();
    assert!(models.len() >= 5, "{models:?}");
    models
}

/// The smallest model that loads, with one initializer.
pub fn with_initializer(tensor: TensorProto) -> ModelProto {
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto {
            domain: None,
            version: Some(17),
        }],
        graph: Some(GraphProto {
            initializer: vec![tensor],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn text() -> impl Strategy<Value = String> + Clone {
    "[a-zé/:.0]{0,6}"
}

fn name() -> impl Strategy<Value = Option<String>> + Clone {
    of(text())
}

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..6).prop_map(Bytes::from)
}

/// No NaN: the tests compare messages with `==`.
fn float() -> impl Strategy<Value = f32> {
    prop_oneof![any::<f32>(), Just(0.0), Just(-0.0), Just(f32::INFINITY)]
}

fn entries() -> BoxedStrategy<Vec<StringStringEntryProto>> {
    let entry = (name(), name()).prop_map(|(key, value)| StringStringEntryProto { key, value });
    vec(entry, 0..2).boxed()
}

/// Bits of one element, as in the ONNX documentation of `raw_data`.
fn bits(dtype: DataType) -> usize {
    use DataType::*;
    match dtype {
        Uint2 | Int2 => 2,
        Uint4 | Int4 | Float4e2m1 => 4,
        Float6e2m3 | Float6e3m2 => 6,
        Uint16 | Int16 | Float16 | Bfloat16 => 16,
        Uint32 | Int32 | Float => 32,
        Uint64 | Int64 | Double | Complex64 => 64,
        Complex128 => 128,
        _ => 8,
    }
}

/// A tensor of any type, in `raw_data` or in the typed field, of the right length.
pub fn tensor() -> BoxedStrategy<TensorProto> {
    let types = (1..=28i32).prop_map(|number| DataType::try_from(number).unwrap());
    (vec(0..4usize, 0..3), types, any::<bool>())
        .prop_flat_map(|(shape, dtype, raw)| {
            let count: usize = shape.iter().product();
            let packed = (count * bits(dtype)).div_ceil(8);
            let data = match dtype {
                DataType::String => {
                    let strings = vec(bytes(), count);
                    let fill = |string_data| TensorProto {
                        string_data,
                        ..Default::default()
                    };
                    strings.prop_map(fill).boxed()
                }
                _ if raw => {
                    let data = vec(any::<u8>(), packed);
                    let fill = |data: Vec<u8>| TensorProto {
                        raw_data: Some(data.into()),
                        ..Default::default()
                    };
                    data.prop_map(fill).boxed()
                }
                DataType::Float | DataType::Complex64 => {
                    let count = if dtype == DataType::Float {
                        count
                    } else {
                        2 * count
                    };
                    let fill = |float_data| TensorProto {
                        float_data,
                        ..Default::default()
                    };
                    vec(float(), count).prop_map(fill).boxed()
                }
                DataType::Double | DataType::Complex128 => {
                    let count = if dtype == DataType::Double {
                        count
                    } else {
                        2 * count
                    };
                    let fill = |double_data| TensorProto {
                        double_data,
                        ..Default::default()
                    };
                    vec(any::<f64>(), count).prop_map(fill).boxed()
                }
                DataType::Int64 => {
                    let fill = |int64_data| TensorProto {
                        int64_data,
                        ..Default::default()
                    };
                    vec(any::<i64>(), count).prop_map(fill).boxed()
                }
                DataType::Uint32 | DataType::Uint64 => {
                    let fill = |uint64_data| TensorProto {
                        uint64_data,
                        ..Default::default()
                    };
                    vec(any::<u64>(), count).prop_map(fill).boxed()
                }
                _ => {
                    // Types of 6 bits are packed in `raw_data` only.
                    let count = match bits(dtype) {
                        2 | 4 => packed,
                        _ => count,
                    };
                    let fill = |int32_data| TensorProto {
                        int32_data,
                        ..Default::default()
                    };
                    vec(any::<i32>(), count).prop_map(fill).boxed()
                }
            };
            let segment = (of(any::<i64>()), of(any::<i64>()));
            let segment = segment.prop_map(|(begin, end)| tensor_proto::Segment { begin, end });
            // Float tensors in segments are refused.
            let segment = match dtype {
                DataType::Int8 => of(segment).boxed(),
                _ => Just(None).boxed(),
            };
            (data, name(), name(), entries(), of(Just(0)), segment).prop_map(
                move |(data, name, doc_string, metadata_props, data_location, segment)| {
                    TensorProto {
                        dims: shape.iter().map(|&dim| dim as i64).collect(),
                        data_type: Some(dtype as i32),
                        name,
                        doc_string,
                        metadata_props,
                        data_location,
                        segment,
                        ..data
                    }
                },
            )
        })
        .boxed()
}

fn sparse() -> BoxedStrategy<SparseTensorProto> {
    (of(tensor()), of(tensor()), vec(any::<i64>(), 0..3))
        .prop_map(|(values, indices, dims)| SparseTensorProto {
            values,
            indices,
            dims,
        })
        .boxed()
}

fn shape() -> BoxedStrategy<TensorShapeProto> {
    let value = prop_oneof![
        any::<i64>().prop_map(dimension::Value::DimValue),
        text().prop_map(dimension::Value::DimParam),
    ];
    let dim = (of(value), name()).prop_map(|(value, denotation)| Dimension { denotation, value });
    vec(dim, 0..3)
        .prop_map(|dim| TensorShapeProto { dim })
        .boxed()
}

fn type_proto() -> BoxedStrategy<TypeProto> {
    use type_proto::Value;
    let tensor = (of(0..30i32), of(shape()));
    let leaf = prop_oneof![
        Just(None),
        tensor.prop_map(
            |(elem_type, shape)| Some(Value::TensorType(type_proto::Tensor { elem_type, shape }))
        ),
        (of(0..30i32), of(shape())).prop_map(|(elem_type, shape)| {
            Some(Value::SparseTensorType(type_proto::SparseTensor {
                elem_type,
                shape,
            }))
        }),
        (name(), name()).prop_map(|(domain, name)| {
            Some(Value::OpaqueType(type_proto::Opaque { domain, name }))
        }),
    ];
    let leaf = (leaf, name()).prop_map(|(value, denotation)| TypeProto { denotation, value });
    leaf.prop_recursive(2, 4, 1, |inner| {
        let value = (of(inner.prop_map(Box::new)), 0..3, of(any::<i32>())).prop_map(
            |(inner, kind, key_type)| match kind {
                0 => Value::SequenceType(Box::new(type_proto::Sequence { elem_type: inner })),
                1 => Value::OptionalType(Box::new(type_proto::Optional { elem_type: inner })),
                _ => Value::MapType(Box::new(type_proto::Map {
                    key_type,
                    value_type: inner,
                })),
            },
        );
        (of(value), name()).prop_map(|(value, denotation)| TypeProto { denotation, value })
    })
    .boxed()
}

fn value_info() -> BoxedStrategy<Vec<ValueInfoProto>> {
    let one = (name(), of(type_proto()), name(), entries());
    let one = one.prop_map(
        |(name, r#type, doc_string, metadata_props)| ValueInfoProto {
            name,
            r#type,
            doc_string,
            metadata_props,
        },
    );
    vec(one, 0..2).boxed()
}

fn attribute(depth: u32) -> BoxedStrategy<AttributeProto> {
    let graphs = match depth {
        0 => Just(Vec::new()).boxed(),
        _ => vec(graph(depth - 1), 0..3).boxed(),
    };
    let scalars = (
        name(),
        name(),
        name(),
        of(0..16i32),
        of(float()),
        of(any::<i64>()),
        of(bytes()),
    );
    let lists = (
        vec(float(), 0..3),
        vec(any::<i64>(), 0..3),
        vec(bytes(), 0..3),
    );
    let messages = (
        of(tensor()),
        vec(tensor(), 0..2),
        of(sparse()),
        vec(sparse(), 0..2),
        of(type_proto()),
        vec(type_proto(), 0..2),
    );
    (scalars, lists, messages, graphs)
        .prop_map(|(scalars, lists, messages, mut graphs)| AttributeProto {
            name: scalars.0,
            ref_attr_name: scalars.1,
            doc_string: scalars.2,
            r#type: scalars.3,
            f: scalars.4,
            i: scalars.5,
            s: scalars.6,
            floats: lists.0,
            ints: lists.1,
            strings: lists.2,
            t: messages.0,
            tensors: messages.1,
            sparse_tensor: messages.2,
            sparse_tensors: messages.3,
            tp: messages.4,
            type_protos: messages.5,
            g: graphs.pop(),
            graphs,
        })
        .boxed()
}

fn sharding() -> BoxedStrategy<ShardingSpecProto> {
    use simple_sharded_dim_proto::Dim;
    let dim = prop_oneof![
        any::<i64>().prop_map(Dim::DimValue),
        text().prop_map(Dim::DimParam)
    ];
    let simple = (of(any::<i64>()), of(dim));
    let simple = simple.prop_map(|(num_shards, dim)| SimpleShardedDimProto { num_shards, dim });
    let sharded = (of(any::<i64>()), vec(simple, 0..2));
    let sharded = sharded.prop_map(|(axis, simple_sharding)| ShardedDimProto {
        axis,
        simple_sharding,
    });
    let group = (of(any::<i64>()), vec(any::<i64>(), 0..3));
    let group = group.prop_map(|(key, value)| IntIntListEntryProto { key, value });
    (
        name(),
        vec(any::<i64>(), 0..3),
        vec(group, 0..2),
        vec(sharded, 0..2),
    )
        .prop_map(
            |(tensor_name, device, index_to_device_group_map, sharded_dim)| ShardingSpecProto {
                tensor_name,
                device,
                index_to_device_group_map,
                sharded_dim,
            },
        )
        .boxed()
}

fn node(depth: u32) -> BoxedStrategy<NodeProto> {
    let device = (name(), vec(sharding(), 0..2), of(any::<i32>()));
    let device = device.prop_map(|(configuration_id, sharding_spec, pipeline_stage)| {
        NodeDeviceConfigurationProto {
            configuration_id,
            sharding_spec,
            pipeline_stage,
        }
    });
    let strings = (
        vec(text(), 0..3),
        vec(text(), 0..3),
        name(),
        name(),
        name(),
        name(),
        name(),
    );
    (
        strings,
        vec(attribute(depth), 0..3),
        entries(),
        vec(device, 0..2),
    )
        .prop_map(
            |(strings, attribute, metadata_props, device_configurations)| NodeProto {
                input: strings.0,
                output: strings.1,
                name: strings.2,
                op_type: strings.3,
                domain: strings.4,
                overload: strings.5,
                doc_string: strings.6,
                attribute,
                metadata_props,
                device_configurations,
            },
        )
        .boxed()
}

/// A graph whose nodes hold subgraphs down to `depth`.
pub fn graph(depth: u32) -> BoxedStrategy<GraphProto> {
    let annotation = (name(), entries());
    let annotation =
        annotation.prop_map(
            |(tensor_name, quant_parameter_tensor_names)| TensorAnnotation {
                tensor_name,
                quant_parameter_tensor_names,
            },
        );
    let values = (value_info(), value_info(), value_info());
    let tensors = (
        vec(tensor(), 0..4),
        vec(sparse(), 0..2),
        vec(annotation, 0..2),
    );
    (
        vec(node(depth), 0..3),
        name(),
        name(),
        values,
        tensors,
        entries(),
    )
        .prop_map(
            |(node, name, doc_string, values, tensors, metadata_props)| GraphProto {
                node,
                name,
                doc_string,
                input: values.0,
                output: values.1,
                value_info: values.2,
                initializer: tensors.0,
                sparse_initializer: tensors.1,
                quantization_annotation: tensors.2,
                metadata_props,
            },
        )
        .boxed()
}

fn opsets() -> BoxedStrategy<Vec<OperatorSetIdProto>> {
    let one = (name(), of(any::<i64>()));
    vec(
        one.prop_map(|(domain, version)| OperatorSetIdProto { domain, version }),
        1..3,
    )
    .boxed()
}

fn function() -> BoxedStrategy<FunctionProto> {
    let strings = (name(), name(), name(), name());
    let lists = (vec(text(), 0..3), vec(text(), 0..3), vec(text(), 0..3));
    let parts = (
        vec(node(0), 0..2),
        vec(attribute(1), 0..2),
        opsets(),
        value_info(),
        entries(),
    );
    (strings, lists, parts)
        .prop_map(|(strings, lists, parts)| FunctionProto {
            name: strings.0,
            doc_string: strings.1,
            domain: strings.2,
            overload: strings.3,
            input: lists.0,
            output: lists.1,
            attribute: lists.2,
            node: parts.0,
            attribute_proto: parts.1,
            opset_import: parts.2,
            value_info: parts.3,
            metadata_props: parts.4,
        })
        .boxed()
}

fn training() -> BoxedStrategy<TrainingInfoProto> {
    (of(graph(0)), of(graph(0)), entries(), entries())
        .prop_map(
            |(initialization, algorithm, initialization_binding, update_binding)| {
                TrainingInfoProto {
                    initialization,
                    algorithm,
                    initialization_binding,
                    update_binding,
                }
            },
        )
        .boxed()
}

/// A whole model.
pub fn model() -> BoxedStrategy<ModelProto> {
    let device = (name(), of(any::<i32>()), vec(text(), 0..2));
    let device = device.prop_map(|(name, num_devices, device)| DeviceConfigurationProto {
        name,
        num_devices,
        device,
    });
    let strings = (name(), name(), name(), name());
    let parts = (
        opsets(),
        vec(training(), 0..2),
        vec(function(), 0..2),
        vec(device, 0..2),
        entries(),
    );
    (graph(2), strings, of(any::<i64>()), of(any::<i64>()), parts)
        .prop_map(
            |(graph, strings, ir_version, model_version, parts)| ModelProto {
                ir_version,
                model_version,
                producer_name: strings.0,
                producer_version: strings.1,
                domain: strings.2,
                doc_string: strings.3,
                graph: Some(graph),
                opset_import: parts.0,
                training_info: parts.1,
                functions: parts.2,
                configuration: parts.3,
                metadata_props: parts.4,
            },
        )
        .boxed()
}
