/// Topics, their logs, and where the groups stand.
///
/// A message's key is its partition's id in the high bits and its offset in the low 40 (see `log::row_id`), so that an append
/// touches one B-tree and a fetch is one range. A partition's next offset has its own column: it does not go back when all
/// messages are trimmed. `committed` is the lowest offset that is not settled; `_prism_queue_acks` holds what is settled
/// beyond it. A topic with `retention_ms` 0 keeps everything. `epoch` counts the seeks of a position: an acknowledgement of a delivery from before a seek is recognised by it.
pub(crate) const SCHEMA: &str = "
    CREATE TABLE _prism_queue_topics (
        id           INTEGER PRIMARY KEY,
        name         TEXT NOT NULL UNIQUE,
        retention_ms INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE _prism_queue_partitions (
        id       INTEGER PRIMARY KEY,
        topic    INTEGER NOT NULL REFERENCES _prism_queue_topics (id),
        number   INTEGER NOT NULL,
        earliest INTEGER NOT NULL DEFAULT 0,
        next     INTEGER NOT NULL DEFAULT 0,
        UNIQUE (topic, number)
    ) STRICT;

    CREATE TABLE _prism_queue_messages (
        id        INTEGER PRIMARY KEY,
        timestamp INTEGER NOT NULL,
        bytes     INTEGER NOT NULL,
        headers   TEXT,
        payload   BLOB NOT NULL
    ) STRICT;

    CREATE TABLE _prism_queue_groups (
        id    INTEGER PRIMARY KEY,
        topic INTEGER NOT NULL REFERENCES _prism_queue_topics (id),
        name  TEXT NOT NULL,
        UNIQUE (topic, name)
    ) STRICT;

    CREATE TABLE _prism_queue_positions (
        consumer  INTEGER NOT NULL REFERENCES _prism_queue_groups (id),
        partition INTEGER NOT NULL REFERENCES _prism_queue_partitions (id),
        committed INTEGER NOT NULL,
        epoch     INTEGER NOT NULL,
        PRIMARY KEY (consumer, partition)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE _prism_queue_acks (
        consumer  INTEGER NOT NULL,
        partition INTEGER NOT NULL,
        offset    INTEGER NOT NULL,
        PRIMARY KEY (consumer, partition, offset)
    ) STRICT, WITHOUT ROWID;
";
