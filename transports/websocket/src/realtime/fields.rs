//! A client's JSON, read field by field, so that what is wrong is told by its path.

use serde_json::{Map, Value};

/// Something is wrong with what a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// What, for programs.
    pub(super) code: &'static str,
    /// What, for people.
    pub(super) message: String,
    /// Where.
    pub(super) param: Option<String>,
}

impl Problem {
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            param: None,
        }
    }

    pub(super) fn at(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }
}

/// An object, and where it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a> {
    at: Path<'a>,
    fields: &'a Map<String, Value>,
}

/// Where something stands; written out only if it is wrong.
#[derive(Clone, Copy, Debug)]
enum Path<'a> {
    Top,
    Named(&'a Path<'a>, &'a str),
    Nth(&'a Path<'a>, &'a str, usize),
}

impl Path<'_> {
    fn of(&self, name: &str) -> String {
        let whole = self.written();
        if whole.is_empty() {
            name.to_owned()
        } else {
            format!("{whole}.{name}")
        }
    }

    fn written(&self) -> String {
        match self {
            Self::Top => String::new(),
            Self::Named(within, name) => within.of(name),
            Self::Nth(within, name, nth) => format!("{}[{nth}]", within.of(name)),
        }
    }
}

impl<'a> Fields<'a> {
    /// A whole message.
    pub(super) fn top(fields: &'a Map<String, Value>) -> Self {
        let at = Path::Top;
        Self { at, fields }
    }

    /// The path of a field.
    pub(super) fn path(&self, name: &str) -> String {
        self.at.of(name)
    }

    /// What is there, `null` too.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name)
    }

    /// What is there, unless it is `null`.
    fn said(&self, name: &str) -> Option<&'a Value> {
        self.get(name).filter(|value| !value.is_null())
    }

    /// Whether there is no field but these.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), Problem> {
        match self.fields.keys().find(|it| !known.contains(&it.as_str())) {
            None => Ok(()),
            Some(unknown) => {
                let path = self.path(unknown);
                let says = format!("unknown parameter: '{path}'");
                Err(Problem::new("unknown_parameter", says).at(path))
            }
        }
    }

    fn of_type<T>(
        &self,
        name: &str,
        wanted: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(value) = self.said(name) else {
            return Ok(None);
        };
        read(value).map(Some).ok_or_else(|| {
            let path = self.path(name);
            let says = format!("invalid type for '{path}': expected {wanted}");
            Problem::new("invalid_type", says).at(path)
        })
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, Problem> {
        self.of_type(name, "a string", Value::as_str)
    }

    pub(super) fn truth(&self, name: &str) -> Result<Option<bool>, Problem> {
        self.of_type(name, "a boolean", Value::as_bool)
    }

    pub(super) fn whole(&self, name: &str) -> Result<Option<u64>, Problem> {
        self.of_type(name, "a whole number that is not negative", Value::as_u64)
    }

    pub(super) fn list(&self, name: &str) -> Result<Option<&'a Vec<Value>>, Problem> {
        self.of_type(name, "an array", Value::as_array)
    }

    /// A number between two.
    pub(super) fn number(&self, name: &str, low: f64, high: f64) -> Result<Option<f64>, Problem> {
        let number = self.of_type(name, "a number", Value::as_f64)?;
        match number {
            Some(number) if !(low..=high).contains(&number) => {
                Err(self.invalid(name, &format!("is not between {low} and {high}")))
            }
            Some(_) | None => Ok(number),
        }
    }

    /// What has to be there.
    pub(super) fn needed<T>(&self, name: &str, found: Option<T>) -> Result<T, Problem> {
        found.ok_or_else(|| {
            let path = self.path(name);
            let says = format!("missing required parameter: '{path}'");
            Problem::new("missing_required_parameter", says).at(path)
        })
    }

    /// A value that makes no sense.
    pub(super) fn invalid(&self, name: &str, why: &str) -> Problem {
        let path = self.path(name);
        Problem::new("invalid_value", format!("invalid value: '{path}' {why}")).at(path)
    }

    /// A value that makes sense and is not served here.
    pub(super) fn unsupported(&self, name: &str, why: &str) -> Problem {
        let path = self.path(name);
        Problem::new("unsupported_value", format!("'{path}': {why}")).at(path)
    }

    /// The object of that name; `read` looks at it.
    pub(super) fn within<T>(
        &self,
        name: &str,
        read: impl FnOnce(Fields<'_>) -> Result<T, Problem>,
    ) -> Result<Option<T>, Problem> {
        match self.of_type(name, "an object", Value::as_object)? {
            None => Ok(None),
            Some(fields) => {
                let at = Path::Named(&self.at, name);
                read(Fields { at, fields }).map(Some)
            }
        }
    }

    /// Each object in the list of that name.
    pub(super) fn each(
        &self,
        name: &str,
        mut read: impl FnMut(Fields<'_>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        for (nth, value) in self.list(name)?.into_iter().flatten().enumerate() {
            let at = Path::Nth(&self.at, name, nth);
            let Some(fields) = value.as_object() else {
                let path = at.written();
                let says = format!("invalid type for '{path}': expected an object");
                return Err(Problem::new("invalid_type", says).at(path));
            };
            read(Fields { at, fields })?;
        }
        Ok(())
    }
}
