//! A plan as it is written down.

use std::{ops::Index, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value};

use crate::entry::json_weight;

/// The fields of a plan: the turn's own, and those that it shares with others, which are in memory once.
#[derive(Clone, Debug)]
pub struct PlanRecord {
    own: Map<String, Value>,
    shared: Arc<PlanFields>,
}

/// Fields that plans have in common.
#[derive(Clone, Debug, Default)]
pub struct PlanFields {
    fields: Map<String, Value>,
    weight: usize,
}

impl PlanFields {
    /// What a value serialises to, which has to be a map.
    pub fn of(value: &impl Serialize) -> Result<Self, serde_json::Error> {
        let fields = fields(value)?;
        Ok(Self {
            weight: weight(&fields),
            fields,
        })
    }
}

fn fields(value: &impl Serialize) -> Result<Map<String, Value>, serde_json::Error> {
    serde_json::from_value(serde_json::to_value(value)?)
}

fn weight(fields: &Map<String, Value>) -> usize {
    let each = fields.iter();
    each.map(|(name, value)| name.len() + json_weight(value))
        .sum()
}

impl PlanRecord {
    /// A plan whose `own` fields come on top of those that it shares.
    pub fn new(own: &impl Serialize, shared: Arc<PlanFields>) -> Result<Self, serde_json::Error> {
        Ok(Self {
            own: fields(own)?,
            shared,
        })
    }

    /// A field.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.own.get(name).or_else(|| self.shared.fields.get(name))
    }

    /// A value by its field path, `/` between the parts, as provenance names it.
    pub fn at(&self, path: &str) -> Option<&Value> {
        let mut parts = path.split('/');
        let field = self.get(parts.next()?)?;
        parts.try_fold(field, |value, part| match value {
            Value::Object(fields) => fields.get(part),
            Value::Array(items) => items.get(part.parse::<usize>().ok()?),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
        })
    }

    /// A field, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Value> {
        if !self.own.contains_key(name) {
            let shared = self.shared.fields.get(name)?.clone();
            self.own.insert(name.to_owned(), shared);
        }
        self.own.get_mut(name)
    }

    /// The whole plan.
    pub fn to_value(&self) -> Value {
        let each = self.iter();
        let each = each.map(|(name, value)| (name.clone(), value.clone()));
        Value::Object(each.collect())
    }

    /// About how many bytes it takes in the recording.
    pub(crate) fn weight(&self) -> usize {
        weight(&self.own) + self.shared.weight
    }

    fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        let shared = self.shared.fields.iter();
        let shared = shared.filter(|(name, _)| !self.own.contains_key(*name));
        self.own.iter().chain(shared)
    }
}

impl PartialEq for PlanRecord {
    fn eq(&self, other: &Self) -> bool {
        self.iter().count() == other.iter().count()
            && self
                .iter()
                .all(|(name, value)| other.get(name) == Some(value))
    }
}

impl Index<&str> for PlanRecord {
    type Output = Value;

    /// A field, or null, as in a [`Value`].
    fn index(&self, name: &str) -> &Value {
        self.get(name).unwrap_or(&Value::Null)
    }
}

impl From<Map<String, Value>> for PlanRecord {
    fn from(own: Map<String, Value>) -> Self {
        Self {
            own,
            shared: Arc::default(),
        }
    }
}

impl Serialize for PlanRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.iter().count()))?;
        for (name, value) in self.iter() {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for PlanRecord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Map::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn own_fields_lie_over_shared_ones_and_both_are_written() {
        let shared = Arc::new(PlanFields::of(&json!({ "a": 1, "b": { "c": 2 } })).unwrap());
        let mut plan = PlanRecord::new(&json!({ "turn": 7, "a": 3 }), Arc::clone(&shared)).unwrap();
        let whole = json!({ "a": 3, "b": { "c": 2 }, "turn": 7 });
        assert_eq!(plan.to_value(), whole);
        assert_eq!(serde_json::to_value(&plan).unwrap(), whole);
        let read: PlanRecord = serde_json::from_value(whole).unwrap();
        assert_eq!(read, plan);
        assert_eq!(plan["b"]["c"], 2);
        assert_eq!(plan["nothing"], Value::Null);
        plan.get_mut("b").unwrap()["c"] = 9.into();
        assert_ne!(read, plan);
        assert_eq!(shared.fields["b"]["c"], 2, "others keep theirs");
        assert!(plan.get_mut("nothing").is_none());
    }
}
