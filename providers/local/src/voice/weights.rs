//! The weights in an ONNX file, without a library that runs it.
//!
//! ONNX is protocol buffers. Of a model only the named tensors matter here: they sit in the graph
//! and in the sub-graphs of its nodes.

use std::collections::BTreeMap;

use thiserror::Error;

/// Deepest nesting of sub-graphs that is followed.
const DEPTH: u32 = 8;
/// ONNX's number for 32-bit floats.
const FLOAT: u64 = 1;

/// Why a file's weights cannot be read.
#[derive(Debug, PartialEq, Eq, Error)]
pub(super) enum WeightsError {
    #[error("the file is cut short or not ONNX")]
    Malformed,
    #[error("no 32-bit float tensor `{0}` of the expected size")]
    Missing(String),
}

/// The 32-bit float tensors of a model by name, flattened.
#[derive(Debug, Default)]
pub(super) struct Weights {
    tensors: BTreeMap<String, Vec<f32>>,
}

impl Weights {
    /// Reads a model.
    pub(super) fn parse(model: &[u8]) -> Result<Self, WeightsError> {
        const GRAPH: u64 = 7;
        let mut weights = Self::default();
        for field in Fields(model) {
            let (number, value) = field?;
            if let (GRAPH, Value::Bytes(graph)) = (number, value) {
                weights.read_graph(graph, DEPTH)?;
            }
        }
        Ok(weights)
    }

    /// Takes a tensor of exactly `len` values out.
    pub(super) fn take(&mut self, name: &str, len: usize) -> Result<Vec<f32>, WeightsError> {
        self.tensors
            .remove(name)
            .filter(|values| values.len() == len)
            .ok_or_else(|| WeightsError::Missing(name.to_owned()))
    }

    fn read_graph(&mut self, graph: &[u8], depth: u32) -> Result<(), WeightsError> {
        const NODE: u64 = 1;
        const INITIALIZER: u64 = 5;
        let Some(depth) = depth.checked_sub(1) else {
            return Err(WeightsError::Malformed);
        };
        for field in Fields(graph) {
            match field? {
                (NODE, Value::Bytes(node)) => self.read_node(node, depth)?,
                (INITIALIZER, Value::Bytes(tensor)) => self.read_tensor(tensor)?,
                (_, Value::Bytes(_) | Value::Number(_)) => {}
            }
        }
        Ok(())
    }

    fn read_node(&mut self, node: &[u8], depth: u32) -> Result<(), WeightsError> {
        const ATTRIBUTE: u64 = 5;
        const SUBGRAPH: u64 = 6;
        for field in Fields(node) {
            let (ATTRIBUTE, Value::Bytes(attribute)) = field? else {
                continue;
            };
            for field in Fields(attribute) {
                if let (SUBGRAPH, Value::Bytes(graph)) = field? {
                    self.read_graph(graph, depth)?;
                }
            }
        }
        Ok(())
    }

    fn read_tensor(&mut self, tensor: &[u8]) -> Result<(), WeightsError> {
        const DATA_TYPE: u64 = 2;
        const NAME: u64 = 8;
        const RAW_DATA: u64 = 9;
        let (mut kind, mut name, mut data) = (0, None, None);
        for field in Fields(tensor) {
            match field? {
                (DATA_TYPE, Value::Number(number)) => kind = number,
                (NAME, Value::Bytes(text)) => name = std::str::from_utf8(text).ok(),
                (RAW_DATA, Value::Bytes(raw)) => data = Some(raw),
                (_, Value::Bytes(_) | Value::Number(_)) => {}
            }
        }
        let (FLOAT, Some(name), Some(data)) = (kind, name, data) else {
            return Ok(());
        };
        let (values, rest) = data.as_chunks();
        if !rest.is_empty() {
            return Err(WeightsError::Malformed);
        }
        let values = values.iter().map(|bytes| f32::from_le_bytes(*bytes));
        self.tensors.insert(name.to_owned(), values.collect());
        Ok(())
    }
}

/// A field's content; of the fixed-width ones nothing is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a protocol buffer message.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), WeightsError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(WeightsError::Malformed))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Bytes(self.bytes(8)?),
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.bytes(len)?)
            }
            5 => Value::Bytes(self.bytes(4)?),
            _ => return None,
        };
        Some((key >> 3, value))
    }

    fn bytes(&mut self, len: u64) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(bytes)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, content.len() as u8];
        bytes.extend_from_slice(content);
        bytes
    }

    fn tensor(name: &str, values: &[f32]) -> Vec<u8> {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        [
            vec![2 << 3, FLOAT as u8],
            field(8, name.as_bytes()),
            field(9, &raw),
        ]
        .concat()
    }

    #[test]
    fn weights_are_found_in_the_graph_and_in_its_sub_graphs() {
        let inner = field(5, &tensor("inner", &[3.0]));
        let node = field(5, &field(6, &inner));
        let graph = [field(5, &tensor("outer", &[1.0, -2.0])), field(1, &node)].concat();
        let mut weights = Weights::parse(&field(7, &graph)).unwrap();
        assert_eq!(weights.take("outer", 2), Ok(vec![1.0, -2.0]));
        assert_eq!(weights.take("inner", 1), Ok(vec![3.0]));
        assert_eq!(
            weights.take("inner", 1),
            Err(WeightsError::Missing("inner".into()))
        );
    }

    proptest! {
        #[test]
        fn no_file_makes_the_reader_panic(file in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Weights::parse(&file);
        }
    }
}
