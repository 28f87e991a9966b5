//! What went wrong, in the words of the person at the terminal: what failed, why, and what to do.

use std::{error::Error as _, fmt, io, io::Write as _};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{exit::Exit, text::safe};

/// Result of anything a command does.
pub type Result<T> = std::result::Result<T, Failure>;

/// A failure, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    exit: Exit,
    code: Option<Code>,
    message: String,
    details: Vec<String>,
    hints: Vec<String>,
}

impl Failure {
    /// A failure with a sentence that says what failed.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, code: None, message: message.into(), details: Vec::new(), hints: Vec::new() }
    }

    /// The command line or the local setup is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Adds a line of detail.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.details.push(detail.into());
        self
    }

    /// Adds what the reader can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Writing to standard output failed. A reader that has seen enough (`| head`) is no failure.
    pub fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::new(Exit::Ok, "")
        } else {
            Self::new(Exit::Failed, format!("cannot write to standard output: {error}"))
        }
    }

    /// The server's answer to `operation` (an RPC's name).
    pub fn from_status(operation: &str, status: &Status) -> Self {
        let reading = Reading::of(status);
        let said = match status.message() {
            "" => "no message",
            // Each fault has its line below.
            message if message == reading.faults().join("; ") => "the request is not valid",
            message => message,
        };
        let exit = if is_lost_connection(status) { Exit::Unreachable } else { status.code().into() };
        let mut failure = Self::new(exit, format!("{operation} failed: {said} ({})", code_name(status.code())));
        failure.code = Some(status.code());
        failure.details = reading.details(status.code());
        failure.hints = reading.hints(operation, status.code());
        failure
    }

    /// How the process ends.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// The code, if it is the answer of a server.
    pub fn code(&self) -> Option<Code> {
        self.code
    }

    /// Prints the failure on standard error.
    pub fn report(&self) {
        if self.message.is_empty() {
            return;
        }
        // With standard error closed there is nobody left to tell.
        let _ = io::stderr().lock().write_all(self.to_string().as_bytes());
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", safe(&self.message))?;
        for detail in &self.details {
            writeln!(f, "  {}", safe(detail))?;
        }
        for hint in &self.hints {
            writeln!(f, "hint: {}", safe(hint))?;
        }
        Ok(())
    }
}

/// Whether the call never got an answer of the server: the connection failed or broke.
pub fn is_lost_connection(status: &Status) -> bool {
    status.source().is_some()
        && matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
}

/// What the details and the metadata of a status say.
#[derive(Default)]
struct Reading {
    reason: String,
    domain: String,
    metadata: Vec<(String, String)>,
    fields: Vec<(String, String)>,
    quotas: Vec<(String, String)>,
    retry_after: Option<std::time::Duration>,
    request_id: String,
    cause: Option<String>,
}

impl Reading {
    fn of(status: &Status) -> Self {
        let details = status.get_error_details();
        let mut reading = Self::default();
        if let Some(info) = details.error_info() {
            info.reason.clone_into(&mut reading.reason);
            info.domain.clone_into(&mut reading.domain);
            reading.metadata = info.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            reading.metadata.sort();
        }
        if let Some(bad) = details.bad_request() {
            reading.fields = bad.field_violations.iter().map(|v| (v.field.clone(), v.description.clone())).collect();
        }
        if let Some(quota) = details.quota_failure() {
            reading.quotas = quota.violations.iter().map(|v| (v.subject.clone(), v.description.clone())).collect();
        }
        reading.retry_after = details.retry_info().and_then(|retry| retry.retry_delay);
        reading.request_id = status
            .metadata()
            .get("x-request-id")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
            .or_else(|| details.request_info().map(|info| info.request_id.clone()))
            .unwrap_or_default();
        reading.cause = deepest(status);
        reading
    }

    /// The fields that are wrong, and why.
    fn faults(&self) -> Vec<String> {
        self.fields.iter().map(|(field, why)| format!("{field}: {why}")).collect()
    }

    fn details(&self, code: Code) -> Vec<String> {
        let mut lines = self.faults();
        lines.extend(self.quotas.iter().map(|(subject, what)| format!("quota of {subject}: {what}")));
        // A reason that only repeats the code says nothing new.
        if !self.reason.is_empty() && self.reason != code_name(code) {
            lines.push(format!("reason: {} ({})", self.reason, self.domain));
        }
        for (key, value) in &self.metadata {
            let label = match key.as_str() {
                "permission" => "missing permission",
                "audit_id" => "audit entry",
                other => other,
            };
            lines.push(format!("{label}: {value}"));
        }
        if let Some(delay) = self.retry_after {
            lines.push(format!("retry after: {}", humantime::format_duration(delay)));
        }
        if let Some(cause) = &self.cause {
            lines.push(format!("cause: {cause}"));
        }
        if !self.request_id.is_empty() {
            lines.push(format!("request: {}", self.request_id));
        }
        lines
    }

    fn hints(&self, operation: &str, code: Code) -> Vec<String> {
        let value = |key: &str| self.metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        let noun = noun_of(operation);
        let hint = match (self.reason.as_str(), code) {
            ("ADMIN_USER_MISMATCH", _) => "this key belongs to another user; leave out --user".to_owned(),
            ("NAMESPACE_NOT_EMPTY", _) => "delete what it holds first, or add --force to delete all of it".to_owned(),
            ("SECRET_ALREADY_ISSUED", _) => format!(
                "the secret was shown when the key was made; if it is lost, revoke {} and create another",
                value("id").unwrap_or("that key")
            ),
            (_, Code::Unauthenticated) => {
                "the server does not accept this credential; check --token-file, PRISM_ADMIN_TOKEN, --cert or the context"
                    .to_owned()
            }
            (_, Code::PermissionDenied) => format!(
                "ask for a role that holds {}; `prism-admin whoami` shows what this credential holds",
                value("permission").unwrap_or("the permission")
            ),
            (_, Code::NotFound) => match noun {
                Some(noun) => format!("`prism-admin {noun} list` shows what there is"),
                None => return Vec::new(),
            },
            (_, Code::AlreadyExists) if noun == Some("config") => {
                "use `config update`, or `config create --overwrite`".to_owned()
            }
            (_, Code::AlreadyExists) => "choose another name, or update the existing one".to_owned(),
            (_, Code::Aborted) => {
                "it was changed in the meantime; get it again, apply your change to that, and repeat".to_owned()
            }
            (_, Code::InvalidArgument | Code::OutOfRange) => "nothing was changed; correct this and repeat".to_owned(),
            (_, Code::ResourceExhausted) => {
                "wait, use less, or raise the quota with `prism-admin namespace update`".to_owned()
            }
            (_, Code::Unavailable | Code::Unknown) if self.cause.is_some() => {
                "the connection broke; see whether the server is running, then repeat".to_owned()
            }
            (_, Code::Unavailable) => {
                "repeat later; `prism-admin maintenance status` says whether it is planned".to_owned()
            }
            (_, Code::Internal | Code::Unknown | Code::DataLoss) if !self.request_id.is_empty() => {
                "the server's log has the cause under the request id".to_owned()
            }
            (_, Code::Unimplemented) => "the server is older than this command, or does not serve this yet".to_owned(),
            _ => return Vec::new(),
        };
        vec![hint]
    }
}

fn noun_of(operation: &str) -> Option<&'static str> {
    [
        ("ClientKey", "client-key"),
        ("ClientBinding", "client-binding"),
        ("Binding", "binding"),
        ("Role", "role"),
        ("Certificate", "cert"),
        ("ApiKey", "key"),
        ("Config", "config"),
        ("Session", "session"),
        ("Namespace", "namespace"),
        ("Backend", "backend"),
        ("AuditLog", "audit"),
    ]
    .into_iter()
    .find_map(|(part, noun)| operation.contains(part).then_some(noun))
}

/// The innermost cause of a local failure; libraries wrap what matters several times.
pub fn deepest(error: &dyn std::error::Error) -> Option<String> {
    let mut last = error.source()?;
    while let Some(inner) = last.source() {
        last = inner;
    }
    Some(last.to_string())
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
