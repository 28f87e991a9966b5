//! Schema of `prism.db`. Scripts are only ever appended: what has run on somebody's disk does not change.

pub(crate) const MIGRATIONS: &[&str] =
    &[FIRST, TRUST, REVISIONS, CLUSTER, AUTHORITIES, NODES, TAKEOVER, LINEAGE, GENERATIONS, EARLIER_LINEAGE, MOVES];

const FIRST: &str = "
CREATE TABLE namespaces (
    name TEXT PRIMARY KEY,
    description TEXT NOT NULL,
    status INTEGER NOT NULL,
    max_sessions INTEGER NOT NULL,
    max_storage_bytes INTEGER NOT NULL,
    max_rps INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Live configs; each points to its current revision.
CREATE TABLE configs (
    name TEXT PRIMARY KEY,
    namespace TEXT NOT NULL REFERENCES namespaces (name),
    pattern TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX configs_by_namespace ON configs (namespace, name);

-- Every revision ever accepted; outlives the deletion of its config, so that numbers never come back.
CREATE TABLE config_revisions (
    name TEXT NOT NULL,
    revision INTEGER NOT NULL,
    version TEXT NOT NULL,
    config TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (name, revision)
) STRICT, WITHOUT ROWID;
CREATE INDEX config_revisions_by_version ON config_revisions (name, version, revision);

CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    token_id TEXT NOT NULL UNIQUE,
    token_hash BLOB NOT NULL,
    namespace TEXT NOT NULL,
    node TEXT NOT NULL,
    client_id TEXT NOT NULL,
    client_version TEXT NOT NULL,
    metadata TEXT NOT NULL,
    config TEXT NOT NULL,
    config_name TEXT,
    may_read INTEGER NOT NULL,
    may_write INTEGER NOT NULL,
    credential_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    last_activity INTEGER NOT NULL,
    requests_total INTEGER NOT NULL DEFAULT 0,
    bytes_sent INTEGER NOT NULL DEFAULT 0,
    bytes_received INTEGER NOT NULL DEFAULT 0,
    active_streams INTEGER NOT NULL DEFAULT 0,
    last_request INTEGER,
    draining INTEGER NOT NULL DEFAULT 0,
    terminating TEXT,
    ended_at INTEGER,
    end_reason TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_live ON sessions (namespace, id) WHERE ended_at IS NULL;
CREATE INDEX sessions_by_namespace ON sessions (namespace, id);
CREATE INDEX sessions_ended ON sessions (ended_at) WHERE ended_at IS NOT NULL;

-- scope '' is the whole gateway, any other a namespace.
CREATE TABLE maintenance (
    scope TEXT PRIMARY KEY,
    message TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    ends_at INTEGER,
    allow_reads INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Drains in progress. A row left by a crash is answered for in the audit log at the next start.
CREATE TABLE drains (
    id INTEGER PRIMARY KEY,
    namespace TEXT,
    node TEXT,
    draft TEXT NOT NULL
) STRICT;

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    hash BLOB NOT NULL,
    name TEXT NOT NULL,
    roles TEXT NOT NULL,
    namespace TEXT,
    owner TEXT,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER,
    last_used_at INTEGER,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE client_keys (
    id TEXT PRIMARY KEY,
    hash BLOB NOT NULL,
    name TEXT NOT NULL,
    namespace TEXT NOT NULL,
    may_read INTEGER NOT NULL,
    may_write INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER,
    last_used_at INTEGER,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX client_keys_by_namespace ON client_keys (namespace, id);

-- entry is the AuditLogEntry as it was hashed, with its hashes; the other columns serve filters.
CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    timestamp INTEGER NOT NULL,
    actor TEXT NOT NULL,
    operation TEXT NOT NULL,
    namespace TEXT NOT NULL,
    hash BLOB NOT NULL,
    entry BLOB NOT NULL
) STRICT;
CREATE INDEX audit_by_timestamp ON audit (timestamp);
CREATE INDEX audit_by_actor ON audit (actor);
CREATE INDEX audit_by_operation ON audit (operation);
CREATE INDEX audit_by_namespace ON audit (namespace);

CREATE TABLE idempotency (
    credential TEXT NOT NULL,
    rpc TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    response BLOB,
    secret_id TEXT,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (credential, rpc, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency (created_at);

-- Deleted namespaces whose data is still being removed from the backends.
CREATE TABLE removals (namespace TEXT PRIMARY KEY, since INTEGER NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
";

/// Roles, bindings, certificates, rotation of keys, and what the server signed about its audit log.
const TRUST: &str = "
ALTER TABLE api_keys ADD COLUMN previous_hash BLOB;
ALTER TABLE api_keys ADD COLUMN previous_until INTEGER;
ALTER TABLE api_keys ADD COLUMN rotated_at INTEGER;

-- Where the call happened; NULL = not in one namespace.
ALTER TABLE idempotency ADD COLUMN namespace TEXT;

-- What a session stands on beside credential_id, as JSON; NULL = a client key.
ALTER TABLE sessions ADD COLUMN basis TEXT;

-- Custom roles; the built-in ones are in the program.
CREATE TABLE roles (
    name TEXT PRIMARY KEY,
    permissions TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE bindings (
    id TEXT PRIMARY KEY,
    subject TEXT NOT NULL,
    role TEXT NOT NULL,
    namespace TEXT,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX bindings_once ON bindings (subject, role, coalesce(namespace, ''));
CREATE INDEX bindings_by_role ON bindings (role);
CREATE INDEX bindings_by_namespace ON bindings (namespace, id);

CREATE TABLE client_bindings (
    id TEXT PRIMARY KEY,
    subject TEXT NOT NULL,
    namespace TEXT NOT NULL,
    may_read INTEGER NOT NULL,
    may_write INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    UNIQUE (subject, namespace)
) STRICT, WITHOUT ROWID;
CREATE INDEX client_bindings_by_namespace ON client_bindings (namespace, id);

-- Certificates that Prism's CA issued, and those of other CAs that were revoked: these have no serial.
CREATE TABLE certificates (
    fingerprint TEXT PRIMARY KEY,
    serial TEXT UNIQUE,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    uri TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX certificates_revoked ON certificates (fingerprint) WHERE revoked_at IS NOT NULL;

-- What the server signed about its audit log. A cut stands for the entries up to it, which are removed.
CREATE TABLE checkpoints (
    sequence INTEGER PRIMARY KEY,
    hash BLOB NOT NULL,
    checkpoint BLOB NOT NULL,
    cut INTEGER NOT NULL
) STRICT;
CREATE INDEX checkpoints_by_cut ON checkpoints (cut);
";

/// Revisions in the order they were accepted, so that each goes to the end of the table and only an entry of some bytes goes
/// among those of its config.
const REVISIONS: &str = "
-- Every revision ever accepted; outlives the deletion of its config, so that numbers never come back. number is the id of the
-- name's first revision. tag tells most versions apart (version_tag); NULL = not known.
CREATE TABLE revisions (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    number INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    version TEXT NOT NULL,
    tag INTEGER,
    config TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

INSERT INTO revisions (id, name, number, revision, version, config, created_at)
SELECT
    row_number() OVER (ORDER BY name, revision),
    name,
    row_number() OVER (ORDER BY name, revision) - row_number() OVER (PARTITION BY name ORDER BY revision) + 1,
    revision, version, config, created_at
FROM config_revisions ORDER BY name, revision;

CREATE UNIQUE INDEX revisions_first ON revisions (name) WHERE revision = 1;
CREATE UNIQUE INDEX revisions_by_number ON revisions (number, revision, tag);

ALTER TABLE configs ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
UPDATE configs SET number = (SELECT r.id FROM revisions r WHERE r.name = configs.name AND r.revision = 1);

DROP TABLE config_revisions;
";

/// Join tokens, nodes, and what certificates of nodes come from.
const CLUSTER: &str = "
-- node_id NULL = for any node. What follows redeemed_at is set with it, in one statement.
CREATE TABLE join_tokens (
    id TEXT PRIMARY KEY,
    hash BLOB NOT NULL,
    node_id TEXT,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER,
    redeemed_at INTEGER,
    redeemed_by TEXT,
    key_hash BLOB,
    certificate TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX join_tokens_by_age ON join_tokens (created_at, id);
CREATE INDEX join_tokens_by_node ON join_tokens (redeemed_by) WHERE redeemed_by IS NOT NULL;
CREATE INDEX join_tokens_open ON join_tokens (expires_at) WHERE revoked_at IS NULL AND redeemed_at IS NULL;

-- version and data_endpoint are what the node says of itself; NULL = nothing yet.
CREATE TABLE nodes (
    id TEXT PRIMARY KEY,
    token_id TEXT NOT NULL,
    joined_at INTEGER NOT NULL,
    revoked_at INTEGER,
    revoked_by TEXT,
    last_seen_at INTEGER,
    version TEXT,
    data_endpoint TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX nodes_by_token ON nodes (token_id);
CREATE INDEX nodes_live ON nodes (id) WHERE revoked_at IS NULL;

ALTER TABLE certificates ADD COLUMN pem TEXT;
ALTER TABLE certificates ADD COLUMN key_hash BLOB;
ALTER TABLE certificates ADD COLUMN node_id TEXT;
ALTER TABLE certificates ADD COLUMN token_id TEXT;
-- Fingerprint of the certificate with which this one was asked for.
ALTER TABLE certificates ADD COLUMN renewed_from TEXT;
CREATE INDEX certificates_by_node ON certificates (node_id, created_at) WHERE node_id IS NOT NULL;
CREATE INDEX certificates_by_end ON certificates (expires_at) WHERE revoked_at IS NULL;
-- Not those of the node in the server's own process, which are all there are where nobody has joined.
CREATE INDEX sessions_by_node ON sessions (node, id) WHERE node <> 'local';
";

/// Which CA a certificate is of, since there can be two.
const AUTHORITIES: &str = "
-- SHA-256 of the CA's certificate; NULL = of another CA, or issued when there was one CA only and none had been replaced.
ALTER TABLE certificates ADD COLUMN authority TEXT;
CREATE INDEX certificates_by_authority ON certificates (authority, expires_at) WHERE revoked_at IS NULL;
";

/// What nodes say of themselves, and what they still have to remove.
const NODES: &str = "
-- JSON: [{instance, type}], as the node said when it was linked last; NULL = nothing yet.
ALTER TABLE nodes ADD COLUMN backends TEXT;
-- Whether it has ever had a link: it may hold data. Stays when the node joins again.
ALTER TABLE nodes ADD COLUMN linked INTEGER NOT NULL DEFAULT 0;
UPDATE nodes SET linked = 1 WHERE version IS NOT NULL;
-- Deleted namespaces whose data a node has still to remove; that of a later generation of the name stays.
CREATE TABLE node_removals (
    node TEXT NOT NULL,
    namespace TEXT NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (node, namespace)
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_live_by_node ON sessions (node) WHERE ended_at IS NULL AND node <> 'local';
";

/// Which join tokens may take a name over from the node that has it, and which CA each names.
const TAKEOVER: &str = "
-- Whether who made the token could have revoked the node: it may be redeemed for a name that somebody has had by then.
ALTER TABLE join_tokens ADD COLUMN may_replace INTEGER NOT NULL DEFAULT 0;
-- SHA-256 of the certificate of the CA that it names; NULL = it is from before this was noted.
ALTER TABLE join_tokens ADD COLUMN authority TEXT;
CREATE INDEX join_tokens_bound ON join_tokens (node_id) WHERE node_id IS NOT NULL AND revoked_at IS NULL AND redeemed_at IS NULL;
";

/// What hangs together, when part of it is forgotten already.
const LINEAGE: &str = "
-- The certificate of those that are still kept that this one goes back to; renewed_from names one that may be forgotten.
ALTER TABLE certificates ADD COLUMN ancestor TEXT;
UPDATE certificates SET ancestor = coalesce(
    (SELECT p.fingerprint FROM certificates p WHERE p.fingerprint = certificates.renewed_from),
    (SELECT t.certificate FROM join_tokens t WHERE t.id = certificates.token_id))
WHERE renewed_from IS NOT NULL;
CREATE INDEX certificates_by_ancestor ON certificates (ancestor) WHERE ancestor IS NOT NULL;

-- Entries of the audit log by what they are about: token:…, node:…, certificate:…, session:…; only those that changed something
-- there, or should have. outcome: 0 = done, 1 = refused, 2 = refused with an alarm.
CREATE TABLE lineage_entries (
    link TEXT NOT NULL,
    operation TEXT NOT NULL,
    outcome INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    PRIMARY KEY (link, operation, outcome, sequence)
) STRICT, WITHOUT ROWID;
CREATE INDEX lineage_entries_by_sequence ON lineage_entries (sequence);
";

/// A generation of its own for each namespace, whatever the clock does.
const GENERATIONS: &str = "
ALTER TABLE namespaces ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
UPDATE namespaces SET generation = created_at;
-- The largest that was ever given.
INSERT INTO facts (name, value) SELECT 'generation', CAST(coalesce(max(generation), 0) AS TEXT)
FROM (SELECT generation FROM namespaces UNION ALL SELECT generation FROM node_removals);
";

/// Entries that an earlier version wrote are looked through once, when the store is opened (`index_earlier_lineage`).
const EARLIER_LINEAGE: &str = "
INSERT INTO facts (name, value) SELECT 'lineage_to_index', '' WHERE EXISTS (SELECT 1 FROM audit);
";

/// Sessions that went on on another node.
const MOVES: &str = "
-- JSON list of the nodes that had it before; they may serve it until they hear of that. NULL = none.
ALTER TABLE sessions ADD COLUMN moved_from TEXT;
CREATE INDEX sessions_moved ON sessions (created_at) WHERE moved_from IS NOT NULL;
";
