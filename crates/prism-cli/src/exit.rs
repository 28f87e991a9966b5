//! Exit codes: scripts can tell apart what went wrong without reading a message.

use std::process::ExitCode;

use tonic::Code;

/// The table shown by `prism-admin help exit-codes`.
pub const HELP: &str = "\
Exit codes:
   0  done
   1  another failure
   2  usage: the command line or the local setup is wrong
   3  refused: no valid credential, or a missing permission
   4  not found
   5  unreachable: no connection, or the server says it is unavailable
   6  conflict: it exists already, was changed in the meantime, or its state forbids the call
   7  invalid request
   8  a limit was reached
   9  deadline: no answer in time, or a drain that left sessions at its timeout
  10  can-i: not allowed
  11  the audit log is broken: `audit verify` or `export` found where, or it is not the log that was seen before";

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Another failure.
    Failed = 1,
    /// The command line or the local setup is wrong; also what clap ends with.
    Usage = 2,
    /// UNAUTHENTICATED or PERMISSION_DENIED.
    Refused = 3,
    /// NOT_FOUND.
    NotFound = 4,
    /// No connection, or UNAVAILABLE.
    Unreachable = 5,
    /// ABORTED, ALREADY_EXISTS or FAILED_PRECONDITION.
    Conflict = 6,
    /// INVALID_ARGUMENT or OUT_OF_RANGE.
    Invalid = 7,
    /// RESOURCE_EXHAUSTED.
    Limit = 8,
    /// DEADLINE_EXCEEDED, no answer in time, or an incomplete drain.
    Deadline = 9,
    /// `can-i` says no.
    NotAllowed = 10,
    /// `audit verify` or `audit export` found a break, or a server's log is not the one that was seen before.
    ChainBroken = 11,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<Code> for Exit {
    fn from(code: Code) -> Self {
        match code {
            Code::Ok => Self::Ok,
            Code::Unauthenticated | Code::PermissionDenied => Self::Refused,
            Code::NotFound => Self::NotFound,
            Code::Unavailable => Self::Unreachable,
            Code::Aborted | Code::AlreadyExists | Code::FailedPrecondition => Self::Conflict,
            Code::InvalidArgument | Code::OutOfRange => Self::Invalid,
            Code::ResourceExhausted => Self::Limit,
            Code::DeadlineExceeded => Self::Deadline,
            Code::Cancelled | Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_map_to_documented_exits() {
        let expected = [
            (Code::Ok, 0),
            (Code::Internal, 1),
            (Code::Unknown, 1),
            (Code::Unimplemented, 1),
            (Code::Unauthenticated, 3),
            (Code::PermissionDenied, 3),
            (Code::NotFound, 4),
            (Code::Unavailable, 5),
            (Code::Aborted, 6),
            (Code::AlreadyExists, 6),
            (Code::FailedPrecondition, 6),
            (Code::InvalidArgument, 7),
            (Code::ResourceExhausted, 8),
            (Code::DeadlineExceeded, 9),
        ];
        for (code, exit) in expected {
            assert_eq!(Exit::from(code) as u8, exit, "{code:?}");
            assert!(HELP.contains(&format!("\n  {exit:>2}  ")), "{exit} is not documented");
        }
    }
}
