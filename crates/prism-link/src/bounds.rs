//! Every bound and every time of the link, by name.

use std::time::Duration;

/// The oldest version of the frames that this build speaks.
pub const OLDEST_PROTOCOL: u32 = 1;
/// The newest.
pub const NEWEST_PROTOCOL: u32 = 1;

/// Largest frame, in bytes; a transport refuses what is larger.
pub const MAX_FRAME_BYTES: usize = 8 * 1024 * 1024;
/// Largest frame that a controller takes from a node, in bytes: one admission with all that a client may say, twice over.
pub const MAX_NODE_FRAME_BYTES: usize = 1024 * 1024;
/// Largest question of a node, in bytes: a frame less what is around it.
pub const MAX_ASK_BYTES: usize = MAX_NODE_FRAME_BYTES - 64;
/// Most questions of a node that a controller works on at a time; others wait on the connection.
pub const MAX_ASKS_AT_ONCE: usize = 256;
/// And how many bytes they may have together.
pub const MAX_ASKED_BYTES: usize = 4 * MAX_NODE_FRAME_BYTES;
/// Largest text of the cluster's CAs that a node takes, in bytes.
pub const MAX_AUTHORITIES_BYTES: usize = 64 * 1024;
/// Most reports in a frame.
pub const MAX_REPORTS: usize = 1000;
/// Certificates that a node may ask for at once, and in which time it may ask for one more.
pub const CERTIFY_RATE: (u32, Duration) = (10, Duration::from_secs(2));
/// Demands of a node that are answered at once, and in which time one more.
pub const DEMAND_RATE: (u32, Duration) = (20, Duration::from_millis(100));
/// What is sent in parts is cut after so many bytes. One thing more may follow.
pub const PART_BYTES: usize = 512 * 1024;
/// Most bytes of an answer to a command, all parts together.
pub const MAX_ANSWER_BYTES: usize = 4 * MAX_NODE_FRAME_BYTES;
/// Longest text of a backend's report, in characters.
pub const MAX_REPORT_TEXT: usize = 1024;
/// Most things of a repeated field.
pub const MAX_ITEMS: usize = 10_000;
/// Most grants of a client, of a subject, and most namespaces of a Demand.
pub const MAX_GRANTS: usize = 10_000;
/// Most subjects of a credential.
pub const MAX_SUBJECTS: usize = 1000;
/// Longest id of a credential, in bytes: the issuer of a token and whom it names.
pub const MAX_CREDENTIAL_ID_BYTES: usize = 4096;
/// Most backend instances of a node.
pub const MAX_BACKENDS: usize = 1000;
/// Longest type of a backend instance, in bytes.
pub const MAX_BACKEND_TYPE: usize = 32;
/// Longest identity of a backend's data, in bytes.
pub const MAX_BACKEND_IDENTITY: usize = 512;
/// Longest `host:port` at which a node says it serves, in bytes.
pub const MAX_DATA_ENDPOINT: usize = 260;
/// Longest version of a node that is kept, in characters.
pub const MAX_VERSION: usize = 64;
/// Most things of a whole snapshot: configs, namespaces, keys, bindings, certificates and what else there may be.
pub const MAX_SNAPSHOT_ITEMS: usize = 500_000;
/// Most sessions of a node that a link goes through.
pub const MAX_SESSIONS: usize = 1_000_000;
/// Most questions of a node that are open at a time.
pub const MAX_ASKS: usize = 10_000;
/// Most commands to a node that are open at a time.
pub const MAX_COMMANDS: usize = 1000;
/// Most admissions of a node of which it is not known whether it heard of them.
pub const MAX_UNHEARD: usize = 10_000;
/// Most nodes that are linked to a controller at a time; more may have joined. ADR 19 says what they cost.
pub const MAX_NODES: usize = 250;
/// Frames that wait to be sent.
pub const MAX_WAITING_FRAMES: usize = 1024;
/// How often a session may have been moved by others while it is moved.
pub const MOVES: usize = 3;
/// Most controllers in a node's list.
pub const MAX_CONTROLLERS: usize = 100;

/// How often each end of a link asks for a sign of life.
pub const PING_EVERY: Duration = Duration::from_secs(1);
/// A link from which nothing came for this long is given up; its node is unreachable.
pub const SILENCE: Duration = Duration::from_secs(5);
/// How long a controller may take to accept a connection; a list has others.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the link of a node may take to give a sign of life, when another process comes with the same identity.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(3);
/// Pause of a process that was refused as the second one of its node.
pub const TWIN_PAUSE: Duration = Duration::from_secs(10);
/// How often the log says again why a controller refuses the node.
pub const REFUSAL_EVERY: Duration = Duration::from_mins(5);
/// How long the first frames of the other end may take.
pub const INTRODUCTION_TIMEOUT: Duration = SILENCE;
/// How long a question waits for its answer.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a command that does not say itself waits for its answer.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// Nodes that are told at a time to remove the data of a namespace. What they have missed each is told by itself.
pub const REMOVALS_AT_ONCE: usize = 16;
/// How long nodes may take to report before what is known is shown without them.
pub const REPORT_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause after a failed connection: the shortest and the longest. It doubles, and is stretched or cut by a random fifth.
pub const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long a connection that takes nothing any more may take to say why.
pub const LAST_WORD: Duration = Duration::from_secs(1);
/// Pause of a node that was revoked before it asks again whether it was taken back, stretched or cut as well.
pub const REVOKED_RETRY: Duration = Duration::from_secs(10);
/// What a client is told to wait when there is no controller.
pub const RETRY: Duration = Duration::from_secs(2);
/// How soon a change of a node's state is written down, and the shortest pause between two states: many changes are one write.
pub const PERSIST_AFTER: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// How often a node tells its demand.
pub const DEMAND_EVERY: Duration = Duration::from_secs(1);
/// For how long a share of a rate holds; see [`crate::shares`].
pub const LEASE: Duration = Duration::from_secs(10);
/// How long an admission waits for the node's first share of a rate.
pub const SHARE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a caller waits for the nodes to serve by a snapshot.
pub const CATCH_UP: Duration = Duration::from_secs(1);
/// How often a controller looks which nodes have sessions without being connected.
pub const MEMBERS_EVERY: Duration = Duration::from_secs(5);
