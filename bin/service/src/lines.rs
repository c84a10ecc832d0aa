//! Logs for programs: a JSON object a line, each of which says whose it is (F-067, F-116, NF-008).
//!
//! `tenant_id`, `session_id`, `turn_id`, `node_id` and `pipeline_version` are on every line, null where there is none: of the
//! event itself, else of the scopes that it happened in, the innermost first. Whoever logs need not repeat what
//! its scope says.

use std::{error::Error, fmt, io::Write};

use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer,
    fmt::{
        MakeWriter,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::Context,
    registry::LookupSpan,
};

/// What every line has, and by which shorter names events give it.
const IDS: [(&str, &str); 5] = [
    ("tenant_id", "tenant"),
    ("session_id", "session"),
    ("turn_id", "turn"),
    ("node_id", "node"),
    ("pipeline_version", "pipeline"),
];
/// What records of the `log` crate have beside their own, under this prefix.
const FOREIGN: &str = "log.";

/// Writes a JSON object a line.
#[derive(Debug)]
pub struct JsonLines<W> {
    write: W,
}

impl<W> JsonLines<W> {
    /// Writes to that.
    pub fn new(write: W) -> Self {
        Self { write }
    }
}

/// The fields of an event or a scope.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        let name = field.name();
        let id = IDS.iter().find(|(_, short)| *short == name);
        let name = id.map_or(name, |(id, _)| id);
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.put(field, value.to_string().into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut own = Fields::default();
        event.record(&mut own);
        let mut fields = own.0;
        let scopes = context.event_scope(event).into_iter().flatten();
        for scope in scopes {
            if let Some(Fields(of_scope)) = scope.extensions().get::<Fields>() {
                for (name, value) in of_scope {
                    fields.entry(name).or_insert_with(|| value.clone());
                }
            }
        }
        let metadata = event.metadata();
        let foreign = fields.remove("log.target");
        fields.retain(|name, _| !name.starts_with(FOREIGN));
        for (id, _) in IDS {
            fields.entry(id).or_insert(Value::Null);
        }
        let target = foreign.unwrap_or_else(|| metadata.target().into());
        fields.insert("target".to_owned(), target);
        fields.insert("level".to_owned(), metadata.level().as_str().into());
        fields.insert("timestamp".to_owned(), now().into());
        let line = format!("{}\n", Value::Object(fields));
        // One write a line: whoever else writes there, lines stay whole. Nobody can be told that it failed.
        let _lost = self
            .write
            .make_writer_for(metadata)
            .write_all(line.as_bytes());
    }
}

fn now() -> String {
    let mut text = String::new();
    match SystemTime.format_time(&mut Writer::new(&mut text)) {
        Ok(()) => text,
        Err(fmt::Error) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing::{info, info_span};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(log: impl FnOnce()) -> Vec<Value> {
        let written = Written::default();
        let writer = written.clone();
        let layer = JsonLines::new(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, log);
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// F-067, F-116, NF-008: each line has all five ids, the innermost of each, and is JSON whatever is said.
    #[test]
    fn every_line_says_whose_it_is() {
        let lines = lines(|| {
            info!("nobody's");
            let session = info_span!(
                "session",
                tenant_id = "acme",
                session_id = "s-1",
                pipeline_version = "p-1"
            );
            session.in_scope(|| {
                info!(turn = "turn-0001", "of a turn");
                let node = info_span!("node", node_id = "tts", turn_id = "turn-0002");
                node.in_scope(|| info!(text = "a \"quote\"\nand a line", count = 7, "of a node"));
                info!(session = "s-2", "of another");
            });
        });
        let ids = |line: &Value| {
            IDS.map(|(id, _)| {
                assert!(line.get(id).is_some(), "{id} in {line}");
                line[id].as_str().unwrap_or("-").to_owned()
            })
        };
        assert_eq!(ids(&lines[0]), ["-", "-", "-", "-", "-"]);
        assert_eq!(ids(&lines[1]), ["acme", "s-1", "turn-0001", "-", "p-1"]);
        assert_eq!(ids(&lines[2]), ["acme", "s-1", "turn-0002", "tts", "p-1"]);
        assert_eq!(ids(&lines[3]), ["acme", "s-2", "-", "-", "p-1"]);
        assert_eq!(lines[2]["text"], "a \"quote\"\nand a line");
        assert_eq!(
            (&lines[2]["count"], &lines[2]["level"]),
            (&7.into(), &"INFO".into())
        );
        assert!(lines[0].get("session").is_none(), "ids have one name each");
        assert!(lines[0]["timestamp"].as_str().unwrap().ends_with('Z'));
    }
}
