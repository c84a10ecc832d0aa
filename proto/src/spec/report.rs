//! Collects diagnostics of one file.

use super::{
    diagnostic::{Diagnostic, Diagnostics, Severity},
    source::Place,
};

/// Most diagnostics that are kept of one file; a reader needs no more.
const MAX_DIAGNOSTICS: usize = 200;

pub(super) struct Report<'a> {
    file: &'a str,
    found: Vec<Diagnostic>,
}

impl<'a> Report<'a> {
    pub(super) fn new(file: &'a str) -> Self {
        Self {
            file,
            found: Vec::new(),
        }
    }

    pub(super) fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        at: Place,
        path: &str,
        message: String,
        hint: Option<String>,
    ) {
        if self.found.len() < MAX_DIAGNOSTICS {
            self.found.push(Diagnostic {
                severity,
                code,
                file: self.file.to_owned(),
                line: at.line,
                column: at.column,
                path: path.to_owned(),
                message,
                hint,
            });
        }
    }

    pub(super) fn error(
        &mut self,
        code: &'static str,
        at: Place,
        path: &str,
        message: String,
        hint: Option<String>,
    ) {
        self.add(Severity::Error, code, at, path, message, hint);
    }

    pub(super) fn has_errors(&self) -> bool {
        self.found.iter().any(|d| d.severity == Severity::Error)
    }

    /// Everything, for a file that cannot be used.
    pub(super) fn into_errors(mut self) -> Diagnostics {
        self.found.sort_by_key(|d| (d.line, d.column));
        Diagnostics(self.found)
    }

    /// The warnings, if there is nothing worse; everything in the order of the file.
    pub(super) fn finish(mut self) -> Result<Vec<Diagnostic>, Diagnostics> {
        if self.has_errors() {
            return Err(self.into_errors());
        }
        self.found.sort_by_key(|d| (d.line, d.column));
        Ok(self.found)
    }
}
