//! Every bound that is not a setting, by name; settings are in [`Limits`].

use std::time::Duration;

/// Longest client id, client version, key name, reason, in bytes.
pub const MAX_TEXT_BYTES: usize = 1024;
/// Longest description or maintenance message, in bytes.
pub const MAX_DESCRIPTION_BYTES: usize = 4096;
/// Most entries of a metadata or header map.
pub const MAX_MAP_ENTRIES: usize = 64;
/// Longest key of a metadata or header map, in bytes.
pub const MAX_MAP_KEY_BYTES: usize = 256;
/// Longest value of a metadata or header map, in bytes.
pub const MAX_MAP_VALUE_BYTES: usize = 8192;
/// Longest topic, topic pattern, mailbox id, consumer or queue group, in bytes.
pub const MAX_TOPIC_BYTES: usize = 255;
/// Longest version of a config, in bytes.
pub const MAX_VERSION_BYTES: usize = 128;
/// Longest `x-request-id` taken over, in characters.
pub const MAX_REQUEST_ID_BYTES: usize = 128;
/// Longest `x-idempotency-key` or `idempotency_key`, in bytes.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 255;
/// How long an idempotency key is remembered.
pub const IDEMPOTENCY_WINDOW: Duration = Duration::from_hours(24);
/// Largest quota value.
pub const MAX_QUOTA: i64 = 1 << 60;
/// Most namespaces of one installation.
pub const MAX_NAMESPACES: i64 = 10_000;
/// Most live configs of one installation.
pub const MAX_CONFIGS: i64 = 100_000;
/// Most API keys, and most client keys, of one installation that are not revoked.
pub const MAX_KEYS: i64 = 10_000;
/// Most roles of one installation.
pub const MAX_ROLES: usize = 1000;
/// Most bindings, and most client bindings, of one installation.
pub const MAX_BINDINGS: i64 = 10_000;
/// Most certificates that one installation keeps track of.
pub const MAX_CERTIFICATES: i64 = 100_000;
/// Most join tokens of one installation that can still be redeemed.
pub const MAX_JOIN_TOKENS: i64 = 10_000;
/// Life of a join token when the request does not say.
pub const DEFAULT_JOIN_TOKEN_TTL: Duration = Duration::from_hours(1);
/// Longest life of a join token: a week.
pub const MAX_JOIN_TOKEN_TTL: Duration = Duration::from_hours(7 * 24);
/// Most nodes of one installation that are not revoked.
pub const MAX_NODES: i64 = 10_000;
/// Most certificates of one node that are valid at the same time; a node that renews at half-life has two.
pub const MAX_NODE_CERTIFICATES: i64 = 16;
/// Of those, for one key; beyond them it is given again what it has got. A key that is in place has them whatever the others have.
pub const MAX_CERTIFICATES_OF_KEY: i64 = 8;
/// Name of the node that runs in the server's own process.
pub const LOCAL_NODE: &str = "local";
/// Longest time to live of a key-value entry: ten years.
pub const MAX_TTL_SECONDS: i64 = 10 * 366 * 24 * 3600;
/// Most keys or entries of one BatchGet, BatchPut or PublishBatch.
pub const MAX_BATCH: usize = 1000;
/// Longest time a drain may wait.
pub const MAX_DRAIN_TIMEOUT: Duration = Duration::from_hours(1);
/// Longest time to live of an API or client key: ten years.
pub const MAX_KEY_TTL: Duration = Duration::from_hours(10 * 366 * 24);
/// Longest time for which the token before works after a rotation: 30 days.
pub const MAX_KEY_OVERLAP: Duration = Duration::from_hours(30 * 24);
/// Most permissions of one role.
pub const MAX_ROLE_PERMISSIONS: usize = 100;
/// Shortest life of a certificate that Prism's CA issues to a user or an application.
pub const MIN_CERTIFICATE_TTL: Duration = Duration::from_mins(1);
/// Longest life of such a certificate: a year.
pub const MAX_CERTIFICATE_TTL: Duration = Duration::from_hours(366 * 24);

/// Bounds that the operator may set, section `[limits]` of `prism.toml`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest key, in bytes.
    pub max_key_bytes: usize,
    /// Largest value or message, in bytes.
    pub max_value_bytes: usize,
    /// Most connections per listener.
    pub max_connections: usize,
    /// Most operations in flight per plane; more are refused with RESOURCE_EXHAUSTED.
    pub max_in_flight: usize,
    /// Most live sessions of one node.
    pub max_sessions: usize,
    /// Most concurrent streams (subscriptions, transactions) of one session.
    pub max_streams_per_session: usize,
    /// Threads that serve the data plane.
    pub data_threads: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_key_bytes: 4 * 1024,
            max_value_bytes: 4 * 1024 * 1024,
            max_connections: 10_000,
            max_in_flight: 10_000,
            max_sessions: 100_000,
            max_streams_per_session: 100,
            data_threads: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
        }
    }
}

impl Limits {
    /// Largest gRPC message accepted: the largest value, and room for a key, headers and framing.
    pub fn max_message_bytes(&self) -> usize {
        self.max_value_bytes
            + self.max_key_bytes
            + MAX_MAP_ENTRIES * (MAX_MAP_KEY_BYTES + MAX_MAP_VALUE_BYTES)
            + 16 * 1024
    }
}

/// Life of a session, section `[session]` of `prism.toml`.
#[derive(Clone, Debug)]
pub struct SessionPolicy {
    /// Without a request for this long, a session is IDLE.
    pub idle_after: Duration,
    /// With less than this left, a session is EXPIRING.
    pub expiring_within: Duration,
    /// Without a request or heartbeat for this long, a session ends.
    pub idle_timeout: Duration,
    /// A session ends at this age, whatever happens.
    pub max_age: Duration,
    /// Ended sessions stay listed for this long.
    pub retain_ended: Duration,
}

impl Default for SessionPolicy {
    fn default() -> Self {
        Self {
            idle_after: Duration::from_mins(1),
            expiring_within: Duration::from_mins(1),
            idle_timeout: Duration::from_mins(5),
            max_age: Duration::from_hours(24),
            retain_ended: Duration::from_hours(24),
        }
    }
}
